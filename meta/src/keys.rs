//! Where in the store each row lives: below one prefix, `meta/` unless told otherwise.
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
//! no name can forge another row's key; the first two bytes behind the prefix alone tell the kind of row.

use std::fmt;

use bytes::Bytes;
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

/// The keys of the rows of one metadata: all those below one prefix, which nobody else's keys begin with.
///
/// Two metadata in one store need prefixes of which neither begins with the other. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    prefix: Bytes,
}

/// A prefix that rows cannot stand below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a prefix of {bytes} bytes: it must have from 1 to {}",
    Keys::PREFIX_BYTES_MAX
)]
pub struct InvalidPrefix {
    /// Its length.
    pub bytes: usize,
}

impl Default for Keys {
    /// Below `meta/`.
    fn default() -> Self {
        Self {
            prefix: Bytes::from_static(Self::PREFIX),
        }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.prefix.escape_ascii())
    }
}

impl Keys {
    /// The prefix where none is said.
    pub const PREFIX: &'static [u8] = b"meta/";

    /// The longest prefix: with the longest row behind it, a store's default limit of a key is not reached.
    pub const PREFIX_BYTES_MAX: usize = 1024;

    /// The keys below a prefix, which is taken as it is: a separator at its end is part of it.
    pub fn under(prefix: impl AsRef<[u8]>) -> Result<Self, InvalidPrefix> {
        let prefix = prefix.as_ref();
        let bytes = prefix.len();
        if !(1..=Self::PREFIX_BYTES_MAX).contains(&bytes) {
            return Err(InvalidPrefix { bytes });
        }
        Ok(Self {
            prefix: Bytes::copy_from_slice(prefix),
        })
    }

    /// The prefix.
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    fn below(&self, segments: &[&[u8]]) -> Vec<u8> {
        [&[&self.prefix[..]], segments].concat().concat()
    }

    fn key(&self, segments: &[&[u8]]) -> Key {
        #[allow(
            clippy::expect_used,
            reason = "3 to 1,275 bytes: a prefix has 1 to 1,024 by its type, a name at most 249"
        )]
        Key::new(self.below(segments)).expect("a row's key has 3 to 1,275 bytes")
    }

    /// All keys below the prefix.
    pub fn all(&self) -> KeyRange {
        KeyRange::prefix(self.prefix.clone())
    }

    /// The key of a broker's row.
    pub fn broker(&self, id: BrokerId) -> Key {
        self.key(&[BROKERS, &id.number().to_be_bytes()])
    }

    /// The keys of all brokers' rows.
    pub fn brokers(&self) -> KeyRange {
        KeyRange::prefix(self.below(&[BROKERS]))
    }

    /// The key of a topic's row.
    pub fn topic(&self, name: &TopicName) -> Key {
        self.key(&[TOPICS, name.as_str().as_bytes()])
    }

    /// The keys of all topics' rows.
    pub fn topics(&self) -> KeyRange {
        KeyRange::prefix(self.below(&[TOPICS]))
    }

    /// The key of the row that keeps this name and those that collide with it apart, if any can.
    pub fn name(&self, name: &TopicName) -> Option<Key> {
        name.collision().map(|form| self.key(&[NAMES, form.as_bytes()]))
    }

    /// The keys of all rows that keep colliding names apart.
    pub fn names(&self) -> KeyRange {
        KeyRange::prefix(self.below(&[NAMES]))
    }

    /// The key of a partition's row.
    pub fn partition(&self, topic: TopicId, index: PartitionIndex) -> Key {
        let index = index.number().to_be_bytes();
        self.key(&[PARTITIONS, topic.uuid().as_bytes(), &index])
    }

    /// The keys of all partitions' rows of a topic, in the order of their indexes.
    pub fn partitions_of(&self, topic: TopicId) -> KeyRange {
        KeyRange::prefix(self.below(&[PARTITIONS, topic.uuid().as_bytes()]))
    }

    /// The keys of all partitions' rows.
    pub fn partitions(&self) -> KeyRange {
        KeyRange::prefix(self.below(&[PARTITIONS]))
    }

    /// How long the key of a partition's row is.
    pub(crate) fn partition_bytes(&self) -> usize {
        self.prefix.len() + PARTITIONS.len() + size_of::<Uuid>() + size_of::<u32>()
    }

    /// Takes a key apart; `None` when it is not one of these rows.
    pub fn parse(&self, key: &Key) -> Option<RowKey> {
        let key = key.as_bytes().strip_prefix(self.prefix())?;
        let (prefix, rest) = key.split_first_chunk::<2>()?;
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
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topic_id(number: u128) -> TopicId {
        TopicId::from_uuid(Uuid::from_u128(number))
    }

    fn prefix() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 1..=Keys::PREFIX_BYTES_MAX)
    }

    proptest! {
        #[test]
        fn a_key_comes_back_as_what_it_was_made_of(
            p in prefix(), b: u64, t: u128, i: u32, n in "[A-Za-z0-9._-]{3,249}"
        ) {
            let keys = Keys::under(p).unwrap();
            let n = TopicName::new(&n).unwrap();
            prop_assert_eq!(keys.parse(&keys.broker(BrokerId::new(b))), Some(RowKey::Broker(BrokerId::new(b))));
            prop_assert_eq!(keys.parse(&keys.topic(&n)), Some(RowKey::Topic(n.clone())));
            let (t, i) = (topic_id(t), PartitionIndex::new(i));
            let partition = keys.partition(t, i);
            prop_assert_eq!(keys.parse(&partition), Some(RowKey::Partition(t, i)));
            prop_assert!(keys.partitions_of(t).contains(partition.as_bytes()));
            prop_assert!(keys.all().contains(partition.as_bytes()));
            prop_assert_eq!(partition.len(), keys.partition_bytes());
            if let Some(key) = keys.name(&n) {
                prop_assert_eq!(keys.parse(&key), Some(RowKey::Name(n.collision().unwrap())));
            }
        }

        #[test]
        fn keys_sort_as_their_numbers_do(a: u64, b: u64, t: u128, i: u32, j: u32) {
            let keys = Keys::default();
            let brokers = (keys.broker(BrokerId::new(a)), keys.broker(BrokerId::new(b)));
            prop_assert_eq!(brokers.0.cmp(&brokers.1), a.cmp(&b));
            let partition = |n| keys.partition(topic_id(t), PartitionIndex::new(n));
            prop_assert_eq!(partition(i).cmp(&partition(j)), i.cmp(&j));
        }

        #[test]
        fn rows_below_prefixes_of_which_neither_begins_with_the_other_never_meet(
            one in prefix(), other in prefix(), b: u64
        ) {
            prop_assume!(!one.starts_with(&other) && !other.starts_with(&one));
            let (one, other) = (Keys::under(one).unwrap(), Keys::under(other).unwrap());
            let key = one.broker(BrokerId::new(b));
            prop_assert_eq!(other.parse(&key), None);
            prop_assert!(!other.all().contains(key.as_bytes()));
        }
    }

    #[test]
    fn a_foreign_key_is_not_a_row() {
        for bytes in [
            &b"x"[..],
            b"b/12345678",
            b"meta",
            b"meta/",
            b"meta/b/123",
            b"meta/p/short",
            b"meta/t/",
            b"meta/t/a/b",
            b"meta/q/name",
            b"meta/b/123456789",
        ] {
            assert_eq!(
                Keys::default().parse(&Key::from(bytes)),
                None,
                "{}",
                bytes.escape_ascii()
            );
        }
    }

    #[test]
    fn a_prefix_has_a_byte_at_least_and_leaves_room_for_the_row() {
        assert_eq!(Keys::under("").unwrap_err(), InvalidPrefix { bytes: 0 });
        assert!(Keys::under([b'x'; Keys::PREFIX_BYTES_MAX]).is_ok());
        let refused = Keys::under([b'x'; Keys::PREFIX_BYTES_MAX + 1]).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "a prefix of 1025 bytes: it must have from 1 to 1024"
        );
    }
}
