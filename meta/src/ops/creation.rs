//! What the creation of topics and of partitions have in common: assignments, their checks, their refusals.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use quorate_kv::model::{Limits, LogTime, Op, Revision};

use super::Pins;
use crate::error::{Refusal, TooLarge};
use crate::ids::{BrokerId, LeaderEpoch, PartitionEpoch, PartitionIndex, TopicId};
use crate::image::{Image, Ineligible};
use crate::keys::Keys;
use crate::name::TopicName;
use crate::place::{self, Load};
use crate::rows::{Partition, Recovery};

/// Who holds a new partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The replicas, the preferred leader first.
    pub replicas: Vec<BrokerId>,
    /// The first leader; by default the first replica of the ISR.
    pub leader: Option<BrokerId>,
    /// The first ISR; by default the replicas that are active.
    pub isr: Option<Vec<BrokerId>>,
}

impl Assignment {
    /// These replicas; those that are active form the ISR, and the first of them leads.
    pub fn new(replicas: impl IntoIterator<Item = BrokerId>) -> Self {
        Self {
            replicas: replicas.into_iter().collect(),
            leader: None,
            isr: None,
        }
    }

    /// The same with another first leader.
    #[must_use]
    pub fn leader(mut self, leader: BrokerId) -> Self {
        self.leader = Some(leader);
        self
    }

    /// The same with another first ISR.
    #[must_use]
    pub fn isr(mut self, isr: impl IntoIterator<Item = BrokerId>) -> Self {
        self.isr = Some(isr.into_iter().collect());
        self
    }
}

/// A topic or partition that was not created, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CreateRefusal {
    /// The topic.
    pub topic: TopicName,
    /// The partition, where the reason is about one.
    pub partition: Option<PartitionIndex>,
    /// The reason.
    pub reason: CreateReason,
}

/// Why a topic or a partition was not created, or a topic not deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CreateReason {
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
    /// The topic stands twice in the batch.
    #[error("the topic stands in the batch more than once")]
    RepeatedTopic,
    /// No such topic.
    #[error("there is no such topic")]
    UnknownTopic,
    /// The name belongs to another life of the topic than the caller meant.
    #[error("the name belongs to topic {present}, the caller meant {asked}")]
    InconsistentTopicId {
        /// The id that the caller gave.
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
    #[error("{asked} partitions are no increase, the topic has {present}")]
    NotAnIncrease {
        /// The number asked for.
        asked: u32,
        /// The number there is.
        present: u32,
    },
    /// The partition exists.
    #[error("the partition exists, the topic has {present} partitions")]
    PartitionExists {
        /// How many partitions there are.
        present: u32,
    },
    /// The partition stands twice in the batch.
    #[error("the partition stands in the batch more than once")]
    RepeatedPartition,
    /// The partition before it neither exists nor is created.
    #[error("partition {missing} is missing: indexes continue without gaps")]
    Gap {
        /// The missing index.
        missing: PartitionIndex,
    },
    /// The replication factor is 0, above [`Partition::REPLICAS_MAX`], or above what the cluster has.
    #[error("replication factor {asked} is outside 1 to {limit}")]
    ReplicationFactor {
        /// The factor asked for.
        asked: usize,
        /// The highest that is possible now.
        limit: usize,
    },
    /// All partitions of a topic have as many replicas.
    #[error("{asked} replicas, the topic's replication factor is {expected}")]
    ReplicationFactorDiffers {
        /// How many there are.
        asked: usize,
        /// How many there must be.
        expected: usize,
    },
    /// A partition has at least one replica.
    #[error("there are no replicas")]
    NoReplicas,
    /// A broker holds a partition once.
    #[error("broker {broker} stands in the replicas more than once")]
    RepeatedReplica {
        /// The broker.
        broker: BrokerId,
    },
    /// No such broker.
    #[error("broker {broker} is not registered")]
    UnknownBroker {
        /// The broker.
        broker: BrokerId,
    },
    /// The broker takes no new replicas.
    #[error("broker {broker} is cordoned or draining")]
    Cordoned {
        /// The broker.
        broker: BrokerId,
    },
    /// None of the replicas is active, so nobody could lead.
    #[error("no replica is active")]
    NoActiveReplica,
    /// The leader is not a replica.
    #[error("leader {leader} is not a replica")]
    LeaderNotReplica {
        /// The leader.
        leader: BrokerId,
    },
    /// The leader is not in the ISR.
    #[error("leader {leader} is not in the ISR")]
    LeaderNotInIsr {
        /// The leader.
        leader: BrokerId,
    },
    /// The ISR is given and empty.
    #[error("the ISR is empty")]
    EmptyIsr,
    /// A member of the ISR stands there twice.
    #[error("broker {broker} stands in the ISR more than once")]
    RepeatedIsrMember {
        /// The broker.
        broker: BrokerId,
    },
    /// A member of the ISR is not a replica.
    #[error("broker {broker} of the ISR is not a replica")]
    IsrNotReplica {
        /// The broker.
        broker: BrokerId,
    },
    /// A member of the ISR may not be in one.
    #[error("broker {broker} may not be in the ISR: {why}")]
    Ineligible {
        /// The broker.
        broker: BrokerId,
        /// Why.
        why: Ineligible,
    },
}

impl fmt::Display for CreateRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.partition {
            None => write!(f, "{}: {}", self.topic, self.reason),
            Some(partition) => write!(f, "{}/{partition}: {}", self.topic, self.reason),
        }
    }
}

impl Refusal for CreateRefusal {
    fn is_retryable(&self) -> bool {
        use CreateReason as R;
        match &self.reason {
            // A broker may come (back), a cordon may be lifted.
            R::ReplicationFactor { asked, .. } => (1..=Partition::REPLICAS_MAX).contains(asked),
            R::UnknownBroker { .. } | R::Cordoned { .. } | R::NoActiveReplica | R::Ineligible { .. } => true,
            R::Deleting => true,
            R::TopicExists { .. }
            | R::NameCollides { .. }
            | R::TopicIdInUse { .. }
            | R::RepeatedTopic
            | R::UnknownTopic
            | R::InconsistentTopicId { .. }
            | R::NoPartitions
            | R::NotAnIncrease { .. }
            | R::PartitionExists { .. }
            | R::RepeatedPartition
            | R::Gap { .. }
            | R::ReplicationFactorDiffers { .. }
            | R::NoReplicas
            | R::RepeatedReplica { .. }
            | R::LeaderNotReplica { .. }
            | R::LeaderNotInIsr { .. }
            | R::EmptyIsr
            | R::RepeatedIsrMember { .. }
            | R::IsrNotReplica { .. } => false,
        }
    }
}

/// Collects the refusals of a batch.
#[derive(Default)]
pub(super) struct Refusals(pub(super) Vec<CreateRefusal>);

impl Refusals {
    pub(super) fn topic(&mut self, topic: &TopicName, reason: CreateReason) {
        let topic = topic.clone();
        self.0.push(CreateRefusal {
            topic,
            partition: None,
            reason,
        });
    }

    pub(super) fn partition(&mut self, topic: &TopicName, index: PartitionIndex, reason: CreateReason) {
        let (topic, partition) = (topic.clone(), Some(index));
        self.0.push(CreateRefusal {
            topic,
            partition,
            reason,
        });
    }
}

/// The broker that stands first at an earlier place too, if any does.
fn repeated(members: &[BrokerId]) -> Option<BrokerId> {
    let mut seen = members.iter().enumerate();
    seen.find(|(at, member)| members.iter().take(*at).any(|m| m == *member))
        .map(|(_, member)| *member)
}

/// Checks who shall hold a partition; `refuse` hears of everything that is wrong. `factor` is how many
/// replicas the topic's partitions have. Gives the first ISR, in the order of the replicas, and leader.
pub(super) fn check(
    image: &Image,
    assignment: &Assignment,
    factor: usize,
    mut refuse: impl FnMut(CreateReason),
) -> Option<(Vec<BrokerId>, BrokerId)> {
    let Assignment {
        replicas,
        leader,
        isr,
    } = assignment;
    let fits = Cell::new(true);
    let mut refuse = |reason| {
        fits.set(false);
        refuse(reason);
    };
    if replicas.is_empty() {
        refuse(CreateReason::NoReplicas);
        return None;
    }
    if replicas.len() > Partition::REPLICAS_MAX {
        refuse(CreateReason::ReplicationFactor {
            asked: replicas.len(),
            limit: Partition::REPLICAS_MAX,
        });
        return None;
    }
    if replicas.len() != factor {
        refuse(CreateReason::ReplicationFactorDiffers {
            asked: replicas.len(),
            expected: factor,
        });
    }
    if let Some(broker) = repeated(replicas) {
        refuse(CreateReason::RepeatedReplica { broker });
    }
    for broker in replicas {
        match image.brokers.get(broker) {
            None => refuse(CreateReason::UnknownBroker { broker: *broker }),
            Some(row) if row.cordoned || row.draining => refuse(CreateReason::Cordoned { broker: *broker }),
            Some(_) => {}
        }
    }
    let isr = match isr {
        None => replicas
            .iter()
            .copied()
            .filter(|r| image.ineligible(*r).is_none())
            .collect(),
        Some(isr) => {
            if isr.is_empty() {
                refuse(CreateReason::EmptyIsr);
            }
            // Of one member more than there are replicas, one is repeated or no replica: the rest says nothing new.
            let isr = &isr[..isr.len().min(replicas.len() + 1)];
            if let Some(broker) = repeated(isr) {
                refuse(CreateReason::RepeatedIsrMember { broker });
            }
            for broker in isr {
                if !replicas.contains(broker) {
                    refuse(CreateReason::IsrNotReplica { broker: *broker });
                } else if let Some(why) = image.ineligible(*broker)
                    && why != Ineligible::NotRegistered
                {
                    refuse(CreateReason::Ineligible { broker: *broker, why });
                }
            }
            replicas
                .iter()
                .copied()
                .filter(|r| isr.contains(r))
                .collect::<Vec<_>>()
        }
    };
    if let Some(leader) = leader {
        if !replicas.contains(leader) {
            refuse(CreateReason::LeaderNotReplica { leader: *leader });
        } else if !isr.contains(leader) {
            refuse(CreateReason::LeaderNotInIsr { leader: *leader });
        }
    }
    let first = isr.first().copied();
    if first.is_none() && fits.get() {
        refuse(CreateReason::NoActiveReplica);
    }
    let leader = leader.or(first)?;
    fits.get().then_some((isr, leader))
}

/// Places new partitions of a topic; refuses a factor that the cluster cannot give. `load` counts what the
/// batch gave each broker so far, and `present` are the topic's partitions.
pub(super) fn place_partitions<'a>(
    image: &Image,
    id: TopicId,
    partitions: u32,
    factor: usize,
    present: impl Iterator<Item = &'a Partition>,
    load: &mut BTreeMap<BrokerId, Load>,
) -> Result<Vec<Assignment>, CreateReason> {
    let takes = image.brokers.values().filter(|broker| broker.takes_replicas());
    let brokers: Vec<BrokerId> = takes.map(|broker| broker.id).collect();
    let limit = brokers.len().min(Partition::REPLICAS_MAX);
    if factor == 0 || factor > limit {
        return Err(CreateReason::ReplicationFactor { asked: factor, limit });
    }
    let mut topic: BTreeMap<BrokerId, Load> = BTreeMap::new();
    for partition in present {
        for replica in &partition.replicas {
            topic.entry(*replica).or_default().replicas += 1;
        }
        // The first replica is who leads when all are well: that is what shall be even.
        if let Some(preferred) = partition.replicas.first() {
            topic.entry(*preferred).or_default().leaders += 1;
        }
    }
    let request = place::Request {
        brokers: &brokers,
        partitions,
        replication_factor: factor,
        topic: &topic,
        // The topic's id is random and known to whoever retries: topics differ, and a retry does not.
        seed: id.uuid().as_u64_pair().1,
    };
    match place::place(&request, load) {
        Ok(placed) => Ok(placed.into_iter().map(Assignment::new).collect()),
        Err(few) => Err(CreateReason::ReplicationFactor {
            asked: few.asked,
            limit: few.brokers,
        }),
    }
}

/// The row of a partition that begins.
pub(super) fn partition(
    key: super::PartitionKey,
    replicas: Vec<BrokerId>,
    (isr, leader): (Vec<BrokerId>, BrokerId),
    now: LogTime,
) -> Partition {
    Partition {
        topic: key.0,
        index: key.1,
        replicas,
        isr,
        eligible_leaders: Vec::new(),
        last_known_leaders: Vec::new(),
        leader: Some(leader),
        leader_epoch: LeaderEpoch::FIRST,
        partition_epoch: PartitionEpoch::FIRST,
        recovery: Recovery::Recovered,
        adding: Vec::new(),
        removing: Vec::new(),
        created_at: now,
        modified_at: now,
        revision: Revision::FIRST,
    }
}

/// The brokers that assignments name, but for those of an assignment that is refused for its length alone.
pub(super) fn named<'a>(assignments: impl Iterator<Item = &'a Assignment>) -> impl Iterator<Item = BrokerId> {
    let possible = assignments.filter(|assignment| assignment.replicas.len() <= Partition::REPLICAS_MAX);
    possible.flat_map(|assignment| assignment.replicas.iter().copied())
}

/// Whether so many partitions and rows beside them fit into a transaction, with the brokers that it pins.
pub(super) fn check_size(
    keys: &Keys,
    limits: &Limits,
    (partitions, replicas): (u64, u64),
    others: u64,
    brokers: usize,
) -> Result<(), TooLarge> {
    let operations = partitions.saturating_add(others).saturating_add(brokers as u64);
    if operations > limits.txn_ops_max as u64 {
        return Err(TooLarge::operations(operations, limits.txn_ops_max));
    }
    let bytes = bytes_min(keys, partitions, replicas);
    if bytes > limits.txn_bytes_max as u64 {
        return Err(TooLarge::bytes(bytes, limits.txn_bytes_max));
    }
    Ok(())
}

/// The least that the keys and values of so many partitions take, with so many replicas in all: each replica and each
/// other field of a row has a byte at least.
fn bytes_min(keys: &Keys, partitions: u64, replicas: u64) -> u64 {
    const FIELDS: u64 = 14;
    let each = keys.partition_bytes() as u64 + FIELDS;
    partitions.saturating_mul(each).saturating_add(replicas)
}

/// Plans the rows of new partitions and pins the brokers that hold them.
pub(super) fn create_rows(image: &Image, pins: &mut Pins, then: &mut Vec<Op>, partitions: &[Partition]) {
    let replicas = partitions.iter().flat_map(|partition| &partition.replicas);
    for broker in replicas.collect::<BTreeSet<_>>() {
        pins.broker_in(image, *broker);
    }
    let row = |row: &Partition| Op::create(image.keys().partition(row.topic, row.index), row.encode());
    then.extend(partitions.iter().map(row));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rows_take_at_least_is_never_more_than_what_they_take() {
        let keys = Keys::default();
        for replicas in [1, 3, 32] {
            let brokers: Vec<_> = (1..=replicas).map(BrokerId::new).collect();
            let first = (brokers.clone(), brokers[0]);
            let key = (TopicId::random(), PartitionIndex::FIRST);
            let row = partition(key, brokers, first, LogTime::from_millis(0));
            let took = keys.partition(key.0, key.1).len() + row.encode().len();
            let least = bytes_min(&keys, 1, replicas);
            assert!(least <= took as u64, "{replicas} replicas: {least} and {took}");
            assert!(
                took as u64 - least <= 8,
                "{replicas} replicas: {least} and {took}"
            );
        }
    }
}
