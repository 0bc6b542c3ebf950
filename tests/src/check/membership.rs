//! Who the members are, as the log's entries say, and that no change of voters is left in the middle.

use std::collections::{BTreeMap, BTreeSet};

use quorate_kv::machine::Payload;
use quorate_kv::model::LogIndex;
use serde::{Deserialize, Serialize};

use super::taps::Agreement;
use super::{Rule, Violation};

/// A membership as `docs/formats/model.md` specifies it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Membership {
    /// The voters; two sets while a change is under way.
    pub voters: Vec<BTreeSet<u64>>,
    /// Everyone, learners too.
    pub members: BTreeMap<u64, Member>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Where it is reached.
    pub address: String,
    /// Which directory it is, and of which cluster; nothing for one that has not appeared yet.
    pub introduced: Option<([u8; 16], [u8; 16])>,
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

/// Judges all members that there ever were, and those that a cluster which had all the time that it needed is left with.
pub fn judge(agreement: &Agreement) -> Vec<Violation> {
    let mut violations = judge_last(agreement);
    let memberships = agreement.entries().iter();
    violations.extend(judge_identities(memberships.filter_map(
        |(index, agreed)| match &agreed.entry.payload {
            Payload::Membership(bytes) => Some((*index, Membership::decode(bytes)?)),
            Payload::Blank | Payload::Proposal(_) => None,
        },
    )));
    violations
}

/// One cluster, from the first entry on; and whoever is a member stays the directory that it is.
fn judge_identities(memberships: impl IntoIterator<Item = (LogIndex, Membership)>) -> Option<Violation> {
    let mut clusters = BTreeSet::new();
    let mut known: BTreeMap<u64, [u8; 16]> = BTreeMap::new();
    for (index, membership) in memberships {
        let mut now = BTreeMap::new();
        for (id, member) in &membership.members {
            let Some((directory, cluster)) = member.introduced else {
                continue;
            };
            clusters.insert(cluster);
            now.insert(*id, directory);
            if known.get(id).is_some_and(|before| *before != directory) {
                let what =
                    format!("node {id} became another directory in entry {index}, and was a member before");
                return Some(Violation::new(Rule::OneDirectory, what));
            }
        }
        if clusters.len() != 1 || now.is_empty() {
            let what =
                format!("the members of entry {index} name no cluster, or another one: {membership:?}");
            return Some(Violation::new(Rule::OneDirectory, what));
        }
        known = now;
    }
    None
}

fn judge_last(agreement: &Agreement) -> Vec<Violation> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// One membership after the other: the id, the directory and the cluster of each member.
    type Stages = &'static [&'static [(u64, u8, u8)]];

    /// Entries, each with members as (id, directory, cluster).
    fn judged(entries: &[&[(u64, u8, u8)]]) -> Option<Violation> {
        let member = |(id, directory, cluster): &(u64, u8, u8)| {
            let introduced = (*directory > 0).then_some(([*directory; 16], [*cluster; 16]));
            let address = String::new();
            (*id, Member { address, introduced })
        };
        judge_identities((0..).zip(entries).map(|(index, members)| {
            let members: BTreeMap<u64, Member> = members.iter().map(member).collect();
            let voters = vec![members.keys().copied().collect()];
            (LogIndex::new(index), Membership { voters, members })
        }))
    }

    #[test]
    fn a_member_that_becomes_another_directory_and_a_second_cluster_are_seen() {
        let good: [Stages; 3] = [
            &[&[(1, 11, 7), (2, 0, 0)], &[(1, 11, 7), (2, 22, 7)]],
            // Removed, and added as another.
            &[
                &[(1, 11, 7), (2, 22, 7)],
                &[(1, 11, 7)],
                &[(1, 11, 7), (2, 33, 7)],
            ],
            &[],
        ];
        for entries in good {
            assert_eq!(judged(entries), None);
        }
        let bad: [Stages; 4] = [
            &[&[(1, 11, 7), (2, 22, 7)], &[(1, 11, 7), (2, 33, 7)]],
            &[&[(1, 11, 7)], &[(1, 11, 8)]],
            &[&[(1, 11, 7), (2, 22, 8)]],
            &[&[(1, 0, 0)]],
        ];
        for entries in bad {
            let found = judged(entries).map(|violation| violation.rule);
            assert_eq!(found, Some(Rule::OneDirectory), "{entries:?}");
        }
    }
}
