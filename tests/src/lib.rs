//! What Quorate is tested with: a deterministic simulator, its faults and its checkers.

/// The programs of the README compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub mod readme {}

pub mod chaos;
pub mod check;
pub mod cluster;
pub mod failover;
pub mod processes;
pub mod scenario;
pub mod sim;
pub mod terminal;

pub mod ports;
