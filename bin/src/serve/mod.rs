//! `quorate serve`: a node as a process of its own.
//!
//! The order of a start: configuration, certificates, metrics, port, node, note for the command line. A stop goes
//! the other way, and hands leadership on first.
//!
//! Always: a signal is heard whatever the start waits for, a file, a lock or a name; what the node says of its end (a
//! fault, a state that is not durable) decides the exit code, a stop that was asked for included.

mod checked_certs;
mod config;
mod descriptors;
mod given_certs;
mod keys;
mod listen_at;
mod own_certs;
mod worth;

use std::collections::BTreeSet;
use std::fs::TryLockError;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_kv::Node;
use quorate_kv::fault::Fault;
use quorate_kv::node::{ShutdownReport, StartError, Status, StorageError};
use quorate_transport::certs::Credentials;
use quorate_transport::quic::{BindError, QuicSettings, QuicTransport};
use quorate_transport::{Address, Identity, Transport as _};
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::task::AbortOnDropHandle;

use crate::cli::ServeArgs;
use crate::failure::{Failure, Kind};
use crate::logging::{Format, Logging};
use crate::metrics;
use crate::output::{Output, Report};
use crate::run_file::{self, Note};
use config::{Config, ConfigReport, Given};
use given_certs::given_credentials;
use worth::{kind_of, start_kind};

pub use config::LISTEN;

/// See [`crate::fuzzing`]: `None` for what is no TOML; else the faults, or what the configuration amounts to.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_configuration(text: &str) -> Option<Result<String, Vec<String>>> {
    let config = config::read_text(text)?;
    Some(config.map(|config| config.report().text()))
}

/// How long a stop may take. What a service manager allows must be longer: 30 s in docs/operations.md.
const STOP_MAX: Duration = Duration::from_secs(25);

/// How long the end of the process waits for work on threads that it does not own: a look-up of a name, for example.
const THREADS_PATIENCE: Duration = Duration::from_secs(1);

/// Runs the command until a signal or a fault ends it. `variables` are the flags that a variable gave; `output` leaves as
/// failures are to be shown.
pub fn run(args: &ServeArgs, variables: &BTreeSet<String>, output: &mut Output) -> Result<(), Failure> {
    let (idle, mut signals) = Signals::from_now_on()?;
    let (args, variables) = (args.clone(), variables.clone());
    let check = Given {
        args: &args,
        variables: &variables,
    }
    .check()?;
    let reading = on_a_thread(idle.handle().clone(), move || read(&args, &variables, check));
    let read = idle.block_on(async {
        tokio::select! {
            read = reading => read.map(Some),
            _ = signals.stop() => Ok(None),
        }
    });
    // A file that is still waited for ends with the process.
    idle.shutdown_background();
    let (config, logging) = match read? {
        Some(Read::Checked(report)) => return output.show(&*report),
        Some(Read::Config(config, logging)) => (*config, *logging),
        None if check => return Err(Failure::failed("stopped before the configuration was checked")),
        None => return Ok(()),
    };
    *output = output.without_waiting();
    if logging.format() == Format::Json {
        *output = output.failing_in_json();
    }
    let runtime = crate::runtime::runtime(Some(config.workers))?;
    // Dropped last: what the ending tasks say is logged too.
    let _log = logging
        .install()
        .map_err(|error| Failure::failed(format!("no thread for the log: {error}")))?;
    let ended = runtime.block_on(serve(config, signals, *output));
    runtime.shutdown_timeout(THREADS_PATIENCE);
    ended
}

/// What was found in the configuration.
enum Read {
    /// It was to be checked alone.
    Checked(Box<ConfigReport>),
    Config(Box<Config>, Box<Logging>),
}

fn read(args: &ServeArgs, variables: &BTreeSet<String>, check: bool) -> Result<Read, Failure> {
    let (config, logging) = config::load(Given { args, variables })?;
    if check {
        let certificates =
            checked_certs::check(config.certs.as_deref(), &config.data_dir, &identity_of(&config))?;
        let report = config.report().with_certificates(certificates);
        return Ok(Read::Checked(Box::new(report)));
    }
    Ok(Read::Config(Box::new(config), Box::new(logging)))
}

/// Runs what may wait for a disk, a lock or a network on a thread of its own, so that signals are heard meanwhile. Given
/// up, it goes on until the process ends.
async fn on_a_thread<T: Send + 'static>(
    runtime: tokio::runtime::Handle,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match runtime.spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(Failure::failed(format!("the start did not go on: {error}"))),
        },
    }
}

fn identity_of(config: &Config) -> Identity {
    Identity::node(config.cluster.clone(), config.node_id)
}

/// What a start needs of files and names before it takes its port.
struct Prepared {
    config: Config,
    identity: Identity,
    credentials: Credentials,
    /// Where they are.
    certs: PathBuf,
    listen: SocketAddr,
    metrics: Option<SocketAddr>,
}

impl Prepared {
    fn of(config: Config) -> Result<Self, Failure> {
        is_free(&config.data_dir)?;
        let identity = identity_of(&config);
        let (credentials, certs) = match &config.certs {
            Some(dir) => (given_credentials(dir, &identity)?, dir.clone()),
            None => own_certs::open(&config.data_dir, &identity)?,
        };
        let resolved = config.metrics.as_ref().map(|at| at.resolve("metrics"));
        Ok(Self {
            identity,
            credentials,
            certs,
            listen: config.listen.resolve("listen")?,
            metrics: resolved.transpose()?,
            config,
        })
    }
}

/// Refuses a directory on which another process runs a node, before anything is made in it. The node's own start decides:
/// what cannot be looked at here is told there.
fn is_free(data_dir: &Path) -> Result<(), Failure> {
    let Ok(lock) = std::fs::File::open(data_dir.join("LOCK")) else {
        return Ok(());
    };
    match lock.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {
            let dir = data_dir.to_owned();
            Err(StartError::from(StorageError::InUse { dir }).into())
        }
        _ => Ok(()),
    }
}

async fn serve(config: Config, mut signals: Signals, output: Output) -> Result<(), Failure> {
    match config.open_files_max {
        Some(limit) => tracing::info!("the process may have {limit} files open"),
        None => tracing::info!("the process may have any number of files open"),
    }
    let here = tokio::runtime::Handle::current();
    let Prepared {
        config,
        identity,
        credentials,
        certs,
        listen,
        metrics,
    } = tokio::select! {
        prepared = on_a_thread(here, move || Prepared::of(config)) => prepared?,
        signal = signals.stop() => {
            tracing::info!(signal, "stopped before the node had started");
            return Ok(());
        }
    };
    // Until the node has stopped: a stop is to be seen.
    let _offered = match metrics {
        Some(address) => {
            let offered = metrics::install(address)?;
            tracing::info!(%address, "metrics are offered under /metrics");
            Some(offered)
        }
        None => None,
    };
    let quic = QuicSettings::default();
    let idle_timeout = config.settings.timing.idle_timeout_min().max(quic.idle_timeout);
    let memory = config
        .settings
        .memory()
        .map_err(|wrong| Failure::refused(wrong.to_string()))?;
    metrics::memory::tell(&config.settings, &memory);
    let quic = QuicSettings {
        client_messages_bytes: usize::try_from(memory.client_messages).unwrap_or(usize::MAX),
        busy_poll: config.busy_poll,
        idle_timeout: idle_timeout.min(QuicSettings::IDLE_TIMEOUT_MAX),
        ..quic
    };
    let transport = QuicTransport::bind(Some(listen), &credentials, quic)?;
    let mut builder = Node::builder()
        .data_dir(&config.data_dir)
        .cluster(config.cluster.as_str())
        .node_id(config.node_id)
        .transport(transport.clone())
        .settings(config.settings);
    if !config.peers.is_empty() {
        builder = builder.peers(config.peers);
    } else if let Some(advertise) = &config.advertise {
        builder = builder.peers([(config.node_id, advertise.clone())]);
    }
    if config.join {
        builder = builder.join();
    }
    let node = tokio::select! {
        node = builder.start() => node?,
        signal = signals.stop() => {
            tracing::info!(signal, "stopping before the node has started");
            // It has said nothing that its files do not hold.
            return within(STOP_MAX, transport.shutdown(), signals.stop_again()).await;
        }
    };
    if let Some(fault) = node.fault() {
        return Err(fallen(config.node_id, Some(fault), None));
    }
    let address = transport.local_address().unwrap_or(listen);
    let _note = post(&config.data_dir, &identity, address, &certs);
    // Ended with the runtime: what it tells is true of a node that stops too.
    let _watched = AbortOnDropHandle::new(tokio::spawn(metrics::watch(node.clone())));
    let mut waits = Waits::of(&node.status(), config.join);
    match waits {
        Some(waits) => {
            tracing::info!(node = config.node_id, cluster = %config.cluster, %address, "the node {}", waits.text());
        }
        None => {
            tracing::info!(node = config.node_id, cluster = %config.cluster, %address, "the node serves");
        }
    }
    let serving = Serving {
        cluster: config.cluster.to_string(),
        node: config.node_id,
        address,
        waits,
    };
    announce(serving, output);

    let ended = loop {
        tokio::select! {
            biased;
            event = signals.next() => match event {
                Event::Stop(name) => {
                    tracing::info!(signal = name, "stopping");
                    break None;
                }
                Event::Reload => reload(&transport, &certs, &identity),
            },
            fault = node.stopped() => break Some(fault),
            // After the fault: a node that has stopped is waited for no longer, and serves nothing.
            () = node.ready(), if waits.is_some() => {
                waits = None;
                tracing::info!(node = config.node_id, cluster = %config.cluster, %address, "the node serves");
            }
        }
    };
    match ended {
        None => {
            let stopped = within(STOP_MAX, node.shutdown(), signals.stop_again()).await;
            how_it_stopped(config.node_id, stopped, node.fault())
        }
        Some(reason) => Err(fallen(config.node_id, node.fault(), reason)),
    }
}

/// What became of a stop that was asked for. A fault on the way says more than that the stop took too long.
fn how_it_stopped(
    node: u64,
    stopped: Result<ShutdownReport, Failure>,
    fault: Option<Fault>,
) -> Result<(), Failure> {
    if fault.is_some() {
        return Err(fallen(node, fault, None));
    }
    let report = stopped?;
    if report.leadership_moved == Some(false) {
        tracing::warn!("no other node took the leadership over in time: an election follows");
    }
    if !report.drained {
        tracing::warn!("not all tasks ended in time");
    }
    let unfinished = match report {
        ShutdownReport { durable: false, .. } => "its state was not made durable in time",
        ShutdownReport { closed: false, .. } => "its files were not closed in time",
        _ => {
            tracing::info!("stopped");
            return Ok(());
        }
    };
    Err(Failure::failed(format!(
        "node {node} stopped, but {unfinished}: the next start replays its log, as after a crash; what was acknowledged \
         is not lost"
    ))
    .hint("a slow or failing disk is the usual cause"))
}

/// How a node that a fault ended is told.
fn fallen(node: u64, fault: Option<Fault>, reason: Option<String>) -> Failure {
    let told = fault.as_ref().map(ToString::to_string).or(reason);
    let reason = told.unwrap_or_else(|| "its part in the cluster ended without a reason".to_owned());
    let kind = fault.map_or(Kind::Failed, |fault| kind_of(&fault));
    Failure::new(kind, format!("a fault ended node {node}: {reason}"))
        .hint("its files are as they were; docs/operations.md says what to do")
}

/// What a node that has started waits for, before it can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Waits {
    /// Somebody must add it.
    ToBeAdded,
    /// Its peers are to form the cluster with it.
    ForItsCluster,
}

impl Waits {
    /// `None` for a node that belongs to a cluster.
    fn of(status: &Status, join: bool) -> Option<Self> {
        match (status.cluster_uuid, join) {
            (Some(_), _) => None,
            (None, true) => Some(Waits::ToBeAdded),
            (None, false) => Some(Waits::ForItsCluster),
        }
    }

    fn text(self) -> &'static str {
        match self {
            Waits::ToBeAdded => "waits to be added to its cluster (quorate member add)",
            Waits::ForItsCluster => "waits for its peers to form the cluster",
        }
    }
}

/// A node that has started: what supervisors and tests wait for on standard output. The address is its last word.
#[derive(Debug, Serialize)]
struct Serving {
    cluster: String,
    node: u64,
    address: SocketAddr,
    /// What it waits for; nothing where it serves.
    waits: Option<Waits>,
}

impl Report for Serving {
    fn text(&self) -> String {
        let Self {
            cluster,
            node,
            address,
            waits,
        } = self;
        match waits {
            None => format!("node {node} of cluster {cluster} serves on {address}"),
            Some(waits) => format!("node {node} of cluster {cluster} {}, on {address}", waits.text()),
        }
    }
}

/// Says that the node serves. On a thread of its own, since nobody may read standard output, and the node serves all the
/// same.
fn announce(serving: Serving, output: Output) {
    let show = move || {
        if let Err(failure) = output.show(&serving) {
            tracing::warn!(%failure, "that the node serves could not be said");
        }
    };
    let thread = std::thread::Builder::new().name("quorate-stdout".to_owned());
    if let Err(error) = thread.spawn(show) {
        tracing::warn!(%error, "that the node serves could not be said: there is no thread for it");
    }
}

/// What a stop gave, unless it takes too long or is cut short.
async fn within<T>(
    longest: Duration,
    stop: impl Future<Output = T>,
    again: impl Future<Output = ()>,
) -> Result<T, Failure> {
    tokio::select! {
        stopped = stop => Ok(stopped),
        () = again => Err(Failure::failed("stopped at once, at a second signal")),
        () = tokio::time::sleep(longest) => Err(Failure::failed(format!(
            "the stop was not over after {longest:?}: the process ends without the rest, as a crash would; what was \
             acknowledged is not lost"
        ))
        .hint("the log says what was waited for; a slow or failing disk is the usual cause")),
    }
}

/// Takes certificates that were renewed, for all connections from now on.
fn reload(transport: &QuicTransport, dir: &Path, identity: &Identity) {
    let loaded = Credentials::load_from(dir, identity);
    let result = loaded
        .map_err(|e| e.to_string())
        .and_then(|c| transport.reload(&c).map_err(|e| e.to_string()));
    match result {
        Ok(()) => tracing::info!(dir = %dir.display(), "the certificates were read again"),
        Err(reason) => {
            tracing::error!(%reason, "the certificates were not read again; the old ones stay in use")
        }
    }
}

/// Leaves the note by which the command line finds this node. A node without one serves all the same.
fn post(data_dir: &Path, identity: &Identity, address: SocketAddr, certs: &Path) -> Option<run_file::Posted> {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let holds_client = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .into_iter()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("client-"))
    };
    let certs: Option<PathBuf> = holds_client(certs).then(|| absolute(certs));
    let Ok(address) = Address::try_from(reachable(address)) else {
        return None;
    };
    let note = Note {
        cluster: identity.cluster.to_string(),
        node: identity.node_id().unwrap_or_default(),
        address,
        certs,
        data_dir: absolute(data_dir),
        pid: std::process::id(),
    };
    run_file::post(&note)
        .inspect_err(
            |error| tracing::warn!(%error, "the command line will not find this node by its data directory"),
        )
        .ok()
}

/// From this machine, one that listens everywhere is reached on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// What the operating system tells.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

const TERMINATE: &str = "SIGTERM";
const INTERRUPT: &str = "SIGINT";

enum Event {
    Stop(&'static str),
    Reload,
}

impl Signals {
    /// Takes the signals from the system's hands, which would end the process at the first one: before the configuration is
    /// read, which may take long. They are told by whatever runtime is driven, and what comes between two is told by the
    /// next one: so none is told to nobody. The runtime that is returned is the first.
    fn from_now_on() -> Result<(tokio::runtime::Runtime, Self), Failure> {
        let idle = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let idle = idle.map_err(|error| Failure::failed(format!("the runtime did not start: {error}")))?;
        let entered = idle.enter();
        let signals = Self::listen()?;
        drop(entered);
        Ok((idle, signals))
    }

    fn listen() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::failed(format!("signals cannot be heard: {error}")));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Event {
        tokio::select! {
            _ = self.terminate.recv() => Event::Stop(TERMINATE),
            _ = self.interrupt.recv() => Event::Stop(INTERRUPT),
            _ = self.hangup.recv() => Event::Reload,
        }
    }

    /// The next signal that asks for a stop. Whether the certificates are to be read again waits for [`Self::next`].
    async fn stop(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => TERMINATE,
            _ = self.interrupt.recv() => INTERRUPT,
        }
    }

    async fn stop_again(&mut self) {
        self.stop().await;
    }
}

impl From<BindError> for Failure {
    fn from(error: BindError) -> Self {
        let kind = start_kind(error.is_retryable());
        let message = error.to_string();
        match error {
            BindError::AddressInUse { address } => Failure::new(kind, format!("--listen: {message}"))
                .hint(format!("--listen {}:0 takes any free port", address.ip())),
            BindError::Address { .. } => Failure::new(kind, format!("--listen: {message}")),
            _ => Failure::new(kind, message),
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let kind = match &error {
            StartError::Fault(fault) => kind_of(fault),
            error => start_kind(error.is_retryable()),
        };
        let failure = Failure::new(kind, format!("the node did not start: {error}"));
        match error {
            StartError::Fault(Fault::Corrupt { .. }) => failure.hint(
                "its files are as they were; quorate check tells all that is wrong with them, and docs/operations.md what to do",
            ),
            _ => failure,
        }
    }
}

#[cfg(test)]
mod tests;
