//! What the benchmarks share: clusters in this process, facts of the machine.

pub mod cluster;
pub mod facts;
