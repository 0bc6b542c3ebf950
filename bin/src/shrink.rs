//! `quorate shrink`: every node copies its state file into one without free room.
//!
//! Always: it succeeds where every member has shrunk; an endpoint that is no member's is told and counts for nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::Cell;
use quorate_kv::machine::Shrunk;
use serde::Serialize;

use crate::cli::Reach;
use crate::failure::Failure;
use crate::output::{Output, Report, number, table};
use crate::reach::Reached;
use crate::status::member_addresses;
use crate::text::size;

/// A copy of a large state takes its time; all nodes together have so long where nothing is said.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs the command. `deadline`: how long it may take, where that was said.
pub async fn run(reach: Reach, deadline: Option<Duration>, output: Output) -> Result<(), Failure> {
    let client = Reached::find(&reach)?.client()?;
    let members = member_addresses(&client).await?;
    let told = client.with_deadline(deadline.unwrap_or(PATIENCE)).shrink().await;
    let report = ShrinkReport::new(told, &members);
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
    /// Whether it is a member's address; null where the node that answers belongs to no cluster yet.
    member: Option<bool>,
    before_bytes: Option<u64>,
    after_bytes: Option<u64>,
    error: Option<String>,
}

impl ShrinkReport {
    /// `members`: where they are; empty where no cluster has been formed.
    fn new(mut told: BTreeMap<String, Result<Shrunk, String>>, members: &[String]) -> Self {
        for member in members {
            // The endpoints alone are asked where no node tells the client of others.
            told.entry(member.clone())
                .or_insert_with(|| Err("it was not asked".to_owned()));
        }
        let node = |(address, shrunk): (String, Result<Shrunk, String>)| NodeReport {
            member: (!members.is_empty()).then(|| members.contains(&address)),
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
        let counts = self.nodes.iter().filter(|node| node.member != Some(false));
        counts.filter_map(NodeReport::failure)
    }
}

impl NodeReport {
    /// Why it has not shrunk, with its address once.
    fn failure(&self) -> Option<String> {
        let error = self.error.as_ref()?;
        match error.starts_with(&self.address) {
            true => Some(error.clone()),
            false => Some(format!("{}: {error}", self.address)),
        }
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
        let mut text = table.to_string();
        for node in self.nodes.iter().filter(|node| node.member == Some(false)) {
            if let Some(failure) = node.failure() {
                text.push_str(&format!("\nno member: {failure}"));
            }
        }
        text
    }

    fn list(&self) -> Option<&'static str> {
        Some("nodes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(told: &[(&str, Result<(), &str>)], members: &[&str]) -> ShrinkReport {
        let shrunk = Shrunk {
            before: 4 << 20,
            after: 1 << 20,
        };
        let told = told.iter().map(|(address, result)| {
            let result = result.map(|()| shrunk).map_err(str::to_owned);
            ((*address).to_owned(), result)
        });
        let members: Vec<String> = members.iter().map(|member| (*member).to_owned()).collect();
        ShrinkReport::new(told.collect(), &members)
    }

    /// The story: with a removed node still among the endpoints the command failed for ever, though all members had shrunk.
    #[test]
    fn an_endpoint_that_is_no_member_is_named_and_is_no_failure() {
        let told = [
            ("a:1", Ok(())),
            ("b:1", Ok(())),
            ("c:1", Err("c:1 cannot be reached")),
        ];
        let removed = report(&told, &["a:1", "b:1"]);
        assert_eq!(removed.failed().count(), 0);
        assert!(
            removed.text().ends_with("\nno member: c:1 cannot be reached"),
            "{}",
            removed.text()
        );

        let member = report(&told, &["a:1", "b:1", "c:1"]);
        let failed: Vec<String> = member.failed().collect();
        assert_eq!(failed, ["c:1 cannot be reached"]);
        assert!(!member.text().contains("no member"), "{}", member.text());
    }

    #[test]
    fn a_member_that_was_not_asked_has_not_shrunk() {
        let failed: Vec<String> = report(&[("a:1", Ok(()))], &["a:1", "b:1"]).failed().collect();
        assert_eq!(failed, ["b:1: it was not asked"]);
    }

    #[test]
    fn where_no_cluster_has_been_formed_every_failure_counts() {
        let failed: Vec<String> = report(&[("a:1", Err("no room"))], &[]).failed().collect();
        assert_eq!(failed, ["a:1: no room"]);
    }
}
