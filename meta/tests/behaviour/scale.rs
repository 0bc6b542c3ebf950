//! Large batches: what they cost in operations, conditions and bytes, and the longest that they may take.

use quorate_kv::env;
use quorate_kv::model::{CheckedTxn, Limits, LogTime, Txn, encode};
use quorate_meta::ops::topics::CreateTopics;
use quorate_meta::ops::{Context, Operation};
use quorate_meta::{Assignment, CreateTopic, GrowTopic, LeaderUpdate, NewPartition};

use crate::support::*;

fn last(store: &TestStore) -> Txn {
    store.txns().pop().unwrap()
}

#[tokio::test]
async fn a_hundred_thousand_partitions_are_one_transaction_with_one_condition_per_broker() {
    let store = TestStore::unchecked();
    let meta = store.meta();
    register(&meta, 10).await;
    let create = CreateTopic::new("t", 100_000, 3).unwrap();
    let context = Context {
        now: LogTime::from_millis(1),
        limits: Limits::default(),
    };
    let image = meta.image().await.unwrap();
    let started = env::now();
    let plan = CreateTopics(vec![create.clone()])
        .decide(&image, &context)
        .unwrap()
        .plan()
        .expect("nothing comes before a create");
    println!("100,000 partitions decided: {:?}", started.elapsed());
    assert_eq!(plan.txn.txn().then.len(), 100_001);
    let started = env::now();
    let created = meta.create_topic(create).await.unwrap();
    let took = started.elapsed();
    assert_eq!(created.partitions.len(), 100_000);

    let txn = last(&store);
    assert_eq!(txn.then.len(), 100_001);
    assert_eq!(
        txn.guard.conditions().count(),
        10 + 2,
        "the brokers, the name, the id"
    );
    let bytes = encode(&txn).len();
    println!("100,000 partitions: {took:?}, {bytes} bytes");
    assert!(bytes < 6_000_000, "{bytes} bytes");
    assert!(CheckedTxn::check(txn, &Limits::default()).is_ok());
    assert_eq!(
        meta.partitions(created.topic.id).await.unwrap(),
        created.partitions
    );
}

#[tokio::test]
async fn ten_thousand_given_partitions_join_a_topic_in_one_transaction() {
    let store = TestStore::unchecked();
    let meta = store.meta();
    register(&meta, 3).await;
    topic_on(&meta, "t", ids([1, 2, 3])).await;
    let new = |i| NewPartition::new("t", index(i), Assignment::new(ids([1, 2, 3]))).unwrap();
    let batch: Vec<_> = (1..=10_000).map(new).collect();
    let started = env::now();
    let created = meta.create_partitions(batch).await.unwrap();
    println!("10,000 given partitions: {:?}", started.elapsed());
    assert_eq!(created.partitions.len(), 10_000);
    let txn = last(&store);
    assert_eq!(txn.then.len(), 10_001);
    assert_eq!(txn.guard.conditions().count(), 3 + 1, "the brokers and the topic");

    let started = env::now();
    let updates = created.partitions.iter().map(|p| LeaderUpdate::new(p, 2));
    let updated = meta.update_leaders(updates).await.unwrap();
    println!("10,000 leaders: {:?}", started.elapsed());
    assert!(updated.iter().all(|u| u.changed));
    let started = env::now();
    let fenced = meta.fence_broker(id(2)).await.unwrap();
    println!("fence of a broker that leads 10,000: {:?}", started.elapsed());
    assert_eq!(fenced.partitions_changed, 10_001);

    let grown = meta
        .grow_topics(vec![GrowTopic::new("t", 10_002).unwrap()])
        .await
        .unwrap_err();
    assert!(
        grown.is_retryable(),
        "two brokers are left for three replicas: {grown}"
    );
}
