//! What `quorate serve` runs with: flags over variables over a file over defaults, checked as a whole.
//!
//! Always: a configuration is refused with every fault that it has, or none of it is used.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use quorate_kv::node::{InvalidSettings, Profile, Settings};
use quorate_transport::quic::BUSY_POLL_MAX;
use quorate_transport::{Address, ClusterId, ListenAddress};
use serde::Serialize;
use toml::Value;

use super::checked_certs::Certificates;
use super::descriptors;
use super::keys::{Fault, Keys, kind};
use super::listen_at::ListenAt;
use crate::cli::ServeArgs;
use crate::failure::Failure;
use crate::logging::{Format, Logging};
use crate::output::Report;
use crate::text::{exact_size, with_brackets};

/// Where a node listens when nothing is said: this machine alone reaches it.
pub const LISTEN: &str = "127.0.0.1:7001";

/// How many worker threads a node has when nothing is said. One drives more than the disks of most machines take, and
/// only a thread that is alone knows that the next datagram is its own, so only it may look for it.
const WORKERS: usize = 1;

/// How long a node's one worker thread looks for the next datagram when nothing is said: a sync of a fast disk, and the
/// hops around it.
const BUSY_POLL: Duration = Duration::from_micros(500);

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// Where the node keeps its files.
    pub data_dir: PathBuf,
    /// The cluster's name.
    pub cluster: ClusterId,
    /// The node's id.
    pub node_id: u64,
    /// Where it listens.
    pub listen: ListenAt,
    /// Where others reach it, if not there.
    pub advertise: Option<String>,
    /// All nodes of a new cluster; empty for a node that forms one alone.
    pub peers: BTreeMap<u64, String>,
    /// Wait to be added.
    pub join: bool,
    /// The directory of certificates; `None`: its own making.
    pub certs: Option<PathBuf>,
    /// Where metrics are offered.
    pub metrics: Option<ListenAt>,
    /// Worker threads.
    pub workers: usize,
    /// How long a worker thread looks for the next datagram before it sleeps.
    pub busy_poll: Duration,
    /// What is logged.
    pub log: Log,
    /// How many files the process may have open; `None` for no limit.
    pub open_files_max: Option<u64>,
    /// The node's settings.
    pub settings: Settings,
}

/// What is logged, as it was asked for.
#[derive(Debug, Clone, Serialize)]
pub struct Log {
    /// A level or a filter.
    pub level: String,
    /// How a line looks.
    pub format: Format,
}

/// What a configuration amounts to, under the names of its keys.
#[derive(Debug, Serialize)]
pub struct ConfigReport {
    data_dir: PathBuf,
    cluster: String,
    node_id: u64,
    listen: String,
    advertise: Option<String>,
    peers: BTreeMap<u64, String>,
    join: bool,
    certs: Option<PathBuf>,
    /// What was found there; `None` where they were not looked at, or the first start makes them.
    certificates: Option<Certificates>,
    metrics: Option<String>,
    workers: usize,
    busy_poll: Duration,
    log: Log,
    settings: Settings,
}

impl Config {
    /// What it amounts to.
    pub fn report(&self) -> ConfigReport {
        ConfigReport {
            data_dir: self.data_dir.clone(),
            cluster: self.cluster.to_string(),
            node_id: self.node_id,
            listen: self.listen.to_string(),
            advertise: self.advertise.clone(),
            peers: self.peers.clone(),
            join: self.join,
            certs: self.certs.clone(),
            certificates: None,
            metrics: self.metrics.as_ref().map(ListenAt::to_string),
            workers: self.workers,
            busy_poll: self.busy_poll,
            log: self.log.clone(),
            settings: self.settings.clone(),
        }
    }
}

impl ConfigReport {
    /// The same with the certificates that were found.
    pub fn with_certificates(self, certificates: Option<Certificates>) -> Self {
        Self { certificates, ..self }
    }
}

impl Report for ConfigReport {
    fn text(&self) -> String {
        let or = |value: Option<String>, otherwise: &str| value.unwrap_or_else(|| otherwise.to_owned());
        let shown = |path: &PathBuf| path.display().to_string();
        let peers: Vec<String> = self
            .peers
            .iter()
            .map(|(id, address)| format!("{id}={address}"))
            .collect();
        let timing = &self.settings.timing;
        let part = match (self.join, peers.is_empty()) {
            (true, _) => "waits to be added to a cluster".to_owned(),
            (false, true) => "alone".to_owned(),
            (false, false) => peers.join(","),
        };
        let lines = [
            ("data_dir", shown(&self.data_dir)),
            ("cluster", self.cluster.clone()),
            ("node_id", self.node_id.to_string()),
            ("listen", self.listen.clone()),
            ("advertise", or(self.advertise.clone(), "as listened on")),
            ("peers", part),
            ("certs", or(self.certs.as_ref().map(shown), "of its own making")),
            (
                "valid",
                or(
                    self.certificates.as_ref().map(Certificates::text),
                    "from the first start on",
                ),
            ),
            ("metrics", or(self.metrics.clone(), "off")),
            ("workers", self.workers.to_string()),
            (
                "busy_poll",
                match self.busy_poll {
                    Duration::ZERO => "off".to_owned(),
                    time => format!("{time:?}"),
                },
            ),
            (
                "timing",
                format!(
                    "heartbeat {:?}, another leader within {:?} to {:?}",
                    timing.heartbeat, timing.failover_min, timing.failover_max
                ),
            ),
        ];
        let lines: String = lines
            .iter()
            .map(|(key, value)| format!("\n  {key:<10} {value}"))
            .collect();
        format!("the configuration is sound:{lines}")
    }
}

/// The flags of `quorate serve`, with where each came from.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// The flags.
    pub args: &'a ServeArgs,
    /// Those that a variable gave: their ids.
    pub variables: &'a BTreeSet<String>,
}

impl Given<'_> {
    /// What to call a flag in a message: the variable, where the value came from there.
    fn name(&self, id: &str) -> String {
        match self.variables.contains(id) {
            true => format!("QUORATE_{}", id.to_uppercase()),
            false => format!("--{}", id.replace('_', "-")),
        }
    }

    /// Whether the configuration is only to be checked.
    pub fn check(&self) -> Result<bool, Failure> {
        match self.args.check.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => {
                let name = self.name("check");
                Err(Failure::refused(format!(
                    "{name}: expected true or false, found {other:?}"
                )))
            }
        }
    }
}

/// Reads the file that the flags name, lays the flags over it and checks the whole, against the files that the process may
/// open too, whose limit is raised first.
pub fn load(given: Given<'_>) -> Result<(Config, Logging), Failure> {
    let table = match given.args.config.as_deref() {
        None => toml::Table::new(),
        Some("") => {
            let name = given.name("config");
            return Err(Failure::refused(format!(
                "{name}: it is empty; name a file, or leave it out"
            )));
        }
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| {
                Failure::refused(format!("the configuration {path} cannot be read: {error}"))
            })?;
            text.parse().map_err(|error: toml::de::Error| {
                Failure::refused(format!("the configuration {path} is no TOML: {error}"))
            })?
        }
    };
    read(table, given, descriptors::raise_limit()).map_err(|faults| {
        let count = match faults.len() {
            1 => "one fault".to_owned(),
            many => format!("{many} faults"),
        };
        Failure::refused(format!("the configuration has {count}"))
            .details(faults.iter().map(ToString::to_string))
    })
}

/// What [`load`] makes of the text of a file, without flags; `None` for what is no TOML.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn read_text(text: &str) -> Option<Result<Config, Vec<String>>> {
    let table: toml::Table = text.parse().ok()?;
    let given = Given {
        args: &ServeArgs::default(),
        variables: &BTreeSet::new(),
    };
    let config = read(table, given, None).map(|(config, _)| config);
    Some(config.map_err(|faults| faults.iter().map(ToString::to_string).collect()))
}

/// `open_files_max`: how many files the process may have open.
fn read(
    table: toml::Table,
    given: Given<'_>,
    open_files_max: Option<u64>,
) -> Result<(Config, Logging), Vec<Fault>> {
    let mut keys = Keys::new(table);
    let args = given.args;
    let flags = [
        ("data_dir", "data_dir", &args.data_dir),
        ("cluster", "cluster", &args.cluster),
        ("node_id", "node_id", &args.node_id),
        ("listen", "listen", &args.listen),
        ("advertise", "advertise", &args.advertise),
        ("join", "join", &args.join),
        ("certs", "certs", &args.certs),
        ("timing.profile", "profile", &args.profile),
        ("metrics", "metrics", &args.metrics),
        ("log.level", "log", &args.log),
        ("log.format", "log_format", &args.log_format),
        ("workers", "workers", &args.workers),
        ("busy_poll", "busy_poll", &args.busy_poll),
    ];
    for (key, id, value) in flags {
        if let Some(value) = value {
            keys.flag(key, given.name(id), value);
        }
    }
    if let Some(list) = &args.peers {
        overlay_peers(&mut keys, &given.name("peers"), list);
    }

    let data_dir = keys.text("data_dir").map(PathBuf::from);
    if data_dir.is_none() {
        keys.fault(
            "data_dir",
            "a node needs a directory for its files: give --data-dir, or the key in the file",
        );
    }
    let cluster = keys.text("cluster").unwrap_or_else(|| "quorate".to_owned());
    let cluster = ClusterId::new(&cluster)
        .map_err(|error| keys.fault("cluster", error))
        .ok();
    let node_id = keys.number_from("node_id", 1).unwrap_or(1);
    if node_id == 0 {
        keys.fault("node_id", "0 is no id; the first is 1");
    }
    let listen = keys.text("listen").unwrap_or_else(|| LISTEN.to_owned());
    let listen = listen_at(&mut keys, "listen", &listen);
    let advertise = keys
        .text("advertise")
        .and_then(|text| host_and_port(&mut keys, "advertise", text));
    let peers = peers(&mut keys);
    let join = keys.flag_value("join").unwrap_or(false);
    let certs = keys.text("certs").map(PathBuf::from);
    let metrics = keys
        .text("metrics")
        .and_then(|text| listen_at(&mut keys, "metrics", &text));
    let workers = workers(&mut keys);
    let busy_poll = busy_poll(&mut keys, workers);
    let logging = logging(&mut keys);
    let settings = settings(&mut keys);
    let (kept, segment) = (settings.log_bytes_kept(), settings.log_segment_bytes);
    if let Err(reason) = descriptors::check_log(kept, segment, open_files_max) {
        keys.fault("store.log_segment_bytes", reason);
    }

    if !peers.is_empty() && !peers.contains_key(&node_id) {
        let known: Vec<String> = peers.keys().map(u64::to_string).collect();
        let known = known.join(", ");
        keys.fault(
            "peers",
            format!("node {node_id} (node_id) is not in the list of nodes {known}; it names every node"),
        );
    }
    if let Some(address) = &listen
        && address.is_everywhere()
        && advertise.is_none()
        && peers.is_empty()
        && !join
    {
        keys.fault(
            "advertise",
            format!("a node that listens on all addresses ({address}) must be told how others reach it"),
        );
    }
    if join && !peers.is_empty() {
        keys.fault(
            "join",
            "a node that joins is given no peers: quorate member add tells it",
        );
    }
    if certs.is_none() && (peers.len() > 1 || join) {
        keys.fault(
            "certs",
            "nodes of one cluster need certificates of one authority: make them with quorate certs init and \
             quorate certs issue",
        );
    }
    let faults = keys.finish();
    match (data_dir, cluster, listen, logging) {
        (Some(data_dir), Some(cluster), Some(listen), Some(logging)) if faults.is_empty() => {
            let (log, logging) = logging;
            let config = Config {
                data_dir,
                cluster,
                node_id,
                listen,
                advertise,
                peers,
                join,
                certs,
                metrics,
                workers,
                busy_poll,
                log,
                open_files_max,
                settings,
            };
            Ok((config, logging))
        }
        _ => Err(faults),
    }
}

/// `1=a:7001,2=b:7001` in place of the file's section. A list without a node is none: taken for one, it would start a
/// cluster of its own.
fn overlay_peers(keys: &mut Keys, flag: &str, list: &str) {
    if list.trim().is_empty() {
        return keys.fault(
            flag,
            "it is empty: name all nodes as ID=HOST:PORT,..., or leave it out",
        );
    }
    let mut entries = Vec::new();
    for entry in list.split(',').map(str::trim) {
        match entry.split_once('=') {
            Some((id, address)) => entries.push((id.trim().to_owned(), address.trim().to_owned())),
            None => keys.fault(flag, format!("{entry:?} is not of the form ID=HOST:PORT")),
        }
    }
    keys.replace_section("peers", flag, entries);
}

fn peers(keys: &mut Keys) -> BTreeMap<u64, String> {
    let mut peers = BTreeMap::new();
    for (id, value) in keys.section("peers") {
        let key = format!("peers.{id}");
        let number = id.parse::<u64>().ok().filter(|number| *number > 0);
        if number.is_none() {
            keys.fault(
                &key,
                format!("{id:?} is no node's id; ids are whole numbers from 1 on"),
            );
        }
        let address = match value {
            Value::String(text) => host_and_port(keys, &key, text),
            other => {
                keys.fault(&key, format!("expected \"host:port\", found {}", kind(&other)));
                None
            }
        };
        if let (Some(number), Some(address)) = (number, address)
            && peers.insert(number, address).is_some()
        {
            keys.fault(&key, format!("node {number} stands in the list twice"));
        }
    }
    let mut seen: BTreeMap<&String, u64> = BTreeMap::new();
    let mut twice = Vec::new();
    for (id, address) in &peers {
        if let Some(other) = seen.insert(address, *id) {
            twice.push((*id, other, address.clone()));
        }
    }
    for (id, other, address) in twice {
        keys.fault(
            &format!("peers.{id}"),
            format!("{address} is node {other}'s address already"),
        );
    }
    peers
}

fn host_and_port(keys: &mut Keys, key: &str, text: String) -> Option<String> {
    match text.parse::<Address>() {
        Ok(address) => Some(address.to_string()),
        Err(error) => {
            keys.fault(key, with_brackets(error));
            None
        }
    }
}

fn listen_at(keys: &mut Keys, key: &str, text: &str) -> Option<ListenAt> {
    let listen = text.parse::<ListenAddress>();
    listen
        .map_err(|error| keys.fault(key, with_brackets(error)))
        .ok()
        .map(ListenAt)
}

fn workers(keys: &mut Keys) -> usize {
    match keys.number_from("workers", 1) {
        None => WORKERS,
        Some(number) if (1..=1024).contains(&number) => usize::try_from(number).unwrap_or(WORKERS),
        Some(number) => {
            keys.fault("workers", format!("{number} is outside 1 to 1,024"));
            WORKERS
        }
    }
}

/// A thread that looks for datagrams takes up to a processor: by default only where the log and the state have another.
fn busy_poll(keys: &mut Keys, workers: usize) -> Duration {
    match keys.duration("busy_poll") {
        None if workers == 1 && crate::runtime::processors() > 1 => BUSY_POLL,
        None => Duration::ZERO,
        Some(time) if time > BUSY_POLL_MAX => {
            keys.fault(
                "busy_poll",
                format!("{time:?} is too long; it must be at most {BUSY_POLL_MAX:?}"),
            );
            Duration::ZERO
        }
        Some(time) if workers > 1 && !time.is_zero() => {
            keys.fault(
                "busy_poll",
                format!("it needs one worker thread, and there would be {workers}: set workers = 1, or leave it out"),
            );
            Duration::ZERO
        }
        Some(time) => time,
    }
}

fn logging(keys: &mut Keys) -> Option<(Log, Logging)> {
    let level = keys.text("log.level").unwrap_or_else(|| "info".to_owned());
    let format = match keys.text("log.format").as_deref() {
        None | Some("text") => Some(Format::Text),
        Some("json") => Some(Format::Json),
        Some(other) => {
            keys.fault("log.format", format!("{other:?} is neither text nor json"));
            None
        }
    };
    match Logging::new(&level, format.unwrap_or(Format::Text)) {
        Ok(logging) => format.map(|format| (Log { level, format }, logging)),
        Err(reason) => {
            keys.fault(
                "log.level",
                format!("{level:?}: {reason}; levels are error, warn, info, debug and trace"),
            );
            None
        }
    }
}

fn settings(keys: &mut Keys) -> Settings {
    let mut settings = Settings::default();
    if let Some(name) = keys.text("timing.profile") {
        match Profile::ALL.into_iter().find(|profile| profile.name() == name) {
            Some(profile) => settings.timing = profile.timing(),
            None => {
                let known: Vec<&str> = Profile::ALL.into_iter().map(Profile::name).collect();
                keys.fault(
                    "timing.profile",
                    format!("{name:?} is none of {}", known.join(", ")),
                );
            }
        }
    }
    let timing = &mut settings.timing;
    set(&mut timing.heartbeat, keys.duration("timing.heartbeat"));
    set(&mut timing.failover_min, keys.duration("timing.failover_min"));
    set(&mut timing.failover_max, keys.duration("timing.failover_max"));
    let limits = &mut settings.limits;
    set(
        &mut limits.key_bytes_max,
        memory(keys.size("limits.key_bytes_max")),
    );
    set(
        &mut limits.value_bytes_max,
        memory(keys.size("limits.value_bytes_max")),
    );
    set(
        &mut limits.txn_bytes_max,
        memory(keys.size("limits.txn_bytes_max")),
    );
    set(&mut limits.txn_ops_max, memory(keys.number("limits.txn_ops_max")));
    set(
        &mut settings.snapshot_entries,
        keys.number("store.snapshot_entries"),
    );
    set(
        &mut settings.log_entries_kept,
        keys.number("store.log_entries_kept"),
    );
    settings.log_bytes_kept = keys.size("store.log_bytes_kept");
    set(&mut settings.disk_bytes_max, keys.size("store.disk_bytes_max"));
    set(&mut settings.memory_bytes, keys.size("store.memory_bytes"));
    for (part, name) in [
        (&mut settings.log_cache_bytes, "store.log_cache_bytes"),
        (&mut settings.state_cache_bytes, "store.state_cache_bytes"),
        (&mut settings.state_layer_bytes, "store.state_layer_bytes"),
        (&mut settings.proposals_bytes_max, "store.proposals_bytes_max"),
        (&mut settings.calls_bytes_max, "store.calls_bytes_max"),
        (&mut settings.answers_bytes_max, "store.answers_bytes_max"),
    ] {
        *part = keys.size(name);
    }
    set(
        &mut settings.log_segment_bytes,
        keys.size("store.log_segment_bytes"),
    );
    set(
        &mut settings.durable_interval,
        keys.duration("store.durable_interval"),
    );
    set(
        &mut settings.scrub_interval,
        keys.duration("store.scrub_interval"),
    );
    set(
        &mut settings.promote_lag_max,
        keys.number("store.promote_lag_max"),
    );
    set(
        &mut settings.proposals_in_flight,
        memory(keys.number("store.proposals_in_flight")),
    );
    set(&mut settings.read_time_max, keys.duration("store.read_time_max"));
    set(&mut settings.history_kept, keys.duration("store.history_kept"));
    set(
        &mut settings.history_revisions_kept,
        keys.number("store.history_revisions_kept"),
    );
    set(&mut settings.store_bytes_max, keys.size("store.store_bytes_max"));
    set(
        &mut settings.shrink_at,
        keys.number("store.shrink_at")
            .map(|times| u32::try_from(times).unwrap_or(u32::MAX)),
    );
    set(
        &mut settings.compare_interval,
        keys.duration("store.compare_interval"),
    );
    set(&mut settings.session_ttl, keys.duration("store.session_ttl"));
    set(&mut settings.sessions_max, keys.number("store.sessions_max"));
    set(&mut settings.session_idle, keys.duration("store.session_idle"));
    set(
        &mut settings.unanswered_bytes_max,
        keys.size("store.unanswered_bytes_max"),
    );
    set(
        &mut settings.response_bytes_max,
        keys.size("store.response_bytes_max"),
    );
    set(
        &mut settings.keys_looked_at_max,
        keys.number("store.keys_looked_at_max"),
    );
    set(
        &mut settings.keys_changed_max,
        keys.number("store.keys_changed_max"),
    );
    if let Err(wrong) = settings.check() {
        for invalid in wrong {
            match invalid {
                InvalidSettings::OutOfRange {
                    setting,
                    value,
                    bounds,
                } => {
                    let section = if setting.contains('.') { "" } else { "store." };
                    let key = format!("{section}{setting}");
                    let value = match keys.given(&key) {
                        Some(given) => given.to_owned(),
                        // A default that another setting makes wrong.
                        None if setting.contains("bytes") => exact_size(value),
                        None => value.to_string(),
                    };
                    keys.fault(&key, format!("{value} is out of range; it must be {bounds}"));
                }
                InvalidSettings::Timing(timing) => keys.fault("timing", timing),
                // A later kind names its setting itself.
                other => keys.fault("store", other),
            }
        }
    }
    settings
}

fn set<T>(setting: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *setting = value;
    }
}

/// More than the machine can address is outside every range that is checked later.
fn memory(value: Option<u64>) -> Option<usize> {
    value.map(|value| usize::try_from(value).unwrap_or(usize::MAX))
}
