//! What Quorate is tested with: a deterministic simulator, its faults and its checkers.

pub mod sim;
