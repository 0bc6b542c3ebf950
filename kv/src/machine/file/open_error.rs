//! Why a state machine did not open.

use std::io;
use std::path::{Path, PathBuf};

use crate::fault::{self, Fault};

/// Why a state machine did not open. Nothing was changed, unless the disk failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineOpenError {
    /// There is no state file.
    #[error(
        "the state file {path} is missing or empty. This node's state is lost: do not start it under the same \
         id with an empty state; remove it from the cluster and add an empty directory under a new node id"
    )]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// There is a state file where a new one was to be made.
    #[error(
        "the state file {path} exists and entries were applied to it. It belongs to a node that ran before: \
         open it as what it is, or choose another directory"
    )]
    Exists {
        /// Where it is.
        path: PathBuf,
    },
    /// The file is not a whole state file.
    #[error(
        "the state file {path} is corrupt: {detail}. It was left as it is: check the disk, remove this node \
         from the cluster and add an empty directory under a new node id; for a node alone, quorate check tells what is whole"
    )]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The file was written by another release.
    #[error(
        "the state file {path} has format version {found}, this release knows {known}: run the release that wrote it"
    )]
    UnknownFormat {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u16,
        /// The version that this release knows.
        known: u16,
    },
    /// The disk failed.
    #[error("{doing} {path}: {error}")]
    Disk {
        /// What was being done.
        doing: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
    /// The file could not be read or written.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl MachineOpenError {
    /// Whether the same may succeed later with nothing changed: only what the disk refused.
    pub fn is_retryable(&self) -> bool {
        match self {
            MachineOpenError::Disk { error, .. } => fault::may_pass(error),
            MachineOpenError::Fault(fault) => fault.is_retryable(),
            MachineOpenError::Missing { .. }
            | MachineOpenError::Exists { .. }
            | MachineOpenError::Corrupt { .. }
            | MachineOpenError::UnknownFormat { .. } => false,
        }
    }
}

impl From<MachineOpenError> for Fault {
    fn from(error: MachineOpenError) -> Fault {
        match error {
            MachineOpenError::Fault(fault) => fault,
            MachineOpenError::Disk { doing, path, error } => Fault::disk(doing, path.display(), error),
            MachineOpenError::Corrupt { path, detail } => Fault::Corrupt {
                path: path.display().to_string(),
                offset: 0,
                detail,
            },
            MachineOpenError::Missing { .. }
            | MachineOpenError::Exists { .. }
            | MachineOpenError::UnknownFormat { .. } => Fault::State {
                doing: "opening",
                detail: error.to_string(),
            },
        }
    }
}

/// What an error of the disk becomes that was met while a path was opened.
pub(in crate::machine) fn failed<'p>(
    doing: &'static str,
    path: &'p Path,
) -> impl FnOnce(io::Error) -> MachineOpenError + use<'p> {
    move |error| MachineOpenError::Disk {
        doing,
        path: path.to_owned(),
        error,
    }
}

pub(in crate::machine) fn corrupt(path: &Path, detail: String) -> MachineOpenError {
    MachineOpenError::Corrupt {
        path: path.to_owned(),
        detail,
    }
}
