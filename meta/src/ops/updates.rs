//! Changes who leads a partition and who is in sync, a batch in one transaction.
//!
//! Each update says which epochs its caller saw. Always: an update whose caller saw an older state is refused
//! with the present epochs, one whose caller saw a newer state than the store has is told to ask again, never
//! that it is fenced; every broker that leads or joins is pinned, so that a fence that commits in between
//! makes the update decide anew; what changes nothing commits nothing.

use std::collections::BTreeSet;

use quorate_kv::model::{Limits, ReadOp, Revision};

use super::{Answer, Context, Decision, Operation, PartitionKey, Pins, Plan, replace};
use crate::error::{Error, TooLarge};
use crate::ids::{BrokerEpoch, BrokerId, PartitionIndex, TopicId};
use crate::image::{Image, Ineligible};
use crate::keys::Keys;
use crate::refusal::{Epochs, Reason, Refusals};
use crate::rows::{Broker, Partition, Recovery};
use crate::transition::{self, LeaderSet};

/// A partition after an update.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Updated {
    /// The partition as it is now.
    pub partition: Partition,
    /// Whether this update changed it; where not, it was so already.
    pub changed: bool,
}

impl Answer for Vec<Updated> {
    fn committed(&mut self, revision: Revision) {
        for updated in self.iter_mut().filter(|updated| updated.changed) {
            updated.partition.revision = revision;
        }
    }
}

/// Another leader for a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaderUpdate {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionIndex,
    /// Who shall lead.
    pub leader: BrokerId,
    /// The epochs that the caller saw.
    pub expected: Epochs,
    /// Whether acknowledged records may be lost.
    pub election: Election,
}

/// Whether a leader may come from outside the ISR.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Election {
    /// The leader comes from the ISR, which has everything that was acknowledged.
    #[default]
    Clean,
    /// The leader may be any active replica. One from outside the ISR becomes the whole ISR, what only the
    /// others have is lost, and the partition is marked as recovering.
    Unclean,
}

impl LeaderUpdate {
    /// `leader` for this partition as the caller saw it, by a clean election.
    pub fn new(seen: &Partition, leader: impl Into<BrokerId>) -> Self {
        Self::at((seen.topic, seen.index), leader, Epochs::of(seen))
    }

    /// `leader` for the partition of this topic and index, by a clean election.
    pub fn at(
        (topic, partition): (TopicId, impl Into<PartitionIndex>),
        leader: impl Into<BrokerId>,
        expected: Epochs,
    ) -> Self {
        Self {
            topic,
            partition: partition.into(),
            leader: leader.into(),
            expected,
            election: Election::Clean,
        }
    }

    /// The same, but the leader may come from outside the ISR.
    #[must_use]
    pub fn unclean(mut self) -> Self {
        self.election = Election::Unclean;
        self
    }
}

/// Changes leaders, all or none.
#[derive(Debug, Clone)]
pub struct UpdateLeaders(pub Vec<LeaderUpdate>);

impl Operation for UpdateLeaders {
    type Answer = Vec<Updated>;

    fn check(&self, _: &Keys, limits: &Limits) -> Result<(), TooLarge> {
        check_size(self.0.len(), limits)
    }

    fn reads(&self, keys: &Keys) -> Vec<ReadOp> {
        let partitions = self.0.iter().map(|update| (update.topic, update.partition));
        reads(
            keys,
            partitions,
            self.0.iter().map(|update| update.leader).collect(),
        )
    }

    fn more_reads(&self, image: &Image) -> Vec<ReadOp> {
        missing_topics(
            image,
            self.0.iter().map(|update| (update.topic, update.partition)),
        )
    }

    fn decide(&self, image: &Image, context: &Context) -> Result<Decision<Self::Answer>, Error> {
        let mut batch = Batch::begin(self.0.len(), image, context)?;
        for update in &self.0 {
            let key = (update.topic, update.partition);
            let Some(before) = batch.find(image, key) else {
                continue;
            };
            match leader(image, before, update) {
                Err(reasons) => batch.refuse(key, reasons),
                Ok(after) => {
                    batch.pins.broker_in(image, update.leader);
                    batch.change(before, after, context);
                }
            }
        }
        batch.end(context)
    }
}

/// The partition with another leader, or everything that speaks against it.
fn leader(image: &Image, before: &Partition, update: &LeaderUpdate) -> Result<Partition, Vec<Reason>> {
    check_epochs(before, update.expected).map_err(|reason| vec![reason])?;
    let broker = update.leader;
    if !before.replicas.contains(&broker) {
        return Err(vec![Reason::NotReplica { broker }]);
    }
    let mut reasons = Vec::new();
    if let Some(why) = image.ineligible(broker) {
        reasons.push(Reason::Ineligible { broker, why });
    }
    let in_sync = before.isr.contains(&broker);
    let after = match update.election {
        Election::Unclean if !in_sync => transition::unclean(before, broker),
        Election::Clean | Election::Unclean => {
            if !in_sync {
                reasons.push(Reason::LeaderNotInIsr { leader: broker });
            }
            Partition {
                leader: Some(broker),
                ..before.clone()
            }
        }
    };
    if reasons.is_empty() {
        Ok(after)
    } else {
        Err(reasons)
    }
}

/// Another ISR for a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct IsrUpdate {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionIndex,
    /// The new ISR, in any order.
    pub isr: Vec<IsrMember>,
    /// The epochs that the caller saw.
    pub expected: Epochs,
    /// Which broker asks. It must lead the partition, in this life. `None`: an operator asks.
    pub caller: Option<(BrokerId, BrokerEpoch)>,
    /// The leader says that it has recovered (`Some(Recovered)`); `None` leaves it as it is.
    pub recovery: Option<Recovery>,
}

/// A member of a new ISR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IsrMember {
    /// The broker.
    pub broker: BrokerId,
    /// The life of it that caught up. Said by the leader, a restart in between is noticed; `None` is not
    /// checked.
    pub epoch: Option<BrokerEpoch>,
}

impl From<BrokerId> for IsrMember {
    fn from(broker: BrokerId) -> Self {
        Self { broker, epoch: None }
    }
}

impl From<u64> for IsrMember {
    fn from(broker: u64) -> Self {
        BrokerId::new(broker).into()
    }
}

/// The life of the broker that was seen.
impl From<&Broker> for IsrMember {
    fn from(broker: &Broker) -> Self {
        Self {
            broker: broker.id,
            epoch: Some(broker.epoch),
        }
    }
}

impl IsrUpdate {
    /// Another ISR for this partition as an operator saw it.
    pub fn new(seen: &Partition, isr: impl IntoIterator<Item: Into<IsrMember>>) -> Self {
        Self::at((seen.topic, seen.index), isr, Epochs::of(seen))
    }

    /// Another ISR for the partition of this topic and index.
    pub fn at(
        (topic, partition): (TopicId, impl Into<PartitionIndex>),
        isr: impl IntoIterator<Item: Into<IsrMember>>,
        expected: Epochs,
    ) -> Self {
        Self {
            topic,
            partition: partition.into(),
            isr: isr.into_iter().map(Into::into).collect(),
            expected,
            caller: None,
            recovery: None,
        }
    }

    /// The same, asked for by the leader.
    #[must_use]
    pub fn asked_by(mut self, broker: impl Into<BrokerId>, epoch: BrokerEpoch) -> Self {
        self.caller = Some((broker.into(), epoch));
        self
    }

    /// The same, and the leader says that it has recovered.
    #[must_use]
    pub fn recovered(mut self) -> Self {
        self.recovery = Some(Recovery::Recovered);
        self
    }
}

/// Changes ISRs, all or none.
#[derive(Debug, Clone)]
pub struct UpdateIsrs(pub Vec<IsrUpdate>);

impl Operation for UpdateIsrs {
    type Answer = Vec<Updated>;

    fn check(&self, _: &Keys, limits: &Limits) -> Result<(), TooLarge> {
        check_size(self.0.len(), limits)
    }

    fn reads(&self, keys: &Keys) -> Vec<ReadOp> {
        let partitions = self.0.iter().map(|update| (update.topic, update.partition));
        let members = self
            .0
            .iter()
            .flat_map(|update| update.isr.iter().map(|member| member.broker));
        let callers = self
            .0
            .iter()
            .filter_map(|update| update.caller.map(|(broker, _)| broker));
        reads(keys, partitions, members.chain(callers).collect())
    }

    fn more_reads(&self, image: &Image) -> Vec<ReadOp> {
        missing_topics(
            image,
            self.0.iter().map(|update| (update.topic, update.partition)),
        )
    }

    fn decide(&self, image: &Image, context: &Context) -> Result<Decision<Self::Answer>, Error> {
        let mut batch = Batch::begin(self.0.len(), image, context)?;
        for update in &self.0 {
            let key = (update.topic, update.partition);
            if let Some(reason) = check_caller(image, update) {
                batch.refuse(key, vec![reason]);
                continue;
            }
            let Some(before) = batch.find(image, key) else {
                continue;
            };
            match isr(image, before, update) {
                Err(reasons) => batch.refuse(key, reasons),
                Ok(after) => {
                    let caller = update.caller.iter().map(|(broker, _)| *broker);
                    for broker in update.isr.iter().map(|member| member.broker).chain(caller) {
                        batch.pins.broker_in(image, broker);
                    }
                    batch.change(before, after, context);
                }
            }
        }
        batch.end(context)
    }
}

/// Refuses a caller of another life than the registered one.
fn check_caller(image: &Image, update: &IsrUpdate) -> Option<Reason> {
    let (broker, asked) = update.caller?;
    let present = image.brokers.get(&broker).map(|row| row.epoch);
    (present != Some(asked)).then_some(Reason::StaleBrokerEpoch {
        broker,
        asked,
        present,
    })
}

/// The partition with another ISR, or everything that speaks against it.
fn isr(image: &Image, before: &Partition, update: &IsrUpdate) -> Result<Partition, Vec<Reason>> {
    let one = |reason| Err(vec![reason]);
    if let Err(reason) = check_epochs(before, update.expected) {
        return one(reason);
    }
    if let Some((caller, _)) = update.caller
        && before.leader != Some(caller)
    {
        let leader = before.leader;
        return one(Reason::NotLeader { caller, leader });
    }
    let Some(leader) = before.leader else {
        return one(Reason::NoLeader);
    };
    if update.isr.is_empty() {
        return one(Reason::EmptyIsr);
    }
    let mut reasons = Vec::new();
    let mut seen = BTreeSet::new();
    for member in &update.isr {
        let broker = member.broker;
        if !seen.insert(broker) {
            reasons.push(Reason::RepeatedIsrMember { broker });
        } else if !before.replicas.contains(&broker) {
            reasons.push(Reason::NotReplica { broker });
        } else if let Some(why) = ineligible(image, member) {
            reasons.push(Reason::Ineligible { broker, why });
        }
    }
    if !seen.contains(&leader) {
        reasons.push(Reason::LeaderNotInIsr { leader });
    }
    let recovery = update.recovery.unwrap_or(before.recovery);
    match (before.recovery, recovery) {
        (Recovery::Recovered, Recovery::Recovering) => reasons.push(Reason::AlreadyRecovered),
        (Recovery::Recovering, Recovery::Recovering) if seen.len() > 1 => {
            reasons.push(Reason::Recovering);
        }
        _ => {}
    }
    if !reasons.is_empty() {
        return Err(reasons);
    }
    let members: Vec<BrokerId> = seen.into_iter().collect();
    Ok(Partition {
        isr: before.in_order(&members),
        recovery,
        ..before.clone()
    })
}

/// Why a member may not be in an ISR, in the life that the caller saw.
fn ineligible(image: &Image, member: &IsrMember) -> Option<Ineligible> {
    image.ineligible(member.broker).or_else(|| {
        let (asked, present) = (member.epoch?, image.brokers.get(&member.broker)?.epoch);
        (asked != present).then_some(Ineligible::StaleEpoch { asked, present })
    })
}

/// Compares what the caller saw with what there is. Newer before older: who is behind must not fence.
fn check_epochs(partition: &Partition, asked: Epochs) -> Result<(), Reason> {
    let present = Epochs::of(partition);
    if asked.leader > present.leader || asked.partition > present.partition {
        Err(Reason::StaleView { asked, present })
    } else if asked.leader < present.leader {
        Err(Reason::FencedLeaderEpoch { asked, present })
    } else if asked.partition < present.partition {
        Err(Reason::StalePartitionEpoch { asked, present })
    } else {
        Ok(())
    }
}

/// A pin and a write each, at least.
fn check_size(updates: usize, limits: &Limits) -> Result<(), TooLarge> {
    let (asked, limit) = ((updates as u64).saturating_mul(2), limits.txn_ops_max);
    match asked > limit as u64 {
        true => Err(TooLarge::operations(asked, limit)),
        false => Ok(()),
    }
}

fn reads(
    keys: &Keys,
    partitions: impl Iterator<Item = PartitionKey>,
    brokers: BTreeSet<BrokerId>,
) -> Vec<ReadOp> {
    let mut reads = partitions
        .map(|(topic, index)| ReadOp::Get(keys.partition(topic, index)))
        .collect();
    super::read_brokers(keys, &mut reads, &brokers, false);
    reads
}

/// Where a partition is missing: whether its topic is too, which its first partition tells.
fn missing_topics(image: &Image, partitions: impl Iterator<Item = PartitionKey>) -> Vec<ReadOp> {
    let missing = partitions.filter(|key| !image.partitions.contains_key(key));
    let topics: BTreeSet<TopicId> = missing.map(|(topic, _)| topic).collect();
    let first = |topic| ReadOp::Get(image.keys().partition(topic, PartitionIndex::FIRST));
    topics.into_iter().map(first).collect()
}

/// A batch of updates on the way to one plan.
struct Batch {
    seen: BTreeSet<PartitionKey>,
    refusals: Refusals,
    pins: Pins,
    then: Vec<quorate_kv::model::Op>,
    answer: Vec<Updated>,
}

impl Batch {
    fn begin(size: usize, image: &Image, context: &Context) -> Result<Self, TooLarge> {
        check_size(size, &context.limits)?;
        Ok(Self {
            seen: BTreeSet::new(),
            refusals: Refusals::default(),
            pins: Pins::of(image),
            then: Vec::with_capacity(size),
            answer: Vec::with_capacity(size),
        })
    }

    fn refuse(&mut self, key: PartitionKey, reasons: Vec<Reason>) {
        for reason in reasons {
            self.refusals.partition_by_id(key, reason);
        }
    }

    fn find<'a>(&mut self, image: &'a Image, key: PartitionKey) -> Option<&'a Partition> {
        if !self.seen.insert(key) {
            self.refuse(key, vec![Reason::Repeated]);
            return None;
        }
        let found = image.partitions.get(&key);
        if found.is_none() {
            let topic_exists = image.partitions.contains_key(&(key.0, PartitionIndex::FIRST));
            let reason = if topic_exists {
                Reason::UnknownPartition
            } else {
                Reason::UnknownTopicId
            };
            self.refuse(key, vec![reason]);
        }
        found
    }

    fn change(&mut self, before: &Partition, after: Partition, context: &Context) {
        let next = transition::next(before, after, LeaderSet::IfDifferent, context.now);
        let changed = next.is_some();
        if let Some(after) = &next {
            replace(&mut self.pins, &mut self.then, before, after);
        } else {
            // What was so already must still be so when the rest commits.
            self.pins.partition(before);
        }
        let partition = next.unwrap_or_else(|| before.clone());
        self.answer.push(Updated { partition, changed });
    }

    fn end(self, context: &Context) -> Result<Decision<Vec<Updated>>, Error> {
        self.refusals.into_result()?;
        let plan = Plan::new(self.pins, self.then, self.answer, &context.limits)?;
        Ok(Decision::Commit(plan))
    }
}
