//! Metrics for Prometheus: what each is called, means and is measured in; what a node's status gives.
//!
//! The crates below count and time what they do; this module describes it all in one place, and reads from a node's
//! status what is a state and no event. `endpoint` offers it.
//!
//! Always: a metric that any crate records is described here; a counter whose first rise is news is there from the start,
//! with 0, since Prometheus sees no rise in a counter that appears.

mod endpoint;
pub(crate) mod memory;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use quorate_kv::Node;
use quorate_kv::model::{LogIndex, NodeId, Term};
use quorate_kv::node::{NodeRole, Status};

use crate::failure::Failure;
use endpoint::Endpoint;

/// How often a node's status is read. A leadership that lasts less is counted by its term alone.
const POLL: Duration = Duration::from_millis(250);

/// From 50 µs, a fast disk's sync, to 10 s, a lost quorum; each bound about twice the one before.
const SECONDS: [f64; 18] = [
    0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0,
    5.0, 10.0,
];

/// Batches, from one to as many as one transaction's limit.
const COUNTS: [f64; 12] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1_024.0, 8_192.0, 131_072.0,
];

/// Metrics that are offered; dropped, they are no more.
#[derive(Debug)]
#[must_use = "dropped at once, nothing is offered"]
pub struct Offered {
    _endpoint: Endpoint,
}

/// Offers metrics at an address. Must be called inside a runtime, once in a process. An address that another program has,
/// or that the machine does not have yet, may be there later.
pub fn install(address: SocketAddr) -> Result<Offered, Failure> {
    let refused = |error: std::io::Error| {
        let message = format!("--metrics: cannot listen on {address}: {error}");
        match error.kind() {
            ErrorKind::PermissionDenied => Failure::refused(message).hint("choose a port from 1024 on"),
            ErrorKind::AddrInUse => {
                Failure::unavailable(message).hint("stop who listens there, or choose another port")
            }
            _ => Failure::unavailable(message),
        }
    };
    let listener = TcpListener::bind(address).map_err(refused)?;
    let page = recorder().map_err(|error| Failure::failed(format!("metrics: {error}")))?;
    describe();
    begin_at_zero();
    let endpoint = Endpoint::open(listener, page).map_err(refused)?;
    Ok(Offered { _endpoint: endpoint })
}

/// Takes what is recorded in this process from now on.
fn recorder() -> Result<PrometheusHandle, BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_entries".to_owned()), &COUNTS)?
        .set_buckets_for_metric(Matcher::Suffix("_commands".to_owned()), &COUNTS)?
        .set_buckets_for_metric(Matcher::Suffix("_readers".to_owned()), &COUNTS)?
        .install_recorder()
}

/// Shows counters that count what is rare before it happens. Those of the transport and of [`watch`] show themselves.
fn begin_at_zero() {
    for name in [
        crate::logging::LOST,
        "quorate_client_streams_cut_total",
        "quorate_client_streams_refused_total",
        "quorate_client_messages_malformed_total",
        "quorate_proposals_refused_total",
        "quorate_sessions_evicted_total",
        "quorate_sessions_refused_total",
    ] {
        counter!(name).increment(0);
    }
    for reason in ["another_directory", "another_cluster", "removed"] {
        counter!("quorate_identity_refused_total", "reason" => reason).increment(0);
    }
}

/// Says of every metric what it is. docs/operations.md has the same list with what to alert on.
fn describe() {
    describe_histogram!(
        "quorate_commit_seconds",
        Unit::Seconds,
        "from a proposal's hand-over to Raft until it was committed and applied here; on leaders"
    );
    describe_histogram!(
        "quorate_proposal_commands",
        Unit::Count,
        "commands that shared one log entry; on leaders"
    );
    describe_histogram!(
        "quorate_apply_seconds",
        Unit::Seconds,
        "applying one batch of committed entries to the state file"
    );
    describe_histogram!(
        "quorate_apply_batch_entries",
        Unit::Count,
        "entries that were applied in one transaction of the state file"
    );
    describe_counter!(
        "quorate_apply_keys_visited_total",
        Unit::Count,
        "keys that the ranges of transactions visited, deleted ones that were gone by included"
    );
    describe_gauge!(
        "quorate_sessions",
        Unit::Count,
        "sessions of the cluster, as this node has applied it"
    );
    describe_counter!(
        "quorate_sessions_evicted_total",
        Unit::Count,
        "idle sessions that made room for others"
    );
    describe_counter!(
        "quorate_sessions_refused_total",
        Unit::Count,
        "sessions that were not opened: there were too many and none was idle"
    );
    describe_histogram!(
        "quorate_log_sync_seconds",
        Unit::Seconds,
        "one append to the log with its sync"
    );
    describe_histogram!(
        "quorate_log_batch_entries",
        Unit::Count,
        "entries that shared one sync of the log"
    );
    describe_histogram!(
        "quorate_state_sync_seconds",
        Unit::Seconds,
        "making the state file durable"
    );
    describe_counter!(
        "quorate_scrub_bytes_total",
        Unit::Bytes,
        "bytes of the state file and the log's older segments that the scrubber went through"
    );
    describe_gauge!(
        "quorate_scrub_last_pass_timestamp_seconds",
        Unit::Seconds,
        "when the scrubber last came to the end of the whole state and log, in seconds since 1970"
    );
    describe_histogram!(
        "quorate_heartbeat_seconds",
        Unit::Seconds,
        "from a heartbeat until its answer, or until it was given up, by node; on leaders"
    );
    describe_histogram!(
        "quorate_read_round_readers",
        Unit::Count,
        "linearizable readers that shared one confirmation of leadership"
    );
    describe_counter!(
        "quorate_snapshots_refused_total",
        "snapshots that a follower did not take, by node"
    );
    describe_counter!(
        "quorate_snapshot_sent_bytes_total",
        Unit::Bytes,
        "bytes of snapshots sent to followers"
    );
    describe_counter!(
        "quorate_snapshot_received_bytes_total",
        Unit::Bytes,
        "bytes of snapshots received from the leader"
    );
    describe_counter!(
        "quorate_proposals_refused_total",
        Unit::Count,
        "writes that found no room among those that wait, within their patience"
    );
    describe_gauge!(
        "quorate_reads_without_room",
        Unit::Count,
        "reads that wait until there is room for their answers"
    );
    describe_gauge!(
        "quorate_scans_waiting",
        Unit::Count,
        "reads of many keys that are under way or wait for their turn"
    );
    describe_counter!(
        "quorate_client_streams_refused_total",
        Unit::Count,
        "streams of clients that were ended at once, since there were as many as may be"
    );
    describe_counter!(
        "quorate_client_messages_malformed_total",
        Unit::Count,
        "messages of clients that could not be read; each ended its stream"
    );
    describe_counter!(
        "quorate_client_streams_cut_total",
        Unit::Count,
        "streams of clients that were cut, since they did not take their answers in"
    );
    describe_counter!(
        "quorate_identity_refused_total",
        Unit::Count,
        "greetings of nodes that were refused, by reason"
    );
    describe_counter!(
        "quorate_client_retries_total",
        Unit::Count,
        "attempts that clients in this process had to repeat"
    );

    describe_counter!(
        "quorate_transport_bytes_sent_total",
        Unit::Bytes,
        "bytes of messages sent, by class of traffic"
    );
    describe_counter!(
        "quorate_transport_bytes_received_total",
        Unit::Bytes,
        "bytes of messages received, by class of traffic"
    );
    describe_counter!(
        "quorate_transport_messages_sent_total",
        Unit::Count,
        "messages sent, by class of traffic"
    );
    describe_counter!(
        "quorate_transport_messages_received_total",
        Unit::Count,
        "messages received, by class of traffic"
    );
    describe_counter!(
        "quorate_transport_streams_opened_total",
        Unit::Count,
        "streams opened to peers, by class of traffic"
    );
    describe_counter!(
        "quorate_transport_streams_accepted_total",
        Unit::Count,
        "streams that peers opened, by class of traffic"
    );
    describe_counter!(
        "quorate_transport_connects_failed_total",
        Unit::Count,
        "attempts to connect that failed, by reason"
    );
    describe_counter!(
        "quorate_transport_refusals_total",
        Unit::Count,
        "connections and streams of peers that were not taken, by reason"
    );
    describe_counter!(
        "quorate_transport_validations_total",
        Unit::Count,
        "peers that had to prove their address before their handshake"
    );
    describe_gauge!(
        "quorate_transport_handshakes",
        Unit::Count,
        "handshakes of peers that are under way"
    );
    describe_gauge!(
        "quorate_transport_connections",
        Unit::Count,
        "connections that are up, by direction"
    );
    describe_counter!(
        "quorate_transport_messages_refused_total",
        Unit::Count,
        "long messages of clients for which there was no room, or that came too slowly, by class of traffic"
    );
    describe_gauge!(
        "quorate_certificate_expiry_seconds",
        Unit::Seconds,
        "when a certificate ends, in seconds of Unix time, by kind: own, authority"
    );
    describe_gauge!(
        "quorate_transport_round_trip_seconds",
        Unit::Seconds,
        "smoothed round trip of the connection to a node"
    );

    describe_counter!(
        crate::logging::LOST,
        Unit::Count,
        "lines that did not reach the log, since it was not read in time or could not be written"
    );
    describe_gauge!(
        "quorate_info",
        Unit::Count,
        "1, with the cluster, node and release as labels"
    );
    describe_gauge!(
        "quorate_has_leader",
        Unit::Count,
        "1 while this node knows a leader that has a quorum, else 0"
    );
    describe_gauge!(
        "quorate_has_quorum",
        Unit::Count,
        "1 while a quorum has confirmed a leader within a leader's lease, as far as this node has heard"
    );
    describe_gauge!(
        "quorate_quorum_age_seconds",
        Unit::Seconds,
        "how long ago a quorum was asked that has confirmed a leader since; not told by a sole voter"
    );
    describe_gauge!(
        "quorate_is_leader",
        Unit::Count,
        "1 while this node leads and has a quorum, else 0"
    );
    describe_gauge!(
        "quorate_stopped",
        Unit::Count,
        "1 after a fault or a shutdown ended this node's part, until its process ends; else 0"
    );
    describe_gauge!("quorate_term", Unit::Count, "Raft's term");
    describe_counter!(
        "quorate_leader_changes_total",
        Unit::Count,
        "how often this node saw another leader than before"
    );
    describe_counter!(
        "quorate_elections_total",
        Unit::Count,
        "terms that began while this node ran: elections held or tried"
    );
    describe_gauge!(
        "quorate_revision",
        Unit::Count,
        "the store's revision that this node has applied"
    );
    describe_gauge!(
        "quorate_oldest_revision",
        Unit::Count,
        "the oldest revision that can be read here: what was before is given up"
    );
    describe_gauge!(
        "quorate_state_file_bytes",
        Unit::Bytes,
        "the length of the state file"
    );
    describe_gauge!("quorate_records", Unit::Count, "keys that exist");
    describe_gauge!(
        "quorate_live_bytes",
        Unit::Bytes,
        "what the keys that exist count: the key twice, the value and 64 bytes each"
    );
    describe_gauge!(
        "quorate_history_bytes",
        Unit::Bytes,
        "what the versions before them, and deletions, count that this node still has"
    );
    describe_gauge!(
        "quorate_store_bytes_max",
        Unit::Bytes,
        "what both may count together; 0 for any"
    );
    describe_gauge!(
        "quorate_disk_bytes",
        Unit::Bytes,
        "what the node's files take of its disk"
    );
    describe_gauge!(
        "quorate_disk_bytes_max",
        Unit::Bytes,
        "what they may take: disk_bytes_max, or what the disk has for them where that is less"
    );
    describe_gauge!(
        "quorate_disk_full",
        Unit::Count,
        "1 from 95 % of that on, until less than 80 % are used: where this node leads it refuses what may write"
    );
    describe_gauge!(
        "quorate_memory_bytes_max",
        Unit::Bytes,
        "the memory that the node may take: memory_bytes"
    );
    describe_gauge!(
        "quorate_memory_part_bytes_max",
        Unit::Bytes,
        "what each part of it may take, by part"
    );
    describe_gauge!(
        "process_resident_memory_bytes",
        Unit::Bytes,
        "the memory that the process takes; on Linux"
    );
    describe_gauge!(
        "quorate_full",
        Unit::Count,
        "1 from 95 % of that limit until less than 80 % are used: what would grow is refused"
    );
    describe_gauge!(
        "quorate_states_that_differ",
        Unit::Count,
        "other nodes whose state differs from this node's, which most voters share"
    );
    describe_gauge!(
        "quorate_log_last_index",
        Unit::Count,
        "the last entry in this node's log"
    );
    describe_gauge!(
        "quorate_log_committed_index",
        Unit::Count,
        "the last entry that this node knows to be committed"
    );
    describe_gauge!(
        "quorate_log_applied_index",
        Unit::Count,
        "the last entry that this node has applied"
    );
    describe_gauge!(
        "quorate_log_purged_index",
        Unit::Count,
        "the last entry that is gone from this node's log"
    );
    describe_gauge!(
        "quorate_apply_lag_entries",
        Unit::Count,
        "entries that this node knows to be committed and has not applied"
    );
    describe_gauge!(
        "quorate_follow_lag_seconds",
        Unit::Seconds,
        "how old this node's state may be, as far as a quorum has confirmed; 0 on a leader with a quorum"
    );
    describe_gauge!(
        "quorate_follower_silent_seconds",
        Unit::Seconds,
        "how long ago the leader sent the last message that a node answered; told by the leader; infinite for one that never did"
    );
    describe_gauge!(
        "quorate_replication_lag_entries",
        Unit::Count,
        "entries that a follower was not yet known to have, by node; on leaders"
    );
    describe_gauge!("quorate_members", Unit::Count, "members of the cluster, by kind");
    describe_gauge!(
        "quorate_log_write_under_way_seconds",
        Unit::Seconds,
        "how long the write of the log that is under way has taken so far; 0 where none is"
    );
    describe_gauge!(
        "quorate_log_sync_p50_seconds",
        Unit::Seconds,
        "median of the log's syncs since the start"
    );
}

/// Turns a node's status into metrics until the task is dropped.
pub async fn watch(node: Node) {
    let mut last = Last::default();
    loop {
        last.publish(&node.status());
        tokio::time::sleep(POLL).await;
    }
}

/// What the status said before, for what is counted by its changes.
#[derive(Debug, Default)]
struct Last {
    leader: Option<NodeId>,
    term: Option<Term>,
    /// Whose lag was last told, so that it ends with the leadership.
    followers: BTreeSet<NodeId>,
}

impl Last {
    fn publish(&mut self, status: &Status) {
        let flag = |yes: bool| if yes { 1.0 } else { 0.0 };
        let number = |number: u64| number as f64;
        let index = |index: Option<LogIndex>| index.map_or(0.0, |index| number(index.number()));
        let labels = [
            ("cluster", status.cluster.clone()),
            ("node", status.node.to_string()),
            ("version", status.version.clone()),
        ];
        gauge!("quorate_info", &labels).set(1.0);
        // What a node says that is cut off, or has lost its quorum, is true of the past.
        let leads = status.quorum && status.role == NodeRole::Leader;
        gauge!("quorate_has_quorum").set(flag(status.quorum));
        gauge!("quorate_has_leader").set(flag(status.quorum && status.leader.is_some()));
        gauge!("quorate_is_leader").set(flag(leads));
        if let Some(confirmed) = status.confirmed {
            gauge!("quorate_quorum_age_seconds").set(confirmed.as_secs_f64());
        }
        gauge!("quorate_stopped").set(flag(status.role == NodeRole::Stopped));
        gauge!("quorate_term").set(number(status.term.number()));
        gauge!("quorate_revision").set(number(status.revision.number()));
        gauge!("quorate_oldest_revision").set(number(status.oldest.number()));
        gauge!("quorate_state_file_bytes").set(number(status.file_bytes));
        gauge!("quorate_records").set(number(status.holds.records));
        gauge!("quorate_live_bytes").set(number(status.holds.live_bytes));
        gauge!("quorate_history_bytes").set(number(status.holds.history_bytes));
        gauge!("quorate_store_bytes_max").set(number(status.store_bytes_max.unwrap_or(0)));
        gauge!("quorate_full").set(flag(status.is_full));
        if let (Some(bytes), Some(max)) = (status.disk_bytes, status.disk_bytes_max) {
            gauge!("quorate_disk_bytes").set(number(bytes));
            gauge!("quorate_disk_bytes_max").set(number(max));
            gauge!("quorate_disk_full").set(flag(status.disk_is_full));
        }
        memory::look();
        gauge!("quorate_log_last_index").set(index(status.last_log));
        gauge!("quorate_log_committed_index").set(index(status.committed));
        gauge!("quorate_log_applied_index").set(index(status.applied));
        gauge!("quorate_log_purged_index").set(index(status.purged));
        gauge!("quorate_apply_lag_entries").set((index(status.committed) - index(status.applied)).max(0.0));
        let lag = if leads { Some(Duration::ZERO) } else { status.lag };
        if let Some(lag) = lag {
            gauge!("quorate_follow_lag_seconds").set(lag.as_secs_f64());
        }
        if let Some(micros) = status.sync_p50_micros {
            gauge!("quorate_log_sync_p50_seconds").set(number(micros) / 1e6);
        }
        let voters = status.members.iter().filter(|member| member.voter).count();
        gauge!("quorate_members", "kind" => "voter").set(number(voters as u64));
        gauge!("quorate_members", "kind" => "learner").set(number((status.members.len() - voters) as u64));
        self.count(status);
        self.followers(status);
    }

    fn count(&mut self, status: &Status) {
        let elections = self
            .term
            .map_or(0, |term| status.term.number().saturating_sub(term.number()));
        counter!("quorate_elections_total").increment(elections);
        self.term = Some(status.term);
        let changed = status.leader.is_some() && self.leader.is_some() && status.leader != self.leader;
        counter!("quorate_leader_changes_total").increment(u64::from(changed));
        // A time without a leader is no change; the next one is compared with the last there was.
        self.leader = status.leader.or(self.leader);
    }

    fn followers(&mut self, status: &Status) {
        let tell = |node: NodeId, lag: u64, silent: f64| {
            let node = node.to_string();
            gauge!("quorate_replication_lag_entries", "node" => node.clone()).set(lag as f64);
            gauge!("quorate_follower_silent_seconds", "node" => node).set(silent);
        };
        let others = status.members.iter().filter(|member| member.id != status.node);
        // Leaders tell of them; one that has not answered this leader yet was silent for all of its time.
        let told = others.filter_map(|m| {
            let silent = m.answered.map_or(f64::INFINITY, |ago| ago.as_secs_f64());
            Some((m.id, (m.lag_entries?, silent)))
        });
        let told: BTreeMap<NodeId, (u64, f64)> = told.collect();
        for gone in self.followers.iter().filter(|node| !told.contains_key(node)) {
            tell(*gone, 0, 0.0);
        }
        for (node, (lag, silent)) in &told {
            tell(*node, *lag, *silent);
        }
        self.followers = told.into_keys().collect();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Every `kind!("name"` in the sources under a directory, with its file.
    fn recorded(dir: &Path, found: &mut BTreeMap<(&'static str, String), String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                recorded(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = std::fs::read_to_string(&path).unwrap();
                for (kind, name) in named(&source, "") {
                    found.insert((kind, name), path.display().to_string());
                }
            }
        }
    }

    /// The metrics that macros of this prefix name in a source, with their kinds.
    fn named<'a>(source: &'a str, prefix: &'a str) -> impl Iterator<Item = (&'static str, String)> + 'a {
        ["counter", "gauge", "histogram"]
            .into_iter()
            .flat_map(move |kind| {
                let call = format!("{prefix}{kind}!(");
                let calls: Vec<usize> = source.match_indices(&call).map(|(at, _)| at).collect();
                let length = call.len();
                calls.into_iter().filter_map(move |at| {
                    // `describe_counter!` ends like `counter!`.
                    let whole = !source[..at].ends_with(|c: char| c == '_' || c.is_alphanumeric());
                    let name = source[at + length..]
                        .trim_start()
                        .strip_prefix('"')?
                        .split('"')
                        .next()?;
                    (whole && name.starts_with("quorate_")).then(|| (kind, name.to_owned()))
                })
            })
    }

    /// The story: four metrics were recorded, and nobody said of them what they were.
    #[test]
    fn every_metric_that_a_crate_records_is_described() {
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut found = BTreeMap::new();
        for name in ["transport", "kv", "meta", "bin"] {
            recorded(&crates.join(name).join("src"), &mut found);
        }
        assert!(found.len() > 40, "the sources are not found: {found:?}");
        let described: BTreeSet<_> = named(include_str!("mod.rs"), "describe_").collect();
        for (metric, file) in found {
            assert!(
                described.contains(&metric),
                "{metric:?} of {file} is not described"
            );
        }
    }

    /// The names that a cell of the manual's table stands for: `a_{b,c}_d{label}` are `a_b_d` and `a_c_d`, and `_e` behind
    /// `a_b_d` may be `a_e` or `a_b_e`.
    fn in_the_manual(cell: &str) -> BTreeSet<String> {
        let mut names: Vec<String> = Vec::new();
        for token in cell.split('`').skip(1).step_by(2) {
            let without_labels = match token.strip_suffix('}').and_then(|open| open.rsplit_once('{')) {
                Some((name, _)) => name,
                None => token,
            };
            let mut expanded = vec![String::new()];
            for (index, part) in without_labels.split(['{', '}']).enumerate() {
                let alternatives = if index % 2 == 1 {
                    part.split(',').collect()
                } else {
                    vec![part]
                };
                expanded = expanded
                    .iter()
                    .flat_map(|begun| alternatives.iter().map(move |part| format!("{begun}{part}")))
                    .collect();
            }
            if token.starts_with('_') {
                let first = names.first().cloned().unwrap_or_default();
                names.extend(
                    first
                        .match_indices('_')
                        .map(|(at, _)| format!("{}{token}", &first[..at])),
                );
            } else {
                names.extend(expanded);
            }
        }
        names.into_iter().collect()
    }

    /// The story: counters of refused streams and malformed messages were offered, and the manual knew neither.
    #[test]
    fn every_metric_that_is_described_is_in_the_manual() {
        let manual = include_str!("../../../docs/operations.md");
        let rows = manual.lines().filter_map(|line| line.strip_prefix("| `quorate_"));
        let cells = rows.filter_map(|row| row.split(" | ").next());
        let told: BTreeSet<String> = cells
            .flat_map(|cell| in_the_manual(&format!("`quorate_{cell}")))
            .collect();
        for (_, name) in named(include_str!("mod.rs"), "describe_") {
            // Those of the test below.
            if !["quorate_a", "quorate_b"].contains(&name.as_str()) {
                assert!(told.contains(&name), "{name} is not in docs/operations.md");
            }
        }
    }

    #[test]
    fn metrics_are_found_in_a_source_however_they_are_written() {
        let source = "metrics::counter!(\"quorate_a\").increment(1); describe_gauge!(\n  \"quorate_b\", x); gauge!(NAME)";
        let found = |prefix| named(source, prefix).collect::<Vec<_>>();
        assert_eq!(found(""), [("counter", "quorate_a".to_owned())]);
        assert_eq!(found("describe_"), [("gauge", "quorate_b".to_owned())]);
    }
}
