//! Snapshots: a pinned state as a stream of numbered, checksummed chunks, and the file that they make again.
//!
//! A chunk is one stretch of a stream of bytes; rows may begin in one chunk and end in the next, so that a
//! chunk is never larger than [`CHUNK_BYTES`] and a little, whatever the rows are. The stream is specified in
//! `docs/formats/state.md`.
//!
//! Always: neither side holds more than a chunk and a row in memory; what the receiver hands on has the hash
//! that the sender's state had; the receiver's state is untouched until `Machine::install`.

mod chunk;
mod sink;
mod source;

use bytes::Bytes;
pub use sink::{ReceivedSnapshot, SnapshotError, SnapshotSink};
pub use source::{PinnedState, SnapshotSource};

use super::rows::system::{self, Standing, System};
use super::rows::wire::{Malformed, Row, put_varint};
use crate::model::{LogPosition, LogTime, Revision, StateHash};

/// A chunk's payload: the most bytes.
pub(super) const CHUNK_BYTES: usize = 1024 * 1024 - 64;

/// What stands in the place of a table's tag before the stream's last item.
const TRAILER: u8 = 0xff;

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotMeta {
    /// The last entry that it includes.
    pub position: Option<LogPosition>,
    /// The last membership that it includes, and where that stands in the log.
    pub membership: Option<(LogPosition, Bytes)>,
    /// The store's revision.
    pub revision: Revision,
    /// The log's time.
    pub log_time: LogTime,
    /// The hash of the replicated state.
    pub hash: StateHash,
}

impl SnapshotMeta {
    fn of(system: &System) -> Self {
        Self {
            position: system.standing.position,
            membership: system.membership.clone(),
            revision: system.standing.revision,
            log_time: system.standing.log_time,
            hash: system.standing.state_hash(&system.limits),
        }
    }
}

/// Appends what the stream begins with: the system table's content.
fn put_head(out: &mut Vec<u8>, system: &System) {
    let standing = system.standing.encode();
    put_varint(out, standing.len() as u64);
    out.extend_from_slice(&standing);
    let limits = system::encode_limits(&system.limits);
    put_varint(out, limits.len() as u64);
    out.extend_from_slice(&limits);
    let membership = system.membership.as_ref().map(system::membership_row);
    // No membership is an empty one: a row has 25 bytes at least.
    let membership = membership.unwrap_or_default();
    put_varint(out, membership.len() as u64);
    out.extend_from_slice(&membership);
}

fn read_head(row: &mut Row<'_>) -> Result<System, Malformed> {
    let standing = Standing::decode(row.sized()?)?;
    let limits = system::decode_limits(row.sized()?)?;
    let membership = row.sized()?;
    let membership = if membership.is_empty() {
        None
    } else {
        Some(system::read_membership(membership)?)
    };
    Ok(System {
        limits,
        standing,
        membership,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::machine::rows::system::tests::system;

    fn head_of(system: &System) -> Vec<u8> {
        let mut out = Vec::new();
        put_head(&mut out, system);
        out
    }

    /// Bytes are no head, or begin with the one form of the head that is read of them.
    fn one_form(bytes: &[u8]) -> Option<System> {
        let mut row = Row::new(bytes);
        let system = read_head(&mut row).ok()?;
        let used = bytes.len() - row.rest().len();
        assert_eq!(head_of(&system), bytes[..used], "of {bytes:?}");
        Some(system)
    }

    proptest! {
        #[test]
        fn a_head_reads_back_and_what_follows_it_is_left(system in system(), follows: Vec<u8>) {
            let head = head_of(&system);
            let stream = [&head[..], &follows].concat();
            let mut row = Row::new(&stream);
            prop_assert_eq!(read_head(&mut row), Ok(system));
            prop_assert_eq!(row.rest(), &follows[..]);
        }

        #[test]
        fn a_part_of_a_head_is_none_and_a_damaged_one_is_another_or_none(
            system in system(), cut: prop::sample::Index, at: prop::sample::Index, bits in 1u8..=255,
        ) {
            let head = head_of(&system);
            prop_assert!(read_head(&mut Row::new(&head[..cut.index(head.len())])).is_err());
            let mut damaged = head.clone();
            damaged[at.index(head.len())] ^= bits;
            // The snapshot's tag is the hash of its head, so that another one is not taken for it.
            prop_assert_ne!(one_form(&damaged), Some(system));
        }

        #[test]
        fn any_bytes_are_the_one_form_of_a_head_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            // Else hardly any would have the lengths of a head's parts.
            mut standing in prop::collection::vec(any::<u8>(), Standing::EMPTY.encode().len() + 24),
            has_position: bool, limits in 0u8..4, mut membership in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let _system = one_form(&bytes);
            standing[0] = u8::from(has_position);
            if !has_position {
                standing.truncate(Standing::EMPTY.encode().len());
            }
            let mut limit_row = system::encode_limits(&crate::model::ReplicatedLimits::default());
            limit_row[0] = limit_row[0].wrapping_sub(limits / 3);
            if let Some(first) = membership.first_mut() {
                *first = 1;
            }
            let mut head = Vec::new();
            for part in [standing, limit_row, membership] {
                put_varint(&mut head, part.len() as u64);
                head.extend_from_slice(&part);
            }
            head.extend_from_slice(&bytes);
            let _system = one_form(&head);
        }
    }
}
