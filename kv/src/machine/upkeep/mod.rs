//! What becomes of the file over time: checkpoints, forgetting, merging and shrinking, each a durable step beside applying; and
//! looking whether all of it is sound.

pub(super) mod verify;

pub(super) mod forget;

pub(super) mod merge;

pub(super) mod shrink;

pub(super) mod checkpoint;

pub(super) mod scrub;

pub(super) mod examine;
