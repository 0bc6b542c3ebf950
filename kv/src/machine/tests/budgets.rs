//! What a transaction may cost, and an entry: by the logical state, whatever layers and checkpoints there are.

use super::*;
use crate::machine::layers::keys::GONE_THROUGH;
use crate::model::{
    Compare, Condition, Guard, KeyRange, KeyTest, Op, OpResult, Place, RangeExcess, RangeRead, RangeTest,
    Work,
};

fn put(k: &str, v: &str) -> Op {
    Op::put(key(k), value(v))
}

/// Keys `a00`, `a01`, …
fn filled(count: usize) -> Store {
    let mut store = Store::new();
    let puts = (0..count).map(|i| put(&format!("a{i:02}"), "value"));
    store.txn(Txn::new(puts)).unwrap();
    store
}

fn count(operand: u64) -> Guard {
    Guard::range(
        KeyRange::all(),
        RangeTest::Count(Compare::GreaterOrEqual, operand),
    )
}

fn looked_at(place: Place, limit: u64) -> TxnRefused {
    TxnRefused::TooMuchWork {
        place,
        what: Work::KeysLookedAt,
        limit,
    }
}

fn guarded(guard: Guard) -> Txn {
    Txn::new([put("z", "1")]).when(guard)
}

fn test_all(test: KeyTest) -> Guard {
    Guard::range(KeyRange::all(), RangeTest::All(test))
}

#[test]
fn a_transaction_looks_at_no_more_keys_than_it_may_and_the_refusal_says_where() {
    let guard = Place::Condition(0);
    let all = || RangeRead::new(KeyRange::all());
    let keys_only = |limit| RangeRead {
        keys_only: true,
        ..all().limit(limit)
    };
    let count_only = RangeRead {
        count_only: true,
        ..all()
    };
    let exists = || KeyTest::Exists(true);
    let value_is = || KeyTest::Value(Compare::NotEqual, value("another"));
    let asked = |guard| Txn::new([]).when(guard);
    let any = Guard::range(KeyRange::all(), RangeTest::Any(exists()));
    let value_of_one = Guard::key(key("a01"), value_is());
    let delete = Op::delete_range(KeyRange::all(), 99);
    let add = Op::Add {
        key: key("n"),
        delta: 1,
    };
    let then = |op| (Place::Then(1), Txn::new([put("z", "1"), op]));
    // Of ten keys, and eleven where `z` was put before.
    let (range, value) = (ReplicatedLimits::RANGE_KEYS, ReplicatedLimits::VALUE_KEYS);
    let cases = [
        (
            "a count stops at its operand and one more",
            range + 4,
            (guard, asked(count(3))),
        ),
        ("a count of all", range + 10, (guard, asked(count(30)))),
        (
            "any stops at the first that passes",
            range + 1,
            (guard, asked(any)),
        ),
        (
            "all goes through all",
            range + 10,
            (guard, asked(test_all(exists()))),
        ),
        (
            "a value is more",
            range + 10 * (1 + value),
            (guard, asked(test_all(value_is()))),
        ),
        ("a key", 1, (guard, asked(Guard::exists(key("a01"))))),
        ("a key's value", 1 + value, (guard, asked(value_of_one))),
        (
            "a range of records",
            1 + range + 11 * (1 + value),
            then(Op::Range(all())),
        ),
        (
            "a range up to its limit and one more",
            1 + range + 4,
            then(Op::Range(keys_only(3))),
        ),
        ("a count of records", 1 + range + 11, then(Op::Range(count_only))),
        ("a range delete", 1 + range + 11, then(delete)),
        ("a get", 1 + 1 + value, then(Op::get(key("a01")))),
        ("an add", 1 + 1 + value, then(add)),
    ];
    for (name, cost, (place, txn)) in cases {
        let mut store = filled(10);
        // Nothing is no limit: one less than one is none at all.
        if cost > 1 {
            store.limit(|limits| limits.keys_looked_at_max = cost - 1);
            let before = store.machine.applied().state_hash;
            assert_eq!(store.txn(txn.clone()), Err(looked_at(place, cost - 1)), "{name}");
            assert_eq!(
                store.machine.applied().state_hash,
                before,
                "{name}: nothing was changed"
            );
        }
        store.limit(|limits| limits.keys_looked_at_max = cost);
        assert!(store.txn(txn).is_ok(), "{name}");
        store.verify();
    }
}

#[test]
fn a_large_value_costs_a_key_for_each_whole_kib() {
    let mut store = Store::new();
    let large = "x".repeat(5 * 1024 + 1023);
    store.txn(Txn::new([put("large", &large)])).unwrap();
    store.limit(|limits| limits.keys_looked_at_max = 1 + 4 + 5);
    let get = Txn::new([Op::get(key("large"))]);
    assert!(store.txn(get.clone()).is_ok());
    store.limit(|limits| limits.keys_looked_at_max = 9);
    assert_eq!(store.txn(get), Err(looked_at(Place::Then(0), 9)));
}

#[test]
fn what_runs_when_the_guard_does_not_hold_has_the_same_budget() {
    let mut store = filled(3);
    store.limit(|limits| limits.keys_looked_at_max = 12);
    let txn = Txn::new([])
        .when(Guard::missing(key("a01")))
        .or_else([put("z", "1"), Op::delete_range(KeyRange::all(), 9)]);
    assert_eq!(store.txn(txn), Err(looked_at(Place::Otherwise(1), 12)));
}

#[test]
fn a_transaction_changes_no_more_keys_than_it_may_each_counted_once() {
    let mut store = filled(10);
    store.limit(|limits| limits.keys_changed_max = 3);
    let refused = |place| {
        Err(TxnRefused::TooMuchWork {
            place,
            what: Work::KeysChanged,
            limit: 3,
        })
    };
    let all = KeyRange::all;
    assert_eq!(
        store.txn(Txn::new([Op::delete_range(all(), 10)])),
        refused(Place::Then(0))
    );
    let puts = |names: &[&str]| Txn::new(names.iter().map(|name| put(name, "1")));
    assert_eq!(store.txn(puts(&["a", "b", "c", "d"])), refused(Place::Then(3)));
    assert!(store.txn(puts(&["a", "b", "a", "c", "b", "a"])).is_ok());
    let deleted = |count, more| OpResult::Deleted { count, more };
    let four = Txn::new([Op::delete_some_of(all(), 3), Op::delete(key("a00"))]);
    let answer = store.txn(four).unwrap();
    assert_eq!(
        answer.results,
        [deleted(3, true), deleted(0, false)],
        "a00 was among the three"
    );
    let four = Txn::new([Op::delete_some_of(all(), 3), Op::delete(key("a09"))]);
    assert_eq!(store.txn(four), refused(Place::Then(1)));
    store.verify();
}

#[test]
fn a_range_is_deleted_a_part_at_a_time_until_there_is_no_more() {
    let mut store = filled(5);
    let some = || Txn::new([Op::delete_some_of(KeyRange::prefix("a"), 2)]);
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.extend(store.txn(some()).unwrap().results);
    }
    let deleted = |count, more| OpResult::Deleted { count, more };
    assert_eq!(
        answers,
        [
            deleted(2, true),
            deleted(2, true),
            deleted(1, false),
            deleted(0, false)
        ]
    );
    let mut store = filled(2);
    let refuse = Op::DeleteRange {
        range: KeyRange::all(),
        limit: 1,
        excess: RangeExcess::Refuse,
    };
    let refused = TxnRefused::RangeTooLarge { op: 0, limit: 1 };
    assert_eq!(store.txn(Txn::new([refuse])), Err(refused));
}

#[test]
fn the_transactions_of_an_entry_share_a_budget_and_who_does_not_fit_may_try_again() {
    let mut store = filled(10);
    store.limit(|limits| {
        limits.keys_looked_at_max = 25;
        limits.entry_budget = 2;
    });
    let command = |guard| Command::Txn {
        session: None,
        txn: guarded(guard),
    };
    // 18 or 19 of 50 each, and keys that are named cost the entry nothing.
    let outcomes = store.apply(0, vec![command(count(30)); 3]);
    let spent = TxnRefused::EntrySpent {
        what: Work::KeysLookedAt,
    };
    assert!(matches!(outcomes[0], Outcome::Txn(Ok(_))));
    assert!(matches!(outcomes[1], Outcome::Txn(Ok(_))));
    assert_eq!(outcomes[2], Outcome::Txn(Err(spent.clone())));
    assert!(spent.is_retryable());
    let outcomes = store.apply(
        0,
        vec![
            command(count(30)),
            command(count(30)),
            command(count(30)),
            command(count(0)),
            command(Guard::exists(key("a01"))),
        ],
    );
    assert_eq!(
        outcomes[3],
        Outcome::Txn(Err(spent)),
        "nothing is left for a smaller one either"
    );
    assert!(matches!(outcomes[4], Outcome::Txn(Ok(_))), "{:?}", outcomes[4]);
    // Alone it has all of it.
    assert!(store.txn(guarded(count(30))).is_ok());
    store.verify();
}

#[test]
fn what_does_not_fit_into_an_entry_is_not_remembered_by_its_session() {
    use crate::model::{Sequence, SessionRef};
    let mut store = filled(10);
    store.limit(|limits| {
        limits.keys_looked_at_max = 20;
        limits.entry_budget = 1;
    });
    let Outcome::SessionOpened(Ok(opened)) = store.one(0, Command::open_session(9)) else {
        panic!("no session");
    };
    let command = |sequence| Command::Txn {
        session: Some(SessionRef {
            id: opened.session,
            sequence: Sequence::new(sequence),
            answered_below: Sequence::FIRST,
        }),
        txn: guarded(count(30)),
    };
    let outcomes = store.apply(0, vec![command(1), command(2)]);
    assert!(matches!(
        outcomes[1],
        Outcome::Txn(Err(TxnRefused::EntrySpent { .. }))
    ));
    assert!(matches!(store.one(0, command(2)), Outcome::Txn(Ok(_))));
}

#[test]
fn what_the_transactions_of_an_entry_return_is_bounded() {
    let mut store = Store::new();
    let thousand = "x".repeat(1_000);
    store.txn(Txn::new([put("big", &thousand)])).unwrap();
    store.limit(|limits| {
        limits.response_bytes_max = 1_100;
        limits.entry_budget = 3;
    });
    let get = Command::Txn {
        session: None,
        txn: Txn::new([Op::get(key("big"))]),
    };
    let outcomes = store.apply(0, vec![get; 5]);
    let served = outcomes
        .iter()
        .filter(|outcome| matches!(outcome, Outcome::Txn(Ok(_))));
    assert_eq!(served.count(), 3);
    let spent = TxnRefused::EntrySpent {
        what: Work::AnswerBytes,
    };
    assert_eq!(outcomes[4], Outcome::Txn(Err(spent)));
}

#[test]
fn what_failed_conditions_tell_counts_into_the_answer() {
    let mut store = Store::new();
    let name = "k".repeat(100);
    store.txn(Txn::new([put(&name, "1")])).unwrap();
    store.limit(|limits| limits.response_bytes_max = 250);
    let spoiled = || test_all(KeyTest::Exists(false));
    let told = |times: usize| Txn::new([]).when(Guard::any((0..times).map(|_| spoiled())));
    assert!(store.txn(told(2)).is_ok());
    let refused = TxnRefused::TooMuchWork {
        place: Place::Condition(2),
        what: Work::AnswerBytes,
        limit: 250,
    };
    assert_eq!(store.txn(told(3)), Err(refused));
}

/// Deleted keys stand in memory until a checkpoint: 100,000 conditions on a range of 100,000 of them looked at few keys
/// and would have taken an hour, on nodes whose last checkpoint was before the deletion.
#[test]
fn deleted_keys_are_gone_by_once_however_often_a_range_is_asked_for() {
    for durable in [false, true] {
        let mut store = Store::new();
        let name = |i: usize| format!("a{i:04}");
        let puts = (0..2_000).map(|i| put(&name(i), "1"));
        store.txn(Txn::new(puts)).unwrap();
        if durable {
            store.machine.make_durable().unwrap();
        }
        // All but each thousandth.
        let deletes = (0..2_000)
            .filter(|i| i % 1_000 != 0)
            .map(|i| Op::delete(key(&name(i))));
        store.txn(Txn::new(deletes)).unwrap();
        let before = store.machine.keys_visited();
        let many = |operand| Guard::all((0..1_000).map(|_| count(operand)));
        let counted = store.txn(guarded(many(2))).unwrap();
        assert!(counted.succeeded, "{:?}", counted.failed);
        let ranges = [
            RangeRead::new(KeyRange::prefix("a")),
            RangeRead::new(KeyRange::all()),
        ];
        for (nth, mut read) in ranges.into_iter().cycle().take(500).enumerate() {
            read.order = match nth % 3 {
                0 => crate::model::Order::Descending,
                _ => crate::model::Order::Ascending,
            };
            store.txn(Txn::new([Op::Range(read)])).unwrap();
        }
        let visited = store.machine.keys_visited() - before;
        assert!(
            visited < 2_000 + 3 * (1_000 + 500) + 100,
            "{visited} keys were visited"
        );

        // What is written into a gap is found, and what is refused leaves no gap behind.
        store.txn(Txn::new([put("a0500", "again")])).unwrap();
        assert!(store.txn(guarded(count(4))).unwrap().succeeded);
        let refused = Txn::new([
            Op::delete_range(KeyRange::all(), 99),
            Op::Range(RangeRead::new(KeyRange::all())),
            put("b", "1"),
            Op::Add {
                key: key("b"),
                delta: 1,
            },
        ]);
        assert!(store.txn(refused).is_err());
        let all = store
            .txn(Txn::new([Op::Range(RangeRead::new(KeyRange::all()))]))
            .unwrap();
        let [OpResult::Range { records, .. }] = &all.results[..] else {
            panic!("{all:?}");
        };
        let keys: Vec<String> = records.iter().map(|record| record.key.to_string()).collect();
        assert_eq!(keys, ["a0000", "a0500", "a1000", "z"]);
        store.verify();
    }
}

#[test]
fn one_apply_ends_when_its_transactions_have_looked_at_or_answered_much() {
    let mut settings = settings();
    settings.tuning.apply_keys = 30;
    settings.tuning.apply_answer_bytes = 3_000;
    let mut store = Store::with(Arc::<disk::MemoryDisk>::default(), OpenMode::Create, settings);
    let thousand = "x".repeat(1_000);
    store
        .txn(Txn::new([put("big", &thousand), put("a", "1")]))
        .unwrap();
    let entry = |index: u64, txn: Txn| proposal(index, 0, vec![Command::Txn { session: None, txn }]);
    let count_all = || Txn::new([]).when(count(1));
    let get = || Txn::new([Op::get(key("big"))]);
    let mut entries: std::collections::VecDeque<Entry> = (2..12).map(|i| entry(i, count_all())).collect();
    entries.extend((12..22).map(|i| entry(i, get())));
    let mut sizes = Vec::new();
    while !entries.is_empty() {
        sizes.push(store.machine.apply_some(&mut entries).unwrap().len());
    }
    // Ten keys for each count; 1,067 bytes and five keys for each get.
    assert_eq!(sizes, [3, 3, 3, 4, 3, 3, 1]);
    assert_eq!(store.machine.applied().position, Some(position(21)));
}

/// A condition on a range of a million keys costs a second. 131,072 of them were a legal transaction of some 36 hours.
#[test]
fn a_guard_of_as_many_counts_as_there_may_be_is_refused_after_a_bounded_number_of_keys() {
    let mut store = filled(100);
    let many = Guard::all((0..131_000).map(|_| {
        Guard::condition(Condition::Range {
            range: KeyRange::all(),
            test: RangeTest::Count(Compare::Equal, 2_000_000),
        })
    }));
    let before = store.machine.keys_visited();
    let limit = ReplicatedLimits::default().keys_looked_at_max;
    let refused = store.txn(guarded(many));
    assert!(
        matches!(
            refused,
            Err(TxnRefused::TooMuchWork {
                place: Place::Condition(_),
                what: Work::KeysLookedAt,
                ..
            })
        ),
        "{refused:?}"
    );
    assert!(store.machine.keys_visited() - before <= limit);
    store.verify();
}

/// 100,000 conditions on keys and 12,500 ranges are a legal transaction. Each of the ranges went through all keys that were
/// named, and nobody paid for that: most of a minute, on every node.
#[test]
fn a_range_goes_through_what_the_batch_has_changed_and_not_through_what_it_has_named() {
    let name = |i: usize| format!("n{i:04}");
    let counts =
        || (0..200).map(|_| Guard::range(KeyRange::prefix("n"), RangeTest::Count(Compare::Equal, 0)));
    let gone_through = |store: &mut Store, txns: Vec<Txn>| {
        let commands = txns
            .into_iter()
            .map(|txn| Command::Txn { session: None, txn })
            .collect();
        let before = GONE_THROUGH.get();
        let outcomes = store.apply(0, commands);
        (GONE_THROUGH.get() - before, outcomes)
    };
    let mut store = Store::new();

    let missing = (0..1_000).map(|i| Guard::missing(key(&name(i))));
    let named = guarded(Guard::all(missing.chain(counts())));
    let (steps, outcomes) = gone_through(&mut store, vec![named]);
    assert!(matches!(&outcomes[0], Outcome::Txn(Ok(answer)) if answer.succeeded));
    assert_eq!(steps, 0, "it changed nothing that its ranges could see");

    // Nor through what was made and refused, or made and unmade.
    let puts = || (0..1_000).map(|i| put(&name(i), "no number"));
    let add = Op::Add {
        key: key(&name(0)),
        delta: 1,
    };
    let refused = Txn::new(puts().chain([add]));
    let unmade = Txn::new(puts().chain((0..1_000).map(|i| Op::delete(key(&name(i))))));
    let counted = || Txn::new([]).when(Guard::all(counts()));
    let (steps, outcomes) = gone_through(&mut store, vec![refused, counted(), unmade, counted()]);
    assert!(matches!(
        &outcomes[0],
        Outcome::Txn(Err(TxnRefused::NotANumber { .. }))
    ));
    for counted in [&outcomes[1], &outcomes[3]] {
        assert!(matches!(counted, Outcome::Txn(Ok(answer)) if answer.succeeded));
    }
    assert_eq!(steps, 0);
    store.verify();
}

fn deletes_of(keys: usize, name: impl Fn(usize) -> String) -> Txn {
    Txn::new((0..keys).map(|i| Op::delete(key(&name(i)))))
}

/// Each write between deleted keys cut a gap in two, without end, and a range was one scan for each.
#[test]
fn what_is_written_between_deleted_keys_leaves_no_more_gaps_than_they_are_worth() {
    const KEYS: usize = 2_000;
    let (name, between) = (|i: usize| format!("a{i:04}"), |i: usize| format!("a{i:04}x"));
    let mut store = Store::new();
    store
        .txn(Txn::new((0..KEYS).map(|i| put(&name(i), "1"))))
        .unwrap();
    store.txn(deletes_of(KEYS, name)).unwrap();
    let count = |store: &mut Store, expected| {
        let before = store.machine.keys_visited();
        let all = RangeTest::Count(Compare::Equal, expected);
        let txn = Txn::new([]).when(Guard::range(KeyRange::prefix("a"), all));
        assert!(store.txn(txn).unwrap().succeeded);
        store.machine.keys_visited() - before
    };
    assert_eq!(count(&mut store, 0), KEYS as u64);
    assert_eq!(store.machine.gaps.len(), 1);

    let puts = || (0..KEYS).map(|i| put(&between(i), "no number"));
    store.txn(Txn::new(puts())).unwrap();
    let gap_keys = crate::machine::Tuning::default().gap_keys as u64;
    let worth = KEYS / gap_keys as usize;
    assert!(store.machine.gaps.len() <= worth, "{}", store.machine.gaps.len());
    let visited = count(&mut store, KEYS as u64);
    assert!(visited <= 2 * KEYS as u64, "{visited}");

    // Once nothing is between them any more, they are one.
    store.txn(deletes_of(KEYS, between)).unwrap();
    let visited = count(&mut store, 0);
    assert!(visited <= 2 * KEYS as u64, "{visited}");
    assert_eq!(store.machine.gaps.len(), 1);
    assert!(
        count(&mut store, 0) < gap_keys,
        "fewer at the border are not worth a gap"
    );

    // The same where it was refused.
    let add = Op::Add {
        key: key(&between(0)),
        delta: 1,
    };
    let refused = store.txn(Txn::new(puts().chain([add])));
    assert!(
        matches!(refused, Err(TxnRefused::NotANumber { .. })),
        "{refused:?}"
    );
    assert!(store.machine.gaps.len() > 1);
    count(&mut store, 0);
    assert_eq!(store.machine.gaps.len(), 1);
    assert!(
        count(&mut store, 0) < gap_keys,
        "fewer at the border are not worth a gap"
    );
    store.verify();
}

/// A range delete holds the keys that it found: 131,072 of 4 KiB were half a GiB, and cost as little as short ones.
#[test]
fn a_key_that_a_range_visits_costs_one_more_for_each_whole_kib_of_it() {
    let long = |i: usize, bytes: usize| format!("{i}{}", "k".repeat(bytes - 1));
    let filled = || {
        let mut store = Store::new();
        store
            .txn(Txn::new([
                put(&long(1, 1_023), "1"),
                put(&long(2, 1_024), "1"),
                put(&long(3, 4_000), "1"),
            ]))
            .unwrap();
        store
    };
    let (range, value) = (ReplicatedLimits::RANGE_KEYS, ReplicatedLimits::VALUE_KEYS);
    let all = || RangeRead::new(KeyRange::all());
    let keys = (1, 1 + 1, 1 + 3);
    let visited = range + keys.0 + keys.1 + keys.2;
    let count_only = RangeRead {
        count_only: true,
        ..all()
    };
    let exists = test_all(KeyTest::Exists(true));
    let (then, condition) = (Place::Then(0), Place::Condition(0));
    let cases = [
        (
            "a range delete",
            visited,
            then,
            Txn::new([Op::delete_range(KeyRange::all(), 3)]),
        ),
        (
            "a part of a range",
            visited,
            then,
            Txn::new([Op::delete_some_of(KeyRange::all(), 2)]),
        ),
        ("a count", visited, then, Txn::new([Op::Range(count_only)])),
        ("records", visited + 3 * value, then, Txn::new([Op::Range(all())])),
        ("a condition", visited, condition, Txn::new([]).when(exists)),
        // Its bytes are the entry's.
        (
            "one that is named",
            1,
            then,
            Txn::new([Op::delete(key(&long(3, 4_000)))]),
        ),
    ];
    for (case, cost, place, txn) in cases {
        for durable in [false, true] {
            let mut store = filled();
            if durable {
                store.machine.make_durable().unwrap();
            }
            if cost > 1 {
                store.limit(|limits| limits.keys_looked_at_max = cost - 1);
                assert_eq!(store.txn(txn.clone()), Err(looked_at(place, cost - 1)), "{case}");
            }
            store.limit(|limits| limits.keys_looked_at_max = cost);
            assert!(store.txn(txn.clone()).is_ok(), "{case}");
            store.verify();
        }
    }
}

/// A reader of an old revision held the lock of a layer while it went through all keys that came since, and counted none.
#[test]
fn a_step_of_a_read_counts_the_keys_that_came_after_its_revision() {
    use crate::machine::{ReadBudget, Step};
    use crate::model::{ReadOp, ReadResult};
    const KEYS: u64 = 5_000;
    let mut store = Store::new();
    store.txn(Txn::new([put("a", "1"), put("z", "1")])).unwrap();
    store.machine.make_durable().unwrap();
    let at = store.machine.applied().revision;
    let puts = (0..KEYS).map(|i| put(&format!("k{i:04}"), "1"));
    store.txn(Txn::new(puts.chain([put("z", "2")]))).unwrap();
    let view = store.reader.view().unwrap();
    let orders = [crate::model::Order::Ascending, crate::model::Order::Descending];
    for (order, chunk) in orders.into_iter().flat_map(|order| [(order, 100), (order, 1)]) {
        let read = RangeRead {
            order,
            ..RangeRead::new(KeyRange::all())
        };
        let budget = ReadBudget {
            keys: chunk,
            bytes: u64::MAX,
        };
        let mut scan = view.begin(vec![ReadOp::Range(read)], Some(at)).unwrap();
        let (mut steps, before) = (0, GONE_THROUGH.get());
        let results = loop {
            let begun = GONE_THROUGH.get();
            steps += 1;
            match scan.step(&view, budget).unwrap() {
                Step::More(rest) => scan = rest,
                Step::Done(answered) => break answered.results,
                Step::Refused(refused) => panic!("{refused}"),
            }
            let gone_through = GONE_THROUGH.get() - begun;
            assert!(gone_through <= 5 * chunk + 8, "{gone_through} in a step");
        };
        assert!(steps >= KEYS / chunk, "{steps}");
        assert!(GONE_THROUGH.get() - before >= KEYS);
        let [ReadResult::Range { records, .. }] = &results[..] else {
            panic!("{results:?}");
        };
        let mut found: Vec<_> = records
            .iter()
            .map(|kv| (kv.key.to_string(), &kv.record.value[..]))
            .collect();
        found.sort();
        assert_eq!(found, [("a".into(), &b"1"[..]), ("z".into(), b"1")]);
    }
}

/// The story: a limit was lowered in the middle of an entry whose ranges had used more than that, and transactions that only
/// named keys were refused behind it.
#[test]
fn what_lowered_limits_leave_of_an_entry_is_not_asked_of_who_only_names_keys() {
    let mut store = filled(30);
    let count_all = Command::Txn {
        session: None,
        txn: guarded(count(1)),
    };
    let lower = Command::SetLimits {
        expected: None,
        changes: vec![
            crate::model::LimitChange::new(crate::model::Limit::KeysLookedAtMax, 4),
            crate::model::LimitChange::new(crate::model::Limit::EntryBudget, 1),
        ],
    };
    let names = Command::Txn {
        session: None,
        txn: Txn::new([put("b", "1")]),
    };
    let outcomes = store.apply(0, vec![count_all, lower, names]);
    assert!(matches!(outcomes[0], Outcome::Txn(Ok(_))), "{outcomes:?}");
    assert!(matches!(outcomes[2], Outcome::Txn(Ok(_))), "{outcomes:?}");
    store.verify();
}
