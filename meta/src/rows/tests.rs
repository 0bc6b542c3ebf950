//! Bytes of the rows: what was encoded comes back, what this release wrote stays readable for ever, and what
//! is no row is refused.

use std::collections::BTreeMap;

use proptest::prelude::*;
use quorate_kv::model::{Key, LogTime, Record, Revision};
use uuid::Uuid;

use super::*;
use crate::ids::{BrokerEpoch, BrokerId, Incarnation, LeaderEpoch, PartitionEpoch, PartitionIndex, TopicId};
use crate::keys::Keys;
use crate::name::TopicName;

const REVISION: Revision = Revision::new(77);

fn record(value: Vec<u8>) -> Record {
    Record {
        value: value.into(),
        create_revision: REVISION,
        mod_revision: REVISION,
        version: 1,
        lease: None,
    }
}

fn keys() -> Keys {
    Keys::default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn topic_id() -> TopicId {
    TopicId::from_uuid(Uuid::from_u128(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f))
}

fn brokers(numbers: &[u64]) -> Vec<BrokerId> {
    numbers.iter().copied().map(BrokerId::new).collect()
}

fn partition() -> Partition {
    Partition {
        topic: topic_id(),
        index: PartitionIndex::new(258),
        replicas: brokers(&[3, 1, 2]),
        isr: brokers(&[3, 2]),
        eligible_leaders: Vec::new(),
        last_known_leaders: Vec::new(),
        leader: Some(BrokerId::new(2)),
        leader_epoch: LeaderEpoch::new(5),
        partition_epoch: PartitionEpoch::new(300),
        recovery: Recovery::Recovered,
        adding: Vec::new(),
        removing: Vec::new(),
        created_at: LogTime::from_millis(1_700_000_000_000),
        modified_at: LogTime::from_millis(1_700_000_000_009),
        revision: REVISION,
    }
}

fn topic() -> Topic {
    Topic {
        id: topic_id(),
        name: TopicName::new("a.b").unwrap(),
        partitions: 300,
        replication_factor: 3,
        config: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        created_at: LogTime::from_millis(1_700_000_000_000),
        modified_at: LogTime::from_millis(1_700_000_000_001),
        deleting: false,
        revision: REVISION,
    }
}

fn broker(epoch: Revision) -> Broker {
    Broker {
        id: BrokerId::new(7),
        epoch: BrokerEpoch::new(epoch),
        incarnation: Incarnation::from_uuid(Uuid::from_u128(1)),
        endpoints: vec!["h:9092".parse().unwrap()],
        rack: Some("r".to_owned()),
        labels: BTreeMap::new(),
        capacity: Capacity {
            replicas_max: Some(9),
            disk_bytes: None,
        },
        fenced: true,
        shutting_down: false,
        cordoned: true,
        draining: false,
        registered_at: LogTime::from_millis(1),
        modified_at: LogTime::from_millis(2),
        revision: REVISION,
    }
}

fn partition_from(value: Vec<u8>) -> Result<Partition, CorruptRow> {
    let (topic, index) = (topic_id(), PartitionIndex::new(258));
    Partition::decode(&keys().partition(topic, index), topic, index, &record(value))
}

#[test]
fn the_bytes_of_version_1_stay_what_they_are() {
    // Specified in docs/formats/metadata.md. Never change these: a new version gets lines of its own.
    let key = keys().partition(topic_id(), PartitionIndex::new(258));
    assert_eq!(
        hex(key.as_bytes()),
        "6d6574612f702f000102030405060708090a0b0c0d0e0f00000102"
    );
    let bytes = "01000303010205000000000305ac020080d095ffbc3109";
    assert_eq!(hex(&partition().encode()), bytes);

    let name = TopicName::new("a.b").unwrap();
    assert_eq!(Keys::under("a/").unwrap().topic(&name).as_bytes(), b"a/t/a.b");
    assert_eq!(keys().topic(&name).as_bytes(), b"meta/t/a.b");
    assert_eq!(keys().name(&name).unwrap().as_bytes(), b"meta/n/a_b");
    let bytes = concat!(
        "0100",
        "10000102030405060708090a0b0c0d0e0f",
        "ac02",
        "03",
        "01016b0176",
        "80d095ffbc31",
        "81d095ffbc31",
        "00"
    );
    assert_eq!(hex(&topic().encode()), bytes);

    assert_eq!(
        hex(keys().broker(BrokerId::new(7)).as_bytes()),
        "6d6574612f622f0000000000000007"
    );
    let rest = concat!(
        "1000000000000000000000000000000001",
        "01",
        "09504c41494e54455854",
        "0168",
        "8447",
        "010172",
        "00",
        "010900",
        "05",
        "01",
        "02"
    );
    assert_eq!(
        hex(&broker(REVISION).encode(EpochOf::Begins)),
        format!("010000{rest}")
    );
    assert_eq!(
        hex(&broker(Revision::new(5)).encode(EpochOf::Continues)),
        format!("01000105{rest}")
    );
}

#[test]
fn a_partition_of_three_replicas_takes_a_few_dozen_bytes_with_its_key() {
    let mut fresh = partition();
    (fresh.leader_epoch, fresh.partition_epoch) = (LeaderEpoch::FIRST, PartitionEpoch::FIRST);
    let key = keys().partition(fresh.topic, fresh.index);
    assert_eq!((key.len(), fresh.encode().len()), (5 + 22, 22), "behind `meta/`");
}

#[test]
fn a_brokers_epoch_is_its_own_revision_when_it_begins_and_kept_when_it_goes_on() {
    let key = keys().broker(BrokerId::new(7));
    let decode = |value| Broker::decode(&key, BrokerId::new(7), &record(value)).unwrap();
    let begun = broker(REVISION);
    assert_eq!(decode(begun.encode(EpochOf::Begins)), begun);
    let going_on = broker(Revision::new(5));
    assert_eq!(decode(going_on.encode(EpochOf::Continues)), going_on);
}

#[test]
fn a_topic_comes_back() {
    let name = TopicName::new("a.b").unwrap();
    let row = record(topic().encode());
    assert_eq!(Topic::decode(&keys().topic(&name), name, &row).unwrap(), topic());
}

#[test]
fn a_set_or_a_leader_outside_the_replicas_is_a_corrupt_row() {
    let good = partition().encode();
    assert_eq!(partition_from(good.clone()).unwrap(), partition());
    for (at, value, field, position) in [(6, 0x0d, "isr", 3), (9, 0x08, "adding", 3), (11, 4, "leader", 3)] {
        let mut bad = good.clone();
        bad[at] = value;
        let reason = CorruptReason::Position {
            field,
            position,
            replicas: 3,
        };
        let error = partition_from(bad).unwrap_err();
        assert_eq!(error.reason, reason, "byte {at}");
    }
}

#[test]
fn a_broker_with_unknown_flags_is_a_corrupt_row() {
    // Found by damaging rows: the flags were dropped, and the row was written without them.
    let mut bytes = broker(REVISION).encode(EpochOf::Begins);
    let at = bytes.len() - 3;
    bytes[at] |= 0x10;
    let key = keys().broker(BrokerId::new(7));
    let error = Broker::decode(&key, BrokerId::new(7), &record(bytes)).unwrap_err();
    assert_eq!(error.reason, CorruptReason::Flags(0x15));
}

#[test]
fn replicas_that_are_too_many_or_not_all_different_are_a_corrupt_row() {
    // Found by damaging rows: two positions of one broker, and a set that names the one of them reads as another row
    // than is written for it.
    let twice = Partition {
        replicas: brokers(&[3, 1, 3]),
        leader: None,
        ..partition()
    };
    let many = Partition {
        replicas: brokers(&(1..=33).collect::<Vec<_>>()),
        ..partition()
    };
    for (row, count) in [(twice, 3), (many, 33)] {
        let reason = CorruptReason::Replicas { count, max: 32 };
        assert_eq!(partition_from(row.encode()).unwrap_err().reason, reason);
    }
}

proptest! {
    #[test]
    fn a_partition_comes_back_as_it_was(
        replicas in prop::collection::btree_set(any::<u64>(), 1..33),
        masks: [u32; 5],
        leader: Option<u8>,
        leader_epoch: u64,
        partition_epoch: u64,
        recovering: bool,
        created_at in 0..u64::MAX / 2,
        modified_after in 0..u64::MAX / 2,
    ) {
        let replicas = brokers(&replicas.into_iter().collect::<Vec<_>>());
        let set = |mask: u32| {
            let members = (0..).zip(&replicas).filter(|(at, _)| mask & (1 << at) != 0);
            members.map(|(_, replica)| *replica).collect::<Vec<_>>()
        };
        let row = Partition {
            isr: set(masks[0]),
            eligible_leaders: set(masks[1]),
            last_known_leaders: set(masks[2]),
            adding: set(masks[3]),
            removing: set(masks[4]),
            leader: leader.map(|at| replicas[usize::from(at) % replicas.len()]),
            leader_epoch: LeaderEpoch::new(leader_epoch),
            partition_epoch: PartitionEpoch::new(partition_epoch),
            recovery: if recovering { Recovery::Recovering } else { Recovery::Recovered },
            created_at: LogTime::from_millis(created_at),
            modified_at: LogTime::from_millis(created_at + modified_after),
            replicas,
            ..partition()
        };
        prop_assert_eq!(partition_from(row.encode()).unwrap(), row);
    }

    #[test]
    fn bytes_that_are_no_row_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let name = TopicName::new("t").unwrap();
        let key = Key::from("x");
        let row = record(bytes.clone());
        if let Ok(row) = partition_from(bytes) {
            prop_assert!(row.isr.iter().all(|member| row.replicas.contains(member)));
        }
        drop(Topic::decode(&key, name, &row));
        drop(Broker::decode(&key, BrokerId::new(1), &row));
    }

    #[test]
    fn a_damaged_row_is_refused_or_has_one_form(
        at: prop::sample::Index, bits in 1u8..=255, cut: Option<prop::sample::Index>, more: Vec<u8>,
    ) {
        let damage = |mut bytes: Vec<u8>| {
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            bytes.extend(&more);
            bytes
        };
        // Numbers may be longer than they need to be, settings out of order or twice, a time beyond all times: what is
        // written for them is the one form, and never longer.
        let bytes = damage(partition().encode());
        if let Ok(row) = partition_from(bytes.clone()) {
            let written = row.encode();
            prop_assert!(written.len() <= bytes.len(), "{:?} is written as {:?}", bytes, written);
            prop_assert_eq!(partition_from(written).unwrap(), row);
        }
        let name = TopicName::new("a.b").unwrap();
        let key = keys().topic(&name);
        let bytes = damage(topic().encode());
        if let Ok(row) = Topic::decode(&key, name.clone(), &record(bytes.clone())) {
            let written = row.encode();
            prop_assert!(written.len() <= bytes.len(), "{:?} is written as {:?}", bytes, written);
            prop_assert_eq!(Topic::decode(&key, name, &record(written)).unwrap(), row);
        }
        let key = keys().broker(BrokerId::new(7));
        let bytes = damage(broker(Revision::new(5)).encode(EpochOf::Continues));
        if let Ok(row) = Broker::decode(&key, BrokerId::new(7), &record(bytes)) {
            let written = record(row.encode(EpochOf::Continues));
            prop_assert_eq!(Broker::decode(&key, BrokerId::new(7), &written).unwrap(), row);
        }
    }
}
