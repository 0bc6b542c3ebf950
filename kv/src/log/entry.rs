//! What is appended, and who is told.

use bytes::Bytes;

use crate::fault::Fault;
use crate::model::LogPosition;

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Its index, and the term and leader that wrote it.
    pub position: LogPosition,
    /// What it carries: opaque here, at most 1 GiB.
    pub payload: Bytes,
}

/// Told once, in the order of the calls: `Ok` after what it was given for is durable.
///
/// Runs on the log's thread: it should hand the news on and return.
pub type Completion = Box<dyn FnOnce(Result<(), Fault>) + Send>;
