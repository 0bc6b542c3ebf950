//! What a demonstration showed.

use std::time::Duration;

use comfy_table::{Cell, Color};
use serde::Serialize;

use crate::output::{Report, number, table};
use crate::text::duration;

/// A step of the scenario.
#[derive(Debug, Serialize)]
pub struct Step {
    /// Its name for programs.
    pub name: &'static str,
    /// Its name for people.
    #[serde(skip)]
    pub title: String,
    /// The Raft entries that it used.
    pub entries: u64,
    /// How long it took, until it was acknowledged.
    pub micros: u64,
    /// Every node showed what was written.
    pub ok: bool,
}

/// The whole.
#[derive(Debug, Serialize)]
pub struct DemoReport {
    /// How many nodes there were.
    pub nodes: u64,
    /// How many partitions were created each way.
    pub partitions: u32,
    /// By how much messages were delayed, for a round trip.
    pub rtt_ms: u64,
    /// The nodes' heartbeats and failover times.
    pub profile: &'static str,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// All partitions, one by one.
    pub sequential_micros: u64,
    /// All partitions, in one transaction.
    pub batch_micros: u64,
    /// The first by the second.
    pub ratio: f64,
    /// Nodes at the same revision had the same state, by its hash.
    pub nodes_agree: bool,
    /// The leader changed when it was killed, and at no other time.
    pub leader_changed: bool,
    /// The median of the leader's log syncs.
    pub fsync_p50_micros: Option<u64>,
}

impl DemoReport {
    /// Whether everything was as it should be.
    pub fn is_ok(&self) -> bool {
        self.nodes_agree && self.steps.iter().all(|step| step.ok)
    }
}

impl Report for DemoReport {
    fn text(&self) -> String {
        let time = |micros| duration(Duration::from_micros(micros));
        let mut table = table(["step", "raft entries", "time", "read back from every node"]);
        for step in &self.steps {
            let result = match step.ok {
                true => Cell::new("ok").fg(Color::Green),
                false => Cell::new("WRONG").fg(Color::Red),
            };
            table.add_row(vec![
                Cell::new(&step.title),
                number(step.entries),
                number(time(step.micros)),
                result,
            ]);
        }
        let mut lines = vec![
            format!(
                "{} nodes over QUIC on loopback, round trips {} ms longer, profile {}",
                self.nodes, self.rtt_ms, self.profile
            ),
            table.to_string(),
            format!(
                "one by one {}, as one batch {}: the batch is {:.1} times as fast",
                time(self.sequential_micros),
                time(self.batch_micros),
                self.ratio
            ),
        ];
        lines.push(match self.nodes_agree {
            true => "all nodes have the same state, by its hash at equal revisions".to_owned(),
            false => "THE NODES DIFFER: their hashes at equal revisions are not the same".to_owned(),
        });
        if let Some(micros) = self.fsync_p50_micros {
            lines.push(format!(
                "a sync of the leader's log took {} (median)",
                time(micros)
            ));
        }
        lines.join("\n")
    }

    fn list(&self) -> Option<&'static str> {
        Some("steps")
    }
}
