//! The scenario that the ancestor failed four times in ten: brokers, a topic, its partitions one by one and as a
//! batch, a new leader, a new ISR; over and over, while leaders die.
//!
//! Runs against clusters of this process. Every step is read back: linearizably by a client, and from each running
//! node once it has applied the step's revision. Always: a call is never repeated here, except one whose error
//! says that nothing happened and that a repetition may succeed; each such error counts as a visible retry.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use quorate_kv::Client;
use quorate_kv::model::{Consistency, Revision};
use quorate_meta::{
    Broker, BrokerId, CreateTopic, Error, IsrUpdate, LeaderUpdate, MetaClient, NewPartition, Partition,
    ReadError, RegisterBroker, Topic, TopicName,
};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::cluster::{Cluster, fast_settings};
use crate::sim::Rng;

/// What a run does, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Three brokers, each in a call of its own.
    RegisterBroker,
    /// Two topics, each with one partition.
    CreateTopic,
    /// Three partitions for the first topic, one by one.
    CreatePartition,
    /// Three partitions for the second topic, in one batch.
    CreatePartitionBatch,
    /// Another leader for a partition.
    UpdateLeader,
    /// A smaller ISR for a partition.
    UpdateIsr,
}

impl Operation {
    /// All, in the order of a run.
    pub const ALL: [Operation; 6] = [
        Operation::RegisterBroker,
        Operation::CreateTopic,
        Operation::CreatePartition,
        Operation::CreatePartitionBatch,
        Operation::UpdateLeader,
        Operation::UpdateIsr,
    ];
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::RegisterBroker => "register broker",
            Operation::CreateTopic => "create topic",
            Operation::CreatePartition => "create partition",
            Operation::CreatePartitionBatch => "create partitions, batch",
            Operation::UpdateLeader => "update leader",
            Operation::UpdateIsr => "update ISR",
        })
    }
}

/// Partitions that a run adds to each topic.
const ADDED: u32 = 3;
/// Calls of a run: three brokers, two topics, three partitions, a batch, a leader, an ISR.
const STEPS: u64 = 3 + 2 + ADDED as u64 + 1 + 1 + 1;
/// How often a call is made again after an error that says that this is safe.
const REPEATS_MAX: u32 = 3;
/// How long a killed node stays down, at most: about an election, so that some return before and some after.
const DOWN_MAX: Duration = Duration::from_millis(1200);
/// A killed node's address and files are given back by then.
const RESTART_MAX: Duration = Duration::from_secs(20);

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many runs.
    pub runs: u64,
    /// A new cluster for each run, instead of one for all.
    pub fresh: bool,
    /// The part of the runs in which the leader is killed, in thousandths.
    pub kill_permille: u64,
    /// Nodes of a cluster.
    pub nodes: u64,
    /// Decides in which runs the leader is killed, and when.
    pub seed: u64,
}

/// What happened.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Runs that were carried out, failed ones included.
    pub runs: u64,
    /// Leaders killed.
    pub kills: u64,
    /// What each operation came to.
    pub operations: BTreeMap<Operation, Tally>,
    /// Errors that reached the caller.
    pub visible_retries: u64,
    /// Attempts that the client repeated by itself.
    pub hidden_retries: u64,
    /// The whole time.
    pub took: Duration,
}

/// What the calls of one operation came to.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// How long each call took that succeeded.
    pub took: Vec<Duration>,
    /// Why calls failed, or what was read back instead of their answer.
    pub failures: Vec<String>,
}

impl Report {
    /// Failures of all operations.
    pub fn failures(&self) -> u64 {
        self.operations
            .values()
            .map(|tally| tally.failures.len() as u64)
            .sum()
    }
}

/// Runs the scenario; `progress` hears the report so far after each run.
///
/// Failures of operations are counted in the report. An error is something that a report cannot carry: a cluster
/// that does not start, or whose nodes differ at the end.
pub fn run<'a>(options: &'a Options, progress: &'a mut (dyn FnMut(&Report) + Send)) -> Running<'a> {
    Box::pin(run_all(options, progress))
}

/// The scenario on its way. A trait object, so that it is compiled here and not in every program that runs it.
pub type Running<'a> = Pin<Box<dyn Future<Output = Result<Report>> + Send + 'a>>;

async fn run_all(options: &Options, progress: &mut (dyn FnMut(&Report) + Send)) -> Result<Report> {
    let begun = Instant::now();
    let mut rng = Rng::new(options.seed);
    let mut report = Report::default();
    let mut stage = None;
    for number in 1..=options.runs {
        let current = match stage.take() {
            Some(stage) => stage,
            None => Stage::set(options.nodes).await?,
        };
        let mut run = Run {
            number: if options.fresh { 1 } else { number },
            kill_at: rng.permille(options.kill_permille).then(|| rng.below(STEPS)),
            rng: rng.fork(&number.to_string()),
            step: 0,
            stage: current,
            report: &mut report,
        };
        // A failed step is in the report, and what would build on it is left out.
        let _failed = Box::pin(run.all()).await;
        let mut current = run.stage;
        if options.fresh {
            current.end(&mut report).await?;
        } else {
            stage = Some(current);
        }
        report.runs += 1;
        report.took = begun.elapsed();
        progress(&report);
    }
    if let Some(mut stage) = stage {
        stage.end(&mut report).await?;
    }
    report.took = begun.elapsed();
    Ok(report)
}

/// A cluster, its client, and the leader that is being killed.
struct Stage {
    field: Arc<Mutex<Field>>,
    client: Client,
    meta: MetaClient<Client>,
    killing: Option<JoinHandle<Result<()>>>,
}

/// The cluster with how often each node was killed.
struct Field {
    cluster: Cluster,
    kills: BTreeMap<u64, u64>,
}

/// A node to read from, in one of its lives.
struct Witness {
    id: u64,
    kills: u64,
    client: Client,
}

impl Stage {
    async fn set(nodes: u64) -> Result<Self> {
        let cluster = Cluster::start(nodes, fast_settings()).await?;
        let client = cluster.client()?;
        let kills = (1..=nodes).map(|id| (id, 0)).collect();
        Ok(Self {
            field: Arc::new(Mutex::new(Field { cluster, kills })),
            meta: MetaClient::new(client.clone()),
            client,
            killing: None,
        })
    }

    /// Kills the leader after `delay`, in the background, and starts it again `down` later. One at a time: two
    /// of three nodes down is no scenario for a test that demands answers.
    async fn kill(&mut self, delay: Duration, down: Duration) -> Result<()> {
        self.all_run().await?;
        let field = Arc::clone(&self.field);
        self.killing = Some(tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let leader = {
                let mut field = field.lock().await;
                let leader = field.cluster.leader().await?;
                field.cluster.abort(leader).await?;
                *field.kills.entry(leader).or_default() += 1;
                leader
            };
            tokio::time::sleep(down).await;
            let end = Instant::now() + RESTART_MAX;
            loop {
                let started = field.lock().await.cluster.start_node(leader).await;
                match started {
                    Ok(()) => return Ok(()),
                    // A reader may still hold the node that was.
                    Err(_) if Instant::now() < end => tokio::time::sleep(Duration::from_millis(50)).await,
                    Err(error) => return Err(error),
                }
            }
        }));
        Ok(())
    }

    /// Waits until the node that was killed last runs again.
    async fn all_run(&mut self) -> Result<()> {
        match self.killing.take() {
            Some(killing) => killing.await?.context("the killed leader did not come back"),
            None => Ok(()),
        }
    }

    async fn witnesses(&self) -> Vec<Witness> {
        let field = self.field.lock().await;
        let witness = |(id, node): (&u64, &quorate_kv::Node)| Witness {
            id: *id,
            kills: field.kills.get(id).copied().unwrap_or_default(),
            client: node.client(),
        };
        field.cluster.nodes().iter().map(witness).collect()
    }

    async fn still_runs(&self, witness: &Witness) -> bool {
        let field = self.field.lock().await;
        field.kills.get(&witness.id) == Some(&witness.kills) && field.cluster.node(witness.id).is_ok()
    }

    /// Demands that all nodes have the same state, and stops them.
    async fn end(&mut self, report: &mut Report) -> Result<()> {
        self.all_run().await?;
        report.hidden_retries += self.client.retries();
        self.client.clone().close().await;
        let field = Arc::clone(&self.field);
        let mut field = field.lock().await;
        field.cluster.agreement().await?;
        let ids: Vec<u64> = field.cluster.nodes().keys().copied().collect();
        for id in ids {
            field.cluster.stop(id).await?;
        }
        Ok(())
    }
}

struct Run<'a> {
    number: u64,
    step: u64,
    /// The call during which the leader dies.
    kill_at: Option<u64>,
    rng: Rng,
    stage: Stage,
    report: &'a mut Report,
}

impl Run<'_> {
    async fn all(&mut self) -> Result<()> {
        let brokers = self.register_brokers().await?;
        let singly = self.create_topic("one-by-one", &brokers).await?;
        let batch = self.create_topic("batch", &brokers).await?;
        for index in 1..=ADDED {
            let new = new_partition(&singly.name, index, &brokers)?;
            let meta = self.stage.meta.clone();
            let operation = Operation::CreatePartition;
            let created = self
                .call(operation, || meta.create_partition(new.clone()))
                .await?;
            self.expect_partition(operation, &created).await?;
        }
        self.expect_partitions(Operation::CreatePartition, &singly.name)
            .await?;

        let new: Vec<_> = (1..=ADDED)
            .map(|index| new_partition(&batch.name, index, &brokers))
            .collect::<Result<_>>()?;
        let meta = self.stage.meta.clone();
        let operation = Operation::CreatePartitionBatch;
        let created = self
            .call(operation, || meta.create_partitions(new.clone()))
            .await?;
        for partition in &created.partitions {
            self.expect_partition(operation, partition).await?;
        }
        self.expect_partitions(operation, &batch.name).await?;
        let [first, ..] = &created.partitions[..] else {
            return Err(self.failed(operation, "the batch created nothing"));
        };

        let led = self.update_leader(first, brokers[1]).await?;
        self.update_isr(&led, &brokers[..2]).await
    }

    async fn register_brokers(&mut self) -> Result<Vec<BrokerId>> {
        let operation = Operation::RegisterBroker;
        let ids: Vec<_> = (0..3).map(|i| BrokerId::new(self.number * 3 + i)).collect();
        for id in &ids {
            let register = RegisterBroker::new(*id, format!("broker-{id}:9092"))?;
            let meta = self.stage.meta.clone();
            let registered = self
                .call(operation, || meta.register_broker(register.clone()))
                .await?;
            self.expect_broker(operation, &registered.broker).await?;
        }
        Ok(ids)
    }

    async fn create_topic(&mut self, kind: &str, brokers: &[BrokerId]) -> Result<Topic> {
        let operation = Operation::CreateTopic;
        let name = format!("{kind}-{}", self.number);
        let create = CreateTopic::manual(name, [brokers.to_vec()])?;
        let meta = self.stage.meta.clone();
        let created = self.call(operation, || meta.create_topic(create.clone())).await?;
        self.expect_topic(operation, &created.topic).await?;
        Ok(created.topic)
    }

    async fn update_leader(&mut self, seen: &Partition, leader: BrokerId) -> Result<Partition> {
        let operation = Operation::UpdateLeader;
        let update = LeaderUpdate::new(seen, leader);
        let meta = self.stage.meta.clone();
        let updated = self
            .call(operation, || meta.update_leader(update.clone()))
            .await?
            .partition;
        if updated.leader != Some(leader) || updated.leader_epoch != seen.leader_epoch.next() {
            return Err(self.failed(operation, format!("{seen:?} became {updated:?}")));
        }
        self.expect_partition(operation, &updated).await?;
        Ok(updated)
    }

    async fn update_isr(&mut self, seen: &Partition, isr: &[BrokerId]) -> Result<()> {
        let operation = Operation::UpdateIsr;
        let update = IsrUpdate::new(seen, isr.iter().copied());
        let meta = self.stage.meta.clone();
        let updated = self
            .call(operation, || meta.update_isr(update.clone()))
            .await?
            .partition;
        if updated.isr != isr || updated.partition_epoch != seen.partition_epoch.next() {
            return Err(self.failed(operation, format!("{seen:?} became {updated:?}")));
        }
        self.expect_partition(operation, &updated).await
    }

    // ----- calls

    /// Makes a call, and counts what becomes of it.
    async fn call<T, F>(&mut self, operation: Operation, call: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Error>>,
    {
        if self.kill_at == Some(self.step) {
            // Within a call's usual time, so that the kill meets its read, its proposal or its answer.
            let delay = self.rng.duration(Duration::ZERO, Duration::from_millis(15));
            let down = self.rng.duration(Duration::ZERO, DOWN_MAX);
            let begun = self.stage.kill(delay, down).await;
            self.checked(operation, begun)?;
            self.report.kills += 1;
        }
        self.step += 1;
        let mut repeats = 0;
        loop {
            let begun = Instant::now();
            let error = match Box::pin(call()).await {
                Ok(answer) => {
                    self.tally(operation).took.push(begun.elapsed());
                    return Ok(answer);
                }
                Err(error) => error,
            };
            self.report.visible_retries += 1;
            if !error.is_retryable() || error.may_have_committed() || repeats == REPEATS_MAX {
                return Err(self.failed(operation, error));
            }
            repeats += 1;
        }
    }

    fn tally(&mut self, operation: Operation) -> &mut Tally {
        self.report.operations.entry(operation).or_default()
    }

    fn failed(&mut self, operation: Operation, why: impl fmt::Display) -> anyhow::Error {
        let why = format!("run {}, call {}: {why}", self.number, self.step);
        self.tally(operation).failures.push(why.clone());
        anyhow!(why)
    }

    fn checked<T>(&mut self, operation: Operation, result: Result<T>) -> Result<T> {
        result.map_err(|error| self.failed(operation, format!("{error:#}")))
    }

    // ----- reading back

    async fn expect_broker(&mut self, operation: Operation, broker: &Broker) -> Result<()> {
        let id = broker.id;
        let read = async |meta: MetaClient<Client>| meta.broker(id).await;
        let found = self.stage.everywhere(broker, broker.revision, read).await;
        self.checked(operation, found)
    }

    async fn expect_topic(&mut self, operation: Operation, topic: &Topic) -> Result<()> {
        let name = &topic.name;
        let read = async |meta: MetaClient<Client>| meta.topic(name).await;
        let found = self.stage.everywhere(topic, topic.revision, read).await;
        self.checked(operation, found)
    }

    async fn expect_partition(&mut self, operation: Operation, partition: &Partition) -> Result<()> {
        let (topic, index) = (partition.topic, partition.index);
        let read = async |meta: MetaClient<Client>| meta.partition(topic, index).await;
        let found = self.stage.everywhere(partition, partition.revision, read).await;
        self.checked(operation, found)
    }

    /// The topic has all its partitions, and says so.
    async fn expect_partitions(&mut self, operation: Operation, name: &TopicName) -> Result<()> {
        let described = self.stage.meta.describe(name).await;
        let complete = described.map_err(anyhow::Error::from).and_then(|found| {
            let (topic, partitions) = found.with_context(|| format!("topic {name} is lost"))?;
            let indexes: Vec<_> = partitions.iter().map(|p| p.index.number()).collect();
            let expected: Vec<_> = (0..=ADDED).collect();
            ensure!(indexes == expected, "topic {name} has the partitions {indexes:?}");
            ensure!(
                topic.partitions == ADDED + 1,
                "topic {name} counts {}",
                topic.partitions
            );
            Ok(())
        });
        self.checked(operation, complete)
    }
}

impl Stage {
    /// Demands that the client reads `expected` linearizably, and every running node once it is at `revision`.
    async fn everywhere<T, F>(
        &self,
        expected: &T,
        revision: Revision,
        read: impl Fn(MetaClient<Client>) -> F,
    ) -> Result<()>
    where
        T: PartialEq + fmt::Debug,
        F: Future<Output = Result<Option<T>, ReadError>>,
    {
        let found = Box::pin(read(self.meta.clone()))
            .await
            .context("the linearizable read failed")?;
        ensure!(
            found.as_ref() == Some(expected),
            "read {found:?} in place of {expected:?}"
        );
        let stale = Consistency::Stale {
            min_revision: Some(revision),
            max_lag: None,
        };
        for witness in self.witnesses().await {
            let meta = MetaClient::new(witness.client.clone()).reading(stale);
            match Box::pin(read(meta)).await {
                Ok(found) if found.as_ref() == Some(expected) => {}
                Ok(found) => bail!(
                    "node {} at revision {revision} read {found:?} in place of {expected:?}",
                    witness.id
                ),
                Err(error) if self.still_runs(&witness).await => {
                    return Err(error).context(format!("node {} did not read", witness.id));
                }
                // It was killed meanwhile.
                Err(_) => {}
            }
        }
        Ok(())
    }
}

fn new_partition(topic: &TopicName, index: u32, brokers: &[BrokerId]) -> Result<NewPartition> {
    Ok(NewPartition::new(topic, index, brokers.to_vec())?)
}
