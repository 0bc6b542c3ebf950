//! Changing leaders and ISRs.

use quorate_meta::{
    BrokerEpoch, Election, Epochs, Ineligible, IsrMember, IsrUpdate, Item, LeaderEpoch, LeaderUpdate,
    Partition, PartitionEpoch, Reason, Recovery, Refusal, TopicId,
};

use crate::support::*;

/// The reasons of a refusal.
fn reasons(refused: &quorate_meta::Error) -> Vec<Reason> {
    refused
        .refusals()
        .iter()
        .map(|refusal| refusal.reason.clone())
        .collect()
}

fn epochs(partition: &Partition) -> (u64, u64) {
    (
        partition.leader_epoch.number(),
        partition.partition_epoch.number(),
    )
}

#[tokio::test]
async fn a_new_leader_raises_both_epochs_and_a_new_isr_only_the_partitions() {
    let (_, meta) = cluster(3).await;
    let p = topic_on(&meta, "t", ids([1, 2, 3])).await;
    assert_eq!(epochs(&p), (1, 1));
    let p = meta
        .update_leader(LeaderUpdate::new(&p, id(3)))
        .await
        .unwrap()
        .partition;
    assert_eq!((epochs(&p), p.leader), ((2, 2), Some(id(3))));
    let p = meta
        .update_isr(IsrUpdate::new(&p, ids([3, 1])))
        .await
        .unwrap()
        .partition;
    assert_eq!((epochs(&p), p.isr.clone()), ((2, 3), ids([1, 3])));
    let p = meta
        .update_isr(IsrUpdate::new(&p, ids([1, 2, 3])))
        .await
        .unwrap()
        .partition;
    assert_eq!(epochs(&p), (2, 4));
}

#[tokio::test]
async fn what_is_so_already_commits_nothing_and_raises_nothing() {
    let (store, meta) = cluster(3).await;
    let p = topic_on(&meta, "t", ids([1, 2, 3])).await;
    let before = store.txn_count();
    let same = meta.update_leader(LeaderUpdate::new(&p, id(1))).await.unwrap();
    assert_eq!((same.partition.clone(), same.changed), (p.clone(), false));
    let same = meta.update_isr(IsrUpdate::new(&p, ids([3, 2, 1]))).await.unwrap();
    assert_eq!((same.partition.clone(), same.changed), (p, false));
    assert_eq!(store.txn_count(), before);
}

#[tokio::test]
async fn a_caller_that_saw_more_than_there_is_hears_that_the_view_is_stale_and_not_that_it_is_fenced() {
    // KAFKA-14154: the wrong answer here left leaders stuck.
    let (_, meta) = cluster(2).await;
    let p = topic_on(&meta, "t", ids([1, 2])).await;
    let present = Epochs::of(&p);
    for asked in [
        Epochs {
            leader: LeaderEpoch::new(2),
            partition: PartitionEpoch::new(1),
        },
        Epochs {
            leader: LeaderEpoch::new(1),
            partition: PartitionEpoch::new(2),
        },
        Epochs {
            leader: LeaderEpoch::new(0),
            partition: PartitionEpoch::new(2),
        },
    ] {
        let refused = meta
            .update_leader(LeaderUpdate::at((p.topic, p.index), id(2), asked))
            .await
            .unwrap_err();
        assert_eq!(reasons(&refused), [Reason::StaleView { asked, present }]);
        assert!(refused.is_retryable());
        let refused = meta
            .update_isr(IsrUpdate::at((p.topic, p.index), ids([1]), asked))
            .await
            .unwrap_err();
        assert_eq!(reasons(&refused), [Reason::StaleView { asked, present }]);
    }
}

#[tokio::test]
async fn unknown_topics_and_partitions_are_told_apart() {
    let (_, meta) = cluster(1).await;
    let p = topic_on(&meta, "t", ids([1])).await;
    let at = Epochs::of(&p);
    let refused = meta
        .update_leader(LeaderUpdate::at((p.topic, index(1)), id(1), at))
        .await
        .unwrap_err();
    assert_eq!(reasons(&refused), [Reason::UnknownPartition]);
    let nowhere = (TopicId::random(), index(0));
    let refused = meta
        .update_leader(LeaderUpdate::at(nowhere, id(1), at))
        .await
        .unwrap_err();
    assert_eq!(reasons(&refused), [Reason::UnknownTopicId]);
}

#[tokio::test]
async fn a_leader_comes_from_the_isr_and_is_active() {
    let (_, meta) = cluster(4).await;
    let p = topic_on(&meta, "t", ids([1, 2, 3])).await;
    let p = meta
        .update_isr(IsrUpdate::new(&p, ids([1, 3])))
        .await
        .unwrap()
        .partition;
    for (leader, expected) in [
        (4, Reason::NotReplica { broker: id(4) }),
        (2, Reason::LeaderNotInIsr { leader: id(2) }),
    ] {
        let refused = meta
            .update_leader(LeaderUpdate::new(&p, id(leader)))
            .await
            .unwrap_err();
        assert_eq!(reasons(&refused), [expected]);
    }
    meta.fence_broker(id(2)).await.unwrap();
    let refused = meta
        .update_leader(LeaderUpdate::new(&p, id(2)).unclean())
        .await
        .unwrap_err();
    assert_eq!(
        reasons(&refused),
        [Reason::Ineligible {
            broker: id(2),
            why: Ineligible::Fenced
        }]
    );
    assert!(refused.is_retryable());
}

#[tokio::test]
async fn an_unclean_election_is_marked_until_the_leader_says_that_it_has_recovered() {
    let (_, meta) = cluster(3).await;
    let p = topic_on(&meta, "t", ids([1, 2, 3])).await;
    let p = meta
        .update_isr(IsrUpdate::new(&p, ids([1])))
        .await
        .unwrap()
        .partition;
    let unclean = LeaderUpdate::new(&p, id(2)).unclean();
    assert_eq!(unclean.election, Election::Unclean);
    let p = meta.update_leader(unclean).await.unwrap().partition;
    assert_eq!(
        (p.leader, p.isr.clone(), p.recovery),
        (Some(id(2)), ids([2]), Recovery::Recovering)
    );

    let refused = meta
        .update_isr(IsrUpdate::new(&p, ids([2, 3])))
        .await
        .unwrap_err();
    assert_eq!(reasons(&refused), [Reason::Recovering]);
    let p = meta
        .update_isr(IsrUpdate::new(&p, ids([2, 3])).recovered())
        .await
        .unwrap()
        .partition;
    assert_eq!((p.isr.clone(), p.recovery), (ids([2, 3]), Recovery::Recovered));
    let mut again = IsrUpdate::new(&p, ids([2]));
    again.recovery = Some(Recovery::Recovering);
    assert_eq!(
        reasons(&meta.update_isr(again).await.unwrap_err()),
        [Reason::AlreadyRecovered]
    );

    // From inside the ISR it is an election like any other.
    let p = meta
        .update_leader(LeaderUpdate::new(&p, id(3)).unclean())
        .await
        .unwrap()
        .partition;
    assert_eq!((p.isr, p.recovery), (ids([2, 3]), Recovery::Recovered));
}

#[tokio::test]
async fn an_isr_has_no_duplicates_only_replicas_and_the_leader() {
    let (_, meta) = cluster(4).await;
    let p = topic_on(&meta, "t", ids([1, 2, 3])).await;
    for (isr, expected) in [
        (vec![], vec![Reason::EmptyIsr]),
        (ids([1, 2, 2]), vec![Reason::RepeatedIsrMember { broker: id(2) }]),
        (ids([1, 4]), vec![Reason::NotReplica { broker: id(4) }]),
        (ids([2, 3]), vec![Reason::LeaderNotInIsr { leader: id(1) }]),
        (
            ids([2, 9]),
            vec![
                Reason::NotReplica { broker: id(9) },
                Reason::LeaderNotInIsr { leader: id(1) },
            ],
        ),
    ] {
        let refused = meta
            .update_isr(IsrUpdate::new(&p, isr.clone()))
            .await
            .unwrap_err();
        assert_eq!(reasons(&refused), expected, "{isr:?}");
    }
}

#[tokio::test]
async fn a_fenced_broker_joins_no_isr() {
    let (_, meta) = cluster(3).await;
    let p = topic_on(&meta, "t", ids([1, 2, 3])).await;
    meta.fence_broker(id(3)).await.unwrap();
    let p = now(&meta, &p).await;
    assert_eq!(p.isr, ids([1, 2]));
    let refused = meta
        .update_isr(IsrUpdate::new(&p, ids([1, 2, 3])))
        .await
        .unwrap_err();
    assert_eq!(
        reasons(&refused),
        [Reason::Ineligible {
            broker: id(3),
            why: Ineligible::Fenced
        }]
    );
}

#[tokio::test]
async fn a_member_that_restarted_since_the_leader_saw_it_catch_up_is_refused() {
    let store = TestStore::new();
    let meta = store.meta();
    let brokers = register(&meta, 3).await;
    let p = topic_on(&meta, "t", ids([1, 2, 3])).await;
    meta.register_broker(registration(3).takeover()).await.unwrap();
    let p = now(&meta, &p).await;
    let seen = |b: usize| IsrMember {
        broker: brokers[b].id,
        epoch: Some(brokers[b].epoch),
    };
    let update = IsrUpdate::new(&p, [seen(0), seen(1), seen(2)]).asked_by(id(1), brokers[0].epoch);
    let refused = meta.update_isr(update).await.unwrap_err();
    let present = meta.broker(id(3)).await.unwrap().unwrap().epoch;
    let why = Ineligible::StaleEpoch {
        asked: brokers[2].epoch,
        present,
    };
    assert_eq!(reasons(&refused), [Reason::Ineligible { broker: id(3), why }]);
    assert!(!refused.is_retryable());
}

#[tokio::test]
async fn only_the_leader_in_its_present_life_changes_the_isr() {
    let store = TestStore::new();
    let meta = store.meta();
    let brokers = register(&meta, 2).await;
    let p = topic_on(&meta, "t", ids([1, 2])).await;
    let by = |broker, epoch| IsrUpdate::new(&p, ids([1])).asked_by(broker, epoch);

    let refused = meta.update_isr(by(id(2), brokers[1].epoch)).await.unwrap_err();
    assert_eq!(
        reasons(&refused),
        [Reason::NotLeader {
            caller: id(2),
            leader: Some(id(1))
        }]
    );
    let old = BrokerEpoch::new(quorate_kv::model::Revision::FIRST);
    let refused = meta.update_isr(by(id(1), old)).await.unwrap_err();
    let (broker, present) = (id(1), Some(brokers[0].epoch));
    assert_eq!(
        reasons(&refused),
        [Reason::StaleBrokerEpoch {
            broker,
            asked: old,
            present
        }]
    );
    assert!(
        meta.update_isr(by(id(1), brokers[0].epoch))
            .await
            .unwrap()
            .changed
    );
}

#[tokio::test]
async fn a_batch_of_updates_is_one_transaction_and_one_offender_stops_it() {
    let (store, meta) = cluster(3).await;
    let created = meta
        .create_topic(quorate_meta::CreateTopic::new("t", 20, 3).unwrap())
        .await
        .unwrap()
        .partitions;
    let before = store.txn_count();
    let updates = created.iter().map(|p| LeaderUpdate::new(p, p.isr[1]));
    let updated = meta.update_leaders(updates).await.unwrap();
    assert_eq!(store.txn_count() - before, 1);
    assert!(
        updated
            .iter()
            .all(|u| u.changed && u.partition.revision == store.revision())
    );

    let image = store.image();
    let mut updates: Vec<_> = updated
        .iter()
        .map(|u| LeaderUpdate::new(&u.partition, u.partition.replicas[2]))
        .collect();
    updates[7] = LeaderUpdate::new(&created[7], id(1));
    let refused = meta.update_leaders(updates).await.unwrap_err();
    let [Refusal { item, .. }] = refused.refusals() else {
        panic!("one is refused: {refused}");
    };
    assert_eq!(*item, Item::PartitionById(created[7].topic, created[7].index));
    assert_eq!(store.image(), image);
}
