//! What is wrong with a node's files: said for people and programs, by whoever looks at files that no node runs on.
//!
//! Always: a damage names the file, and the place in it as well as that is known; what is kept of them is bounded.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// So many are kept; of further ones only the number.
const DAMAGES_MAX: usize = 1_000;

/// Which part of a node's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Part {
    /// The identity file.
    Identity,
    /// The log, with the vote.
    Log,
    /// The state file.
    State,
    /// What the parts say of each other.
    Together,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Part::Identity => "identity",
            Part::Log => "log",
            Part::State => "state",
            Part::Together => "together",
        })
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Damage {
    /// Of which part.
    pub part: Part,
    /// In which file, or directory.
    pub file: PathBuf,
    /// At which byte of the file, where that is known.
    pub offset: Option<u64>,
    /// In the row of which key, where it is one: bytes that are no printable ASCII are escaped.
    pub key: Option<String>,
    /// What was expected and what was found.
    pub detail: String,
}

impl Damage {
    /// Of a file, at no place that is known.
    pub(crate) fn new(part: Part, file: &Path, detail: impl Into<String>) -> Self {
        Self {
            part,
            file: file.to_owned(),
            offset: None,
            key: None,
            detail: detail.into(),
        }
    }

    /// The same at a byte of the file.
    pub(crate) fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// The same in the row of a key.
    pub(crate) fn of_key(mut self, key: &[u8]) -> Self {
        self.key = Some(key.escape_ascii().to_string());
        self
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(offset) = self.offset {
            write!(f, " at byte {offset}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ", key {key}")?;
        }
        write!(f, ": {}", self.detail)
    }
}

/// Those that were found.
#[derive(Debug, Default)]
pub(crate) struct Damages {
    found: Vec<Damage>,
    further: u64,
}

impl Damages {
    /// Adds one, unless the same place is named already.
    pub(crate) fn add(&mut self, damage: Damage) {
        let is_there = |other: &Damage| {
            damage.offset.is_some() && (&other.file, other.offset) == (&damage.file, damage.offset)
        };
        if self.found.iter().any(is_there) {
            return;
        }
        if self.found.len() < DAMAGES_MAX {
            self.found.push(damage);
        } else {
            self.further += 1;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// What is kept, and how many others there were.
    pub(crate) fn into_parts(self) -> (Vec<Damage>, u64) {
        (self.found, self.further)
    }
}
