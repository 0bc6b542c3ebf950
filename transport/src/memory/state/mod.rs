//! All that the network in memory knows: places, links, connections and the streams' messages.
//!
//! One value behind one lock, changed by short synchronous steps; whoever waits does so outside, on the
//! `Notify` of what it waits for, until the next moment that the step named. No task moves messages: each
//! bears the time of its arrival, and the reader looks at the time.
//!
//! Always: ids are given out in the order of the calls, and every collection is ordered, so that the same
//! calls at the same times with the same random numbers do the same; what a place's earlier incarnation
//! holds is never delivered to a later one; the parcels of a pipe arrive in the order in which they were
//! sent.

mod world;

mod pipe;

mod dial;
mod lives;
mod probe;
mod script;

pub(super) use world::{Handshake, Moment, Offered, Opening, PipeId, PlaceId, Probe, Received, State};
