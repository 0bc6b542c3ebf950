//! Adds partitions to topics that exist, a batch in one transaction.
//!
//! Always: the new indexes continue at the topic's present count without a gap; the topic's row counts them
//! in the same commit, so that a guard on that one row pins them all; the replication factor stays.

use std::collections::{BTreeMap, BTreeSet};

use quorate_kv::model::{Limits, Op, ReadOp, Revision};

use super::creation::{Assignment, check, check_size, create_rows, named, partition, place_partitions};
use super::{Answer, Context, Decision, Operation, Pins, Plan};
use crate::error::{Error, TooLarge};
use crate::ids::{BrokerId, PartitionIndex, TopicId};
use crate::image::Image;
use crate::keys::Keys;
use crate::name::{InvalidTopicName, TopicName};
use crate::refusal::{Reason, Refusals};
use crate::rows::{Partition, Topic};

/// A partition to be added, with who holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewPartition {
    /// The topic.
    pub topic: TopicName,
    /// Its index; together with the others of the batch it continues the topic without a gap.
    pub index: PartitionIndex,
    /// Who holds it.
    pub assignment: Assignment,
    /// Which life of the name is meant; any, when not said.
    pub topic_id: Option<TopicId>,
}

impl NewPartition {
    /// A partition of a topic, given by its replicas, the preferred leader first: `[1, 2, 3]`. Fails for text that is
    /// no topic's name.
    pub fn new(
        topic: impl TryInto<TopicName, Error: Into<InvalidTopicName>>,
        index: impl Into<PartitionIndex>,
        assignment: impl Into<Assignment>,
    ) -> Result<Self, InvalidTopicName> {
        Ok(Self {
            topic: topic.try_into().map_err(Into::into)?,
            index: index.into(),
            assignment: assignment.into(),
            topic_id: None,
        })
    }

    /// The same, only if the topic has this id.
    #[must_use]
    pub fn topic_id(mut self, id: TopicId) -> Self {
        self.topic_id = Some(id);
        self
    }
}

/// A topic that shall have more partitions, placed automatically, going on from those that it has.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GrowTopic {
    /// The topic.
    pub topic: TopicName,
    /// How many partitions it shall have in all.
    pub partitions: u32,
    /// Which life of the name is meant; any, when not said.
    pub topic_id: Option<TopicId>,
}

impl GrowTopic {
    /// A topic and how many partitions it shall have in all. Fails for text that is no topic's name.
    pub fn new(
        topic: impl TryInto<TopicName, Error: Into<InvalidTopicName>>,
        partitions: u32,
    ) -> Result<Self, InvalidTopicName> {
        Ok(Self {
            topic: topic.try_into().map_err(Into::into)?,
            partitions,
            topic_id: None,
        })
    }

    /// The same, only if the topic has this id.
    #[must_use]
    pub fn topic_id(mut self, id: TopicId) -> Self {
        self.topic_id = Some(id);
        self
    }
}

/// Partitions that exist now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CreatedPartitions {
    /// The topics that grew, by name.
    pub topics: Vec<Topic>,
    /// The new partitions, by topic and index.
    pub partitions: Vec<Partition>,
}

impl Answer for CreatedPartitions {
    fn committed(&mut self, revision: Revision) {
        for topic in &mut self.topics {
            topic.revision = revision;
        }
        for partition in &mut self.partitions {
            partition.revision = revision;
        }
    }
}

/// Adds partitions, all or none.
#[derive(Debug, Clone, Default)]
pub struct CreatePartitions {
    /// Partitions whose holders are given.
    pub partitions: Vec<NewPartition>,
    /// Topics whose new partitions are placed automatically; none of those in `partitions`.
    pub grow: Vec<GrowTopic>,
}

impl CreatePartitions {
    /// The brokers that are named.
    fn brokers(&self) -> BTreeSet<BrokerId> {
        named(self.partitions.iter().map(|new| &new.assignment)).collect()
    }

    /// Whether the given partitions fit into a transaction together with so many others and their replicas.
    fn check_growth(
        &self,
        keys: &Keys,
        limits: &Limits,
        (partitions, replicas): (u64, u64),
    ) -> Result<(), TooLarge> {
        let given = self
            .partitions
            .iter()
            .map(|new| new.assignment.replicas.len() as u64);
        let size = (
            partitions.saturating_add(self.partitions.len() as u64),
            replicas.saturating_add(given.sum()),
        );
        check_size(keys, limits, size, self.grow.len() as u64, self.brokers().len())
    }
}

impl Operation for CreatePartitions {
    type Answer = CreatedPartitions;

    fn check(&self, keys: &Keys, limits: &Limits) -> Result<(), TooLarge> {
        // What topics grow by is known once their rows are.
        self.check_growth(keys, limits, (0, 0))
    }

    fn reads(&self, keys: &Keys) -> Vec<ReadOp> {
        let manual = self.partitions.iter().map(|new| &new.topic);
        let topics: BTreeSet<_> = manual.chain(self.grow.iter().map(|grow| &grow.topic)).collect();
        let mut reads = topics
            .into_iter()
            .map(|topic| ReadOp::Get(keys.topic(topic)))
            .collect();
        super::read_brokers(keys, &mut reads, &self.brokers(), !self.grow.is_empty());
        reads
    }

    fn more_reads(&self, image: &Image) -> Vec<ReadOp> {
        let topics = self.grow.iter().filter_map(|grow| image.topics.get(&grow.topic));
        topics
            .map(|topic| super::read_all(image.keys().partitions_of(topic.id)))
            .collect()
    }

    fn decide(&self, image: &Image, context: &Context) -> Result<Decision<Self::Answer>, Error> {
        let keys = image.keys();
        self.check(keys, &context.limits)?;
        let mut refusals = Refusals::default();
        let grown = check_growth(self, image, &mut refusals);
        let growth = grown
            .iter()
            .fold((0u64, 0u64), |(partitions, replicas), (topic, total)| {
                let added = u64::from(total.saturating_sub(topic.partitions));
                let factor = u64::from(topic.replication_factor);
                (
                    partitions.saturating_add(added),
                    replicas.saturating_add(added.saturating_mul(factor)),
                )
            });
        self.check_growth(keys, &context.limits, growth)?;

        let mut created = given(self, image, context, &mut refusals);
        let mut load = BTreeMap::new();
        for (topic, total) in grown {
            let (id, factor) = (topic.id, usize::from(topic.replication_factor));
            let added = total - topic.partitions;
            match place_partitions(image, id, added, factor, image.partitions_of(id), &mut load) {
                Err(reason) => refusals.topic(&topic.name, reason),
                Ok(assignments) => {
                    let indexes = (topic.partitions..).map(PartitionIndex::new);
                    let new = indexes.zip(assignments).filter_map(|(index, assignment)| {
                        let refuse = |reason| refusals.partition(&topic.name, index, reason);
                        let first = check(image, &assignment, factor, refuse)?;
                        Some(partition((id, index), assignment.replicas, first, context.now))
                    });
                    created.insert(&topic.name, (topic, new.collect()));
                }
            }
        }
        refusals.into_result()?;

        let mut pins = Pins::of(image);
        let mut then = Vec::new();
        let mut answer = CreatedPartitions {
            topics: Vec::with_capacity(created.len()),
            partitions: Vec::new(),
        };
        for (topic, partitions) in created.into_values() {
            pins.topic(topic);
            let added = u32::try_from(partitions.len()).unwrap_or(u32::MAX);
            let topic = Topic {
                partitions: topic.partitions.saturating_add(added),
                modified_at: context.now.max(topic.modified_at),
                ..topic.clone()
            };
            then.push(Op::put(keys.topic(&topic.name), topic.encode()));
            create_rows(image, &mut pins, &mut then, &partitions);
            answer.topics.push(topic);
            answer.partitions.extend(partitions);
        }
        Ok(Decision::Commit(Plan::new(pins, then, answer, &context.limits)?))
    }
}

/// The topics that can grow, each with its new total.
fn check_growth<'a>(
    request: &CreatePartitions,
    image: &'a Image,
    refusals: &mut Refusals,
) -> Vec<(&'a Topic, u32)> {
    let mut seen: BTreeSet<&TopicName> = request.partitions.iter().map(|new| &new.topic).collect();
    let mut grown = Vec::new();
    for GrowTopic {
        topic: name,
        partitions,
        topic_id,
    } in &request.grow
    {
        if !seen.insert(name) {
            refusals.topic(name, Reason::Repeated);
            continue;
        }
        match usable(image, name, *topic_id) {
            Err(reason) => refusals.topic(name, reason),
            Ok(topic) if *partitions <= topic.partitions => {
                let (asked, present) = (*partitions, topic.partitions);
                refusals.topic(name, Reason::NotAnIncrease { asked, present });
            }
            Ok(topic) => grown.push((topic, *partitions)),
        }
    }
    grown
}

/// The topic of a name, if it may change.
fn usable<'a>(image: &'a Image, name: &TopicName, id: Option<TopicId>) -> Result<&'a Topic, Reason> {
    let topic = image.topics.get(name).ok_or(Reason::UnknownTopic)?;
    let present = topic.id;
    match id {
        Some(asked) if asked != present => Err(Reason::InconsistentTopicId { asked, present }),
        _ if topic.deleting => Err(Reason::Deleting),
        _ => Ok(topic),
    }
}

/// The partitions whose holders were given, by topic.
fn given<'a>(
    request: &'a CreatePartitions,
    image: &'a Image,
    context: &Context,
    refusals: &mut Refusals,
) -> BTreeMap<&'a TopicName, (&'a Topic, Vec<Partition>)> {
    let mut ordered: Vec<&NewPartition> = request.partitions.iter().collect();
    // Stable: of two with one index, the later one in the request is the repeated one.
    ordered.sort_by_key(|new| (&new.topic, new.index));
    let mut created: BTreeMap<&TopicName, (&Topic, Vec<Partition>)> = BTreeMap::new();
    let mut before: Option<(&TopicName, PartitionIndex)> = None;
    for new in ordered {
        let (name, index) = (&new.topic, new.index);
        let previous = before.replace((name, index));
        let previous = previous
            .filter(|(topic, _)| *topic == name)
            .map(|(_, index)| index);
        let topic = match usable(image, name, new.topic_id) {
            Ok(topic) => topic,
            Err(reason) => {
                refusals.partition(name, index, reason);
                continue;
            }
        };
        let present = topic.partitions;
        if previous == Some(index) {
            refusals.partition(name, index, Reason::Repeated);
        } else if index.number() < present {
            refusals.partition(name, index, Reason::PartitionExists { present });
        } else if index.number() > present
            && previous.map(PartitionIndex::number) != index.number().checked_sub(1)
        {
            let next = previous.map_or(present, |previous| {
                previous.number().saturating_add(1).max(present)
            });
            let missing = PartitionIndex::new(next);
            refusals.partition(name, index, Reason::Gap { missing });
        }
        let factor = usize::from(topic.replication_factor);
        let refuse = |reason| refusals.partition(name, index, reason);
        if let Some(first) = check(image, &new.assignment, factor, refuse) {
            let row = partition(
                (topic.id, index),
                new.assignment.replicas.clone(),
                first,
                context.now,
            );
            created.entry(name).or_insert((topic, Vec::new())).1.push(row);
        }
    }
    created
}
