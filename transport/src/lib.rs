//! Authenticated messages between peers. Knows nothing of Raft or of keys.
//!
//! A [`Transport`] opens and accepts [`Stream`]s of whole messages, each in a [`Class`] of traffic, between
//! peers whose [`Identity`] was proven by their certificates ([`certs`] makes them). [`quic`] is the real
//! one, [`memory`] the scripted one for tests; one suite of tests runs over both. [`delay`] makes either late.
//!
//! Always: messages of one stream arrive whole, in order and at most once; a stream that failed says so to
//! both sides and never resumes; every queue is bounded and a full one makes the sender wait.

// A library that prints panics where its program has no standard output.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod address;
mod backoff;
mod class;
mod identity;
mod peer;
mod refused;

mod error;
#[cfg(feature = "quic")]
mod frame;
mod stream;
mod transport;

#[cfg(feature = "quic")]
mod inbox;

#[cfg(feature = "quic")]
pub mod certs;
pub mod delay;
pub mod memory;
#[cfg(feature = "quic")]
pub mod quic;

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;

pub use address::{Address, AddressRule, Host, HostName, InvalidAddress, ListenAddress};
pub use backoff::BackoffSettings;
pub use class::Class;
pub use error::TransportError;
pub use identity::{ClusterId, Identity, InvalidIdentity, Role};
pub use peer::Peer;
pub use refused::RefusedBecause;
pub use stream::{
    Arrived, MESSAGE_BYTES_MAX, MessageReceiver, MessageSender, Stream, StreamReceiver, StreamSender,
};
pub use transport::{Incoming, Transport};
