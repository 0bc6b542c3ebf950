//! What the creation of topics and of partitions have in common: assignments and their checks.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use quorate_kv::model::{Limits, LogTime, Op, Revision};

use super::Pins;
use crate::error::TooLarge;
use crate::ids::{BrokerId, LeaderEpoch, PartitionEpoch, TopicId};
use crate::image::{Image, Ineligible};
use crate::keys::Keys;
use crate::place::{self, Load};
use crate::refusal::Reason;
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
    pub fn new(replicas: impl IntoIterator<Item: Into<BrokerId>>) -> Self {
        Self {
            replicas: replicas.into_iter().map(Into::into).collect(),
            leader: None,
            isr: None,
        }
    }

    /// The same with another first leader.
    #[must_use]
    pub fn leader(mut self, leader: impl Into<BrokerId>) -> Self {
        self.leader = Some(leader.into());
        self
    }

    /// The same with another first ISR.
    #[must_use]
    pub fn isr(mut self, isr: impl IntoIterator<Item: Into<BrokerId>>) -> Self {
        self.isr = Some(isr.into_iter().map(Into::into).collect());
        self
    }
}

/// The replicas, the preferred leader first: `[1, 2, 3]`.
impl<R: IntoIterator<Item: Into<BrokerId>>> From<R> for Assignment {
    fn from(replicas: R) -> Self {
        Assignment::new(replicas)
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
    mut refuse: impl FnMut(Reason),
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
        refuse(Reason::NoReplicas);
        return None;
    }
    if replicas.len() > Partition::REPLICAS_MAX {
        refuse(Reason::ReplicationFactor {
            asked: replicas.len(),
            limit: Partition::REPLICAS_MAX,
        });
        return None;
    }
    if replicas.len() != factor {
        refuse(Reason::ReplicationFactorDiffers {
            asked: replicas.len(),
            expected: factor,
        });
    }
    if let Some(broker) = repeated(replicas) {
        refuse(Reason::RepeatedReplica { broker });
    }
    for broker in replicas {
        match image.brokers.get(broker) {
            None => refuse(Reason::UnknownBroker { broker: *broker }),
            Some(row) if row.cordoned || row.draining => refuse(Reason::Cordoned { broker: *broker }),
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
                refuse(Reason::EmptyIsr);
            }
            // Of one member more than there are replicas, one is repeated or no replica: the rest says nothing new.
            let isr = &isr[..isr.len().min(replicas.len() + 1)];
            if let Some(broker) = repeated(isr) {
                refuse(Reason::RepeatedIsrMember { broker });
            }
            for broker in isr {
                if !replicas.contains(broker) {
                    refuse(Reason::NotReplica { broker: *broker });
                } else if let Some(why) = image.ineligible(*broker)
                    && why != Ineligible::NotRegistered
                {
                    refuse(Reason::Ineligible { broker: *broker, why });
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
            refuse(Reason::NotReplica { broker: *leader });
        } else if !isr.contains(leader) {
            refuse(Reason::LeaderNotInIsr { leader: *leader });
        }
    }
    let first = isr.first().copied();
    if first.is_none() && fits.get() {
        refuse(Reason::NoActiveReplica);
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
) -> Result<Vec<Assignment>, Reason> {
    let takes = image.brokers.values().filter(|broker| broker.takes_replicas());
    let brokers: Vec<BrokerId> = takes.map(|broker| broker.id).collect();
    let limit = brokers.len().min(Partition::REPLICAS_MAX);
    if factor == 0 || factor > limit {
        return Err(Reason::ReplicationFactor { asked: factor, limit });
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
        Err(few) => Err(Reason::ReplicationFactor {
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
    use crate::ids::PartitionIndex;

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
