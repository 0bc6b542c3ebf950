//! Creating, growing and deleting topics.

use std::collections::BTreeMap;

use quorate_kv::model::{Limits, LogTime};
use quorate_meta::{
    Assignment, BrokerId, CreateTopic, DeleteTopic, Error, GrowTopic, Ineligible, LeaderEpoch, NewPartition,
    Partition, PartitionEpoch, Reason, Recovery, Size, TopicId,
};

use crate::support::*;

#[tokio::test]
async fn a_new_partition_begins_with_epochs_of_one_and_all_active_replicas_in_sync() {
    let (_, meta) = cluster(3).await;
    meta.fence_broker(id(1)).await.unwrap();
    let partition = topic_on(&meta, "t", ids([1, 2, 3])).await;
    assert_eq!(partition.leader_epoch, LeaderEpoch::FIRST);
    assert_eq!(partition.partition_epoch, PartitionEpoch::FIRST);
    assert_eq!(
        partition.isr,
        ids([2, 3]),
        "the fenced one is a replica, but not in sync"
    );
    assert_eq!(partition.leader, Some(id(2)));
    assert_eq!(partition.recovery, Recovery::Recovered);
}

#[tokio::test]
async fn a_first_leader_and_isr_may_be_given() {
    let (_, meta) = cluster(3).await;
    let assignment = Assignment::new(ids([1, 2, 3])).isr(ids([3, 2])).leader(id(3));
    let created = meta
        .create_topic(CreateTopic::manual("t", [assignment]).unwrap())
        .await
        .unwrap();
    assert_eq!(
        created.partitions[0].isr,
        ids([2, 3]),
        "in the order of the replicas"
    );
    assert_eq!(created.partitions[0].leader, Some(id(3)));
}

#[tokio::test]
async fn a_partition_that_nobody_could_lead_is_refused() {
    let (_, meta) = cluster(2).await;
    meta.fence_broker(id(1)).await.unwrap();
    let create = CreateTopic::manual("t", [Assignment::new(ids([1]))]).unwrap();
    let refused = meta.create_topic(create).await.unwrap_err();
    assert_eq!(refused.refusals()[0].reason, Reason::NoActiveReplica);
    assert!(refused.is_retryable(), "the broker may come back");

    let given = CreateTopic::manual("t", [Assignment::new(ids([1, 2])).isr(ids([1, 2]))]).unwrap();
    let refused = meta.create_topic(given).await.unwrap_err();
    let (broker, why) = (id(1), Ineligible::Fenced);
    assert_eq!(refused.refusals()[0].reason, Reason::Ineligible { broker, why });
}

#[tokio::test]
async fn automatic_placement_spreads_replicas_and_leaders_evenly_also_when_a_topic_grows() {
    let (_, meta) = cluster(5).await;
    meta.create_topic(CreateTopic::new("t", 7, 3).unwrap())
        .await
        .unwrap();
    for total in [8, 11, 30] {
        meta.grow_topics(vec![GrowTopic::new("t", total).unwrap()])
            .await
            .unwrap();
        let (topic, partitions) = meta.describe(&name("t")).await.unwrap().unwrap();
        assert_eq!((topic.partitions, partitions.len()), (total, total as usize));
        let spread = |held: &dyn Fn(&Partition, BrokerId) -> bool| {
            let counts = (1..=5).map(|b| partitions.iter().filter(|p| held(p, id(b))).count());
            counts.clone().max().unwrap() - counts.min().unwrap()
        };
        assert!(spread(&|p, b| p.replicas.contains(&b)) <= 1, "{partitions:#?}");
        assert!(spread(&|p, b| p.leader == Some(b)) <= 1, "{partitions:#?}");
    }
}

#[tokio::test]
async fn placement_leaves_out_brokers_that_take_no_replicas() {
    let (_, meta) = cluster(5).await;
    meta.fence_broker(id(1)).await.unwrap();
    meta.cordon_broker(id(2), true).await.unwrap();
    let created = meta
        .create_topic(CreateTopic::new("t", 20, 3).unwrap())
        .await
        .unwrap();
    let sorted = |p: &Partition| {
        let mut replicas = p.replicas.clone();
        replicas.sort();
        replicas
    };
    assert!(created.partitions.iter().all(|p| sorted(p) == ids([3, 4, 5])));
    let refused = meta
        .create_topic(CreateTopic::new("u", 1, 4).unwrap())
        .await
        .unwrap_err();
    assert_eq!(
        refused.refusals()[0].reason,
        Reason::ReplicationFactor { asked: 4, limit: 3 }
    );
}

#[tokio::test]
async fn a_refused_batch_names_every_offender_and_creates_nothing() {
    let (store, meta) = cluster(2).await;
    topic_on(&meta, "t", ids([1, 2])).await;
    let before = store.image();
    let new = |topic: &str, i, replicas| {
        NewPartition::new(name(topic), index(i), Assignment::new(replicas)).unwrap()
    };
    let batch = vec![
        new("t", 1, ids([1, 2])),
        new("t", 2, ids([1, 7])),
        new("t", 4, ids([1, 1])),
        new("v", 0, ids([1])),
        new("w", 0, ids([1])),
    ];
    let refused = meta.create_partitions(batch).await.unwrap_err();
    let told: Vec<String> = refused.refusals().iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "t/2: broker 7 is not registered",
            "t/4: partition 3 is missing: indexes continue without gaps",
            "t/4: the replicas have broker 1 more than once",
            "v/0: there is no such topic",
            "w/0: there is no such topic",
        ]
    );
    assert_eq!(store.image(), before);
}

#[tokio::test]
async fn a_batch_of_topics_is_created_in_one_transaction_or_not_at_all() {
    let (store, meta) = cluster(3).await;
    let before = store.txn_count();
    let topics = ["a", "b", "c"].map(|t| CreateTopic::new(name(t), 4, 2).unwrap());
    let created = meta.create_topics(topics.to_vec()).await.unwrap();
    assert_eq!(store.txn_count() - before, 1);
    assert!(created.iter().all(|c| c.topic.revision == store.revision()));

    let image = store.image();
    let topics = vec![
        CreateTopic::new("d", 1, 1).unwrap(),
        CreateTopic::new("a", 1, 1).unwrap(),
    ];
    meta.create_topics(topics).await.unwrap_err();
    assert_eq!(store.image(), image);
}

#[tokio::test]
async fn names_that_differ_in_dots_and_underscores_exclude_each_other_until_deleted() {
    let (_, meta) = cluster(1).await;
    topic_on(&meta, "a.b", ids([1])).await;
    let refused = meta
        .create_topic(CreateTopic::new("a_b", 1, 1).unwrap())
        .await
        .unwrap_err();
    assert_eq!(
        refused.refusals()[0].reason,
        Reason::NameCollides { with: name("a.b") }
    );
    let both = vec![
        CreateTopic::new("x.y", 1, 1).unwrap(),
        CreateTopic::new("x_y", 1, 1).unwrap(),
    ];
    let refused = meta.create_topics(both).await.unwrap_err();
    assert_eq!(
        refused.refusals()[0].reason,
        Reason::NameCollides { with: name("x.y") }
    );

    meta.delete_topic(DeleteTopic::new("a.b").unwrap()).await.unwrap();
    topic_on(&meta, "a_b", ids([1])).await;
}

#[tokio::test]
async fn an_id_that_another_topic_has_is_refused() {
    let (_, meta) = cluster(1).await;
    let id = TopicId::random();
    meta.create_topic(CreateTopic::new("a", 1, 1).unwrap().id(id))
        .await
        .unwrap();
    let refused = meta
        .create_topic(CreateTopic::new("b", 1, 1).unwrap().id(id))
        .await
        .unwrap_err();
    assert_eq!(refused.refusals()[0].reason, Reason::TopicIdInUse { id });
}

#[tokio::test]
async fn a_topic_has_at_least_one_partition_and_only_grows() {
    let (_, meta) = cluster(1).await;
    for create in [
        CreateTopic::new("t", 0, 1).unwrap(),
        CreateTopic::manual("t", [[0; 0]; 0]).unwrap(),
    ] {
        let refused = meta.create_topic(create).await.unwrap_err();
        assert_eq!(refused.refusals()[0].reason, Reason::NoPartitions);
    }
    meta.create_topic(CreateTopic::new("t", 3, 1).unwrap())
        .await
        .unwrap();
    for asked in [0, 2, 3] {
        let refused = meta
            .grow_topics(vec![GrowTopic::new("t", asked).unwrap()])
            .await
            .unwrap_err();
        assert_eq!(
            refused.refusals()[0].reason,
            Reason::NotAnIncrease { asked, present: 3 }
        );
    }
}

#[tokio::test]
async fn impossible_replication_factors_are_refused_with_the_highest_possible() {
    let (_, meta) = cluster(2).await;
    for asked in [0, 3, 33] {
        let refused = meta
            .create_topic(CreateTopic::new("t", 1, asked).unwrap())
            .await
            .unwrap_err();
        let asked = usize::from(asked);
        assert_eq!(
            refused.refusals()[0].reason,
            Reason::ReplicationFactor { asked, limit: 2 }
        );
        assert_eq!(refused.is_retryable(), asked == 3, "{asked}");
    }
}

#[tokio::test]
async fn settings_are_kept_and_a_deleted_name_begins_anew() {
    let (store, meta) = cluster(1).await;
    let create = CreateTopic::new("t", 2, 1)
        .unwrap()
        .config("retention.ms", "1000");
    meta.create_topic(create).await.unwrap();
    let topic = meta.topic(&name("t")).await.unwrap().unwrap();
    assert_eq!(
        topic.config,
        BTreeMap::from([("retention.ms".to_owned(), "1000".to_owned())])
    );

    let deleted = meta
        .delete_topic(DeleteTopic::new("t").unwrap().id(topic.id))
        .await
        .unwrap();
    assert_eq!(deleted, topic);
    assert_eq!(meta.topic(&name("t")).await.unwrap(), None);
    assert!(meta.partitions(topic.id).await.unwrap().is_empty());
    let gone = meta
        .delete_topic(DeleteTopic::new("t").unwrap())
        .await
        .unwrap_err();
    assert_eq!(gone.refusals()[0].reason, Reason::UnknownTopic);
    assert!(store.image().topics.is_empty());
}

#[tokio::test]
async fn a_request_beyond_the_limits_says_what_was_asked_and_what_is_possible() {
    let (store, meta) = cluster(3).await;
    let before = store.txn_count();
    let limit = Limits::default().txn_ops_max as u64;
    let create = CreateTopic::new("t", u32::MAX, 3).unwrap();
    let Err(Error::TooLarge(large)) = meta.create_topic(create).await else {
        panic!("it does not fit");
    };
    assert_eq!(
        (large.what, large.asked, large.limit),
        (Size::Operations, u64::from(u32::MAX) + 1, limit)
    );

    meta.create_topic(CreateTopic::new("t", 1, 1).unwrap())
        .await
        .unwrap();
    let grown = meta
        .grow_topics(vec![GrowTopic::new("t", u32::MAX).unwrap()])
        .await;
    assert!(matches!(grown, Err(Error::TooLarge(_))));

    let mut small = Limits::default();
    small.txn_bytes_max = 4_000;
    let create = CreateTopic::new("u", 100, 3).unwrap();
    let Err(Error::TooLarge(large)) = meta.clone().with_limits(small).create_topic(create).await else {
        panic!("it does not fit");
    };
    assert_eq!((large.what, large.limit), (Size::Bytes, 4_000));
    assert_eq!(store.txn_count() - before, 1);
}

#[tokio::test]
async fn a_clock_that_goes_backwards_does_not_take_rows_back() {
    let (store, meta) = cluster(2).await;
    let seen = topic_on(&meta, "t", ids([1, 2])).await;
    store.set_clock(5);
    let update = quorate_meta::LeaderUpdate::new(&seen, id(2));
    let updated = meta.update_leader(update).await.unwrap().partition;
    assert_eq!(updated.modified_at, seen.modified_at);
    assert_eq!(now(&meta, &seen).await, updated);
    store.set_clock(1_700_000_000_001);
    let fenced = meta.fence_broker(id(2)).await.unwrap();
    assert_eq!(fenced.broker.modified_at, LogTime::from_millis(1_700_000_000_001));
}
