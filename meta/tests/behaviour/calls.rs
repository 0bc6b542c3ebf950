//! The calls that one would guess: text for names and endpoints, numbers for ids and indexes, arrays for replicas.

use quorate_meta::{
    Assignment, BrokerId, CreateTopic, DeleteTopic, Endpoint, EndpointRule, Epochs, Error, GrowTopic,
    InvalidTopicName, IsrMember, IsrUpdate, LeaderUpdate, NewPartition, ReadError, RegisterBroker, Replicas,
    TopicName,
};
use quorate_transport::Address;

use super::support::*;

#[tokio::test]
async fn names_ids_indexes_assignments_and_endpoints_are_given_as_they_come() {
    let meta = TestStore::new().meta();
    let (owned, address) = (String::from("c:9092"), "d:9092".parse::<Address>().unwrap());
    let mut brokers = Vec::new();
    for broker in [
        RegisterBroker::new(1, "a:9092"),
        RegisterBroker::new(BrokerId::new(2), String::from("SSL://b:9093")),
        RegisterBroker::new(3, &owned),
        RegisterBroker::new(4, address),
    ] {
        brokers.push(meta.register_broker(broker.unwrap()).await.unwrap().broker);
    }
    assert_eq!(brokers[3].endpoints[0].to_string(), "PLAINTEXT://d:9092");

    let name = TopicName::new("orders").unwrap();
    let created = meta
        .create_topic(CreateTopic::new("orders", 2, 2).unwrap())
        .await
        .unwrap();
    let topic = created.topic.id;
    for create in [
        CreateTopic::manual(String::from("s"), [[1, 2], [2, 3]]),
        CreateTopic::manual(owned.replace(':', "-"), vec![vec![1, 2]]),
        CreateTopic::manual("given", [Assignment::new([1, 2, 3]).isr([3, 2]).leader(2)]),
    ] {
        meta.create_topic(create.unwrap()).await.unwrap();
    }
    let given = meta.describe("given").await.unwrap().unwrap();
    assert_eq!(
        (given.1[0].isr.clone(), given.1[0].leader),
        (ids([2, 3]), Some(id(2)))
    );

    let added = NewPartition::new(&name, 2, [3, 1]).unwrap().topic_id(topic);
    assert_eq!(meta.create_partition(added).await.unwrap().replicas, ids([3, 1]));
    let grown = meta
        .grow_topics([GrowTopic::new("orders", 5).unwrap().topic_id(topic)])
        .await
        .unwrap();
    assert_eq!(grown.partitions.len(), 2);

    let seen = meta.partition(topic, 2).await.unwrap().unwrap();
    let led = meta
        .update_leader(LeaderUpdate::new(&seen, 1))
        .await
        .unwrap()
        .partition;
    let expected = Epochs::of(&led);
    let shrunk = meta
        .update_isr(IsrUpdate::at((topic, 2), [1], expected))
        .await
        .unwrap();
    assert_eq!(shrunk.partition.isr, ids([1]));
    let members = [IsrMember::from(&brokers[2]), 1.into()];
    let both = IsrUpdate::new(&shrunk.partition, members).asked_by(1, brokers[0].epoch);
    assert_eq!(meta.update_isr(both).await.unwrap().partition.isr, ids([3, 1]));

    assert!(meta.broker(4).await.unwrap().is_some());
    assert!(meta.topic("orders").await.unwrap().is_some());
    assert!(meta.topic(&name).await.unwrap().is_some());

    let two = RegisterBroker::new(5, "a:1")
        .unwrap()
        .endpoint("SSL://a:2")
        .unwrap();
    let two = meta.register_broker(two.label("zone", "x")).await.unwrap().broker;
    let listeners: Vec<_> = two.endpoints.iter().map(Endpoint::listener).collect();
    assert_eq!(listeners, ["PLAINTEXT", "SSL"]);
    assert_eq!(two.labels["zone"], "x");
    assert!(meta.fence_broker(5).await.unwrap().changed);
    assert!(
        meta.unfence_broker(&meta.broker(5).await.unwrap().unwrap())
            .await
            .unwrap()
            .changed
    );
    meta.unregister_broker(5, Replicas::MustBeGone).await.unwrap();
    meta.delete_topic(DeleteTopic::new("s").unwrap()).await.unwrap();
    assert_eq!(meta.delete_topic(&created.topic).await.unwrap().id, topic);
}

#[tokio::test]
async fn text_that_is_no_name_and_no_endpoint_is_refused_before_anything_is_sent() {
    let (store, meta) = cluster(1).await;
    let (sent, read) = (store.txn_count(), store.consistencies().len());
    let slash = InvalidTopicName::Character {
        character: '/',
        at: 1,
    };
    assert_eq!(CreateTopic::new("a/b", 1, 1).unwrap_err(), slash);
    assert_eq!(
        CreateTopic::manual("", [[1]]).unwrap_err(),
        InvalidTopicName::Empty
    );
    assert_eq!(NewPartition::new("a/b", 0, [1]).unwrap_err(), slash);
    assert_eq!(GrowTopic::new("a/b", 1).unwrap_err(), slash);
    assert_eq!(DeleteTopic::new("a/b").unwrap_err(), slash);
    for refused in [
        meta.topic("a/b").await.unwrap_err(),
        meta.describe("a/b").await.unwrap_err(),
    ] {
        assert!(
            matches!(&refused, ReadError::Name(e) if *e == slash),
            "{refused:?}"
        );
        assert!(!refused.is_retryable());
    }
    let endpoint = RegisterBroker::new(1, "nowhere").unwrap_err();
    assert!(matches!(endpoint.rule, EndpointRule::Address(_)), "{endpoint:?}");
    let second = RegisterBroker::new(1, "a:1")
        .unwrap()
        .endpoint("!://a:2")
        .unwrap_err();
    assert_eq!(second.rule, EndpointRule::Listener);
    assert_eq!((store.txn_count(), store.consistencies().len()), (sent, read));
}

#[tokio::test]
async fn a_function_of_one_error_type_may_use_the_question_mark_on_every_call() {
    async fn all(meta: &Meta) -> Result<(), Error> {
        meta.register_broker(RegisterBroker::new(2, "b:9092")?).await?;
        let created = meta.create_topic(CreateTopic::new("orders", 1, 2)?).await?;
        let (topic, partitions) = meta.describe("orders").await?.expect("it was just created");
        assert_eq!((topic, partitions), (created.topic, created.partitions));
        meta.create_topic(CreateTopic::new("a b", 1, 1)?).await?;
        Ok(())
    }
    let (_, meta) = cluster(1).await;
    let error = all(&meta).await.unwrap_err();
    let told = "' ' at byte 1: a topic's name consists of A-Z, a-z, 0-9, '.', '_' and '-'";
    assert!(matches!(error, Error::Name(_)), "{error:?}");
    assert_eq!(error.to_string(), told);
    assert!(!error.is_retryable() && !error.may_have_committed());
}
