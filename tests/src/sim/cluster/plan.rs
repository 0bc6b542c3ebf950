//! What a run is like: everything that is drawn from its seed before it begins, as data.
//!
//! A seed means another run as soon as the code draws otherwise; a plan written to a file means the same one
//! for as long as its format is read. Shrunk plans of failures that were found stand under `tests/plans`.
//!
//! Always: a plan of another version is refused; the same plan is the same run.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_kv::node::{Settings, Timing};
use quorate_transport::memory::LinkSettings;
use serde::{Deserialize, Serialize};

use super::draw;
use super::fault::{FaultEvent, Kind};
use crate::sim::DiskProfile;

/// The shortest segments there are: logs get many of them.
pub(super) const LOG_SEGMENT_BYTES: u64 = 65_536;

/// A run's parameters and its faults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The format's version: [`Plan::VERSION`].
    pub version: u32,
    /// Why it was kept, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// What the simulation draws from while it runs: the order of tasks, latencies, the clients' choices.
    pub seed: u64,
    /// How many nodes form the cluster.
    pub nodes: u32,
    /// How many clients.
    pub clients: u32,
    /// How many callers share a client, and with it a session. Plans that were written before any did have a client for each.
    #[serde(default = "alone")]
    pub sharing: u32,
    /// How many callers read alone, each of one node whatever it is, leader or cut off: node after node in their order.
    /// Plans that were written before there were any have none.
    #[serde(default)]
    pub readers: u32,
    /// How many keys the clients share.
    pub keys: u64,
    /// How long a client pauses between operations at most.
    #[serde(rename = "pause_max_micros", with = "micros")]
    pub pause_max: Duration,
    /// How long a client works at most until it rests. Plans that were written before clients rested have none of it.
    #[serde(default, rename = "busy_max_micros", with = "micros")]
    pub busy_max: Duration,
    /// How long it rests then at most, while faults happen; not at all for 0.
    #[serde(default, rename = "rest_max_micros", with = "micros")]
    pub rest_max: Duration,
    /// How long clients work before all faults end.
    #[serde(rename = "faulty_micros", with = "micros")]
    pub faulty: Duration,
    /// How fast each node's clocks run, in millionths; those that join later run right.
    pub clock_rates: Vec<u64>,
    /// The nodes' settings.
    pub tuning: Tuning,
    /// The network's links.
    pub links: Links,
    /// The disks.
    pub disks: Disks,
    /// The faults, by the time at which they come.
    #[serde(default)]
    pub schedule: Vec<FaultEvent>,
}

/// The settings of the nodes that runs vary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// The leader's heartbeats; elections follow after 10 to 20 of them.
    #[serde(rename = "heartbeat_micros", with = "micros")]
    pub heartbeat: Duration,
    /// See [`Settings::snapshot_entries`].
    pub snapshot_entries: u64,
    /// See [`Settings::log_entries_kept`].
    pub log_entries_kept: u64,
    /// See [`Settings::log_bytes_kept`]; plans that were written before it was drawn have the usual one.
    #[serde(default = "usual_log_bytes_kept")]
    pub log_bytes_kept: u64,
    /// See [`Settings::log_cache_bytes`].
    pub log_cache_bytes: u64,
    /// See [`Settings::durable_interval`].
    #[serde(rename = "durable_interval_micros", with = "micros")]
    pub durable_interval: Duration,
    /// See [`Settings::promote_lag_max`]; plans that were written before it was drawn have the usual one.
    #[serde(default = "usual_promote_lag_max")]
    pub promote_lag_max: u64,
    /// See [`Settings::proposals_in_flight`].
    pub proposals_in_flight: usize,
    /// What is large otherwise; plans that were written before it was drawn have the usual sizes.
    #[serde(default)]
    pub small: Small,
    /// See [`Settings::state_cache_bytes`]; plans that were written before it was drawn have a state that fits into it.
    #[serde(default = "usual_state_cache_bytes")]
    pub state_cache_bytes: usize,
    /// See [`Settings::scrub_interval`]; plans that were written before there was one have none.
    #[serde(default, rename = "scrub_interval_micros", with = "micros")]
    pub scrub_interval: Duration,
}

/// What is so large for users that a run would never reach it: drawn small, so that what happens at its border happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Small {
    /// See `Tuning::chunk_keys` of the machine.
    pub chunk_keys: usize,
    /// See `Tuning::gap_keys` of the machine.
    pub gap_keys: usize,
    /// See `Tuning::apply_keys` of the machine.
    pub apply_keys: u64,
    /// See `Tuning::page_bytes_max` of the machine.
    pub page_bytes_max: u64,
    /// See `Tuning::snapshot_chunk_bytes` of the machine.
    pub snapshot_chunk_bytes: usize,
    /// See [`Settings::sessions_max`].
    pub sessions_max: u64,
    /// See [`Settings::session_ttl`].
    #[serde(rename = "session_ttl_micros", with = "micros")]
    pub session_ttl: Duration,
    /// See [`Settings::session_idle`].
    #[serde(rename = "session_idle_micros", with = "micros")]
    pub session_idle: Duration,
    /// See [`quorate_kv::model::ReplicatedLimits::session_idle_entries`].
    pub session_idle_entries: u64,
    /// See [`quorate_kv::model::ReplicatedLimits::unanswered_max`].
    pub unanswered_max: u64,
    /// See [`Settings::keys_looked_at_max`].
    pub keys_looked_at_max: u64,
    /// See [`Settings::response_bytes_max`].
    pub response_bytes_max: u64,
    /// See [`Settings::calls_bytes_max`].
    pub calls_bytes_max: u64,
    /// See [`Settings::answers_bytes_max`].
    pub answers_bytes_max: u64,
    /// See [`Settings::state_layer_bytes`].
    pub state_layer_bytes: u64,
    /// See `Settings::apply_queue_bytes`.
    pub apply_queue_bytes: u64,
    /// See `Tuning::forget_rows` of the machine.
    pub forget_rows: usize,
    /// See [`Settings::history_kept`]; plans that were written before history was given up keep it for ever.
    #[serde(rename = "history_kept_micros", with = "micros")]
    pub history_kept: Duration,
    /// See [`Settings::history_revisions_kept`].
    pub history_revisions_kept: u64,
    /// See [`Settings::store_bytes_max`]; plans that were written before there was a limit have the usual one.
    pub store_bytes_max: u64,
    /// See `Tuning::hash_entries` of the machine.
    pub hash_entries: u64,
    /// See `Tuning::time_spacing_millis` of the machine.
    pub time_spacing_millis: u64,
    /// See [`Settings::compare_interval`].
    #[serde(rename = "compare_interval_micros", with = "micros")]
    pub compare_interval: Duration,
    /// Every so often the state file is shrunk, if it can be; never, in plans that were written before it could.
    #[serde(rename = "shrink_every_micros", with = "micros")]
    pub shrink_every: Duration,
    /// See `Tuning::recall_elsewhere` of the machine: the simulator's callers are all elsewhere.
    pub recall_elsewhere: bool,
    /// See `Tuning::run_rows` of the machine.
    pub run_rows: u64,
    /// See `Tuning::runs_merged` of the machine.
    pub runs_merged: usize,
    /// See `Tuning::merge_rows` of the machine.
    pub merge_rows: usize,
    /// See `Tuning::block_bytes` of the machine.
    pub block_bytes: usize,
}

/// A part of a node's memory that no run fills.
const USUAL_BYTES: u64 = 16 << 20;

impl Default for Small {
    fn default() -> Self {
        let settings = Settings::default();
        Self {
            chunk_keys: settings.tuning.chunk_keys,
            gap_keys: settings.tuning.gap_keys,
            apply_keys: settings.tuning.apply_keys,
            page_bytes_max: settings.tuning.page_bytes_max,
            snapshot_chunk_bytes: settings.tuning.snapshot_chunk_bytes,
            sessions_max: settings.sessions_max,
            session_ttl: settings.session_ttl,
            session_idle: settings.session_idle,
            session_idle_entries: settings.other_limits.session_idle_entries,
            unanswered_max: settings.other_limits.unanswered_max,
            keys_looked_at_max: settings.keys_looked_at_max,
            response_bytes_max: settings.response_bytes_max,
            calls_bytes_max: USUAL_BYTES,
            answers_bytes_max: USUAL_BYTES,
            state_layer_bytes: USUAL_BYTES,
            apply_queue_bytes: USUAL_BYTES,
            forget_rows: settings.tuning.forget_rows,
            history_kept: Duration::ZERO,
            history_revisions_kept: settings.history_revisions_kept,
            store_bytes_max: settings.store_bytes_max,
            hash_entries: settings.tuning.hash_entries,
            time_spacing_millis: settings.tuning.time_spacing_millis,
            compare_interval: settings.compare_interval,
            shrink_every: Duration::ZERO,
            recall_elsewhere: false,
            run_rows: settings.tuning.run_rows,
            runs_merged: settings.tuning.runs_merged,
            merge_rows: settings.tuning.merge_rows,
            block_bytes: settings.tuning.block_bytes,
        }
    }
}

/// The network's links while no fault makes them worse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Links {
    /// The shortest time that a message travels.
    #[serde(rename = "latency_min_micros", with = "micros")]
    pub latency_min: Duration,
    /// The longest.
    #[serde(rename = "latency_max_micros", with = "micros")]
    pub latency_max: Duration,
    /// How many of a million messages are lost on each attempt.
    pub loss_per_million: u32,
}

/// The disks while no fault makes them worse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disks {
    /// The usual most of a sync.
    #[serde(rename = "sync_max_micros", with = "micros")]
    pub sync_max: Duration,
    /// In how many thousandths of the syncs the disk stalls.
    pub stall_permille: u64,
    /// Whether a lost write to the log may leave anything, not only what was there before.
    pub garbage_in_log: bool,
}

/// A plan's file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The operating system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        #[source]
        error: std::io::Error,
    },
    /// The file is of another release.
    #[error(
        "{} is a plan of version {found}, this release reads version {}: run the release that wrote it, or \
         shrink the seed again", path.display(), Plan::VERSION
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// The file is no plan.
    #[error("{} is not a plan: {detail}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was expected, and where.
        detail: String,
    },
    /// The plan cannot be written as a file.
    #[error("the plan cannot be written: {detail}")]
    Unwritable {
        /// Why.
        detail: String,
    },
}

impl Plan {
    /// Rises with every change after which older files would be misread.
    pub const VERSION: u32 = 1;

    /// The plan that a seed draws: its own mix of faults, sizes and timings.
    pub fn of_seed(seed: u64) -> Self {
        draw::plan(seed, None)
    }

    /// The same with faults of one kind alone.
    pub fn of_seed_with_only(seed: u64, kind: Kind) -> Self {
        draw::plan(seed, Some(kind))
    }

    /// Reads a plan.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn read(path: &Path) -> Result<Self, PlanError> {
        let text = fs::read_to_string(path).map_err(|error| PlanError::Io {
            path: path.to_owned(),
            error,
        })?;
        let malformed = |error: toml::de::Error| PlanError::Malformed {
            path: path.to_owned(),
            detail: error.to_string(),
        };
        // The version is read by itself: what else another version holds is not for this release to judge.
        let table: toml::Table = text.parse().map_err(malformed)?;
        let version = table.get("version").and_then(toml::Value::as_integer);
        match version {
            Some(version) if version == i64::from(Plan::VERSION) => {}
            Some(found) => {
                return Err(PlanError::Version {
                    path: path.to_owned(),
                    found,
                });
            }
            None => {
                return Err(PlanError::Malformed {
                    path: path.to_owned(),
                    detail: "it has no version".to_owned(),
                });
            }
        }
        let plan: Plan = toml::from_str(&text).map_err(malformed)?;
        plan.check().map_err(|detail| PlanError::Malformed {
            path: path.to_owned(),
            detail,
        })?;
        Ok(plan)
    }

    /// What would make a run meaningless.
    fn check(&self) -> Result<(), String> {
        if !(1..=9).contains(&self.nodes) {
            return Err(format!("nodes is {}; it must be 1 to 9", self.nodes));
        }
        if self.clock_rates.len() != self.nodes as usize {
            let rates = self.clock_rates.len();
            return Err(format!("clock_rates has {rates} rates for {} nodes", self.nodes));
        }
        if let Some(rate) = self.clock_rates.iter().find(|r| !(1..=10_000_000).contains(*r)) {
            return Err(format!("a clock rate is {rate}; it must be 1 to 10,000,000"));
        }
        if self.sharing == 0 {
            return Err("sharing is 0; it must be at least 1".to_owned());
        }
        if self.keys == 0 {
            return Err("keys is 0; it must be at least 1".to_owned());
        }
        if self.links.latency_max < self.links.latency_min {
            return Err("links.latency_max_micros is below links.latency_min_micros".to_owned());
        }
        let wrong = self.settings().check().err().unwrap_or_default();
        match wrong.first() {
            None => Ok(()),
            Some(wrong) => Err(format!("tuning: {wrong}")),
        }
    }

    /// Writes it to a file.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn write(&self, path: &Path) -> Result<(), PlanError> {
        fs::write(path, self.to_text()?).map_err(|error| PlanError::Io {
            path: path.to_owned(),
            error,
        })
    }

    /// As a file holds it.
    ///
    /// # Errors
    /// When a number does not fit the format: a seed above 2^63.
    pub fn to_text(&self) -> Result<String, PlanError> {
        toml::to_string(self).map_err(|error| PlanError::Unwritable {
            detail: error.to_string(),
        })
    }

    /// Whether nothing can go wrong in it, so that nothing may.
    pub fn is_calm(&self) -> bool {
        self.schedule.is_empty() && self.links.loss_per_million == 0 && self.disks.stall_permille == 0
    }

    /// The nodes' settings.
    pub fn settings(&self) -> Settings {
        let heartbeat = self.tuning.heartbeat;
        let mut settings = Settings::default();
        settings.timing = Timing {
            heartbeat,
            failover_min: heartbeat * 10,
            failover_max: heartbeat * 20,
        };
        settings.snapshot_entries = self.tuning.snapshot_entries;
        settings.log_entries_kept = self.tuning.log_entries_kept;
        settings.log_bytes_kept = Some(self.tuning.log_bytes_kept);
        settings.log_segment_bytes = LOG_SEGMENT_BYTES;
        // Room for each part that is drawn, whatever it was when the plan was written.
        settings.memory_bytes = 2 << 30;
        settings.log_cache_bytes = Some(self.tuning.log_cache_bytes);
        settings.state_cache_bytes = Some(self.tuning.state_cache_bytes as u64);
        settings.scrub_interval = self.tuning.scrub_interval;
        settings.durable_interval = self.tuning.durable_interval;
        settings.promote_lag_max = self.tuning.promote_lag_max;
        settings.proposals_in_flight = self.tuning.proposals_in_flight;
        let small = &self.tuning.small;
        settings.tuning.chunk_keys = small.chunk_keys;
        settings.tuning.gap_keys = small.gap_keys;
        settings.tuning.apply_keys = small.apply_keys;
        settings.tuning.page_bytes_max = small.page_bytes_max;
        settings.tuning.snapshot_chunk_bytes = small.snapshot_chunk_bytes;
        settings.sessions_max = small.sessions_max;
        settings.session_ttl = small.session_ttl;
        settings.session_idle = small.session_idle;
        settings.other_limits.session_idle_entries = small.session_idle_entries;
        settings.other_limits.unanswered_max = small.unanswered_max;
        settings.keys_looked_at_max = small.keys_looked_at_max;
        settings.response_bytes_max = small.response_bytes_max;
        settings.calls_bytes_max = Some(small.calls_bytes_max);
        settings.answers_bytes_max = Some(small.answers_bytes_max);
        settings.state_layer_bytes = Some(small.state_layer_bytes);
        settings.apply_queue_bytes = Some(small.apply_queue_bytes);
        settings.tuning.forget_rows = small.forget_rows;
        settings.history_kept = small.history_kept;
        settings.history_revisions_kept = small.history_revisions_kept;
        settings.store_bytes_max = small.store_bytes_max;
        settings.tuning.hash_entries = small.hash_entries;
        settings.tuning.time_spacing_millis = small.time_spacing_millis;
        settings.compare_interval = small.compare_interval;
        // However little is worth it: the smallest file is many times larger than what it holds here.
        settings.tuning.shrink_look_millis =
            u64::try_from(small.shrink_every.as_millis()).unwrap_or(u64::MAX);
        settings.tuning.shrink_worth_bytes = 0;
        settings.tuning.recall_elsewhere = small.recall_elsewhere;
        settings.shrink_at = if small.shrink_every.is_zero() { 0 } else { 2 };
        if small.shrink_every.is_zero() {
            settings.tuning.shrink_look_millis = 60_000;
        }
        settings.tuning.run_rows = small.run_rows;
        settings.tuning.rest_rows = settings.tuning.rest_rows.min(small.run_rows);
        settings.tuning.runs_merged = small.runs_merged;
        settings.tuning.merge_rows = small.merge_rows;
        settings.tuning.block_bytes = small.block_bytes;
        settings
    }

    pub(super) fn link_settings(&self) -> LinkSettings {
        LinkSettings {
            latency_min: self.links.latency_min,
            latency_max: self.links.latency_max,
            loss_per_million: self.links.loss_per_million,
            retransmission: self.links.latency_min * 3,
            ..LinkSettings::default()
        }
    }

    pub(super) fn disk_profile(&self) -> DiskProfile {
        DiskProfile {
            sync_max: self.disks.sync_max,
            stall_permille: self.disks.stall_permille,
            stall_max: Duration::from_millis(500),
            garbage_in: if self.disks.garbage_in_log {
                vec!["/log/"]
            } else {
                Vec::new()
            },
            ..DiskProfile::default()
        }
    }
}

fn alone() -> u32 {
    1
}

fn usual_state_cache_bytes() -> usize {
    1 << 20
}

fn usual_promote_lag_max() -> u64 {
    Settings::default().promote_lag_max
}

fn usual_log_bytes_kept() -> u64 {
    1 << 30
}

/// The links once all faults have ended.
pub(super) fn good_links() -> LinkSettings {
    LinkSettings::latency(Duration::from_micros(200), Duration::from_micros(400))
}

/// The disks once all faults have ended.
pub(super) fn good_disk() -> DiskProfile {
    DiskProfile::default()
}

/// Durations as whole microseconds, which is what a plan's file says.
pub(super) mod micros {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        let micros = u64::try_from(duration.as_micros());
        serializer.serialize_u64(micros.map_err(serde::ser::Error::custom)?)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_micros)
    }
}
