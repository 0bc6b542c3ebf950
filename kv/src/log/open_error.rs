//! Why a log was not opened.

use std::io;
use std::path::{Path, PathBuf};

use crate::fault::Fault;
use crate::model::LogPosition;

/// Why a log was not opened. Nothing was changed, except that a log being created may be there half.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogOpenError {
    /// There should be a log, and there is none.
    #[error(
        "no log in {}: if it was lost, this node must not vote again under its id; remove the node from the \
         cluster, empty its data directory and add it as a new one", dir.display()
    )]
    Missing {
        /// Where it should be.
        dir: PathBuf,
    },
    /// There should be no log, and there is one that holds something.
    #[error("the log in {} is not empty (last entry {last:?}): it is another node's, or this one's", dir.display())]
    NotEmpty {
        /// Where it is.
        dir: PathBuf,
        /// Its last position; none when it holds only a vote.
        last: Option<LogPosition>,
    },
    /// A file holds what was never written to it, or lacks what was durable.
    #[error(
        "the log is corrupt: {} at byte {offset}: {detail}. Do not delete or cut the file: it held durable \
         entries and votes. Check the disk, remove this node from the cluster and add an empty directory under a new \
         node id; for a node alone, quorate check tells what is whole", file.display()
    )]
    Corrupt {
        /// Which file.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What was expected and what was found.
        detail: String,
    },
    /// A file is of another release.
    #[error("{} has format version {found}, this release reads version {known}", file.display())]
    UnknownFormat {
        /// Which file.
        file: PathBuf,
        /// The version found.
        found: u32,
        /// The version that is read.
        known: u32,
    },
    /// A setting is out of bounds.
    #[error("setting {setting} is {value}, and must be from {min} to {max}")]
    InvalidSetting {
        /// Which.
        setting: &'static str,
        /// Its value.
        value: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// The disk refused an operation.
    #[error("{doing} {}: {error}{}", path.display(), crate::fault::advice(error))]
    Disk {
        /// What was being done.
        doing: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        error: io::Error,
    },
    /// The disk refused an operation of the writer.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl From<LogOpenError> for Fault {
    fn from(error: LogOpenError) -> Fault {
        match error {
            LogOpenError::Fault(fault) => fault,
            LogOpenError::Disk { doing, path, error } => Fault::disk(doing, path.display(), error),
            LogOpenError::Corrupt { file, offset, detail } => Fault::Corrupt {
                path: file.display().to_string(),
                offset,
                detail,
            },
            other @ (LogOpenError::Missing { .. }
            | LogOpenError::NotEmpty { .. }
            | LogOpenError::UnknownFormat { .. }
            | LogOpenError::InvalidSetting { .. }) => Fault::State {
                doing: "opening the log",
                detail: other.to_string(),
            },
        }
    }
}

impl LogOpenError {
    /// Whether the same may succeed later with nothing changed: only what the disk refused.
    pub fn is_retryable(&self) -> bool {
        match self {
            LogOpenError::Disk { error, .. } => crate::fault::may_pass(error),
            LogOpenError::Fault(fault) => fault.is_retryable(),
            LogOpenError::Missing { .. }
            | LogOpenError::NotEmpty { .. }
            | LogOpenError::Corrupt { .. }
            | LogOpenError::UnknownFormat { .. }
            | LogOpenError::InvalidSetting { .. } => false,
        }
    }
}

pub(super) fn corrupt(file: &Path, offset: u64, detail: impl Into<String>) -> LogOpenError {
    LogOpenError::Corrupt {
        file: file.to_owned(),
        offset,
        detail: detail.into(),
    }
}

pub(super) fn disk_error<'a>(
    doing: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> LogOpenError + use<'a> {
    move |error| LogOpenError::Disk {
        doing,
        path: path.to_owned(),
        error,
    }
}
