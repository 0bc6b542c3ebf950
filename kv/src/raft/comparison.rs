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
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::acquaintance::Acquaintance;
use super::network::ask_control;
use super::state_machine::Raft;
use super::types::Member;
use super::wire::{ControlRequest, ControlResponse};
use crate::env::{self, Disk};
use crate::fault::{Fault, Faults};
use crate::machine::Reader;
use crate::model::{LogPosition, StateHash};

/// So many comparisons in a row may be undecided because a voter has not come to a position yet, or has none after a start.
const OPEN_ROUNDS: u32 = 6;
/// How long the others' answers are waited for.
const ANSWERS_MAX: Duration = Duration::from_secs(2);

/// How long the note may take that this node's state is wrong.
const NOTE_MAX: Duration = Duration::from_secs(1);

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
    /// Where it is noted that this node's state is wrong.
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
}

/// The name of the file, in the directory of the state, that says that the state is not what it is on most nodes: hashes are kept
/// in memory alone, and a node that is started anew would serve until it has the next one.
const DIFFERS: &str = "DIFFERS";

/// Notes that the state in a directory is wrong. Blocks.
fn note(disk: &dyn Disk, dir: &Path, detail: &str) -> io::Result<()> {
    let file = disk.open(&dir.join(DIFFERS), true)?;
    file.set_len(0)?;
    file.write_all_at(detail.as_bytes(), 0)?;
    file.sync_data()?;
    disk.sync_dir(dir)
}

/// What was noted of the state in a directory, if that is wrong. Blocks.
pub(crate) fn noted(disk: &dyn Disk, dir: &Path) -> io::Result<Option<String>> {
    let path = dir.join(DIFFERS);
    if !disk.exists(&path)? {
        return Ok(None);
    }
    let file = disk.open(&path, false)?;
    let mut detail = vec![0; usize::try_from(file.len()?).map_err(io::Error::other)?];
    file.read_exact_at(&mut detail, 0)?;
    Ok(Some(String::from_utf8_lossy(&detail).into_owned()))
}

/// What a comparison came to.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Nobody differs, as far as they have positions in common.
    Alike,
    /// These differ from this node, which has a quorum on its side.
    OthersDiffer { at: LogPosition, nodes: BTreeSet<u64> },
    /// This node differs from a quorum.
    Outvoted { at: LogPosition, nodes: BTreeSet<u64> },
    /// This node differs from these, and nobody has a quorum. `is_open`: a voter that answered has not said yet with whom
    /// it is.
    Undecided {
        at: LogPosition,
        nodes: BTreeSet<u64>,
        is_open: bool,
    },
}

fn is_quorum(configs: &[BTreeSet<u64>], nodes: &BTreeSet<u64>) -> bool {
    configs.iter().all(|voters| {
        let those = voters.iter().filter(|voter| nodes.contains(voter));
        those.count() * 2 > voters.len()
    })
}

/// Judges by what the others answered, over all positions: who differs at one from a quorum is wrong at all.
fn judge(own_id: u64, own: &Hashes, others: &BTreeMap<u64, Hashes>, configs: &[BTreeSet<u64>]) -> Verdict {
    // By position, what this node and others have there.
    let mut camps_at: BTreeMap<LogPosition, BTreeMap<(LogPosition, StateHash), BTreeSet<u64>>> =
        BTreeMap::new();
    for (at, hash) in own {
        let camps = camps_at.entry(*at).or_default();
        camps.entry((*at, *hash)).or_default().insert(own_id);
        for (id, hashes) in others {
            // Also where another entry stands there.
            let found = hashes.iter().find(|(there, _)| there.index == at.index);
            if let Some(theirs) = found {
                camps.entry(*theirs).or_default().insert(*id);
            }
        }
    }
    let mut wrong: BTreeMap<u64, LogPosition> = BTreeMap::new();
    let mut differs: Option<(LogPosition, BTreeSet<u64>)> = None;
    let mut has_quorum = false;
    for (at, camps) in &camps_at {
        let right = camps.values().find(|camp| is_quorum(configs, camp));
        has_quorum |= right.is_some_and(|camp| camp.contains(&own_id));
        if camps.len() < 2 {
            continue;
        }
        let all = || camps.values().flatten();
        match right {
            Some(right) => {
                for id in all().filter(|id| !right.contains(id)) {
                    wrong.entry(*id).or_insert(*at);
                }
            }
            None => {
                let with = camps.values().find(|camp| camp.contains(&own_id));
                let against = all().filter(|id| with.is_none_or(|with| !with.contains(id)));
                let (_, nodes) = differs.get_or_insert_with(|| (*at, BTreeSet::new()));
                nodes.extend(against);
            }
        }
    }
    if let Some(at) = wrong.get(&own_id).copied() {
        let agree = camps_at.get(&at).into_iter().flat_map(BTreeMap::values).flatten();
        let nodes = agree
            .copied()
            .filter(|id| *id != own_id && !wrong.contains_key(id));
        return Verdict::Outvoted {
            at,
            nodes: nodes.collect(),
        };
    }
    // Of who is known to be wrong nothing is left to be decided; nor where a quorum is with this node somewhere.
    if let Some((at, mut nodes)) = differs {
        nodes.retain(|id| !wrong.contains_key(id));
        if !nodes.is_empty() && !has_quorum {
            let has_it = |id: &u64| {
                let hashes = others.get(id);
                hashes.is_none_or(|hashes| hashes.iter().any(|(there, _)| there.index == at.index))
            };
            let is_open = configs
                .iter()
                .flatten()
                .any(|voter| *voter != own_id && !has_it(voter));
            return Verdict::Undecided { at, nodes, is_open };
        }
        for id in nodes {
            wrong.entry(id).or_insert(at);
        }
    }
    match wrong.values().min().copied() {
        Some(at) => Verdict::OthersDiffer {
            at,
            nodes: wrong.into_keys().collect(),
        },
        None => Verdict::Alike,
    }
}

impl Comparison {
    pub(super) async fn run(self) {
        let mut streams = BTreeMap::new();
        // The others that differ, and from where on.
        let mut told: BTreeMap<u64, LogPosition> = BTreeMap::new();
        let mut open_for = 0;
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
            let verdict = judge(self.own_id, &own, &others, &configs);
            // One that has left service, or was replaced, is told of until it is no member, or is alike again.
            let is_alike_again = |id: &u64, since: &LogPosition| {
                let theirs = others.get(id).into_iter().flatten();
                theirs
                    .filter(|(at, _)| at.index > since.index)
                    .any(|those| own.contains(those))
            };
            told.retain(|id, since| members.contains_key(id) && !is_alike_again(id, since));
            open_for = match verdict {
                Verdict::Undecided { is_open: true, .. } => open_for + 1,
                _ => 0,
            };
            let is_certain = matches!(verdict, Verdict::Outvoted { .. });
            let (at, nodes, why) = match verdict {
                Verdict::Alike => (None, BTreeSet::new(), ""),
                Verdict::OthersDiffer { at, nodes } => {
                    for node in nodes {
                        if told.insert(node, at).is_none() {
                            tracing::error!(
                                node,
                                position = %at,
                                "the state of another node differs from this one's, which most voters share: it is to be replaced"
                            );
                        }
                    }
                    (None, BTreeSet::new(), "")
                }
                Verdict::Undecided { is_open, .. } if is_open && open_for < OPEN_ROUNDS => {
                    (None, BTreeSet::new(), "")
                }
                Verdict::Undecided { at, nodes, .. } => (Some(at), nodes, "no quorum says who is right"),
                Verdict::Outvoted { at, nodes } => (Some(at), nodes, "they are most voters"),
            };
            metrics::gauge!("quorate_states_that_differ").set(told.len() as f64);
            if let Some(at) = at {
                env::mark("raft.state_differs");
                let nodes: Vec<String> = nodes.iter().map(u64::to_string).collect();
                let detail = format!("it differs from that of {}, and {why}", nodes.join(", "));
                if is_certain {
                    let (disk, dir) = (Arc::clone(&self.disk), self.dir.clone());
                    let told = format!("at entry {at} {detail}");
                    let noted = env::spawn_blocking(move || note(&*disk, &dir, &told));
                    // A disk that hangs must not keep it in service.
                    let noted = env::timeout(NOTE_MAX, noted).await;
                    if let Ok(Ok(Err(error))) = noted {
                        tracing::warn!(%error, "that this state is wrong cannot be noted in its directory");
                    }
                }
                self.faults.raise(Fault::StateDiffers { at, detail });
                return;
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

    /// The case; the voters; what this node, 1, has; what the others have; what it comes to.
    type Case<'a> = (
        &'a str,
        &'a [BTreeSet<u64>],
        &'a [(u64, u128)],
        &'a [(u64, &'a [(u64, u128)])],
        Expected<'a>,
    );

    #[derive(Debug)]
    enum Expected<'a> {
        /// These of the others are wrong.
        Wrong(&'a [u64]),
        /// This node is, at this index.
        Outvoted(u64),
        /// Nobody says, at this index; a voter has not said yet.
        Open(u64),
        Undecided(u64),
    }
    use Expected::{Open, Outvoted, Undecided, Wrong};

    #[test]
    fn who_differs_from_a_quorum_or_where_nobody_has_one_leaves_service() {
        let three = [BTreeSet::from([1, 2, 3])];
        let two = [BTreeSet::from([1, 2])];
        let joint = [BTreeSet::from([1, 2, 3]), BTreeSet::from([1, 4, 5])];
        let learns = [BTreeSet::from([2, 3, 4])];
        let cases: &[Case<'_>] = &[
            ("nobody answered", &three, &[(8, 1)], &[], Wrong(&[])),
            (
                "all are alike, and one is behind",
                &three,
                &[(8, 1), (16, 2)],
                &[(2, &[(16, 2)]), (3, &[(8, 1)])],
                Wrong(&[]),
            ),
            (
                "nothing in common",
                &three,
                &[(8, 1)],
                &[(2, &[(16, 7)]), (3, &[(16, 9)])],
                Wrong(&[]),
            ),
            (
                "a quorum against it",
                &three,
                &[(8, 1), (16, 2)],
                &[(2, &[(8, 1), (16, 3)]), (3, &[(16, 3)])],
                Outvoted(16),
            ),
            (
                "a quorum with it",
                &three,
                &[(8, 1)],
                &[(2, &[(8, 1)]), (3, &[(8, 4)])],
                Wrong(&[3]),
            ),
            (
                "a quorum with it, of whom one is a moment behind at the next",
                &three,
                &[(8, 1), (16, 2)],
                &[(2, &[(8, 1)]), (3, &[(8, 4), (16, 5)])],
                Wrong(&[3]),
            ),
            (
                "a quorum with it later, of whom one has started since the first",
                &three,
                &[(8, 1), (16, 2)],
                &[(2, &[(16, 2)]), (3, &[(8, 4), (16, 5)])],
                Wrong(&[3]),
            ),
            (
                "the third has started of late",
                &three,
                &[(8, 1)],
                &[(2, &[(8, 4)]), (3, &[])],
                Open(8),
            ),
            ("one is away", &three, &[(8, 1)], &[(2, &[(8, 4)])], Undecided(8)),
            (
                "each has another",
                &three,
                &[(8, 1)],
                &[(2, &[(8, 4)]), (3, &[(8, 5)])],
                Undecided(8),
            ),
            ("of two", &two, &[(8, 1)], &[(2, &[(8, 4)])], Undecided(8)),
            (
                "a quorum of one of two configurations",
                &joint,
                &[(8, 1)],
                &[(2, &[(8, 1)]), (4, &[(8, 4)]), (5, &[(8, 4)])],
                Undecided(8),
            ),
            (
                "a learner against the voters",
                &learns,
                &[(8, 1)],
                &[(2, &[(8, 4)]), (3, &[(8, 4)])],
                Outvoted(8),
            ),
            (
                "a learner is no voter of the quorum",
                &three,
                &[(8, 1)],
                &[(2, &[(8, 1)]), (9, &[(8, 4)])],
                Wrong(&[9]),
            ),
            (
                "the earliest at which it differs is told",
                &two,
                &[(8, 1), (16, 2)],
                &[(2, &[(8, 3), (16, 4)])],
                Undecided(8),
            ),
        ];
        let hashes = |those: &[(u64, u128)]| those.iter().map(|(index, hash)| at(*index, *hash)).collect();
        for (case, configs, own, others, expected) in cases {
            let others = others.iter().map(|(id, those)| (*id, hashes(those))).collect();
            let found = judge(1, &hashes(own), &others, configs);
            match (expected, found) {
                (Wrong([]), Verdict::Alike) => {}
                (Wrong(expected), Verdict::OthersDiffer { nodes, .. }) => {
                    assert_eq!(nodes.into_iter().collect::<Vec<_>>(), *expected, "{case}");
                }
                (Outvoted(index), Verdict::Outvoted { at, .. })
                | (
                    Open(index),
                    Verdict::Undecided {
                        at, is_open: true, ..
                    },
                )
                | (
                    Undecided(index),
                    Verdict::Undecided {
                        at, is_open: false, ..
                    },
                ) => {
                    assert_eq!(at.index.number(), *index, "{case}");
                }
                (expected, found) => panic!("{case}: {expected:?}, found {found:?}"),
            }
        }
    }

    #[test]
    fn another_entry_at_the_same_index_is_a_difference() {
        let mut theirs = at(8, 1);
        theirs.0.term = Term::new(2);
        let others = BTreeMap::from([(2, vec![theirs])]);
        let found = judge(1, &vec![at(8, 1)], &others, &[BTreeSet::from([1, 2])]);
        assert!(matches!(found, Verdict::Undecided { .. }), "{found:?}");
    }
}
