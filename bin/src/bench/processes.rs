//! A cluster for a measurement: a process for each node, as in production, on loopback.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use quorate_transport::certs::{Authority, Credentials};
use quorate_transport::{ClusterId, Identity};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::cli::BenchArgs;
use crate::failure::Failure;
use crate::reach::Reached;

const CLUSTER: &str = "bench";

/// Below those that the system gives to sockets that ask for any (from 32,768 on under Linux): the load's own socket
/// could else take a node's port before the node does.
const PORTS: std::ops::Range<u16> = 16_384..32_768;
/// After so many tries what the system says is believed.
const PORT_ATTEMPTS_MAX: u32 = 1_000;

/// How long the nodes may take to elect a leader, and to stop.
const START_MAX: Duration = Duration::from_secs(30);
const STOP_MAX: Duration = Duration::from_secs(10);

/// The nodes' processes. Dropped, they are killed.
pub struct Processes {
    nodes: Vec<Node>,
    credentials: Credentials,
    _files: TempDir,
}

struct Node {
    process: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Processes {
    /// Starts so many nodes and waits until a write succeeds.
    pub async fn start(count: u64, args: &BenchArgs) -> Result<Self, Failure> {
        let failed = |what: &str, error: std::io::Error| Failure::failed(format!("{what}: {error}"));
        let mut builder = tempfile::Builder::new();
        builder.prefix("quorate-bench-");
        let files = match &args.dir {
            Some(dir) => builder.tempdir_in(dir),
            None => builder.tempdir(),
        };
        let files = files.map_err(|error| failed("no temporary directory", error))?;
        let certs = files.path().join("certs");
        let cluster = ClusterId::new(CLUSTER).map_err(|error| Failure::failed(error.to_string()))?;
        let authority = Authority::create(cluster.clone())?;
        authority.write(&certs)?;
        let validity = Duration::from_secs(7 * 86_400);
        for id in 1..=count {
            authority
                .issue(&Identity::node(cluster.clone(), id), &[], validity)?
                .write(&certs)?;
        }
        let client =
            Identity::client(cluster, "bench").map_err(|error| Failure::failed(error.to_string()))?;
        let credentials = authority.credentials(&client)?;
        let addresses = free_addresses(count).map_err(|error| failed("no free port", error))?;
        let peers: Vec<String> = (1..)
            .zip(&addresses)
            .map(|(id, address)| format!("{id}={address}"))
            .collect();
        let peers = peers.join(",");
        let workers = args
            .workers
            .map_or_else(|| workers(count), |workers| workers as usize);
        let mut started = Self {
            nodes: Vec::new(),
            credentials,
            _files: files,
        };
        for (id, address) in (1..).zip(addresses) {
            let dir = started._files.path().join(format!("node-{id}"));
            let node = spawn(id, address, &dir, &peers, &certs, workers, &args.profile);
            started
                .nodes
                .push(node.map_err(|error| failed("a node cannot be started", error))?);
        }
        started.ready().await?;
        Ok(started)
    }

    /// The nodes, as a client reaches them.
    pub fn reached(&self, deadline: Duration) -> Result<Reached, Failure> {
        let addresses = self.nodes.iter().map(|node| node.address);
        let endpoints = addresses.filter_map(|address| address.try_into().ok()).collect();
        Ok(Reached::new(endpoints, self.credentials.clone(), deadline))
    }

    async fn ready(&mut self) -> Result<(), Failure> {
        let client = self.reached(Duration::from_millis(500))?.client()?;
        let begun = Instant::now();
        loop {
            let last = match client.put("bench/ready", "").await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            for (id, node) in (1..).zip(&mut self.nodes) {
                if let Ok(Some(status)) = node.process.try_wait() {
                    let log = std::fs::read_to_string(&node.log).unwrap_or_default();
                    return Err(Failure::failed(format!(
                        "node {id} ended ({status}):\n{}",
                        log.trim_end()
                    )));
                }
            }
            if begun.elapsed() > START_MAX {
                return Err(Failure::failed(format!(
                    "the nodes did not serve within {START_MAX:?}: {last}"
                )));
            }
        }
    }

    /// Asks all to stop, and waits until they have.
    pub async fn stop(mut self) {
        for node in &self.nodes {
            let pid = i32::try_from(node.process.id()).ok().and_then(Pid::from_raw);
            if let Some(pid) = pid {
                // One that has ended already needs no signal.
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let begun = Instant::now();
        while begun.elapsed() < STOP_MAX {
            if self
                .nodes
                .iter_mut()
                .all(|node| !matches!(node.process.try_wait(), Ok(None)))
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.process.kill();
            let _ = node.process.wait();
        }
    }
}

/// Ports that nobody has at the moment, all held until all are found.
fn free_addresses(count: u64) -> std::io::Result<Vec<SocketAddr>> {
    let mut sockets = Vec::new();
    let mut attempts = 0;
    while (sockets.len() as u64) < count {
        attempts += 1;
        match UdpSocket::bind((Ipv4Addr::LOCALHOST, rand::random_range(PORTS))) {
            Ok(socket) => sockets.push(socket),
            Err(error) if attempts >= PORT_ATTEMPTS_MAX => return Err(error),
            Err(_) => {}
        }
    }
    sockets.iter().map(UdpSocket::local_addr).collect()
}

/// The nodes share the machine's processors; each needs at least one thread.
fn workers(nodes: u64) -> usize {
    crate::processors()
        .div_ceil(usize::try_from(nodes).unwrap_or(1))
        .max(1)
}

fn spawn(
    id: u64,
    address: SocketAddr,
    dir: &Path,
    peers: &str,
    certs: &Path,
    workers: usize,
    profile: &str,
) -> std::io::Result<Node> {
    std::fs::create_dir_all(dir)?;
    let log = dir.join("log");
    let mut command = Command::new(std::env::current_exe()?);
    // Nothing of this user's own configuration belongs into the measurement.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("QUORATE_")) {
        command.env_remove(name);
    }
    command
        .env("QUORATE_RUN_DIR", dir)
        .arg("serve")
        .args([
            "--cluster",
            CLUSTER,
            "--node-id",
            &id.to_string(),
            "--listen",
            &address.to_string(),
        ])
        .args([
            "--peers",
            peers,
            "--profile",
            profile,
            "--workers",
            &workers.to_string(),
            "--log",
            "warn",
        ])
        .arg("--data-dir")
        .arg(dir.join("data"))
        .arg("--certs")
        .arg(certs)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log)?);
    Ok(Node {
        process: command.spawn()?,
        address,
        log,
    })
}
