//! `quorate serve`: a node as a process of its own.
//!
//! The order of a start: configuration, certificates, metrics, port, node, note for the command line. A stop goes
//! the other way, and hands leadership on first.

mod config;
mod keys;
mod own_certs;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_kv::Node;
use quorate_kv::node::StartError;
use quorate_transport::certs::Credentials;
use quorate_transport::quic::{BindError, QuicSettings, QuicTransport};
use quorate_transport::{Identity, Transport as _};
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::ServeArgs;
use crate::failure::Failure;
use crate::logging::Format;
use crate::metrics;
use crate::output::{Output, Report};
use crate::run_file::{self, Note};
use config::Config;

pub use config::LISTEN;

/// See [`crate::fuzzing`]: `None` for what is no TOML; else the faults, or what the configuration amounts to.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_configuration(text: &str) -> Option<Result<String, Vec<String>>> {
    let config = config::read_text(text)?;
    Some(config.map(|config| config.report().text()))
}

/// How long the end of the process waits for work on threads that it does not own: a look-up of a name, for example.
const THREADS_PATIENCE: Duration = Duration::from_secs(1);

/// Runs the command until a signal or a fault ends it. `output` leaves as failures are to be shown.
pub fn run(args: Box<ServeArgs>, output: &mut Output) -> Result<(), Failure> {
    let (config, logging) = config::load(&args)?;
    if args.check {
        return output.show(&config.report());
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
    let ended = runtime.block_on(serve(config, *output));
    runtime.shutdown_timeout(THREADS_PATIENCE);
    ended
}

async fn serve(config: Config, output: Output) -> Result<(), Failure> {
    // Before anything that could take long: a signal during the start must not be lost.
    let mut signals = Signals::listen()?;
    let identity = Identity::node(config.cluster.clone(), config.node_id);
    let (credentials, certs) = match &config.certs {
        Some(dir) => (given_credentials(dir, &identity)?, dir.clone()),
        None => own_certs::open(&config.data_dir, &identity)?,
    };
    if let Some(address) = config.metrics {
        metrics::install(address)?;
        tracing::info!(%address, "metrics are offered under /metrics");
    }
    let quic = QuicSettings {
        busy_poll: config.busy_poll,
        ..QuicSettings::default()
    };
    let transport = QuicTransport::bind(Some(config.listen), &credentials, quic)?;
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
    let address = transport.local_address().unwrap_or(config.listen);
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
        Some(fault) => {
            let reason = fault.unwrap_or_else(|| "its part in the cluster ended without a reason".to_owned());
            tracing::error!(%reason, "a fault ended the node");
            Err(
                Failure::failed(format!("a fault ended node {}: {reason}", config.node_id))
                    .hint("its files are as they were; docs/operations.md says what to do"),
            )
        }
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

/// Ends the node with grace; a second signal ends it without.
async fn stop(node: &Node, signals: &mut Signals) -> Result<(), Failure> {
    tokio::select! {
        report = node.shutdown() => {
            if report.leadership_moved == Some(false) {
                tracing::warn!("no other node took the leadership over in time: an election follows");
            }
            if !report.drained {
                tracing::warn!("not all tasks ended in time");
            }
            tracing::info!("stopped");
            Ok(())
        }
        () = signals.stop_again() => Err(Failure::failed("stopped at once, at a second signal")),
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
    let note = Note {
        cluster: identity.cluster.to_string(),
        node: identity.node_id().unwrap_or_default(),
        address: reachable(address).to_string(),
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
        let message = error.to_string();
        match error {
            BindError::AddressInUse { address } => Failure::refused(format!("--listen: {message}"))
                .hint(format!("--listen {}:0 takes any free port", address.ip())),
            BindError::Address { .. } => Failure::refused(format!("--listen: {message}")),
            _ => Failure::refused(message),
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let message = error.to_string();
        match error {
            StartError::Fault(_) => Failure::failed(format!("the node did not start: {message}")),
            _ => Failure::refused(format!("the node did not start: {message}")),
        }
    }
}
