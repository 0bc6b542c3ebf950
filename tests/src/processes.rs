//! Clusters of real processes of the server's program, for what only a process can suffer: SIGKILL, SIGSTOP, a
//! disk that fails.
//!
//! Files are in a temporary directory, certificates of an authority of its own. Dropped, every process is killed.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use quorate_kv::Client;
use quorate_kv::model::Limits;
use quorate_kv::node::{NodeRole, Status};
use quorate_transport::certs::Authority;
use quorate_transport::quic::{QuicSettings, QuicTransport};
use quorate_transport::{ClusterId, Identity};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use crate::ports::free_address;

/// How long a condition may take to come true: far beyond what is expected, so that only a fault meets it.
const PATIENCE: Duration = Duration::from_secs(60);
/// One node's answer about itself.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// What each node is started with: elections are quick, so that a test sees many.
const CONFIGURATION: &str = "[timing]\nheartbeat = \"50ms\"\nfailover_min = \"1s\"\nfailover_max = \"2s\"\n\
                             [store]\nhistory_kept = \"0s\"\n";

/// A cluster of processes.
#[derive(Debug)]
pub struct Processes {
    program: PathBuf,
    cluster: ClusterId,
    authority: Authority,
    dir: tempfile::TempDir,
    /// Where each node listens.
    listening: BTreeMap<u64, SocketAddr>,
    /// Where others reach it: the same, unless something stands in between.
    reached: BTreeMap<u64, SocketAddr>,
    running: BTreeMap<u64, Child>,
    pids: Pids,
    killed: u64,
}

/// Which process a node last ran in: for who sees packets and wants to know whose they are.
#[derive(Debug, Clone, Default)]
pub struct Pids(Arc<Mutex<BTreeMap<u64, u32>>>);

impl Pids {
    /// The node that has a UDP socket on this port, if any has.
    pub fn owner_of(&self, port: u16) -> Option<u64> {
        let inode = socket_inode(port)?;
        let pids = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let owns = |(id, pid): (u64, u32)| {
            let runner = Pid::from_raw(pid.try_into().ok()?);
            let mut processes = children(pid).into_iter().chain(runner);
            processes.any(|process| has_socket(process, &inode)).then_some(id)
        };
        pids.into_iter().find_map(owns)
    }

    fn note(&self, id: u64, pid: u32) {
        let mut pids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pids.insert(id, pid);
    }
}

/// The name of the socket on this port, as a process's list of open files shows it.
fn socket_inode(port: u16) -> Option<String> {
    let suffix = format!(":{port:04X}");
    ["/proc/net/udp", "/proc/net/udp6"].iter().find_map(|table| {
        let text = std::fs::read_to_string(table).ok()?;
        text.lines().find_map(|line| {
            let mut fields = line.split_whitespace();
            let local = fields.nth(1)?;
            let inode = fields.nth(7)?;
            local.ends_with(&suffix).then(|| format!("socket:[{inode}]"))
        })
    })
}

fn has_socket(process: Pid, inode: &str) -> bool {
    let files = std::fs::read_dir(format!("/proc/{}/fd", process.as_raw_nonzero()));
    let mut files = files.into_iter().flatten().flatten();
    files.any(|file| std::fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == inode))
}

impl Processes {
    /// Leaves all files where they are, for whoever looks into a failure; where that is.
    pub fn keep_files(&mut self) -> &Path {
        self.dir.disable_cleanup(true);
        self.dir.path()
    }

    /// Makes certificates and finds addresses for so many nodes, without starting any.
    pub fn prepare(count: u64) -> Result<Self> {
        Self::prepare_with(count, CONFIGURATION)
    }

    /// The same, with what stands in the nodes' configuration file.
    pub fn prepare_with(count: u64, configuration: &str) -> Result<Self> {
        let cluster = ClusterId::new("processes")?;
        let authority = Authority::create(cluster.clone())?;
        let dir = tempfile::tempdir()?;
        authority.write(&dir.path().join("certs"))?;
        let validity = Duration::from_secs(7 * 86_400);
        for id in 1..=count {
            let issued = authority.issue(&Identity::node(cluster.clone(), id), &[], validity)?;
            issued.write(&dir.path().join("certs"))?;
        }
        std::fs::write(dir.path().join("node.toml"), configuration)?;
        let listening = (1..=count).map(|id| Ok((id, free_address()?)));
        let listening = listening.collect::<Result<BTreeMap<_, _>>>()?;
        Ok(Self {
            program: program()?,
            cluster,
            authority,
            dir,
            reached: listening.clone(),
            listening,
            running: BTreeMap::new(),
            pids: Pids::default(),
            killed: 0,
        })
    }

    /// Starts so many nodes, and waits until one leads.
    pub async fn start_all(count: u64) -> Result<Self> {
        let mut processes = Self::prepare(count)?;
        for id in 1..=count {
            processes.start(id)?;
        }
        processes.leader().await?;
        Ok(processes)
    }

    /// The ids of all nodes.
    pub fn ids(&self) -> Vec<u64> {
        self.listening.keys().copied().collect()
    }

    /// Which process each node runs in, kept up to date.
    pub fn pids(&self) -> Pids {
        self.pids.clone()
    }

    /// Where each node listens.
    pub fn listening(&self) -> &BTreeMap<u64, SocketAddr> {
        &self.listening
    }

    /// Says that others reach the nodes elsewhere than where they listen. Before the first start.
    pub fn reach_at(&mut self, reached: BTreeMap<u64, SocketAddr>) {
        self.reached = reached;
    }

    /// Starts a node on its files, for the first time or again.
    pub fn start(&mut self, id: u64) -> Result<()> {
        self.start_under(id, &[])
    }

    /// The same, with something done to each sync of its files, as `strace` takes it behind `inject=fdatasync:`.
    pub fn start_with_syncs(&mut self, id: u64, injected: &str) -> Result<()> {
        let runner = [
            "strace",
            "-f",
            "-qq",
            "--seccomp-bpf",
            "-o",
            "/dev/null",
            "-e",
            "trace=fdatasync",
            "-e",
            &format!("inject=fdatasync:{injected}"),
        ];
        self.start_under(id, &runner.map(str::to_owned))
    }

    /// The same, under a program that runs it, such as a tracer: its name and its arguments.
    fn start_under(&mut self, id: u64, runner: &[String]) -> Result<()> {
        ensure!(!self.running.contains_key(&id), "node {id} runs already");
        let listen = self.listening.get(&id).with_context(|| format!("no node {id}"))?;
        let peers: Vec<String> = self
            .reached
            .iter()
            .map(|(id, address)| format!("{id}={address}"))
            .collect();
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.log_file(id))?;
        let mut command = match runner {
            [] => Command::new(&self.program),
            [runner, args @ ..] => {
                let mut command = Command::new(runner);
                command.args(args).arg(&self.program);
                command
            }
        };
        // One thread, which looks for datagrams where the machine has another processor, and two, which do not.
        let workers = if id.is_multiple_of(2) { "2" } else { "1" };
        // Nothing of the user's own configuration belongs into a test.
        remove_variables(&mut command, &["QUORATE_"]);
        command
            .env("QUORATE_RUN_DIR", self.dir.path().join("run"))
            .args(["serve", "--cluster", self.cluster.as_str()])
            .args(["--node-id", &id.to_string(), "--listen", &listen.to_string()])
            .args(["--peers", &peers.join(","), "--log", "warn", "--workers", workers])
            .arg("--config")
            .arg(self.dir.path().join("node.toml"))
            .arg("--data-dir")
            .arg(self.data_dir(id))
            .arg("--certs")
            .arg(self.dir.path().join("certs"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command
            .spawn()
            .with_context(|| format!("{} cannot be started", self.program.display()))?;
        self.pids.note(id, child.id());
        self.running.insert(id, child);
        Ok(())
    }

    /// Kills a node with SIGKILL; returns when it is gone.
    pub fn kill(&mut self, id: u64) -> Result<()> {
        let mut child = self
            .running
            .remove(&id)
            .with_context(|| format!("node {id} does not run"))?;
        // A runner's child is the node; killed alone, the runner would leave it behind.
        let descendants = children(child.id());
        for descendant in &descendants {
            let _gone_already = kill_process(*descendant, Signal::KILL);
        }
        // The runner ends once the node has: only then are the node's port and lock free again.
        let patience = Instant::now() + Duration::from_secs(5);
        while !descendants.is_empty() && child.try_wait()?.is_none() && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill()?;
        child.wait()?;
        self.killed += 1;
        Ok(())
    }

    /// How many processes were killed.
    pub fn killed(&self) -> u64 {
        self.killed
    }

    /// Asks a node to stop with SIGTERM, and waits until it has.
    pub async fn stop(&mut self, id: u64) -> Result<ExitStatus> {
        self.signal(id, Signal::TERM)?;
        let mut child = self
            .running
            .remove(&id)
            .with_context(|| format!("node {id} does not run"))?;
        tokio::task::spawn_blocking(move || Ok(child.wait()?)).await?
    }

    /// Holds a node's process (SIGSTOP), as a pause of the machine would; returns when none of its threads runs any more.
    pub fn pause(&self, id: u64) -> Result<()> {
        let pid = self.signal(id, Signal::STOP)?;
        let end = Instant::now() + PATIENCE;
        while !is_held(pid) {
            ensure!(Instant::now() < end, "node {id} goes on after SIGSTOP");
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    /// Lets a paused process go on.
    pub fn resume(&self, id: u64) -> Result<()> {
        self.signal(id, Signal::CONT)?;
        Ok(())
    }

    fn signal(&self, id: u64, signal: Signal) -> Result<Pid> {
        let child = self
            .running
            .get(&id)
            .with_context(|| format!("node {id} does not run"))?;
        let own = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let node = children(child.id()).into_iter().next().or(own);
        let node = node.context("a process id of 0")?;
        kill_process(node, signal)?;
        Ok(node)
    }

    /// How a node's process ended, if it did so by itself since it was started.
    pub fn ended(&mut self, id: u64) -> Result<Option<ExitStatus>> {
        match self.running.get_mut(&id) {
            Some(child) => Ok(child.try_wait()?),
            None => Ok(None),
        }
    }

    /// Forgets a process that ended by itself, so that it can be started again.
    pub fn forget(&mut self, id: u64) {
        self.running.remove(&id);
    }

    /// Whether a node was started and not killed or stopped since.
    pub fn runs(&self, id: u64) -> bool {
        self.running.contains_key(&id)
    }

    /// A client of the cluster.
    pub fn client(&self) -> Result<Client> {
        self.client_of("test", self.reached.values())
    }

    /// A client with a name and a connection of its own: a node counts what each may hold by its name.
    pub fn client_named(&self, name: &str) -> Result<Client> {
        self.client_of(name, self.reached.values())
    }

    /// The process that a node runs in, where it runs under no other program.
    pub fn pid(&self, id: u64) -> Option<u32> {
        self.running.get(&id).map(Child::id)
    }

    /// What a node tells of itself.
    pub async fn status(&self, id: u64) -> Result<Status> {
        let address = self.listening.get(&id).with_context(|| format!("no node {id}"))?;
        let client = self.client_of("test", [address])?.with_deadline(ANSWER_MAX);
        Ok(client.status().await?)
    }

    fn client_of<'a>(
        &self,
        name: &str,
        addresses: impl IntoIterator<Item = &'a SocketAddr>,
    ) -> Result<Client> {
        let identity = Identity::client(self.cluster.clone(), name)?;
        let credentials = self.authority.credentials(&identity)?;
        let transport = QuicTransport::bind(None, &credentials, QuicSettings::default())?;
        let endpoints = addresses.into_iter().map(ToString::to_string);
        Ok(Client::connect(endpoints, transport, Limits::default())?)
    }

    /// Waits until one of the running nodes leads.
    pub async fn leader(&mut self) -> Result<u64> {
        self.wait("a leader", |statuses| {
            let leader = statuses.iter().find(|s| s.role == NodeRole::Leader)?;
            let follows = |s: &&Status| s.leader == Some(leader.node) && s.term == leader.term;
            let majority = statuses.iter().filter(follows).count() * 2 > leader.members.len();
            majority.then(|| leader.node.number())
        })
        .await
    }

    /// Waits until all nodes run and have applied the same entries, one at least, and demands that their states are equal.
    pub async fn agreement(&mut self) -> Result<Status> {
        let all = self.listening.len();
        let statuses = self
            .wait("equal applied indexes on all nodes", |statuses| {
                let first = statuses.first()?;
                let level = statuses
                    .iter()
                    .all(|s| s.applied == first.applied && s.committed == first.applied);
                (statuses.len() == all && level && first.applied.is_some()).then(|| statuses.to_vec())
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

    /// Waits until one of the nodes leads, all others follow it, and each has come as far as the leader had then.
    pub async fn level(&mut self) -> Result<()> {
        let all = self.listening.len();
        let mut goal = None;
        self.wait("a leader that all nodes follow and keep up with", |statuses| {
            let leader = statuses.iter().find(|s| s.role == NodeRole::Leader)?;
            let goal = *goal.get_or_insert(leader.committed);
            let level =
                |s: &Status| s.leader == Some(leader.node) && s.term == leader.term && s.applied >= goal;
            (statuses.len() == all && statuses.iter().all(level)).then_some(())
        })
        .await
    }

    async fn wait<T>(&mut self, what: &str, mut condition: impl FnMut(&[Status]) -> Option<T>) -> Result<T> {
        let end = Instant::now() + PATIENCE;
        let mut pause = tokio::time::interval(Duration::from_millis(50));
        // One client each for the whole wait: a new one would have to shake hands every time.
        let mut clients = Vec::new();
        for address in self.listening.values() {
            clients.push(self.client_of("test", [address])?.with_deadline(ANSWER_MAX));
        }
        loop {
            let answers = futures_util::future::join_all(clients.iter().map(Client::status)).await;
            let statuses: Vec<Status> = answers.into_iter().flatten().collect();
            if let Some(found) = condition(&statuses) {
                return Ok(found);
            }
            for id in self.ids() {
                if let Some(status) = self.ended(id)? {
                    bail!(
                        "node {id} ended by itself ({status}) while waiting for {what}:\n{}",
                        self.log(id)
                    );
                }
            }
            if Instant::now() >= end {
                let logs: String = self
                    .ids()
                    .iter()
                    .map(|id| format!("\nnode {id}:\n{}", self.log(*id)))
                    .collect();
                bail!("no {what} within {PATIENCE:?}: {statuses:#?}{logs}");
            }
            pause.tick().await;
        }
    }

    /// What a node has written to its standard error so far: the end of it.
    pub fn log(&self, id: u64) -> String {
        const SHOWN: usize = 4000;
        let log = std::fs::read(self.log_file(id)).unwrap_or_default();
        let end = log.get(log.len().saturating_sub(SHOWN)..).unwrap_or_default();
        String::from_utf8_lossy(end).into_owned()
    }

    fn log_file(&self, id: u64) -> PathBuf {
        self.dir.path().join(format!("node-{id}.log"))
    }

    /// The data directory of a node.
    pub fn data_dir(&self, id: u64) -> PathBuf {
        self.dir.path().join(format!("node-{id}"))
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for id in self.ids() {
            if self.runs(id) {
                let _gone_already = self.kill(id);
            }
        }
    }
}

/// Keeps from a command the variables of ours whose names begin so.
fn remove_variables(command: &mut Command, prefixes: &[&str]) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if prefixes.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
}

/// Whether every thread of a process is stopped by a signal, or the process has ended.
fn is_held(pid: Pid) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()));
    let mut tasks = tasks.into_iter().flatten().flatten();
    tasks.all(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // The name before the state may hold anything.
        let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
        state.is_none_or(|state| state.starts_with(['T', 't', 'Z', 'X']))
    })
}

/// The children of a process.
fn children(parent: u32) -> Vec<Pid> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let list = std::fs::read_to_string(path).unwrap_or_default();
    list.split_whitespace()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
        .collect()
}

/// The server's program, as it stands in the source: built first where cargo runs us, since another package's
/// program is not built by itself and an old one would test old code.
fn program() -> Result<PathBuf> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    if let Some(given) = std::env::var_os("QUORATE_PROGRAM") {
        return Ok(given.into());
    }
    let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    built.clone().map_err(|error| anyhow!(error))
}

fn build() -> Result<PathBuf> {
    let ours = std::env::current_exe()?;
    // target/<profile>/scenario, or target/<profile>/deps/processes-0123 for a test.
    let dir = ours.parent().context("a program in no directory")?;
    let (dir, tested) = match dir.file_name() {
        Some(name) if name == "deps" => (dir.parent().context("deps in no directory")?, true),
        _ => (dir, false),
    };
    let program = dir.join("quorate");
    let Some(cargo) = std::env::var_os("CARGO") else {
        ensure!(
            program.exists(),
            "{} is missing: build it with `cargo build -p quorate`, or name another in QUORATE_PROGRAM",
            program.display()
        );
        return Ok(program);
    };
    let profile = match dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let target = dir.parent().context("a profile in no directory")?;
    // A test takes what `cargo test --workspace` has made of the program: alone it has other features, and most of
    // its dependencies would be built again for them. A measurement takes what a user would get.
    let what: &[&str] = if tested {
        &["test", "--workspace", "--no-run", "--test", "one_node"]
    } else {
        &["build", "-p", "quorate", "--bin", "quorate"]
    };
    let mut build = Command::new(cargo);
    // What cargo told this test of its own package. Some build scripts ask for variables of these names, and would be run
    // again for others, and all that stands on them built again.
    remove_variables(
        &mut build,
        &[
            "CARGO_PKG_",
            "CARGO_MANIFEST_",
            "CARGO_BIN_",
            "CARGO_CRATE_",
            "CARGO_PRIMARY_",
            "OUT_DIR",
        ],
    );
    let built = build
        .args(what)
        .args(["--quiet", "--offline", "--profile", profile])
        .arg("--target-dir")
        .arg(target)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .status()?;
    ensure!(
        built.success(),
        "the server's program was not built (cargo {}): {built}",
        what.join(" ")
    );
    Ok(program)
}
