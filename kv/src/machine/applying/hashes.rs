//! The state's hash at agreed positions: what nodes compare with each other.
//!
//! Each entry whose index is a multiple of [`Tuning::hash_entries`](crate::machine::Tuning::hash_entries) ends a call of `apply`, and the hash
//! that the state has there is kept, for the last [`KEPT`] of them. In memory alone: a node that starts anew knows the next
//! ones.

use std::collections::VecDeque;

use crate::model::{LogIndex, LogPosition, StateHash};

/// So many hashes are kept: nodes that are further apart than these tell each other nothing.
pub(in crate::machine) const KEPT: usize = 64;

/// What the state hashed to, the oldest first.
#[derive(Clone, Debug, Default)]
pub(in crate::machine) struct Hashes(VecDeque<(LogPosition, StateHash)>);

/// Whether an entry ends a call of `apply`, so that the hash behind it is known.
pub(in crate::machine) fn is_agreed(index: LogIndex, every: u64) -> bool {
    index.number().is_multiple_of(every.max(1))
}

impl Hashes {
    pub(in crate::machine) fn note(&mut self, position: LogPosition, hash: StateHash) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back((position, hash));
    }

    pub(in crate::machine) fn iter(&self) -> impl Iterator<Item = (LogPosition, StateHash)> {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NodeId, Term};

    #[test]
    fn the_last_that_were_noted_are_kept_and_no_more() {
        let noted = |index: u64| {
            let position = LogPosition {
                term: Term::new(1),
                leader: NodeId::new(1),
                index: LogIndex::new(index),
            };
            (position, StateHash(u128::from(index)))
        };
        let mut hashes = Hashes::default();
        for index in 0..200 {
            let (position, hash) = noted(index);
            hashes.note(position, hash);
        }
        assert!(hashes.iter().eq((136..200).map(noted)));
    }
}
