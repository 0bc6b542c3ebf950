//! Carries operations out: reads what they need, lets them decide, commits, and decides again after a lost race.
//!
//! A thin shell: every rule is in [`ops`], and all waiting is the store's.
//!
//! Always: a decision is made on a linearizable read; what commits is what was decided, or nothing; after an
//! unknown outcome nothing is tried again here, because only the store knows how to do that exactly once.

use std::sync::Arc;

use quorate_kv::env;
use quorate_kv::model::{CheckedTxn, Consistency, Key, Limits, LogTime, ReadOp};

use crate::error::{Conflict, Error, ReadError};
use crate::ids::{BrokerId, PartitionIndex, TopicId};
use crate::image::Image;
use crate::keys::{InvalidPrefix, Keys};
use crate::name::TopicName;
use crate::ops::brokers::{
    BrokerReason, BrokerRefusal, ChangedBroker, Flags, RegisterBroker, RegisterBrokers, Registered, Replicas,
    SetFlags, Sweep, Target, Unfence, Unregister,
};
use crate::ops::partitions::{CreatePartitions, CreatedPartitions, GrowTopic, NewPartition};
use crate::ops::topics::{CreateRefusal, CreateTopic, CreateTopics, CreatedTopic, DeleteTopic, DeleteTopics};
use crate::ops::updates::{IsrUpdate, LeaderUpdate, UpdateIsrs, UpdateLeaders, UpdateRefusal, Updated};
use crate::ops::{self, Context, LostRace, Operation, Plan};
use crate::read::{load, load_more};
use crate::rows::{Broker, CorruptReason, CorruptRow, Partition, Topic};
use crate::store::Store;

/// Why a broker was not registered, fenced, unfenced or unregistered.
pub type BrokerError = Error<BrokerRefusal>;
/// Why topics or partitions were not created, or topics not deleted.
pub type CreateError = Error<CreateRefusal>;
/// Why leaders or ISRs were not changed.
pub type UpdateError = Error<UpdateRefusal>;

/// How often a decision is made again when others changed the rows that it used.
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

    /// Carries out any operation. However often it decides anew, all that it asks of the store has together the time that one
    /// call of the store has; so do the steps of the operations below that take several transactions.
    pub async fn run<O: Operation>(&self, operation: &O) -> Result<O::Answer, Error<O::Refusal>> {
        let begun = self.begun();
        begun.as_ref().unwrap_or(self).decide(operation).await
    }

    async fn decide<O: Operation>(&self, operation: &O) -> Result<O::Answer, Error<O::Refusal>> {
        let mut attempt = 1;
        loop {
            let LostRace { rows } = match self.attempt(operation).await? {
                Ok(answer) => return Ok(answer),
                Err(lost) => lost,
            };
            if attempt == ATTEMPTS_MAX {
                return Err(Error::Conflict(Conflict {
                    attempts: attempt,
                    rows,
                }));
            }
            tracing::debug!(
                attempt,
                rows = rows.len(),
                "rows changed before the commit: deciding again"
            );
            self.store.backoff(attempt).await;
            attempt += 1;
        }
    }

    async fn attempt<O: Operation>(
        &self,
        operation: &O,
    ) -> Result<Result<O::Answer, LostRace>, Error<O::Refusal>> {
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
        let plan = operation.decide(&image, &context)?;
        if plan.is_empty() {
            return Ok(Ok(plan.answer));
        }
        let Plan { txn, pinned, answer } = plan;
        let txn = CheckedTxn::check(txn, &self.limits)?;
        let response = self.store.txn(txn.into_inner()).await?;
        Ok(ops::interpret(answer, &pinned, &response))
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
        brokers: Vec<RegisterBroker>,
    ) -> Result<Vec<Registered>, BrokerError> {
        let begun = self.begun();
        let this = begun.as_ref().unwrap_or(self);
        let ids: Vec<BrokerId> = brokers.iter().map(|register| register.id).collect();
        let operation = RegisterBrokers(brokers);
        // What is too large by itself is not made smaller by sweeps.
        operation.check(&this.keys, &this.limits)?;
        let mut attempt = 1;
        let mut swept = false;
        loop {
            match this.run(&operation).await {
                Err(Error::Refused(refusals)) => {
                    let fence = operation.to_fence(&refusals);
                    if fence.is_empty() || attempt == ATTEMPTS_MAX {
                        return Err(Error::Refused(refusals));
                    }
                    for (id, epoch) in fence {
                        let target = Target {
                            id,
                            epoch: Some(epoch),
                        };
                        let flags = Flags {
                            fence: true,
                            cordoned: None,
                        };
                        this.run(&SetFlags { target, flags }).await?;
                    }
                }
                Err(Error::TooLarge(_)) if !swept => {
                    swept = true;
                    for broker in &ids {
                        this.sweep(*broker).await?;
                    }
                }
                result => return result,
            }
            attempt += 1;
        }
    }

    /// Registers a broker; see [`register_brokers`](Self::register_brokers).
    pub async fn register_broker(&self, broker: RegisterBroker) -> Result<Registered, BrokerError> {
        let mut registered = self.register_brokers(vec![broker]).await?;
        one(registered.pop())
    }

    /// Fences a broker: first its row, so that no ISR takes it in any more, then its partitions leave it,
    /// each to the first of its ISR that may lead. Where they exceed one transaction, in steps.
    ///
    /// Also finishes a fence whose steps were interrupted: safe to repeat.
    pub async fn fence_broker(&self, target: impl Into<Target>) -> Result<ChangedBroker, BrokerError> {
        let begun = self.begun();
        let this = begun.as_ref().unwrap_or(self);
        let flags = Flags {
            fence: true,
            cordoned: None,
        };
        let target = target.into();
        let mut changed = this.run(&SetFlags { target, flags }).await?;
        changed.partitions_changed = this.sweep(changed.broker.id).await?;
        Ok(changed)
    }

    /// Unfences a broker and lets it lead, in the same commit, what nobody leads and it is in sync for.
    pub async fn unfence_broker(&self, target: impl Into<Target>) -> Result<ChangedBroker, BrokerError> {
        let begun = self.begun();
        let this = begun.as_ref().unwrap_or(self);
        let target = target.into();
        let mut changed = this.after_sweep(&Unfence { target }, target.id).await?;
        changed.partitions_changed += this.sweep(changed.broker.id).await?;
        Ok(changed)
    }

    /// Lets a broker take new replicas or take none.
    pub async fn cordon_broker(
        &self,
        target: impl Into<Target>,
        cordoned: bool,
    ) -> Result<ChangedBroker, BrokerError> {
        let flags = Flags {
            fence: false,
            cordoned: Some(cordoned),
        };
        self.run(&SetFlags {
            target: target.into(),
            flags,
        })
        .await
    }

    /// Unregisters a broker: refuses when it holds replicas, unless they may dangle; else fences and cordons
    /// it, takes it out of every ISR, and deletes its row. Answers the row as it was.
    pub async fn unregister_broker(
        &self,
        target: impl Into<Target>,
        replicas: Replicas,
    ) -> Result<Broker, BrokerError> {
        let begun = self.begun();
        let this = begun.as_ref().unwrap_or(self);
        let target = target.into();
        let operation = Unregister { target, replicas };
        let mut attempt = 1;
        loop {
            match this.after_sweep(&operation, target.id).await {
                Ok(removed) => return Ok(removed.broker),
                Err(e) if refused_for(&e, |reason| *reason == BrokerReason::NotFenced) => {
                    if attempt == ATTEMPTS_MAX {
                        return Err(e);
                    }
                }
                Err(e) => return Err(e),
            }
            let flags = Flags {
                fence: true,
                cordoned: Some(true),
            };
            this.run(&SetFlags { target, flags }).await?;
            attempt += 1;
        }
    }

    /// Runs an operation that is refused while its broker has to be swept, with the sweep when needed.
    async fn after_sweep<O>(&self, operation: &O, broker: BrokerId) -> Result<O::Answer, BrokerError>
    where
        O: Operation<Refusal = BrokerRefusal>,
    {
        let mut attempt = 1;
        loop {
            let result = self.run(operation).await;
            let pending = |reason: &BrokerReason| matches!(reason, BrokerReason::SweepPending { .. });
            match result {
                Err(e) if attempt < ATTEMPTS_MAX && refused_for(&e, pending) => {
                    self.sweep(broker).await?;
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// Sweeps to the end; answers how many partitions changed.
    async fn sweep(&self, broker: BrokerId) -> Result<usize, BrokerError> {
        let mut changed = 0;
        loop {
            let swept = self.run(&Sweep { broker }).await?;
            changed += swept.partitions_changed;
            if !swept.more {
                return Ok(changed);
            }
        }
    }

    // ----- topics and partitions

    /// Creates topics with all their partitions, all or none, in one transaction. Safe to repeat with the
    /// same ids: what an earlier call created is answered as it is now.
    pub async fn create_topics(&self, topics: Vec<CreateTopic>) -> Result<Vec<CreatedTopic>, CreateError> {
        self.run(&CreateTopics(topics)).await
    }

    /// Creates a topic with all its partitions; see [`create_topics`](Self::create_topics).
    pub async fn create_topic(&self, topic: CreateTopic) -> Result<CreatedTopic, CreateError> {
        let mut created = self.create_topics(vec![topic]).await?;
        one(created.pop())
    }

    /// Deletes topics with all their partitions, all or none, in one transaction. Answers them as they were.
    ///
    /// A foreign key among a topic's partitions is not deleted with them: the topic stays, and the error names the key.
    pub async fn delete_topics(&self, topics: Vec<DeleteTopic>) -> Result<Vec<Topic>, CreateError> {
        let begun = self.begun();
        let this = begun.as_ref().unwrap_or(self);
        let operation = DeleteTopics(topics);
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
    pub async fn delete_topic(&self, topic: DeleteTopic) -> Result<Topic, CreateError> {
        let mut deleted = self.delete_topics(vec![topic]).await?;
        one(deleted.pop())
    }

    /// Adds partitions to topics, all or none, in one transaction with one time and one revision. An error
    /// names every partition that speaks against it.
    pub async fn create_partitions(
        &self,
        partitions: Vec<NewPartition>,
    ) -> Result<CreatedPartitions, CreateError> {
        let grow = Vec::new();
        self.run(&CreatePartitions { partitions, grow }).await
    }

    /// Adds one partition to a topic: a batch of one.
    pub async fn create_partition(&self, partition: NewPartition) -> Result<Partition, CreateError> {
        let mut created = self.create_partitions(vec![partition]).await?;
        one(created.partitions.pop())
    }

    /// Lets topics grow, all or none, in one transaction; the new partitions are placed so that the topic
    /// stays evenly spread.
    pub async fn grow_topics(&self, grow: Vec<GrowTopic>) -> Result<CreatedPartitions, CreateError> {
        let partitions = Vec::new();
        self.run(&CreatePartitions { partitions, grow }).await
    }

    // ----- leaders and ISRs

    /// Changes leaders, all or none, in one transaction.
    pub async fn update_leaders(&self, updates: Vec<LeaderUpdate>) -> Result<Vec<Updated>, UpdateError> {
        self.run(&UpdateLeaders(updates)).await
    }

    /// Changes a leader; see [`update_leaders`](Self::update_leaders).
    pub async fn update_leader(&self, update: LeaderUpdate) -> Result<Updated, UpdateError> {
        let mut updated = self.update_leaders(vec![update]).await?;
        one(updated.pop())
    }

    /// Changes ISRs, all or none, in one transaction.
    pub async fn update_isrs(&self, updates: Vec<IsrUpdate>) -> Result<Vec<Updated>, UpdateError> {
        self.run(&UpdateIsrs(updates)).await
    }

    /// Changes an ISR; see [`update_isrs`](Self::update_isrs).
    pub async fn update_isr(&self, update: IsrUpdate) -> Result<Updated, UpdateError> {
        let mut updated = self.update_isrs(vec![update]).await?;
        one(updated.pop())
    }

    // ----- reads

    /// A broker, if it is registered.
    pub async fn broker(&self, id: BrokerId) -> Result<Option<Broker>, ReadError> {
        let mut image = self.read(vec![ReadOp::Get(self.keys.broker(id))]).await?;
        Ok(image.brokers.remove(&id))
    }

    /// All brokers, by id.
    pub async fn brokers(&self) -> Result<Vec<Broker>, ReadError> {
        let image = self.read(vec![ops::read_all(self.keys.brokers())]).await?;
        Ok(image.brokers.into_values().collect())
    }

    /// A topic, if it exists.
    pub async fn topic(&self, name: &TopicName) -> Result<Option<Topic>, ReadError> {
        let mut image = self.read(vec![ReadOp::Get(self.keys.topic(name))]).await?;
        Ok(image.topics.remove(name))
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
        index: PartitionIndex,
    ) -> Result<Option<Partition>, ReadError> {
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
    pub async fn describe(&self, name: &TopicName) -> Result<Option<(Topic, Vec<Partition>)>, ReadError> {
        let begun = self.begun();
        let this = begun.as_ref().unwrap_or(self);
        let mut image = this.read(vec![ReadOp::Get(this.keys.topic(name))]).await?;
        let Some(topic) = image.topics.remove(name) else {
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

/// Whether an error is one refusal for this reason.
fn refused_for(error: &BrokerError, reason: impl Fn(&BrokerReason) -> bool) -> bool {
    matches!(error.refusals(), [refusal] if reason(&refusal.reason))
}

/// The answer to a batch of one.
fn one<A, R>(answer: Option<A>) -> Result<A, Error<R>> {
    answer.ok_or_else(|| {
        debug_assert!(false, "a batch of one has one answer");
        Error::Refused(Vec::new())
    })
}
