//! Message-broker metadata as typed, transactional operations: brokers, topics, partitions, leaders, ISR, epochs.
//!
//! A layer over the key-value store: every operation is a pure function from the rows that it read to one
//! transaction whose guard pins those rows. It is not a broker, keeps no state of its own, and writes nothing
//! that a heartbeat could flood.
//!
//! ```
//! use quorate_meta::{
//!     BrokerId, CreateTopic, Incarnation, LeaderUpdate, MetaClient, RegisterBroker, Store, TopicName,
//! };
//!
//! async fn first_topic<S: Store>(store: S) -> Result<(), Box<dyn std::error::Error>> {
//!     let meta = MetaClient::new(store);
//!     let broker = |id, address: &str| -> Result<_, Box<dyn std::error::Error>> {
//!         Ok(RegisterBroker::new(BrokerId::new(id), Incarnation::random(), address.parse()?))
//!     };
//!     meta.register_brokers(vec![broker(1, "a:9092")?, broker(2, "b:9092")?, broker(3, "c:9092")?]).await?;
//!
//!     // The topic and its partitions, in one transaction.
//!     let orders = CreateTopic::new(TopicName::new("orders")?, 6, 3).config("retention.ms", "86400000");
//!     let created = meta.create_topic(orders).await?;
//!
//!     // Whoever saw an older state is refused, with the present epochs.
//!     let seen = &created.partitions[0];
//!     let updated = meta.update_leader(LeaderUpdate::new(seen, seen.isr[1])).await?;
//!     assert_eq!(updated.partition.leader_epoch, seen.leader_epoch.next());
//!     Ok(())
//! }
//! ```
//!
//! In reading order: [`ids`] and [`name`], the [`rows`] and their [`keys`], an [`image`] of them, the
//! [`ops`] with [`place`], and [`client`], which carries them out over a [`store`]. [`check`](mod@check) says
//! what always holds.

// A library that prints panics where its program has no standard output.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod check;
pub mod client;
mod error;
pub mod ids;
pub mod image;
pub mod keys;
pub mod name;
pub mod ops;
pub mod place;
mod read;
pub mod rows;
pub mod store;
mod transition;

pub use client::{BrokerError, CreateError, MetaClient, UpdateError};
pub use error::{Conflict, Error, ReadError, Refusal, Size, TooLarge};
pub use ids::{BrokerEpoch, BrokerId, Incarnation, LeaderEpoch, PartitionEpoch, PartitionIndex, TopicId};
pub use image::{Image, Ineligible};
pub use keys::{InvalidPrefix, Keys};
pub use name::{InvalidTopicName, TopicName};
pub use ops::brokers::{
    BrokerReason, BrokerRefusal, ChangedBroker, RegisterBroker, Registered, Registration, Replicas, Takeover,
    Target,
};
pub use ops::partitions::{CreatedPartitions, GrowTopic, NewPartition};
pub use ops::topics::{
    Assignment, CreateReason, CreateRefusal, CreateTopic, CreatedTopic, Creation, DeleteTopic, Layout,
};
pub use ops::updates::{
    Election, Epochs, IsrMember, IsrUpdate, LeaderUpdate, UpdateReason, UpdateRefusal, Updated,
};
pub use rows::{
    Broker, Capacity, CorruptReason, CorruptRow, Endpoint, EndpointRule, InvalidEndpoint, Partition,
    Recovery, Topic,
};
pub use store::{Store, StoreError};
