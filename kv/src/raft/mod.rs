//! openraft, wired to our log, machine and transport. Its types end here.
//!
//! [`RaftNode`] is what the rest of the crate sees: propose, read index, membership, leadership, and what the
//! metrics say, in the model's words.

mod acquaintance;
mod checkpoints;
mod comparison;
#[cfg(any(test, feature = "fuzzing"))]
mod decoders;
mod forming;
mod freshness;
mod heartbeat;
mod hello;
mod intake;
mod log_store;
mod membership;
mod network;
mod owed;
mod purge;
mod read_index;
mod rounds;
mod sendings;
mod serve;
mod snapshot_receive;
mod snapshot_send;
#[cfg(test)]
mod snapshot_tests;
mod state_machine;
mod step_down;
mod succession;
#[cfg(test)]
mod suite;
mod tap;
mod turns;
mod types;
mod wire;

pub(crate) use comparison::noted as noted_to_differ;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use decoders::decoders;
pub(crate) use log_store::read_vote;
pub(crate) use membership::MembershipError;
pub(crate) use read_index::ReadIndexError;
pub(crate) use state_machine::{ApplyBounds, SnapshotData, StateMachine};
pub use tap::{LogEvent, LogVote, Tap};
pub(crate) use types::{Member, ProposalData, address_text, read_members};

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::ClientWriteError;
use openraft::metrics::RaftServerMetrics;
use openraft::{Config, ServerState, SnapshotPolicy};
use quorate_transport::{Address, Class, Incoming, Role, Transport};
use tokio::sync::Mutex;

use crate::env::{self, Disk, Instant};
use crate::fault::{Fault, Faults};
use crate::identity::{ClusterUuid, MemberUuid};
use crate::log::Log;
use crate::machine::{EntryOutcome, Machine, Reader};
use crate::model::{LogIndex, NodeId, Term};
use crate::node::{RaftSettings, Timing};
use crate::planted::{self, Bug};
use crate::tasks::Tasks;
use acquaintance::{Acquaintance, Own};
use comparison::Comparison;
use freshness::{Freshness, confirmed_by_quorum};
use intake::Intakes;
use log_store::LogStore;
use membership::finish_joint;
use network::{Leading, NetworkFactory};
use purge::PurgeWanted;
use read_index::ReadRounds;
use sendings::Sendings;
use snapshot_receive::BrokenOff;
use step_down::StepDown;
use succession::{Succession, Witness};
use types::{Callback, Raft, TypeConfig};

/// What a node's Raft part is started from.
pub(crate) struct RaftParts {
    pub id: NodeId,
    /// Which directory the node's is.
    pub member: MemberUuid,
    pub log: Log,
    pub machine: Machine,
    pub tap: Option<Arc<dyn Tap>>,
    pub reader: Reader,
    pub disk: Arc<dyn Disk>,
    pub dir: PathBuf,
    pub transport: Arc<dyn Transport>,
    pub timing: Timing,
    pub settings: RaftSettings,
    pub faults: Faults,
}

/// A running member of the group.
pub(crate) struct RaftNode {
    id: NodeId,
    raft: Raft,
    machine: StateMachine,
    log: Log,
    acquaintance: Acquaintance,
    freshness: Arc<Freshness>,
    rounds: ReadRounds,
    witness: Witness,
    /// Held through a change of members, which takes two entries: one change at a time, and nobody takes one
    /// under way for one that was left behind.
    changing: Arc<Mutex<()>>,
    promote_lag_max: u64,
    /// What is taken in of leaders' streams.
    intakes: Intakes,
    /// What came of a snapshot whose stream broke.
    broken_off: BrokenOff,
    timing: Timing,
    faults: Faults,
    tasks: Tasks,
}

impl std::fmt::Debug for RaftNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftNode")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// What became of a proposal.
#[derive(Debug)]
pub(crate) enum Proposed {
    /// Committed and applied.
    Applied {
        /// The answers, one for each command.
        outcome: EntryOutcome,
    },
    /// This node does not lead; nothing was proposed.
    NotLeader { leader: Option<(NodeId, String)> },
    /// Leadership was lost on the way: the entry may commit yet, or never.
    Unknown { leader: Option<(NodeId, String)> },
}

/// One member as the membership and the metrics know it.
#[derive(Debug, Clone)]
pub(crate) struct MemberState {
    pub id: NodeId,
    pub address: Option<Address>,
    /// Which directory it is; `None` for one that was not introduced yet.
    pub member: Option<MemberUuid>,
    pub voter: bool,
    /// How far the leader knows this member's log; `None` on followers and where nothing is known yet.
    pub matched: Option<LogIndex>,
    /// How long ago the leader sent the last message that this member answered; `None` on followers, for the leader
    /// itself, and where it never answered.
    pub answered: Option<Duration>,
}

/// A glance at the Raft part.
#[derive(Debug, Clone)]
pub(crate) struct RaftState {
    /// The cluster that the node belongs to, once it knows that it does.
    pub cluster: Option<ClusterUuid>,
    pub term: Term,
    pub role: Part,
    pub leader: Option<NodeId>,
    pub last_log: Option<LogIndex>,
    pub committed: Option<LogIndex>,
    pub purged: Option<LogIndex>,
    pub members: Vec<MemberState>,
    /// Whether a quorum follows the leader, as far as was heard within a leader's lease. A leader that is cut off knows
    /// then that it leads nobody; a follower, that its leader may lead nobody.
    pub has_quorum: bool,
    /// How long ago a quorum last confirmed a leader, counted from the question. `None` before the first time, and on a
    /// sole voter, which asks nobody.
    pub confirmed: Option<Duration>,
    pub stopped: Option<String>,
}

/// A node's present part in the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Leader,
    Follower,
    Candidate,
    Learner,
    Stopped,
}

impl Part {
    fn of(state: ServerState, is_stopped: bool) -> Self {
        match state {
            _ if is_stopped => Part::Stopped,
            ServerState::Leader => Part::Leader,
            ServerState::Follower => Part::Follower,
            ServerState::Candidate => Part::Candidate,
            ServerState::Learner => Part::Learner,
            ServerState::Shutdown => Part::Stopped,
        }
    }
}

fn config(timing: &Timing, settings: &RaftSettings) -> Config {
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    Config {
        cluster_name: "quorate".to_owned(),
        // What openraft calls so is two things: how often it sends heartbeats by itself, which it does not do here (see
        // `heartbeat::send`), and how long it waits for their answers. Were both one, a leader whose answers take longer
        // than the pause between two heartbeats would never hear of its quorum.
        heartbeat_interval: millis(timing.answer_patience()),
        enable_heartbeat: false,
        election_timeout_min: millis(timing.election_timeout_min()),
        election_timeout_max: millis(timing.lease()),
        // A large entry takes its time; the leader must not split what one message can carry.
        max_payload_entries: 1024,
        install_snapshot_timeout: 10 * 60 * 1000,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(settings.snapshot_entries),
        // Purging is ours alone: openraft takes back what it was asked to purge where its own policy keeps more, and
        // fails its own check where that is compiled in. See `keep_short` and docs/upstream.md.
        max_in_snapshot_log_to_keep: u64::MAX,
        replication_lag_threshold: settings
            .snapshot_entries
            .saturating_add(settings.log_entries_kept),
        enable_pre_vote: Some(true),
        // Unsafe with an append that returns before its sync: the leader could come back in its old term and
        // reuse the log id of an entry that it lost and others committed. See docs/upstream.md.
        enable_leader_restore: Some(planted::is(Bug::LeaderRestore)),
        allow_log_reversion: Some(false),
        // Entries leave for the followers while our own sync runs.
        broadcast_submitted_on_append: Some(true),
        backoff: "20ms 40ms 80ms ..500ms".to_owned(),
        ..Config::default()
    }
}

impl RaftNode {
    pub(crate) async fn start(parts: RaftParts) -> Result<Self, Fault> {
        let stopped = |e: &dyn std::fmt::Display| Fault::State {
            doing: "starting Raft",
            detail: e.to_string(),
        };
        let config = config(&parts.timing, &parts.settings)
            .validate()
            .map_err(|e| stopped(&e))?;
        let bounds = parts.settings.apply;
        let (disk, dir) = (Arc::clone(&parts.disk), parts.dir.clone());
        let tap = parts.tap.clone();
        let machine = StateMachine::start(
            parts.machine,
            parts.reader,
            bounds,
            parts.tap,
            parts.disk,
            parts.dir,
            parts.faults.clone(),
        );
        let leading = Leading::default();
        let own = Own {
            node: parts.id.number(),
            member: parts.member,
            process: env::random_u64(),
        };
        let acquaintance = Acquaintance::new(own, Arc::clone(&parts.transport), parts.faults.clone());
        let purge_wanted = PurgeWanted::default();
        let network = NetworkFactory {
            own_id: parts.id.number(),
            acquaintance: acquaintance.clone(),
            log: parts.log.clone(),
            applied: machine.applied(),
            stall_max: parts.timing.failover_min,
            heartbeat: parts.timing.heartbeat,
            faults: parts.faults.clone(),
            leading: leading.clone(),
            sendings: machine.sendings().clone(),
            purge_wanted: purge_wanted.clone(),
        };
        let store = LogStore::new(parts.log.clone(), machine.applied(), tap, parts.faults.clone());
        // Its tasks call our code, and it looks after few of them.
        let faults = parts.faults.clone();
        let on_panic =
            env::OnPanic::new(move |owner, message| faults.raise(Fault::Panicked { owner, message }));
        let started = Raft::new(
            parts.id.number(),
            Arc::new(config),
            network,
            store,
            machine.clone(),
        );
        let raft = match env::watched("raft", on_panic, started).await {
            Ok(raft) => raft,
            Err(error) => {
                machine.close().await;
                return Err(stopped(&error));
            }
        };
        // Until the core has answered, its metrics are those of a node that has nothing: nobody may be told so.
        if let Err(error) = raft.is_initialized().await {
            machine.close().await;
            return Err(stopped(&error));
        }
        let tasks = Tasks::new(parts.faults.clone());
        leading.runs(raft.metrics());
        acquaintance.runs(raft.metrics());
        let freshness: Arc<Freshness> = Arc::default();
        let (rounds, run) = ReadRounds::new(
            raft.clone(),
            acquaintance.clone(),
            Arc::clone(&freshness),
            parts.timing.failover_min,
        );
        tasks.spawn("read-rounds", run.run());
        let witness = Witness::default();
        let succession = Succession {
            raft: raft.clone(),
            own_id: parts.id.number(),
            transport: Arc::clone(&parts.transport),
            acquaintance: acquaintance.clone(),
            witness: witness.clone(),
            freshness: Arc::clone(&freshness),
            heartbeat: parts.timing.heartbeat,
        };
        tasks.spawn("succession", succession.run());
        let step_down = StepDown {
            raft: raft.clone(),
            own_id: parts.id.number(),
            acquaintance: acquaintance.clone(),
            heartbeat: parts.timing.heartbeat,
            lease: parts.timing.lease(),
            answer_patience: parts.timing.answer_patience(),
            patience: parts.timing.election_timeout_min(),
        };
        tasks.spawn("step-down", step_down.run());
        let comparison = Comparison {
            raft: raft.clone(),
            own_id: parts.id.number(),
            acquaintance: acquaintance.clone(),
            reader: machine.reader().clone(),
            interval: parts.settings.compare_interval,
            faults: parts.faults.clone(),
            disk,
            dir,
        };
        tasks.spawn("comparison", comparison.run());
        tasks.spawn(
            "heartbeats",
            heartbeat::send(raft.clone(), parts.timing.heartbeat),
        );
        tasks.spawn("watch-core", watch_core(raft.clone(), parts.faults.clone()));
        tasks.spawn("stop-on-fault", stop_on_fault(raft.clone(), parts.faults.clone()));
        let changing = Arc::default();
        tasks.spawn("finish-joint", finish_joint(raft.clone(), Arc::clone(&changing)));
        let introducing = forming::introduce(raft.clone(), acquaintance.clone(), Arc::clone(&changing));
        tasks.spawn("introduce", introducing);
        tasks.spawn(
            "acquaint",
            forming::keep_acquainted(raft.clone(), acquaintance.clone(), Arc::clone(&freshness)),
        );
        let removed = forming::stop_when_removed(raft.clone(), own, parts.faults.clone());
        tasks.spawn("stop-when-removed", removed);
        let keeper = keep_durable(
            machine.clone(),
            raft.clone(),
            parts.log.clone(),
            parts.settings.durable_interval,
            parts.settings.log_bytes_kept,
            purge_wanted,
        );
        tasks.spawn("keep-durable", keeper);
        tasks.spawn(
            "keep-short",
            keep_short(
                raft.clone(),
                machine.sendings().clone(),
                parts.settings.log_entries_kept,
            ),
        );
        let intakes = Intakes::new(parts.log.clone(), machine.applied());
        Ok(Self {
            id: parts.id,
            raft,
            machine,
            log: parts.log,
            acquaintance,
            freshness,
            rounds,
            witness,
            changing,
            promote_lag_max: parts.settings.promote_lag_max,
            intakes,
            broken_off: BrokenOff::default(),
            timing: parts.timing,
            faults: parts.faults,
            tasks,
        })
    }

    pub(crate) fn machine(&self) -> &StateMachine {
        &self.machine
    }

    /// Which directory the node's is.
    pub(crate) fn member(&self) -> MemberUuid {
        self.acquaintance.own().member
    }

    /// Hands a peer's stream to what serves its class. Returns it when the class is not Raft's.
    pub(crate) async fn serve(self: &Arc<Self>, incoming: Incoming) {
        let Role::Node(from) = incoming.from.role else {
            return;
        };
        let node = Arc::clone(self);
        match incoming.class {
            Class::Control => serve::control(node, from, incoming.stream).await,
            Class::Append => serve::append(node, from, incoming.stream).await,
            Class::Bulk => snapshot_receive::snapshot(node, from, incoming.stream).await,
            Class::Client => {}
        }
    }

    pub(crate) async fn is_formed(&self) -> Result<bool, MembershipError> {
        self.raft
            .is_initialized()
            .await
            .map_err(|e| MembershipError::Stopped(e.to_string()))
    }

    /// Stands for election now, without waiting for a timeout.
    pub(crate) async fn elect(&self) {
        if let Err(error) = self.raft.trigger().elect(true).await {
            tracing::debug!(%error, "no election: Raft has stopped");
        }
    }

    /// Proposes an entry. `answer` is called from the apply thread, or with the reason why not. Cancel safe:
    /// an entry that was handed over goes its way.
    pub(crate) async fn propose(&self, data: ProposalData, answer: impl FnOnce(Proposed) + Send + 'static) {
        let responder = Callback::new(move |result: openraft::raft::ClientWriteResult<TypeConfig>| {
            answer(match result {
                Ok(response) => Proposed::Applied {
                    outcome: response.data,
                },
                Err(ClientWriteError::ForwardToLeader(forward)) => Proposed::NotLeader {
                    leader: leader(forward.leader_id, forward.leader_node),
                },
                Err(ClientWriteError::LogEntryDiscarded(forward)) => Proposed::Unknown {
                    leader: leader(forward.leader_id, forward.leader_node),
                },
                Err(_) => Proposed::Unknown { leader: None },
            });
        });
        // Here and not in the core, which must not wait: see `intake`. A leader's entries on their way to its own disk
        // exceed the log's bound by what may be proposed at once (`Settings::proposals_in_flight`).
        self.log.wait_for_room().await;
        // On an error the responder was dropped, and what it holds says so to those who wait.
        if let Err(error) = self.raft.client_write_ff(data, Some(responder)).await {
            tracing::debug!(%error, "nothing was proposed: Raft has stopped");
        }
    }

    /// The index that a linearizable read on this node must have applied; a follower asks its leader.
    pub(crate) async fn read_index(&self) -> Result<Option<LogIndex>, ReadIndexError> {
        self.rounds.index().await
    }

    /// The moment before which everything that was acknowledged anywhere is in the state here. `None` where nobody has
    /// confirmed one yet.
    pub(crate) fn level_at(&self) -> Option<Instant> {
        let applied = self.machine.applied().borrow().position.map(|p| p.index);
        let metrics = self.raft.metrics();
        if let Some((at, index)) = confirmed_by_quorum(&metrics.borrow_watched()) {
            self.freshness.confirm(at, Some(index));
        }
        self.freshness.level_at(applied)
    }

    /// Has [`level_at`](Self::level_at) confirmed anew, and does not wait.
    pub(crate) fn refresh_level(&self) {
        self.rounds.refresh();
    }

    /// How old the state here may be, as far as is known without asking; nothing on a sole voter that leads.
    pub(crate) fn lag(&self) -> Option<Duration> {
        if self.is_sole_leader() {
            return Some(Duration::ZERO);
        }
        self.level_at().map(Instant::elapsed)
    }

    /// Whether this node leads, and its own vote is all that it takes.
    fn is_sole_leader(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.state == ServerState::Leader
            && metrics
                .membership_config
                .membership()
                .voter_ids()
                .all(|voter| voter == self.id.number())
    }

    /// Hands leadership to a voter. Returns when the request was made; watch [`state`](Self::state) for it.
    pub(crate) async fn transfer_leader(&self, to: NodeId) -> Result<(), MembershipError> {
        let transfer = self.raft.trigger().transfer_leader(to.number()).await;
        transfer.map_err(|e| MembershipError::Stopped(e.to_string()))
    }

    /// How long a leader may go without a word of its quorum.
    fn lease(&self) -> Duration {
        self.timing.lease()
    }

    /// What [`state`](Self::state) calls the role, and nothing else of it: for each command.
    pub(crate) fn role(&self) -> Part {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let is_stopped = self.faults.is_raised() || metrics.running_state.is_err();
        Part::of(metrics.state, is_stopped)
    }

    /// A glance at the metrics.
    pub(crate) fn state(&self) -> RaftState {
        let is_sole_leader = self.is_sole_leader();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: &Option<types::LogId>| id.as_ref().map(|id| LogIndex::new(id.index));
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let members = membership.nodes().map(|(id, member)| MemberState {
            id: NodeId::new(*id),
            address: member.address.clone(),
            member: member.introduced.map(|introduced| introduced.member),
            voter: voters.contains(id),
            matched: metrics
                .replication
                .as_ref()
                .and_then(|r| r.get(id))
                .and_then(index),
            answered: metrics
                .heartbeat
                .as_ref()
                .and_then(|answered| answered.get(id)?.as_ref())
                .filter(|_| *id != self.id.number())
                .map(|sent| sent.elapsed()),
        });
        let confirmed_at = match metrics.state {
            ServerState::Leader => metrics.last_quorum_acked.as_ref().map(|acked| **acked),
            _ => self.freshness.confirmed_at(),
        };
        let confirmed = confirmed_at.filter(|_| !is_sole_leader).map(Instant::elapsed);
        let fault = self.faults.first().map(|fault| fault.to_string());
        let stopped = fault.or(metrics.running_state.as_ref().err().map(ToString::to_string));
        RaftState {
            cluster: acquaintance::cluster_of(&metrics.committed_membership_config),
            term: Term::new(metrics.current_term),
            role: Part::of(metrics.state, stopped.is_some()),
            leader: metrics.current_leader.map(NodeId::new),
            last_log: metrics.last_log_index.map(LogIndex::new),
            // The leader's word for the cluster may be ahead of this log, and falls with a new leader.
            committed: index(&metrics.local_committed),
            purged: index(&metrics.purged),
            members: members.collect(),
            has_quorum: is_sole_leader || confirmed.is_some_and(|age| age <= self.lease()),
            confirmed,
            stopped,
        }
    }

    /// Waits until the metrics change. Cancel safe.
    pub(crate) async fn wait_for(&self, mut condition: impl FnMut(&RaftState) -> bool) {
        let mut changes = self.raft.metrics();
        loop {
            if condition(&self.state()) || changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Changes of part, leader, term and members.
    pub(crate) fn server_changes(&self) -> env::watch::Receiver<RaftServerMetrics<TypeConfig>> {
        self.raft.server_metrics()
    }

    /// Waits until this node leads no more, and for two heartbeats of nobody else who does. Cancel safe.
    pub(crate) async fn lost_leadership(&self) {
        let mut server = self.raft.server_metrics();
        let led = |server: &env::watch::Receiver<RaftServerMetrics<TypeConfig>>| {
            let metrics = server.borrow_watched();
            (
                (metrics.state == ServerState::Leader).then_some(metrics.vote),
                metrics.current_leader,
            )
        };
        let (mut leading, _) = led(&server);
        loop {
            if server.changed().await.is_err() {
                return std::future::pending().await;
            }
            let (now, _) = led(&server);
            if leading.is_some() && now.is_none() {
                let heard = async { while led(&server).1.is_none() && server.changed().await.is_ok() {} };
                if env::timeout(self.timing.heartbeat * 2, heard).await.is_err() {
                    return;
                }
            }
            leading = led(&server).0;
        }
    }

    /// Waits until this node's part has ended; [`state`](Self::state) says why. Cancel safe.
    pub(crate) async fn ended(&self) {
        // Not the metrics: they change several times with every entry, and whoever waits would be woken each time.
        let mut server = self.raft.server_metrics();
        let core = async { while server.changed().await.is_ok() {} };
        tokio::select! {
            biased;
            _ = self.faults.raised() => {}
            () = core => {}
        }
    }

    /// Makes the state durable, so that the next start replays nothing. Answers whether it is.
    pub(crate) async fn make_durable(&self) -> bool {
        let durable = self.machine.make_durable().await;
        if let Err(fault) = &durable {
            tracing::warn!(%fault, "the state was not made durable at the stop; the log will replay the rest");
        }
        durable.is_ok()
    }

    /// Stops Raft, waits for its tasks and closes the files.
    pub(crate) async fn abort(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "Raft's task did not end well");
        }
        self.tasks.end().await;
        self.machine.close().await;
        if let Err(fault) = self.log.close().await {
            tracing::warn!(%fault, "the log was not closed in order; it will be recovered at the next start");
        }
    }
}

fn leader(id: Option<u64>, member: Option<Member>) -> Option<(NodeId, String)> {
    id.zip(member)
        .map(|(id, member)| (NodeId::new(id), member.address_text()))
}

/// Makes the state durable from time to time, so that a restart replays little and the state file's pages
/// can be used again; and has the log purged behind it where it takes more of the disk than it may.
async fn keep_durable(
    machine: StateMachine,
    raft: Raft,
    log: Log,
    interval: Duration,
    log_bytes_kept: u64,
    wanted: PurgeWanted,
) {
    let mut applied = machine.applied();
    let (mut asked, mut seen) = (None, None);
    // Ends when the state machine's owner does. What could not be purged yet is tried again: a follower may still
    // be reading it, or the snapshot before it was not made in time.
    while log.beyond(log_bytes_kept).is_some() || applied.changed().await.is_ok() {
        wait_for_interval(&log, interval, log_bytes_kept, seen).await;
        applied.borrow_and_update();
        if machine.make_durable().await.is_err() {
            return;
        }
        if asked.is_some_and(|upto| log.purged().is_some_and(|purged| purged.index >= upto)) {
            env::mark("log.purged_by_bytes");
        }
        asked = log.beyond(log_bytes_kept);
        seen = asked;
        let snapshot = raft
            .metrics()
            .borrow_watched()
            .snapshot
            .map(|id| LogIndex::new(id.index));
        if let Some(upto) = log.beyond(log_bytes_kept.saturating_mul(2)).min(snapshot) {
            wanted.set(upto);
        }
        if let (Some(upto), Some(held)) = (asked, machine.sendings().held())
            && held < upto
        {
            let upto = spared(held, log.beyond(log_bytes_kept.saturating_mul(2)));
            match upto > held {
                true => machine.sendings().overrun(upto),
                false => env::mark("log.held_for_snapshot"),
            }
            asked = Some(upto);
        }
        if let Some(upto) = asked.filter(|upto| log.purged().is_none_or(|purged| purged.index < *upto)) {
            tracing::debug!(%upto, log_bytes_kept, "the log takes more of the disk than it may: it is purged");
            // Purging stops at the last snapshot: first one of what was just made durable.
            if raft.trigger().snapshot().await.is_err() {
                return;
            }
            let _in_time = env::timeout(SNAPSHOT_WAIT, has_snapshot(&raft, upto)).await;
            if raft.trigger().purge_log(upto.number()).await.is_err() {
                return;
            }
        }
    }
}

/// A snapshot is what the last checkpoint has: it takes no time but that of the tasks on the way.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(1);

/// Waits for a snapshot of an entry, or for the end of Raft.
async fn has_snapshot(raft: &Raft, upto: LogIndex) {
    let mut metrics = raft.metrics();
    let is_there = |id: &Option<types::LogId>| id.as_ref().is_some_and(|id| id.index >= upto.number());
    while !is_there(&metrics.borrow_watched().snapshot) && metrics.changed().await.is_ok() {}
}

/// Waits for so long, or until the log takes half as much again as it may with what has come since it was `seen`.
async fn wait_for_interval(log: &Log, interval: Duration, bytes_kept: u64, seen: Option<LogIndex>) {
    const LOOK: Duration = Duration::from_millis(100);
    let until = env::now() + interval;
    let much = bytes_kept.saturating_add(bytes_kept / 2);
    loop {
        let left = until.since(env::now());
        if left.is_zero() {
            return;
        }
        env::sleep(left.min(LOOK)).await;
        if log.beyond(much) > seen {
            env::mark("log.purged_before_its_time");
            return;
        }
    }
}

/// Up to where the log is purged, where what follows `held` is for a snapshot on its way: no further, but for what lies
/// beyond twice of what is kept.
fn spared(held: LogIndex, beyond_twice: Option<LogIndex>) -> LogIndex {
    beyond_twice.map_or(held, |twice| twice.max(held))
}

/// So many entries are purged at once at least: each purge is a record of the log, and a sync.
const PURGE_ENTRIES_MIN: u64 = 256;

/// Has the log purged behind each snapshot, but for the entries that are to be kept.
async fn keep_short(raft: Raft, sendings: Sendings, entries_kept: u64) {
    let mut changes = raft.metrics();
    let mut asked = None;
    loop {
        let upto = {
            let metrics = changes.borrow_watched();
            let index = |id: &Option<types::LogId>| id.as_ref().map(|id| id.index);
            let held = sendings.held().map(LogIndex::number);
            beyond_kept(
                index(&metrics.snapshot),
                held,
                index(&metrics.purged),
                entries_kept,
            )
        };
        // What waits for a follower that still reads it is not asked for again.
        if let Some(upto) = upto.filter(|upto| Some(*upto) > asked) {
            asked = Some(upto);
            if raft.trigger().purge_log(upto).await.is_err() {
                return;
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// The last entry that may go, where that is worth it: a snapshot has it, and none that is on its way needs what follows
/// `held`.
fn beyond_kept(
    snapshot: Option<u64>,
    held: Option<u64>,
    purged: Option<u64>,
    entries_kept: u64,
) -> Option<u64> {
    let snapshot = snapshot.map(|snapshot| held.map_or(snapshot, |held| held.min(snapshot)));
    let after = |last: Option<u64>| last.map_or(0, |last| last.saturating_add(1));
    let end = after(snapshot).saturating_sub(entries_kept);
    (end >= after(purged).saturating_add(PURGE_ENTRIES_MIN)).then(|| end - 1)
}

/// Ends Raft when the node met a fault: it must neither lead nor vote with what it can no longer trust.
async fn stop_on_fault(raft: Raft, faults: Faults) {
    faults.raised().await;
    if let Err(error) = raft.shutdown().await {
        tracing::warn!(%error, "Raft's task did not end well");
    }
}

/// Raises a fault when Raft's own task has ended without being asked to: for an error of the storage, or by a panic,
/// after which its metrics stay as they were.
async fn watch_core(raft: Raft, faults: Faults) {
    let mut server = raft.server_metrics();
    while server.changed().await.is_ok() {}
    let ended = raft.metrics().borrow_watched().running_state.clone();
    match ended {
        // As at a shutdown, or after a fault that was raised elsewhere.
        Err(openraft::errors::Fatal::Stopped) => {}
        Err(fatal) => faults.raise(Fault::State {
            doing: "running Raft",
            detail: fatal.to_string(),
        }),
        Ok(()) => faults.raise(Fault::Panicked {
            owner: "Raft's task",
            message: "it ended without a reason".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_behind_a_snapshot_on_its_way_stays_up_to_twice_what_is_kept() {
        let upto = |held, twice: Option<u64>| spared(LogIndex::new(held), twice.map(LogIndex::new)).number();
        assert_eq!(upto(20, None), 20, "what follows waits for it");
        assert_eq!(
            upto(20, Some(5)),
            20,
            "of what is beyond twice as much it needs nothing"
        );
        assert_eq!(upto(20, Some(25)), 25, "the disk has its bound");
    }

    #[test]
    fn what_follows_a_snapshot_on_its_way_is_not_purged_behind_a_later_one() {
        assert_eq!(beyond_kept(Some(5_000), Some(1_000), Some(500), 0), Some(1_000));
        assert_eq!(beyond_kept(Some(5_000), Some(1_000), Some(1_000), 0), None);
        assert_eq!(beyond_kept(Some(5_000), Some(6_000), Some(1_000), 0), Some(5_000));
    }

    #[test]
    fn the_log_is_purged_behind_a_snapshot_in_strides_and_keeps_what_it_is_to_keep() {
        // Without a snapshot nothing goes, and with one that is short nothing yet.
        assert_eq!(beyond_kept(None, None, None, 0), None);
        assert_eq!(beyond_kept(Some(PURGE_ENTRIES_MIN - 2), None, None, 0), None);
        assert_eq!(
            beyond_kept(Some(PURGE_ENTRIES_MIN - 1), None, None, 0),
            Some(PURGE_ENTRIES_MIN - 1)
        );
        assert_eq!(beyond_kept(Some(1_000), None, Some(600), 100), Some(900));
        assert_eq!(beyond_kept(Some(1_000), None, Some(700), 100), None);
        assert_eq!(beyond_kept(Some(1_000), None, None, 1_000_000), None);
    }
}
