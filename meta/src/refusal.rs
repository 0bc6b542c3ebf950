//! What the rules refuse: an item of a request, and the reason with the values that decided it.
//!
//! Always: a request that is refused was not carried out, nor a part of it; its refusals name every item that is wrong. What had to
//! come first (a broker's fence, its sweep) may have been done.

use std::fmt;

use crate::ids::{BrokerEpoch, BrokerId, Incarnation, LeaderEpoch, PartitionEpoch, PartitionIndex, TopicId};
use crate::image::Ineligible;
use crate::name::TopicName;
use crate::rows::Partition;

/// An item of a request that was refused, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The item.
    pub item: Item,
    /// The reason.
    pub reason: Reason,
}

/// What a refusal is about.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Item {
    /// A broker.
    Broker(BrokerId),
    /// A topic.
    Topic(TopicName),
    /// A partition, by the name of its topic.
    Partition(TopicName, PartitionIndex),
    /// A partition, by the id of its topic.
    PartitionById(TopicId, PartitionIndex),
}

impl Item {
    /// The broker, if it is one.
    pub fn broker(&self) -> Option<BrokerId> {
        match self {
            Item::Broker(broker) => Some(*broker),
            Item::Topic(_) | Item::Partition(..) | Item::PartitionById(..) => None,
        }
    }

    /// The index of the partition, if it is one.
    pub fn partition(&self) -> Option<PartitionIndex> {
        match self {
            Item::Partition(_, index) | Item::PartitionById(_, index) => Some(*index),
            Item::Broker(_) | Item::Topic(_) => None,
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Item::Broker(broker) => write!(f, "broker {broker}"),
            Item::Topic(topic) => topic.fmt(f),
            Item::Partition(topic, index) => write!(f, "{topic}/{index}"),
            Item::PartitionById(topic, index) => write!(f, "{topic}/{index}"),
        }
    }
}

/// Why an item was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The same broker, topic or partition stands in the request more than once.
    #[error("the request has it more than once")]
    Repeated,

    // ----- brokers
    /// No such broker.
    #[error("broker {broker} is not registered")]
    UnknownBroker {
        /// The broker.
        broker: BrokerId,
    },
    /// A broker has at least one endpoint.
    #[error("it has no endpoint")]
    NoEndpoint,
    /// A listener has one endpoint.
    #[error("it has more than one endpoint of listener {listener}")]
    RepeatedListener {
        /// The listener.
        listener: String,
    },
    /// Another incarnation is registered and not fenced.
    #[error("incarnation {incarnation} is registered and not fenced")]
    DuplicateRegistration {
        /// The incarnation that has the id.
        incarnation: Incarnation,
        /// Its epoch.
        epoch: BrokerEpoch,
    },
    /// The caller named another life of the broker than the one that is registered.
    #[error("{}, the request says {asked}", Present(*.broker, .present))]
    StaleBrokerEpoch {
        /// The broker.
        broker: BrokerId,
        /// The epoch in the request.
        asked: BrokerEpoch,
        /// The epoch that is registered, if any is.
        present: Option<BrokerEpoch>,
    },
    /// The broker holds replicas, which nobody would hold any more.
    #[error("it holds replicas of {count} partitions")]
    HasReplicas {
        /// Of how many partitions.
        count: u64,
    },
    /// The broker takes no new replicas.
    #[error("broker {broker} is cordoned or draining")]
    Cordoned {
        /// The broker.
        broker: BrokerId,
    },
    /// The broker may neither lead nor be in the ISR.
    #[error("broker {broker} may neither lead nor be in the ISR: {why}")]
    Ineligible {
        /// The broker.
        broker: BrokerId,
        /// Why.
        why: Ineligible,
    },

    // ----- topics
    /// No topic has this name.
    #[error("there is no such topic")]
    UnknownTopic,
    /// No topic has this id: it was deleted.
    #[error("there is no topic of this id")]
    UnknownTopicId,
    /// The name is taken by another topic.
    #[error("a topic of this name exists, its id is {id}")]
    TopicExists {
        /// The id of the topic that has the name.
        id: TopicId,
    },
    /// The name differs only in "." and "_" from another's.
    #[error("the name collides with {with}, which differs only in '.' and '_'")]
    NameCollides {
        /// The other name.
        with: TopicName,
    },
    /// The id is taken by a topic of another name.
    #[error("the id {id} belongs to another topic")]
    TopicIdInUse {
        /// The id.
        id: TopicId,
    },
    /// The name belongs to another life of the topic than the request says.
    #[error("the id of this topic is {present}, the request says {asked}")]
    InconsistentTopicId {
        /// The id in the request.
        asked: TopicId,
        /// The id that the name has.
        present: TopicId,
    },
    /// The topic is being deleted.
    #[error("the topic is being deleted")]
    Deleting,
    /// A topic has at least one partition.
    #[error("a topic has at least one partition")]
    NoPartitions,
    /// A topic only grows.
    #[error("the topic has {present} partitions already, {asked} would not be more")]
    NotAnIncrease {
        /// The number in the request.
        asked: u32,
        /// The number there is.
        present: u32,
    },
    /// The replication factor is 0, above [`Partition::REPLICAS_MAX`], or above what the cluster has.
    #[error("replication factor {asked} is outside 1 to {limit}")]
    ReplicationFactor {
        /// The factor in the request.
        asked: usize,
        /// The highest that is possible now.
        limit: usize,
    },

    // ----- partitions
    /// The topic has no such partition.
    #[error("the topic has no such partition")]
    UnknownPartition,
    /// The partition exists.
    #[error("the partition exists, the topic has {present} partitions")]
    PartitionExists {
        /// How many partitions there are.
        present: u32,
    },
    /// The partition before it neither exists nor is created.
    #[error("partition {missing} is missing: indexes continue without gaps")]
    Gap {
        /// The missing index.
        missing: PartitionIndex,
    },
    /// All partitions of a topic have as many replicas.
    #[error("{asked} replicas, the topic's replication factor is {expected}")]
    ReplicationFactorDiffers {
        /// How many the request has.
        asked: usize,
        /// How many there must be.
        expected: usize,
    },
    /// A partition has at least one replica.
    #[error("there are no replicas")]
    NoReplicas,
    /// A broker holds a partition once.
    #[error("the replicas have broker {broker} more than once")]
    RepeatedReplica {
        /// The broker.
        broker: BrokerId,
    },
    /// None of the replicas is active, so that no broker could lead.
    #[error("no replica is active")]
    NoActiveReplica,

    // ----- leaders and ISRs
    /// The leader, or a member of the ISR, is not a replica of the partition.
    #[error("broker {broker} is not a replica")]
    NotReplica {
        /// The broker.
        broker: BrokerId,
    },
    /// The leader would not be in the ISR.
    #[error("leader {leader} is not in the ISR")]
    LeaderNotInIsr {
        /// The leader, or who was to become it.
        leader: BrokerId,
    },
    /// The new ISR is empty.
    #[error("the ISR is empty")]
    EmptyIsr,
    /// The new ISR has a member twice.
    #[error("the ISR has broker {broker} more than once")]
    RepeatedIsrMember {
        /// The broker.
        broker: BrokerId,
    },
    /// The caller saw a newer state than this one: it is this view that is behind.
    #[error("the request says {asked}, which is newer than what this view has: {present}")]
    StaleView {
        /// What the caller saw.
        asked: Epochs,
        /// What there is.
        present: Epochs,
    },
    /// The leader was set since the caller looked.
    #[error("the leader was set since: the request says {asked}, now {present}")]
    FencedLeaderEpoch {
        /// What the caller saw.
        asked: Epochs,
        /// What there is.
        present: Epochs,
    },
    /// The partition changed since the caller looked, under the same leader.
    #[error("the partition changed since: the request says {asked}, now {present}")]
    StalePartitionEpoch {
        /// What the caller saw.
        asked: Epochs,
        /// What there is.
        present: Epochs,
    },
    /// Only the leader may ask for this.
    #[error("broker {caller} asks, but does not lead the partition")]
    NotLeader {
        /// Who asked.
        caller: BrokerId,
        /// Who leads.
        leader: Option<BrokerId>,
    },
    /// An ISR without a leader changes by election alone.
    #[error("no broker leads the partition")]
    NoLeader,
    /// While the leader recovers, it alone is in sync.
    #[error("the leader is recovering: no other broker may be in the ISR")]
    Recovering,
    /// A partition begins to recover by an unclean election alone.
    #[error("a recovered partition cannot be set to recovering")]
    AlreadyRecovered,
}

/// An epoch that may not exist, for people.
struct Present<'a>(BrokerId, &'a Option<BrokerEpoch>);

impl fmt::Display for Present<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(epoch) => write!(f, "the epoch of broker {} is {epoch}", self.0),
            None => write!(f, "broker {} is not registered", self.0),
        }
    }
}

/// The epochs of a partition, as a caller saw them or as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epochs {
    /// The leader epoch.
    pub leader: LeaderEpoch,
    /// The partition epoch.
    pub partition: PartitionEpoch,
}

impl Epochs {
    /// Those of a partition.
    pub fn of(partition: &Partition) -> Self {
        Self {
            leader: partition.leader_epoch,
            partition: partition.partition_epoch,
        }
    }
}

impl fmt::Display for Epochs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "leader epoch {}, partition epoch {}",
            self.leader, self.partition
        )
    }
}

impl Refusal {
    pub(crate) fn new(item: Item, reason: Reason) -> Self {
        Self { item, reason }
    }

    /// Whether the same request may be accepted later without being changed.
    pub fn is_retryable(&self) -> bool {
        use Reason as R;
        match &self.reason {
            // A broker may register, come back or be fenced, a cordon be lifted, a deletion end, a view catch up.
            R::ReplicationFactor { asked, .. } => (1..=Partition::REPLICAS_MAX).contains(asked),
            R::Ineligible { why, .. } => !matches!(why, Ineligible::StaleEpoch { .. }),
            // But who changes a broker's own row means one that there was.
            R::UnknownBroker { .. } => !matches!(self.item, Item::Broker(_)),
            R::DuplicateRegistration { .. }
            | R::Cordoned { .. }
            | R::NoActiveReplica
            | R::Deleting
            | R::StaleView { .. } => true,
            R::Repeated
            | R::NoEndpoint
            | R::RepeatedListener { .. }
            | R::StaleBrokerEpoch { .. }
            | R::HasReplicas { .. }
            | R::UnknownTopic
            | R::UnknownTopicId
            | R::TopicExists { .. }
            | R::NameCollides { .. }
            | R::TopicIdInUse { .. }
            | R::InconsistentTopicId { .. }
            | R::NoPartitions
            | R::NotAnIncrease { .. }
            | R::UnknownPartition
            | R::PartitionExists { .. }
            | R::Gap { .. }
            | R::ReplicationFactorDiffers { .. }
            | R::NoReplicas
            | R::RepeatedReplica { .. }
            | R::NotReplica { .. }
            | R::LeaderNotInIsr { .. }
            | R::EmptyIsr
            | R::RepeatedIsrMember { .. }
            | R::FencedLeaderEpoch { .. }
            | R::StalePartitionEpoch { .. }
            | R::NotLeader { .. }
            | R::NoLeader
            | R::Recovering
            | R::AlreadyRecovered => false,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Reason as R;
        match (&self.item, &self.reason) {
            // These name the broker themselves.
            (Item::Broker(item), R::UnknownBroker { broker } | R::StaleBrokerEpoch { broker, .. })
                if item == broker =>
            {
                self.reason.fmt(f)
            }
            _ => write!(f, "{}: {}", self.item, self.reason),
        }
    }
}

/// The refusals of a request, as they are found.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Vec<Refusal>);

impl Refusals {
    pub(crate) fn broker(&mut self, broker: BrokerId, reason: Reason) {
        self.0.push(Refusal::new(Item::Broker(broker), reason));
    }

    pub(crate) fn topic(&mut self, topic: &TopicName, reason: Reason) {
        self.0.push(Refusal::new(Item::Topic(topic.clone()), reason));
    }

    pub(crate) fn partition(&mut self, topic: &TopicName, index: PartitionIndex, reason: Reason) {
        self.0
            .push(Refusal::new(Item::Partition(topic.clone(), index), reason));
    }

    pub(crate) fn partition_by_id(&mut self, (topic, index): (TopicId, PartitionIndex), reason: Reason) {
        self.0
            .push(Refusal::new(Item::PartitionById(topic, index), reason));
    }

    /// All of them, where there is one.
    pub(crate) fn into_result(self) -> Result<(), Vec<Refusal>> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(self.0),
        }
    }
}
