//! What was read, as typed rows at one revision: all of the metadata, or the part that an operation asked for.
//!
//! Operations decide on an image and nothing else. A row that is not in it was asked for and does not exist:
//! the operation names its reads, so it never looks for a row that it did not ask for.
//!
//! Always: all rows were read at `revision`; each row carries the revision that last wrote it, which is what
//! guards pin. A key among the rows that is none of them holds up no decision: it is told by its name.

use std::collections::{BTreeMap, BTreeSet};

use quorate_kv::model::{Key, KeyValue, Record, Revision};
use quorate_kv::planted::{self, Bug};

use crate::ids::{BrokerId, PartitionIndex, TopicId};
use crate::keys::{Keys, RowKey};
use crate::name::TopicName;
use crate::rows::{Broker, CorruptReason, CorruptRow, Partition, Topic};

/// Rows at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Image {
    /// The revision at which the rows were read.
    pub revision: Revision,
    /// Brokers.
    pub brokers: BTreeMap<BrokerId, Broker>,
    /// Topics.
    pub topics: BTreeMap<TopicName, Topic>,
    /// Which topic holds a collision form, see [`TopicName::collision`].
    pub names: BTreeMap<String, TopicName>,
    /// Partitions.
    pub partitions: BTreeMap<(TopicId, PartitionIndex), Partition>,
    /// Keys that stand among the rows and are none: somebody else wrote them.
    pub foreign: BTreeSet<Key>,
    keys: Keys,
}

impl Image {
    /// An image without rows, of those below the prefix where none is said.
    pub fn new(revision: Revision) -> Self {
        Self::under(Keys::default(), revision)
    }

    /// An image without rows, of those with these keys.
    pub fn under(keys: Keys, revision: Revision) -> Self {
        Self {
            keys,
            foreign: BTreeSet::new(),
            revision,
            brokers: BTreeMap::new(),
            topics: BTreeMap::new(),
            names: BTreeMap::new(),
            partitions: BTreeMap::new(),
        }
    }

    /// The keys of the rows.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The image of these records, all read at `revision`.
    pub fn from_records<'a>(
        keys: Keys,
        revision: Revision,
        records: impl IntoIterator<Item = &'a KeyValue>,
    ) -> Result<Self, CorruptRow> {
        let mut image = Self::under(keys, revision);
        for KeyValue { key, record } in records {
            image.insert(key, record)?;
        }
        Ok(image)
    }

    /// Adds a record that was read at the image's revision. One whose key is no row's is noted as foreign.
    pub fn insert(&mut self, key: &Key, record: &Record) -> Result<(), CorruptRow> {
        match self.keys.parse(key) {
            None if planted::is(Bug::ForeignKeyStopsMetadata) => {
                return Err(CorruptRow::new(key, CorruptReason::Key));
            }
            None => {
                self.foreign.insert(key.clone());
            }
            Some(RowKey::Broker(id)) => {
                self.brokers.insert(id, Broker::decode(key, id, record)?);
            }
            Some(RowKey::Topic(name)) => {
                let topic = Topic::decode(key, name.clone(), record)?;
                self.topics.insert(name, topic);
            }
            Some(RowKey::Name(form)) => {
                let text = std::str::from_utf8(&record.value).ok();
                let name = text.and_then(|text| TopicName::new(text).ok());
                let name = name.ok_or_else(|| CorruptRow::new(key, CorruptReason::Name))?;
                self.names.insert(form, name);
            }
            Some(RowKey::Partition(topic, index)) => {
                let partition = Partition::decode(key, topic, index, record)?;
                self.partitions.insert((topic, index), partition);
            }
        }
        Ok(())
    }

    /// The partitions of a topic, in the order of their indexes.
    pub fn partitions_of(&self, topic: TopicId) -> impl Iterator<Item = &Partition> {
        let (first, last) = (PartitionIndex::new(0), PartitionIndex::new(u32::MAX));
        self.partitions
            .range((topic, first)..=(topic, last))
            .map(|(_, p)| p)
    }

    /// Why a broker may neither lead nor be in an ISR; `None` when it may.
    pub fn ineligible(&self, broker: BrokerId) -> Option<Ineligible> {
        match self.brokers.get(&broker) {
            None => Some(Ineligible::NotRegistered),
            Some(broker) if broker.fenced => Some(Ineligible::Fenced),
            Some(broker) if broker.shutting_down => Some(Ineligible::ShuttingDown),
            Some(_) => None,
        }
    }
}

/// Why a broker may neither lead nor be in an ISR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Ineligible {
    /// No such broker.
    #[error("it is not registered")]
    NotRegistered,
    /// It is fenced.
    #[error("it is fenced")]
    Fenced,
    /// It is shutting down.
    #[error("it is shutting down")]
    ShuttingDown,
    /// It was registered anew since the caller looked.
    #[error("it has epoch {present}, the caller saw {asked}")]
    StaleEpoch {
        /// The epoch that the caller gave.
        asked: crate::BrokerEpoch,
        /// The epoch that it has.
        present: crate::BrokerEpoch,
    },
}
