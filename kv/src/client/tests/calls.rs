//! What the options of a call make of what is sent.

use std::time::Duration;

use super::stub::{Asked, Stage, Stub, commit};
use crate::client::{Client, Error};
use crate::env;
use crate::model::{
    Consistency, Guard, Key, KeyValue, Op, OpResult, Order, RangeRead, ReadOp, ReadResponse, ReadResult,
    Record, Revision, Txn,
};
use crate::protocol::{Failure, Request, Response};

fn stage() -> (Stub, Client) {
    let stage = Stage::new();
    let node = stage.node(1, "one:1");
    let client = stage.client(&["one:1"]);
    (node, client)
}

/// What a read asks for: its consistency, its time, and itself.
fn read(asked: &Asked) -> (Consistency, Duration, &[ReadOp]) {
    match &asked.request {
        Request::Read {
            consistency,
            time,
            reads,
            ..
        } => (*consistency, *time, reads),
        other => panic!("a read was expected, not {other:?}"),
    }
}

async fn answer(asked: Asked, revision: u64, result: ReadResult) {
    let response = ReadResponse {
        revision: Revision::new(revision),
        results: vec![result],
    };
    asked.answer(Response::Read(response)).await;
}

fn records(keys: &[&str], more: bool) -> ReadResult {
    let record = Record {
        value: "v".into(),
        create_revision: Revision::new(2),
        mod_revision: Revision::new(2),
        version: 1,
        lease: None,
    };
    let records = keys.iter().map(|key| KeyValue {
        key: Key::from(*key),
        record: record.clone(),
    });
    ReadResult::Range {
        records: records.collect(),
        count: keys.len() as u64,
        more,
    }
}

#[tokio::test]
async fn a_read_is_asked_for_with_the_freshness_that_it_was_given() {
    let (mut node, client) = stage();
    let (lag, seen) = (Duration::from_millis(300), Revision::new(7));
    let stale = |min_revision, max_lag| Consistency::Stale {
        min_revision,
        max_lag,
    };
    let bounded = client.with_consistency(stale(Some(seen), Some(lag)));
    let cases = [
        (client.get("k"), Consistency::Linearizable),
        (client.get("k").stale(), stale(None, None)),
        (client.get("k").max_lag(lag), stale(None, Some(lag))),
        (client.get("k").min_revision(seen), stale(Some(seen), None)),
        (
            client.get("k").max_lag(lag).min_revision(seen),
            stale(Some(seen), Some(lag)),
        ),
        (client.get("k").max_lag(lag).stale(), stale(None, None)),
        (client.get("k").stale().at(seen), Consistency::At(seen)),
        (client.get("k").at(seen).max_lag(lag), stale(None, Some(lag))),
        (bounded.get("k"), stale(Some(seen), Some(lag))),
        (bounded.get("k").stale(), stale(None, None)),
        (
            bounded.get("k").consistency(Consistency::Linearizable),
            Consistency::Linearizable,
        ),
    ];
    for (call, expected) in cases {
        let answered = async {
            let asked = node.asked().await;
            assert_eq!(read(&asked).0, expected);
            answer(asked, 9, ReadResult::Get(None)).await;
        };
        let (found, ()) = tokio::join!(call, answered);
        assert_eq!(found, Ok(None));
    }
}

#[tokio::test]
async fn each_call_has_the_deadline_that_it_was_given() {
    let (mut node, client) = stage();
    let given = Duration::from_millis(700);
    // Never answered, each ends by its own deadline.
    let page = async { client.range(..).deadline(given).await.map(drop) };
    let get = async { client.get("k").deadline(given).await.map(drop) };
    let stream = async {
        let mut records = client.range(..).deadline(given).stream();
        records
            .next()
            .await
            .unwrap_or_else(|| panic!("an error"))
            .map(drop)
    };
    let rows = async {
        const ROWS: crate::table::Table<u64, ()> = crate::table::Table::new("rows/");
        let rows = client.table(ROWS).range(..).with(|range| range.deadline(given));
        rows.await.map(drop)
    };
    let put = async { client.put("k", "v").deadline(given).await.map(drop) };
    let txn = async { client.txn().put("k", "v").deadline(given).await.map(drop) };
    let delete = async { client.delete_prefix("k").deadline(given).await.map(drop) };
    let ends = async { tokio::join!(page, get, stream, rows, put, txn, delete) };
    let silent = async {
        loop {
            let asked = node.asked().await;
            if let Request::Read { .. } = &asked.request {
                assert!(read(&asked).1 <= given, "the node is told how long it has");
            }
            std::mem::forget(asked);
        }
    };
    let ended = tokio::select! { ended = ends => ended, () = silent => panic!("it never ends") };
    let (page, get, stream, rows, put, txn, delete) = ended;
    for (number, ended) in [page, get, stream, rows, put, txn, delete]
        .into_iter()
        .enumerate()
    {
        match ended {
            Err(Error::Unavailable { deadline, .. }) => assert_eq!(deadline, given, "{number}"),
            other => panic!("{number}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn the_pages_of_rows_have_one_deadline_together() {
    const ROWS: crate::table::Table<u64, ()> = crate::table::Table::new("");
    let (mut node, client) = stage();
    let given = Duration::from_millis(400);
    let rows = client.table(ROWS).range(..).with(|range| range.deadline(given));
    let begun = env::now();
    let endless = async {
        loop {
            let asked = node.asked().await;
            // Each page takes half of the time, and says that there is more.
            env::sleep(given / 2).await;
            answer(asked, 9, records(&["\0\0\0\0\0\0\0\x01"], true)).await;
        }
    };
    let ended = tokio::select! { ended = rows => ended, () = endless => panic!("it never ends") };
    assert!(ended.is_err(), "{ended:?}");
    assert!(env::now().since(begun) < given * 4);
}

#[tokio::test]
async fn a_page_that_ended_early_says_where_to_go_on_and_a_stream_goes_on_there() {
    let (mut node, client) = stage();
    let mut stream = client.range("a".."z").limit(5).keys_only().stream();
    let answered = async {
        let mut asked_for = Vec::new();
        // Pages that end before their limit, as those that reach a mebibyte do.
        for (keys, more) in [(&["b", "c"][..], true), (&["d"], true), (&["e", "f"], true)] {
            let asked = node.asked().await;
            let (consistency, _, reads) = read(&asked);
            let [ReadOp::Range(range)] = reads else {
                panic!("{reads:?}");
            };
            asked_for.push((consistency, range.clone()));
            answer(asked, 9, records(keys, more)).await;
        }
        asked_for
    };
    let drained = async {
        let mut keys = Vec::new();
        while let Some(found) = stream.next().await {
            keys.push(found.unwrap().key);
        }
        keys
    };
    let (asked_for, keys) = tokio::join!(answered, drained);
    assert_eq!(keys, ["b", "c", "d", "e", "f"].map(Key::from));
    let read_of = |range: std::ops::Range<&str>, limit| RangeRead {
        keys_only: true,
        ..RangeRead::new(range).limit(limit)
    };
    let at = Consistency::At(Revision::new(9));
    let expected = [
        (Consistency::Linearizable, read_of("a".."z", 5)),
        (at, read_of("c\0".."z", 3)),
        (at, read_of("d\0".."z", 2)),
    ];
    assert_eq!(asked_for, expected);
    assert!(node.asked_already().is_none(), "it has as many as were asked for");

    let page = client.range("a".."z").descending();
    let answered = async {
        let asked = node.asked().await;
        let [ReadOp::Range(range)] = read(&asked).2 else {
            panic!("a range");
        };
        assert_eq!((range.order, range.limit), (Order::Descending, RangeRead::LIMIT));
        answer(asked, 9, records(&["y", "x"], true)).await;
    };
    let (page, ()) = tokio::join!(page, answered);
    assert_eq!(page.unwrap().rest, Some(("a".."x").into()));

    // None was asked for: all is still to come.
    let none = client.range("a".."z").limit(0);
    let answered = async { answer(node.asked().await, 9, records(&[], true)).await };
    let (page, ()) = tokio::join!(none, answered);
    assert_eq!(page.unwrap().rest, Some(("a".."z").into()));
}

#[tokio::test]
async fn a_delete_in_steps_that_breaks_off_does_not_say_that_nothing_was_changed() {
    let (mut node, client) = stage();
    let client = client.with_deadline(Duration::from_millis(500));
    let delete = client.delete_prefix("k/").in_steps();
    let answered = async {
        commit(&mut node, true, vec![OpResult::Deleted { count: 7, more: true }]).await;
        loop {
            let asked = node.asked().await;
            asked.answer(Response::Failed(Failure::NoQuorum)).await;
        }
    };
    let ended = tokio::select! { ended = delete => ended.unwrap_err(), () = answered => panic!("it ends") };
    assert!(ended.may_have_committed(), "{ended}");
    assert!(ended.to_string().contains("7 keys were deleted"), "{ended}");
}

#[tokio::test]
async fn all_guards_of_a_transaction_must_hold_and_one_alone_stands_alone() {
    let (mut node, client) = stage();
    let guards = ["a", "b", "c"].map(Guard::missing);
    let [a, b, c] = guards.clone();
    let call = client.txn().when(a.clone()).when(b).when(c).put("k", "v");
    let (done, sent) = tokio::join!(
        call,
        commit(&mut node, true, vec![OpResult::Put { existed: false }])
    );
    assert!(done.is_ok());
    assert_eq!(sent, Txn::new([Op::put("k", "v")]).when(Guard::all(guards)));
    assert_eq!(client.txn().when(a.clone()).build().guard, a);
    assert_eq!(client.txn().build(), Txn::default());
}

#[tokio::test]
async fn what_a_closure_wrote_itself_needs_no_read() {
    let (mut node, client) = stage();
    let run = client.try_transact(async |t| {
        t.put("k", "new")?;
        assert_eq!(t.get("k").await?.as_deref(), Some(&b"new"[..]));
        t.delete_range("r".."s")?;
        assert_eq!(t.get("r/1").await?, None);
        t.add("r/2", 3)?;
        assert_eq!(t.get("r/2").await?.as_deref(), Some(&3i64.to_be_bytes()[..]));
        t.op(Op::max("r/2", 2))?;
        t.op(Op::max("r/2", 9))?;
        t.op(Op::max("r/2", 5))?;
        assert_eq!(t.get("r/2").await?.as_deref(), Some(&9i64.to_be_bytes()[..]));
        Ok::<_, Error>(())
    });
    let (done, sent) = tokio::join!(run, commit(&mut node, true, Vec::new()));
    assert!(done.is_ok());
    assert_eq!(
        sent.guard.conditions().count(),
        0,
        "it was told nothing by the store"
    );
    assert_eq!(sent.then.len(), 6);
}

#[tokio::test]
async fn a_number_that_cannot_be_made_is_told_where_it_is_read_and_commits_nothing() {
    let (mut node, client) = stage();
    let run = client.transact(async |t| {
        t.put("text", "t")?;
        t.add("text", 1)?;
        let refused = t.get("text").await.unwrap_err();
        assert!(matches!(refused, Error::Refused(_)), "{refused}");
        t.put("n", i64::MAX)?;
        t.add("n", 1)?;
        assert!(t.get("n").await.is_err());
        t.put("k", "v")
    });
    assert!(matches!(run.await, Err(Error::Refused(_))));
    assert!(node.asked_already().is_none(), "nothing was sent");
}
