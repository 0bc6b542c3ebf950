//! The one order where there are no taps: from what the callers of a store were told, and from the store itself
//! where nobody was told.
//!
//! Every acknowledged transaction says which revision it made or saw. Where a revision is missing, a write made it
//! that nobody was told of: the store is asked what that revision made of the keys that such writes could have
//! changed, and the model tells which of them does just that. Of several that do (two deletes of one key, say) the
//! one that was called first is taken: then no rule about time is stricter than it has to be. Where that one turns
//! out to be needed later, another takes its place.
//!
//! Linear in the calls: a missing revision costs one read of a few keys, not of the store. What no caller could
//! have written is looked for by reading everything at [`WHOLE_READS`] revisions and at the last one.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_kv::Client;
use quorate_kv::client::Error;
use quorate_kv::model::{
    Consistency, Key, KeyRange, KeyValue, LogIndex, ReadOp, ReadResult, Record, Revision, TxnRefused,
    TxnResponse,
};

use super::ground::Ground;
use super::history::{Answer, Call, CallId};
use super::model::{How, Model, Step};
use super::workload::read_all;
use super::{Rule, Violation};
use untold::{Known, Untold};

mod untold;

/// At so many revisions, evenly spread, the whole store is held against the model.
pub const WHOLE_READS: u64 = 40;

/// What a store is asked: what it holds at a revision, or now.
pub trait Source {
    /// All records at a revision (`None`: at the present one), and which it was.
    fn everything(
        &self,
        at: Option<Revision>,
    ) -> impl Future<Output = Result<(Revision, Vec<KeyValue>), Error>> + Send;

    /// What each of these keys held at a revision.
    fn records(
        &self,
        keys: Vec<Key>,
        at: Revision,
    ) -> impl Future<Output = Result<Vec<Option<Record>>, Error>> + Send;
}

impl Source for Client {
    async fn everything(&self, at: Option<Revision>) -> Result<(Revision, Vec<KeyValue>), Error> {
        read_all(self, at).await
    }

    async fn records(&self, keys: Vec<Key>, at: Revision) -> Result<Vec<Option<Record>>, Error> {
        let reads = keys.into_iter().map(ReadOp::Get);
        let response = self.read(reads).consistency(Consistency::At(at)).await?;
        let record = |result| match result {
            ReadResult::Get(record) => Ok(record),
            other => Err(Error::Rejected {
                node: None,
                reason: format!("a get was answered with {other:?}"),
            }),
        };
        response.results.into_iter().map(record).collect()
    }
}

/// For tests: a store that is what the model says.
impl Source for Model {
    async fn everything(&self, at: Option<Revision>) -> Result<(Revision, Vec<KeyValue>), Error> {
        let at = at.unwrap_or(self.revision());
        Ok((at, everything(self, at)))
    }

    async fn records(&self, keys: Vec<Key>, at: Revision) -> Result<Vec<Option<Record>>, Error> {
        Ok(keys.iter().map(|key| self.at(key, at).cloned()).collect())
    }
}

/// Builds the order of a history, asking the store where the history has gaps. Requires a store that nobody but
/// these callers has written to, and that nobody writes to any more. `tell` hears of how many revisions how many
/// are explained.
pub async fn rebuild(
    calls: &[Call],
    store: &impl Source,
    tell: impl Fn(Revision, Revision),
) -> Result<(Ground, Vec<Violation>), Error> {
    let (newest, last) = store.everything(None).await?;
    let mut told: BTreeMap<Revision, Vec<Known<'_>>> = BTreeMap::new();
    let mut untold = Vec::new();
    for call in calls {
        let Some(known) = Known::of(call) else {
            continue;
        };
        match &call.answer {
            Answer::Txn(response) => told.entry(response.revision).or_default().push(known),
            Answer::Written(revision) => told.entry(*revision).or_default().push(known),
            // A delete tells no revision.
            Answer::Unknown(_) | Answer::Deleted(true) => untold.push(known),
            Answer::Deleted(false)
            | Answer::Read(_)
            | Answer::Record(_)
            | Answer::Records(_)
            | Answer::Compacted(_)
            | Answer::Limits(_)
            | Answer::Refused(_)
            | Answer::Failed(_) => {}
        }
    }
    let mut ground = Ground::default();
    ground.complete = false;
    let mut building = Building {
        ground,
        violations: Vec::new(),
        index: LogIndex::new(0),
        untold: Untold::new(untold),
        seen_by: seen_by(calls),
        guesses: Vec::new(),
    };
    building.saw(in_order(told.remove(&Revision::FIRST).unwrap_or_default()));
    let mut revision = Revision::FIRST;
    let stride = newest.number().div_ceil(WHOLE_READS + 1).max(1);
    while revision < newest && building.violations.is_empty() {
        revision = revision.next();
        let mut here = in_order(told.remove(&revision).unwrap_or_default());
        match here.iter().position(|known| building.makes(known, revision)) {
            Some(maker) => building.run(here.remove(maker)),
            None => building.explain(revision, store).await?,
        }
        building.saw(here);
        if revision.number().is_multiple_of(stride) && revision < newest && building.violations.is_empty() {
            let (_, there) = store.everything(Some(revision)).await?;
            building.holds(revision, &there);
        }
        tell(revision, newest);
    }
    if building.violations.is_empty() {
        building.holds(newest, &last);
        if let Some((revision, beyond)) = told.first_key_value() {
            let calls: Vec<_> = beyond.iter().map(|known| known.call.id).collect();
            let what = format!("calls {calls:?} were told revision {revision}, the store is at {newest}");
            building.broken(Rule::Acknowledged, what);
        }
    }
    Ok((building.ground, building.violations))
}

/// Those that were told of one revision, as they ran: their answers come in any order.
fn in_order(mut known: Vec<Known<'_>>) -> Vec<Known<'_>> {
    known.sort_by_key(|known| {
        (
            known.response.map(|response| response.log_index),
            known.call.called,
        )
    });
    known
}

/// By when a revision, or a later one, had been seen: who called later did not make it. Ascending.
fn seen_by(calls: &[Call]) -> Vec<(Revision, Duration)> {
    let mut seen: Vec<(Revision, Duration)> = calls
        .iter()
        .filter_map(|call| match &call.answer {
            Answer::Txn(response) => Some((response.revision, call.answered)),
            Answer::Written(revision) => Some((*revision, call.answered)),
            Answer::Read(response) => Some((response.revision, call.answered)),
            _ => None,
        })
        .collect();
    seen.sort_unstable();
    let mut earliest = Duration::MAX;
    for (_, at) in seen.iter_mut().rev() {
        earliest = earliest.min(*at);
        *at = earliest;
    }
    seen
}

struct Building<'h> {
    ground: Ground,
    violations: Vec<Violation>,
    /// The last entry that was told.
    index: LogIndex,
    untold: Untold<'h>,
    seen_by: Vec<(Revision, Duration)>,
    guesses: Vec<Guess<'h>>,
}

/// A revision that several writes could have made.
struct Guess<'h> {
    /// Where it stands in the order.
    place: usize,
    /// The call that was taken.
    call: &'h Call,
    /// The writes that would have done the same.
    others: Vec<usize>,
}

impl<'h> Building<'h> {
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
    fn saw(&mut self, known: Vec<Known<'h>>) {
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
                self.broken(Rule::Acknowledged, what);
            }
        }
    }

    fn run(&mut self, known: Known<'h>) {
        let index = known.response.map_or(self.index, |response| response.log_index);
        if index < self.index {
            let what = format!(
                "call {} ran in entry {index}, and its revision follows that of entry {}",
                known.call.id, self.index
            );
            self.broken(Rule::Acknowledged, what);
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
    async fn explain(&mut self, revision: Revision, store: &impl Source) -> Result<(), Error> {
        let later = self.seen_by.partition_point(|(seen, _)| *seen < revision);
        let by = self.seen_by.get(later).map_or(Duration::MAX, |(_, at)| *at);
        self.untold.called_by(by);
        let model = &self.ground.model;
        // Deletes that were acknowledged are the most by far, and each did make some revision. Only where it was
        // none of them, all the keys are asked for that any write could have changed.
        let mut asked = Asked::new(store, revision);
        for keys in [self.untold.keys_of_acknowledged(), self.untold.keys(model)] {
            asked.ask(keys).await?;
            let (signed, others) = self.untold.candidates(&asked.changed(model), model);
            let mut makers = asked.makers(&signed, &self.untold, model).await?;
            if makers.is_empty() {
                makers = asked.makers(&others, &self.untold, model).await?;
            }
            if let Some((first, others)) = makers.split_first() {
                let known = self.untold.take(*first);
                if !others.is_empty() {
                    self.guesses.push(Guess {
                        place: self.ground.runs.len(),
                        call: known.call,
                        others: others.to_vec(),
                    });
                }
                self.run(known);
                return Ok(());
            }
        }
        if let Some((guess, other, known)) = self.other_guess(&mut asked).await? {
            let other = self.untold.take(other);
            self.ground
                .reassign(self.guesses[guess].place, other.call.id, other.txn);
            self.guesses[guess].call = other.call;
            self.run(known);
            return Ok(());
        }
        let (_, there) = store.everything(Some(revision)).await?;
        let before = everything(&self.ground.model, self.ground.model.revision());
        let what = format!(
            "no write explains revision {revision}, where {}; {} writes are left of which nobody was told",
            difference(&before, &there),
            self.untold.left()
        );
        self.broken(Rule::Once, what);
        Ok(())
    }

    /// A write that was taken for an earlier revision and is needed here, where another one did the same there.
    async fn other_guess(
        &self,
        asked: &mut Asked<'_, impl Source>,
    ) -> Result<Option<(usize, usize, Known<'h>)>, Error> {
        for (number, guess) in self.guesses.iter().enumerate().rev() {
            let Some(other) = guess.others.iter().find(|other| self.untold.is_open(**other)) else {
                continue;
            };
            let Some(known) = Known::of(guess.call) else {
                continue;
            };
            if asked.made_by(&known, &self.ground.model).await? {
                return Ok(Some((number, *other, known)));
            }
        }
        Ok(None)
    }

    /// The model is at this revision, and the store must hold the same.
    fn holds(&mut self, revision: Revision, there: &[KeyValue]) {
        let expected = everything(&self.ground.model, revision);
        if expected != there {
            let what = format!("at {revision}: {}", difference(&expected, there));
            self.broken(Rule::FinalState, what);
        }
    }

    fn broken(&mut self, rule: Rule, what: String) {
        self.violations.push(Violation::new(rule, what));
    }
}

/// What the store says of some keys at one revision; asked at most once of each.
struct Asked<'s, S> {
    store: &'s S,
    revision: Revision,
    records: BTreeMap<Key, Option<Record>>,
}

impl<'s, S: Source> Asked<'s, S> {
    fn new(store: &'s S, revision: Revision) -> Self {
        let records = BTreeMap::new();
        Self {
            store,
            revision,
            records,
        }
    }

    async fn ask(&mut self, keys: Vec<Key>) -> Result<(), Error> {
        // Values are 20 KB at most in the workload, so an answer stays well below what a message may have.
        const KEYS_MAX: usize = 256;
        let mut new = keys;
        new.retain(|key| !self.records.contains_key(key));
        for keys in new.chunks(KEYS_MAX) {
            let records = self.store.records(keys.to_vec(), self.revision).await?;
            self.records.extend(keys.iter().cloned().zip(records));
        }
        Ok(())
    }

    /// Those of the writes that do just what the revision did to all keys asked for.
    async fn makers(
        &mut self,
        numbers: &[usize],
        untold: &Untold<'_>,
        model: &Model,
    ) -> Result<Vec<usize>, Error> {
        let mut makers = Vec::new();
        for number in numbers {
            if self.made_by(untold.get(*number), model).await? {
                makers.push(*number);
            }
        }
        Ok(makers)
    }

    async fn made_by(&mut self, known: &Known<'_>, model: &Model) -> Result<bool, Error> {
        let changes = model.run(&known.txn, LogIndex::new(0)).changes(model);
        if changes.is_empty() {
            return Ok(false);
        }
        self.ask(changes.keys().cloned().collect()).await?;
        Ok(self.changed(model) == changes)
    }

    /// Of the keys asked for, those that are not as the model still has them.
    fn changed(&self, model: &Model) -> BTreeMap<Key, Option<Record>> {
        let present = model.revision();
        let changed = |(key, record): &(&Key, &Option<Record>)| model.at(key, present) != record.as_ref();
        let changed = self.records.iter().filter(changed);
        changed
            .map(|(key, record)| (key.clone(), record.clone()))
            .collect()
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
