//! `t/<topic name>` → which topic bears the name, how many partitions it has, and its settings.
//!
//! Lifetime: from creation to deletion. Invariant: `partitions` is the number of the topic's partition rows,
//! which have the indexes 0 to `partitions - 1`; so a guard on this one row pins the existence of them all.

use std::collections::BTreeMap;

use quorate_kv::model::{Key, LogTime, Record, Revision, decode, encode};
use serde::{Deserialize, Serialize};

use super::CorruptRow;
use crate::ids::TopicId;
use crate::name::TopicName;

/// A topic.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Topic {
    /// This life of the name.
    pub id: TopicId,
    /// Its name.
    pub name: TopicName,
    /// How many partitions it has, at least 1.
    pub partitions: u32,
    /// How many replicas each partition has by plan.
    pub replication_factor: u16,
    /// Settings that differ from the cluster's. Kept as given: who uses a setting checks its value.
    pub config: BTreeMap<String, String>,
    /// When it was created, by the proposer's clock.
    pub created_at: LogTime,
    /// When the row was last written, by the proposer's clock.
    pub modified_at: LogTime,
    /// It is being deleted in steps, and takes no change any more.
    pub deleting: bool,
    /// The revision that last wrote the row.
    pub revision: Revision,
}

#[derive(Serialize, Deserialize)]
enum Stored {
    V1(StoredV1),
}

#[derive(Serialize, Deserialize)]
struct StoredV1 {
    id: TopicId,
    partitions: u32,
    replication_factor: u16,
    config: BTreeMap<String, String>,
    created_at: LogTime,
    modified_at: LogTime,
    deleting: bool,
}

impl Topic {
    pub(crate) fn encode(&self) -> Vec<u8> {
        encode(&Stored::V1(StoredV1 {
            id: self.id,
            partitions: self.partitions,
            replication_factor: self.replication_factor,
            config: self.config.clone(),
            created_at: self.created_at,
            modified_at: self.modified_at,
            deleting: self.deleting,
        }))
    }

    pub(crate) fn decode(key: &Key, name: TopicName, record: &Record) -> Result<Self, CorruptRow> {
        let stored = decode(&record.value).map_err(|e| CorruptRow::new(key, e))?;
        let Stored::V1(row) = stored;
        Ok(Self {
            id: row.id,
            name,
            partitions: row.partitions,
            replication_factor: row.replication_factor,
            config: row.config,
            created_at: row.created_at,
            modified_at: row.modified_at,
            deleting: row.deleting,
            revision: record.mod_revision,
        })
    }
}
