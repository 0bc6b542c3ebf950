//! Raft's log: segment files that are only appended to, one writer, one sync for all that waits.
//!
//! Called by `raft`, whose entries are opaque bytes here; stands on [`crate::env`]'s disk and owner threads.
//! Knows nothing of Raft beyond positions, and nothing of the state machine. `docs/formats/log.md` specifies
//! the bytes and what opening makes of every kind of damage.
//!
//! Always:
//! - What was told durable is there after a crash; entries, votes, truncations and purges become durable in
//!   the order in which they were sent, so that what is found is a prefix of what was sent.
//! - Bytes that a crash left unfinished are cut off; bytes that rotted are never passed over: the log refuses
//!   to open, and names file and offset.
//! - After a failed write or sync no file is written again, and every call answers the fault.
//! - Entries are consecutive, in memory and on disk.

mod crash_points;
mod format;

mod entry;
mod open_error;
mod settings;
mod statistics;
mod timings;

mod segment;
mod view;

mod appender;
mod recovery;

mod queued;
mod shared;

mod reader;
mod scrub;
mod writer;

mod handle;

#[cfg(test)]
pub(crate) mod crash_disk;
#[cfg(test)]
mod tests;

#[doc(hidden)]
pub use self::crash_points::CRASH_POINTS;
pub(crate) use self::crash_points::CrashPoint;
pub use self::entry::{Completion, LogEntry};
pub use self::handle::Log;
pub use self::open_error::LogOpenError;
pub(crate) use self::recovery::examine::{Examined, examine};
pub use self::scrub::LogScrubber;
pub use self::settings::{LogSettings, OpenMode};
pub use self::statistics::LogStatistics;
