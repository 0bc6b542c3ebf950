//! Where in the store each row lives.
//!
//! | prefix | rest of the key | row |
//! |---|---|---|
//! | `b/` | broker id, 8 bytes | [`Broker`](crate::Broker) |
//! | `t/` | topic name, to the end | [`Topic`](crate::Topic) |
//! | `n/` | collision form of a topic's name, to the end | the name that holds it |
//! | `p/` | topic id, 16 bytes; partition index, 4 bytes | [`Partition`](crate::Partition) |
//! | `c/` | cluster settings, reserved | |
//!
//! Always: numbers are big-endian, so that ranges sort; every segment but the last has a fixed width, so that
//! no name can forge another row's key; the first two bytes alone tell the kind of row.

use quorate_kv::model::{Key, KeyRange};
use uuid::Uuid;

use crate::ids::{BrokerId, PartitionIndex, TopicId};
use crate::name::TopicName;

const BROKERS: &[u8; 2] = b"b/";
const TOPICS: &[u8; 2] = b"t/";
const NAMES: &[u8; 2] = b"n/";
const PARTITIONS: &[u8; 2] = b"p/";

/// A key of this crate, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowKey {
    /// A broker's row.
    Broker(BrokerId),
    /// A topic's row.
    Topic(TopicName),
    /// The row that keeps colliding names apart.
    Name(String),
    /// A partition's row.
    Partition(TopicId, PartitionIndex),
}

fn key(prefix: &[u8; 2], segments: &[&[u8]]) -> Key {
    let mut bytes = Vec::with_capacity(2 + segments.iter().map(|s| s.len()).sum::<usize>());
    bytes.extend_from_slice(prefix);
    for segment in segments {
        bytes.extend_from_slice(segment);
    }
    #[allow(
        clippy::expect_used,
        reason = "2 to 251 bytes: a name is at most 249 by its type"
    )]
    Key::new(bytes).expect("a row's key has 2 to 251 bytes")
}

/// The key of a broker's row.
pub fn broker(id: BrokerId) -> Key {
    key(BROKERS, &[&id.number().to_be_bytes()])
}

/// The keys of all brokers' rows.
pub fn brokers() -> KeyRange {
    KeyRange::prefix(&BROKERS[..])
}

/// The key of a topic's row.
pub fn topic(name: &TopicName) -> Key {
    key(TOPICS, &[name.as_str().as_bytes()])
}

/// The keys of all topics' rows.
pub fn topics() -> KeyRange {
    KeyRange::prefix(&TOPICS[..])
}

/// The key of the row that keeps this name and those that collide with it apart, if any can.
pub fn name(name: &TopicName) -> Option<Key> {
    name.collision().map(|form| key(NAMES, &[form.as_bytes()]))
}

/// The keys of all rows that keep colliding names apart.
pub fn names() -> KeyRange {
    KeyRange::prefix(&NAMES[..])
}

/// The key of a partition's row.
pub fn partition(topic: TopicId, index: PartitionIndex) -> Key {
    key(
        PARTITIONS,
        &[topic.uuid().as_bytes(), &index.number().to_be_bytes()],
    )
}

/// The keys of all partitions' rows of a topic, in the order of their indexes.
pub fn partitions_of(topic: TopicId) -> KeyRange {
    KeyRange::prefix([&PARTITIONS[..], topic.uuid().as_bytes()].concat())
}

/// The keys of all partitions' rows.
pub fn partitions() -> KeyRange {
    KeyRange::prefix(&PARTITIONS[..])
}

/// Takes a key apart; `None` when it is not one of this crate's rows.
pub fn parse(key: &Key) -> Option<RowKey> {
    let (prefix, rest) = key.as_bytes().split_first_chunk::<2>()?;
    match prefix {
        BROKERS => {
            let id = u64::from_be_bytes(rest.try_into().ok()?);
            Some(RowKey::Broker(BrokerId::new(id)))
        }
        TOPICS => {
            let name = TopicName::new(std::str::from_utf8(rest).ok()?).ok()?;
            Some(RowKey::Topic(name))
        }
        NAMES => {
            let form = TopicName::new(std::str::from_utf8(rest).ok()?).ok()?;
            Some(RowKey::Name(form.as_str().to_owned()))
        }
        PARTITIONS => {
            let (topic, index) = rest.split_first_chunk::<16>()?;
            let topic = TopicId::from_uuid(Uuid::from_bytes(*topic));
            let index = u32::from_be_bytes(index.try_into().ok()?);
            Some(RowKey::Partition(topic, PartitionIndex::new(index)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topic_id(number: u128) -> TopicId {
        TopicId::from_uuid(Uuid::from_u128(number))
    }

    proptest! {
        #[test]
        fn a_key_comes_back_as_what_it_was_made_of(b: u64, t: u128, i: u32, n in "[A-Za-z0-9._-]{3,249}") {
            let n = TopicName::new(&n).unwrap();
            prop_assert_eq!(parse(&broker(BrokerId::new(b))), Some(RowKey::Broker(BrokerId::new(b))));
            prop_assert_eq!(parse(&topic(&n)), Some(RowKey::Topic(n.clone())));
            let (t, i) = (topic_id(t), PartitionIndex::new(i));
            prop_assert_eq!(parse(&partition(t, i)), Some(RowKey::Partition(t, i)));
            prop_assert!(partitions_of(t).contains(partition(t, i).as_bytes()));
            if let Some(key) = name(&n) {
                prop_assert_eq!(parse(&key), Some(RowKey::Name(n.collision().unwrap())));
            }
        }

        #[test]
        fn keys_sort_as_their_numbers_do(a: u64, b: u64, t: u128, i: u32, j: u32) {
            let keys = (broker(BrokerId::new(a)), broker(BrokerId::new(b)));
            prop_assert_eq!(keys.0.cmp(&keys.1), a.cmp(&b));
            let partition = |n| partition(topic_id(t), PartitionIndex::new(n));
            prop_assert_eq!(partition(i).cmp(&partition(j)), i.cmp(&j));
        }
    }

    #[test]
    fn a_foreign_key_is_not_a_row() {
        for bytes in [
            &b"x"[..],
            b"b/123",
            b"p/short",
            b"t/",
            b"t/a/b",
            b"q/name",
            b"b/123456789",
        ] {
            assert_eq!(
                parse(&Key::try_from(bytes).unwrap()),
                None,
                "{}",
                bytes.escape_ascii()
            );
        }
    }
}
