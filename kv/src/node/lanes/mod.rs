//! Reads of the state, in two lanes, each with a thread of its own: those of a few keys, and all others.
//!
//! A read of a few keys takes microseconds and never waits behind a scan; scans go on slice by slice, in turns. What
//! turns out to be longer than it looked changes the lane. Each answer leaves when it is made. Where memory has all that a read
//! of a few keys asks for, it needs no thread (`memory`).
//!
//! A read has room for its answer before it is made. That of many keys has it for the largest that it may be, since it is
//! gathered over many turns. That of a few keys has it for a small one: most are, and how large it is shows once it is
//! made. Where there is no room for it then, it is forgotten, and made again once there is (`waiting`).
//!
//! Always: an answer is of one revision; a read that nobody waits for any more is not gone on with; before a read comes
//! here the state that it asks for is applied; nothing here waits for room while it holds some.

mod jobs;

mod rotation;
mod waiting;

mod memory;
mod points;
mod scans;

mod both;

pub(super) use both::Lanes;
pub(super) use jobs::{End, ReadJob};

#[cfg(test)]
pub(super) use jobs::{PointJob, ScanJob};
#[cfg(test)]
pub(super) use points::{Done, Points};
#[cfg(test)]
pub(super) use scans::Scans;
#[cfg(test)]
pub(super) use waiting::{READS_MAX, Waiting, WantsRoom};
