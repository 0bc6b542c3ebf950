//! What Quorate is tested with: a deterministic simulator, its faults and its checkers.

/// The programs of the READMEs compile.
#[cfg(doctest)]
pub mod readme {
    #[doc = include_str!("../../README.md")]
    pub mod root {}
    #[doc = include_str!("../../kv/README.md")]
    pub mod kv {}
    #[doc = include_str!("../../transport/README.md")]
    pub mod transport {}
}

pub mod chaos;
pub mod check;
pub mod cluster;
pub mod failover;
pub mod processes;
pub mod scenario;
pub mod sim;
pub mod terminal;

pub mod ports;
