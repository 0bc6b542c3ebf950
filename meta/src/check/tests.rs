//! The checker is itself checked: planted violations, one at a time, must be found.

use quorate_kv::model::{LogTime, Revision};
use uuid::Uuid;

use super::*;
use crate::ids::Incarnation;
use crate::rows::{Broker, Capacity, Topic};
use crate::{BrokerEpoch, PartitionEpoch};

/// A named way to break an image.
type Plant = (&'static str, fn(&mut Image));

fn id(number: u64) -> BrokerId {
    BrokerId::new(number)
}

/// Three brokers, and a topic of one partition on all of them.
fn image() -> Image {
    let mut image = Image::new(Revision::new(5));
    for number in 1..=3 {
        let broker = Broker {
            id: id(number),
            epoch: BrokerEpoch::new(Revision::new(2)),
            incarnation: Incarnation::from_uuid(Uuid::from_u128(number.into())),
            endpoints: vec!["h:1".parse().unwrap()],
            rack: None,
            labels: BTreeMap::new(),
            capacity: Capacity::default(),
            fenced: false,
            shutting_down: false,
            cordoned: false,
            draining: false,
            registered_at: LogTime::ZERO,
            modified_at: LogTime::ZERO,
            revision: Revision::new(2),
        };
        image.brokers.insert(broker.id, broker);
    }
    let name = TopicName::new("a.b").unwrap();
    let topic = Topic {
        id: TopicId::from_uuid(Uuid::from_u128(9)),
        name: name.clone(),
        partitions: 1,
        replication_factor: 3,
        config: BTreeMap::new(),
        created_at: LogTime::ZERO,
        modified_at: LogTime::ZERO,
        deleting: false,
        revision: Revision::new(3),
    };
    image.names.insert("a_b".to_owned(), name.clone());
    let partition = Partition {
        topic: topic.id,
        index: PartitionIndex::FIRST,
        replicas: vec![id(1), id(2), id(3)],
        isr: vec![id(1), id(2)],
        eligible_leaders: Vec::new(),
        last_known_leaders: Vec::new(),
        leader: Some(id(1)),
        leader_epoch: LeaderEpoch::FIRST,
        partition_epoch: PartitionEpoch::FIRST,
        recovery: Recovery::Recovered,
        adding: Vec::new(),
        removing: Vec::new(),
        created_at: LogTime::ZERO,
        modified_at: LogTime::ZERO,
        revision: Revision::new(3),
    };
    image.partitions.insert((topic.id, partition.index), partition);
    image.topics.insert(name, topic);
    image
}

fn partition(image: &mut Image) -> &mut Partition {
    image.partitions.values_mut().next().unwrap()
}

#[test]
fn a_whole_image_has_no_violation() {
    assert_eq!(check(&image(), Sweeps::Complete), []);
    assert_eq!(check_step(&image(), &image()), []);
}

#[test]
fn every_planted_violation_of_an_image_is_found() {
    let plants: Vec<Plant> = vec![
        ("a topic without its partitions", |i| i.partitions.clear()),
        ("a batch in part", |i| {
            i.topics.values_mut().next().unwrap().partitions = 2
        }),
        ("partitions without a topic", |i| {
            i.topics.clear();
            i.names.clear();
        }),
        ("no row for the name", |i| i.names.clear()),
        ("a row for a name that is gone", |i| {
            i.names.insert("x_y".to_owned(), TopicName::new("x.y").unwrap());
        }),
        ("two topics with one id", |i| {
            let topic = i.topics.values().next().unwrap().clone();
            let name = TopicName::new("other").unwrap();
            i.topics.insert(name.clone(), Topic { name, ..topic });
        }),
        ("no replicas", |i| partition(i).replicas.clear()),
        ("a repeated replica", |i| partition(i).replicas[1] = id(1)),
        ("another replication factor", |i| {
            partition(i).replicas.truncate(2)
        }),
        ("a leader outside the ISR", |i| partition(i).leader = Some(id(3))),
        ("an empty ISR", |i| {
            partition(i).isr.clear();
            partition(i).leader = None;
        }),
        ("an ISR outside the replicas", |i| partition(i).isr.push(id(4))),
        ("an unknown member", |i| drop(i.brokers.remove(&id(2)))),
        ("a fenced member", |i| {
            i.brokers.get_mut(&id(2)).unwrap().fenced = true
        }),
        ("a member that shuts down", |i| {
            i.brokers.get_mut(&id(2)).unwrap().shutting_down = true
        }),
        ("company for a recovering leader", |i| {
            partition(i).recovery = Recovery::Recovering
        }),
        ("an epoch from the future", |i| {
            i.brokers.get_mut(&id(1)).unwrap().epoch = BrokerEpoch::new(Revision::new(9));
        }),
    ];
    for (name, plant) in plants {
        let mut image = image();
        plant(&mut image);
        assert_ne!(check(&image, Sweeps::Complete), [], "{name}");
    }
}

#[test]
fn the_last_in_sync_may_wait_fenced_without_leading_and_a_pending_sweep_excuses_more() {
    let mut image = image();
    image.brokers.get_mut(&id(1)).unwrap().fenced = true;
    assert_ne!(check(&image, Sweeps::Complete), []);
    assert_eq!(check(&image, Sweeps::MayBePending), []);
    partition(&mut image).isr = vec![id(1)];
    partition(&mut image).leader = None;
    assert_eq!(check(&image, Sweeps::Complete), []);
}

#[test]
fn every_planted_violation_of_a_step_is_found() {
    let plants: Vec<Plant> = vec![
        ("a change without an epoch", |i| partition(i).isr = vec![id(1)]),
        ("an epoch without a change", |i| {
            partition(i).partition_epoch = PartitionEpoch::new(2)
        }),
        ("a partition epoch that leaps", |i| {
            partition(i).isr = vec![id(1)];
            partition(i).partition_epoch = PartitionEpoch::new(3);
        }),
        ("a partition epoch that falls", |i| {
            partition(i).partition_epoch = PartitionEpoch::new(0)
        }),
        ("a leader without an epoch", |i| {
            partition(i).leader = Some(id(2));
            partition(i).partition_epoch = PartitionEpoch::new(2);
        }),
        ("a leader epoch for an ISR", |i| {
            partition(i).isr = vec![id(1)];
            partition(i).partition_epoch = PartitionEpoch::new(2);
            partition(i).leader_epoch = LeaderEpoch::new(2);
        }),
        ("a lost replica without a leader epoch", |i| {
            partition(i).replicas.pop();
            partition(i).partition_epoch = PartitionEpoch::new(2);
        }),
        ("a new incarnation in an old epoch", |i| {
            let broker = i.brokers.get_mut(&id(3)).unwrap();
            broker.incarnation = Incarnation::from_uuid(Uuid::from_u128(77));
        }),
        ("an epoch that falls", |i| {
            i.brokers.get_mut(&id(3)).unwrap().epoch = BrokerEpoch::new(Revision::new(1));
        }),
    ];
    for (name, plant) in plants {
        let mut after = image();
        plant(&mut after);
        assert_ne!(check_step(&image(), &after), [], "{name}");
    }
    let mut before = image();
    before.partitions.clear();
    let mut after = image();
    partition(&mut after).leader_epoch = LeaderEpoch::new(2);
    assert_ne!(
        check_step(&before, &after),
        [],
        "a new partition with an old epoch"
    );
}
