//! The tables `current` and `deleted`: the head of each key's chain of versions.
//!
//! Each revision that writes or deletes a key adds a version to the key's chain; the versions themselves stand
//! in the table `versions`. The head says what the newest one is, so that existence, revisions and version are
//! known without it, and where the older ones are.
//!
//! `current` holds the heads of the keys that exist, `deleted` those of the keys that do not and once did.
//! Key: the key's bytes. Value: flags (bit 0: a lease follows, bit 1: the key exists); where it exists
//! create_revision, version and, where flagged, the lease; the revision of the newest version; where the key exists, its
//! value's digest; then its depth, and the ancestors: all varints but the digest's hash.
//!
//! What stands before the depth of a key that exists is its record, with the value's digest for the value: that is part of the
//! replicated state, and hashed. All else, and all of `deleted`, only leads to history, which is each node's own.
//!
//! **Depth and ancestors.** A chain's first version has depth 0, each further one a depth greater by one. A
//! version's ancestors are the versions at its depth with the lowest set bit cleared, then that cleared too,
//! and so on to 0: as many as the depth has bits set. Each version in the table points to its predecessor
//! and to its first ancestor, as in a Fenwick tree, so that a walk to any older version takes at most l (l + 1) / 2
//! steps, l being the bits of the depth: a read at an old revision takes some 200 look-ups at worst for a key with a
//! million versions, and writing costs one row in place and one appended.

use std::sync::Arc;

use super::wire::{Malformed, Row, put_u64, put_varint};
use crate::model::{LeaseId, Revision};

const HAS_LEASE: u8 = 1;
const EXISTS: u8 = 2;

/// What is known of a record without its value and its modification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::machine) struct Meta {
    pub(in crate::machine) create_revision: Revision,
    pub(in crate::machine) version: u64,
    pub(in crate::machine) lease: Option<LeaseId>,
}

impl Meta {
    /// Appends create_revision, version and, where there is one, the lease: whether it follows is in the flags of
    /// the row.
    pub(in crate::machine) fn put(self, out: &mut Vec<u8>) {
        put_varint(out, self.create_revision.number());
        put_varint(out, self.version);
        if let Some(lease) = self.lease {
            put_varint(out, lease.number());
        }
    }

    pub(in crate::machine) fn read(row: &mut Row<'_>, has_lease: bool) -> Result<Self, Malformed> {
        Ok(Self {
            create_revision: Revision::new(row.varint()?),
            version: row.varint()?,
            lease: match has_lease {
                true => Some(LeaseId::new(row.varint()?)),
                false => None,
            },
        })
    }
}

/// What stands for a value where the value does not: its size, and XXH3-64 of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::machine) struct ValueDigest {
    size: u64,
    hash: u64,
}

impl ValueDigest {
    pub(in crate::machine) fn of(value: &[u8]) -> Self {
        Self {
            size: value.len() as u64,
            hash: xxhash_rust::xxh3::xxh3_64(value),
        }
    }

    /// How many bytes the value has.
    pub(in crate::machine) fn size(self) -> u64 {
        self.size
    }

    /// Appends the size, a varint, and the hash, 8 bytes.
    pub(in crate::machine) fn put(self, out: &mut Vec<u8>) {
        put_varint(out, self.size);
        put_u64(out, self.hash);
    }

    fn read(row: &mut Row<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            size: row.varint()?,
            hash: row.u64()?,
        })
    }
}

/// The newest version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::machine) struct Head {
    /// `None`: it deleted the key.
    pub(in crate::machine) record: Option<(Meta, ValueDigest)>,
    /// The revision that wrote or deleted the key.
    pub(in crate::machine) revision: Revision,
    depth: u64,
    /// The revisions of the ancestors, the nearest first.
    ancestors: Arc<[Revision]>,
}

/// How a version points to older ones of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::machine) struct Link {
    /// The version before.
    pub(in crate::machine) previous: Revision,
    /// The first ancestor: the version before, or an older one.
    pub(in crate::machine) ancestor: Revision,
}

impl Head {
    /// The head that a version written (or, without `record`, deleted) at `revision` makes of what it follows.
    pub(in crate::machine) fn after(
        before: Option<&Head>,
        revision: Revision,
        record: Option<(Meta, ValueDigest)>,
    ) -> Head {
        let Some(before) = before else {
            return Head {
                record,
                revision,
                depth: 0,
                ancestors: Arc::default(),
            };
        };
        let depth = before.depth + 1;
        // The first ancestor's depth; it and those behind it are `before` or ancestors of `before`.
        let first = depth & before.depth;
        let mut at = before.depth;
        let mut newer = 0;
        while at > first {
            newer += 1;
            at &= at - 1;
        }
        // By number, so that the length is known and one allocation does.
        let ancestors = (newer..=before.ancestors.len()).map(|at| match at.checked_sub(1) {
            None => before.revision,
            Some(at) => before.ancestors[at],
        });
        let ancestors = ancestors.collect();
        Head {
            record,
            revision,
            depth,
            ancestors,
        }
    }

    /// The pointers of the version that this head stands for, which followed the version of `previous`.
    pub(in crate::machine) fn link(&self, previous: Option<Revision>) -> Option<Link> {
        Some(Link {
            previous: previous?,
            ancestor: *self.ancestors.first()?,
        })
    }

    /// The oldest version among this and its ancestors that is newer than `at`, if its predecessor may not be:
    /// from there a walk along links finds the newest version at or before `at`. `None` when no version is so
    /// old, or this one is.
    pub(in crate::machine) fn walk_from(&self, at: Revision) -> Option<Revision> {
        if self.revision <= at {
            return None;
        }
        let mut from = self.revision;
        for ancestor in self.ancestors.iter() {
            if *ancestor <= at {
                return Some(from);
            }
            from = *ancestor;
        }
        None
    }

    /// What is known of the record besides the value; `None` where the key is deleted.
    pub(in crate::machine) fn meta(&self) -> Option<Meta> {
        self.record.map(|(meta, _)| meta)
    }

    pub(in crate::machine) fn encode_into(&self, out: &mut Vec<u8>) {
        self.put_record(out);
        put_varint(out, self.depth);
        for ancestor in self.ancestors.iter() {
            put_varint(out, ancestor.number());
        }
    }

    /// Appends the record's part of the row.
    pub(in crate::machine) fn put_record(&self, out: &mut Vec<u8>) {
        match self.record {
            None => {
                out.push(0);
                put_varint(out, self.revision.number());
            }
            Some((meta, digest)) => {
                out.push(EXISTS | if meta.lease.is_some() { HAS_LEASE } else { 0 });
                meta.put(out);
                put_varint(out, self.revision.number());
                digest.put(out);
            }
        }
    }

    #[cfg(test)]
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode_into(&mut out);
        out
    }

    /// What the row says of the newest version, without a look at those before it.
    pub(in crate::machine) fn decode_newest(
        bytes: &[u8],
    ) -> Result<(Revision, Option<(Meta, ValueDigest)>), Malformed> {
        Self::read_record(&mut Row::new(bytes))
    }

    /// The record's part of a row.
    pub(in crate::machine) fn record_part(bytes: &[u8]) -> Result<&[u8], Malformed> {
        let mut row = Row::new(bytes);
        Self::read_record(&mut row)?;
        Ok(&bytes[..bytes.len() - row.rest().len()])
    }

    fn read_record(row: &mut Row<'_>) -> Result<(Revision, Option<(Meta, ValueDigest)>), Malformed> {
        let flags = row.u8()?;
        if flags & EXISTS == 0 {
            if flags != 0 {
                return Err(Malformed("the head of a deleted key has flags"));
            }
            return Ok((Revision::new(row.varint()?), None));
        }
        if flags & !(EXISTS | HAS_LEASE) != 0 {
            return Err(Malformed("a head has unknown flags"));
        }
        let meta = Meta::read(row, flags & HAS_LEASE != 0)?;
        let revision = Revision::new(row.varint()?);
        Ok((revision, Some((meta, ValueDigest::read(row)?))))
    }

    pub(in crate::machine) fn decode(bytes: &[u8]) -> Result<Head, Malformed> {
        let mut row = Row::new(bytes);
        let (revision, record) = Self::read_record(&mut row)?;
        let depth = row.varint()?;
        let mut ancestors = Vec::with_capacity(depth.count_ones() as usize);
        let mut newer = revision;
        for _ in 0..depth.count_ones() {
            let ancestor = Revision::new(row.varint()?);
            if ancestor >= newer {
                return Err(Malformed("an ancestor is not older"));
            }
            ancestors.push(ancestor);
            newer = ancestor;
        }
        row.end()?;
        Ok(Head {
            record,
            revision,
            depth,
            ancestors: ancestors.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meta(version: u64, lease: Option<u64>) -> Meta {
        Meta {
            create_revision: Revision::new(1),
            version,
            lease: lease.map(LeaseId::new),
        }
    }

    proptest! {
        #[test]
        fn a_head_reads_back_and_garbage_is_refused_or_has_one_form(
            gaps in proptest::collection::vec(1u64..1000, 1..40), version: u64, lease: Option<u64>,
            exists: bool, value: Vec<u8>, garbage: Vec<u8>,
        ) {
            let mut head: Option<Head> = None;
            let mut revision = 0;
            for gap in gaps {
                revision += gap;
                let record = exists.then(|| (meta(version, lease), ValueDigest::of(&value)));
                let next = Head::after(head.as_ref(), Revision::new(revision), record);
                let row = next.encode();
                let read = Head::decode(&row);
                prop_assert_eq!(read.as_ref(), Ok(&next));
                prop_assert_eq!(Head::decode_newest(&row), Ok((next.revision, next.record)));
                let mut part = Vec::new();
                next.put_record(&mut part);
                prop_assert_eq!(Head::record_part(&row), Ok(&part[..]));
                head = Some(next);
            }
            if let Ok(head) = Head::decode(&garbage) {
                prop_assert_eq!(head.encode(), garbage);
            }
        }

        #[test]
        fn a_walk_finds_each_version_in_few_steps(length in 1u64..3000, at in 0u64..6100) {
            // Version d has revision 2 d + 2.
            let mut links: Vec<Option<Link>> = Vec::new();
            let mut head: Option<Head> = None;
            for depth in 0..length {
                let next = Head::after(head.as_ref(), Revision::new(2 * depth + 2), Some((meta(1, None), ValueDigest::of(b""))));
                links.push(next.link(head.as_ref().map(|head| head.revision)));
                head = Some(next);
            }
            let head = head.unwrap();
            let at = Revision::new(at);
            let newest = (0..length).map(|d| Revision::new(2 * d + 2)).rfind(|r| *r <= at);
            let mut steps = 0;
            let found = if head.revision <= at {
                Some(head.revision)
            } else {
                head.walk_from(at).map(|mut from| loop {
                    steps += 1;
                    let link = links[(from.number() as usize - 2) / 2].unwrap();
                    if link.previous <= at {
                        break link.previous;
                    }
                    from = if link.ancestor > at { link.ancestor } else { link.previous };
                })
            };
            prop_assert_eq!(found, newest);
            let bits = 64 - length.leading_zeros();
            prop_assert!(steps <= bits * (bits + 1) / 2, "{} steps in {}", steps, length);
        }
    }
}
