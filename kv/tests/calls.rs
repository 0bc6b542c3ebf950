//! What a program calls, as it would write it: the list of calls that must compile, and what each answers.

use std::borrow::Cow;
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use quorate_kv::client::{Error, Expected, Swap, TransactError};
use quorate_kv::model::{
    Consistency, Guard, InvalidRead, InvalidTxn, Key, KeyRange, Op, OpResult, Revision, Txn,
};
use quorate_kv::{Client, Node};

/// A node alone, and its client.
async fn start() -> (tempfile::TempDir, Node, Client) {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::builder().data_dir(dir.path()).start().await.unwrap();
    let client = node.client();
    (dir, node, client)
}

async fn text(client: &Client, key: &str) -> Option<String> {
    let record = client.get(key).await.unwrap()?;
    Some(record.text().unwrap().to_owned())
}

fn names(found: impl IntoIterator<Item = quorate_kv::model::KeyValue>) -> Vec<String> {
    let name = |found: quorate_kv::model::KeyValue| found.key.as_str().unwrap().to_owned();
    found.into_iter().map(name).collect()
}

#[tokio::test]
async fn keys_and_values_are_taken_from_anything_that_is_text_or_bytes() {
    let (_dir, node, client) = start().await;
    let (owned, bytes, vec) = (String::from("k"), Bytes::from_static(b"k"), vec![b'k']);
    let key = Key::from("k");
    client.put("k", "1").await.unwrap();
    client.put(&owned, &owned).await.unwrap();
    client.put(owned.clone(), owned.clone()).await.unwrap();
    client.put(owned.as_bytes(), owned.as_bytes()).await.unwrap();
    client.put(b"k", b"v").await.unwrap();
    client.put([b'k'], [b'v'; 3]).await.unwrap();
    client.put(&vec, &vec).await.unwrap();
    client.put(vec.clone(), vec.clone()).await.unwrap();
    client.put(&bytes, &bytes).await.unwrap();
    client.put(bytes.clone(), bytes.clone()).await.unwrap();
    client.put(Cow::Borrowed("k"), Cow::Borrowed("v")).await.unwrap();
    client
        .put(Cow::<[u8]>::Owned(vec.clone()), Cow::<[u8]>::Owned(vec.clone()))
        .await
        .unwrap();
    client
        .put(owned.clone().into_boxed_str(), owned.clone().into_boxed_str())
        .await
        .unwrap();
    client.put(&key, "v").await.unwrap();
    client.put(key.clone(), format!("{}", 12)).await.unwrap();
    let found = client.get("k").await.unwrap().unwrap();
    assert_eq!((found.version, found.text()), (15, Some("12")));
    assert_eq!(client.get(&owned).await.unwrap().as_ref(), Some(&found));
    assert_eq!(client.get(b"k").await.unwrap().as_ref(), Some(&found));
    assert_eq!(client.get(&key).await.unwrap().as_ref(), Some(&found));
    assert!(client.exists(&bytes).await.unwrap());
    assert!(!client.exists("other").await.unwrap());
    // A name that lives no longer than the call.
    for number in 0..2 {
        let name = format!("k/{number}");
        client.put(name.as_str(), 7).await.unwrap();
        assert_eq!(client.get(&name).await.unwrap().unwrap().number(), Some(7));
    }
    let guards = Guard::all([
        Guard::missing("a"),
        Guard::missing(String::from("b")),
        Guard::exists(b"k"),
        Guard::value("k", "12"),
        Guard::unchanged(&key, found.mod_revision),
        Guard::unchanged("c", None),
        Guard::empty("x".."y"),
        Guard::empty(KeyRange::prefix("x/")),
    ]);
    let ops = [
        Op::put("a", "1"),
        Op::create(String::from("n"), 1),
        Op::add(String::from("n"), 2),
        Op::max(b"n", 9),
        Op::get(&key),
        Op::range(.."b"),
        Op::delete("a"),
        Op::put_sequence("q/", "first"),
        Op::delete_range("x".., 10),
    ];
    let answer = client.commit(Txn::new(ops).when(guards)).await.unwrap();
    assert!(answer.succeeded, "{answer:?}");
    assert_eq!(answer.results[3], OpResult::Number(9));
    node.shutdown().await;
}

#[tokio::test]
async fn a_put_and_a_delete_tell_what_was_there_where_they_are_asked() {
    let (_dir, node, client) = start().await;
    let first = client.put("k", "one").with_previous().await.unwrap();
    assert_eq!(first.previous, None);
    let second = client.put("k", "two").with_previous().await.unwrap();
    let previous = second.previous.unwrap();
    assert_eq!(
        (previous.text(), previous.mod_revision),
        (Some("one"), first.revision)
    );
    assert!(second.revision > first.revision);

    let deleted = client.delete("k").with_previous().await.unwrap().unwrap();
    assert_eq!((deleted.text(), deleted.version), (Some("two"), 2));
    assert_eq!(client.delete("k").with_previous().await.unwrap(), None);
    assert!(!client.delete("k").await.unwrap());
    client.put("k", "three").await.unwrap();
    assert!(client.delete("k").await.unwrap());
    node.shutdown().await;
}

#[tokio::test]
async fn a_conditional_put_writes_or_tells_what_is_there() {
    let (_dir, node, client) = start().await;
    let Swap::Written(written) = client.put_if_absent("k", "one").await.unwrap() else {
        panic!("there was no such key");
    };
    let Swap::Differs(Some(found)) = client.put_if_absent("k", "two").await.unwrap() else {
        panic!("the key exists");
    };
    assert_eq!((found.text(), found.mod_revision), (Some("one"), written));

    let swap = |expected: Expected, value: &'static str| {
        let client = client.clone();
        async move {
            client
                .compare_and_swap("k", expected, value)
                .await
                .unwrap()
                .is_written()
        }
    };
    assert!(!swap("two".into(), "x").await, "by value");
    assert!(swap("one".into(), "two").await);
    assert!(!swap(written.into(), "x").await, "by revision");
    let found = client.get("k").await.unwrap();
    assert!(swap(found.as_ref().into(), "three").await, "by record");
    assert!(!swap(found.as_ref().into(), "x").await);
    assert!(!swap(Expected::Missing, "x").await);
    client.delete("k").await.unwrap();
    assert!(!swap("three".into(), "x").await, "a missing key has no value");
    assert_eq!(
        client.compare_and_swap("k", "three", "x").await.unwrap(),
        Swap::Differs(None)
    );
    assert!(swap(None.into(), "four").await);
    assert_eq!(text(&client, "k").await.as_deref(), Some("four"));
    node.shutdown().await;
}

#[tokio::test]
async fn numbers_are_numbers() {
    let (_dir, node, client) = start().await;
    assert_eq!(client.add("n", 5).await.unwrap(), 5);
    assert_eq!(client.add("n", -7).await.unwrap(), -2);
    assert_eq!(client.get("n").await.unwrap().unwrap().number(), Some(-2));
    client.put("n", 40).await.unwrap();
    assert_eq!(client.add("n", 2).await.unwrap(), 42);
    client.put("text", "forty").await.unwrap();
    assert_eq!(client.get("text").await.unwrap().unwrap().number(), None);
    let refused = client.add("text", 1).await.unwrap_err();
    assert!(
        matches!(refused, Error::Refused(_)) && !refused.may_have_committed(),
        "{refused}"
    );
    node.shutdown().await;
}

#[tokio::test]
async fn ranges_are_rusts_ranges_and_come_in_pages_or_as_a_stream() {
    let (_dir, node, client) = start().await;
    let keys = ["a", "b", "b/1", "b/2", "c"];
    client
        .commit(Txn::new(keys.map(|key| Op::put(key, key))))
        .await
        .unwrap();
    let read = async |range: KeyRange| names(client.range(range).await.unwrap());
    assert_eq!(read((..).into()).await, keys);
    assert_eq!(read(("b".."c").into()).await, ["b", "b/1", "b/2"]);
    assert_eq!(read(("b"..="c").into()).await, ["b", "b/1", "b/2", "c"]);
    assert_eq!(read(("b/".to_owned()..).into()).await, ["b/1", "b/2", "c"]);
    assert_eq!(read((..&Key::from("b/1")).into()).await, ["a", "b"]);
    assert_eq!(read((..=b"b").into()).await, ["a", "b"]);
    assert_eq!(
        read((Bound::Excluded("b"), Bound::Included("b/2")).into()).await,
        ["b/1", "b/2"]
    );
    assert_eq!(read(KeyRange::key(&"b".into())).await, ["b"]);
    assert_eq!(names(client.prefix("b/").await.unwrap()), ["b/1", "b/2"]);
    assert_eq!(client.count(..).await.unwrap(), 5);
    assert_eq!(client.count(KeyRange::prefix("b")).await.unwrap(), 3);

    let page = client.range(..).limit(2).await.unwrap();
    assert_eq!(names(page.clone()), ["a", "b"]);
    // What is written meanwhile is not of the state that is read.
    client.put("b/0", "late").await.unwrap();
    let rest = page.rest.unwrap();
    let page = client.range(&rest).at(page.revision).limit(2).await.unwrap();
    assert_eq!(names(page.clone()), ["b/1", "b/2"]);
    let page = client
        .range(page.rest.unwrap())
        .at(page.revision)
        .limit(2)
        .await
        .unwrap();
    assert_eq!((names(page.clone()), page.rest), (vec!["c".to_owned()], None));

    let page = client.range(..).descending().limit(2).await.unwrap();
    assert_eq!(names(page.clone()), ["c", "b/2"]);
    let page = client
        .range(page.rest.unwrap())
        .descending()
        .limit(9)
        .await
        .unwrap();
    assert_eq!(names(page), ["b/1", "b/0", "b", "a"]);

    let page = client.prefix("b/").keys_only().await.unwrap();
    assert!(page.records.iter().all(|found| found.record.value.is_empty()) && page.records.len() == 3);
    node.shutdown().await;
}

#[tokio::test]
async fn a_stream_gives_all_records_of_one_revision_however_many_pages_they_are() {
    let (_dir, node, client) = start().await;
    let keys: Vec<String> = (0..2_500).map(|number| format!("k/{number:04}")).collect();
    client
        .commit(Txn::new(keys.iter().map(|key| Op::put(key, "v"))))
        .await
        .unwrap();
    let mut records = client.prefix("k/").stream();
    let first = records.next().await.unwrap().unwrap();
    assert_eq!(first.key, Key::from("k/0000"));
    // The pages that are still to come do not see this.
    client.delete_prefix("k/").await.unwrap();
    let mut found = vec![first];
    while let Some(record) = records.next().await {
        found.push(record.unwrap());
    }
    assert_eq!(names(found), keys);
    assert_eq!(client.count(KeyRange::prefix("k/")).await.unwrap(), 0);

    client
        .commit(Txn::new(keys.iter().map(|key| Op::put(key, "v"))))
        .await
        .unwrap();
    let mut records = client.prefix("k/").descending().limit(1_200).keys_only().stream();
    let mut found = Vec::new();
    while let Some(record) = records.next().await {
        found.push(record.unwrap());
    }
    let expected: Vec<_> = keys.iter().rev().take(1_200).cloned().collect();
    assert_eq!(names(found), expected);
    let mut thousand = client.prefix("k/").limit(1_000).stream();
    let mut count = 0;
    while let Some(record) = thousand.next().await {
        record.unwrap();
        count += 1;
    }
    assert_eq!(count, 1_000, "as many as a page has, when they are asked for");
    let mut none = client.prefix("none").stream();
    assert!(none.next().await.is_none());
    node.shutdown().await;
}

#[tokio::test]
async fn a_stream_whose_history_went_ends_with_that() {
    let (_dir, node, client) = start().await;
    let puts = (0..1_500).map(|number| Op::put(format!("k/{number:04}"), "v"));
    client.commit(Txn::new(puts)).await.unwrap();
    let mut records = client.prefix("k/").stream();
    records.next().await.unwrap().unwrap();
    let newest = client.put("k/0000", "new").await.unwrap();
    client.compact(newest).await.unwrap();
    let mut count = 1;
    let ended = loop {
        match records.next().await {
            Some(Ok(_)) => count += 1,
            other => break other,
        }
    };
    assert!(
        matches!(ended, Some(Err(Error::Compacted { oldest })) if oldest == newest),
        "{ended:?}"
    );
    assert_eq!(count, 1_000, "the page that it had");
    assert!(records.next().await.is_none(), "the first error is the last item");
    node.shutdown().await;
}

#[tokio::test]
async fn a_prefix_is_deleted_whole_or_in_steps() {
    let (_dir, node, client) = start().await;
    let fill = || Txn::new((0..2_300).map(|number| Op::put(format!("k/{number}"), "v")));
    client.commit(fill()).await.unwrap();
    client.put("l", "stays").await.unwrap();
    let before = client.revision().await.unwrap();
    assert_eq!(client.delete_prefix("k/").await.unwrap(), 2_300);
    assert_eq!(client.revision().await.unwrap(), before.next(), "one transaction");
    client.commit(fill()).await.unwrap();
    let before = client.revision().await.unwrap();
    assert_eq!(client.delete_range("k/".."k0").in_steps().await.unwrap(), 2_300);
    let after = client.revision().await.unwrap();
    assert_eq!(after.number() - before.number(), 3, "a thousand keys a step");
    assert_eq!(client.delete_prefix("k/").in_steps().await.unwrap(), 0);
    assert_eq!(text(&client, "l").await.as_deref(), Some("stays"));
    node.shutdown().await;
}

#[tokio::test]
async fn a_read_says_how_fresh_it_must_be_and_a_client_says_it_for_all() {
    let (_dir, node, client) = start().await;
    let first = client.put("k", "one").await.unwrap();
    let second = client.put("k", "two").await.unwrap();
    let value = |record: Option<quorate_kv::model::Record>| record.unwrap().text().unwrap().to_owned();
    assert_eq!(
        value(client.get("k").stale().min_revision(second).await.unwrap()),
        "two"
    );
    assert_eq!(
        value(client.get("k").max_lag(Duration::from_secs(1)).await.unwrap()),
        "two"
    );
    assert_eq!(value(client.get("k").at(first).await.unwrap()), "one");
    let patient = client.get("k").stale().deadline(Duration::from_secs(5));
    assert_eq!(value(patient.await.unwrap()), "two");
    let waited = client
        .get("k")
        .at(Revision::new(1_000))
        .deadline(Duration::from_millis(50))
        .await;
    assert!(
        matches!(waited, Err(Error::NotYet { .. } | Error::Unavailable { .. })),
        "{waited:?}"
    );

    let historian = client.with_consistency(Consistency::At(first));
    assert_eq!(value(historian.get("k").await.unwrap()), "one");
    assert_eq!(historian.range(..).await.unwrap().revision, first);
    assert_eq!(
        value(
            historian
                .get("k")
                .consistency(Consistency::Linearizable)
                .await
                .unwrap()
        ),
        "two"
    );
    // Calls are futures: they can be made at once.
    let (one, other, count) = tokio::join!(client.get("k"), historian.get("k"), client.count(..));
    assert_eq!(
        (value(one.unwrap()), value(other.unwrap()), count.unwrap()),
        ("two".to_owned(), "one".to_owned(), 1)
    );
    node.shutdown().await;
}

#[tokio::test]
async fn a_transaction_is_put_together_and_awaited() {
    let (_dir, node, client) = start().await;
    let claim = |owner: &'static str| {
        client
            .txn()
            .when(Guard::missing("job/owner"))
            .when(Guard::empty(KeyRange::prefix("closed/")))
            .put("job/owner", owner)
            .add("owned", 1)
            .get("job/owner")
            .or_else([Op::get("job/owner")])
    };
    let first = claim("me").await.unwrap();
    assert!(first.succeeded);
    assert_eq!(first.results[1], OpResult::Number(1));
    assert!(matches!(&first.results[2], OpResult::Get(Some(record)) if record.text() == Some("me")));
    let second = claim("you").deadline(Duration::from_secs(5)).await.unwrap();
    assert!(!second.succeeded && second.failed.len() == 1, "{second:?}");
    assert!(matches!(&second.results[..], [OpResult::Get(Some(record))] if record.text() == Some("me")));
    let built = client.txn().delete("job/owner").op(Op::max("owned", 9)).build();
    assert!(client.commit(built).await.unwrap().succeeded);
    node.shutdown().await;
}

#[tokio::test]
async fn a_closure_reads_what_it_wrote_itself() {
    let (_dir, node, client) = start().await;
    client
        .commit(Txn::new(["k/1", "k/2", "k/3"].map(|key| Op::put(key, "old"))))
        .await
        .unwrap();
    client.put("n", 5).await.unwrap();
    let found = client
        .transact(async |t| {
            assert_eq!(t.get("k/1").await?.as_deref(), Some(&b"old"[..]));
            t.put("k/1", "new")?;
            t.delete("k/2")?;
            t.put("k/4", "new")?;
            t.add("n", 2)?;
            t.op(Op::max("m", 3))?;
            assert_eq!(t.get("k/1").await?.as_deref(), Some(&b"new"[..]));
            assert_eq!(t.get("k/2").await?, None);
            assert_eq!(t.get("n").await?.as_deref(), Some(&7i64.to_be_bytes()[..]));
            assert_eq!(t.get("m").await?.as_deref(), Some(&3i64.to_be_bytes()[..]));
            // As it was before: with its revisions.
            assert_eq!(t.record("k/1").await?.unwrap().text(), Some("old"));
            let found = t.prefix("k/").await?;
            t.delete_range("k/3".."k/5")?;
            t.put("k/3", "again")?;
            t.add("k/4", 1)?;
            let after = t.range("k/3".."k/9").await?;
            assert_eq!(after[0], ("k/3".into(), "again".into()));
            assert_eq!(after[1].1, 1i64.to_be_bytes()[..], "deleted, then counted from 0");
            Ok(found)
        })
        .await
        .unwrap();
    let found: Vec<_> = found
        .iter()
        .map(|(key, value)| (key.as_str().unwrap(), &value[..]))
        .collect();
    assert_eq!(found, [("k/1", &b"new"[..]), ("k/3", b"old"), ("k/4", b"new")]);
    // And the commit made the same of it.
    assert_eq!(client.get("n").await.unwrap().unwrap().number(), Some(7));
    assert_eq!(client.get("k/4").await.unwrap().unwrap().number(), Some(1));
    assert_eq!(text(&client, "k/3").await.as_deref(), Some("again"));
    assert!(!client.exists("k/2").await.unwrap());
    node.shutdown().await;
}

#[tokio::test]
async fn a_closure_that_wrote_nothing_costs_no_entry_and_saw_one_revision() {
    let (_dir, node, client) = start().await;
    client.put("a", "1").await.unwrap();
    let before = client.status().await.unwrap().applied;
    let sum = client
        .transact(async |t| {
            let a = t.get("a").await?;
            let b = t.get("b").await?;
            Ok((a.is_some(), b.is_some()))
        })
        .await
        .unwrap();
    assert_eq!(sum, (true, false));
    assert_eq!(
        client.status().await.unwrap().applied,
        before,
        "nothing went through the log"
    );
    let read = client.try_transact(async |t| t.get("a").await).await.unwrap();
    assert_eq!(read.revision, Some(client.revision().await.unwrap()));
    assert_eq!(read.response, None);
    node.shutdown().await;
}

#[tokio::test]
async fn a_closure_may_give_up_with_an_error_of_its_own() {
    #[derive(Debug, thiserror::Error)]
    enum Withdrawal {
        #[error("only {0} are left")]
        TooLittle(i64),
        #[error(transparent)]
        Store(#[from] Error),
    }
    let (_dir, node, client) = start().await;
    client.put("account", 10).await.unwrap();
    let withdraw = async |amount: i64| {
        client
            .try_transact(async |t| {
                let record = t.record("account").await?;
                let left = record.and_then(|record| record.number()).unwrap_or(0);
                if left < amount {
                    return Err(Withdrawal::TooLittle(left));
                }
                t.put("account", left - amount)?;
                Ok(left - amount)
            })
            .await
    };
    let done = withdraw(7).await.unwrap();
    assert_eq!(done.output, 3);
    assert_eq!(done.revision, Some(client.revision().await.unwrap()));
    let refused = withdraw(7).await.unwrap_err();
    assert!(
        matches!(refused, TransactError::Aborted(Withdrawal::TooLittle(3))),
        "{refused}"
    );
    assert_eq!(client.get("account").await.unwrap().unwrap().number(), Some(3));
    node.shutdown().await;
}

#[tokio::test]
async fn a_key_that_no_store_takes_is_refused_with_its_bound_and_nothing_is_sent() {
    let (_dir, node, client) = start().await;
    let before = client.status().await.unwrap().applied;
    let long = "k".repeat(5_000);
    let refused = client.put("", "v").await.unwrap_err();
    assert!(
        matches!(
            refused,
            Error::InvalidTxn(InvalidTxn::EmptyKey { limit: 4_096, .. })
        ),
        "{refused}"
    );
    assert_eq!(
        refused.to_string(),
        "operation 0: the key is empty; a key has 1 to 4096 bytes"
    );
    let refused = client.put(&long, "v").await.unwrap_err();
    assert!(
        matches!(
            refused,
            Error::InvalidTxn(InvalidTxn::KeyTooLong {
                size: 5_000,
                limit: 4_096,
                ..
            })
        ),
        "{refused}"
    );
    let refused = client.get("").await.unwrap_err();
    assert!(
        matches!(
            refused,
            Error::InvalidRead(InvalidRead::EmptyKey {
                index: 0,
                limit: 4_096
            })
        ),
        "{refused}"
    );
    assert!(
        client.get(&long).await.is_err()
            && client.delete("").await.is_err()
            && client.add("", 1).await.is_err()
    );
    assert!(client.txn().when(Guard::missing("")).put("k", "v").await.is_err());
    assert!(client.txn().put("k", "v").or_else([Op::get("")]).await.is_err());
    assert!(client.txn().op(Op::put_sequence("", "v")).await.is_err());
    assert!(client.put("k", vec![0; 2 << 20]).await.is_err());
    assert!(matches!(
        client.exists("").await,
        Err(Error::InvalidRead(InvalidRead::EmptyKey { .. }))
    ));
    assert!(client.exists(&long).await.is_err());
    let refused = client.delete_prefix("").await.unwrap_err();
    assert!(refused.to_string().contains("delete_range(..)"), "{refused}");
    // In a closure it is told where it happens.
    let told = client
        .transact(async |t| {
            let refused = t.put("", "v").unwrap_err();
            assert!(matches!(refused, Error::InvalidTxn(_)), "{refused}");
            t.put("k", "v")
        })
        .await;
    assert!(matches!(told, Err(Error::InvalidTxn(_))), "{told:?}");
    assert!(!client.exists("k").await.unwrap());
    assert_eq!(client.status().await.unwrap().applied, before);
    node.shutdown().await;
}
