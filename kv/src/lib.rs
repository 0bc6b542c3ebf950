//! A replicated, transactional key-value store that a Rust program links in.

pub mod env;
pub mod fault;
pub mod identity;
pub mod log;
pub mod machine;
pub mod model;
