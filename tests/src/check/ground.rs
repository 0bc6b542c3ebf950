//! The one order of all transactions, and the model's state along it.
//!
//! Always: `runs` is in the order in which the state machine took the transactions; a revision has exactly one
//! commit.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_kv::model::{LogIndex, Revision, Txn, TxnRefused, TxnResponse};

use super::history::CallId;
use super::model::{How, Model, Step};
use super::taps::Agreement;
use super::{Rule, Violation};

/// A transaction in its place.
#[derive(Debug, Clone)]
pub struct Run {
    /// The entry that carried it.
    pub index: LogIndex,
    /// The call that it belongs to.
    pub call: Option<CallId>,
    /// What was asked.
    pub txn: Txn,
    /// Whether it ran.
    pub how: How,
    /// Whether it made a revision.
    pub changed: bool,
    /// What it was answered.
    pub outcome: Result<TxnResponse, TxnRefused>,
    /// When a node first applied it, where that was seen.
    pub at: Option<Duration>,
}

/// The order and the state.
#[derive(Debug, Clone)]
pub struct Ground {
    /// Every transaction stands in it, also those that changed nothing and of which nobody was told.
    pub complete: bool,
    /// The state at the end, with every version of every key.
    pub model: Model,
    /// Every transaction in order.
    pub runs: Vec<Run>,
    calls: BTreeMap<CallId, Vec<usize>>,
    commits: BTreeMap<Revision, usize>,
}

impl Default for Ground {
    fn default() -> Self {
        Self {
            complete: true,
            model: Model::default(),
            runs: Vec::new(),
            calls: BTreeMap::new(),
            commits: BTreeMap::new(),
        }
    }
}

impl Ground {
    /// Replays the log that the nodes agreed on, whose pages of a range end at so many bytes. What the product answered
    /// otherwise than the model is a violation; so is a hole.
    pub fn replay(agreement: &Agreement, page_bytes: u64) -> (Self, Vec<Violation>) {
        let mut violations = Vec::new();
        let mut ground = Self {
            model: Model::new(page_bytes),
            ..Self::default()
        };
        let first = agreement.entries().keys().next().copied();
        if let Some(first) = first.filter(|first| *first > LogIndex::new(1)) {
            let what = format!("the first entry that anybody applied is {first}");
            violations.push(Violation::new(Rule::NoGap, what));
            return (ground, violations);
        }
        let mut states = agreement.states().peekable();
        for (index, agreed) in agreement.entries() {
            let (outcome, steps) = match ground.model.apply(&agreed.entry) {
                Ok(applied) => applied,
                Err(hole) => {
                    violations.push(Violation::new(Rule::NoGap, format!("in the one log: {hole}")));
                    return (ground, violations);
                }
            };
            if outcome != agreed.outcome {
                let what = format!(
                    "entry {index} was answered with {:?} (by node {}), the model says {outcome:?}",
                    agreed.outcome, agreed.by
                );
                violations.push(Violation::new(Rule::Replay, what));
                return (ground, violations);
            }
            while let Some(standing) = states.next_if(|standing| standing.index <= Some(*index)) {
                let expected = (ground.model.revision(), ground.model.log_time());
                if standing.index == Some(*index) && (standing.revision, standing.log_time) != expected {
                    let what = format!(
                        "behind entry {index} the nodes are at {standing:?}, the model at {expected:?}"
                    );
                    violations.push(Violation::new(Rule::Replay, what));
                    return (ground, violations);
                }
            }
            for step in steps {
                let call = CallId::of(&step.txn);
                ground.push(*index, call, step, Some(agreed.at));
            }
        }
        (ground, violations)
    }

    /// Appends a transaction that the model has applied already, of this call.
    pub fn push(&mut self, index: LogIndex, call: Option<CallId>, step: Step, at: Option<Duration>) {
        let number = self.runs.len();
        if let Some(call) = call {
            self.calls.entry(call).or_default().push(number);
        }
        if step.changed
            && let Ok(response) = &step.outcome
        {
            self.commits.insert(response.revision, number);
        }
        let Step {
            txn,
            how,
            changed,
            outcome,
            ..
        } = step;
        self.runs.push(Run {
            index,
            call,
            txn,
            how,
            changed,
            outcome,
            at,
        });
    }

    /// Says that a place belongs to another call, whose transaction does the same there.
    pub fn reassign(&mut self, place: usize, call: CallId, txn: Txn) {
        let run = &mut self.runs[place];
        if let Some(places) = run.call.and_then(|before| self.calls.get_mut(&before)) {
            places.retain(|other| *other != place);
        }
        self.calls.entry(call).or_default().push(place);
        run.call = Some(call);
        run.txn = txn;
    }

    /// Every place at which a call's transaction stands: where it ran, and where it was only met again.
    pub fn of_call(&self, call: CallId) -> impl Iterator<Item = (usize, &Run)> {
        let places = self.calls.get(&call).map_or(&[][..], Vec::as_slice);
        places.iter().map(|place| (*place, &self.runs[*place]))
    }

    /// All calls that stand in the order.
    pub fn calls(&self) -> impl Iterator<Item = (CallId, usize)> {
        let ran = |place: &&usize| self.runs[**place].how == How::Ran;
        self.calls
            .iter()
            .map(move |(call, places)| (*call, places.iter().filter(ran).count()))
    }

    /// The transaction that made a revision; none for the first.
    pub fn commit(&self, revision: Revision) -> Option<&Run> {
        self.commits.get(&revision).map(|number| &self.runs[*number])
    }
}
