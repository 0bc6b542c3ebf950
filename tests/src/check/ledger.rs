//! What a node's log has promised, held against what the node finds when it starts again.
//!
//! Always: only what was told durable is a promise; what was asked for and not answered may be there or not.

use std::collections::VecDeque;

use quorate_kv::model::{LogIndex, LogPosition, NodeId, Term};
use quorate_kv::node::{LogEvent, LogVote};

/// The promises of one node, through all its lives.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// The highest vote promised.
    vote: Option<LogVote>,
    /// The log reaches at least so far.
    last: Option<LogIndex>,
    /// And is purged at least so far.
    purged: Option<LogIndex>,
    /// Appends asked for and not answered, each with how many truncations were asked for before it.
    appending: VecDeque<(LogPosition, usize)>,
    /// The truncations that this life asked for.
    truncations: Vec<Option<LogIndex>>,
}

impl Ledger {
    /// Takes an event; answers what is wrong with it.
    pub fn take(&mut self, event: &LogEvent) -> Result<(), String> {
        match *event {
            LogEvent::Opened { vote, last, purged } => self.opened(vote, last, purged),
            LogEvent::Appending(last) => {
                self.appending.push_back((last, self.truncations.len()));
                Ok(())
            }
            LogEvent::Durable(last) => self.durable(last),
            LogEvent::Truncating(last) => {
                self.truncations.push(last);
                self.last = self.last.min(last);
                Ok(())
            }
            LogEvent::Voted(vote) => {
                let before = self.vote.replace(vote);
                match before {
                    Some(before) if vote < before => Err(format!("it voted {vote:?} after {before:?}")),
                    _ => Ok(()),
                }
            }
            LogEvent::Purged(upto) => {
                self.purged = self.purged.max(Some(upto.index));
                self.last = self.last.max(Some(upto.index));
                Ok(())
            }
        }
    }

    fn durable(&mut self, last: LogPosition) -> Result<(), String> {
        let Some((asked, truncations_before)) = self.appending.pop_front() else {
            return Err(format!("entry {last} was told durable that nobody had appended"));
        };
        if asked != last {
            return Err(format!(
                "entry {last} was told durable, and {asked} was to be next"
            ));
        }
        // What is truncated behind it may be gone already.
        let later = self.truncations[truncations_before..].iter().copied();
        let kept = later.fold(Some(last.index), Option::min);
        self.last = self.last.max(kept);
        Ok(())
    }

    fn opened(
        &mut self,
        vote: Option<LogVote>,
        last: Option<LogPosition>,
        purged: Option<LogPosition>,
    ) -> Result<(), String> {
        let before = std::mem::take(self);
        // All that is found counts as durable from here on.
        self.vote = vote;
        self.last = last.map(|last| last.index);
        self.purged = purged.map(|purged| purged.index);
        if vote < before.vote {
            return Err(format!("it had voted {:?} and found {vote:?}", before.vote));
        }
        if self.last < before.last {
            return Err(format!(
                "its log had reached {:?} durably and was found to end at {last:?}",
                before.last
            ));
        }
        if self.purged < before.purged {
            return Err(format!(
                "its log was purged up to {:?}, and {purged:?} was found",
                before.purged
            ));
        }
        // A leader's entries come behind the vote for it.
        let wrote = last.map(|last| (last.term, last.leader));
        let voted = vote.map_or((Term::new(0), NodeId::new(0)), |vote| (vote.term, vote.node));
        match wrote {
            Some(wrote) if wrote > voted => Err(format!(
                "its log ends with {last:?}, of a later leader than its vote {vote:?}"
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(term: u64, index: u64) -> LogPosition {
        LogPosition {
            term: Term::new(term),
            leader: NodeId::new(1),
            index: LogIndex::new(index),
        }
    }

    fn vote(term: u64) -> LogVote {
        LogVote {
            term: Term::new(term),
            node: NodeId::new(1),
            leads: true,
        }
    }

    fn opened(term: u64, last: u64) -> LogEvent {
        LogEvent::Opened {
            vote: Some(vote(term)),
            last: Some(position(term, last)),
            purged: None,
        }
    }

    /// A ledger after these, none of which is wrong.
    fn after(events: &[LogEvent]) -> Ledger {
        let mut ledger = Ledger::default();
        for event in events {
            assert_eq!(ledger.take(event), Ok(()), "{event:?}");
        }
        ledger
    }

    #[test]
    fn what_was_asked_for_may_be_there_or_not_and_what_was_told_durable_is() {
        use LogEvent::{Appending, Durable, Voted};
        let life = [
            Voted(vote(1)),
            Appending(position(1, 5)),
            Appending(position(1, 7)),
            Durable(position(1, 5)),
        ];
        for (last, is_right) in [(4, false), (5, true), (7, true)] {
            let found = after(&life).take(&opened(1, last));
            assert_eq!(found.is_ok(), is_right, "{last}: {found:?}");
        }
    }

    #[test]
    fn a_truncation_that_was_asked_for_may_have_happened() {
        use LogEvent::{Appending, Durable, Truncating, Voted};
        let truncated = [
            Voted(vote(2)),
            Appending(position(1, 5)),
            Truncating(Some(LogIndex::new(3))),
            Durable(position(1, 5)),
        ];
        for (last, is_right) in [(2, false), (3, true), (5, true)] {
            let found = after(&truncated).take(&opened(2, last));
            assert_eq!(found.is_ok(), is_right, "{last}: {found:?}");
        }
        let again = [
            &truncated[..],
            &[Appending(position(2, 4)), Durable(position(2, 4))],
        ]
        .concat();
        for (last, is_right) in [(3, false), (4, true)] {
            let found = after(&again).take(&opened(2, last));
            assert_eq!(found.is_ok(), is_right, "{last}: {found:?}");
        }
    }

    #[test]
    fn what_a_start_found_counts_as_durable_for_the_next() {
        let mut ledger = after(&[opened(3, 9)]);
        assert!(ledger.take(&opened(3, 8)).is_err());
        let mut ledger = after(&[opened(3, 9)]);
        assert!(ledger.take(&opened(2, 9)).is_err());
    }

    #[test]
    fn a_vote_never_falls_and_is_never_older_than_the_entries() {
        let mut ledger = after(&[LogEvent::Voted(vote(4))]);
        assert!(ledger.take(&LogEvent::Voted(vote(3))).is_err());
        let behind = LogEvent::Opened {
            vote: Some(vote(1)),
            last: Some(position(2, 1)),
            purged: None,
        };
        assert!(Ledger::default().take(&behind).is_err());
    }
}
