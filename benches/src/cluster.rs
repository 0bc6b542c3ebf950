//! Nodes in this process: real files, QUIC with mutual TLS on loopback, a distance between them where wanted.
//!
//! [`Cluster`] has a client that reaches its nodes over the network; [`Embedded`] one in the process of the leader.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use quorate_kv::node::{NodeRole, Settings, Status};
use quorate_kv::{Client, Node};
use quorate_transport::certs::Authority;
use quorate_transport::delay::{Alarm, Delayed};
use quorate_transport::quic::{QuicSettings, QuicTransport};
use quorate_transport::{ClusterId, Identity, Transport as _};
use tokio::runtime::Runtime;

/// How long a leader may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster to be measured.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    client: Client,
    _files: tempfile::TempDir,
}

impl Cluster {
    /// Starts `count` nodes with files below `dir`, each message between two of them or from the client late
    /// by a round trip, and waits for a leader.
    pub async fn start(count: u64, dir: &Path, round_trip: Duration, alarm: &Alarm) -> Result<Self> {
        let files = tempfile::Builder::new()
            .prefix("quorate-bench-")
            .tempdir_in(dir)?;
        let name = ClusterId::new("bench")?;
        let authority = Authority::create(name.clone())?;
        let mut transports = Vec::new();
        for id in 1..=count {
            let credentials = authority.credentials(&Identity::node(name.clone(), id))?;
            let any_port = (std::net::Ipv4Addr::LOCALHOST, 0).into();
            transports.push((
                id,
                QuicTransport::bind(Some(any_port), &credentials, QuicSettings::default())?,
            ));
        }
        let mut peers = Vec::new();
        for (id, transport) in &transports {
            let address = transport.local_address().context("a node listens")?;
            peers.push((*id, address.to_string()));
        }
        let mut nodes = Vec::new();
        for (id, transport) in transports {
            let builder = Node::builder()
                .cluster(name.as_str())
                .node_id(id)
                .data_dir(files.path().join(id.to_string()))
                .peers(peers.clone())
                .transport(Delayed::by(transport, round_trip, alarm))
                .settings(Settings::default());
            nodes.push(builder.start().await?);
        }
        let credentials = authority.credentials(&Identity::client(name, "bench")?)?;
        let transport = QuicTransport::bind(None, &credentials, QuicSettings::default())?;
        let client = Client::connect(
            peers.into_iter().map(|(_, address)| address),
            Delayed::by(transport, round_trip, alarm),
            Settings::default().limits,
        )?;
        let cluster = Self {
            nodes,
            client: client.with_deadline(PATIENCE),
            _files: files,
        };
        cluster.leader().await?;
        Ok(cluster)
    }

    /// A client that reaches the cluster over the network, at the same distance.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The leader's account of itself, once all follow it and have applied all that it has.
    pub async fn leader(&self) -> Result<Status> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let statuses: Vec<Status> = self.nodes.iter().map(Node::status).collect();
            let leader = statuses.iter().find(|status| status.role == NodeRole::Leader);
            if let Some(leader) = leader
                && statuses.iter().all(|status| {
                    status.leader == Some(leader.node)
                        && status.term == leader.term
                        && status.applied == leader.last_log
                })
            {
                return Ok(leader.clone());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("no leader that all follow within {PATIENCE:?}")
    }

    /// Stops all.
    pub async fn stop(self) {
        for node in &self.nodes {
            node.shutdown().await;
        }
    }
}

/// A cluster whose leader shares the caller's runtime; each other node has a runtime of its own, as it had in another process.
#[derive(Debug)]
pub struct Embedded {
    nodes: Vec<(Runtime, Node)>,
    leader: usize,
    client: Client,
    _files: tempfile::TempDir,
}

impl Embedded {
    /// Starts `count` nodes with files below `dir` and waits for a leader.
    pub fn start(count: u64, dir: &Path) -> Result<Self> {
        let files = tempfile::Builder::new()
            .prefix("quorate-bench-")
            .tempdir_in(dir)?;
        let name = ClusterId::new("bench")?;
        let authority = Authority::create(name.clone())?;
        let (mut bound, mut peers) = (Vec::new(), Vec::new());
        for id in 1..=count {
            let credentials = authority.credentials(&Identity::node(name.clone(), id))?;
            let any_port = (std::net::Ipv4Addr::LOCALHOST, 0).into();
            let runtime = Runtime::new()?;
            let transport = {
                let _entered = runtime.enter();
                QuicTransport::bind(Some(any_port), &credentials, QuicSettings::default())?
            };
            let address = transport.local_address().context("a node listens")?;
            peers.push((id, address.to_string()));
            bound.push((id, runtime, transport));
        }
        let mut nodes = Vec::new();
        for (id, runtime, transport) in bound {
            let builder = Node::builder()
                .cluster(name.as_str())
                .node_id(id)
                .data_dir(files.path().join(id.to_string()))
                .peers(peers.clone())
                .transport(transport)
                .settings(Settings::default());
            let node = runtime.block_on(async { runtime.spawn(builder.start()).await })??;
            nodes.push((runtime, node));
        }
        let begun = Instant::now();
        let leader = loop {
            let statuses: Vec<Status> = nodes.iter().map(|(_, node)| node.status()).collect();
            let leader = statuses.iter().position(|status| status.role == NodeRole::Leader);
            if let Some(leader) = leader
                && statuses
                    .iter()
                    .all(|status| status.leader == Some(statuses[leader].node))
            {
                break leader;
            }
            if begun.elapsed() > PATIENCE {
                bail!("no leader that all follow within {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let client = nodes[leader].1.client().with_deadline(PATIENCE);
        Ok(Self {
            nodes,
            leader,
            client,
            _files: files,
        })
    }

    /// The client in the leader's process.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The leader's runtime.
    pub fn runtime(&self) -> &Runtime {
        &self.nodes[self.leader].0
    }

    /// Stops all.
    pub fn stop(self) {
        for (runtime, node) in &self.nodes {
            runtime.block_on(node.shutdown());
        }
    }
}
