//! What a measurement gave.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_kv::node::{NodeRole, Status};
use serde::Serialize;

use super::load::Measured;
use crate::cli::{BenchArgs, BenchOp};
use crate::output::{Report, number, table};
use crate::text::{duration, size, thousands};

/// The figures. Latencies are of the operations that succeeded.
#[derive(Debug, Serialize)]
pub struct BenchReport {
    op: &'static str,
    clients: u32,
    connections: u32,
    value_bytes: usize,
    ops_per_txn: u32,
    total: u64,
    ok: u64,
    errors: u64,
    first_error: Option<String>,
    seconds: f64,
    /// Operations a second that succeeded.
    rate: f64,
    p50_us: u64,
    p90_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
    /// The median of the leader's log syncs.
    fsync_p50_us: Option<u64>,
    nodes: usize,
}

impl BenchReport {
    /// From the measurement, and what the nodes told at its end.
    pub fn new(
        args: &BenchArgs,
        measured: Measured,
        statuses: &BTreeMap<String, Result<Status, String>>,
    ) -> Self {
        let Measured {
            took,
            ok,
            errors,
            first_error,
            latencies,
        } = measured;
        let answered: Vec<&Status> = statuses
            .values()
            .filter_map(|status| status.as_ref().ok())
            .collect();
        let leader = answered.iter().find(|status| status.role == NodeRole::Leader);
        let seconds = took.as_secs_f64();
        Self {
            op: args.op.name(),
            clients: args.clients,
            connections: super::load::connections(args),
            value_bytes: args.value_size,
            ops_per_txn: if args.op == BenchOp::Txn {
                super::load::ops_per_txn(args)
            } else {
                1
            },
            total: args.total,
            ok,
            errors,
            first_error,
            seconds,
            rate: ok as f64 / seconds.max(1e-9),
            p50_us: latencies.value_at_quantile(0.5),
            p90_us: latencies.value_at_quantile(0.9),
            p99_us: latencies.value_at_quantile(0.99),
            p999_us: latencies.value_at_quantile(0.999),
            max_us: latencies.max(),
            fsync_p50_us: leader.and_then(|status| status.sync_p50_micros),
            nodes: leader
                .or(answered.first())
                .map_or(0, |status| status.members.len()),
        }
    }
}

impl Report for BenchReport {
    fn text(&self) -> String {
        let time = |micros| duration(Duration::from_micros(micros));
        let mut table = table(["operations/s", "p50", "p90", "p99", "p99.9", "max"]);
        let rate = thousands(self.rate as u64);
        let latencies = [self.p50_us, self.p90_us, self.p99_us, self.p999_us, self.max_us];
        table.add_row(
            [number(rate)]
                .into_iter()
                .chain(latencies.into_iter().map(|micros| number(time(micros)))),
        );
        let what = match self.op {
            "txn" => format!(
                "transactions of {} puts of {}",
                self.ops_per_txn,
                size(self.value_bytes as u64)
            ),
            op => format!("{op} of {}", size(self.value_bytes as u64)),
        };
        let plural = |count: u32, noun: &str| {
            if count == 1 {
                format!("1 {noun}")
            } else {
                format!("{count} {noun}s")
            }
        };
        let mut text = format!(
            "{} × {what}, {} over {}, {} nodes\n{table}\n{} done in {:.2} s",
            thousands(self.total),
            plural(self.clients, "caller"),
            plural(self.connections, "connection"),
            self.nodes,
            thousands(self.ok),
            self.seconds,
        );
        if let Some(micros) = self.fsync_p50_us {
            text.push_str(&format!(
                "; a sync of the leader's log took {} (median)",
                time(micros)
            ));
        }
        if let Some(error) = &self.first_error {
            text.push_str(&format!(
                "\n{} failed, the first with: {error}",
                thousands(self.errors)
            ));
        }
        text
    }
}
