//! Starting a member of the group: every part of it, and the tasks that watch.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{Config, SnapshotPolicy};
use quorate_transport::Transport;

use super::acquaintance::{Acquaintance, Own};
use super::broken_off::BrokenOff;
use super::comparison::Comparison;
use super::freshness::Freshness;
use super::intake::Intakes;
use super::keeping::{keep_durable, keep_short};
use super::log_store::LogStore;
use super::membership::finish_joint;
use super::network::{Leading, NetworkFactory};
use super::node::RaftNode;
use super::purge::PurgeWanted;
use super::read_index::ReadRounds;
use super::settings::RaftSettings;
use super::state_machine::{Raft, StateMachine};
use super::step_down::StepDown;
use super::succession::{Succession, Witness};
use super::tap::Tap;
use super::{forming, heartbeat};
use crate::env::{self, Disk};
use crate::fault::{Fault, Faults};
use crate::identity::MemberUuid;
use crate::log::Log;
use crate::machine::{Machine, Reader};
use crate::model::NodeId;
use crate::planted::{self, Bug};
use crate::tasks::Tasks;
use crate::timing::Timing;

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
