//! Reading: what was published last, pinned, and the answers to reads of it.

pub(super) mod published;

pub(super) mod range;

pub(super) mod read;
