//! What a command of `quorate kv` asks for, checked before any node is looked for.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use quorate_kv::client::Expected;
use quorate_kv::model::{Consistency, Key, KeyRange, Order, RangeRead, Revision};

use super::form::{self, Written};
use crate::cli::{Freshness, KvCommand};
use crate::failure::Failure;
use crate::text::Forms;

/// How many keys a deletion takes where nothing is said.
const DELETE_MAX: u32 = 10_000;

/// A request that has been checked.
pub(super) enum Request {
    Get {
        key: Key,
        raw: bool,
        consistency: Consistency,
    },
    Exists {
        key: Key,
        consistency: Consistency,
    },
    Count {
        range: KeyRange,
        consistency: Consistency,
    },
    Range {
        read: RangeRead,
        consistency: Consistency,
    },
    Put {
        key: Key,
        value: Bytes,
        /// Whether what was there before is shown.
        prev: bool,
    },
    Swap {
        key: Key,
        expected: Expected,
        value: Bytes,
    },
    Add {
        key: Key,
        delta: i64,
    },
    Delete {
        key: Key,
        /// Whether what was there before is shown.
        prev: bool,
    },
    DeleteRange {
        range: KeyRange,
        at_once: AtOnce,
        /// What is said where there is none of them.
        none: String,
    },
    Compact(Compact),
    Txn(Written),
    Export(Export),
    Import(Import),
}

/// How many keys a deletion takes in one transaction.
pub(super) enum AtOnce {
    /// All, and it is refused where there are more than these.
    All { limit: u32 },
    /// As many as the client chooses, and then the next.
    Steps,
}

/// Which history is given up.
pub(super) enum Compact {
    /// Before this revision.
    Before(Revision),
    /// All but so many of the newest revisions.
    AllBut(u64),
}

/// Which keys are exported, and where to.
pub(super) struct Export {
    pub range: KeyRange,
    /// That of now where none is given.
    pub revision: Option<Revision>,
    pub to: Place,
}

/// Which lines are imported, and how.
pub(super) struct Import {
    pub from: Place,
    pub if_absent: bool,
    pub dry_run: bool,
    pub partial: bool,
}

/// Where lines are read or written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Standard input, or standard output.
    Stream,
    File(PathBuf),
}

impl From<PathBuf> for Place {
    fn from(file: PathBuf) -> Self {
        match file.as_os_str() == "-" {
            true => Place::Stream,
            false => Place::File(file),
        }
    }
}

impl Request {
    pub(super) fn read(command: KvCommand, forms: Forms) -> Result<Self, Failure> {
        let words = Words { forms };
        Ok(match command {
            KvCommand::Get { key, raw, freshness } => Request::Get {
                key: words.key(&key)?,
                raw,
                consistency: consistency(&freshness),
            },
            KvCommand::Exists { key, freshness } => Request::Exists {
                key: words.key(&key)?,
                consistency: consistency(&freshness),
            },
            KvCommand::Count {
                start,
                end,
                prefix,
                freshness,
            } => Request::Count {
                range: words.range(prefix, start, end)?,
                consistency: consistency(&freshness),
            },
            KvCommand::Range {
                start,
                end,
                prefix,
                count: true,
                freshness,
                ..
            } => Request::Count {
                range: words.range(prefix, start, end)?,
                consistency: consistency(&freshness),
            },
            KvCommand::Range {
                start,
                end,
                prefix,
                limit,
                descending,
                keys_only,
                count: false,
                freshness,
            } => {
                let mut read = RangeRead::new(words.range(prefix, start, end)?).limit(limit);
                read.keys_only = keys_only;
                if descending {
                    read.order = Order::Descending;
                }
                Request::Range {
                    read,
                    consistency: consistency(&freshness),
                }
            }
            KvCommand::Put {
                key,
                value,
                if_absent,
                if_revision,
                prev,
            } => {
                let expected = match (if_absent, if_revision) {
                    (true, _) => Some(Expected::Missing),
                    (false, Some(revision)) => Some(Expected::Revision(Revision::new(revision))),
                    (false, None) => None,
                };
                let key = words.key(&key)?;
                let value = words.value_or_input(&value)?;
                match expected {
                    Some(expected) => Request::Swap { key, expected, value },
                    None => Request::Put { key, value, prev },
                }
            }
            KvCommand::Cas { key, old, new } => Request::Swap {
                key: words.key(&key)?,
                expected: Expected::from(words.value(&old)?),
                value: words.value_or_input(&new)?,
            },
            KvCommand::Add { key, delta } => Request::Add {
                key: words.key(&key)?,
                delta,
            },
            KvCommand::Del {
                key,
                prefix,
                until,
                all,
                limit,
                in_steps,
                prev,
            } => {
                let at_once = match in_steps {
                    true => AtOnce::Steps,
                    false => AtOnce::All {
                        limit: limit.unwrap_or(DELETE_MAX),
                    },
                };
                let key = key.unwrap_or_default();
                let (range, none) = match (prefix, until, all) {
                    (true, ..) => words.not_every_prefix(&key)?,
                    (false, Some(end), _) => words.between(&key, &end)?,
                    (false, None, true) => (KeyRange::all(), "there is no key".to_owned()),
                    (false, None, false) if limit.is_some() || in_steps => {
                        return Err(Failure::refused(
                            "--limit and --in-steps are for --prefix, --until and --all; one key needs neither",
                        ));
                    }
                    (false, None, false) => {
                        let key = words.key(&key)?;
                        return Ok(Request::Delete { key, prev });
                    }
                };
                Request::DeleteRange { range, at_once, none }
            }
            KvCommand::Compact { revision, keep } => Request::Compact(match (revision, keep) {
                (Some(revision), _) => Compact::Before(Revision::new(revision)),
                (None, Some(keep)) => Compact::AllBut(keep),
                (None, None) => {
                    return Err(Failure::refused("it is not said which history is given up")
                        .hint("name the oldest revision to keep, or how many of the newest with --keep"));
                }
            }),
            KvCommand::Txn { file } => {
                let text = text_of(&file)?;
                let written = form::parse(&text, forms);
                Request::Txn(written.map_err(|error| Failure::refused(error.to_string()))?)
            }
            KvCommand::Export {
                file,
                prefix,
                revision,
            } => Request::Export(Export {
                range: words.range(prefix, None, None)?,
                revision: revision.map(Revision::new),
                to: file.into(),
            }),
            KvCommand::Import {
                file,
                if_absent,
                dry_run,
                partial,
            } => Request::Import(Import {
                from: file.into(),
                if_absent,
                dry_run,
                partial,
            }),
        })
    }
}

/// The words of a command line, in the form that was asked for.
struct Words {
    forms: Forms,
}

impl Words {
    fn bytes(&self, word: &str) -> Result<Bytes, Failure> {
        let read = self.forms.keys.read(word);
        read.map_err(|error| Failure::refused(error.to_string()))
    }

    fn key(&self, word: &str) -> Result<Key, Failure> {
        Key::new(self.bytes(word)?).map_err(|error| Failure::refused(error.to_string()))
    }

    fn value(&self, word: &str) -> Result<Bytes, Failure> {
        let read = self.forms.values.read(word);
        read.map_err(|error| Failure::refused(error.to_string()))
    }

    /// The bytes of a pipe are taken as they are, whatever form the arguments have.
    fn value_or_input(&self, word: &str) -> Result<Bytes, Failure> {
        match word {
            "-" => stdin_bytes(),
            word => self.value(word),
        }
    }

    fn range(
        &self,
        prefix: Option<String>,
        start: Option<String>,
        end: Option<String>,
    ) -> Result<KeyRange, Failure> {
        Ok(match (prefix, start, end) {
            (Some(prefix), ..) => KeyRange::prefix(self.bytes(&prefix)?),
            (None, Some(start), Some(end)) => self.between(&start, &end)?.0,
            (None, Some(start), None) => KeyRange::starting_at(self.bytes(&start)?),
            (None, None, _) => KeyRange::all(),
        })
    }

    /// A range with both its ends, and what is said where it is empty.
    fn between(&self, start: &str, end: &str) -> Result<(KeyRange, String), Failure> {
        let (from, to) = (self.bytes(start)?, self.bytes(end)?);
        if from >= to {
            return Err(Failure::refused(format!(
                "no key is at {start:?} or after and before {end:?}: the range ends before it begins"
            )));
        }
        let (first, behind) = (self.forms.key(&from), self.forms.key(&to));
        let none = format!("no key is at {first} or after and before {behind}");
        Ok((KeyRange::new(from, to), none))
    }

    /// The keys with a prefix, and what is said where there is none. Not every key: that is said in full.
    fn not_every_prefix(&self, prefix: &str) -> Result<(KeyRange, String), Failure> {
        let prefix = self.bytes(prefix)?;
        if prefix.is_empty() {
            return Err(Failure::refused("every key begins with \"\"")
                .hint("to delete all keys, say quorate kv del --all"));
        }
        let none = format!("no key begins with {}", self.forms.key(&prefix));
        Ok((KeyRange::prefix(prefix), none))
    }
}

/// What a read of this freshness asks for.
pub(crate) fn consistency(freshness: &Freshness) -> Consistency {
    match freshness {
        Freshness {
            revision: Some(revision),
            ..
        } => Consistency::At(Revision::new(*revision)),
        Freshness {
            stale: true,
            max_lag,
            min_revision,
            ..
        } => Consistency::Stale {
            min_revision: min_revision.map(Revision::new),
            max_lag: *max_lag,
        },
        Freshness { .. } => Consistency::Linearizable,
    }
}

fn stdin_bytes() -> Result<Bytes, Failure> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::failed(format!("standard input cannot be read: {error}")))?;
    Ok(bytes.into())
}

fn text_of(file: &Path) -> Result<String, Failure> {
    let (name, bytes) = match file.as_os_str() == "-" {
        true => ("standard input".to_owned(), stdin_bytes()?.to_vec()),
        false => {
            let name = file.display().to_string();
            let bytes = std::fs::read(file).map_err(|error| Failure::refused(format!("{name}: {error}")))?;
            (name, bytes)
        }
    };
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::refused(format!(
            "{name} is not UTF-8 from byte {at} on; give other bytes in hexadecimal, with --hex"
        ))
    })
}
