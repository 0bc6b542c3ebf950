//! Clusters in memory, for tests of what is built on Quorate.
//!
//! Turn the feature on where it is needed, in the tests:
//!
//! ```toml
//! [dev-dependencies]
//! quorate-kv = { path = "../quorate/kv", features = ["testkit"] }
//! ```
//!
//! A [`Cluster`] is made of the nodes that run in production, each with its Raft, its log and its state; only the network and the
//! disks are in memory. A test makes happen what a service must live through: a node that crashes and comes back, a network that
//! is cut and heals, leadership that moves.
//!
//! ```
//! use quorate_kv::testkit::Cluster;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut cluster = Cluster::start(3).await?;
//! let client = cluster.client()?;
//! let written = client.put("k", "v").await?;
//!
//! let leader = cluster.leader().await?;
//! cluster.crash(leader).await?;
//! client.put("k", "survives").await?;
//!
//! cluster.restart(leader).await?;
//! cluster.wait_for(written).await?;
//! cluster.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! What to test with it: that a write whose outcome is unknown is repeated only behind a guard; that a reader of `stale` values bears
//! old ones; that a worker which lost the store for a while gives up what it can no longer be sure to hold.
//!
//! Time is the machine's: another leader serves a second or two after a crash or a cut. The threads and timers of the nodes are real
//! too, so two runs are not the same to the step.

mod disk;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate_transport::memory::{MemoryNetwork, TokioClock};
use quorate_transport::{ClusterId, Identity, InvalidAddress, InvalidIdentity};

use crate::client::{Client, Error};
use crate::env;
use crate::model::{NodeId, Revision};
use crate::node::{Node, NodeRole, Settings, StartError, Status, Timing};
use disk::MemoryDisk;

/// How long the kit waits for what must come. It is far more than a cluster needs.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Why a cluster does not do what a test asks for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KitError {
    /// A node did not start.
    #[error("node {id}: {error}")]
    Start {
        /// The node.
        id: u64,
        /// Why.
        error: StartError,
    },
    /// A client call failed.
    #[error(transparent)]
    Client(#[from] Error),
    /// It did not come to be in time.
    #[error("no {what} within {PATIENCE:?}: {statuses:#?}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// What the running nodes told at the end.
        statuses: Vec<Status>,
    },
    /// The node does not run, or it runs already.
    #[error("node {id} {reason}")]
    Node {
        /// The node.
        id: u64,
        /// What it is.
        reason: &'static str,
    },
    /// A name of the kit's own is refused.
    #[error(transparent)]
    Identity(#[from] InvalidIdentity),
    /// An address of the kit's own is refused.
    #[error(transparent)]
    Address(#[from] InvalidAddress),
}

/// A cluster of nodes in this process, whose network and disks are in memory. Its nodes have the ids 1, 2, 3 and so on.
///
/// A call that waits, waits for [`PATIENCE`] at most, and then fails with what the nodes told of themselves
/// ([`KitError::TimedOut`]). An id that is none of the cluster's, or of a node that does not run, is refused
/// ([`KitError::Node`]). A future that is dropped leaves the cluster in the middle of what it did: end the test then.
///
/// ```no_run
/// # async fn run() -> Result<(), quorate_kv::testkit::KitError> {
/// use quorate_kv::testkit::Cluster;
///
/// let cluster = Cluster::start(3).await?;
/// let client = cluster.client()?;
/// let old = cluster.leader().await?;
///
/// // The others elect another leader; the old one catches up when it hears them again.
/// cluster.isolate(old);
/// let written = client.put("k", "v").await?;
/// assert_ne!(cluster.leader().await?, old);
/// cluster.heal();
/// cluster.wait_for(written).await?;
/// cluster.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Cluster {
    name: ClusterId,
    network: MemoryNetwork,
    settings: Settings,
    disks: BTreeMap<u64, MemoryDisk>,
    nodes: BTreeMap<u64, Node>,
    clients: AtomicU64,
}

impl Cluster {
    /// Starts so many nodes, and waits until one leads.
    pub async fn start(count: u64) -> Result<Self, KitError> {
        Self::start_with(count, Self::settings()).await
    }

    /// The same with other settings. Begin with [`settings`](Self::settings).
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), quorate_kv::testkit::KitError> {
    /// use std::time::Duration;
    ///
    /// use quorate_kv::testkit::Cluster;
    ///
    /// // For a service that reads old revisions, and must bear that they are gone.
    /// let mut settings = Cluster::settings();
    /// settings.history_kept = Duration::from_secs(1);
    /// settings.history_revisions_kept = 0;
    /// let cluster = Cluster::start_with(1, settings).await?;
    /// # cluster.shutdown().await;
    /// # Ok(()) }
    /// ```
    pub async fn start_with(count: u64, settings: Settings) -> Result<Self, KitError> {
        let mut cluster = Self {
            name: ClusterId::new("testkit")?,
            network: MemoryNetwork::new(Arc::new(TokioClock::new(1))),
            settings,
            disks: (1..=count).map(|id| (id, MemoryDisk::default())).collect(),
            nodes: BTreeMap::new(),
            clients: AtomicU64::new(0),
        };
        for id in 1..=count {
            cluster.restart(id).await?;
        }
        cluster.leader().await?;
        Ok(cluster)
    }

    /// What the nodes are started with: another leader within a second or two, and small files.
    pub fn settings() -> Settings {
        Settings {
            timing: Timing {
                heartbeat: Duration::from_millis(50),
                failover_min: Duration::from_secs(1),
                failover_max: Duration::from_secs(2),
            },
            log_segment_bytes: 1 << 20,
            ..Settings::default()
        }
    }

    /// A client that knows all nodes, as a program elsewhere has one.
    pub fn client(&self) -> Result<Client, KitError> {
        let number = self.clients.fetch_add(1, Ordering::Relaxed);
        let identity = Identity::client(self.name.clone(), "test")?;
        let transport = self.network.transport(identity, &format!("client-{number}:1"));
        let addresses = self.disks.keys().map(|id| address(*id));
        Ok(Client::connect(addresses, transport, self.settings.limits)?)
    }

    /// A running node.
    pub fn node(&self, id: u64) -> Result<&Node, KitError> {
        let reason = "does not run";
        self.nodes.get(&id).ok_or(KitError::Node { id, reason })
    }

    /// What each running node tells of itself, by its id.
    pub fn statuses(&self) -> Vec<Status> {
        self.nodes.values().map(Node::status).collect()
    }

    /// The node that leads, and that most of all nodes follow; waits until there is one.
    pub async fn leader(&self) -> Result<u64, KitError> {
        let majority = self.disks.len() / 2 + 1;
        self.wait("leader", |statuses| {
            let leads = |status: &&Status| {
                let follows =
                    |other: &&Status| other.leader == Some(status.node) && other.term == status.term;
                status.role == NodeRole::Leader && statuses.iter().filter(follows).count() >= majority
            };
            Some(statuses.iter().find(leads)?.node.number())
        })
        .await
    }

    /// Has a node lead, and waits until it does.
    pub async fn move_leader(&self, to: u64) -> Result<(), KitError> {
        self.client()?.move_leader(Some(NodeId::new(to))).await?;
        let leads = |statuses: &[Status]| {
            let mut leaders = statuses.iter().filter(|status| status.role == NodeRole::Leader);
            leaders.any(|status| status.node == NodeId::new(to)).then_some(())
        };
        self.wait("move of the leadership", leads).await
    }

    /// Waits until all running nodes have applied this revision.
    pub async fn wait_for(&self, revision: Revision) -> Result<(), KitError> {
        let what = format!("revision {revision} on all nodes");
        let have = |statuses: &[Status]| {
            statuses
                .iter()
                .all(|status| status.revision >= revision)
                .then_some(())
        };
        self.wait(&what, have).await
    }

    /// Ends a node in the middle of what it does, as a crash of its process would. What it had written is there when it is started
    /// again.
    pub async fn crash(&mut self, id: u64) -> Result<(), KitError> {
        let node = self.running(id)?;
        self.network.crash(&address(id));
        node.abort().await;
        Ok(())
    }

    /// Ends a node in order: it hands leadership on first.
    pub async fn stop(&mut self, id: u64) -> Result<(), KitError> {
        self.running(id)?.shutdown().await;
        Ok(())
    }

    fn running(&mut self, id: u64) -> Result<Node, KitError> {
        let reason = "does not run";
        self.nodes.remove(&id).ok_or(KitError::Node { id, reason })
    }

    /// Starts a node on its files, behind a [`crash`](Self::crash) or a [`stop`](Self::stop).
    pub async fn restart(&mut self, id: u64) -> Result<(), KitError> {
        if self.nodes.contains_key(&id) {
            let reason = "runs already";
            return Err(KitError::Node { id, reason });
        }
        let reason = "is none of the cluster's";
        let disk = self.disks.get(&id).ok_or(KitError::Node { id, reason })?;
        let identity = Identity::node(self.name.clone(), id);
        let started = Node::builder()
            .data_dir(format!("/node-{id}"))
            .disk(Arc::new(disk.clone()))
            .peers(self.disks.keys().map(|id| (*id, address(*id))))
            .transport(self.network.transport(identity, &address(id)))
            .settings(self.settings.clone())
            .start()
            .await;
        let node = started.map_err(|error| KitError::Start { id, error })?;
        self.nodes.insert(id, node);
        Ok(())
    }

    /// Cuts two nodes off from each other: nothing arrives in either direction, and their connections break.
    pub fn cut(&self, one: u64, other: u64) {
        self.network.cut(&address(one), &address(other));
    }

    /// Cuts a node off from all others, and from the clients that there are.
    pub fn isolate(&self, id: u64) {
        self.network.isolate(&address(id));
    }

    /// Holds back all that a node would send to the others or hear of them, as if its process was paused: no connection breaks, and
    /// what was held back arrives after [`heal`](Self::heal).
    pub fn pause(&self, id: u64) {
        for other in self.disks.keys().filter(|other| **other != id) {
            self.network.pause(&address(id), &address(*other));
            self.network.pause(&address(*other), &address(id));
        }
    }

    /// Ends all cuts and pauses.
    pub fn heal(&self) {
        self.network.heal_all();
    }

    /// Waits for a condition of what the running nodes tell of themselves. Cancel safe.
    ///
    /// ```no_run
    /// # async fn run(cluster: quorate_kv::testkit::Cluster) -> Result<(), quorate_kv::testkit::KitError> {
    /// use quorate_kv::node::NodeRole;
    ///
    /// // The id of a node that follows.
    /// let follower = cluster
    ///     .wait("follower", |statuses| {
    ///         let follows = statuses.iter().find(|status| status.role == NodeRole::Follower);
    ///         follows.map(|status| status.node.number())
    ///     })
    ///     .await?;
    /// # let _ = follower;
    /// # Ok(()) }
    /// ```
    pub async fn wait<T>(
        &self,
        what: &str,
        condition: impl Fn(&[Status]) -> Option<T>,
    ) -> Result<T, KitError> {
        let end = env::now() + PATIENCE;
        loop {
            let statuses = self.statuses();
            if let Some(found) = condition(&statuses) {
                return Ok(found);
            }
            if env::now() >= end {
                let what = what.to_owned();
                return Err(KitError::TimedOut { what, statuses });
            }
            env::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends all nodes in order.
    pub async fn shutdown(mut self) {
        while let Some((_, node)) = self.nodes.pop_last() {
            node.shutdown().await;
        }
    }
}

fn address(id: u64) -> String {
    format!("node-{id}:1")
}
