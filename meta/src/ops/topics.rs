//! Creates topics together with their partitions, and deletes them, each batch in one transaction.
//!
//! Always: a topic never exists without its partitions; a name belongs to one topic at a time, an id to one
//! name for ever; a create that is asked again with the same id answers the topic that exists.

use std::collections::{BTreeMap, BTreeSet};

use quorate_kv::model::{Limits, Op, ReadOp, Revision};

pub use super::creation::Assignment;
use super::creation::{check, check_size, create_rows, named, partition, place_partitions};
use super::{Answer, Context, Decision, Operation, Pins, Plan};
use crate::error::{Error, TooLarge};
use crate::ids::{BrokerId, PartitionIndex, TopicId};
use crate::image::Image;
use crate::keys::Keys;
use crate::name::{InvalidTopicName, TopicName};
use crate::place::Load;
use crate::refusal::{Reason, Refusals};
use crate::rows::{Partition, Topic};

/// A topic to be created.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CreateTopic {
    /// Its name.
    pub name: TopicName,
    /// Its id, minted by the client: asked again with the same id, the create answers the existing topic.
    pub id: TopicId,
    /// Its partitions.
    pub layout: Layout,
    /// Settings that differ from the cluster's.
    pub config: BTreeMap<String, String>,
}

/// Which partitions a new topic has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// So many, placed by [`place`](crate::place::place) on brokers that take replicas.
    Automatic {
        /// How many partitions.
        partitions: u32,
        /// How many replicas each.
        replication_factor: u16,
    },
    /// These, with the indexes 0, 1 and so on; each with as many replicas.
    Manual(Vec<Assignment>),
}

impl CreateTopic {
    /// A topic with a new id, whose partitions are placed automatically. Fails for text that is no name.
    pub fn new(
        name: impl TryInto<TopicName, Error: Into<InvalidTopicName>>,
        partitions: u32,
        replication_factor: u16,
    ) -> Result<Self, InvalidTopicName> {
        let layout = Layout::Automatic {
            partitions,
            replication_factor,
        };
        Self::with(name, layout)
    }

    /// A topic with a new id and these partitions, each given by its replicas, the preferred leader first:
    /// `[[1, 2], [2, 3]]`. Fails for text that is no name.
    pub fn manual(
        name: impl TryInto<TopicName, Error: Into<InvalidTopicName>>,
        partitions: impl IntoIterator<Item: Into<Assignment>>,
    ) -> Result<Self, InvalidTopicName> {
        let partitions = partitions.into_iter().map(Into::into);
        Self::with(name, Layout::Manual(partitions.collect()))
    }

    fn with(
        name: impl TryInto<TopicName, Error: Into<InvalidTopicName>>,
        layout: Layout,
    ) -> Result<Self, InvalidTopicName> {
        Ok(Self {
            name: name.try_into().map_err(Into::into)?,
            id: TopicId::random(),
            layout,
            config: BTreeMap::new(),
        })
    }

    /// The same with another id.
    #[must_use]
    pub fn id(mut self, id: TopicId) -> Self {
        self.id = id;
        self
    }

    /// The same with a setting.
    #[must_use]
    pub fn config(mut self, setting: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.insert(setting.into(), value.into());
        self
    }

    /// How many partitions it has, and how many replicas they have in all.
    fn size(&self) -> (u64, u64) {
        match &self.layout {
            Layout::Automatic {
                partitions,
                replication_factor,
            } => {
                let partitions = u64::from(*partitions);
                (
                    partitions,
                    partitions.saturating_mul(u64::from(*replication_factor)),
                )
            }
            Layout::Manual(assignments) => {
                let replicas = assignments
                    .iter()
                    .map(|assignment| assignment.replicas.len() as u64);
                (assignments.len() as u64, replicas.sum())
            }
        }
    }

    /// The assignments that were given.
    fn given(&self) -> &[Assignment] {
        match &self.layout {
            Layout::Automatic { .. } => &[],
            Layout::Manual(assignments) => assignments,
        }
    }
}

/// A topic that exists now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CreatedTopic {
    /// The topic.
    pub topic: Topic,
    /// Its partitions, in the order of their indexes.
    pub partitions: Vec<Partition>,
    /// Whether this call created it.
    pub creation: Creation,
}

/// Whether a create did something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Creation {
    /// It did.
    Created,
    /// An earlier create with the same topic id had, whose answer was lost.
    Existed,
}

impl Answer for Vec<CreatedTopic> {
    fn committed(&mut self, revision: Revision) {
        for created in self.iter_mut().filter(|c| c.creation == Creation::Created) {
            created.topic.revision = revision;
            for partition in &mut created.partitions {
                partition.revision = revision;
            }
        }
    }
}

/// Creates topics, all or none.
#[derive(Debug, Clone)]
pub struct CreateTopics(pub Vec<CreateTopic>);

impl CreateTopics {
    /// The brokers that are named.
    fn brokers(&self) -> BTreeSet<BrokerId> {
        named(self.0.iter().flat_map(CreateTopic::given)).collect()
    }
}

impl Operation for CreateTopics {
    type Answer = Vec<CreatedTopic>;

    fn check(&self, keys: &Keys, limits: &Limits) -> Result<(), TooLarge> {
        let sizes = self.0.iter().map(CreateTopic::size);
        let size = sizes.fold((0u64, 0u64), |(partitions, replicas), (more, of)| {
            (partitions.saturating_add(more), replicas.saturating_add(of))
        });
        check_size(keys, limits, size, self.0.len() as u64, self.brokers().len())
    }

    fn reads(&self, keys: &Keys) -> Vec<ReadOp> {
        let mut reads = Vec::new();
        for create in &self.0 {
            reads.push(ReadOp::Get(keys.topic(&create.name)));
            reads.push(ReadOp::Get(keys.partition(create.id, PartitionIndex::FIRST)));
            reads.extend(keys.name(&create.name).map(ReadOp::Get));
        }
        let automatic = |create: &CreateTopic| matches!(create.layout, Layout::Automatic { .. });
        let all = self.0.iter().any(automatic);
        super::read_brokers(keys, &mut reads, &self.brokers(), all);
        reads
    }

    fn more_reads(&self, image: &Image) -> Vec<ReadOp> {
        let existing = self.0.iter().filter(|create| existing(image, create).is_some());
        existing
            .map(|create| super::read_all(image.keys().partitions_of(create.id)))
            .collect()
    }

    fn decide(&self, image: &Image, context: &Context) -> Result<Decision<Self::Answer>, Error> {
        let keys = image.keys();
        self.check(keys, &context.limits)?;
        let mut refusals = Refusals::default();
        check_names(image, &self.0, &mut refusals);
        let mut load = BTreeMap::new();
        let mut pins = Pins::of(image);
        let mut then = Vec::new();
        let mut answer = Vec::with_capacity(self.0.len());
        for create in &self.0 {
            if let Some(topic) = existing(image, create) {
                // Else it might be deleted before the commit, and the answer be of a topic that is gone.
                pins.topic(topic);
                answer.push(CreatedTopic {
                    topic: topic.clone(),
                    partitions: image.partitions_of(topic.id).cloned().collect(),
                    creation: Creation::Existed,
                });
                continue;
            }
            let Some((partitions, factor)) = layout(image, create, context, &mut load, &mut refusals) else {
                continue;
            };
            let topic = Topic {
                id: create.id,
                name: create.name.clone(),
                partitions: u32::try_from(partitions.len()).unwrap_or(u32::MAX),
                replication_factor: factor,
                config: create.config.clone(),
                created_at: context.now,
                modified_at: context.now,
                deleting: false,
                revision: image.revision,
            };
            // A topic has partition 0, so that its absence says that no topic has this id.
            pins.missing(keys.partition(topic.id, PartitionIndex::FIRST));
            pins.missing(keys.topic(&topic.name));
            then.push(Op::create(keys.topic(&topic.name), topic.encode()));
            if let Some(key) = keys.name(&topic.name) {
                pins.missing(key.clone());
                then.push(Op::create(key, topic.name.as_str().as_bytes().to_vec()));
            }
            create_rows(image, &mut pins, &mut then, &partitions);
            answer.push(CreatedTopic {
                topic,
                partitions,
                creation: Creation::Created,
            });
        }
        refusals.into_result()?;
        Ok(Decision::Commit(Plan::new(pins, then, answer, &context.limits)?))
    }
}

/// The topic that an earlier attempt of the same create made.
fn existing<'a>(image: &'a Image, create: &CreateTopic) -> Option<&'a Topic> {
    image
        .topics
        .get(&create.name)
        .filter(|topic| topic.id == create.id && !topic.deleting)
}

/// Refuses names and ids that are taken, by topics that exist or inside the batch.
fn check_names(image: &Image, batch: &[CreateTopic], refusals: &mut Refusals) {
    let mut names = BTreeSet::new();
    let mut ids: BTreeMap<TopicId, &TopicName> = BTreeMap::new();
    let mut forms: BTreeMap<String, &TopicName> = BTreeMap::new();
    for create in batch {
        let (name, id) = (&create.name, create.id);
        if !names.insert(name) {
            refusals.topic(name, Reason::Repeated);
            continue;
        }
        if ids.insert(id, name).is_some() {
            refusals.topic(name, Reason::TopicIdInUse { id });
        }
        let form = name.collision();
        if let Some(with) = form.clone().and_then(|form| forms.insert(form, name)) {
            refusals.topic(name, Reason::NameCollides { with: with.clone() });
        }
        match image.topics.get(name) {
            Some(topic) if topic.id != id => {
                refusals.topic(name, Reason::TopicExists { id: topic.id });
            }
            Some(topic) if topic.deleting => refusals.topic(name, Reason::Deleting),
            Some(_) => {}
            None => {
                if let Some(with) = form.and_then(|form| image.names.get(&form)) {
                    refusals.topic(name, Reason::NameCollides { with: with.clone() });
                }
                if image.partitions.contains_key(&(id, PartitionIndex::FIRST)) {
                    refusals.topic(name, Reason::TopicIdInUse { id });
                }
            }
        }
    }
}

/// The partitions of a new topic and its replication factor; `None` when something was refused.
fn layout(
    image: &Image,
    create: &CreateTopic,
    context: &Context,
    load: &mut BTreeMap<BrokerId, Load>,
    refusals: &mut Refusals,
) -> Option<(Vec<Partition>, u16)> {
    let placed;
    let (assignments, factor) = match &create.layout {
        Layout::Manual(assignments) => {
            let factor = assignments.first().map_or(0, |first| first.replicas.len());
            (assignments, factor)
        }
        Layout::Automatic {
            partitions,
            replication_factor,
        } => {
            let factor = usize::from(*replication_factor);
            let none = std::iter::empty();
            match place_partitions(image, create.id, *partitions, factor, none, load) {
                Ok(assignments) => placed = assignments,
                Err(reason) => {
                    refusals.topic(&create.name, reason);
                    return None;
                }
            }
            (&placed, factor)
        }
    };
    if assignments.is_empty() {
        refusals.topic(&create.name, Reason::NoPartitions);
        return None;
    }
    let mut partitions = Vec::with_capacity(assignments.len());
    for (index, assignment) in (0..).map(PartitionIndex::new).zip(assignments) {
        let refuse = |reason| refusals.partition(&create.name, index, reason);
        if let Some(first) = check(image, assignment, factor, refuse) {
            let key = (create.id, index);
            partitions.push(partition(key, assignment.replicas.clone(), first, context.now));
        }
    }
    let factor = u16::try_from(factor).unwrap_or(u16::MAX);
    (partitions.len() == assignments.len()).then_some((partitions, factor))
}

/// A topic to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeleteTopic {
    /// Its name.
    pub name: TopicName,
    /// Which life of the name is meant; any, when not said. Say it, and a retry cannot delete a topic that
    /// was created under the name since.
    pub id: Option<TopicId>,
}

impl DeleteTopic {
    /// Whatever topic has the name. Fails for text that is no name.
    pub fn new(
        name: impl TryInto<TopicName, Error: Into<InvalidTopicName>>,
    ) -> Result<Self, InvalidTopicName> {
        let name = name.try_into().map_err(Into::into)?;
        Ok(Self { name, id: None })
    }

    /// The same, only if the topic has this id.
    #[must_use]
    pub fn id(mut self, id: TopicId) -> Self {
        self.id = Some(id);
        self
    }
}

/// The topic that was seen, and no other that has its name since.
impl From<&Topic> for DeleteTopic {
    fn from(topic: &Topic) -> Self {
        Self {
            name: topic.name.clone(),
            id: Some(topic.id),
        }
    }
}

/// The topics as they were.
impl Answer for Vec<Topic> {
    fn committed(&mut self, _: Revision) {}
}

/// Deletes topics with their partitions, all or none. Answers the topics as they were.
#[derive(Debug, Clone)]
pub struct DeleteTopics(pub Vec<DeleteTopic>);

impl Operation for DeleteTopics {
    type Answer = Vec<Topic>;

    fn check(&self, _: &Keys, limits: &Limits) -> Result<(), TooLarge> {
        // A pin and two deletions each.
        let (asked, limit) = ((self.0.len() as u64).saturating_mul(3), limits.txn_ops_max);
        match asked > limit as u64 {
            true => Err(TooLarge::operations(asked, limit)),
            false => Ok(()),
        }
    }

    fn reads(&self, keys: &Keys) -> Vec<ReadOp> {
        self.0
            .iter()
            .map(|delete| ReadOp::Get(keys.topic(&delete.name)))
            .collect()
    }

    fn decide(&self, image: &Image, context: &Context) -> Result<Decision<Self::Answer>, Error> {
        let keys = image.keys();
        self.check(keys, &context.limits)?;
        let mut refusals = Refusals::default();
        let mut names = BTreeSet::new();
        let mut pins = Pins::of(image);
        let mut then = Vec::new();
        let mut answer = Vec::with_capacity(self.0.len());
        for DeleteTopic { name, id } in &self.0 {
            if !names.insert(name) {
                refusals.topic(name, Reason::Repeated);
                continue;
            }
            let Some(topic) = image.topics.get(name) else {
                refusals.topic(name, Reason::UnknownTopic);
                continue;
            };
            if let Some(asked) = id.filter(|id| *id != topic.id) {
                let present = topic.id;
                refusals.topic(name, Reason::InconsistentTopicId { asked, present });
                continue;
            }
            // The topic's row says how many partitions there are, so that it alone pins them all.
            pins.topic(topic);
            then.push(Op::delete(keys.topic(name)));
            then.extend(keys.name(name).map(Op::delete));
            then.push(Op::delete_range(keys.partitions_of(topic.id), topic.partitions));
            answer.push(topic.clone());
        }
        refusals.into_result()?;
        Ok(Decision::Commit(Plan::new(pins, then, answer, &context.limits)?))
    }
}
