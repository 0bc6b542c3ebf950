//! How the database's errors become faults, with the file's name in each.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::wire::Malformed;
use crate::fault::Fault;

/// The state file's name, for messages, and what was found to be rotten in it. Cheap to clone: clones are the same file's.
#[derive(Clone, Debug)]
pub(in crate::machine) struct StateFile {
    name: Arc<str>,
    /// The first that was found. After a failed read the database only says that something failed before.
    rot: Arc<OnceLock<Fault>>,
}

impl StateFile {
    pub(in crate::machine) fn new(path: &Path) -> Self {
        Self {
            name: path.display().to_string().into(),
            rot: Arc::default(),
        }
    }

    pub(in crate::machine) fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of the file are others than were written to it.
    pub(in crate::machine) fn rotten(&self, offset: u64, detail: String) -> Fault {
        let fault = Fault::Corrupt {
            path: self.name.to_string(),
            offset,
            detail,
        };
        self.rot.get_or_init(|| fault.clone());
        fault
    }

    /// What was first found to be rotten in it.
    pub(in crate::machine) fn rot(&self) -> Option<Fault> {
        self.rot.get().cloned()
    }

    /// The file holds what was never written to it. The place is a row's and not a byte's, so the offset is 0.
    pub(in crate::machine) fn corrupt(&self, detail: impl Into<String>) -> Fault {
        Fault::Corrupt {
            path: self.name.to_string(),
            offset: 0,
            detail: detail.into(),
        }
    }

    pub(in crate::machine) fn malformed(&self, error: &Malformed) -> Fault {
        self.corrupt(error.0)
    }

    fn fault(&self, doing: &'static str, error: redb::Error) -> Fault {
        match (error, self.rot()) {
            (_, Some(rot)) => rot,
            (redb::Error::Io(error), None) => Fault::disk(doing, self.name(), error),
            (redb::Error::Corrupted(detail), None) => self.corrupt(detail),
            (other, None) => Fault::State {
                doing,
                detail: format!("{}: {other}", self.name),
            },
        }
    }
}

/// For `map_err`: reading and writing rows.
pub(in crate::machine) fn storage<E: Into<redb::Error>>(file: &StateFile) -> impl Fn(E) -> Fault {
    move |error| file.fault("reading or writing rows of", error.into())
}

/// For `map_err`: a step with a name of its own.
pub(in crate::machine) fn step<E: Into<redb::Error>>(
    file: &StateFile,
    doing: &'static str,
) -> impl Fn(E) -> Fault {
    move |error| file.fault(doing, error.into())
}
