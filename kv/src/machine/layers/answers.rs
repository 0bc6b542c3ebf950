//! What became of the answers of sessions since an older state: what a batch changes of them, and what a layer does.
//!
//! Always: what is not here is as the older state has it; an answer is forgotten here only where an older state has a
//! row of it, or may have. So an answer that came and went leaves nothing behind.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bytes::Bytes;

use crate::model::{Sequence, SessionId};

/// Whose answer, and to which of its writes.
pub(in crate::machine) type AnswerTo = (SessionId, Sequence);

/// See the module.
#[derive(Debug, Default)]
pub(in crate::machine) struct Answers(BTreeMap<AnswerTo, Answer>);

#[derive(Debug)]
struct Answer {
    /// `None`: it is forgotten.
    now: Option<Bytes>,
    /// An older state has a row of it, or may have. It is kept in mind while the answer is remembered anew: the id of a
    /// session that has ended can be drawn again, and the row of the one before must not come back with the next
    /// forgetting.
    is_older: bool,
}

impl Answers {
    /// Remembers an answer.
    pub(in crate::machine) fn remember(&mut self, to: AnswerTo, answer: Bytes) {
        let now = Some(answer);
        match self.0.entry(to) {
            Entry::Occupied(mut known) => known.get_mut().now = now,
            Entry::Vacant(vacant) => {
                vacant.insert(Answer { now, is_older: false });
            }
        }
    }

    /// Forgets an answer, which is remembered here or by an older state.
    pub(in crate::machine) fn forget(&mut self, to: AnswerTo) {
        match self.0.entry(to) {
            Entry::Occupied(known) if !known.get().is_older => {
                known.remove();
            }
            Entry::Occupied(mut known) => known.get_mut().now = None,
            Entry::Vacant(vacant) => {
                vacant.insert(Answer {
                    now: None,
                    is_older: true,
                });
            }
        }
    }

    /// Adds what became of answers since; answers how many were not here before, and their bytes.
    pub(in crate::machine) fn add(&mut self, later: Answers) -> (u64, u64) {
        let (mut new, mut bytes) = (0, 0);
        for (to, answer) in later.0 {
            match (self.0.entry(to), answer) {
                (Entry::Vacant(vacant), answer) => {
                    new += 1;
                    bytes += answer.now.as_ref().map_or(0, Bytes::len) as u64;
                    vacant.insert(answer);
                }
                (_, Answer { now: Some(now), .. }) => self.remember(to, now),
                (_, Answer { now: None, .. }) => self.forget(to),
            }
        }
        (new, bytes)
    }

    /// An answer, where something became of it: `Some(None)` is one forgotten.
    pub(in crate::machine) fn get(&self, to: AnswerTo) -> Option<Option<Bytes>> {
        self.0.get(&to).map(|answer| answer.now.clone())
    }

    /// In their order; `None` where it is forgotten.
    pub(in crate::machine) fn iter(&self) -> impl Iterator<Item = (AnswerTo, Option<&Bytes>)> {
        self.0.iter().map(|(to, answer)| (*to, answer.now.as_ref()))
    }
}
