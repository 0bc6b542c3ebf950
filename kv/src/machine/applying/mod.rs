//! Applying: from entries to what they change and answer.
//!
//! Always: the same entries do the same on every node, however they are cut into calls.

pub(super) mod entry;

pub(super) mod applied;
pub(super) mod hashes;

pub(super) mod work;

pub(super) mod gaps;

pub(super) mod changed;

pub(super) mod batch;

pub(super) mod execute;

pub(super) mod apply;
