//! How the database's errors become faults, with the file's name in each.

use std::path::Path;
use std::sync::Arc;

use super::wire::Malformed;
use crate::fault::Fault;

/// The state file's name, for messages. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct StateFile(Arc<str>);

impl StateFile {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.display().to_string().into())
    }

    pub(super) fn name(&self) -> &str {
        &self.0
    }

    /// The file holds what was never written to it. The place is a row's and not a byte's, so the offset is 0.
    pub(super) fn corrupt(&self, detail: impl Into<String>) -> Fault {
        Fault::Corrupt {
            path: self.0.to_string(),
            offset: 0,
            detail: detail.into(),
        }
    }

    pub(super) fn malformed(&self, error: &Malformed) -> Fault {
        self.corrupt(error.0)
    }

    fn fault(&self, doing: &'static str, error: redb::Error) -> Fault {
        match error {
            redb::Error::Io(error) => Fault::disk(doing, self.name(), error),
            redb::Error::Corrupted(detail) => self.corrupt(detail),
            other => Fault::State {
                doing,
                detail: format!("{}: {other}", self.0),
            },
        }
    }
}

/// For `map_err`: reading and writing rows.
pub(super) fn storage<E: Into<redb::Error>>(file: &StateFile) -> impl Fn(E) -> Fault {
    move |error| file.fault("reading or writing rows of", error.into())
}

/// For `map_err`: a step with a name of its own.
pub(super) fn step<E: Into<redb::Error>>(file: &StateFile, doing: &'static str) -> impl Fn(E) -> Fault {
    move |error| file.fault(doing, error.into())
}
