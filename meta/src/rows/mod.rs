//! The rows: what the store holds of a broker, a topic, a partition, and their bytes.
//!
//! Each type is the row as readers see it, with what its key and its record's revisions tell. The encoding is
//! the file's private business: the store's format version, a version of the row, then postcard;
//! `docs/formats/metadata.md` has the bytes.
//!
//! Always: a row decodes to what was encoded; a decoded partition's leader, ISR and other sets are subsets of
//! its replicas by construction, and in the order of the replicas, which are all different.

mod broker;
mod partition;
#[cfg(test)]
mod tests;
mod topic;

pub(crate) use broker::EpochOf;
pub use broker::{Broker, Capacity, Endpoint, EndpointRule, InvalidEndpoint};
pub use partition::{Partition, Recovery};
pub use topic::Topic;

use quorate_kv::model::{DecodeError, Key};

/// A row that is not what this release writes: the store is damaged, or a later release wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the row {key} is unreadable: {reason}")]
#[non_exhaustive]
pub struct CorruptRow {
    /// The row's key.
    pub key: Key,
    /// What was wrong with it.
    pub reason: CorruptReason,
}

/// What is wrong with a row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CorruptReason {
    /// The bytes are no message.
    #[error(transparent)]
    Bytes(#[from] DecodeError),
    /// The key is not of this crate.
    #[error("the key is of no known kind of row")]
    Key,
    /// A set names a replica that the partition does not have.
    #[error("{field} names replica number {position} of {replicas}")]
    Position {
        /// The field.
        field: &'static str,
        /// The position, from 0.
        position: u32,
        /// How many replicas there are.
        replicas: usize,
    },
    /// A partition has more replicas than there may be, or one broker twice.
    #[error("its {count} replicas are more than {max}, or name a broker twice")]
    Replicas {
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// A broker has flags that this release does not know.
    #[error("it has unknown flags ({0:#04x})")]
    Flags(u8),
    /// The name in the row is not a topic's.
    #[error("the name in it is no topic's name")]
    Name,
}

impl CorruptRow {
    pub(crate) fn new(key: &Key, reason: impl Into<CorruptReason>) -> Self {
        Self {
            key: key.clone(),
            reason: reason.into(),
        }
    }
}
