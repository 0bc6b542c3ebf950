//! What the benchmarks share: clusters in this process, distance between their nodes, facts of the machine.

pub mod cluster;
pub mod delay;
pub mod facts;
