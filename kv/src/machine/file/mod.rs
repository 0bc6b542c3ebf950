//! The state file: its pages as they are checked, its tables, the runs of heads in it, and the state that a checkpoint left.
//!
//! Always: what is read of the file is what was written to it, or a fault.

pub(super) mod open_error;
pub(super) mod sight;

pub(super) mod backend;

pub(super) mod filter;

pub(super) mod blocks;

pub(super) mod in_order;

pub(super) mod heads;

pub(super) mod runs;

pub(super) mod recent;

pub(super) mod database;

pub(super) mod base;

pub(super) mod opening;

pub(super) mod reserve;
