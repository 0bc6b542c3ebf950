//! `quorate serve`: a node as a process of its own.
//!
//! The order of a start: configuration, certificates, metrics, port, node, note for the command line. A stop goes
//! the other way, and hands leadership on first.

mod checked_certs;
mod config;
mod descriptors;
mod keys;
mod listen_at;
mod own_certs;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_kv::Node;
use quorate_kv::fault::Fault;
use quorate_kv::node::StartError;
use quorate_transport::certs::Credentials;
use quorate_transport::quic::{BindError, QuicSettings, QuicTransport};
use quorate_transport::{Address, Identity, Transport as _};
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::ServeArgs;
use crate::failure::{Failure, Kind};
use crate::logging::Format;
use crate::metrics;
use crate::output::{Output, Report};
use crate::run_file::{self, Note};
use config::{Config, Given};

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
    let (_idle, signals) = Signals::from_now_on()?;
    let given = Given { args, variables };
    let check = given.check()?;
    let (config, logging) = config::load(given)?;
    if check {
        let certificates = checked_certs::check(&config)?;
        return output.show(&config.report().with_certificates(certificates));
    }
    *output = output.without_waiting();
    if logging.format() == Format::Json {
        *output = output.failing_in_json();
    }
    let runtime = crate::runtime(config.workers)?;
    // Dropped last: what the ending tasks say is logged too.
    let _log = logging
        .install()
        .map_err(|error| Failure::failed(format!("no thread for the log: {error}")))?;
    let ended = runtime.block_on(serve(config, signals, *output));
    runtime.shutdown_timeout(THREADS_PATIENCE);
    ended
}

async fn serve(config: Config, mut signals: Signals, output: Output) -> Result<(), Failure> {
    match config.open_files_max {
        Some(limit) => tracing::info!(limit, "so many files may be open"),
        None => tracing::info!("any number of files may be open"),
    }
    let identity = Identity::node(config.cluster.clone(), config.node_id);
    let (credentials, certs) = match &config.certs {
        Some(dir) => (given_credentials(dir, &identity)?, dir.clone()),
        None => own_certs::open(&config.data_dir, &identity)?,
    };
    if let Some(at) = &config.metrics {
        let address = at.resolve("metrics")?;
        metrics::install(address)?;
        tracing::info!(%address, "metrics are offered under /metrics");
    }
    let quic = QuicSettings {
        busy_poll: config.busy_poll,
        ..QuicSettings::default()
    };
    let listen = config.listen.resolve("listen")?;
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
    let node = builder.start().await?;
    let address = transport.local_address().unwrap_or(listen);
    let _note = post(&config.data_dir, &identity, address, &certs);
    let metrics = tokio::spawn(metrics::watch(node.clone()));
    tracing::info!(node = config.node_id, cluster = %config.cluster, %address, "the node serves");
    let serving = Serving {
        cluster: config.cluster.to_string(),
        node: config.node_id,
        address,
    };
    announce(serving, output);

    let ended = loop {
        tokio::select! {
            event = signals.next() => match event {
                Event::Stop(name) => {
                    tracing::info!(signal = name, "stopping");
                    break None;
                }
                Event::Reload => reload(&transport, &certs, &identity),
            },
            fault = node.stopped() => break Some(fault),
        }
    };
    metrics.abort();
    match ended {
        None => stop(&node, &mut signals).await,
        Some(reason) => Err(fallen(config.node_id, node.fault(), reason)),
    }
}

/// How a node that a fault ended is told.
fn fallen(node: u64, fault: Option<Fault>, reason: Option<String>) -> Failure {
    let told = fault.as_ref().map(ToString::to_string).or(reason);
    let reason = told.unwrap_or_else(|| "its part in the cluster ended without a reason".to_owned());
    let kind = fault.map_or(Kind::Failed, |fault| kind_of(&fault));
    Failure::new(kind, format!("a fault ended node {node}: {reason}"))
        .hint("its files are as they were; docs/operations.md says what to do")
}

/// Whether a start after this fault is refused until somebody has acted, may find it gone, or is worth trying.
fn kind_of(fault: &Fault) -> Kind {
    match fault {
        fault if !fault.is_retryable() => Kind::Refused,
        Fault::Disk { .. } => Kind::Unavailable,
        _ => Kind::Failed,
    }
}

/// A node that serves: what supervisors and tests wait for on standard output.
#[derive(Debug, Serialize)]
struct Serving {
    cluster: String,
    node: u64,
    address: SocketAddr,
}

impl Report for Serving {
    fn text(&self) -> String {
        let Self {
            cluster,
            node,
            address,
        } = self;
        format!("node {node} of cluster {cluster} serves on {address}")
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

/// Ends the node with grace; a second signal ends it without, and so does time.
async fn stop(node: &Node, signals: &mut Signals) -> Result<(), Failure> {
    let report = within(STOP_MAX, node.shutdown(), signals.stop_again()).await?;
    if report.leadership_moved == Some(false) {
        tracing::warn!("no other node took the leadership over in time: an election follows");
    }
    if !report.drained {
        tracing::warn!("not all tasks ended in time");
    }
    tracing::info!("stopped");
    Ok(())
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

fn given_credentials(dir: &Path, identity: &Identity) -> Result<Credentials, Failure> {
    Credentials::load_from(dir, identity).map_err(|error| {
        let id = identity.node_id().unwrap_or_default();
        Failure::refused(format!("--certs: {error}")).hint(format!(
            "node {id} of cluster {cluster} needs ca.crt, node-{id}.crt and node-{id}.key there; \
             quorate certs issue --dir DIR --node {id} makes them",
            cluster = identity.cluster
        ))
    })
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

enum Event {
    Stop(&'static str),
    Reload,
}

impl Signals {
    /// Takes the signals from the system's hands, which would end the process at the first one: before the configuration is
    /// read, which may take long. They are told by whatever runtime is driven first, and the runtime that is returned here
    /// is never: so none is told to nobody.
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
            _ = self.terminate.recv() => Event::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Event::Stop("SIGINT"),
            _ = self.hangup.recv() => Event::Reload,
        }
    }

    async fn stop_again(&mut self) {
        while let Event::Reload = self.next().await {}
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
        Failure::new(kind, format!("the node did not start: {error}"))
    }
}

/// What keeps a node from starting either may pass, or lasts until somebody acts.
fn start_kind(may_pass: bool) -> Kind {
    if may_pass {
        Kind::Unavailable
    } else {
        Kind::Refused
    }
}

#[cfg(test)]
mod tests;
