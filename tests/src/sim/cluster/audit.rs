//! The judgement: the cluster serves again, its nodes are equal, and the rule book finds nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_kv::client::Error;
use quorate_kv::env;
use quorate_kv::model::{Key, KeyRange, Limit, LogIndex, NodeId, Op, Txn};
use quorate_kv::node::{Status, Tap};

use super::Cluster;
use crate::check::ground::Ground;
use crate::check::raft::Statuses;
use crate::check::rebuild::Source;
use crate::check::taps::{Clock, Taps};
use crate::check::{Rule, Violation, judge, membership, metadata, second};
use crate::sim::Simulation;
use crate::sim::world::lock;

/// How long after the faults' end the cluster must serve, and its nodes be equal.
const RECOVERY_MAX: Duration = Duration::from_secs(60);
/// How long a search for an order of one key may take; what it cannot decide in that time stays undecided.
const OPINION_MAX: Duration = Duration::from_secs(2);

/// What the nodes tell while they run. Cheap to clone; clones are one record.
#[derive(Clone)]
pub(super) struct Record {
    clock: Clock,
    taps: Taps,
    statuses: Arc<Mutex<Statuses>>,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").finish_non_exhaustive()
    }
}

impl Record {
    pub(super) fn new(sim: &Simulation) -> Self {
        let world = sim.world();
        let clock: Clock = Arc::new(move || Duration::from_nanos(world.now()));
        let taps = Taps::new(Arc::clone(&clock));
        let statuses = Arc::default();
        Self {
            clock,
            taps,
            statuses,
        }
    }

    pub(super) fn clock(&self) -> Clock {
        Arc::clone(&self.clock)
    }

    /// A node's process starts: the tap of this life.
    pub(super) fn started(&self, number: u32) -> Arc<dyn Tap> {
        lock(&self.statuses).started(NodeId::new(u64::from(number)));
        self.taps.start(u64::from(number))
    }

    /// A node tells of itself.
    pub(super) fn status(&self, status: &Status) {
        if let Some(purged) = status.purged {
            self.taps.purged(status.node.number(), purged);
        }
        lock(&self.statuses).take(status);
    }

    /// The first rule that was seen broken while the nodes ran.
    pub(super) fn broken(&self) -> Option<Violation> {
        let of_statuses = || lock(&self.statuses).violations().first().cloned();
        self.taps.broken().or_else(of_statuses)
    }

    /// The members that were applied last.
    pub(super) fn members(&self) -> Option<membership::Membership> {
        let last = self.taps.look(membership::last);
        last.ok()?.map(|(_, members)| members)
    }

    /// The first entry in which a node has a vote, as far as one was applied.
    pub(super) fn promotion(&self, number: u32) -> Option<LogIndex> {
        self.taps
            .look(|agreement| membership::promotion(agreement, u64::from(number)))
    }

    /// Whether the members that were applied last are two sets of voters: a change between them is under way.
    pub(super) fn is_joint(&self) -> bool {
        let last = self.taps.look(membership::last);
        matches!(last, Ok(Some((_, membership))) if membership.is_joint())
    }
}

/// Waits until the cluster serves writes again and every node has applied the same.
pub(super) async fn wait_until_healthy(cluster: &Cluster) -> Result<(), String> {
    let client = cluster.client("auditor").with_deadline(RECOVERY_MAX);
    let key = Key::new("audit").expect("a legal key");
    let txn = Txn::new([Op::put(key, "served again")]);
    let mut served = client.commit(txn.clone()).await;
    if let Err(Error::NoSpace { .. }) = served {
        // As the manual says.
        let raised = client.set_limits([(Limit::StoreBytesMax, 0)]).await;
        raised
            .map_err(|error| format!("liveness: the store is full and cannot be given more room: {error}"))?;
        served = client.commit(txn).await;
    }
    if let Some(broken) = cluster.broken() {
        return Err(broken);
    }
    served.map(drop).map_err(|error| {
        let standing = standing(cluster);
        format!("liveness: no write {RECOVERY_MAX:?} after the last fault: {error}; {standing}")
    })
}

/// Waits until all nodes stand at one entry.
async fn wait_until_equal(cluster: &Cluster) -> Result<(), String> {
    let end = cluster.sim.now() + RECOVERY_MAX;
    loop {
        if let Some(broken) = cluster.broken() {
            return Err(broken);
        }
        let equal = {
            let seen = lock(&cluster.seen);
            let applied = |number| seen.latest.get(&number).and_then(|s| s.applied);
            let standing: BTreeSet<_> = cluster.numbers().map(applied).collect();
            standing.len() == 1 && !standing.contains(&None)
        };
        if equal {
            return Ok(());
        }
        if cluster.sim.now() > end {
            return Err(format!(
                "liveness: the nodes are not equal: {}",
                standing(cluster)
            ));
        }
        env::sleep(Duration::from_millis(20)).await;
    }
}

/// Gives a leader the time to finish a change of voters that another had begun.
async fn wait_until_settled(cluster: &Cluster) {
    let end = cluster.sim.now() + RECOVERY_MAX;
    while cluster.record.is_joint() && cluster.sim.now() < end {
        env::sleep(Duration::from_millis(100)).await;
    }
}

fn standing(cluster: &Cluster) -> String {
    let seen = lock(&cluster.seen);
    let tell = |number| match (seen.stopped.get(&number), seen.latest.get(&number)) {
        (Some(fault), _) => format!("node {number} stopped: {fault}"),
        (None, None) => format!("node {number} was never heard"),
        (None, Some(s)) => format!(
            "node {number} is {} in term {}, leader {:?}, log {:?}, committed {:?}, applied {:?}, purged {:?}",
            s.role, s.term, s.leader, s.last_log, s.committed, s.applied, s.purged
        ),
    };
    cluster.numbers().map(tell).collect::<Vec<_>>().join("; ")
}

/// Judges everything that the nodes applied and every call.
pub(super) async fn judge(cluster: &Cluster) -> Result<(), String> {
    wait_until_settled(cluster).await;
    wait_until_equal(cluster).await?;
    // What only a later start would show is shown now.
    cluster.lose_all_power();
    wait_until_healthy(cluster).await?;
    wait_until_equal(cluster).await?;
    let client = cluster.client("judge").with_deadline(Duration::from_secs(20));
    let (revision, last) = client
        .everything(None)
        .await
        .map_err(|error| format!("liveness: the judge could not read: {error}"))?;
    let history = cluster.history.borrow().book.history();
    let agreement = cluster.record.taps.agreement();
    let (ground, mut violations) = Ground::replay(&agreement, cluster.plan.tuning.small.page_bytes_max);
    violations.extend(membership::judge(&agreement));
    if violations.is_empty() {
        if ground.model.range_at(&KeyRange::all(), revision) != last {
            let what = format!("what is read back at {revision} is not what the order made");
            violations.push(Violation::new(Rule::FinalState, what));
        }
        violations.extend(judge::judge(&ground, &history.calls));
        violations.extend(metadata::judge(&ground, &history.calls, &history.meta));
        violations.extend(second::opinion(&history.calls, OPINION_MAX).violations);
    }
    match &violations[..] {
        [] => Ok(()),
        [first] => Err(first.to_string()),
        [first, rest @ ..] => Err(format!("{first} (and {} more, next: {})", rest.len(), rest[0])),
    }
}
