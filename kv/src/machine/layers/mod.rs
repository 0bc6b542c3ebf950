//! The layers: what was applied and is not in the file yet, and the state that both make.

pub(super) mod keys;

pub(super) mod answers;

pub(super) mod layer;

pub(super) mod layered;
