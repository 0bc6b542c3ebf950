//! `quorate demo`: a real cluster in this process, and a broker's metadata on its way through it.
//!
//! Every step is timed, its Raft entries are counted, and what it wrote is read back from every node, each asked
//! for its own state at the step's revision at least. The cluster is quiet but for the steps, so the entries
//! between two steps are the step's.

mod cluster;
mod report;

use std::time::{Duration, Instant};

use quorate_kv::Client;
use quorate_kv::model::{Consistency, Revision};
use quorate_meta::{
    Assignment, Broker, BrokerId, CreateTopic, IsrUpdate, LeaderUpdate, MetaClient, NewPartition, Partition,
    RegisterBroker, TopicId, TopicName,
};

use crate::cli::DemoArgs;
use crate::failure::Failure;
use crate::logging::{Format, Logging};
use crate::output::Output;
use cluster::{Cluster, Running};
use report::{DemoReport, Step};

/// The brokers that register.
const BROKERS: [u64; 3] = [1, 2, 3];

/// Runs the command.
pub async fn run(args: DemoArgs, output: Output) -> Result<(), Failure> {
    let _log = Logging::new(&args.log, Format::Text)
        .map_err(|reason| Failure::refused(format!("--log: {reason}")))?
        .install()
        .map_err(|error| Failure::failed(format!("no thread for the log: {error}")))?;
    // Ended by a signal, it leaves no files behind either.
    let report = tokio::select! {
        report = demonstrate(&args) => report?,
        _ = tokio::signal::ctrl_c() => return Err(Failure::failed("interrupted")),
    };
    output.show(&report)?;
    match report.is_ok() {
        true => Ok(()),
        false => Err(Failure::failed(
            "the nodes do not show what was written; see the steps",
        )),
    }
}

/// Runs the scenario.
pub async fn demonstrate(args: &DemoArgs) -> Result<DemoReport, Failure> {
    let round_trip = Duration::from_millis(args.rtt_ms);
    let mut cluster = Cluster::start(args.nodes, round_trip).await?;
    // A client's first write opens its session, which is an entry of its own, and its connection.
    for running in cluster.nodes() {
        running.client.put("demo/warm-up", "").await?;
    }
    cluster.agree().await?;
    let before = cluster.leader().await?.node.status();

    let mut scenario = Scenario::begin(&cluster, args.partitions).await?;
    scenario.run().await?;
    let Scenario {
        mut steps,
        sequential,
        batch,
        ..
    } = scenario;
    let mut agree = cluster.agree().await?;

    let after = cluster.leader().await?.node.status();
    let moved_before_kill = (after.node, after.term) != (before.node, before.term);
    let mut moved = false;
    // Two nodes of three or more are a quorum without the third; of fewer, none is left.
    if args.nodes > 2 {
        let (step, leader) = kill_leader(&mut cluster, after.node.number()).await?;
        steps.push(step);
        moved = leader != after.node.number();
        agree &= cluster.agree().await?;
    }
    cluster.stop().await;
    Ok(DemoReport {
        nodes: args.nodes,
        partitions: args.partitions,
        rtt_ms: args.rtt_ms,
        profile: cluster::profile(round_trip).name(),
        steps,
        sequential_micros: micros(sequential),
        batch_micros: micros(batch),
        ratio: sequential.as_secs_f64() / batch.as_secs_f64().max(1e-9),
        nodes_agree: agree,
        leader_changed: moved && !moved_before_kill,
        fsync_p50_micros: after.sync_p50_micros,
    })
}

/// Kills the leader, and waits until a write through another node is acknowledged.
async fn kill_leader(cluster: &mut Cluster, id: u64) -> Result<(Step, u64), Failure> {
    let committed = cluster.committed(cluster.leader().await?).await?;
    let begun = Instant::now();
    cluster.kill(id).await;
    let survivor = cluster
        .nodes()
        .next()
        .ok_or_else(|| Failure::failed("no node is left"))?;
    let revision = survivor
        .client
        .put("demo/after-the-kill", "the cluster goes on")
        .await?;
    let took = begun.elapsed();
    let mut ok = true;
    for running in cluster.nodes() {
        let read = running
            .client
            .get("demo/after-the-kill")
            .consistency(at_least(revision))
            .await?;
        ok &= read.is_some_and(|record| &record.value[..] == b"the cluster goes on");
    }
    let leader = cluster.leader().await?;
    let entries = cluster.committed(leader).await?.saturating_sub(committed);
    let title = format!(
        "kill the leader (node {id}); node {} takes over",
        leader.node.id()
    );
    let leader = leader.node.id().number();
    Ok((
        Step {
            name: "leader_killed",
            title,
            entries,
            micros: micros(took),
            ok,
        },
        leader,
    ))
}

/// The steps up to the kill, all through the leader's client.
struct Scenario<'a> {
    cluster: &'a Cluster,
    leader: &'a Running,
    meta: MetaClient<Client>,
    partitions: u32,
    steps: Vec<Step>,
    sequential: Duration,
    batch: Duration,
}

impl<'a> Scenario<'a> {
    async fn begin(cluster: &'a Cluster, partitions: u32) -> Result<Self, Failure> {
        let leader = cluster.leader().await?;
        let meta = MetaClient::new(leader.client.clone());
        let (steps, none) = (Vec::new(), Duration::ZERO);
        Ok(Self {
            cluster,
            leader,
            meta,
            partitions,
            steps,
            sequential: none,
            batch: none,
        })
    }

    async fn run(&mut self) -> Result<(), Failure> {
        self.register_brokers().await?;
        let created = self.create_topics().await?;
        let [one_by_one, batched] = created.as_slice() else {
            return Err(Failure::failed("two topics were created, others were answered"));
        };
        let partition = self.create_sequentially(one_by_one).await?;
        self.create_batch(batched).await?;
        let partition = self.update_leader(partition).await?;
        self.update_isr(partition).await
    }

    async fn register_brokers(&mut self) -> Result<(), Failure> {
        let brokers: Result<Vec<RegisterBroker>, Failure> = BROKERS.iter().map(|id| broker(*id)).collect();
        let timed = self.timed().await?;
        let registered = self.meta.register_brokers(brokers?).await?;
        let timed = timed.end(self).await?;
        let expected: Vec<Broker> = registered.into_iter().map(|r| r.broker).collect();
        let revision = expected.iter().map(|broker| broker.revision).max();
        let mut ok = true;
        for meta in self.views(revision) {
            ok &= meta.brokers().await? == expected;
        }
        self.push(
            "register_brokers",
            format!("register {} brokers", BROKERS.len()),
            timed,
            ok,
        );
        Ok(())
    }

    /// Two topics with their first partitions, as one transaction: one grows step by step, the other at once.
    async fn create_topics(&mut self) -> Result<Vec<(TopicName, TopicId)>, Failure> {
        let mut create = Vec::new();
        for name in ["demo.one-by-one", "demo.batch"] {
            create.push(CreateTopic::manual(name, [assignment(0)])?);
        }
        let timed = self.timed().await?;
        let created = self.meta.create_topics(create).await?;
        let timed = timed.end(self).await?;
        let revision = created.iter().map(|created| created.topic.revision).max();
        let mut ok = true;
        for meta in self.views(revision) {
            for created in &created {
                let expected = (created.topic.clone(), created.partitions.clone());
                ok &= meta.describe(&created.topic.name).await? == Some(expected);
            }
        }
        self.push(
            "create_topic",
            format!("create {} topics", created.len()),
            timed,
            ok,
        );
        Ok(created
            .into_iter()
            .map(|created| (created.topic.name, created.topic.id))
            .collect())
    }

    async fn create_sequentially(&mut self, (name, id): &(TopicName, TopicId)) -> Result<Partition, Failure> {
        let timed = self.timed().await?;
        let mut created = Vec::new();
        for new in new_partitions(name, self.partitions)? {
            created.push(self.meta.create_partition(new).await?);
        }
        let timed = timed.end(self).await?;
        self.sequential = timed.took;
        let ok = self.shows(*id, &created).await?;
        let title = format!("create {} one by one", plural(self.partitions, "partition"));
        self.push("create_partitions_sequential", title, timed, ok);
        created
            .into_iter()
            .next()
            .ok_or_else(|| Failure::failed("no partition was created"))
    }

    async fn create_batch(&mut self, (name, id): &(TopicName, TopicId)) -> Result<(), Failure> {
        let timed = self.timed().await?;
        let created = self
            .meta
            .create_partitions(new_partitions(name, self.partitions)?)
            .await?;
        let timed = timed.end(self).await?;
        self.batch = timed.took;
        let ok = self.shows(*id, &created.partitions).await?;
        let title = format!("create {} as one batch", plural(self.partitions, "partition"));
        self.push("create_partitions_batch", title, timed, ok);
        Ok(())
    }

    async fn update_leader(&mut self, seen: Partition) -> Result<Partition, Failure> {
        let next = seen
            .isr
            .iter()
            .copied()
            .find(|broker| Some(*broker) != seen.leader);
        let next = next.ok_or_else(|| Failure::failed("the ISR has no second member"))?;
        let timed = self.timed().await?;
        let updated = self.meta.update_leader(LeaderUpdate::new(&seen, next)).await?;
        let timed = timed.end(self).await?;
        let ok = updated.changed
            && updated.partition.leader == Some(next)
            && self
                .shows(seen.topic, std::slice::from_ref(&updated.partition))
                .await?;
        self.push("update_leader", "move a partition's leader".to_owned(), timed, ok);
        Ok(updated.partition)
    }

    async fn update_isr(&mut self, seen: Partition) -> Result<(), Failure> {
        // The leader and one other: as when the third fell behind.
        let out = seen
            .isr
            .iter()
            .copied()
            .rfind(|broker| Some(*broker) != seen.leader);
        let isr: Vec<BrokerId> = seen
            .isr
            .iter()
            .copied()
            .filter(|broker| Some(*broker) != out)
            .collect();
        let timed = self.timed().await?;
        let updated = self.meta.update_isr(IsrUpdate::new(&seen, isr.clone())).await?;
        let timed = timed.end(self).await?;
        let ok = updated.changed
            && updated.partition.isr == isr
            && self
                .shows(seen.topic, std::slice::from_ref(&updated.partition))
                .await?;
        self.push("update_isr", "shrink a partition's ISR".to_owned(), timed, ok);
        Ok(())
    }

    /// Whether every node has these partitions as they were answered.
    async fn shows(&self, topic: TopicId, expected: &[Partition]) -> Result<bool, Failure> {
        let revision = expected.iter().map(|partition| partition.revision).max();
        let mut ok = !expected.is_empty();
        for meta in self.views(revision) {
            let found = meta.partitions(topic).await?;
            ok &= expected.iter().all(|partition| found.contains(partition));
        }
        Ok(ok)
    }

    /// Each node's own view, once it has this revision.
    fn views(&self, revision: Option<Revision>) -> impl Iterator<Item = MetaClient<Client>> {
        let consistency = at_least(revision.unwrap_or(Revision::FIRST));
        self.cluster
            .nodes()
            .map(move |running| MetaClient::new(running.client.clone()).reading(consistency))
    }

    async fn timed(&self) -> Result<Timed, Failure> {
        let committed = self.cluster.committed(self.leader).await?;
        Ok(Timed {
            committed,
            begun: Instant::now(),
        })
    }

    fn push(&mut self, name: &'static str, title: String, timed: Measured, ok: bool) {
        self.steps.push(Step {
            name,
            title,
            entries: timed.entries,
            micros: micros(timed.took),
            ok,
        });
    }
}

struct Timed {
    committed: u64,
    begun: Instant,
}

struct Measured {
    entries: u64,
    took: Duration,
}

impl Timed {
    async fn end(self, scenario: &Scenario<'_>) -> Result<Measured, Failure> {
        let took = self.begun.elapsed();
        let committed = scenario.cluster.committed(scenario.leader).await?;
        Ok(Measured {
            entries: committed.saturating_sub(self.committed),
            took,
        })
    }
}

fn at_least(revision: Revision) -> Consistency {
    Consistency::Stale {
        min_revision: Some(revision),
        max_lag: None,
    }
}

fn broker(id: u64) -> Result<RegisterBroker, Failure> {
    Ok(RegisterBroker::new(id, format!("broker-{id}.demo:9092"))?.rack(format!("rack-{id}")))
}

/// All brokers, another one first for each partition.
fn assignment(index: u32) -> Assignment {
    let mut replicas = BROKERS;
    replicas.rotate_left(index as usize % BROKERS.len());
    Assignment::new(replicas)
}

/// Partitions 1 and on: the topic has its first.
fn new_partitions(name: &TopicName, count: u32) -> Result<Vec<NewPartition>, Failure> {
    let new = |index| Ok(NewPartition::new(name, index, assignment(index))?);
    (1..=count).map(new).collect()
}

fn plural(count: u32, noun: &str) -> String {
    if count == 1 {
        format!("1 {noun}")
    } else {
        format!("{count} {noun}s")
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
