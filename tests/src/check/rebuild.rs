//! The one order where there are no taps: from what the callers of a store were told, and from the store itself
//! where nobody was told.
//!
//! Every acknowledged transaction says which revision it made or saw. Where a revision is missing, a write made it
//! that nobody was told of: the store is asked what that revision changed, and the model tells which of the
//! unknown writes does just that. Of several that do (two deletes of one key, say) the one that was called first
//! is taken: then no rule about time is stricter than it has to be.

use std::collections::BTreeMap;

use quorate_kv::Client;
use quorate_kv::client::Error;
use quorate_kv::model::{
    Key, KeyRange, KeyValue, LogIndex, Op, Record, Revision, Txn, TxnRefused, TxnResponse,
};

use super::ground::Ground;
use super::history::{Answer, Call, Request};
use super::model::{How, Model, Step};
use super::workload::read_all;
use super::{Rule, Violation};

/// What a store is asked: everything that it holds at a revision, or now.
pub trait Source {
    /// All records at a revision (`None`: at the present one), and which it was.
    fn everything(
        &self,
        at: Option<Revision>,
    ) -> impl Future<Output = Result<(Revision, Vec<KeyValue>), Error>> + Send;
}

impl Source for Client {
    async fn everything(&self, at: Option<Revision>) -> Result<(Revision, Vec<KeyValue>), Error> {
        read_all(self, at).await
    }
}

/// For tests: a store that is what the model says.
impl Source for Model {
    async fn everything(&self, at: Option<Revision>) -> Result<(Revision, Vec<KeyValue>), Error> {
        let at = at.unwrap_or(self.revision());
        Ok((at, everything(self, at)))
    }
}

/// A transaction as its caller knows it.
struct Known<'h> {
    call: &'h Call,
    txn: Txn,
    /// The whole answer, or the revision alone, as far as it was told.
    response: Option<&'h TxnResponse>,
}

/// Builds the order of a history, asking the store where the history has gaps. Requires a store that nobody but
/// these callers has written to, and that nobody writes to any more.
pub async fn rebuild(calls: &[Call], store: &impl Source) -> Result<(Ground, Vec<Violation>), Error> {
    let (newest, last) = store.everything(None).await?;
    let mut told: BTreeMap<Revision, Vec<Known<'_>>> = BTreeMap::new();
    let mut untold: Vec<Known<'_>> = Vec::new();
    for call in calls {
        let Some(txn) = transaction(&call.request) else {
            continue;
        };
        match &call.answer {
            Answer::Txn(response) => {
                let known = Known {
                    call,
                    txn,
                    response: Some(response),
                };
                told.entry(response.revision).or_default().push(known);
            }
            Answer::Written(revision) => {
                let known = Known {
                    call,
                    txn,
                    response: None,
                };
                told.entry(*revision).or_default().push(known);
            }
            // A delete tells no revision.
            Answer::Unknown(_) | Answer::Deleted(true) => untold.push(Known {
                call,
                txn,
                response: None,
            }),
            Answer::Deleted(false)
            | Answer::Read(_)
            | Answer::Record(_)
            | Answer::Records(_)
            | Answer::Refused(_)
            | Answer::Failed(_) => {}
        }
    }
    untold.sort_by_key(|known| known.call.called);
    let mut ground = Ground::default();
    ground.complete = false;
    let mut building = Building {
        ground,
        violations: Vec::new(),
        index: LogIndex::new(0),
    };
    building.saw(told.remove(&Revision::FIRST).unwrap_or_default());
    let mut revision = Revision::FIRST;
    while revision < newest && building.violations.is_empty() {
        revision = revision.next();
        let mut here = told.remove(&revision).unwrap_or_default();
        here.sort_by_key(|known| {
            (
                known.response.map(|response| response.log_index),
                known.call.called,
            )
        });
        match here.iter().position(|known| building.makes(known, revision)) {
            Some(maker) => building.run(here.remove(maker)),
            None => {
                let (_, there) = store.everything(Some(revision)).await?;
                building.explain(revision, &mut untold, &there);
            }
        }
        building.saw(here);
    }
    let Building {
        ground,
        mut violations,
        ..
    } = building;
    if violations.is_empty() {
        if let Some((revision, beyond)) = told.first_key_value() {
            let calls: Vec<_> = beyond.iter().map(|known| known.call.id).collect();
            let what = format!("calls {calls:?} were told revision {revision}, the store is at {newest}");
            violations.push(Violation::new(Rule::Acknowledged, what));
        }
        let expected = everything(&ground.model, newest);
        if expected != last {
            let what = format!("at {newest}: {}", difference(&expected, &last));
            violations.push(Violation::new(Rule::FinalState, what));
        }
    }
    Ok((ground, violations))
}

struct Building {
    ground: Ground,
    violations: Vec<Violation>,
    /// The last entry that was told.
    index: LogIndex,
}

impl Building {
    /// Whether this transaction, run now, makes the revision and is answered as it was.
    fn makes(&self, known: &Known<'_>, revision: Revision) -> bool {
        let index = known
            .response
            .map_or(LogIndex::new(0), |response| response.log_index);
        match (self.ground.model.run(&known.txn, index).outcome, known.response) {
            (Ok(would), Some(told)) => would.revision == revision && would == *told,
            (Ok(would), None) => would.revision == revision,
            (Err(_), _) => false,
        }
    }

    /// Those that were told the present revision and did not make it saw it, and changed nothing.
    fn saw(&mut self, known: Vec<Known<'_>>) {
        let present = self.ground.model.revision();
        for known in known {
            let index = known.response.map_or(self.index, |response| response.log_index);
            let would = self.ground.model.run(&known.txn, index).outcome;
            if would.as_ref().ok() == known.response && known.response.is_some() {
                self.run(known);
            } else {
                let what = format!(
                    "call {} was told {:?} of {:?}, which neither made revision {present} nor saw it: the model says {would:?}",
                    known.call.id, known.call.answer, known.call.request
                );
                self.violations.push(Violation::new(Rule::Acknowledged, what));
            }
        }
    }

    fn run(&mut self, known: Known<'_>) {
        let index = known.response.map_or(self.index, |response| response.log_index);
        if index < self.index {
            let what = format!(
                "call {} ran in entry {index}, and its revision follows that of entry {}",
                known.call.id, self.index
            );
            self.violations.push(Violation::new(Rule::Acknowledged, what));
        }
        self.index = index;
        let before = self.ground.model.revision();
        let outcome: Result<TxnResponse, TxnRefused> = self.ground.model.run_now(&known.txn, index);
        let changed = self.ground.model.revision() != before;
        let step = Step {
            txn: known.txn,
            session: None,
            how: How::Ran,
            outcome,
            changed,
        };
        self.ground.push(index, Some(known.call.id), step, None);
    }

    /// Finds the write of which nobody was told that made the revision.
    fn explain(&mut self, revision: Revision, untold: &mut Vec<Known<'_>>, there: &[KeyValue]) {
        let before = everything(&self.ground.model, self.ground.model.revision());
        let changes = changes(&before, there);
        let does = |known: &Known<'_>| {
            self.ground
                .model
                .run(&known.txn, LogIndex::new(0))
                .changes(&self.ground.model)
                == changes
        };
        if let Some(found) = untold.iter().position(does) {
            let known = untold.remove(found);
            self.run(known);
        } else {
            let what = format!(
                "no write explains revision {revision}, which changed {changes:?}; {} writes are left of which nobody was told",
                untold.len()
            );
            self.violations.push(Violation::new(Rule::Once, what));
        }
    }
}

/// The transaction of a call that writes.
fn transaction(request: &Request) -> Option<Txn> {
    match request {
        Request::Txn(txn) => Some(txn.clone()),
        Request::Put { key, value } => Some(Txn::new([Op::put(key.clone(), value.clone())])),
        Request::Delete { key } => Some(Txn::new([Op::delete(key.clone())])),
        // That its guard held is what the rule of isolation looks at.
        Request::Transact { ops, .. } => Some(Txn::new(ops.clone())),
        Request::Read { .. } | Request::Get { .. } | Request::Range(_) => None,
    }
}

fn everything(model: &Model, revision: Revision) -> Vec<KeyValue> {
    model.range_at(&KeyRange::all(), revision)
}

/// What became of the keys that differ.
fn changes(before: &[KeyValue], after: &[KeyValue]) -> BTreeMap<Key, Option<Record>> {
    let map = |list: &[KeyValue]| -> BTreeMap<Key, Record> {
        list.iter()
            .map(|one| (one.key.clone(), one.record.clone()))
            .collect()
    };
    let (before, after) = (map(before), map(after));
    let gone = before
        .keys()
        .filter(|key| !after.contains_key(*key))
        .map(|key| (key.clone(), None));
    let new = after
        .iter()
        .filter(|(key, record)| before.get(*key) != Some(record));
    gone.chain(new.map(|(key, record)| (key.clone(), Some(record.clone()))))
        .collect()
}

fn difference(expected: &[KeyValue], found: &[KeyValue]) -> String {
    let changes = changes(expected, found);
    let shown: Vec<String> = changes
        .iter()
        .take(5)
        .map(|(key, record)| format!("{key} is {record:?}"))
        .collect();
    format!(
        "{} keys are not what the order made of them: {}",
        changes.len(),
        shown.join("; ")
    )
}
