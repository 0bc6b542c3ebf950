//! Numbers and ids of brokers, topics and partitions that are not to be confused with each other.
//!
//! Always: an epoch is chosen by this crate, never by a caller; a caller only says which one it expects.

use std::fmt;
use std::str::FromStr;

use quorate_kv::env::random_u64;
use quorate_kv::model::Revision;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name($int);

        impl $name {
            /// Wraps a number that came from a row, a peer or a user.
            pub const fn new(number: $int) -> Self {
                Self(number)
            }

            /// The bare number, for encoding and for people.
            pub const fn number(self) -> $int {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

number! {
    /// A broker, as its operator named it. The same after each restart.
    BrokerId(u64)
}
number! {
    /// The place of a partition in its topic; the first is 0.
    PartitionIndex(u32)
}
number! {
    /// The fence between two leaders of a partition: starts at 1, rises by 1 whenever the leader is set.
    LeaderEpoch(u64)
}
number! {
    /// The fence between two states of a partition: starts at 1, rises by exactly 1 with each commit that
    /// changes the partition.
    PartitionEpoch(u64)
}

impl From<u64> for BrokerId {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl From<u32> for PartitionIndex {
    fn from(number: u32) -> Self {
        Self(number)
    }
}

impl PartitionIndex {
    /// The first partition, which every topic has.
    pub const FIRST: PartitionIndex = PartitionIndex(0);
}

macro_rules! epoch {
    ($name:ident) => {
        impl $name {
            /// The epoch of a partition that was just created.
            pub const FIRST: $name = $name(1);

            /// The one that follows. Saturates, which 2⁶⁴ steps never reach.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }
    };
}
epoch!(LeaderEpoch);
epoch!(PartitionEpoch);

/// The fence between two lives of a broker: the revision of the commit that registered this incarnation,
/// hence strictly rising over the whole store, also when an id is unregistered and used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BrokerEpoch(Revision);

impl BrokerEpoch {
    /// The epoch of a registration at `revision`.
    pub const fn new(revision: Revision) -> Self {
        Self(revision)
    }

    /// The revision of the registration.
    pub const fn revision(self) -> Revision {
        self.0
    }
}

impl fmt::Display for BrokerEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new one, from the process's random source.
            pub fn random() -> Self {
                let bytes = (u128::from(random_u64()) << 64) | u128::from(random_u64());
                Self(uuid::Builder::from_random_bytes(bytes.to_be_bytes()).into_uuid())
            }

            /// One that was minted elsewhere.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The bare uuid.
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

random_id! {
    /// One life of a topic. A name that is deleted and created again gets another id, so that nobody takes
    /// the old topic's data for the new one's. Minted by the client: the same id makes a create idempotent.
    TopicId
}
random_id! {
    /// One life of a broker's process, minted at its start.
    Incarnation
}
