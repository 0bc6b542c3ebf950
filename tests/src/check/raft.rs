//! Raft's invariants, as far as the nodes' own accounts of themselves show them.
//!
//! Fed with statuses, sampled as often as the caller likes: what is told here is true of any subset of them.

use std::collections::BTreeMap;

use quorate_kv::model::{LogIndex, NodeId, Term};
use quorate_kv::node::{NodeRole, Status};

use super::{Rule, Violation};

/// What the nodes have told of themselves.
#[derive(Debug, Clone, Default)]
pub struct Statuses {
    /// Of each process that lives: what it said last.
    latest: BTreeMap<NodeId, Status>,
    /// The highest entry that was said to be committed by somebody under this leader. Leaders are ordered by
    /// their terms, and within a term, which may have several here, by their ids.
    committed: BTreeMap<(Term, NodeId), (LogIndex, NodeId)>,
    violations: Vec<Violation>,
}

/// More than so many are not kept.
const KEPT: usize = 20;

impl Statuses {
    /// A node's process starts anew: what it forgot, it may say again.
    pub fn started(&mut self, node: NodeId) {
        self.latest.remove(&node);
    }

    /// Takes a node's account of itself.
    pub fn take(&mut self, status: &Status) {
        if status.role == NodeRole::Stopped {
            return;
        }
        self.complete(status);
        self.monotone(status);
        self.ordered(status);
        if let (Some(committed), Some(leader)) = (status.committed, status.leader) {
            let under = (status.term, leader);
            let highest = self.committed.entry(under).or_insert((committed, status.node));
            *highest = (*highest).max((committed, status.node));
        }
        self.latest.insert(status.node, status.clone());
    }

    /// The rules that were broken, in the order in which it was seen.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// A leader has every entry that was committed under an earlier one.
    fn complete(&mut self, status: &Status) {
        if status.role != NodeRole::Leader {
            return;
        }
        let itself = (status.term, status.node);
        let earlier = self.committed.range(..=itself).map(|(_, highest)| *highest).max();
        if let Some((committed, by)) = earlier
            && status.last_log < Some(committed)
        {
            let what = format!(
                "node {} leads in term {} with a log that ends at {:?}, though node {by} had said that {committed} is \
                 committed",
                status.node, status.term, status.last_log
            );
            self.broken(Rule::LogOrder, what);
        }
    }

    fn monotone(&mut self, status: &Status) {
        let Some(before) = self.latest.get(&status.node) else {
            return;
        };
        let fallen = [
            ("term", status.term < before.term),
            ("applied entry", status.applied < before.applied),
            ("revision", status.revision < before.revision),
            ("purged entry", status.purged < before.purged),
        ];
        let fallen: Vec<&str> = fallen
            .iter()
            .filter(|(_, fell)| *fell)
            .map(|(name, _)| *name)
            .collect();
        let leader = |status: &Status| Some((status.term, status.leader?));
        if let (Some(old), Some(new)) = (leader(before), leader(status))
            && new < old
        {
            let what = format!("node {} went back from leader {old:?} to {new:?}", status.node);
            self.broken(Rule::LeadersForward, what);
            return;
        }
        if !fallen.is_empty() {
            let what = format!(
                "the {} of node {} fell: from {} to {}",
                fallen.join(" and the "),
                status.node,
                told(before),
                told(status)
            );
            self.broken(Rule::Monotone, what);
        }
    }

    fn ordered(&mut self, status: &Status) {
        let wrong = if status.purged > status.applied {
            "purged what it has not applied"
        } else if status.last_log < status.purged {
            "ends its log before what it purged"
        } else {
            return;
        };
        let what = format!("node {} {wrong}: {}", status.node, told(status));
        self.broken(Rule::LogOrder, what);
    }

    fn broken(&mut self, rule: Rule, what: String) {
        if self.violations.len() < KEPT {
            self.violations.push(Violation::new(rule, what));
        }
    }
}

fn told(status: &Status) -> String {
    format!(
        "{} in term {}, log to {:?}, committed {:?}, applied {:?} (revision {}), purged {:?}",
        status.role,
        status.term,
        status.last_log,
        status.committed,
        status.applied,
        status.revision,
        status.purged
    )
}
