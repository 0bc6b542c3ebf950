//! Clusters of real nodes in this process: QUIC on loopback, files in a temporary directory.
//!
//! For tests and for the programs of this crate. A node is stopped in order, or aborted as a crash would be,
//! and started again on its files and its address.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use quorate_kv::env::{Disk, RealDisk};
use quorate_kv::model::Limits;
use quorate_kv::node::{NodeRole, Profile, Settings, Status};
use quorate_kv::{Client, Node};
use quorate_transport::certs::Authority;
use quorate_transport::quic::{QuicSettings, QuicTransport};
use quorate_transport::{ClusterId, Identity};

use crate::ports::free_address;

/// A cluster and what is needed to start its nodes again.
#[derive(Debug)]
pub struct Cluster {
    name: ClusterId,
    authority: Authority,
    dir: tempfile::TempDir,
    settings: Settings,
    disk: Arc<dyn Disk>,
    addresses: BTreeMap<u64, SocketAddr>,
    members: BTreeMap<u64, SocketAddr>,
    nodes: BTreeMap<u64, Node>,
}

/// How long a condition may take to come true: far beyond what is expected, so that only a fault meets it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The low-latency profile made faster, and with more heartbeats to a failover: for tests on one machine.
pub fn fast_settings() -> Settings {
    let mut settings = Settings::default();
    settings.timing = Profile::LowLatency.timing();
    settings.timing.heartbeat /= 3;
    settings.timing.failover_min = Duration::from_secs(1);
    settings.timing.failover_max = Duration::from_secs(2);
    settings.log_segment_bytes = 8 * 1024 * 1024;
    settings.state_cache_bytes = Some(32 << 20);
    settings
}

impl Cluster {
    /// Starts `count` nodes and waits until one leads.
    pub async fn start(count: u64, settings: Settings) -> Result<Self> {
        let mut cluster = Self::prepare(count, settings)?;
        for id in 1..=count {
            cluster.start_node(id).await?;
        }
        cluster.leader().await?;
        Ok(cluster)
    }

    /// Names the nodes and finds them addresses, without starting any.
    pub fn prepare(count: u64, settings: Settings) -> Result<Self> {
        let name = ClusterId::new("test")?;
        let mut addresses = BTreeMap::new();
        for id in 1..=count {
            addresses.insert(id, free_address()?);
        }
        Ok(Self {
            authority: Authority::create(name.clone())?,
            name,
            dir: tempfile::tempdir()?,
            settings,
            disk: Arc::new(RealDisk),
            members: addresses.clone(),
            addresses,
            nodes: BTreeMap::new(),
        })
    }

    /// What nodes that start from now on keep their files on.
    pub fn set_disk(&mut self, disk: Arc<dyn Disk>) {
        self.disk = disk;
    }

    /// Starts a node on its files, for the first time or again.
    pub async fn start_node(&mut self, id: u64) -> Result<()> {
        let peers = self
            .members
            .iter()
            .map(|(id, address)| (*id, address.to_string()));
        let builder = self.builder(id).await?.peers(peers);
        let node = builder
            .start()
            .await
            .with_context(|| format!("node {id} did not start"))?;
        self.nodes.insert(id, node);
        Ok(())
    }

    /// Starts a node on its files at an address that the others do not know.
    pub async fn start_elsewhere(
        &mut self,
        id: u64,
        address: SocketAddr,
    ) -> Result<Node, quorate_kv::node::StartError> {
        let known = self.addresses.get(&id).copied();
        let builder = async {
            self.addresses.insert(id, address);
            Ok::<_, anyhow::Error>(self.builder(id).await?.peers([(id, address.to_string())]))
        }
        .await;
        if let Some(known) = known {
            self.addresses.insert(id, known);
        }
        builder.expect("an address and a certificate").start().await
    }

    /// Starts a node that waits to be added, and answers its address.
    pub async fn start_joining(&mut self, id: u64) -> Result<String> {
        let address = free_address()?;
        self.addresses.insert(id, address);
        let node = self
            .builder(id)
            .await?
            .peers([(id, address.to_string())])
            .join()
            .start()
            .await?;
        self.nodes.insert(id, node);
        Ok(address.to_string())
    }

    /// Moves the directory of a node that is stopped away, as a disk that was replaced would; answers where it is now.
    pub fn lose_directory(&self, id: u64) -> Result<std::path::PathBuf> {
        let (dir, mut number) = (self.data_dir(id), 1);
        let away = loop {
            let away = dir.with_extension(format!("lost-{number}"));
            if !away.exists() {
                break away;
            }
            number += 1;
        };
        std::fs::rename(&dir, &away)?;
        Ok(away)
    }

    /// Waits until a node has ended its part, forgets it, and answers its fault.
    pub async fn fault_of(&mut self, id: u64) -> Result<String> {
        let node = self.node(id)?.clone();
        let stopped = tokio::time::timeout(PATIENCE, node.stopped()).await;
        stopped.with_context(|| {
            let all: Vec<Status> = self.nodes.values().map(Node::status).collect();
            format!("node {id} goes on: {all:#?}")
        })?;
        let fault = node.fault().with_context(|| format!("node {id} has no fault"))?;
        self.abort(id).await?;
        Ok(fault.to_string())
    }

    async fn builder(&self, id: u64) -> Result<quorate_kv::node::Builder> {
        let address = *self.addresses.get(&id).with_context(|| format!("no node {id}"))?;
        let credentials = self
            .authority
            .credentials(&Identity::node(self.name.clone(), id))?;
        let transport = QuicTransport::bind(Some(address), &credentials, QuicSettings::default())?;
        Ok(Node::builder()
            .cluster(self.name.as_str())
            .node_id(id)
            .data_dir(self.dir.path().join(id.to_string()))
            .transport(transport)
            .disk(Arc::clone(&self.disk))
            .settings(self.settings.clone()))
    }

    /// Stops a node in order.
    pub async fn stop(&mut self, id: u64) -> Result<quorate_kv::node::ShutdownReport> {
        let node = self
            .nodes
            .remove(&id)
            .with_context(|| format!("node {id} does not run"))?;
        Ok(node.shutdown().await)
    }

    /// Ends a node as a crash would.
    pub async fn abort(&mut self, id: u64) -> Result<()> {
        let node = self
            .nodes
            .remove(&id)
            .with_context(|| format!("node {id} does not run"))?;
        node.abort().await;
        Ok(())
    }

    /// A running node.
    pub fn node(&self, id: u64) -> Result<&Node> {
        self.nodes
            .get(&id)
            .with_context(|| format!("node {id} does not run"))
    }

    /// All running nodes by id.
    pub fn nodes(&self) -> &BTreeMap<u64, Node> {
        &self.nodes
    }

    /// A client in a process of its own, as far as the cluster can tell.
    pub fn client(&self) -> Result<Client> {
        self.client_with(self.settings.limits)
    }

    /// The same with limits of its own.
    pub fn client_with(&self, limits: Limits) -> Result<Client> {
        let credentials = self
            .authority
            .credentials(&Identity::client(self.name.clone(), "test")?)?;
        let transport = QuicTransport::bind(None, &credentials, QuicSettings::default())?;
        let endpoints = self.members.values().map(ToString::to_string);
        Ok(Client::connect(endpoints, transport, limits)?)
    }

    /// The limits of the store.
    pub fn limits(&self) -> Limits {
        self.settings.limits
    }

    /// Waits until one node leads and a majority of the running ones follows it.
    pub async fn leader(&self) -> Result<u64> {
        self.wait("a leader", |statuses| {
            let leader = statuses.iter().find(|s| s.role == NodeRole::Leader)?;
            let followers = statuses
                .iter()
                .filter(|s| s.leader == Some(leader.node) && s.term == leader.term);
            (followers.count() * 2 > statuses.len()).then(|| leader.node.number())
        })
        .await
    }

    /// Waits until all running nodes have applied the same entries, one at least, and demands that their states are equal.
    pub async fn agreement(&self) -> Result<Status> {
        let statuses = self
            .wait("equal applied indexes", |statuses| {
                let first = statuses.first()?;
                let equal = statuses
                    .iter()
                    .all(|s| s.applied == first.applied && s.committed == first.committed);
                // Before the first entry they agree in nothing, and know no cluster.
                let level = first.applied.is_some() && first.applied == first.committed;
                (equal && level).then(|| statuses.to_vec())
            })
            .await?;
        let first = statuses.first().cloned().ok_or_else(|| anyhow!("no node runs"))?;
        for status in &statuses {
            if (status.revision, status.state_hash) != (first.revision, first.state_hash) {
                bail!("the states differ: {first:#?} and {status:#?}");
            }
        }
        Ok(first)
    }

    /// Waits for a condition of all running nodes' statuses; on expiry tells them.
    pub async fn wait<T>(&self, what: &str, mut condition: impl FnMut(&[Status]) -> Option<T>) -> Result<T> {
        let end = tokio::time::Instant::now() + PATIENCE;
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        loop {
            let statuses: Vec<Status> = self.nodes.values().map(Node::status).collect();
            if let Some(found) = condition(&statuses) {
                return Ok(found);
            }
            if tokio::time::Instant::now() >= end {
                bail!("no {what} within {PATIENCE:?}: {statuses:#?}");
            }
            pause.tick().await;
        }
    }

    /// Stops every node in order.
    pub async fn shutdown(mut self) -> Result<()> {
        while let Some((_, node)) = self.nodes.pop_last() {
            node.shutdown().await;
        }
        Ok(())
    }

    /// The data directory of a node.
    pub fn data_dir(&self, id: u64) -> std::path::PathBuf {
        self.dir.path().join(id.to_string())
    }
}
