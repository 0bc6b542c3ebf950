//! Compares the states of the nodes, at positions for which all keep the hash.
//!
//! All nodes apply the same entries, so their states hash to the same at one position, or one of them is broken: its memory,
//! its disk, or a bug of ours. Each node asks the others now and then. Who finds a quorum against itself leaves service, with
//! the position; so does every node that differs from another where neither has a quorum on its side, since nobody can say
//! then who is right. Who has a quorum on its side tells of the others in its log, and goes on.
//!
//! Always: a node compares what it has applied at an entry with what others have applied at the same entry, so that no delay
//! and no order of messages is taken for a difference.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;

use super::acquaintance::Acquaintance;
use super::network::ask_control;
use super::types::{Member, Raft};
use super::wire::{ControlRequest, ControlResponse};
use crate::env;
use crate::fault::{Fault, Faults};
use crate::machine::Reader;
use crate::model::{LogPosition, StateHash};

/// How long the others' answers are waited for.
const ANSWERS_MAX: Duration = Duration::from_secs(2);

/// What a node's state hashed to, by position.
pub(crate) type Hashes = Vec<(LogPosition, StateHash)>;

/// Compares, as long as the node runs.
pub(super) struct Comparison {
    pub(super) raft: Raft,
    pub(super) own_id: u64,
    pub(super) acquaintance: Acquaintance,
    pub(super) reader: Reader,
    pub(super) interval: Duration,
    pub(super) faults: Faults,
}

/// What a comparison came to.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Nobody differs, as far as they have positions in common.
    Alike,
    /// These differ from this node, which has a quorum on its side.
    OthersDiffer { at: LogPosition, nodes: BTreeSet<u64> },
    /// This node differs from a quorum, or from these where nobody has a quorum.
    Differs {
        at: LogPosition,
        nodes: BTreeSet<u64>,
        is_outvoted: bool,
    },
}

/// Judges by what the others answered.
fn judge(own_id: u64, own: &Hashes, others: &BTreeMap<u64, Hashes>, configs: &[BTreeSet<u64>]) -> Verdict {
    let is_quorum = |nodes: &BTreeSet<u64>| {
        configs.iter().all(|voters| {
            let those = voters.iter().filter(|voter| nodes.contains(voter));
            those.count() * 2 > voters.len()
        })
    };
    let mut verdict = Verdict::Alike;
    for (at, hash) in own {
        // By what they say of this entry, and of whether it is this one.
        let mut camps: BTreeMap<(LogPosition, StateHash), BTreeSet<u64>> = BTreeMap::new();
        for (id, hashes) in others {
            let found = hashes.iter().find(|(there, _)| there.index == at.index);
            if let Some(theirs) = found {
                camps.entry(*theirs).or_default().insert(*id);
            }
        }
        let mut own_camp = camps.remove(&(*at, *hash)).unwrap_or_default();
        own_camp.insert(own_id);
        if camps.is_empty() {
            continue;
        }
        let is_outvoted = camps.values().any(is_quorum);
        let nodes: BTreeSet<u64> = camps.into_values().flatten().collect();
        if !is_outvoted && is_quorum(&own_camp) {
            verdict = Verdict::OthersDiffer { at: *at, nodes };
            continue;
        }
        return Verdict::Differs {
            at: *at,
            nodes,
            is_outvoted,
        };
    }
    verdict
}

impl Comparison {
    pub(super) async fn run(self) {
        let mut streams = BTreeMap::new();
        let mut told = BTreeSet::new();
        loop {
            env::sleep(self.interval).await;
            let Ok(own) = self.reader.view().map(|view| view.hashes()) else {
                // A state that cannot be looked at has stopped the node.
                return;
            };
            if own.is_empty() {
                continue;
            }
            let looked = self.raft.with_raft_state(|state| {
                let membership = state.membership_state.effective().membership();
                let nodes = membership.nodes().map(|(id, node)| (*id, node.clone()));
                (
                    membership.get_joint_config().clone(),
                    nodes.collect::<BTreeMap<u64, Member>>(),
                )
            });
            let Ok((configs, members)) = looked.await else {
                return;
            };
            let others = self.others(&members, &mut streams).await;
            if !others.is_empty() {
                env::mark("raft.states_compared");
            }
            match judge(self.own_id, &own, &others, &configs) {
                Verdict::Alike => metrics::gauge!("quorate_states_that_differ").set(0.0),
                Verdict::OthersDiffer { at, nodes } => {
                    metrics::gauge!("quorate_states_that_differ").set(nodes.len() as f64);
                    for node in nodes {
                        if told.insert(node) {
                            tracing::error!(
                                node,
                                position = %at,
                                "the state of another node differs from this one's, which most voters share: it is to be replaced"
                            );
                        }
                    }
                }
                Verdict::Differs {
                    at,
                    nodes,
                    is_outvoted,
                } => {
                    env::mark("raft.state_differs");
                    let nodes: Vec<String> = nodes.iter().map(u64::to_string).collect();
                    let nodes = nodes.join(", ");
                    let detail = match is_outvoted {
                        true => format!("most voters differ from this node: {nodes}"),
                        false => format!("it differs from that of {nodes}, and no quorum says who is right"),
                    };
                    self.faults.raise(Fault::StateDiffers { at, detail });
                    return;
                }
            }
        }
    }

    /// What the other members say.
    async fn others(
        &self,
        members: &BTreeMap<u64, Member>,
        streams: &mut BTreeMap<u64, Option<super::network::ControlStream>>,
    ) -> BTreeMap<u64, Hashes> {
        streams.retain(|id, _| members.contains_key(id));
        let others = members.iter().filter(|(id, _)| **id != self.own_id);
        let asks = others.map(|(id, member)| {
            let (id, peer) = (*id, member.peer(*id));
            let mut stream = streams.remove(&id).flatten();
            async move {
                let request = |_: &_| ControlRequest::StateHashes;
                let asked = ask_control(&self.acquaintance, &peer, &mut stream, request);
                match env::timeout(ANSWERS_MAX, asked).await {
                    Ok(Ok(ControlResponse::StateHashes(hashes))) => (id, stream, Some(hashes)),
                    // What was not answered may be answered late, on a stream that is not used any more.
                    _ => (id, None, None),
                }
            }
        });
        let mut told = BTreeMap::new();
        for (id, stream, hashes) in join_all(asks).await {
            streams.insert(id, stream);
            if let Some(hashes) = hashes {
                told.insert(id, hashes);
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LogIndex, NodeId, Term};

    fn at(index: u64, hash: u128) -> (LogPosition, StateHash) {
        let position = LogPosition {
            term: Term::new(1),
            leader: NodeId::new(1),
            index: LogIndex::new(index),
        };
        (position, StateHash(hash))
    }

    /// The case; the voters; what this node, 1, has; what the others have; the index at which it differs and whether it
    /// is outvoted, or who of the others differs.
    type Case<'a> = (
        &'a str,
        &'a [BTreeSet<u64>],
        &'a [(u64, u128)],
        &'a [(u64, &'a [(u64, u128)])],
        Result<&'a [u64], (u64, bool)>,
    );

    #[test]
    fn who_differs_from_a_quorum_or_where_nobody_has_one_leaves_service() {
        let three = [BTreeSet::from([1, 2, 3])];
        let two = [BTreeSet::from([1, 2])];
        let joint = [BTreeSet::from([1, 2, 3]), BTreeSet::from([1, 4, 5])];
        let learns = [BTreeSet::from([2, 3, 4])];
        let cases: &[Case<'_>] = &[
            ("nobody answered", &three, &[(8, 1)], &[], Ok(&[])),
            (
                "all are alike, and one is behind",
                &three,
                &[(8, 1), (16, 2)],
                &[(2, &[(16, 2)]), (3, &[(8, 1)])],
                Ok(&[]),
            ),
            (
                "nothing in common",
                &three,
                &[(8, 1)],
                &[(2, &[(16, 7)]), (3, &[(16, 9)])],
                Ok(&[]),
            ),
            (
                "a quorum against it",
                &three,
                &[(8, 1), (16, 2)],
                &[(2, &[(8, 1), (16, 3)]), (3, &[(16, 3)])],
                Err((16, true)),
            ),
            (
                "a quorum with it",
                &three,
                &[(8, 1)],
                &[(2, &[(8, 1)]), (3, &[(8, 4)])],
                Ok(&[3]),
            ),
            (
                "one is away",
                &three,
                &[(8, 1)],
                &[(2, &[(8, 4)])],
                Err((8, false)),
            ),
            (
                "each has another",
                &three,
                &[(8, 1)],
                &[(2, &[(8, 4)]), (3, &[(8, 5)])],
                Err((8, false)),
            ),
            ("of two", &two, &[(8, 1)], &[(2, &[(8, 4)])], Err((8, false))),
            (
                "a quorum of one of two configurations",
                &joint,
                &[(8, 1)],
                &[(2, &[(8, 1)]), (4, &[(8, 4)]), (5, &[(8, 4)])],
                Err((8, false)),
            ),
            (
                "a learner against the voters",
                &learns,
                &[(8, 1)],
                &[(2, &[(8, 4)]), (3, &[(8, 4)])],
                Err((8, true)),
            ),
            (
                "a learner is no voter of the quorum",
                &three,
                &[(8, 1)],
                &[(2, &[(8, 1)]), (9, &[(8, 4)])],
                Ok(&[9]),
            ),
            (
                "the earliest at which it differs is told",
                &two,
                &[(8, 1), (16, 2)],
                &[(2, &[(8, 3), (16, 4)])],
                Err((8, false)),
            ),
        ];
        let hashes = |those: &[(u64, u128)]| those.iter().map(|(index, hash)| at(*index, *hash)).collect();
        for (case, configs, own, others, expected) in cases {
            let others = others.iter().map(|(id, those)| (*id, hashes(those))).collect();
            let found = judge(1, &hashes(own), &others, configs);
            match (expected, found) {
                (Ok([]), Verdict::Alike) => {}
                (Ok(expected), Verdict::OthersDiffer { nodes, .. }) => {
                    assert_eq!(nodes.into_iter().collect::<Vec<_>>(), *expected, "{case}");
                }
                (Err((index, outvoted)), Verdict::Differs { at, is_outvoted, .. }) => {
                    assert_eq!((at.index.number(), is_outvoted), (*index, *outvoted), "{case}");
                }
                (_, found) => panic!("{case}: {found:?}"),
            }
        }
    }

    #[test]
    fn another_entry_at_the_same_index_is_a_difference() {
        let mut theirs = at(8, 1);
        theirs.0.term = Term::new(2);
        let others = BTreeMap::from([(2, vec![theirs])]);
        let found = judge(1, &vec![at(8, 1)], &others, &[BTreeSet::from([1, 2])]);
        assert!(matches!(found, Verdict::Differs { .. }), "{found:?}");
    }
}
