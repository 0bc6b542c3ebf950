//! The crate's behaviour over the real state machine, a file per subject.
//!
//! After every commit, the store of these tests checks all invariants of `quorate_meta::check`.

mod ancestor;
mod brokers;
mod calls;
mod laws;
mod namespace;
mod races;
mod scale;
mod support;
mod topics;
mod updates;
