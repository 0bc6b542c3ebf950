//! The table `versions`: what each revision wrote, and why; in the order of revisions, so that it only grows
//! at its end.
//!
//! Key: the revision (8 bytes, big-endian), then the key's bytes. Value: flags (bits 0 and 1: the kind of the
//! change; bit 2: a lease follows; bit 3: there are older versions); unless the key was deleted,
//! create_revision, version and, where flagged, the lease; where flagged, the revisions of the version before
//! and of the first ancestor (see `head`): all varints; then the value to the end, which a deletion has not.
//! A row lives until compaction: all of the past, and all that a watcher replays, is here.

use bytes::Bytes;

use super::head::{Link, Meta};
use super::wire::{Malformed, Row, put_varint};
use crate::model::{Record, Revision};

const KIND: u8 = 3;
const HAS_LEASE: u8 = 4;
const HAS_LINK: u8 = 8;

/// What became of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::machine) enum ChangeKind {
    /// It did not exist before (or was deleted and written anew by the same transaction).
    Created,
    /// It was written.
    Written,
    /// A transaction deleted it.
    Deleted,
}

impl ChangeKind {
    pub(in crate::machine) const fn number(self) -> u8 {
        match self {
            ChangeKind::Created => 1,
            ChangeKind::Written => 2,
            ChangeKind::Deleted => 3,
        }
    }

    fn of_number(number: u8) -> Result<Self, Malformed> {
        [ChangeKind::Created, ChangeKind::Written, ChangeKind::Deleted]
            .into_iter()
            .find(|kind| kind.number() == number)
            .ok_or(Malformed("a change is of an unknown kind"))
    }
}

/// A version, inside its row or about to become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::machine) struct Version<'a> {
    pub(in crate::machine) kind: ChangeKind,
    /// `None` for a deletion.
    pub(in crate::machine) meta: Option<Meta>,
    /// `None` for the first of a chain.
    pub(in crate::machine) link: Option<Link>,
    pub(in crate::machine) value: &'a [u8],
}

/// A record as it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::machine) struct RecordRef<'a> {
    pub(in crate::machine) meta: Meta,
    pub(in crate::machine) mod_revision: Revision,
    /// Empty where the value was not asked for.
    pub(in crate::machine) value: &'a [u8],
}

impl RecordRef<'_> {
    pub(in crate::machine) fn to_record(self, with_value: bool) -> Record {
        Record {
            value: if with_value {
                Bytes::copy_from_slice(self.value)
            } else {
                Bytes::new()
            },
            create_revision: self.meta.create_revision,
            mod_revision: self.mod_revision,
            version: self.meta.version,
            lease: self.meta.lease,
        }
    }
}

impl<'a> Version<'a> {
    /// Appends the row.
    pub(in crate::machine) fn encode_into(&self, out: &mut Vec<u8>) {
        self.put_head(out);
        out.extend_from_slice(self.value);
    }

    fn put_head(&self, out: &mut Vec<u8>) {
        let mut flags = self.kind.number();
        if self.meta.is_some_and(|meta| meta.lease.is_some()) {
            flags |= HAS_LEASE;
        }
        if self.link.is_some() {
            flags |= HAS_LINK;
        }
        out.push(flags);
        if let Some(meta) = self.meta {
            meta.put(out);
        }
        if let Some(link) = self.link {
            put_varint(out, link.previous.number());
            put_varint(out, link.ancestor.number());
        }
    }

    pub(in crate::machine) fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut row = Row::new(bytes);
        let flags = row.u8()?;
        if flags & !(KIND | HAS_LEASE | HAS_LINK) != 0 {
            return Err(Malformed("a version has unknown flags"));
        }
        let kind = ChangeKind::of_number(flags & KIND)?;
        let meta = if kind == ChangeKind::Deleted {
            if flags & HAS_LEASE != 0 {
                return Err(Malformed("a deletion has a lease"));
            }
            None
        } else {
            Some(Meta::read(&mut row, flags & HAS_LEASE != 0)?)
        };
        let link = if flags & HAS_LINK == 0 {
            None
        } else {
            let (previous, ancestor) = (Revision::new(row.varint()?), Revision::new(row.varint()?));
            if ancestor > previous {
                return Err(Malformed("an ancestor is newer than the version before"));
            }
            Some(Link { previous, ancestor })
        };
        let value = row.rest();
        if kind == ChangeKind::Deleted && !value.is_empty() {
            return Err(Malformed("a deletion has a value"));
        }
        Ok(Self {
            kind,
            meta,
            link,
            value,
        })
    }
}

/// The row key of the version of `key` that `revision` wrote.
pub(in crate::machine) fn row_key(revision: Revision, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + key.len());
    put_row_key(&mut out, revision, key);
    out
}

/// The same, into a buffer to reuse.
pub(in crate::machine) fn put_row_key(out: &mut Vec<u8>, revision: Revision, key: &[u8]) {
    out.clear();
    out.extend_from_slice(&revision.number().to_be_bytes());
    out.extend_from_slice(key);
}

/// Reads a row key back.
pub(in crate::machine) fn read_key(row: &[u8]) -> Result<(Revision, &[u8]), Malformed> {
    let (revision, key) = row
        .split_first_chunk::<8>()
        .ok_or(Malformed("the key of a version is shorter than its revision"))?;
    Ok((Revision::new(u64::from_be_bytes(*revision)), key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::LeaseId;

    fn encode(version: &Version<'_>) -> Vec<u8> {
        let mut row = Vec::new();
        version.encode_into(&mut row);
        row
    }

    proptest! {
        #[test]
        fn a_version_reads_back_and_garbage_is_refused_or_has_one_form(
            create: u64, version: u64, lease: Option<u64>, link: Option<(u64, u64)>, value: Vec<u8>,
            kind in 0usize..3, garbage: Vec<u8>,
        ) {
            let kind = [ChangeKind::Created, ChangeKind::Written, ChangeKind::Deleted][kind];
            let deleted = kind == ChangeKind::Deleted;
            let meta = Meta {
                create_revision: Revision::new(create),
                version,
                lease: lease.map(LeaseId::new),
            };
            let link = link.map(|(a, b)| Link {
                previous: Revision::new(a.max(b)),
                ancestor: Revision::new(a.min(b)),
            });
            let value = if deleted { &[][..] } else { &value[..] };
            let version = Version { kind, meta: (!deleted).then_some(meta), link, value };
            let row = encode(&version);
            prop_assert_eq!(Version::decode(&row), Ok(version));
            if let Ok(version) = Version::decode(&garbage) {
                prop_assert_eq!(encode(&version), garbage);
            }
        }

        #[test]
        fn versions_sort_by_revision_then_by_key(a: Vec<u8>, b: Vec<u8>, x: u64, y: u64) {
            let (ra, rb) = (row_key(Revision::new(x), &a), row_key(Revision::new(y), &b));
            prop_assert_eq!(ra.cmp(&rb), (x, &a).cmp(&(y, &b)));
            prop_assert_eq!(read_key(&ra), Ok((Revision::new(x), &a[..])));
        }
    }
}
