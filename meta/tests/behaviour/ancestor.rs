//! The defects of the system that this one descends from, by the letters of their inventory. Each test tells what
//! went wrong there, and shows that it cannot here.

use quorate_kv::model::{Consistency, LogTime};
use quorate_meta::{
    Assignment, CreateTopic, Creation, DeleteTopic, Epochs, IsrUpdate, LeaderEpoch, LeaderUpdate,
    NewPartition, Reason, Registration, Replicas,
};

use crate::support::*;

/// `apply` asked each node's clock for registration and modification times, so that nodes held different rows.
#[tokio::test]
async fn ancestor_defect_a_replicas_diverge_because_apply_reads_the_clock() {
    let (one, meta) = cluster(3).await;
    let created = meta
        .create_topic(CreateTopic::new("t", 4, 3).unwrap())
        .await
        .unwrap();
    let seen = &created.partitions[0];
    meta.update_leader(LeaderUpdate::new(seen, seen.isr[1]))
        .await
        .unwrap();

    let other = TestStore::new();
    other.set_clock(9_999_999_999_999);
    for txn in one.txns() {
        other.apply(txn).unwrap();
    }

    assert_eq!(one.image(), other.image());
    let proposed_at = LogTime::from_millis(1_700_000_000_000);
    assert!(
        other
            .image()
            .partitions
            .values()
            .all(|p| p.created_at == proposed_at)
    );
    assert!(
        other
            .image()
            .brokers
            .values()
            .all(|b| b.registered_at == proposed_at)
    );
}

/// A broker that restarted was refused because its id existed; there was no incarnation and no epoch.
#[tokio::test]
async fn ancestor_defect_b_a_restarted_broker_cannot_register_again() {
    let (_, meta) = cluster(2).await;
    let first = meta.broker(id(1)).await.unwrap().unwrap();

    let mut again = registration(1);
    let refused = meta.register_broker(again.clone()).await.unwrap_err();
    let (incarnation, epoch) = (first.incarnation, first.epoch);
    assert_eq!(
        refused.refusals()[0].reason,
        Reason::DuplicateRegistration { incarnation, epoch }
    );
    assert!(refused.is_retryable() && !refused.may_have_committed());

    meta.fence_broker(id(1)).await.unwrap();
    let restarted = meta.register_broker(again.clone()).await.unwrap();
    assert_eq!(restarted.registration, Registration::Restarted);
    assert!(restarted.broker.epoch > first.epoch);
    assert_eq!(restarted.broker.epoch.revision(), restarted.broker.revision);

    // The answer was lost, and the process asks again: the same epoch, and nothing is written.
    let repeated = meta.register_broker(again.clone()).await.unwrap();
    assert_eq!(repeated.registration, Registration::Unchanged);
    assert_eq!(repeated.broker, restarted.broker);

    again = again.rack("r2");
    let amended = meta.register_broker(again).await.unwrap();
    assert_eq!(amended.registration, Registration::Amended);
    assert_eq!(amended.broker.epoch, restarted.broker.epoch);
}

/// After a lost acknowledgement the retry said "already exists" for a create that had succeeded.
#[tokio::test]
async fn ancestor_defect_c_a_retried_create_fails_although_the_first_attempt_succeeded() {
    let (store, meta) = cluster(3).await;
    let create = CreateTopic::new("t", 3, 2).unwrap();

    store.lose_answers(1);
    let lost = meta.create_topic(create.clone()).await.unwrap_err();
    assert!(lost.may_have_committed() && lost.is_retryable());
    let written = store.txn_count();
    let again = meta.create_topic(create.clone()).await.unwrap();

    assert_eq!(again.creation, Creation::Existed);
    assert_eq!(again.topic.id, create.id);
    assert_eq!(again.partitions.len(), 3);
    assert_eq!(store.txn_count(), written, "the retry writes nothing");

    let other = meta
        .create_topic(CreateTopic::new("t", 3, 2).unwrap())
        .await
        .unwrap_err();
    assert_eq!(other.refusals()[0].reason, Reason::TopicExists { id: create.id });
}

/// A duplicate inside one batch went unnoticed, and the last one won.
#[tokio::test]
async fn ancestor_defect_d_a_duplicate_inside_a_batch_overwrites_the_first() {
    let (store, meta) = cluster(3).await;
    topic_on(&meta, "t", ids([1, 2])).await;
    let before = store.image();

    let new = |i, replicas| NewPartition::new("t", index(i), Assignment::new(replicas)).unwrap();
    let batch = vec![new(1, ids([1, 2])), new(2, ids([2, 3])), new(1, ids([3, 1]))];
    let refused = meta.create_partitions(batch).await.unwrap_err();
    assert_eq!(refused.refusals().len(), 1);
    assert_eq!(refused.refusals()[0].item.partition(), Some(index(1)));
    assert_eq!(refused.refusals()[0].reason, Reason::Repeated);

    let twice = vec![
        CreateTopic::new("u", 1, 1).unwrap(),
        CreateTopic::new("u", 2, 1).unwrap(),
    ];
    let refused = meta.create_topics(twice).await.unwrap_err();
    assert_eq!(refused.refusals()[0].reason, Reason::Repeated);

    let seen = before.partitions.values().next().unwrap();
    let twice = vec![LeaderUpdate::new(seen, id(2)), LeaderUpdate::new(seen, id(1))];
    let refused = meta.update_leaders(twice).await.unwrap_err();
    assert_eq!(refused.refusals()[0].reason, Reason::Repeated);

    let refused = meta
        .register_brokers(vec![registration(8), registration(8)])
        .await
        .unwrap_err();
    assert_eq!(refused.refusals()[0].reason, Reason::Repeated);
    assert_eq!(store.image(), before);
}

/// Partitions of unknown topics, replicas on unknown brokers, an ISR or leader outside the replicas, repeated
/// replicas, a wrong replication factor, an index beyond the topic: all were accepted.
#[tokio::test]
async fn ancestor_defect_e_references_are_not_checked() {
    use Reason as R;
    let (store, meta) = cluster(4).await;
    meta.cordon_broker(id(4), true).await.unwrap();
    topic_on(&meta, "t", ids([1, 2])).await;
    let before = store.image();

    let on = |replicas: Vec<_>| Assignment::new(replicas);
    let cases = [
        ("unknown topic", "unknown", 0, on(ids([1, 2])), R::UnknownTopic),
        (
            "existing partition",
            "t",
            0,
            on(ids([1, 2])),
            R::PartitionExists { present: 1 },
        ),
        (
            "index beyond the next",
            "t",
            2,
            on(ids([1, 2])),
            R::Gap { missing: index(1) },
        ),
        ("no replicas", "t", 1, on(vec![]), R::NoReplicas),
        (
            "repeated replica",
            "t",
            1,
            on(ids([1, 1])),
            R::RepeatedReplica { broker: id(1) },
        ),
        (
            "unknown broker",
            "t",
            1,
            on(ids([1, 9])),
            R::UnknownBroker { broker: id(9) },
        ),
        (
            "cordoned broker",
            "t",
            1,
            on(ids([1, 4])),
            R::Cordoned { broker: id(4) },
        ),
        (
            "another replication factor",
            "t",
            1,
            on(ids([1, 2, 3])),
            R::ReplicationFactorDiffers {
                asked: 3,
                expected: 2,
            },
        ),
        ("empty ISR", "t", 1, on(ids([1, 2])).isr(ids([])), R::EmptyIsr),
        (
            "ISR outside",
            "t",
            1,
            on(ids([1, 2])).isr(ids([1, 3])),
            R::NotReplica { broker: id(3) },
        ),
        (
            "ISR repeats",
            "t",
            1,
            on(ids([1, 2])).isr(ids([2, 2])),
            R::RepeatedIsrMember { broker: id(2) },
        ),
        (
            "leader outside",
            "t",
            1,
            on(ids([1, 2])).leader(id(3)),
            R::NotReplica { broker: id(3) },
        ),
        (
            "leader not in sync",
            "t",
            1,
            on(ids([1, 2])).isr(ids([1])).leader(id(2)),
            R::LeaderNotInIsr { leader: id(2) },
        ),
    ];
    for (case, topic, at, assignment, reason) in cases {
        let new = NewPartition::new(name(topic), index(at), assignment).unwrap();
        let refused = meta.create_partition(new).await.unwrap_err();
        let reasons: Vec<_> = refused.refusals().iter().map(|r| r.reason.clone()).collect();
        assert_eq!(reasons, [reason], "{case}");
        assert_eq!(refused.refusals()[0].item.partition(), Some(index(at)), "{case}");
    }
    assert_eq!(store.image(), before);
}

/// Any writer could overwrite leader and ISR; epochs were the caller's and could go backwards.
#[tokio::test]
async fn ancestor_defect_f_any_writer_overwrites_the_leader_and_epochs_go_backwards() {
    let (_, meta) = cluster(3).await;
    let seen = topic_on(&meta, "t", ids([1, 2, 3])).await;

    let winner = meta.update_leader(LeaderUpdate::new(&seen, id(2))).await.unwrap();
    assert_eq!(winner.partition.leader_epoch, LeaderEpoch::new(2));
    let loser = meta
        .update_leader(LeaderUpdate::new(&seen, id(3)))
        .await
        .unwrap_err();

    let present = Epochs::of(&winner.partition);
    let asked = Epochs::of(&seen);
    assert_eq!(
        loser.refusals()[0].reason,
        Reason::FencedLeaderEpoch { asked, present }
    );
    assert!(!loser.is_retryable());
    assert_eq!(now(&meta, &seen).await, winner.partition);

    let shrunk = meta
        .update_isr(IsrUpdate::new(&winner.partition, ids([2])))
        .await
        .unwrap();
    let stale = meta
        .update_isr(IsrUpdate::new(&winner.partition, ids([2, 3])))
        .await
        .unwrap_err();
    let (asked, present) = (present, Epochs::of(&shrunk.partition));
    assert_eq!(
        stale.refusals()[0].reason,
        Reason::StalePartitionEpoch { asked, present }
    );
}

/// Unregistering left leaders, replicas and ISRs that pointed nowhere; a topic that was deleted and created
/// again could not be told from the old one.
#[tokio::test]
async fn ancestor_defect_g_dangling_references_and_topics_without_identity() {
    let (store, meta) = cluster(3).await;
    let seen = topic_on(&meta, "t", ids([1, 2])).await;

    let refused = meta
        .unregister_broker(id(1), Replicas::MustBeGone)
        .await
        .unwrap_err();
    assert_eq!(refused.refusals()[0].reason, Reason::HasReplicas { count: 1 });
    assert!(
        !meta.broker(id(1)).await.unwrap().unwrap().fenced,
        "a refusal changes nothing"
    );

    meta.unregister_broker(id(1), Replicas::MayDangle).await.unwrap();
    let left = now(&meta, &seen).await;
    assert_eq!((left.leader, left.isr), (Some(id(2)), ids([2])));
    meta.unregister_broker(id(3), Replicas::MustBeGone).await.unwrap();
    assert_eq!(meta.brokers().await.unwrap().len(), 1);

    let old = meta.delete_topic(DeleteTopic::new("t").unwrap()).await.unwrap();
    assert!(store.image().partitions.is_empty());
    let new = topic_on(&meta, "t", ids([2])).await;
    assert_ne!(new.topic, old.id);
    let stale = meta
        .update_isr(IsrUpdate::new(&seen, ids([2])))
        .await
        .unwrap_err();
    assert_eq!(stale.refusals()[0].reason, Reason::UnknownTopicId);
    let wrong = meta
        .delete_topic(DeleteTopic::new("t").unwrap().id(old.id))
        .await
        .unwrap_err();
    let (asked, present) = (old.id, new.topic);
    assert_eq!(
        wrong.refusals()[0].reason,
        Reason::InconsistentTopicId { asked, present }
    );
}

/// A topic and its partitions were two proposals: a crash in between left a topic without partitions.
#[tokio::test]
async fn ancestor_defect_h_a_topic_without_its_partitions() {
    let (store, meta) = cluster(3).await;
    let before = store.txn_count();
    let created = meta
        .create_topic(CreateTopic::new("t", 50, 3).unwrap())
        .await
        .unwrap();
    assert_eq!(
        store.txn_count() - before,
        1,
        "one transaction, so no crash can come in between"
    );

    let revisions = created.partitions.iter().map(|p| p.revision);
    assert!(
        revisions
            .chain([created.topic.revision])
            .all(|r| r == store.revision())
    );
    assert!(
        created
            .partitions
            .iter()
            .all(|p| p.created_at == created.topic.created_at)
    );
    let described = meta.describe(&name("t")).await.unwrap().unwrap();
    assert_eq!(described, (created.topic, created.partitions));
}

/// Heartbeats were log entries; listing one topic's partitions walked those of all topics.
#[tokio::test]
async fn ancestor_defect_i_heartbeats_are_entries_and_a_listing_walks_everything() {
    let (store, meta) = cluster(3).await;
    meta.create_topic(CreateTopic::new("large", 500, 1).unwrap())
        .await
        .unwrap();
    let small = topic_on(&meta, "small", ids([1])).await;

    let mut alive = registration(1);
    alive.incarnation = meta.broker(id(1)).await.unwrap().unwrap().incarnation;
    let before = store.txn_count();
    for _ in 0..10 {
        meta.register_broker(alive.clone()).await.unwrap();
    }
    assert_eq!(store.txn_count(), before, "to say the same again writes nothing");

    let before = store.records_read();
    assert_eq!(meta.partitions(small.topic).await.unwrap().len(), 1);
    assert_eq!(store.records_read() - before, 1);
}

/// Every node answered from its own, possibly old state.
#[tokio::test]
async fn ancestor_defect_j_reads_are_stale() {
    let (store, meta) = cluster(1).await;
    topic_on(&meta, "t", ids([1])).await;
    meta.topics().await.unwrap();
    meta.brokers().await.unwrap();
    let fresh = |c: &Consistency| matches!(c, Consistency::Linearizable | Consistency::At(_));
    assert!(store.consistencies().iter().all(fresh));

    let lax = Consistency::Stale {
        min_revision: None,
        max_lag: None,
    };
    meta.clone().reading(lax).topics().await.unwrap();
    assert_eq!(
        store.consistencies().last(),
        Some(&lax),
        "only who says so reads stale"
    );
}

/// The motivating bug: three creates were three proposals, a follower that had not applied yet timed out, and
/// update_leader and update_isr failed four times in ten.
#[tokio::test]
async fn ancestor_defect_k_sequential_creates_and_updates_that_time_out() {
    let (store, meta) = cluster(3).await;
    let seen = topic_on(&meta, "t", ids([1, 2, 3])).await;
    let before = store.txn_count();
    let new = |i| NewPartition::new("t", index(i), Assignment::new(ids([1, 2, 3]))).unwrap();
    let created = meta.create_partitions((1..4).map(new)).await.unwrap();
    assert_eq!(store.txn_count() - before, 1, "three partitions, one proposal");
    assert_eq!(created.topics[0].partitions, 4);

    let mut partition = seen;
    for round in 0..100 {
        let leader = id(1 + (round + 1) % 3);
        partition = meta
            .update_leader(LeaderUpdate::new(&partition, leader))
            .await
            .unwrap()
            .partition;
        assert_eq!(
            now(&meta, &partition).await,
            partition,
            "who reads after a write sees it"
        );
        let isr = if round % 2 == 0 {
            vec![leader]
        } else {
            ids([1, 2, 3])
        };
        partition = meta
            .update_isr(IsrUpdate::new(&partition, isr))
            .await
            .unwrap()
            .partition;
        partition = meta
            .update_isr(IsrUpdate::new(&partition, ids([1, 2, 3])))
            .await
            .unwrap()
            .partition;
    }
    assert_eq!(partition.leader_epoch, LeaderEpoch::new(101));
}
