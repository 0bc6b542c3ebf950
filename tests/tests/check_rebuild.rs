//! Without taps the order is rebuilt from the answers and from the store: what a sound store did is found again, and
//! what a store with a bug did is not explained away.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate_kv::client::Error;
use quorate_kv::model::{Key, KeyRange, KeyValue, Op, Record, Revision, Txn, TxnRefused, TxnResponse};
use quorate_tests::check::ground::{Ground, Run};
use quorate_tests::check::history::{Answer, Call, CallId, Request};
use quorate_tests::check::model::{How, Model, PAGE_BYTES};
use quorate_tests::check::rebuild::{Source, WHOLE_READS, rebuild};
use quorate_tests::check::recording::{Recording, record};
use quorate_tests::check::taps::Agreement;
use quorate_tests::check::{Rule, Violation, judge, metadata};

/// On a thread of its own: the simulation has its own runtime, and a test here is on another already.
static GOOD: LazyLock<Recording> = LazyLock::new(|| {
    let recorded = std::thread::spawn(|| record(7, 600, 5)).join();
    recorded.expect("a calm simulation")
});

fn good_ground() -> Ground {
    let mut agreement = Agreement::default();
    GOOD.events.iter().for_each(|event| agreement.take(event));
    Ground::replay(&agreement, PAGE_BYTES).0
}

async fn rebuilt(calls: &[Call], store: &impl Source) -> (Ground, Vec<Violation>) {
    let rebuilt = rebuild(calls, store, |_, _| {}).await;
    rebuilt.expect("the model always answers")
}

/// The same calls with every so manieth answer to a write lost.
fn with_lost_answers(calls: &[Call], every: usize, except: Option<CallId>) -> Vec<Call> {
    let mut calls = calls.to_vec();
    for (number, call) in calls.iter_mut().enumerate() {
        let told = matches!(
            call.answer,
            Answer::Txn(_) | Answer::Written(_) | Answer::Deleted(_)
        );
        if number % every == 0 && told && call.request.writes() && Some(call.id) != except {
            call.answer = Answer::Unknown("spoiled".to_owned());
        }
    }
    calls
}

fn shown(violations: &[Violation]) -> Vec<String> {
    violations.iter().take(3).map(ToString::to_string).collect()
}

#[track_caller]
fn caught(name: &str, by: &[Rule], violations: &[Violation]) {
    assert!(
        violations.iter().any(|violation| by.contains(&violation.rule)),
        "{name}: expected one of {by:?}, got {:#?}",
        shown(violations)
    );
}

// ----- a sound store

#[tokio::test]
async fn the_order_is_rebuilt_from_the_answers_alone() {
    let ground = good_ground();
    let (again, violations) = rebuilt(&GOOD.history.calls, &ground.model).await;
    assert_eq!(violations, []);
    assert_eq!(again.model.revision(), ground.model.revision());
    assert_eq!(judge::judge(&again, &GOOD.history.calls), []);
    assert_eq!(
        metadata::judge(&again, &GOOD.history.calls, &GOOD.history.meta),
        []
    );
}

#[tokio::test]
async fn writes_that_nobody_was_told_of_are_found_again() {
    let ground = good_ground();
    for every in [1, 2, 5] {
        let calls = with_lost_answers(&GOOD.history.calls, every, None);
        let (again, violations) = rebuilt(&calls, &ground.model).await;
        assert_eq!(violations, [], "every answer number {every} is lost");
        assert_eq!(again.model.range_at(&KeyRange::all(), GOOD.last.0), GOOD.last.1);
        assert_eq!(judge::judge(&again, &calls), []);
    }
}

#[tokio::test]
async fn of_two_unknown_writes_that_do_the_same_the_one_that_is_needed_later_is_left() {
    // Both add one. The one that was called last ran first, when its guard held; when the other ran, it did not.
    let key = |name: &'static str| Key::from(name);
    let add = || {
        Txn::new([Op::Add {
            key: key("n"),
            delta: 1,
        }])
    };
    let guarded = add().when(quorate_kv::model::Guard::missing(key("k")));
    let mut model = Model::default();
    let mut index = quorate_kv::model::LogIndex::new(0);
    let mut ran = |number: u64, txn: &Txn| {
        index = index.next();
        let told = model.run_now(txn, index).expect("nothing speaks against it");
        Call {
            id: CallId { client: 1, number },
            parent: None,
            called: Duration::from_millis(number),
            answered: Duration::from_secs(1),
            request: Request::Txn(txn.clone()),
            answer: Answer::Txn(told),
        }
    };
    let unknown = |mut call: Call| {
        call.answer = Answer::Unknown("spoiled".to_owned());
        call
    };
    let second = unknown(ran(2, &guarded));
    let between = ran(3, &Txn::new([Op::put(key("k"), "v")]));
    let first = unknown(ran(1, &add()));
    let calls = [first, second, between];
    let (ground, violations) = rebuilt(&calls, &model).await;
    assert_eq!(violations, []);
    let order: Vec<_> = ground
        .runs
        .iter()
        .filter_map(|run| run.call)
        .map(|call| call.number)
        .collect();
    assert_eq!(order, [2, 3, 1]);
    assert_eq!(judge::judge(&ground, &calls), []);
}

/// The story: two that changed nothing came before all others, and the first was answered last. A minute of chaos called that a
/// fault, once in months.
#[tokio::test]
async fn what_saw_the_empty_store_is_put_in_the_order_of_its_entries() {
    let mut model = Model::default();
    let nothing = Txn::new([Op::delete(Key::from("k"))]);
    let mut ran = |number: u64| {
        let index = quorate_kv::model::LogIndex::new(number);
        let told = model.run_now(&nothing, index).expect("nothing speaks against it");
        Call {
            id: CallId { client: 1, number },
            parent: None,
            called: Duration::ZERO,
            answered: Duration::from_secs(10 - number),
            request: Request::Txn(nothing.clone()),
            answer: Answer::Txn(told),
        }
    };
    let mut calls = [ran(5), ran(6)];
    calls.reverse();
    let (ground, violations) = rebuilt(&calls, &model).await;
    assert_eq!(violations, []);
    assert_eq!(judge::judge(&ground, &calls), []);
}

/// A store that counts what it is asked.
struct Counted<'g> {
    model: &'g Model,
    whole: AtomicU64,
    keys: AtomicU64,
}

impl Source for Counted<'_> {
    async fn everything(&self, at: Option<Revision>) -> Result<(Revision, Vec<KeyValue>), Error> {
        self.whole.fetch_add(1, Ordering::Relaxed);
        self.model.everything(at).await
    }

    async fn records(&self, keys: Vec<Key>, at: Revision) -> Result<Vec<Option<Record>>, Error> {
        self.keys.fetch_add(keys.len() as u64, Ordering::Relaxed);
        self.model.records(keys, at).await
    }
}

#[tokio::test]
async fn a_missing_revision_costs_a_few_keys_and_not_the_store() {
    let ground = good_ground();
    let calls = with_lost_answers(&GOOD.history.calls, 5, None);
    let counted = Counted {
        model: &ground.model,
        whole: AtomicU64::new(0),
        keys: AtomicU64::new(0),
    };
    let (_, violations) = rebuilt(&calls, &counted).await;
    assert_eq!(violations, []);
    let missing = (2..=ground.model.revision().number())
        .filter(|revision| {
            let made = ground.commit(Revision::new(*revision)).and_then(|run| run.call);
            let told = |call: &&Call| matches!(call.answer, Answer::Txn(_) | Answer::Written(_));
            !calls.iter().filter(told).any(|call| Some(call.id) == made)
        })
        .count() as u64;
    let (whole, keys) = (counted.whole.into_inner(), counted.keys.into_inner());
    assert!(whole <= WHOLE_READS + 1, "{whole} whole reads");
    assert!(
        missing > 50,
        "only {missing} revisions are missing: too few to mean something"
    );
    assert!(
        keys < 40 * missing,
        "{keys} keys were asked for {missing} missing revisions"
    );
}

// ----- a store that does not hold what it should

#[tokio::test]
async fn calls_that_the_store_knows_nothing_of_and_writes_that_nobody_asked_for_are_seen() {
    let ground = good_ground();
    let ran = |call: &Call| {
        ground
            .of_call(call.id)
            .any(|(_, run)| run.how == How::Ran && run.changed)
    };
    let writes = |call: &Call| matches!(call.answer, Answer::Txn(_)) && call.request.writes() && ran(call);

    // Somebody's write that nobody asked for, or one that ran twice.
    let mut calls = GOOD.history.calls.clone();
    let at = calls.iter().rposition(writes).expect("a write");
    calls.remove(at);
    let (_, violations) = rebuilt(&calls, &ground.model).await;
    caught("a revision too many", &[Rule::Once], &violations);

    // An acknowledged write whose revision is somebody else's.
    let mut calls = GOOD.history.calls.clone();
    let copy = CallId {
        client: 99,
        number: 1,
    };
    let mut lost = calls[at].clone();
    lost.id = copy;
    if let (Request::Txn(txn), Answer::Txn(response)) = (&mut lost.request, &mut lost.answer) {
        txn.then = vec![Op::put(Key::from("lost"), "lost")];
        response.results.truncate(1);
    }
    calls.push(lost);
    let (_, violations) = rebuilt(&calls, &ground.model).await;
    caught("a lost write", &[Rule::Acknowledged], &violations);
}

/// A store that tells otherwise of its records than the model; `at` is `None` for the present.
struct Lying<'g, L> {
    ground: &'g Ground,
    newest: Revision,
    lie: L,
}

impl<L: Fn(&Key, Revision) -> Option<Record> + Sync> Source for Lying<'_, L> {
    async fn everything(&self, at: Option<Revision>) -> Result<(Revision, Vec<KeyValue>), Error> {
        let at = at.unwrap_or(self.newest);
        let ever =
            (1..=at.number()).flat_map(|revision| self.ground.model.changed_by(Revision::new(revision)));
        let records: BTreeMap<Key, Record> = ever
            .filter_map(|key| Some((key.clone(), (self.lie)(key, at)?)))
            .collect();
        let records = records.into_iter().map(|(key, record)| KeyValue { key, record });
        Ok((at, records.collect()))
    }

    async fn records(&self, keys: Vec<Key>, at: Revision) -> Result<Vec<Option<Record>>, Error> {
        Ok(keys.iter().map(|key| (self.lie)(key, at)).collect())
    }
}

#[tokio::test]
async fn a_store_that_forgot_its_last_revisions_is_seen() {
    let ground = good_ground();
    let short = Lying {
        ground: &ground,
        newest: Revision::new(ground.model.revision().number() - 3),
        lie: |key: &Key, at| ground.model.at(key, at).cloned(),
    };
    let (_, violations) = rebuilt(&GOOD.history.calls, &short).await;
    caught("forgotten revisions", &[Rule::Acknowledged], &violations);
}

#[tokio::test]
async fn a_key_that_the_store_has_lost_or_that_came_back_is_seen() {
    let ground = good_ground();
    let model = &ground.model;
    let newest = model.revision();
    let last_of = |there: bool| {
        let revisions = (2..=newest.number()).map(Revision::new);
        let changes =
            revisions.flat_map(|revision| model.changed_by(revision).iter().map(move |key| (revision, key)));
        let last = |(revision, key): &(Revision, &Key)| {
            model
                .versions(key)
                .last()
                .is_some_and(|version| version.revision == *revision && version.record.is_some() == there)
        };
        changes.filter(last).last().expect("such a change")
    };
    for (name, there) in [("a lost write", true), ("a lost delete", false)] {
        let (revision, lost) = last_of(there);
        let lying = Lying {
            ground: &ground,
            newest,
            lie: |key: &Key, at: Revision| {
                let forgotten = key == lost && at >= revision;
                let at = if forgotten {
                    Revision::new(revision.number() - 1)
                } else {
                    at
                };
                model.at(key, at).cloned()
            },
        };
        for calls in [
            GOOD.history.calls.clone(),
            with_lost_answers(&GOOD.history.calls, 5, None),
        ] {
            let (_, violations) = rebuilt(&calls, &lying).await;
            caught(name, &[Rule::FinalState, Rule::Once], &violations);
        }
    }
}

// ----- a store with a bug

/// What a store did with the good history's transactions: what it told each caller, and what it holds.
struct World {
    calls: Vec<Call>,
    model: Model,
}

impl World {
    /// `run` is the store: it answers one transaction and changes the model.
    fn of(
        ground: &Ground,
        mut run: impl FnMut(&mut Model, usize, &Run) -> Result<TxnResponse, TxnRefused>,
    ) -> Self {
        let mut model = Model::default();
        let mut told: BTreeMap<CallId, (bool, Result<TxnResponse, TxnRefused>)> = BTreeMap::new();
        for (number, one) in ground
            .runs
            .iter()
            .enumerate()
            .filter(|(_, run)| run.how == How::Ran)
        {
            let before = model.revision();
            let outcome = run(&mut model, number, one);
            let changed = outcome.as_ref().is_ok_and(|response| response.revision != before);
            if let Some(call) = one.call {
                told.insert(call, (changed, outcome));
            }
        }
        let mut calls = GOOD.history.calls.clone();
        for call in &mut calls {
            let Some((changed, outcome)) = told.get(&call.id) else {
                continue;
            };
            call.answer = match (&call.answer, outcome) {
                (Answer::Txn(_), Ok(response)) => Answer::Txn(response.clone()),
                (Answer::Txn(_), Err(refused)) => Answer::Refused(refused.clone()),
                (Answer::Written(_), Ok(response)) => Answer::Written(response.revision),
                (Answer::Deleted(_), Ok(_)) => Answer::Deleted(*changed),
                (other, _) => other.clone(),
            };
        }
        Self { calls, model }
    }

    fn sound(ground: &Ground) -> Self {
        Self::of(ground, |model, _, run| model.run_now(&run.txn, run.index))
    }

    /// Judged without taps; also with answers lost, but not that of this call.
    async fn judged(&self, told: CallId) -> [Vec<Violation>; 2] {
        let lossy = with_lost_answers(&self.calls, 5, Some(told));
        let (_, all_told) = rebuilt(&self.calls, &self.model).await;
        let (_, some_told) = rebuilt(&lossy, &self.model).await;
        [all_told, some_told]
    }
}

/// Some acknowledged writes that changed something, from the beginning to the end.
fn some_writes(ground: &Ground, which: impl Fn(&Txn) -> bool) -> Vec<(usize, CallId)> {
    let acknowledged: Vec<CallId> = GOOD
        .history
        .calls
        .iter()
        .filter(|call| matches!(call.answer, Answer::Txn(_) | Answer::Written(_)))
        .map(|call| call.id)
        .collect();
    let runs = ground.runs.iter().enumerate();
    let all: Vec<(usize, CallId)> = runs
        .filter(|(_, run)| run.how == How::Ran && run.changed && which(&run.txn))
        .filter_map(|(number, run)| Some((number, run.call?)))
        .filter(|(_, call)| acknowledged.contains(call))
        .collect();
    const SOME: usize = 12;
    let some: Vec<_> = all
        .iter()
        .step_by(all.len().div_ceil(SOME).max(1))
        .copied()
        .collect();
    assert!(some.len() >= SOME / 2, "only {} such writes", some.len());
    some
}

#[tokio::test]
async fn a_world_without_a_bug_is_the_good_history() {
    let ground = good_ground();
    let world = World::sound(&ground);
    let (_, violations) = rebuilt(&world.calls, &world.model).await;
    assert_eq!(violations, []);
    assert_eq!(world.model.range_at(&KeyRange::all(), GOOD.last.0), GOOD.last.1);
}

#[tokio::test]
async fn an_acknowledged_write_that_the_store_lost_is_missed() {
    let ground = good_ground();
    for (lost, call) in some_writes(&ground, |_| true) {
        let world = World::of(&ground, |model, number, run| {
            if number == lost {
                model.run(&run.txn, run.index).outcome
            } else {
                model.run_now(&run.txn, run.index)
            }
        });
        for violations in world.judged(call).await {
            let name = format!("call {call} was acknowledged and forgotten");
            caught(
                &name,
                &[Rule::Acknowledged, Rule::Once, Rule::FinalState],
                &violations,
            );
        }
    }
}

#[tokio::test]
async fn a_write_that_the_store_applied_twice_is_seen() {
    let ground = good_ground();
    let mut seen = 0;
    // What adds, numbers or puts does so again; a delete finds nothing any more.
    let does_again = |op: &Op| matches!(op, Op::Add { .. } | Op::PutSequence { .. } | Op::Put { .. });
    for (twice, call) in some_writes(&ground, |txn| txn.then.iter().any(does_again)) {
        let mut again = false;
        let world = World::of(&ground, |model, number, run| {
            let outcome = model.run_now(&run.txn, run.index);
            if number == twice {
                let once = model.revision();
                let _forgotten = model.run_now(&run.txn, run.index);
                again = model.revision() != once;
            }
            outcome
        });
        // A delete of what is gone changes nothing, and no one could tell.
        if !again {
            continue;
        }
        seen += 1;
        for violations in world.judged(call).await {
            let name = format!("call {call} was applied twice");
            caught(&name, &[Rule::Once, Rule::Acknowledged], &violations);
        }
    }
    assert!(
        seen >= 5,
        "only {seen} writes changed something when they ran again"
    );
}

/// Whether all callers were told the same as in the good history, and the same is there at the end.
fn is_the_same_to_all(world: &World, ground: &Ground) -> bool {
    let answers = |calls: &[Call]| {
        calls
            .iter()
            .map(|call| format!("{:?}", call.answer))
            .collect::<Vec<_>>()
    };
    let end = |model: &Model| model.range_at(&KeyRange::all(), model.revision());
    answers(&world.calls) == answers(&GOOD.history.calls) && end(&world.model) == end(&ground.model)
}

#[tokio::test]
async fn a_transaction_that_the_store_applied_in_part_is_seen() {
    let ground = good_ground();
    let mut seen = 0;
    for (partly, call) in some_writes(&ground, |txn| txn.then.len() >= 2) {
        let mut differs = false;
        let world = World::of(&ground, |model, number, run| {
            if number != partly {
                return model.run_now(&run.txn, run.index);
            }
            let whole = model.run(&run.txn, run.index);
            let mut part = run.txn.clone();
            part.then.pop();
            part.otherwise.pop();
            differs = model.run(&part, run.index).changes(model) != whole.changes(model);
            let _told_otherwise = model.run_now(&part, run.index);
            whole.outcome
        });
        // The last operation may have been a read, and nobody could tell where all answers and the end are the same: what is
        // missing was deleted before anybody looked.
        if !differs || is_the_same_to_all(&world, &ground) {
            continue;
        }
        seen += 1;
        for violations in world.judged(call).await {
            let name = format!("call {call} was applied in part");
            caught(
                &name,
                &[Rule::FinalState, Rule::Acknowledged, Rule::Once],
                &violations,
            );
        }
    }
    assert!(seen >= 3, "only {seen} transactions were applied in part");
}

#[tokio::test]
async fn a_transaction_of_unknown_outcome_that_was_applied_in_part_is_seen() {
    let ground = good_ground();
    let mut seen = 0;
    for (partly, call) in some_writes(&ground, |txn| txn.then.len() >= 2) {
        let mut differs = false;
        let mut world = World::of(&ground, |model, number, run| {
            let mut txn = run.txn.clone();
            if number == partly {
                let whole = model.run(&txn, run.index).changes(model);
                txn.then.pop();
                txn.otherwise.pop();
                let part = model.run(&txn, run.index).changes(model);
                differs = part != whole && !part.is_empty();
            }
            model.run_now(&txn, run.index)
        });
        if !differs {
            continue;
        }
        seen += 1;
        for told in world.calls.iter_mut().filter(|told| told.id == call) {
            told.answer = Answer::Unknown("spoiled".to_owned());
        }
        let (_, violations) = rebuilt(&world.calls, &world.model).await;
        let name = format!("call {call}, of which nobody was told, was applied in part");
        caught(&name, &[Rule::Once], &violations);
    }
    assert!(seen >= 2, "only {seen} transactions were applied in part");
}

#[tokio::test]
async fn a_stale_read_is_seen_on_a_rebuilt_order() {
    let ground = good_ground();
    let mut seen = 0;
    for (number, call) in GOOD.history.calls.iter().enumerate() {
        let (Request::Get { key, .. }, Answer::Record(Some(record))) = (&call.request, &call.answer) else {
            continue;
        };
        // What was there before the newest write that had been answered long before the read began.
        let older = ground
            .model
            .versions(key)
            .iter()
            .rev()
            .find(|version| version.revision < record.mod_revision && version.record.is_some());
        let writer = ground.commit(record.mod_revision).and_then(|run| run.call);
        let told = GOOD.history.calls.iter().find(|call| Some(call.id) == writer);
        let early = told.is_some_and(|told| {
            matches!(told.answer, Answer::Txn(_) | Answer::Written(_)) && told.answered < call.called
        });
        let linearizable = matches!(
            &call.request,
            Request::Get {
                consistency: quorate_kv::model::Consistency::Linearizable,
                ..
            }
        );
        let (Some(older), true, true) = (older, early, linearizable) else {
            continue;
        };
        let mut calls = GOOD.history.calls.clone();
        calls[number].answer = Answer::Record(older.record.clone());
        for calls in [calls.clone(), with_lost_answers(&calls, 7, writer)] {
            let (again, violations) = rebuilt(&calls, &ground.model).await;
            assert_eq!(violations, []);
            caught("a stale read", &[Rule::RealTime], &judge::judge(&again, &calls));
        }
        seen += 1;
        if seen == 4 {
            break;
        }
    }
    assert!(seen >= 2, "only {seen} reads could be made stale");
}
