//! A node: built, running, asked, stopped.
//!
//! [`Node::builder`] makes it from settings (data) and components (code). A node without peers serves within
//! milliseconds and opens no port; the same builder with peers, a transport and an id joins a cluster.

mod builder;
mod clients;
mod front;
mod limits;
mod loopback;
mod proposer;
mod readers;
mod reply;
mod settings;
mod status;
mod storage;
mod timing;

pub use crate::raft::{LogEvent, LogVote, Tap};
pub use builder::{Builder, StartError};
pub use settings::{InvalidSettings, Settings};
pub use status::{MemberStatus, NodeRole, Status};
pub use storage::StorageError;
pub use timing::{InvalidTiming, Profile, Timing};

pub(crate) use front::Front;
pub(crate) use settings::RaftSettings;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use quorate_transport::{Class, Transport};
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::env;
use crate::env::disk::LockGuard;
use crate::fault::Fault;
use crate::model::NodeId;
use crate::raft::{Part, RaftNode};
use crate::tasks::Tasks;

/// A running node. Cheap to clone; ends with [`shutdown`](Self::shutdown), or without grace when the last
/// clone is dropped.
#[derive(Clone, Debug)]
pub struct Node {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    front: Front,
    raft: Arc<RaftNode>,
    transport: Arc<dyn Transport>,
    /// Refuse new work.
    stopping: CancellationToken,
    tasks: Tasks,
    ending: Arc<Ending>,
}

/// The last part of every end, done once whoever begins it.
#[derive(Debug)]
struct Ending {
    raft: Arc<RaftNode>,
    transport: Arc<dyn Transport>,
    /// Released when no file is touched any more.
    lock: Mutex<Option<Box<dyn LockGuard>>>,
    done: tokio::sync::OnceCell<()>,
}

impl Ending {
    /// Cuts the node off, ends Raft, closes the files and gives the data directory free. Later callers wait
    /// for the first. A trait object for the reason of `Builder::starting`.
    #[inline(never)]
    fn end(&self) -> BoxFuture<'_, ()> {
        let ended = self.done.get_or_init(|| async {
            self.transport.shutdown().await;
            self.raft.abort().await;
            let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
            drop(lock);
        });
        Box::pin(async { *ended.await })
    }
}

/// Ends a node whose last handle was dropped; after a shutdown there is nothing left to do.
async fn end_when_dropped(tasks: Tasks, ending: Arc<Ending>) {
    tasks.stopped().await;
    ending.end().await;
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stopping.cancel();
        self.tasks.stop();
    }
}

impl Node {
    /// Begins to describe a node.
    pub fn builder() -> Builder {
        Builder::default()
    }

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

    /// Waits until this node follows or is a leader. Cancel safe.
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

    /// Waits until a fault or a shutdown has ended this node's part. Cancel safe.
    pub async fn stopped(&self) -> Option<String> {
        self.inner.raft.ended().await;
        self.inner.raft.state().stopped
    }

    /// Stops: refuses new work, hands leadership on, lets open requests end, makes the state durable, closes.
    ///
    /// A leader's departure so costs no election timeout. Its files and its address are free on return. Each step has
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
        if inner.raft.state().role == Part::Leader
            && inner
                .raft
                .state()
                .members
                .iter()
                .any(|m| m.id != self.id() && m.voter)
        {
            report.leadership_moved = Some(inner.front.move_leader(None).await.is_ok());
        }
        inner.stopping.cancel();
        inner.raft.make_durable().await;
        inner.ending.end().await;
        const DRAIN: Duration = Duration::from_secs(5);
        report.drained = env::timeout(DRAIN, inner.tasks.end()).await.is_ok();
        report
    }
}

impl Node {
    /// Ends at once, as a crash would for its peers: no handover, nothing made durable that was not. For
    /// tests and demonstrations; a service that stops wants [`shutdown`](Self::shutdown).
    pub async fn abort(&self) {
        let inner = &self.inner;
        inner.stopping.cancel();
        inner.tasks.stop();
        inner.ending.end().await;
        inner.tasks.end().await;
    }
}

/// How a stop went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Leadership was handed on; `None` where there was none to hand on or nobody to take it.
    pub leadership_moved: Option<bool>,
    /// Every task ended in time.
    pub drained: bool,
}

/// Accepts streams until the transport is shut down, and serves each in a task of its own.
async fn accept(front: Front, raft: Arc<RaftNode>, transport: Arc<dyn Transport>, tasks: Tasks) {
    while let Some(incoming) = transport.accept().await {
        match incoming.class {
            Class::Client => tasks.spawn("client-stream", clients::serve(front.clone(), incoming.stream)),
            Class::Control | Class::Append | Class::Bulk => {
                let raft = Arc::clone(&raft);
                let serving = async move { raft.serve(incoming).await };
                tasks.spawn("peer-stream", serving);
            }
        }
    }
}
