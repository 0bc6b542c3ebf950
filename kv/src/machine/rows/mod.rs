//! What the rows of the state file say: the tables, and for each kind of row its key, its value and its lifetime.
//!
//! Plain values and bytes. Knows no file but its name, which errors tell.

pub(super) mod tables;
pub(super) mod wire;

pub(super) mod error;

pub(super) mod head;
pub(super) mod version;

pub(super) mod chain;

pub(super) mod sessions;

pub(super) mod sequences;

pub(super) mod times;

pub(super) mod row_hash;

pub(super) mod counters;

pub(super) mod system;
