//! The chain: a digest over all revisions, each of which continues that of the one before.
//!
//! It says what every revision made of every key, and nothing of where that is kept. So it is the same on every node,
//! whatever a node still has of history; and one that has all versions behind a revision whose chain it knows can prove
//! that they are those that were written.
//!
//! A revision's chain is XXH3-128 of the chain before it (16 bytes), its number (8), and for each key that it changed, in the
//! order of the keys: the key's size (4), the key, and what became of it: the kind of the change, with bit 2 set where a lease
//! follows; unless it was deleted, create_revision, version, the lease where flagged, and the value's digest. Of the first
//! revision, which made nothing, it is 0.

use xxhash_rust::xxh3::Xxh3;

use super::head::{Meta, ValueDigest};
use super::version::{self, ChangeKind, Version};
use super::wire::Malformed;
use crate::model::Revision;

const HAS_LEASE: u8 = 4;

/// The digest over all revisions up to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::machine) struct Chain(pub(in crate::machine) u128);

/// What a revision changed of a key.
#[derive(Clone, Copy, Debug)]
pub(in crate::machine) struct Change<'a> {
    pub(in crate::machine) key: &'a [u8],
    pub(in crate::machine) kind: ChangeKind,
    /// `None` for a deletion.
    pub(in crate::machine) record: Option<(Meta, ValueDigest)>,
}

/// The chain of a revision whose changes are still to be added.
pub(in crate::machine) struct Link {
    hasher: Xxh3,
    /// A change under construction.
    buffer: Vec<u8>,
}

impl Chain {
    /// Of the empty store.
    pub(in crate::machine) const EMPTY: Chain = Chain(0);

    /// Begins the next revision's, which is to have this number.
    pub(in crate::machine) fn link(self, revision: Revision) -> Link {
        let mut hasher = Xxh3::new();
        hasher.update(&self.0.to_be_bytes());
        hasher.update(&revision.number().to_be_bytes());
        Link {
            hasher,
            buffer: Vec::new(),
        }
    }
}

impl Link {
    /// Adds a change. In the order of the keys.
    pub(in crate::machine) fn add(&mut self, change: Change<'_>) {
        let buffer = &mut self.buffer;
        buffer.clear();
        buffer.extend_from_slice(&(change.key.len() as u32).to_be_bytes());
        buffer.extend_from_slice(change.key);
        match change.record {
            None => buffer.push(change.kind.number()),
            Some((meta, digest)) => {
                let lease = if meta.lease.is_some() { HAS_LEASE } else { 0 };
                buffer.push(change.kind.number() | lease);
                meta.put(buffer);
                digest.put(buffer);
            }
        }
        self.hasher.update(buffer);
    }

    pub(in crate::machine) fn end(self) -> Chain {
        Chain(self.hasher.digest128())
    }
}

/// The chain of rows of `versions`, computed anew.
pub(in crate::machine) struct Fold {
    chain: Chain,
    /// The last revision whose rows have begun.
    revision: Revision,
    link: Option<Link>,
}

impl Fold {
    /// Begins behind a revision and its chain.
    pub(in crate::machine) fn after(revision: Revision, chain: Chain) -> Self {
        Self {
            chain,
            revision,
            link: None,
        }
    }

    /// Takes the next row, in the order of the table. Those of the revision where it began, and of older ones, are passed over.
    pub(in crate::machine) fn row(&mut self, row_key: &[u8], row: &[u8]) -> Result<(), Malformed> {
        let (revision, key) = version::read_key(row_key)?;
        if self.link.is_none() && revision <= self.revision {
            return Ok(());
        }
        if revision != self.revision || self.link.is_none() {
            if revision.number().checked_sub(1) != Some(self.revision.number()) {
                return Err(Malformed("the versions of a revision are missing"));
            }
            self.end_revision();
            self.revision = revision;
            self.link = Some(self.chain.link(revision));
        }
        let version = Version::decode(row)?;
        if version.link.is_some_and(|link| link.previous >= revision) {
            return Err(Malformed("the version before is not older"));
        }
        if let Some(link) = &mut self.link {
            link.add(Change {
                key,
                kind: version.kind,
                record: version.meta.map(|meta| (meta, ValueDigest::of(version.value))),
            });
        }
        Ok(())
    }

    fn end_revision(&mut self) {
        if let Some(link) = self.link.take() {
            self.chain = link.end();
        }
    }

    /// The last revision that came, and its chain.
    pub(in crate::machine) fn end(mut self) -> (Revision, Chain) {
        self.end_revision();
        (self.revision, self.chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(revision: u64, key: &str, value: &str) -> (Vec<u8>, Vec<u8>) {
        let meta = Meta {
            create_revision: Revision::new(revision),
            version: 1,
            lease: None,
        };
        let version = Version {
            kind: ChangeKind::Created,
            meta: Some(meta),
            link: None,
            value: value.as_bytes(),
        };
        let mut out = Vec::new();
        version.encode_into(&mut out);
        (version::row_key(Revision::new(revision), key.as_bytes()), out)
    }

    fn fold(rows: &[(Vec<u8>, Vec<u8>)], since: u64, chain: Chain) -> Result<(Revision, Chain), Malformed> {
        let mut fold = Fold::after(Revision::new(since), chain);
        for (key, row) in rows {
            fold.row(key, row)?;
        }
        Ok(fold.end())
    }

    #[test]
    fn a_chain_goes_on_from_any_revision_and_tells_every_change() {
        let rows = [
            row(2, "a", "1"),
            row(2, "b", "2"),
            row(3, "a", "3"),
            row(4, "c", "4"),
        ];
        let whole = fold(&rows, 1, Chain::EMPTY).unwrap();
        assert_eq!(whole.0, Revision::new(4));
        let half = fold(&rows[..2], 1, Chain::EMPTY).unwrap();
        assert_eq!(half.0, Revision::new(2));
        assert_eq!(fold(&rows[2..], 2, half.1), Ok(whole));
        // Older rows, which a key that exists may still have, say nothing.
        assert_eq!(fold(&rows, 2, half.1), Ok(whole));
        for changed in [row(3, "a", "x"), row(3, "b", "3")] {
            let mut other = rows.clone();
            other[2] = changed;
            assert_ne!(fold(&other, 1, Chain::EMPTY).unwrap(), whole);
        }
        let lacks_one = [rows[0].clone(), rows[3].clone()];
        assert!(fold(&lacks_one, 1, Chain::EMPTY).is_err());
        assert_ne!(fold(&rows[1..], 1, Chain::EMPTY).unwrap(), whole);
    }
}
