//! The state machine: applies committed entries, and keeps their state in one redb file.
//!
//! Called by `raft` with entries in log order; read by whoever holds a [`Reader`]. Knows no clock, no network
//! and no task: time comes inside the entries, and all methods block, so that an owner thread runs them.
//!
//! What entries change gathers in memory, in layers, and goes to the file in checkpoints, many entries in one
//! durable transaction; readers see the file under the layers.
//!
//! Always:
//! - the same entries make the same state, the same answers and the same hash on every node, however they are
//!   cut into calls of [`Machine::apply`] and whenever checkpoints are made;
//! - one transaction that changes something is one revision; none is skipped; a refused one changes nothing;
//! - what `apply` did is visible to readers when it returns, and durable after the next checkpoint; after a
//!   crash the state is that of the last whole checkpoint, with its position inside, and the log replays the
//!   rest;
//! - a write that a session retries is answered as the first time, and never executed again;
//! - the state file's name stands for a whole state file, or for none;
//! - after a fault the machine does nothing any more but answer that fault.
//!
//! Where to start, from below: `rows` says what each table's rows are, and `tables` lists them; `file` is the state file, and its
//! `base` what the last checkpoint left there; `layers` are over it, and `layered` is the state that stands. In `applying`, `execute`
//! runs a transaction on a `batch`, which is what one `apply` has changed so far, and which becomes part of a layer. `reading` answers
//! readers, `snapshot` carries a whole state to another node, and `upkeep` has what becomes of the file, `checkpoint` first.
//! `owner` has the machine, which calls them all.

mod settings;

mod rows;

mod file;
mod layers;

mod applying;
mod reading;

mod snapshot;
mod upkeep;

mod owner;

#[cfg(test)]
mod tests;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::file::blocks::decoder;

pub use self::applying::applied::Applied;
pub use self::applying::entry::{Entry, EntryOutcome, Payload};
pub(crate) use self::file::backend::GATHERED_BYTES_MAX;
pub(crate) use self::file::database::RECEIVING_CACHE_BYTES;
pub use self::file::open_error::MachineOpenError;
pub use self::file::opening::OpenMode;
pub use self::file::reserve::Reserve;
pub use self::owner::Machine;
pub use self::reading::read::{
    Answered, Holds, Pinned, ReadBudget, ReadClass, ReadRefused, Reader, Scan, Step, View,
};
pub(crate) use self::rows::counters::{ROOM_PERCENT, is_used, version_bytes};
pub use self::rows::sessions::SessionCounts;
pub use self::settings::MachineSettings;
#[doc(hidden)]
pub use self::settings::Tuning;
pub use self::snapshot::{
    PinnedState, ReceivedSnapshot, SnapshotError, SnapshotMeta, SnapshotSink, SnapshotSource,
};
pub use self::upkeep::checkpoint::{Checkpoint, CheckpointEnd};
pub(crate) use self::upkeep::examine::{Examined, examine, unfinished};
pub use self::upkeep::scrub::Scrubber;
pub use self::upkeep::shrink::{NotShrunk, Shrunk};
