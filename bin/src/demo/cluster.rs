//! Nodes in this process: real files, QUIC on loopback, certificates of one authority.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_kv::node::{NodeRole, Profile, Settings, Status};
use quorate_kv::{Client, Node};
use quorate_transport::certs::Authority;
use quorate_transport::delay::{Alarm, Delayed};
use quorate_transport::quic::{QuicSettings, QuicTransport};
use quorate_transport::{ClusterId, Identity, Transport};
use tempfile::TempDir;

use crate::failure::Failure;
use crate::reach;

/// How long anything may take before the demonstration gives up: several elections of the slowest profile.
const PATIENCE: Duration = Duration::from_secs(90);

/// A node and the client that asks it first.
#[derive(Debug)]
pub struct Running {
    /// The node.
    pub node: Node,
    /// Its client.
    pub client: Client,
}

/// The nodes that run, by id.
#[derive(Debug)]
pub struct Cluster {
    nodes: BTreeMap<u64, Running>,
    _files: TempDir,
}

impl Cluster {
    /// Starts so many nodes, their messages late by half the round trip given, and waits for a leader.
    pub async fn start(count: u64, round_trip: Duration) -> Result<Self, Failure> {
        let files = tempfile::Builder::new()
            .prefix("quorate-demo-")
            .tempdir()
            .map_err(|error| Failure::failed(format!("no temporary directory: {error}")))?;
        let name = "demo";
        let cluster = ClusterId::new(name).map_err(|error| Failure::failed(error.to_string()))?;
        let authority = Authority::create(cluster.clone())?;
        let alarm =
            Alarm::start().map_err(|error| Failure::failed(format!("no thread for the delays: {error}")))?;
        let mut transports: BTreeMap<u64, Arc<dyn Transport>> = BTreeMap::new();
        for id in 1..=count {
            let credentials = authority.credentials(&Identity::node(cluster.clone(), id))?;
            let loopback = (std::net::Ipv4Addr::LOCALHOST, 0).into();
            let transport = QuicTransport::bind(Some(loopback), &credentials, QuicSettings::default())?;
            transports.insert(id, Delayed::by(transport, round_trip, &alarm));
        }
        let peers: Vec<(u64, String)> = transports
            .iter()
            .filter_map(|(id, transport)| Some((*id, transport.local_address()?.to_string())))
            .collect();
        let mut nodes = BTreeMap::new();
        for (id, transport) in transports {
            let builder = Node::builder()
                .data_dir(files.path().join(format!("node-{id}")))
                .cluster(name)
                .node_id(id)
                .peers(peers.clone())
                .transport(transport)
                .settings(settings(round_trip));
            let node = builder.start().await?;
            let client = node.client().with_deadline(PATIENCE);
            nodes.insert(id, Running { node, client });
        }
        let cluster = Self { nodes, _files: files };
        cluster.leader().await?;
        Ok(cluster)
    }

    /// The nodes that run.
    pub fn nodes(&self) -> impl Iterator<Item = &Running> {
        self.nodes.values()
    }

    /// Waits until all that run follow one leader that says so itself.
    pub async fn leader(&self) -> Result<&Running, Failure> {
        let leader = self.until("a leader that all follow", || {
            let statuses: Vec<Status> = self.nodes().map(|running| running.node.status()).collect();
            let leading = statuses.iter().find(|status| status.role == NodeRole::Leader)?;
            let followed = statuses
                .iter()
                .all(|s| s.leader == Some(leading.node) && s.term == leading.term);
            followed.then(|| leading.node.number())
        });
        let id = leader.await?;
        self.nodes
            .get(&id)
            .ok_or_else(|| Failure::failed(format!("node {id} is gone")))
    }

    /// Waits until all that run have applied the same entries; answers whether their states are then the same.
    pub async fn agree(&self) -> Result<bool, Failure> {
        self.until("the same revision on all nodes", || {
            let statuses: Vec<Status> = self.nodes().map(|running| running.node.status()).collect();
            let (first, rest) = statuses.split_first()?;
            let level = rest
                .iter()
                .all(|s| s.revision == first.revision && s.applied == first.applied);
            level.then(|| rest.iter().all(|s| s.state_hash == first.state_hash))
        })
        .await
    }

    /// The index of the last committed entry, once a node has no entry under way.
    pub async fn committed(&self, running: &Running) -> Result<u64, Failure> {
        self.until("a quiet log", || {
            let status = running.node.status();
            let quiet = status.last_log == status.committed && status.committed == status.applied;
            quiet
                .then_some(status.committed)
                .flatten()
                .map(|index| index.number())
        })
        .await
    }

    /// Ends a node as a crash would: nothing is handed over and nobody is told.
    pub async fn kill(&mut self, id: u64) {
        if let Some(Running { node, client }) = self.nodes.remove(&id) {
            drop(client);
            node.abort().await;
        }
    }

    /// Stops all that run.
    pub async fn stop(self) {
        let clients = self
            .nodes
            .values()
            .map(|running| reach::close(running.client.clone()));
        futures_util::future::join_all(clients).await;
        let stops = self.nodes.values().map(|running| running.node.shutdown());
        futures_util::future::join_all(stops).await;
    }

    async fn until<T>(&self, what: &str, mut condition: impl FnMut() -> Option<T>) -> Result<T, Failure> {
        let begun = Instant::now();
        loop {
            if let Some(found) = condition() {
                return Ok(found);
            }
            if begun.elapsed() > PATIENCE {
                let state: String = self
                    .nodes()
                    .map(|running| running.node.status())
                    .map(|s| {
                        format!(
                            "\n  node {}: {}, term {}, revision {}",
                            s.node, s.role, s.term, s.revision
                        )
                    })
                    .collect();
                return Err(Failure::failed(format!("waited {PATIENCE:?} for {what}:{state}")));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// The profile that a user would take for this distance. None is made for round trips above half a second.
pub fn profile(round_trip: Duration) -> Profile {
    match round_trip.as_millis() {
        0..=20 => Profile::LowLatency,
        21..=100 => Profile::Production,
        _ => Profile::HighLatency,
    }
}

fn settings(round_trip: Duration) -> Settings {
    let mut settings = Settings::default();
    settings.timing = profile(round_trip).timing();
    // Segments are zeroed when they are made: small ones are enough for what is shown, however long it runs.
    settings.log_segment_bytes = 4 << 20;
    settings.log_cache_bytes = Some(4 << 20);
    settings.state_cache_bytes = Some(16 << 20);
    settings
}
