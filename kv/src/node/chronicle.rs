//! Tells in the log who leads, whether a quorum is there, who is a member and who does not answer: a line for each change.
//!
//! What an operator reads first. It looks once a second besides, for what changes by time alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::front::Front;
use crate::env;
use crate::model::{NodeId, Term};
use crate::raft::{Part, RaftState, address_text};

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Ends when the node does.
pub(super) async fn run(front: Arc<Front>) {
    let mut changes = front.raft.server_changes();
    let mut told = Told::default();
    let silent_after = front.settings.timing.failover_max;
    loop {
        let state = front.raft.state();
        for line in told.news(front.node(), &state, silent_after) {
            line.write();
        }
        if state.role == Part::Stopped {
            return;
        }
        if let Ok(Err(_)) = env::timeout(LOOK_EVERY, changes.changed()).await {
            return;
        }
    }
}

/// Something that has changed.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Good(String),
    Bad(String),
}

impl Line {
    fn write(self) {
        match self {
            Line::Good(words) => tracing::info!("{words}"),
            Line::Bad(words) => tracing::warn!("{words}"),
        }
    }
}

/// What was told last.
#[derive(Debug, Default)]
struct Told {
    leads: Option<(Term, Option<NodeId>)>,
    stands_in: Option<Term>,
    had_quorum: Option<bool>,
    members: Option<BTreeMap<NodeId, (String, bool)>>,
    silent: BTreeSet<NodeId>,
}

impl Told {
    fn news(&mut self, own: NodeId, state: &RaftState, silent_after: Duration) -> Vec<Line> {
        if state.members.is_empty() || state.role == Part::Stopped {
            // It belongs to nothing yet, or its end is told with its cause.
            return Vec::new();
        }
        let mut lines = Vec::new();
        self.leadership(own, state, &mut lines);
        self.quorum(state, &mut lines);
        self.membership(state, &mut lines);
        self.silence(own, state, silent_after, &mut lines);
        lines
    }

    fn leadership(&mut self, own: NodeId, state: &RaftState, lines: &mut Vec<Line>) {
        let term = state.term;
        if state.role == Part::Candidate && self.stands_in.is_none_or(|before| before < term) {
            self.stands_in = Some(term);
            lines.push(Line::Good(format!(
                "this node stands for election in term {term}"
            )));
        }
        let now = (term, state.leader);
        let before = self.leads.unwrap_or((Term::new(0), None));
        match state.leader {
            Some(leader) if now != before => {
                self.leads = Some(now);
                lines.push(Line::Good(match leader == own {
                    true => format!("this node leads in term {term}"),
                    false => format!("node {leader} leads in term {term}"),
                }));
            }
            None if before.1.is_some() => {
                self.leads = Some(now);
                lines.push(Line::Good(format!("nobody is known to lead; the term is {term}")));
            }
            _ => {}
        }
    }

    fn quorum(&mut self, state: &RaftState, lines: &mut Vec<Line>) {
        match (self.had_quorum, state.has_quorum) {
            // Before the first leader there is nothing to be lost.
            (None, false) => return,
            (Some(before), now) if before == now => return,
            (_, true) => lines.push(Line::Good("a quorum follows the leader".to_owned())),
            (_, false) => lines.push(Line::Bad(
                "no quorum was heard of for a leader's lease: no write succeeds until it is back".to_owned(),
            )),
        }
        self.had_quorum = Some(state.has_quorum);
    }

    fn membership(&mut self, state: &RaftState, lines: &mut Vec<Line>) {
        let now: BTreeMap<NodeId, (String, bool)> = state
            .members
            .iter()
            .map(|member| (member.id, (address_text(member.address.as_ref()), member.voter)))
            .collect();
        if self.members.as_ref() == Some(&now) {
            return;
        }
        let of = |voters: bool| {
            let some = now.iter().filter(|(_, (_, voter))| *voter == voters);
            let named = some.map(|(id, (address, _))| match address.is_empty() {
                true => id.to_string(),
                false => format!("{id} at {address}"),
            });
            named.collect::<Vec<_>>().join(", ")
        };
        let learners = match of(false) {
            none if none.is_empty() => String::new(),
            some => format!("; learners: {some}"),
        };
        lines.push(Line::Good(format!(
            "the members are now: voters: {}{learners}",
            of(true)
        )));
        self.members = Some(now);
    }

    /// Of those that a leader sends to.
    fn silence(&mut self, own: NodeId, state: &RaftState, after: Duration, lines: &mut Vec<Line>) {
        let others = state.members.iter().filter(|member| member.id != own);
        let silent: BTreeSet<NodeId> = match state.role {
            // One that never answered is told of by what it lacks: it may just have been added.
            Part::Leader => others
                .filter(|member| member.answered.is_some_and(|ago| ago > after))
                .map(|member| member.id)
                .collect(),
            _ => BTreeSet::new(),
        };
        for id in silent.difference(&self.silent) {
            let seconds = after.as_secs();
            lines.push(Line::Bad(format!("node {id} has not answered for {seconds} s")));
        }
        if state.role == Part::Leader {
            for id in self.silent.difference(&silent) {
                lines.push(Line::Good(format!(
                    "node {id} answers again, or is no member any more"
                )));
            }
        }
        self.silent = silent;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::MemberState;

    const AFTER: Duration = Duration::from_secs(4);

    fn member(id: u64, voter: bool, answered: Option<u64>) -> MemberState {
        MemberState {
            id: NodeId::new(id),
            address: Some(format!("n{id}:7001").parse().unwrap()),
            member: None,
            voter,
            matched: None,
            answered: answered.map(Duration::from_secs),
        }
    }

    fn state(role: Part, term: u64, leader: Option<u64>, has_quorum: bool) -> RaftState {
        RaftState {
            cluster: None,
            term: Term::new(term),
            role,
            leader: leader.map(NodeId::new),
            last_log: None,
            committed: None,
            purged: None,
            members: vec![
                member(1, true, None),
                member(2, true, Some(0)),
                member(3, true, Some(1)),
            ],
            has_quorum,
            confirmed: None,
            stopped: None,
        }
    }

    fn words(told: &mut Told, state: &RaftState) -> Vec<String> {
        let lines = told.news(NodeId::new(1), state, AFTER);
        lines
            .into_iter()
            .map(|line| match line {
                Line::Good(words) => words,
                Line::Bad(words) => format!("! {words}"),
            })
            .collect()
    }

    #[test]
    fn each_change_of_leaders_quorum_and_members_is_told_once() {
        let mut told = Told::default();
        let members = "the members are now: voters: 1 at n1:7001, 2 at n2:7001, 3 at n3:7001";
        let stands = state(Part::Candidate, 1, None, false);
        assert_eq!(
            words(&mut told, &stands),
            ["this node stands for election in term 1", members]
        );
        assert!(words(&mut told, &stands).is_empty(), "it was told");
        let leads = state(Part::Leader, 1, Some(1), true);
        assert_eq!(
            words(&mut told, &leads),
            ["this node leads in term 1", "a quorum follows the leader"]
        );
        assert!(words(&mut told, &leads).is_empty());
        let lost = state(Part::Follower, 1, None, false);
        assert_eq!(
            words(&mut told, &lost),
            [
                "nobody is known to lead; the term is 1",
                "! no quorum was heard of for a leader's lease: no write succeeds until it is back"
            ]
        );
        let follows = state(Part::Follower, 2, Some(2), true);
        assert_eq!(
            words(&mut told, &follows),
            ["node 2 leads in term 2", "a quorum follows the leader"]
        );
        let mut smaller = follows;
        smaller.members[2].voter = false;
        assert_eq!(
            words(&mut told, &smaller),
            ["the members are now: voters: 1 at n1:7001, 2 at n2:7001; learners: 3 at n3:7001"]
        );
    }

    #[test]
    fn a_leader_tells_once_of_who_does_not_answer_and_once_that_it_is_back() {
        let mut told = Told::default();
        let mut leads = state(Part::Leader, 1, Some(1), true);
        let _first = words(&mut told, &leads);
        leads.members[2].answered = Some(Duration::from_secs(5));
        assert_eq!(words(&mut told, &leads), ["! node 3 has not answered for 4 s"]);
        leads.members[2].answered = Some(Duration::from_secs(9));
        assert!(words(&mut told, &leads).is_empty());
        leads.members[2].answered = Some(Duration::from_secs(0));
        assert_eq!(
            words(&mut told, &leads),
            ["node 3 answers again, or is no member any more"]
        );
    }
}
