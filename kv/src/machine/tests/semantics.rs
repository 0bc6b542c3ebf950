//! What a transaction does, one rule at a time.

use super::*;
use crate::machine::ReadRefused;
use crate::model::{
    Compare, Condition, FailedCondition, Found, Guard, KeyRange, KeyTest, KeyValue, LeaseChange, LeaseId, Op,
    OpResult, Order, PutMode, RangeRead, RangeTest, ReadOp, ReadResult, Record, Revision,
};

fn put(k: &str, v: &str) -> Op {
    Op::put(key(k), value(v))
}

fn record(store: &Store, k: &str) -> Option<Record> {
    let view = store.reader.view().unwrap();
    match view.read(&[ReadOp::Get(key(k))], None).unwrap().unwrap().pop() {
        Some(ReadResult::Get(record)) => record,
        other => panic!("a get answered {other:?}"),
    }
}

fn revision(number: u64) -> Revision {
    Revision::new(number)
}

#[test]
fn the_empty_store_is_at_revision_one_and_each_change_is_one_more() {
    let mut store = Store::new();
    assert_eq!(store.machine.applied().revision, revision(1));
    let first = store.txn(Txn::new([put("a", "1"), put("b", "2")])).unwrap();
    assert_eq!(
        first.revision,
        revision(2),
        "two keys, one transaction, one revision"
    );
    assert_eq!(first.log_index, LogIndex::new(1));
    let nothing = store
        .txn(Txn::new([Op::delete(key("c")), Op::get(key("a"))]))
        .unwrap();
    assert_eq!(
        nothing.revision,
        revision(2),
        "a delete of a missing key changes nothing"
    );
    let same = store.txn(Txn::new([put("a", "1")])).unwrap();
    assert_eq!(same.revision, revision(3), "a put of the same value is a change");
    store.verify();
}

#[test]
fn a_version_counts_the_revisions_that_write_a_key_and_starts_again_after_a_delete() {
    let mut store = Store::new();
    store
        .txn(Txn::new([put("a", "1"), put("a", "2"), put("a", "3")]))
        .unwrap();
    let a = record(&store, "a").unwrap();
    assert_eq!(
        (a.value, a.version),
        (value("3"), 1),
        "several writes are one change, the last"
    );
    store.txn(Txn::new([put("a", "4")])).unwrap();
    let a = record(&store, "a").unwrap();
    assert_eq!(
        (a.create_revision, a.mod_revision, a.version),
        (revision(2), revision(3), 2)
    );
    store.txn(Txn::new([Op::delete(key("a"))])).unwrap();
    assert_eq!(record(&store, "a"), None);
    store.txn(Txn::new([put("a", "5")])).unwrap();
    let a = record(&store, "a").unwrap();
    assert_eq!(
        (a.create_revision, a.mod_revision, a.version),
        (revision(5), revision(5), 1)
    );
    store
        .txn(Txn::new([Op::delete(key("a")), Op::create(key("a"), value("6"))]))
        .unwrap();
    let a = record(&store, "a").unwrap();
    assert_eq!(
        (a.create_revision, a.version),
        (revision(6), 1),
        "deleted and created anew at once"
    );
    store.verify();
}

#[test]
fn a_transaction_that_creates_and_deletes_a_key_changes_nothing() {
    let mut store = Store::new();
    let before = store.machine.applied().state_hash;
    let answer = store
        .txn(Txn::new([put("a", "1"), Op::get(key("a")), Op::delete(key("a"))]))
        .unwrap();
    assert_eq!(answer.revision, revision(1));
    assert!(matches!(&answer.results[1], OpResult::Get(Some(found)) if found.value == value("1")));
    assert_eq!(store.machine.applied().state_hash, before);
    store.verify();
}

#[test]
fn operations_read_the_writes_of_earlier_ones_ranges_included() {
    let mut store = Store::new();
    store
        .txn(Txn::new([put("a", "1"), put("b", "1"), put("c", "1")]))
        .unwrap();
    let range = |order| {
        let mut read = RangeRead::new(KeyRange::all());
        read.order = order;
        Op::Range(read)
    };
    let answer = store
        .txn(Txn::new([
            put("bb", "2"),
            Op::delete(key("b")),
            put("c", "2"),
            range(Order::Ascending),
            range(Order::Descending),
        ]))
        .unwrap();
    let seen = |result: &OpResult| match result {
        OpResult::Range { records, .. } => records
            .iter()
            .map(|KeyValue { key, record }| format!("{key}={}", record.value.escape_ascii()))
            .collect::<Vec<_>>(),
        other => panic!("a range answered {other:?}"),
    };
    assert_eq!(seen(&answer.results[3]), ["a=1", "bb=2", "c=2"]);
    assert_eq!(seen(&answer.results[4]), ["c=2", "bb=2", "a=1"]);
}

#[test]
fn an_operation_that_fails_aborts_the_whole_and_names_its_index() {
    let cases: Vec<(&str, Op, TxnRefused)> = vec![
        (
            "a create of an existing key",
            Op::create(key("n"), value("x")),
            TxnRefused::KeyExists { op: 1, key: key("n") },
        ),
        (
            "an add to what is no number",
            Op::Add {
                key: key("s"),
                delta: 1,
            },
            TxnRefused::NotANumber {
                op: 1,
                key: key("s"),
                size: 4,
            },
        ),
        (
            "a max of what is no number",
            Op::Max {
                key: key("s"),
                operand: 1,
            },
            TxnRefused::NotANumber {
                op: 1,
                key: key("s"),
                size: 4,
            },
        ),
        (
            "an add that overflows",
            Op::Add {
                key: key("n"),
                delta: i64::MAX,
            },
            TxnRefused::Overflow {
                op: 1,
                found: 1,
                delta: i64::MAX,
            },
        ),
        (
            "a range delete beyond its limit",
            Op::delete_range(KeyRange::all(), 2),
            TxnRefused::RangeTooLarge { op: 1, limit: 2 },
        ),
        (
            "a put to a lease that is not there",
            Op::Put {
                key: key("n"),
                value: value("x"),
                mode: PutMode::Upsert,
                lease: LeaseChange::Attach(LeaseId::new(7)),
            },
            TxnRefused::NoSuchLease {
                op: 1,
                lease: LeaseId::new(7),
            },
        ),
    ];
    for (name, op, refused) in cases {
        let mut store = Store::new();
        store
            .txn(Txn::new([
                put("s", "text"),
                Op::Add {
                    key: key("n"),
                    delta: 1,
                },
            ]))
            .unwrap();
        let before = store.machine.applied().state_hash;
        let answer = store.txn(Txn::new([put("new", "x"), op]));
        assert_eq!(answer, Err(refused), "{name}");
        assert_eq!(record(&store, "new"), None, "{name}");
        assert_eq!(store.machine.applied().state_hash, before, "{name}");
        assert_eq!(store.machine.applied().revision, revision(2), "{name}");
        store.verify();
    }
}

#[test]
fn reads_beyond_the_limit_of_a_response_abort_the_transaction() {
    let mut store = Store::new();
    store.limit(|limits| limits.response_bytes_max = 138);
    store
        .txn(Txn::new([put("a", "1234"), put("b", "12345")]))
        .unwrap();
    let get = |k| Op::get(key(k));
    assert!(
        store.txn(Txn::new([get("a"), get("a")])).is_ok(),
        "a record counts 64 bytes beside its key and its value"
    );
    let refused = TxnRefused::ResponseTooLarge { op: 1, limit: 138 };
    assert_eq!(store.txn(Txn::new([get("a"), get("b")])), Err(refused.clone()));
    let range = Op::Range(RangeRead::new(KeyRange::all()));
    assert_eq!(store.txn(Txn::new([get("x"), range])), Err(refused));
}

#[test]
fn numbers_add_and_rise_and_a_missing_key_counts_as_zero() {
    let mut store = Store::new();
    let n = || key("n");
    let answer = store
        .txn(Txn::new([
            Op::Add { key: n(), delta: -5 },
            Op::Max {
                key: n(),
                operand: -7,
            },
            Op::Max { key: n(), operand: 3 },
            Op::Max {
                key: key("m"),
                operand: -1,
            },
        ]))
        .unwrap();
    assert_eq!(answer.results, [-5, -5, 3, -1].map(OpResult::Number));
    let answer = store.txn(Txn::new([Op::Max { key: n(), operand: 2 }])).unwrap();
    assert_eq!(
        answer.revision,
        revision(2),
        "a max that raises nothing changes nothing"
    );
    assert_eq!(record(&store, "n").unwrap().value[..], 3i64.to_be_bytes());
}

#[test]
fn a_sequence_never_gives_a_number_twice() {
    let mut store = Store::new();
    let put = || Op::PutSequence {
        prefix: key("q/"),
        value: value("v"),
    };
    let sequenced = |number: &str| OpResult::Sequenced {
        key: key(&format!("q/{number}")),
    };
    let answer = store.txn(Txn::new([put(), put()])).unwrap();
    assert_eq!(
        answer.results,
        [
            sequenced("00000000000000000001"),
            sequenced("00000000000000000002")
        ]
    );
    store
        .txn(Txn::new([Op::delete_range(KeyRange::all(), 2)]))
        .unwrap();
    let answer = store.txn(Txn::new([put()])).unwrap();
    assert_eq!(answer.results, [sequenced("00000000000000000003")]);
    let refused = store.txn(Txn::new([
        put(),
        Op::Add {
            key: key("q/00000000000000000003"),
            delta: 1,
        },
    ]));
    assert!(refused.is_err());
    let answer = store.txn(Txn::new([put()])).unwrap();
    assert_eq!(
        answer.results,
        [sequenced("00000000000000000004")],
        "a refused one gave no number"
    );
    let answer = store
        .txn(Txn::new([put(), Op::delete(key("q/00000000000000000005"))]))
        .unwrap();
    assert_eq!(
        answer.revision,
        revision(5),
        "created and deleted: nothing changed but the sequence"
    );
    let answer = store.txn(Txn::new([put()])).unwrap();
    assert_eq!(answer.results, [sequenced("00000000000000000006")]);
    store.verify();
}

#[test]
fn a_guard_sees_the_state_before_and_the_answer_tells_every_condition_that_failed() {
    let mut store = Store::new();
    store.txn(Txn::new([put("a", "1"), put("b", "2")])).unwrap();
    let test = |k: &str, test| Condition::Key { key: key(k), test };
    let range = |test| Condition::Range {
        range: KeyRange::all(),
        test,
    };
    let guard = Guard::all(
        [
            test("a", KeyTest::Value(Compare::Equal, value("9"))),
            test("a", KeyTest::Version(Compare::Equal, 1)),
            test("x", KeyTest::Exists(true)),
            test("x", KeyTest::Value(Compare::NotEqual, value("9"))),
            test("x", KeyTest::Value(Compare::Less, value("9"))),
            range(RangeTest::Count(Compare::Less, 1)),
            range(RangeTest::All(KeyTest::Value(Compare::Equal, value("1")))),
            range(RangeTest::Any(KeyTest::Value(Compare::Equal, value("3")))),
            test("b", KeyTest::ModRevision(Compare::Equal, None)),
        ]
        .map(Guard::condition),
    );
    let txn = Txn::new([put("then", "")])
        .when(guard)
        .or_else([put("otherwise", "")]);
    let answer = store.txn(txn).unwrap();
    assert!(!answer.succeeded);
    let found = |with_value: Option<&str>| Found::Record {
        value: with_value.map(value),
        create_revision: revision(2),
        mod_revision: revision(2),
        version: 1,
        lease: None,
    };
    let failed = |index, found| FailedCondition { index, found };
    assert_eq!(
        answer.failed,
        [
            failed(0, found(Some("1"))),
            failed(2, Found::Missing),
            failed(4, Found::Missing),
            failed(5, Found::Count(2)),
            failed(6, Found::Key(key("b"))),
            failed(7, Found::None),
            failed(8, found(None)),
        ]
    );
    assert!(record(&store, "then").is_none() && record(&store, "otherwise").is_some());
    let guard = Guard::any([Guard::exists(key("x")), Guard::missing(key("x"))]);
    let answer = store.txn(Txn::new([put("x", "")]).when(guard)).unwrap();
    assert!(answer.succeeded, "the guard saw the state before the put");
    assert_eq!(answer.failed, [], "a guard that held tells nothing");
}

#[test]
fn a_read_at_a_revision_sees_the_state_of_then() {
    let mut store = Store::new();
    store.txn(Txn::new([put("a", "2"), put("b", "2")])).unwrap();
    store.txn(Txn::new([put("a", "3")])).unwrap();
    store
        .txn(Txn::new([Op::delete(key("a")), put("c", "4")]))
        .unwrap();
    let view = store.reader.view().unwrap();
    let seen = |at| {
        let read = ReadOp::Range(RangeRead::new(KeyRange::all()));
        match view
            .read(&[read], Some(revision(at)))
            .unwrap()
            .map(|mut r| r.pop())
        {
            Ok(Some(ReadResult::Range { records, .. })) => records
                .iter()
                .map(|kv| format!("{}={}", kv.key, kv.record.value.escape_ascii()))
                .collect::<Vec<_>>()
                .join(" "),
            other => format!("{other:?}"),
        }
    };
    assert_eq!(seen(1), "");
    assert_eq!(seen(2), "a=2 b=2");
    assert_eq!(seen(3), "a=3 b=2");
    assert_eq!(seen(4), "b=2 c=4");
    assert_eq!(
        view.read(&[], Some(revision(5))).unwrap(),
        Err(ReadRefused::FutureRevision {
            asked: revision(5),
            current: revision(4)
        })
    );
    assert_eq!(
        view.read(&[], Some(revision(0))).unwrap(),
        Err(ReadRefused::Compacted {
            asked: revision(0),
            oldest: revision(1)
        })
    );
}

#[test]
fn a_page_of_a_range_ends_at_a_mebibyte_and_says_that_there_is_more() {
    let mut store = Store::new();
    let large = "v".repeat(400 * 1024);
    for k in ["a", "b", "c", "d"] {
        store.txn(Txn::new([put(k, &large)])).unwrap();
    }
    let view = store.reader.view().unwrap();
    let read = |from: &str| {
        let read = ReadOp::Range(RangeRead::new(KeyRange::starting_at(from.to_owned())));
        match view.read(&[read], None).unwrap().unwrap().pop() {
            Some(ReadResult::Range { records, count, more }) => (records.len(), count, more),
            other => panic!("a range answered {other:?}"),
        }
    };
    assert_eq!(read("a"), (2, 2, true));
    assert_eq!(read("c"), (2, 2, false));
}

#[test]
fn a_view_is_pinned_while_entries_are_applied() {
    let mut store = Store::new();
    store.txn(Txn::new([put("a", "1")])).unwrap();
    let view = store.reader.view().unwrap();
    store.txn(Txn::new([put("a", "2")])).unwrap();
    let read = view.read(&[ReadOp::Get(key("a"))], None).unwrap().unwrap();
    assert!(matches!(&read[0], ReadResult::Get(Some(found)) if found.value == value("1")));
    assert_eq!(view.applied().revision, revision(2));
}

#[test]
fn a_transaction_of_many_thousand_keys_is_one_revision() {
    let mut store = Store::new();
    let puts = (0..5_000).map(|i| put(&format!("key-{i:06}"), "v"));
    let answer = store.txn(Txn::new(puts)).unwrap();
    assert_eq!(answer.revision, revision(2));
    let view = store.reader.view().unwrap();
    let mut read = RangeRead::new(KeyRange::all());
    read.count_only = true;
    let found = view.read(&[ReadOp::Range(read)], None).unwrap().unwrap();
    assert_eq!(
        found,
        [ReadResult::Range {
            records: vec![],
            count: 5_000,
            more: false
        }]
    );
    store.verify();
}
