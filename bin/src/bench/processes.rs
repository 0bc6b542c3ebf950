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
/// How long one may take that was killed, to serve again.
const RESTART_MAX: Duration = Duration::from_secs(300);

/// The nodes' processes. Dropped, they are killed.
pub struct Processes {
    nodes: Vec<Node>,
    credentials: Credentials,
    _files: TempDir,
}

/// What a process has in memory, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    pub now: u64,
    pub peak: u64,
}

struct Node {
    process: Child,
    /// Starts it.
    command: Command,
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
        let mut started = Self {
            nodes: Vec::new(),
            credentials,
            _files: files,
        };
        for (id, address) in (1..).zip(addresses) {
            let dir = started._files.path().join(format!("node-{id}"));
            let node = spawn(id, address, &dir, &peers, &certs, args.workers, &args.profile);
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

    /// The disk that a node's files take, in bytes.
    pub fn disk_bytes(&self, node: usize) -> u64 {
        self.nodes
            .get(node)
            .and_then(|node| node.log.parent())
            .map_or(0, |dir| disk_bytes(&dir.join("data")))
    }

    /// The memory of the node that has most, where the system tells.
    pub fn memory(&self) -> Option<Memory> {
        let of_node = |node: &Node| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", node.process.id())).ok()?;
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name))?;
                let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().ok()?;
                Some(kib << 10)
            };
            Some(Memory {
                now: field("VmRSS:")?,
                peak: field("VmHWM:")?,
            })
        };
        self.nodes
            .iter()
            .filter_map(of_node)
            .max_by_key(|memory| memory.now)
    }

    /// The processor's time that all nodes have had, in ticks of a hundredth of a second, where the system tells.
    fn ticks(&self) -> Option<u64> {
        let of_node = |node: &Node| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.process.id())).ok()?;
            // Behind the name, which is in brackets: the state, and with it the fields from the third on.
            let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
            let mut field = || fields.next()?.parse::<u64>().ok();
            Some(field()? + field()?)
        };
        self.nodes.iter().map(of_node).sum()
    }

    /// Waits until the nodes have nothing to do: together they take less than a tenth of a processor in each of seven seconds, so
    /// that the checkpoint behind the last write is among them, and what follows from it. How long they were busy; `None` where the system does not tell, or it is not so after this time.
    pub async fn settled(&self, patience: Duration) -> Option<Duration> {
        const LOOKED_AT_EVERY: Duration = Duration::from_secs(1);
        /// Longer than a node's `durable_interval`.
        const QUIET: Duration = Duration::from_secs(7);
        let begun = Instant::now();
        let (mut before, mut busy_until) = (self.ticks()?, begun);
        while begun.elapsed() < patience {
            tokio::time::sleep(LOOKED_AT_EVERY).await;
            let now = self.ticks()?;
            if now.saturating_sub(before) >= 10 {
                busy_until = Instant::now();
            } else if busy_until.elapsed() >= QUIET {
                return Some(busy_until - begun);
            }
            before = now;
        }
        None
    }

    /// Kills a node as a crash would, starts it again, and waits until it answers a read of what it has: how long that took.
    pub async fn restart_killed(&mut self, node: usize, args: &BenchArgs) -> Result<Duration, Failure> {
        let failed =
            |error: std::io::Error| Failure::failed(format!("a node cannot be started again: {error}"));
        let Some(node) = self.nodes.get_mut(node) else {
            return Err(Failure::failed("there is no such node"));
        };
        node.process.kill().map_err(failed)?;
        node.process.wait().map_err(failed)?;
        let begun = Instant::now();
        node.process = node.command.spawn().map_err(failed)?;
        let endpoints = node.address.try_into().ok().into_iter().collect();
        let one = Reached::new(endpoints, self.credentials.clone(), args.reach.deadline).client()?;
        let one = one.with_deadline(Duration::from_millis(500));
        while let Err(error) = one.get("bench/ready").stale().await {
            if begun.elapsed() > RESTART_MAX {
                return Err(Failure::failed(format!(
                    "the node did not serve within {RESTART_MAX:?}: {error}"
                )));
            }
        }
        Ok(begun.elapsed())
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

fn spawn(
    id: u64,
    address: SocketAddr,
    dir: &Path,
    peers: &str,
    certs: &Path,
    workers: Option<u32>,
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
        .args(["--peers", peers, "--profile", profile, "--log", "warn"])
        .arg("--data-dir")
        .arg(dir.join("data"))
        .arg("--certs")
        .arg(certs)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log)?);
    // What is not asked for stays as users get it.
    if let Some(workers) = workers {
        command.args(["--workers", &workers.to_string()]);
    }
    Ok(Node {
        process: command.spawn()?,
        command,
        address,
        log,
    })
}

/// The bytes of the blocks that the files of a directory take.
fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    let of_entry = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    };
    entries.filter_map(Result::ok).map(of_entry).sum()
}
