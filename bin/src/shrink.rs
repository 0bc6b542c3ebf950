//! `quorate shrink`: every node copies its state file into one without free room.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::Cell;
use quorate_kv::machine::Shrunk;
use serde::Serialize;

use crate::cli::Reach;
use crate::failure::Failure;
use crate::output::{Output, Report, number, table};
use crate::reach::Reached;
use crate::text::size;

/// A copy of a large state takes its time; all nodes together have at least so long.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs the command.
pub async fn run(reach: Reach, output: Output) -> Result<(), Failure> {
    let client = Reached::find(&reach)?.client()?;
    let told = client.with_deadline(reach.deadline.max(PATIENCE)).shrink().await;
    let report = ShrinkReport::new(told);
    let failed: Vec<String> = report.failed().collect();
    output.show(&report)?;
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Failure::unavailable("not every node has shrunk its state file").details(failed)),
    }
}

#[derive(Debug, Serialize)]
struct ShrinkReport {
    nodes: Vec<NodeReport>,
}

#[derive(Debug, Serialize)]
struct NodeReport {
    address: String,
    before_bytes: Option<u64>,
    after_bytes: Option<u64>,
    error: Option<String>,
}

impl ShrinkReport {
    fn new(told: BTreeMap<String, Result<Shrunk, String>>) -> Self {
        let node = |(address, shrunk): (String, Result<Shrunk, String>)| NodeReport {
            address,
            before_bytes: shrunk.as_ref().ok().map(|shrunk| shrunk.before),
            after_bytes: shrunk.as_ref().ok().map(|shrunk| shrunk.after),
            error: shrunk.err(),
        };
        Self {
            nodes: told.into_iter().map(node).collect(),
        }
    }

    fn failed(&self) -> impl Iterator<Item = String> {
        let failed = |node: &NodeReport| Some(format!("{}: {}", node.address, node.error.as_ref()?));
        self.nodes.iter().filter_map(failed)
    }
}

impl Report for ShrinkReport {
    fn text(&self) -> String {
        let mut table = table(["node", "before", "after"]);
        for node in &self.nodes {
            let bytes = |bytes: Option<u64>| number(bytes.map_or("-".to_owned(), size));
            table.add_row(vec![
                Cell::new(&node.address),
                bytes(node.before_bytes),
                bytes(node.after_bytes),
            ]);
        }
        table.to_string()
    }
}
