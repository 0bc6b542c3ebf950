//! What Quorate is tested with: a deterministic simulator, its faults and its checkers.

pub mod cluster;
pub mod scenario;
pub mod sim;
