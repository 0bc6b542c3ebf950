//! What happens when others commit between a decision's read and its commit.

use std::sync::Arc;

use quorate_kv::model::{Consistency, Op, ReadOp, ReadResponse, Txn, TxnResponse};
use quorate_meta::{
    CreateTopic, DeleteTopic, Error, GrowTopic, Ineligible, IsrUpdate, Keys, LeaderUpdate, MetaClient,
    Reason, Registration, Replicas, Store, StoreError,
    ops::{Context, Operation, topics::CreateTopics},
};

use crate::support::*;

/// The transactions of an operation on another client, as they would commit.
async fn recorded<F: Future>(store: &TestStore, operation: F) -> Vec<Txn> {
    let before = store.txn_count();
    operation.await;
    store.txns().split_off(before)
}

#[tokio::test]
async fn who_loses_the_race_for_a_name_hears_who_won() {
    let (store, meta) = cluster(3).await;
    let winner = CreateTopic::new("t", 1, 1).unwrap();
    let image = meta.image().await.unwrap();
    let context = Context {
        now: quorate_kv::model::LogTime::from_millis(1),
        limits: Default::default(),
    };
    let plan = CreateTopics(vec![winner.clone()])
        .decide(&image, &context)
        .unwrap()
        .plan()
        .expect("nothing comes before a create");
    store.commit_first(plan.txn.into_inner());
    let loser = meta
        .create_topic(CreateTopic::new("t", 2, 2).unwrap())
        .await
        .unwrap_err();
    assert_eq!(loser.refusals()[0].reason, Reason::TopicExists { id: winner.id });
}

#[tokio::test]
async fn colliding_names_created_at_once_leave_one_topic() {
    let (store, meta) = cluster(1).await;
    let (a, b) = tokio::join!(
        meta.create_topic(CreateTopic::new("x.y", 1, 1).unwrap()),
        meta.create_topic(CreateTopic::new("x_y", 1, 1).unwrap()),
    );
    assert_eq!(usize::from(a.is_ok()) + usize::from(b.is_ok()), 1);
    let loser = a.err().or(b.err()).unwrap();
    assert!(
        matches!(loser.refusals()[0].reason, Reason::NameCollides { .. }),
        "{loser}"
    );
    assert_eq!(store.image().topics.len(), 1);
}

#[tokio::test]
async fn of_many_that_grow_a_topic_at_once_each_sees_the_growth_before_it() {
    let (store, meta) = cluster(3).await;
    meta.create_topic(CreateTopic::new("t", 1, 3).unwrap())
        .await
        .unwrap();
    let grow = |total| meta.grow_topics(vec![GrowTopic::new("t", total).unwrap()]);
    let (a, b, c) = tokio::join!(grow(2), grow(5), grow(9));
    let present = store.image().topics[&name("t")].partitions;
    assert_eq!(present, 9);
    for (total, result) in [(2, a), (5, b), (9, c)] {
        match result {
            Ok(created) => assert_eq!(created.topics[0].partitions, total),
            Err(e) => {
                let reason = &e.refusals()[0].reason;
                assert!(matches!(reason, Reason::NotAnIncrease { .. }), "{total}: {e}");
            }
        }
    }
}

#[tokio::test]
async fn a_broker_that_is_fenced_in_between_neither_leads_nor_joins() {
    let (store, meta) = cluster(3).await;
    let p = topic_on(&meta, "t", ids([1, 2, 3])).await;
    let p = meta
        .update_isr(IsrUpdate::new(&p, ids([1, 2])))
        .await
        .unwrap()
        .partition;

    // The first transaction of a fence: the row alone.
    let scratch = TestStore::new();
    for txn in store.txns() {
        scratch.apply(txn).unwrap();
    }
    let fence = recorded(&scratch, scratch.meta().fence_broker(id(3)))
        .await
        .remove(0);
    store.commit_first(fence);
    let refused = meta
        .update_isr(IsrUpdate::new(&p, ids([1, 2, 3])))
        .await
        .unwrap_err();
    let why = Ineligible::Fenced;
    assert_eq!(
        refused.refusals()[0].reason,
        Reason::Ineligible { broker: id(3), why }
    );

    let fence = recorded(&scratch, scratch.meta().fence_broker(id(2)))
        .await
        .remove(0);
    store.commit_first(fence);
    let refused = meta
        .update_leader(LeaderUpdate::new(&p, id(2)))
        .await
        .unwrap_err();
    assert_eq!(
        refused.refusals()[0].reason,
        Reason::Ineligible { broker: id(2), why }
    );
}

#[tokio::test]
async fn two_that_change_one_partition_at_once_never_both_succeed_on_one_epoch() {
    let (_, meta) = cluster(3).await;
    let p = topic_on(&meta, "t", ids([1, 2, 3])).await;
    let (a, b) = tokio::join!(
        meta.update_leader(LeaderUpdate::new(&p, id(2))),
        meta.update_isr(IsrUpdate::new(&p, ids([1, 3]))),
    );
    assert_eq!(usize::from(a.is_ok()) + usize::from(b.is_ok()), 1);
    assert_eq!(now(&meta, &p).await.partition_epoch, p.partition_epoch.next());
}

#[tokio::test]
async fn who_loses_every_race_hears_which_row_moved() {
    let (store, meta) = cluster(2).await;
    let moving = Keys::default().broker(id(1));
    let image = store.image();
    let view = meta.broker(id(1)).await.unwrap().unwrap();
    assert_eq!(image.brokers[&id(1)], view);
    // Somebody writes the broker's row, unchanged in content, before each attempt.
    let row = store
        .txns()
        .into_iter()
        .flat_map(|txn| txn.then)
        .find_map(|op| match op {
            Op::Put { key, value, .. } if key == moving => Some(value),
            _ => None,
        })
        .unwrap();
    let unchecked = TestStore::unchecked();
    for txn in store.txns() {
        unchecked.apply(txn).unwrap();
    }
    for _ in 0..16 {
        unchecked.commit_first(Txn::new([Op::put(moving.clone(), row.clone())]));
    }
    let create = CreateTopic::new("t", 1, 2).unwrap();
    let Err(Error::Conflict(conflict)) = unchecked.meta().create_topic(create).await else {
        panic!("it never wins");
    };
    assert_eq!((conflict.attempts, conflict.rows), (16, vec![moving]));
    assert!(unchecked.image().topics.is_empty());
}

/// A store that knows whether the operation has begun for which it is asked.
#[derive(Clone)]
struct Begun(Arc<TestStore>, bool);

impl Store for Begun {
    async fn txn(&self, txn: Txn) -> Result<TxnResponse, StoreError> {
        assert!(self.1, "a transaction outside any operation: {txn:?}");
        self.0.txn(txn).await
    }

    async fn read(&self, reads: Vec<ReadOp>, consistency: Consistency) -> Result<ReadResponse, StoreError> {
        assert!(self.1, "a read outside any operation: {reads:?}");
        self.0.read(reads, consistency).await
    }

    fn one_operation(&self) -> Option<Self> {
        // Within one the time that runs goes on.
        (!self.1).then(|| Begun(self.0.clone(), true))
    }
}

/// The story: each call of an operation that lost a race had the whole time of the operation again.
#[tokio::test]
async fn all_that_an_operation_asks_of_the_store_has_the_time_of_one_operation() {
    let store = TestStore::new();
    let meta = MetaClient::new(Begun(store, false));
    for number in 1..=3 {
        meta.register_broker(registration(number)).await.unwrap();
    }
    // A second life of the same broker is fenced first, in a transaction of its own.
    meta.register_broker(registration(3).takeover()).await.unwrap();
    meta.create_topic(CreateTopic::new("t", 2, 2).unwrap())
        .await
        .unwrap();
    meta.grow_topics(vec![GrowTopic::new("t", 3).unwrap()])
        .await
        .unwrap();
    meta.describe(&name("t")).await.unwrap().unwrap();
    meta.fence_broker(id(1)).await.unwrap();
    meta.unfence_broker(id(1)).await.unwrap();
    meta.unregister_broker(id(3), Replicas::MayDangle).await.unwrap();
    let topic = meta.topic(&name("t")).await.unwrap().unwrap();
    meta.partitions(topic.id).await.unwrap();
    meta.image().await.unwrap();
    meta.delete_topic(DeleteTopic::new("t").unwrap()).await.unwrap();
}

/// The broker that was to be fenced first is gone when its fence comes: the takeover is decided again, and not refused for what
/// was never asked.
#[tokio::test]
async fn a_step_that_is_refused_makes_the_operation_decide_again() {
    let (store, meta) = cluster(1).await;
    store.commit_first(Txn::new([Op::delete(meta.keys().broker(id(1)))]));
    let registered = meta
        .register_broker(registration(1).takeover())
        .await
        .expect("nobody has the id any more");
    assert_eq!(registered.registration, Registration::New);
}
