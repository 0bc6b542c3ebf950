//! The metadata has a prefix of its own. One ordinary key under `b/`, `t/`, `n/` or `p/` once stopped all of it.

use quorate_kv::model::{Key, Op, Txn};
use quorate_meta::check::{Sweeps, Violation, check};
use quorate_meta::{Assignment, CreateTopic, DeleteTopic, Error, Keys, RegisterBroker, Replicas};

use crate::support::*;

/// Writes keys as an application would.
fn put(store: &TestStore, keys: &[&[u8]]) {
    let puts = keys
        .iter()
        .map(|key| Op::put(Key::new(key.to_vec()).unwrap(), "not a row"));
    store.apply(Txn::new(puts)).unwrap();
}

#[tokio::test]
async fn the_applications_keys_may_be_called_as_it_likes() {
    let (store, meta) = cluster(3).await;
    put(
        &store,
        &[
            b"b/1",
            b"t/orders",
            b"n/a_b",
            b"p/",
            b"c/x",
            b"meta",
            b"metadata",
            b"b/12345678",
        ],
    );
    let partition = topic_on(&meta, "orders", ids([1, 2, 3])).await;
    assert_eq!(meta.fence_broker(id(1)).await.unwrap().partitions_changed, 1);
    meta.unfence_broker(id(1)).await.unwrap();
    assert_eq!(now(&meta, &partition).await.leader, Some(id(2)));
    let image = meta.image().await.unwrap();
    assert_eq!(
        (image.brokers.len(), image.topics.len(), image.foreign.len()),
        (3, 1, 0)
    );
    meta.delete_topic(DeleteTopic::new("orders").unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn two_metadata_in_one_store_know_nothing_of_each_other() {
    let store = TestStore::unchecked();
    let blue = store.meta().under("blue/meta/").unwrap();
    let green = store.meta().under("green/meta/").unwrap();
    register(&blue, 3).await;
    register(&green, 1).await;
    let of_blue = topic_on(&blue, "orders", ids([1, 2, 3])).await;
    let of_green = topic_on(&green, "orders", ids([1])).await;
    blue.fence_broker(id(1)).await.unwrap();
    assert!(green.broker(id(1)).await.unwrap().unwrap().is_active());
    assert_eq!(now(&green, &of_green).await, of_green);
    assert_eq!(now(&blue, &of_blue).await.leader, Some(id(2)));
    green
        .delete_topic(DeleteTopic::new("orders").unwrap())
        .await
        .unwrap();
    green
        .unregister_broker(id(1), Replicas::MustBeGone)
        .await
        .unwrap();
    let left = blue.image().await.unwrap();
    assert_eq!(
        (left.brokers.len(), left.topics.len(), left.partitions.len()),
        (3, 1, 1)
    );
    assert_eq!(check(&left, Sweeps::Complete), []);
    for txn in store.txns() {
        for op in &txn.then {
            let (Op::Put { key, .. } | Op::Delete { key }) = op else {
                continue;
            };
            let below = |keys: &Keys| keys.all().contains(key.as_bytes());
            assert!(below(blue.keys()) || below(green.keys()), "{key}");
        }
    }
}

#[tokio::test]
async fn a_prefix_must_be_there_and_leave_room() {
    let store = TestStore::unchecked();
    assert!(store.meta().under("").is_err());
    assert!(store.meta().under([b'x'; 1025]).is_err());
    let longest = store.meta().under([b'x'; 1024]).unwrap();
    register(&longest, 1).await;
    let long = "n".repeat(249);
    topic_on(&longest, &long, ids([1])).await;
    assert!(longest.topic(&name(&long)).await.unwrap().is_some());
}

#[tokio::test]
async fn a_key_below_the_prefix_that_is_no_row_is_told_and_holds_nobody_up() {
    let store = TestStore::unchecked();
    let meta = store.meta();
    register(&meta, 3).await;
    let partition = topic_on(&meta, "orders", ids([1, 2, 3])).await;
    put(
        &store,
        &[
            b"meta/b/x",
            b"meta/t/no topic",
            b"meta/n/",
            b"meta/p/x",
            b"meta/q/unknown",
        ],
    );

    // Everything that looks through the rows of a kind.
    assert_eq!(meta.fence_broker(id(1)).await.unwrap().partitions_changed, 1);
    meta.unfence_broker(id(1)).await.unwrap();
    meta.fence_broker(id(2)).await.unwrap();
    let again = RegisterBroker::fenced(registration(2));
    meta.register_broker(again).await.unwrap();
    meta.create_topic(CreateTopic::new("more", 3, 2).unwrap())
        .await
        .unwrap();
    assert_eq!(
        (
            meta.brokers().await.unwrap().len(),
            meta.topics().await.unwrap().len()
        ),
        (3, 2)
    );
    assert_eq!(now(&meta, &partition).await.leader, Some(id(3)));

    let image = meta.image().await.unwrap();
    let foreign: Vec<String> = image.foreign.iter().map(ToString::to_string).collect();
    assert_eq!(foreign, ["meta/b/x", "meta/n/", "meta/p/x", "meta/t/no topic"]);
    let told: Vec<Violation> = check(&image, Sweeps::Complete);
    assert_eq!(told.len(), 4);
    assert!(told[0].to_string().contains("meta/b/x"), "{}", told[0]);
}

#[tokio::test]
async fn a_foreign_key_among_a_topics_partitions_is_not_deleted_with_them() {
    let store = TestStore::unchecked();
    let meta = store.meta();
    register(&meta, 1).await;
    let partition = topic_on(&meta, "orders", ids([1])).await;
    topic_on(&meta, "others", ids([1])).await;
    let row = meta.keys().partition(partition.topic, partition.index);
    let foreign = [row.as_bytes(), b"x"].concat();
    put(&store, &[&foreign]);

    let refused = meta
        .delete_topic(DeleteTopic::new("orders").unwrap())
        .await
        .unwrap_err();
    let Error::Corrupt(row) = &refused else {
        panic!("{refused}");
    };
    assert_eq!(row.key.as_bytes(), foreign);
    assert!(
        meta.topic(&name("orders")).await.unwrap().is_some(),
        "nothing was changed"
    );
    assert_eq!(now(&meta, &partition).await, partition);
    // It is that topic's matter alone.
    meta.delete_topic(DeleteTopic::new("others").unwrap())
        .await
        .unwrap();
    store
        .apply(Txn::new([Op::delete(Key::new(foreign).unwrap())]))
        .unwrap();
    meta.delete_topic(DeleteTopic::new("orders").unwrap())
        .await
        .unwrap();
    assert_eq!(meta.image().await.unwrap().partitions.len(), 0);
}

/// Seven gigabytes were once asked of the caller's memory before the refusal.
#[tokio::test]
async fn what_cannot_fit_is_refused_before_anything_is_read_or_built() {
    use quorate_meta::{GrowTopic, IsrUpdate, LeaderUpdate, NewPartition, Size};
    let store = TestStore::unchecked();
    let meta = store.meta();
    register(&meta, 3).await;
    let partition = topic_on(&meta, "orders", ids([1, 2, 3])).await;
    let mut limits = quorate_kv::model::Limits::default();
    limits.txn_ops_max = 1 << 24;
    let generous = store.meta().with_limits(limits);

    let reads = || store.consistencies().len();
    let before = reads();
    let too_large = |error: Error| match error {
        Error::TooLarge(large) => large.what,
        other => panic!("{other}"),
    };
    for (partitions, factor) in [(u32::MAX, 1), (u32::MAX, u16::MAX), (16_000_000, 3)] {
        let create = || CreateTopic::new("t", partitions, factor).unwrap();
        assert_eq!(
            too_large(meta.create_topic(create()).await.unwrap_err()),
            Size::Operations
        );
    }
    let bytes = generous
        .create_topic(CreateTopic::new("t", 16_000_000, 3).unwrap())
        .await;
    assert_eq!(too_large(bytes.unwrap_err()), Size::Bytes);
    let thousands = |_| CreateTopic::manual("t", [Assignment::new(ids([1]))]).unwrap();
    let batch: Vec<CreateTopic> = (0..131_073).map(thousands).collect();
    assert_eq!(
        too_large(meta.create_topics(batch).await.unwrap_err()),
        Size::Operations
    );
    let many = |i| NewPartition::new("orders", index(i), Assignment::new(ids([1]))).unwrap();
    let batch: Vec<NewPartition> = (0..131_073).map(many).collect();
    assert_eq!(
        too_large(meta.create_partitions(batch).await.unwrap_err()),
        Size::Operations
    );
    let updates = vec![LeaderUpdate::new(&partition, id(1)); 65_537];
    assert!(matches!(
        meta.update_leaders(updates).await,
        Err(Error::TooLarge(_))
    ));
    let updates = vec![IsrUpdate::new(&partition, ids([1])); 65_537];
    assert!(matches!(meta.update_isrs(updates).await, Err(Error::TooLarge(_))));
    let brokers: Vec<RegisterBroker> = vec![registration(1); 65_537];
    assert!(matches!(
        meta.register_brokers(brokers).await,
        Err(Error::TooLarge(_))
    ));
    let deletes = vec![DeleteTopic::new("t").unwrap(); 43_691];
    assert!(matches!(
        meta.delete_topics(deletes).await,
        Err(Error::TooLarge(_))
    ));
    assert_eq!(reads(), before, "nobody was asked");

    // How many a topic has is read first; what it would grow by is counted before it is built.
    let grow = meta
        .grow_topics(vec![GrowTopic::new("orders", u32::MAX).unwrap()])
        .await;
    assert_eq!(too_large(grow.unwrap_err()), Size::Operations);
    let grow = generous
        .grow_topics(vec![GrowTopic::new("orders", 16_000_000).unwrap()])
        .await;
    assert_eq!(too_large(grow.unwrap_err()), Size::Bytes);

    // An assignment that no broker could follow is refused without asking for each of its brokers.
    let before = store.records_read();
    let huge = Assignment::new((1..1_000_000).map(id));
    let refused = meta
        .create_topic(CreateTopic::manual("t", [huge]).unwrap())
        .await
        .unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("replication factor 999999 is outside 1 to 32"),
        "{refused}"
    );
    let long_isr = Assignment::new(ids([1])).isr((1..1_000_000).map(id));
    let refused = meta
        .create_topic(CreateTopic::manual("t", [long_isr]).unwrap())
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("is not a replica"), "{refused}");
    assert!(store.records_read() - before < 10);
    assert_eq!(store.image().topics.len(), 1, "nothing was created");
}
