//! Carries operations out: reads what they need, lets them decide, commits, and decides again after a lost race.
//!
//! A thin shell: every rule is in [`ops`], and all waiting is the store's.
//!
//! Always: a decision is made on a linearizable read; what commits is what was decided, or nothing; after an
//! unknown outcome nothing is tried again here, because only the store knows how to do that exactly once.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use quorate_kv::env;
use quorate_kv::model::{Consistency, Key, Limits, LogTime, ReadOp};

use crate::error::{Conflict, Error, ReadError};
use crate::ids::{BrokerId, PartitionIndex, TopicId};
use crate::image::Image;
use crate::keys::{InvalidPrefix, Keys};
use crate::name::{InvalidTopicName, TopicName};
use crate::ops::brokers::{
    ChangedBroker, Flags, RegisterBroker, RegisterBrokers, Registered, Replicas, SetFlags, Sweep, Target,
    Unfence, Unregister,
};
use crate::ops::partitions::{CreatePartitions, CreatedPartitions, GrowTopic, NewPartition};
use crate::ops::topics::{CreateTopic, CreateTopics, CreatedTopic, DeleteTopic, DeleteTopics};
use crate::ops::updates::{IsrUpdate, LeaderUpdate, UpdateIsrs, UpdateLeaders, Updated};
use crate::ops::{self, Context, Decision, LostRace, Operation, Plan, Step};
use crate::read::{load, load_more};
use crate::rows::{Broker, CorruptReason, CorruptRow, Partition, Topic};
use crate::store::Store;

/// How often an operation is decided when others change the rows that it uses.
const ATTEMPTS_MAX: u32 = 16;

/// The metadata of a message broker's cluster, in a store.
///
/// Cheap to clone. Every operation is one transaction: all of its batch happens, or nothing. Cancel safety of
/// all that change something: dropped before it answered, the operation may still commit.
#[derive(Clone)]
pub struct MetaClient<S> {
    store: S,
    keys: Keys,
    limits: Limits,
    clock: Arc<dyn Fn() -> LogTime + Send + Sync>,
    consistency: Consistency,
}

impl<S: Store> MetaClient<S> {
    /// A client over a store with default limits, linearizable reads and the process's wall clock. All rows stand
    /// below the prefix `meta/`.
    pub fn new(store: S) -> Self {
        Self {
            store,
            keys: Keys::default(),
            limits: Limits::default(),
            clock: Arc::new(env::wall_clock),
            consistency: Consistency::Linearizable,
        }
    }

    /// The same for the metadata below another prefix, which is taken as it is (`blue/meta/`). Keys below it are this
    /// metadata's alone, and no other metadata's prefix may begin with it or the other way round.
    pub fn under(mut self, prefix: impl AsRef<[u8]>) -> Result<Self, InvalidPrefix> {
        self.keys = Keys::under(prefix)?;
        Ok(self)
    }

    /// The same for a store with other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The same with another source of the times that rows carry.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Fn() -> LogTime + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// The same with other freshness of [`brokers`](Self::brokers), [`topic`](Self::topic) and the other
    /// reads. What operations decide on stays linearizable.
    #[must_use]
    pub fn reading(mut self, consistency: Consistency) -> Self {
        self.consistency = consistency;
        self
    }

    /// The store.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The keys of the rows.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// This client with a store that has one deadline for all calls of an operation that begins now, where the store has
    /// deadlines.
    fn begun(&self) -> Option<Self> {
        Some(Self {
            store: self.store.one_operation()?,
            keys: self.keys.clone(),
            limits: self.limits,
            clock: Arc::clone(&self.clock),
            consistency: self.consistency,
        })
    }

    /// Carries out any operation. However often it decides anew, and with all that comes first, what it asks of the store
    /// has together the time that one call of the store has.
    pub async fn run<O: Operation>(&self, operation: &O) -> Result<O::Answer, Error> {
        let begun = self.begun();
        let this = begun.as_ref().unwrap_or(self);
        let mut rows = Vec::new();
        for attempt in 1..=ATTEMPTS_MAX {
            match this.attempt(operation).await? {
                Attempt::Done(answer) => return Ok(answer),
                // What no decision would follow is not done.
                Attempt::First(_) if attempt == ATTEMPTS_MAX => {}
                Attempt::First(steps) => {
                    for step in steps {
                        match this.step(step).await {
                            // The broker is not what it was when this was decided.
                            Err(Error::Refused(_)) => break,
                            done => done?,
                        }
                    }
                }
                Attempt::Lost(race) => {
                    rows = race.rows;
                    tracing::debug!(
                        attempt,
                        rows = rows.len(),
                        "rows changed before the commit: deciding again"
                    );
                    if attempt < ATTEMPTS_MAX {
                        this.store.backoff(attempt).await;
                    }
                }
            }
        }
        let attempts = ATTEMPTS_MAX;
        Err(Error::Conflict(Conflict { attempts, rows }))
    }

    async fn attempt<O: Operation>(&self, operation: &O) -> Result<Attempt<O::Answer>, Error> {
        operation.check(&self.keys, &self.limits)?;
        let reads = operation.reads(&self.keys);
        let mut image = load(&self.store, &self.keys, reads, Consistency::Linearizable).await?;
        let more = operation.more_reads(&image);
        load_more(&self.store, &mut image, more).await?;
        tell_foreign(&image);
        let context = Context {
            now: (self.clock)(),
            limits: self.limits,
        };
        let plan = match operation.decide(&image, &context)? {
            Decision::First(steps) => return Ok(Attempt::First(steps)),
            Decision::Commit(plan) if plan.is_empty() => return Ok(Attempt::Done(plan.answer)),
            Decision::Commit(plan) => plan,
        };
        let Plan { txn, pinned, answer } = plan;
        let response = self.store.txn(txn.into_inner()).await?;
        Ok(match ops::interpret(answer, &pinned, &response) {
            Ok(answer) => Attempt::Done(answer),
            Err(lost) => Attempt::Lost(lost),
        })
    }

    /// Does what comes before another operation's own commit. A trait object, since a step is an operation in turn.
    fn step(&self, step: Step) -> Pin<Box<dyn Future<Output = Result<(), Error>> + Send + '_>> {
        Box::pin(async move {
            match step {
                Step::SetFlags(flags) => self.run(&flags).await.map(|_| ()),
                Step::Sweep(broker) => self.sweep(broker).await.map(|_| ()),
            }
        })
    }

    /// Sweeps to the end; answers how many partitions changed.
    async fn sweep(&self, broker: BrokerId) -> Result<usize, Error> {
        let mut changed = 0;
        loop {
            let swept = self.run(&Sweep { broker }).await?;
            changed += swept.partitions_changed;
            if !swept.more {
                return Ok(changed);
            }
        }
    }

    // ----- brokers

    /// Registers brokers, all or none, in one transaction. See [`RegisterBroker`] for what a restart does.
    ///
    /// Two cases take more transactions before the registration's own: taking over a broker that is not
    /// fenced fences it first, and a broker that was in sync for more partitions than one transaction takes
    /// is swept out of their ISRs in steps first. An error in between leaves it fenced; the call may be
    /// repeated.
    pub async fn register_brokers(
        &self,
        brokers: impl IntoIterator<Item = RegisterBroker>,
    ) -> Result<Vec<Registered>, Error> {
        let brokers = brokers.into_iter().collect();
        self.run(&RegisterBrokers(brokers)).await
    }

    /// Registers a broker; see [`register_brokers`](Self::register_brokers).
    pub async fn register_broker(&self, broker: RegisterBroker) -> Result<Registered, Error> {
        one(self.register_brokers([broker]).await?)
    }

    /// Fences a broker: first its row, so that no ISR takes it in any more, then its partitions leave it,
    /// each to the first of its ISR that may lead. Where they exceed one transaction, in steps.
    ///
    /// Also finishes a fence whose steps were interrupted: safe to repeat.
    pub async fn fence_broker(&self, target: impl Into<Target>) -> Result<ChangedBroker, Error> {
        let (target, flags) = (target.into(), Flags::FENCE);
        let begun = self.begun();
        let this = begun.as_ref().unwrap_or(self);
        let mut changed = this.run(&SetFlags { target, flags }).await?;
        changed.partitions_changed = this.sweep(changed.broker.id).await?;
        Ok(changed)
    }

    /// Unfences a broker and lets it lead, in the same commit, what no broker leads and it is in sync for.
    pub async fn unfence_broker(&self, target: impl Into<Target>) -> Result<ChangedBroker, Error> {
        let target = target.into();
        let begun = self.begun();
        let this = begun.as_ref().unwrap_or(self);
        let mut changed = this.run(&Unfence { target }).await?;
        changed.partitions_changed += this.sweep(changed.broker.id).await?;
        Ok(changed)
    }

    /// Lets a broker take new replicas or take none.
    pub async fn cordon_broker(
        &self,
        target: impl Into<Target>,
        cordoned: bool,
    ) -> Result<ChangedBroker, Error> {
        let flags = Flags {
            fence: false,
            cordoned: Some(cordoned),
        };
        let target = target.into();
        self.run(&SetFlags { target, flags }).await
    }

    /// Unregisters a broker: refuses when it holds replicas, unless they may dangle; else fences and cordons
    /// it, takes it out of every ISR, and deletes its row. Answers the row as it was.
    pub async fn unregister_broker(
        &self,
        target: impl Into<Target>,
        replicas: Replicas,
    ) -> Result<Broker, Error> {
        let target = target.into();
        let removed = self.run(&Unregister { target, replicas }).await?;
        Ok(removed.broker)
    }

    // ----- topics and partitions

    /// Creates topics with all their partitions, all or none, in one transaction. Safe to repeat with the
    /// same ids: what an earlier call created is answered as it is now.
    pub async fn create_topics(
        &self,
        topics: impl IntoIterator<Item = CreateTopic>,
    ) -> Result<Vec<CreatedTopic>, Error> {
        let topics = topics.into_iter().collect();
        self.run(&CreateTopics(topics)).await
    }

    /// Creates a topic with all its partitions; see [`create_topics`](Self::create_topics).
    pub async fn create_topic(&self, topic: CreateTopic) -> Result<CreatedTopic, Error> {
        one(self.create_topics([topic]).await?)
    }

    /// Deletes topics with all their partitions, all or none, in one transaction. Answers them as they were.
    ///
    /// A foreign key among a topic's partitions is not deleted with them: the topic stays, and the error names the key.
    pub async fn delete_topics(
        &self,
        topics: impl IntoIterator<Item = DeleteTopic>,
    ) -> Result<Vec<Topic>, Error> {
        let operation = DeleteTopics(topics.into_iter().collect());
        let begun = self.begun();
        let this = begun.as_ref().unwrap_or(self);
        let result = this.run(&operation).await;
        match &result {
            Err(Error::Store(error)) if !error.is_retryable() && !error.may_have_committed() => {
                // More keys than the topic has partitions: the store counted them and cannot tell them apart.
                match this.foreign_partition(&operation.0).await? {
                    Some(key) => Err(CorruptRow::new(&key, CorruptReason::Key).into()),
                    None => result,
                }
            }
            _ => result,
        }
    }

    /// The first key among the partitions of these topics that is no row.
    async fn foreign_partition(&self, topics: &[DeleteTopic]) -> Result<Option<Key>, ReadError> {
        for delete in topics {
            let Some(topic) = self.topic(&delete.name).await? else {
                continue;
            };
            let partitions = vec![ops::read_all(self.keys.partitions_of(topic.id))];
            let image = load(&self.store, &self.keys, partitions, Consistency::Linearizable).await?;
            if let Some(key) = image.foreign.first() {
                return Ok(Some(key.clone()));
            }
        }
        Ok(None)
    }

    /// Deletes a topic with all its partitions; see [`delete_topics`](Self::delete_topics).
    pub async fn delete_topic(&self, topic: impl Into<DeleteTopic>) -> Result<Topic, Error> {
        one(self.delete_topics([topic.into()]).await?)
    }

    /// Adds partitions to topics, all or none, in one transaction with one time and one revision. An error
    /// names every partition that speaks against it.
    pub async fn create_partitions(
        &self,
        partitions: impl IntoIterator<Item = NewPartition>,
    ) -> Result<CreatedPartitions, Error> {
        let (partitions, grow) = (partitions.into_iter().collect(), Vec::new());
        self.run(&CreatePartitions { partitions, grow }).await
    }

    /// Adds one partition to a topic: a batch of one.
    pub async fn create_partition(&self, partition: NewPartition) -> Result<Partition, Error> {
        one(self.create_partitions([partition]).await?.partitions)
    }

    /// Lets topics grow, all or none, in one transaction; the new partitions are placed so that the topic
    /// stays evenly spread.
    pub async fn grow_topics(
        &self,
        topics: impl IntoIterator<Item = GrowTopic>,
    ) -> Result<CreatedPartitions, Error> {
        let (partitions, grow) = (Vec::new(), topics.into_iter().collect());
        self.run(&CreatePartitions { partitions, grow }).await
    }

    // ----- leaders and ISRs

    /// Changes leaders, all or none, in one transaction.
    pub async fn update_leaders(
        &self,
        updates: impl IntoIterator<Item = LeaderUpdate>,
    ) -> Result<Vec<Updated>, Error> {
        let updates = updates.into_iter().collect();
        self.run(&UpdateLeaders(updates)).await
    }

    /// Changes a leader; see [`update_leaders`](Self::update_leaders).
    pub async fn update_leader(&self, update: LeaderUpdate) -> Result<Updated, Error> {
        one(self.update_leaders([update]).await?)
    }

    /// Changes ISRs, all or none, in one transaction.
    pub async fn update_isrs(
        &self,
        updates: impl IntoIterator<Item = IsrUpdate>,
    ) -> Result<Vec<Updated>, Error> {
        let updates = updates.into_iter().collect();
        self.run(&UpdateIsrs(updates)).await
    }

    /// Changes an ISR; see [`update_isrs`](Self::update_isrs).
    pub async fn update_isr(&self, update: IsrUpdate) -> Result<Updated, Error> {
        one(self.update_isrs([update]).await?)
    }

    // ----- reads

    /// A broker, if it is registered.
    pub async fn broker(&self, id: impl Into<BrokerId>) -> Result<Option<Broker>, ReadError> {
        let id = id.into();
        let mut image = self.read(vec![ReadOp::Get(self.keys.broker(id))]).await?;
        Ok(image.brokers.remove(&id))
    }

    /// All brokers, by id.
    pub async fn brokers(&self) -> Result<Vec<Broker>, ReadError> {
        let image = self.read(vec![ops::read_all(self.keys.brokers())]).await?;
        Ok(image.brokers.into_values().collect())
    }

    /// A topic, if it exists.
    pub async fn topic(
        &self,
        name: impl TryInto<TopicName, Error: Into<InvalidTopicName>>,
    ) -> Result<Option<Topic>, ReadError> {
        let name = name.try_into().map_err(Into::into)?;
        let mut image = self.read(vec![ReadOp::Get(self.keys.topic(&name))]).await?;
        Ok(image.topics.remove(&name))
    }

    /// All topics, by name.
    pub async fn topics(&self) -> Result<Vec<Topic>, ReadError> {
        let image = self.read(vec![ops::read_all(self.keys.topics())]).await?;
        Ok(image.topics.into_values().collect())
    }

    /// A partition, if it exists.
    pub async fn partition(
        &self,
        topic: TopicId,
        index: impl Into<PartitionIndex>,
    ) -> Result<Option<Partition>, ReadError> {
        let index = index.into();
        let mut image = self
            .read(vec![ReadOp::Get(self.keys.partition(topic, index))])
            .await?;
        Ok(image.partitions.remove(&(topic, index)))
    }

    /// The partitions of a topic, by index; none when there is no such topic. Costs what the topic's own
    /// partitions cost, however many others there are.
    pub async fn partitions(&self, topic: TopicId) -> Result<Vec<Partition>, ReadError> {
        let image = self
            .read(vec![ops::read_all(self.keys.partitions_of(topic))])
            .await?;
        Ok(image.partitions.into_values().collect())
    }

    /// A topic with its partitions, both at one revision.
    pub async fn describe(
        &self,
        name: impl TryInto<TopicName, Error: Into<InvalidTopicName>>,
    ) -> Result<Option<(Topic, Vec<Partition>)>, ReadError> {
        let name = name.try_into().map_err(Into::into)?;
        let begun = self.begun();
        let this = begun.as_ref().unwrap_or(self);
        let mut image = this.read(vec![ReadOp::Get(this.keys.topic(&name))]).await?;
        let Some(topic) = image.topics.remove(&name) else {
            return Ok(None);
        };
        let partitions = vec![ops::read_all(this.keys.partitions_of(topic.id))];
        load_more(&this.store, &mut image, partitions).await?;
        Ok(Some((topic, image.partitions.into_values().collect())))
    }

    /// Everything, at one revision.
    pub async fn image(&self) -> Result<Image, ReadError> {
        let ranges = [
            self.keys.brokers(),
            self.keys.topics(),
            self.keys.names(),
            self.keys.partitions(),
        ];
        self.read(ranges.into_iter().map(ops::read_all).collect()).await
    }

    async fn read(&self, reads: Vec<ReadOp>) -> Result<Image, ReadError> {
        // Large ranges come in pages.
        let begun = self.begun();
        let store = begun.as_ref().map_or(&self.store, |begun| &begun.store);
        let image = load(store, &self.keys, reads, self.consistency).await?;
        tell_foreign(&image);
        Ok(image)
    }
}

/// Says which keys stand among the rows and are none.
fn tell_foreign(image: &Image) {
    if let Some(first) = image.foreign.first() {
        tracing::warn!(
            key = %first,
            keys = image.foreign.len(),
            "another application writes below the metadata's prefix: these keys are no rows"
        );
    }
}

/// How an attempt ended.
enum Attempt<A> {
    /// It committed, or there was nothing to do.
    Done(A),
    /// These come first.
    First(Vec<Step>),
    /// Others changed what it had read. Nothing was changed.
    Lost(LostRace),
}

/// The answer to a batch of one.
fn one<A>(mut answers: Vec<A>) -> Result<A, Error> {
    answers.pop().ok_or_else(|| {
        debug_assert!(false, "a batch of one has one answer");
        Error::Refused(Vec::new())
    })
}
