//! A node that runs: what it is asked for, and how it ends.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use quorate_transport::Transport;
use tokio_util::sync::CancellationToken;

use super::front::Front;
use crate::client::Client;
use crate::env;
use crate::env::disk::LockGuard;
use crate::fault::Fault;
use crate::model::NodeId;
use crate::raft::{Part, RaftNode, RaftState};
use crate::status::Status;
use crate::tasks::Tasks;

/// A running node. Cheap to clone; ends with [`shutdown`](Self::shutdown), or without grace when the last
/// clone is dropped.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use quorate_kv::Node;
///
/// let node = Node::builder().data_dir("data").start().await?;
/// tokio::select! {
///     _ = tokio::signal::ctrl_c() => {}
///     // Its disk failed, say: the process may go on, the node does not.
///     reason = node.stopped() => eprintln!("the node ended: {reason:?}"),
/// }
/// let report = node.shutdown().await;
/// println!("the next start replays nothing: {}", report.durable);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Node {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) front: Arc<Front>,
    pub(super) raft: Arc<RaftNode>,
    pub(super) transport: Arc<dyn Transport>,
    /// Refuse new work.
    pub(super) stopping: CancellationToken,
    pub(super) tasks: Tasks,
    pub(super) ending: Arc<Ending>,
}

/// The last part of every end, done once whoever asks for it, by a task that nobody's patience ends.
#[derive(Debug)]
pub(super) struct Ending {
    raft: Arc<RaftNode>,
    transport: Arc<dyn Transport>,
    /// Released when no file is touched any more.
    lock: Mutex<Option<Box<dyn LockGuard>>>,
    asked: CancellationToken,
    done: CancellationToken,
}

impl Ending {
    pub(super) fn new(
        raft: Arc<RaftNode>,
        transport: Arc<dyn Transport>,
        lock: Box<dyn LockGuard>,
    ) -> Arc<Self> {
        Arc::new(Self {
            raft,
            transport,
            lock: Mutex::new(Some(lock)),
            asked: CancellationToken::new(),
            done: CancellationToken::new(),
        })
    }

    /// Waits until the node is to end, cuts it off, ends Raft, closes the files and gives the data directory free. A disk
    /// that hangs holds this up, and the directory stays locked: its files may still be written to.
    pub(super) async fn run(self: Arc<Self>) {
        self.asked.cancelled().await;
        self.transport.shutdown().await;
        self.raft.abort().await;
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(lock);
        self.done.cancel();
    }

    /// Asks for the end and waits for it, for so long at most; whether it was reached. Cancel safe: it goes on.
    async fn end(&self, within: Duration) -> bool {
        self.asked.cancel();
        env::timeout(within, self.done.cancelled()).await.is_ok()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stopping.cancel();
        self.tasks.stop();
        self.ending.asked.cancel();
    }
}

impl Node {
    /// Its id.
    pub fn id(&self) -> NodeId {
        self.inner.front.node()
    }

    /// The address that it listens on, with the port that was really bound; `None` without a network.
    pub fn address(&self) -> Option<SocketAddr> {
        self.inner.transport.local_address()
    }

    /// A client in this process. It asks this node first, and follows the leader where that is another.
    pub fn client(&self) -> Client {
        Client::local(self.inner.front.clone(), Arc::clone(&self.inner.transport))
    }

    /// What this node knows of itself and the group, without asking anyone.
    pub fn status(&self) -> Status {
        self.inner.front.status()
    }

    /// Waits until this node follows or is a leader, or has ended; without a limit of its own. A call needs no such wait: it waits
    /// itself, within its deadline. Cancel safe.
    pub async fn ready(&self) {
        self.inner
            .raft
            .wait_for(|state| state.leader.is_some() || state.role == Part::Stopped)
            .await;
    }

    /// The fault that ended this node's part, if one did.
    pub fn fault(&self) -> Option<Fault> {
        self.inner.front.fault()
    }

    /// Waits until a fault or a shutdown has ended this node's part; answers why, where that is known. Cancel safe.
    pub async fn stopped(&self) -> Option<String> {
        self.inner.raft.ended().await;
        self.inner.raft.state().stopped
    }

    /// Stops: refuses new work, hands leadership on, lets open requests end, makes the state durable, closes.
    ///
    /// A leader's departure so costs no failover time. Its files and its address are free on return. Each step has
    /// its deadline; what did not end in time is told. Cancel safe, but a stop begun is not undone.
    pub async fn shutdown(&self) -> ShutdownReport {
        self.shutting_down().await
    }

    /// A trait object for the reason of `Builder::starting`.
    #[inline(never)]
    fn shutting_down(&self) -> BoxFuture<'_, ShutdownReport> {
        Box::pin(self.end_in_order())
    }

    async fn end_in_order(&self) -> ShutdownReport {
        let inner = &self.inner;
        let mut report = ShutdownReport::default();
        let others_vote = |state: &RaftState| state.members.iter().any(|m| m.id != self.id() && m.voter);
        let state = inner.raft.state();
        if state.role == Part::Leader && others_vote(&state) {
            let moved = env::timeout(HANDOVER_MAX, inner.front.move_leader(None)).await;
            report.leadership_moved = Some(moved.is_ok_and(|moved| moved.is_ok()));
        }
        inner.stopping.cancel();
        inner.raft.machine().stop_shrinking().await;
        let answered = env::timeout(DRAIN_MAX, inner.front.idle()).await.is_ok();
        report.durable = env::timeout(DURABLE_MAX, inner.raft.make_durable())
            .await
            .unwrap_or_default();
        report.closed = inner.ending.end(CLOSE_MAX).await;
        report.drained = env::timeout(TASKS_MAX, inner.tasks.end()).await.is_ok() && answered;
        if !report.closed {
            let what = "the files are not closed yet: their disk does not answer; the data directory stays locked until they are";
            tracing::warn!("{what}");
        }
        report
    }
}

// The longest that each step of a stop takes; together they are below the time that a service manager gives a process to
// end, which is 30 s as the manual sets it up.
/// Until another node leads: some round trips.
const HANDOVER_MAX: Duration = Duration::from_secs(5);
/// Until what was proposed is answered, and the answers have left.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// Until the state is durable, so that the next start replays nothing. Where it is not, the log replays the rest.
const DURABLE_MAX: Duration = Duration::from_secs(6);
/// Until Raft has ended and the files are closed.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// Until every task has ended: each does at its next wait.
const TASKS_MAX: Duration = Duration::from_secs(1);
/// Until an end without grace has closed the files.
const ABORT_MAX: Duration = Duration::from_secs(30);

impl Node {
    /// Ends at once, as a crash would for its peers: no handover, nothing made durable that was not. For
    /// tests and demonstrations; a service that stops wants [`shutdown`](Self::shutdown).
    ///
    /// Returns when the files are closed and the address is free, or after 30 seconds where a disk hangs: then the data
    /// directory stays locked. Cancel safe: an end once begun goes on.
    pub async fn abort(&self) {
        let inner = &self.inner;
        inner.stopping.cancel();
        inner.tasks.stop();
        let _closed = inner.ending.end(ABORT_MAX).await;
        let _ended = env::timeout(TASKS_MAX, inner.tasks.end()).await;
    }
}

/// How a stop went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Leadership was handed on; `None` where there was none to hand on or nobody to take it.
    pub leadership_moved: Option<bool>,
    /// Every request that was under way was answered, and every task ended, in time.
    pub drained: bool,
    /// The state was made durable in time: the next start replays nothing. Nothing is lost where it was not, the log has it.
    pub durable: bool,
    /// The files are closed, and the data directory is free. Where not, a disk does not answer: the directory stays locked
    /// until it does, or until the process ends.
    pub closed: bool,
}
