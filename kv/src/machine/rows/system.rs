//! The table `system`: where this node stands. Every checkpoint writes it, in the same transaction as the rest.
//!
//! Rows, by key:
//! - `format`: the magic `QRTSTATE` and the format version (2 bytes, big-endian). Written once.
//! - `limits`: the [`ReplicatedLimits`]: each one's tag (1 byte) and value (8 bytes), in the order of the tags.
//! - `standing`: the [`Standing`].
//! - `membership`: the position of the last membership entry and its bytes. Absent before the first.

use bytes::Bytes;
use redb::ReadableTable;

use super::chain::Chain;
use super::counters::Counters;
use super::error::{StateFile, storage};
use super::wire::{Malformed, Row, put_u64};
use crate::fault::Fault;
use crate::model::{
    Limit, LimitChange, LogIndex, LogPosition, LogTime, NodeId, ReplicatedLimits, Revision, StateHash, Term,
};

pub(in crate::machine) const FORMAT: &[u8] = b"format";
pub(in crate::machine) const LIMITS: &[u8] = b"limits";
pub(in crate::machine) const STANDING: &[u8] = b"standing";
pub(in crate::machine) const MEMBERSHIP: &[u8] = b"membership";

const MAGIC: &[u8; 8] = b"QRTSTATE";
pub(in crate::machine) const FORMAT_VERSION: u16 = 9;

/// The value of the row `format`.
pub(in crate::machine) fn format_row() -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&FORMAT_VERSION.to_be_bytes());
    out
}

/// The format version of a row `format`.
pub(in crate::machine) fn read_format(row: &[u8]) -> Result<u16, Malformed> {
    let mut row = Row::new(row);
    if row.array()? != *MAGIC {
        return Err(Malformed("the magic of a state file is missing"));
    }
    let version = u16::from_be_bytes(row.array()?);
    row.end()?;
    Ok(version)
}

/// The numbers that change with entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::machine) struct Standing {
    /// The last entry applied.
    pub(in crate::machine) position: Option<LogPosition>,
    pub(in crate::machine) revision: Revision,
    /// The oldest revision that can be read.
    pub(in crate::machine) oldest: Revision,
    pub(in crate::machine) log_time: LogTime,
    /// How often the limits were set.
    pub(in crate::machine) limits_version: u64,
    /// Over all revisions.
    pub(in crate::machine) chain: Chain,
    /// The sum, modulo 2¹²⁸, of the hashes of all rows of the replicated state.
    pub(in crate::machine) rows_hash: u128,
    /// Where this node's history begins. No part of the replicated state.
    pub(in crate::machine) history: History,
    /// How much this node's state holds. No part of the replicated state either.
    pub(in crate::machine) counters: Counters,
}

/// From where on a node has all versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::machine) struct History {
    /// All versions of later revisions are here; of this and older ones, those that a read at the oldest readable revision
    /// needs.
    pub(in crate::machine) since: Revision,
    /// The chain of that revision.
    pub(in crate::machine) chain: Chain,
}

impl Standing {
    /// Of the empty store.
    pub(in crate::machine) const EMPTY: Standing = Standing {
        position: None,
        revision: Revision::FIRST,
        oldest: Revision::FIRST,
        log_time: LogTime::ZERO,
        limits_version: 0,
        chain: Chain::EMPTY,
        rows_hash: 0,
        history: History {
            since: Revision::FIRST,
            chain: Chain::EMPTY,
        },
        counters: Counters::ZERO,
    };

    pub(in crate::machine) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        put_position(&mut out, self.position);
        self.put_replicated(&mut out);
        out.extend_from_slice(&self.rows_hash.to_be_bytes());
        put_u64(&mut out, self.history.since.number());
        out.extend_from_slice(&self.history.chain.0.to_be_bytes());
        self.counters.put(&mut out);
        out
    }

    fn put_replicated(&self, out: &mut Vec<u8>) {
        put_u64(out, self.revision.number());
        put_u64(out, self.oldest.number());
        put_u64(out, self.log_time.millis());
        put_u64(out, self.limits_version);
        out.extend_from_slice(&self.chain.0.to_be_bytes());
    }

    pub(in crate::machine) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut row = Row::new(bytes);
        let standing = Self {
            position: read_position(&mut row)?,
            revision: Revision::new(row.u64()?),
            oldest: Revision::new(row.u64()?),
            log_time: LogTime::from_millis(row.u64()?),
            limits_version: row.u64()?,
            chain: Chain(row.u128()?),
            rows_hash: row.u128()?,
            history: History {
                since: Revision::new(row.u64()?),
                chain: Chain(row.u128()?),
            },
            counters: Counters::read(&mut row)?,
        };
        row.end()?;
        if standing.history.since > standing.oldest || standing.oldest > standing.revision {
            return Err(Malformed("history begins behind what can be read"));
        }
        Ok(standing)
    }

    /// The hash of the replicated state: the rows', plus that of what replicated numbers stand here.
    pub(in crate::machine) fn state_hash(&self, limits: &ReplicatedLimits) -> StateHash {
        // Tag 0 is that of no table.
        let mut bytes = vec![0];
        self.put_replicated(&mut bytes);
        bytes.extend_from_slice(&encode_limits(limits));
        StateHash(self.rows_hash.wrapping_add(xxhash_rust::xxh3::xxh3_128(&bytes)))
    }
}

/// The value of the row `limits`.
pub(in crate::machine) fn encode_limits(limits: &ReplicatedLimits) -> Vec<u8> {
    let changes = limits.to_changes();
    let mut out = Vec::with_capacity(9 * changes.len());
    for LimitChange { tag, value } in changes {
        out.push(tag);
        put_u64(&mut out, value);
    }
    out
}

/// Reads the row back. A limit that is missing, and one that is not known, is of another release.
pub(in crate::machine) fn decode_limits(bytes: &[u8]) -> Result<ReplicatedLimits, Malformed> {
    let mut row = Row::new(bytes);
    let mut changes = Vec::new();
    for _ in Limit::ALL {
        let (tag, value) = (row.u8()?, row.u64()?);
        changes.push(LimitChange { tag, value });
    }
    row.end()?;
    ReplicatedLimits::of_changes(&changes)
        .ok_or(Malformed("a limit is missing, or there is one that is not known"))
}

/// The last membership: where it stands in the log, and its bytes, which mean nothing to the machine.
pub(in crate::machine) type Membership = (LogPosition, Bytes);

/// Everything that the table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::machine) struct System {
    pub(in crate::machine) limits: ReplicatedLimits,
    pub(in crate::machine) standing: Standing,
    pub(in crate::machine) membership: Option<Membership>,
}

impl System {
    /// Of the empty store.
    pub(in crate::machine) fn empty() -> Self {
        Self {
            limits: ReplicatedLimits::default(),
            standing: Standing::EMPTY,
            membership: None,
        }
    }

    /// Reads the table and demands that it is complete.
    pub(in crate::machine) fn read(
        file: &StateFile,
        table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    ) -> Result<Self, Fault> {
        let membership = table.get(MEMBERSHIP).map_err(storage(file))?;
        Ok(Self {
            limits: read_limits(file, table)?,
            standing: read_standing(file, table)?,
            membership: membership
                .map(|row| read_membership(row.value()))
                .transpose()
                .map_err(|e| file.malformed(&e))?,
        })
    }
}

/// Reads the limits alone.
pub(in crate::machine) fn read_limits(
    file: &StateFile,
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
) -> Result<ReplicatedLimits, Fault> {
    let row = table
        .get(LIMITS)
        .map_err(storage(file))?
        .ok_or_else(|| file.corrupt("the system table lacks its limits"))?;
    decode_limits(row.value()).map_err(|e| file.malformed(&e))
}

/// Reads the standing alone.
pub(in crate::machine) fn read_standing(
    file: &StateFile,
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
) -> Result<Standing, Fault> {
    let row = table
        .get(STANDING)
        .map_err(storage(file))?
        .ok_or_else(|| file.corrupt("the system table lacks its standing"))?;
    Standing::decode(row.value()).map_err(|e| file.malformed(&e))
}

pub(in crate::machine) fn put_position(out: &mut Vec<u8>, position: Option<LogPosition>) {
    match position {
        None => out.push(0),
        Some(position) => {
            out.push(1);
            put_u64(out, position.term.number());
            put_u64(out, position.leader.number());
            put_u64(out, position.index.number());
        }
    }
}

pub(in crate::machine) fn read_position(row: &mut Row<'_>) -> Result<Option<LogPosition>, Malformed> {
    match row.u8()? {
        0 => Ok(None),
        1 => Ok(Some(LogPosition {
            term: Term::new(row.u64()?),
            leader: NodeId::new(row.u64()?),
            index: LogIndex::new(row.u64()?),
        })),
        _ => Err(Malformed("a position is neither there nor absent")),
    }
}

pub(in crate::machine) fn membership_row((position, bytes): &Membership) -> Vec<u8> {
    let mut out = Vec::with_capacity(25 + bytes.len());
    put_position(&mut out, Some(*position));
    out.extend_from_slice(bytes);
    out
}

pub(in crate::machine) fn read_membership(row: &[u8]) -> Result<Membership, Malformed> {
    let mut row = Row::new(row);
    let position = read_position(&mut row)?.ok_or(Malformed("a membership has no position"))?;
    Ok((position, Bytes::copy_from_slice(row.rest())))
}

#[cfg(test)]
pub(in crate::machine) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All that the table can say.
    pub(in crate::machine) fn system() -> impl Strategy<Value = System> {
        let limits = any::<[u64; Limit::ALL.len()]>().prop_map(|numbers| {
            let change = |(limit, value)| LimitChange::new(limit, value);
            let changes: Vec<_> = Limit::ALL.into_iter().zip(numbers).map(change).collect();
            ReplicatedLimits::of_changes(&changes).expect("all of them, in order")
        });
        let bytes = prop::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        let membership = prop::option::of((position(), bytes));
        (limits, standing(), membership).prop_map(|(limits, standing, membership)| System {
            limits,
            standing,
            membership,
        })
    }

    fn position() -> impl Strategy<Value = LogPosition> {
        any::<[u64; 3]>().prop_map(|[term, leader, index]| LogPosition {
            term: Term::new(term),
            leader: NodeId::new(leader),
            index: LogIndex::new(index),
        })
    }

    fn standing() -> impl Strategy<Value = Standing> {
        let numbers = (
            1..=u64::MAX,
            1..=u64::MAX,
            any::<u64>(),
            any::<u64>(),
            any::<[u128; 3]>(),
            1..=u64::MAX,
            any::<[u64; 3]>(),
        );
        (prop::option::of(position()), numbers).prop_map(|(position, numbers)| {
            let (revision, oldest, log_time, limits_version, digests, since, counts) = numbers;
            let [chain, rows_hash, since_chain] = digests;
            let mut revisions = [revision, oldest, since];
            revisions.sort_unstable();
            let [since, oldest, revision] = revisions;
            Standing {
                position,
                revision: Revision::new(revision),
                oldest: Revision::new(oldest),
                log_time: LogTime::from_millis(log_time),
                limits_version,
                chain: Chain(chain),
                rows_hash,
                history: History {
                    since: Revision::new(since),
                    chain: Chain(since_chain),
                },
                counters: Counters {
                    records: counts[0],
                    live_bytes: counts[1].min(counts[2]),
                    version_bytes: counts[1].max(counts[2]),
                },
            }
        })
    }

    proptest! {
        #[test]
        fn rows_read_back_and_a_part_of_one_is_none(
            standing in standing(), at in position(), membership: Vec<u8>, cut: prop::sample::Index,
        ) {
            let row = standing.encode();
            prop_assert_eq!(Standing::decode(&row), Ok(standing));
            prop_assert!(Standing::decode(&row[..cut.index(row.len())]).is_err());
            prop_assert!(Standing::decode(&[&row[..], &[0]].concat()).is_err());
            let membership = (at, Bytes::from(membership));
            prop_assert_eq!(read_membership(&membership_row(&membership)), Ok(membership));
            prop_assert_eq!(read_format(&format_row()), Ok(FORMAT_VERSION));
        }

        #[test]
        fn limits_read_back_and_a_part_of_them_and_others_are_none(system in system(), cut: prop::sample::Index, tag: u8) {
            let row = encode_limits(&system.limits);
            prop_assert_eq!(decode_limits(&row), Ok(system.limits));
            prop_assert!(decode_limits(&row[..cut.index(row.len())]).is_err());
            prop_assert!(decode_limits(&[&row[..], &[tag, 0, 0, 0, 0, 0, 0, 0, 0]].concat()).is_err());
        }

        #[test]
        fn any_bytes_are_the_one_form_of_a_row_or_refused(
            mut bytes in prop::collection::vec(any::<u8>(), 0..150), first in 0u8..3,
        ) {
            // Else hardly any would have a position.
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            if let Ok(standing) = Standing::decode(&bytes) {
                prop_assert_eq!(standing.encode(), bytes.clone());
            }
            if let Ok(membership) = read_membership(&bytes) {
                prop_assert_eq!(membership_row(&membership), bytes.clone());
            }
            if let Ok(version) = read_format(&bytes) {
                prop_assert_eq!(&bytes[8..], &version.to_be_bytes()[..]);
            }
            if let Ok(limits) = decode_limits(&bytes) {
                prop_assert_eq!(encode_limits(&limits), bytes);
            }
        }
    }
}
