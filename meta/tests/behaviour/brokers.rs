//! Registration, fencing, and what becomes of the partitions.

use quorate_kv::model::Limits;
use quorate_meta::{CreateTopic, Endpoint, IsrUpdate, Reason, Registration, Replicas, Target};

use crate::support::*;

#[tokio::test]
async fn a_brokers_epoch_is_the_revision_of_its_registration_and_outlives_amendments() {
    let (_, meta) = cluster(2).await;
    let first = meta.broker(id(1)).await.unwrap().unwrap();
    assert_eq!(first.epoch.revision(), first.revision);
    let cordoned = meta.cordon_broker(id(1), true).await.unwrap().broker;
    assert!(cordoned.revision > first.revision);
    assert_eq!(cordoned.epoch, first.epoch);
    assert_eq!(meta.broker(id(1)).await.unwrap().unwrap(), cordoned);
}

#[tokio::test]
async fn a_registration_needs_an_endpoint_and_one_per_listener() {
    let (_, meta) = cluster(0).await;
    let mut none = registration(1);
    none.endpoints.clear();
    let mut twice = registration(2);
    twice.endpoints.push("other:9093".parse().unwrap());
    let refused = meta.register_brokers(vec![none, twice]).await.unwrap_err();
    let listener = "PLAINTEXT".to_owned();
    let reasons: Vec<_> = refused.refusals().iter().map(|r| r.reason.clone()).collect();
    assert_eq!(
        reasons,
        [Reason::NoEndpoint, Reason::RepeatedListener { listener }]
    );
    assert!(meta.brokers().await.unwrap().is_empty());
}

#[test]
fn endpoints_are_read_as_they_are_written() {
    for (text, written) in [
        ("a:1", "PLAINTEXT://a:1"),
        ("TLS://a.b:65535", "TLS://a.b:65535"),
        ("[::1]:9092", "PLAINTEXT://[::1]:9092"),
    ] {
        assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), written);
        assert_eq!(written.parse::<Endpoint>().unwrap().to_string(), written);
    }
    for (text, rule) in [
        ("", "the port is missing"),
        ("a", "the port is missing"),
        ("a:", "no port"),
        (":1", "the host is missing"),
        ("a:0", "port 0"),
        ("a:65536", "no port"),
        ("a:b", "no port"),
        ("://a:1", "a listener's name"),
        ("MY LISTENER://a:1", "a listener's name"),
        ("TLS://PLAINTEXT://a:1", "leave out"),
        ("SSL://[::1]:9093,PLAINTEXT://x:9092", "give one address"),
        ("SSL://::1:9093", "brackets"),
        ("SSL://0.0.0.0:9093", "all addresses of a machine"),
        ("SSL://", "the port is missing"),
    ] {
        let refused = text.parse::<Endpoint>().unwrap_err();
        assert!(refused.to_string().contains(rule), "{text}: {refused}");
    }
}

#[tokio::test]
async fn a_fence_moves_leaders_to_the_next_in_sync_and_the_last_in_sync_waits_without_leading() {
    let (_, meta) = cluster(3).await;
    let shared = topic_on(&meta, "shared", ids([1, 3, 2])).await;
    let alone = topic_on(&meta, "alone", ids([1])).await;
    let follower = topic_on(&meta, "follower", ids([2, 1])).await;

    let fenced = meta.fence_broker(id(1)).await.unwrap();
    assert_eq!(fenced.partitions_changed, 3);
    let p = now(&meta, &shared).await;
    assert_eq!(
        (p.leader, p.isr, p.leader_epoch),
        (Some(id(3)), ids([3, 2]), shared.leader_epoch.next())
    );
    let p = now(&meta, &alone).await;
    assert_eq!((p.leader, p.isr.clone()), (None, ids([1])));
    let p2 = now(&meta, &follower).await;
    assert_eq!(
        (p2.leader, p2.isr, p2.leader_epoch),
        (Some(id(2)), ids([2]), follower.leader_epoch)
    );
    let refused = meta.update_isr(IsrUpdate::new(&p, ids([1]))).await.unwrap_err();
    assert_eq!(refused.refusals()[0].reason, Reason::NoLeader);

    let again = meta.fence_broker(id(1)).await.unwrap();
    assert!(
        !again.changed && again.partitions_changed == 0,
        "to fence again does nothing"
    );

    let back = meta.unfence_broker(id(1)).await.unwrap();
    assert_eq!(back.partitions_changed, 1);
    let p3 = now(&meta, &alone).await;
    assert_eq!((p3.leader, p3.leader_epoch), (Some(id(1)), p.leader_epoch.next()));
    assert_eq!(
        p3.revision, back.broker.revision,
        "in the commit that unfenced it"
    );
    assert_eq!(
        now(&meta, &shared).await.leader,
        Some(id(3)),
        "nobody is moved without need"
    );
}

#[tokio::test]
async fn a_restart_leaves_every_isr_that_has_another_member_in_the_commit_of_its_registration() {
    // KAFKA-18106: the election and the epochs were forgotten here.
    let (store, meta) = cluster(3).await;
    let shared = topic_on(&meta, "shared", ids([1, 2])).await;
    let alone = topic_on(&meta, "alone", ids([1])).await;
    let before = store.txn_count();

    let restarted = meta.register_broker(registration(1).takeover()).await.unwrap();
    assert_eq!(
        store.txn_count() - before,
        2,
        "the fence, then the registration with all its partitions"
    );
    assert_eq!(restarted.registration, Registration::Restarted);
    assert_eq!(restarted.partitions_changed, 2);
    let p = now(&meta, &shared).await;
    assert_eq!(
        (p.leader, p.isr, p.leader_epoch),
        (Some(id(2)), ids([2]), shared.leader_epoch.next())
    );
    assert_eq!(p.revision, restarted.broker.revision);
    let p = now(&meta, &alone).await;
    assert_eq!((p.leader, p.isr), (Some(id(1)), ids([1])));
    assert_eq!(
        p.leader_epoch,
        alone.leader_epoch.next(),
        "its old life is fenced off"
    );
    assert_eq!(p.partition_epoch, alone.partition_epoch.next());
}

#[tokio::test]
async fn a_restart_that_begins_fenced_leads_only_when_it_is_unfenced() {
    let (_, meta) = cluster(1).await;
    let alone = topic_on(&meta, "alone", ids([1])).await;
    let restarted = meta
        .register_broker(registration(1).fenced().takeover())
        .await
        .unwrap();
    assert!(restarted.broker.fenced);
    assert_eq!(now(&meta, &alone).await.leader, None);
    meta.unfence_broker(Target::from(&restarted.broker))
        .await
        .unwrap();
    assert_eq!(now(&meta, &alone).await.leader, Some(id(1)));
}

#[tokio::test]
async fn several_brokers_restart_in_one_batch() {
    let (_, meta) = cluster(3).await;
    let p = topic_on(&meta, "t", ids([1, 2, 3])).await;
    let q = topic_on(&meta, "u", ids([1, 2])).await;
    let batch = vec![registration(1).takeover(), registration(2).takeover()];
    meta.register_brokers(batch).await.unwrap();
    assert_eq!(now(&meta, &p).await.isr, ids([3]));
    let q = now(&meta, &q).await;
    assert_eq!(q.isr.len(), 1);
    assert_eq!(q.leader, q.isr.first().copied());
}

#[tokio::test]
async fn a_takeover_is_not_begun_when_the_registration_is_refused_anyway() {
    let (_, meta) = cluster(2).await;
    let mut invalid = registration(2);
    invalid.endpoints.clear();
    meta.register_brokers(vec![registration(1).takeover(), invalid])
        .await
        .unwrap_err();
    assert!(!meta.broker(id(1)).await.unwrap().unwrap().fenced);
    meta.register_brokers(vec![registration(1).takeover(), registration(2)])
        .await
        .unwrap_err();
    assert!(!meta.broker(id(1)).await.unwrap().unwrap().fenced);
}

#[tokio::test]
async fn a_cordon_outlives_a_restart() {
    // KAFKA-20441: it was lost at registration.
    let (_, meta) = cluster(1).await;
    meta.cordon_broker(id(1), true).await.unwrap();
    let restarted = meta.register_broker(registration(1).takeover()).await.unwrap();
    assert!(restarted.broker.cordoned);
    meta.cordon_broker(id(1), false).await.unwrap();
    topic_on(&meta, "t", ids([1])).await;
}

#[tokio::test]
async fn a_change_that_means_another_life_of_the_broker_is_refused() {
    let (_, meta) = cluster(1).await;
    let old = meta.broker(id(1)).await.unwrap().unwrap();
    let new = meta
        .register_broker(registration(1).takeover())
        .await
        .unwrap()
        .broker;
    let stale = Reason::StaleBrokerEpoch {
        broker: id(1),
        asked: old.epoch,
        present: Some(new.epoch),
    };
    let refused = meta.fence_broker(&old).await.unwrap_err();
    assert_eq!(refused.refusals()[0].reason, stale);
    let refused = meta.unfence_broker(&old).await.unwrap_err();
    assert_eq!(refused.refusals()[0].reason, stale);
    let refused = meta
        .unregister_broker(&old, Replicas::MayDangle)
        .await
        .unwrap_err();
    assert_eq!(refused.refusals()[0].reason, stale);
    let refused = meta.fence_broker(id(2)).await.unwrap_err();
    assert_eq!(
        refused.refusals()[0].reason,
        Reason::UnknownBroker { broker: id(2) }
    );
}

#[tokio::test]
async fn an_id_that_was_unregistered_and_comes_back_has_a_higher_epoch() {
    let (_, meta) = cluster(2).await;
    let old = meta.unregister_broker(id(1), Replicas::MustBeGone).await.unwrap();
    assert_eq!(meta.broker(id(1)).await.unwrap(), None);
    let new = meta.register_broker(registration(1)).await.unwrap();
    assert_eq!(new.registration, Registration::New);
    assert!(new.broker.epoch > old.epoch);
    assert!(!new.broker.cordoned && !new.broker.fenced);
}

#[tokio::test]
async fn what_exceeds_one_transaction_is_swept_in_steps() {
    let (store, meta) = cluster(3).await;
    meta.create_topic(CreateTopic::new("t", 60, 3).unwrap())
        .await
        .unwrap();
    let mut small = Limits::default();
    small.txn_ops_max = 40;
    let meta = meta.with_limits(small);

    let before = store.txn_count();
    let fenced = meta.fence_broker(id(1)).await.unwrap();
    assert_eq!(fenced.partitions_changed, 60);
    assert_eq!(
        store.txn_count() - before,
        1 + 6,
        "the row, then ten partitions a step"
    );
    assert!(store.image().partitions.values().all(|p| !p.isr.contains(&id(1))));

    // The whole ISR of a restart does not fit with its registration: it is swept first.
    let restarted = meta.register_broker(registration(2).takeover()).await.unwrap();
    assert_eq!(restarted.registration, Registration::Restarted);
    assert!(
        store
            .image()
            .partitions
            .values()
            .all(|p| p.isr == ids([3]) && p.leader == Some(id(3)))
    );

    meta.fence_broker(id(3)).await.unwrap();
    assert!(store.image().partitions.values().all(|p| p.leader.is_none()));
    let back = meta.unfence_broker(id(3)).await.unwrap();
    assert_eq!(back.partitions_changed, 60);
    assert!(store.image().partitions.values().all(|p| p.leader == Some(id(3))));
}
