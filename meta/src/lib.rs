//! Message-broker metadata as typed, transactional operations: brokers, topics, partitions, leaders, ISR, epochs.
//!
//! A layer over the key-value store: every operation is a pure function from the rows that it read to one
//! transaction whose guard pins those rows. It is not a broker, keeps no state of its own, and writes nothing
//! that a heartbeat could flood.
//!
//! ```
//! use quorate_meta::{CreateTopic, Error, LeaderUpdate, MetaClient, RegisterBroker, Store};
//!
//! async fn first_topic<S: Store>(store: S) -> Result<(), Error> {
//!     let meta = MetaClient::new(store);
//!     for (id, address) in [(1, "a:9092"), (2, "b:9092"), (3, "c:9092")] {
//!         meta.register_broker(RegisterBroker::new(id, address)?).await?;
//!     }
//!
//!     // The topic and its partitions, in one transaction.
//!     let orders = CreateTopic::new("orders", 6, 3)?.config("retention.ms", "86400000");
//!     let created = meta.create_topic(orders).await?;
//!
//!     // A caller that saw an older state is refused, with the present epochs.
//!     let seen = &created.partitions[0];
//!     let updated = meta.update_leader(LeaderUpdate::new(seen, seen.isr[1])).await?;
//!     assert_eq!(updated.partition.leader_epoch, seen.leader_epoch.next());
//!     Ok(())
//! }
//! ```
//!
//! A [`Store`] is the client of a node or of a cluster, `quorate_kv::Client`. Brokers' ids are numbers, names and
//! endpoints text; text that is none is refused before anything is sent.
//!
//! In reading order: [`ids`] and [`name`], the [`rows`] and their [`keys`], an [`image`] of them, how requests are
//! [`refused`](refusal), the [`ops`] with [`place`], and [`client`], which carries them out over a [`store`]. [`check`](mod@check) says
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
pub mod refusal;
#[cfg(doctest)]
mod refused_calls;
pub mod rows;
pub mod store;
mod transition;

pub use client::MetaClient;
pub use error::{Conflict, Error, ReadError, Size, TooLarge};
pub use ids::{BrokerEpoch, BrokerId, Incarnation, LeaderEpoch, PartitionEpoch, PartitionIndex, TopicId};
pub use image::{Image, Ineligible};
pub use keys::{InvalidPrefix, Keys};
pub use name::{InvalidTopicName, TopicName};
pub use ops::brokers::{ChangedBroker, RegisterBroker, Registered, Registration, Replicas, Takeover, Target};
pub use ops::partitions::{CreatedPartitions, GrowTopic, NewPartition};
pub use ops::topics::{Assignment, CreateTopic, CreatedTopic, Creation, DeleteTopic, Layout};
pub use ops::updates::{Election, IsrMember, IsrUpdate, LeaderUpdate, Updated};
pub use refusal::{Epochs, Item, Reason, Refusal};
pub use rows::{
    Broker, Capacity, CorruptReason, CorruptRow, Endpoint, EndpointRule, InvalidEndpoint, Partition,
    Recovery, Topic,
};
pub use store::{Store, StoreError};

/// The program of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub mod readme {}
