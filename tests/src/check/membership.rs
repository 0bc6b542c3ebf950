//! Who the members are, as the log's entries say, and that no change of voters is left in the middle.

use std::collections::{BTreeMap, BTreeSet};

use quorate_kv::machine::Payload;
use quorate_kv::model::LogIndex;
use serde::Deserialize;

use super::taps::Agreement;
use super::{Rule, Violation};

/// A membership as `docs/formats/model.md` specifies it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Membership {
    /// The voters; two sets while a change is under way.
    pub voters: Vec<BTreeSet<u64>>,
    /// Everyone, learners too, with their addresses.
    pub members: BTreeMap<u64, String>,
}

impl Membership {
    /// Whether a change of voters is under way.
    pub fn is_joint(&self) -> bool {
        self.voters.len() > 1
    }

    /// Whether a node has a vote, in a change that is under way too.
    pub fn votes(&self, node: u64) -> bool {
        self.voters.iter().any(|voters| voters.contains(&node))
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        // Behind a version byte.
        postcard::from_bytes(bytes.get(1..)?).ok()
    }
}

/// The last membership of the one log, and its entry.
///
/// # Errors
/// When the entry is no membership.
pub fn last(agreement: &Agreement) -> Result<Option<(LogIndex, Membership)>, Violation> {
    let memberships = agreement.entries().iter().rev();
    let mut memberships = memberships.filter_map(|(index, agreed)| match &agreed.entry.payload {
        Payload::Membership(bytes) => Some((*index, bytes)),
        Payload::Blank | Payload::Proposal(_) => None,
    });
    let Some((index, bytes)) = memberships.next() else {
        return Ok(None);
    };
    match Membership::decode(bytes) {
        Some(membership) => Ok(Some((index, membership))),
        None => {
            let what = format!("entry {index} is no membership that can be read: {bytes:?}");
            Err(Violation::new(Rule::NoJointLeft, what))
        }
    }
}

/// The first entry in which a node has a vote.
pub fn promotion(agreement: &Agreement, node: u64) -> Option<LogIndex> {
    let mut entries = agreement.entries().iter();
    entries.find_map(|(index, agreed)| match &agreed.entry.payload {
        Payload::Membership(bytes) => {
            let membership = Membership::decode(bytes)?;
            membership.votes(node).then_some(*index)
        }
        Payload::Blank | Payload::Proposal(_) => None,
    })
}

/// Judges the members that a cluster which had all the time that it needed is left with.
pub fn judge(agreement: &Agreement) -> Vec<Violation> {
    match last(agreement) {
        Err(violation) => vec![violation],
        Ok(Some((index, membership))) if membership.is_joint() => {
            let what = format!(
                "the change of voters of entry {index} was never finished: {:?}",
                membership.voters
            );
            vec![Violation::new(Rule::NoJointLeft, what)]
        }
        Ok(_) => Vec::new(),
    }
}
