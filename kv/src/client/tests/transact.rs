//! Closures that read in every order, and what becomes of their guards.

use std::future::Future;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use proptest::prelude::*;

use super::stub::{Asked, Stage, Stub, commit, opened};
use crate::Client;
use crate::client::{Error, TransactError, Transacted, Transaction};
use crate::env::{self, JoinHandle};
use crate::model::{
    Command, Compare, Condition, Consistency, Guard, Key, KeyRange, KeyTest, KeyValue, Op, RangeTest, ReadOp,
    ReadResponse, ReadResult, Record, Revision, SessionId,
};
use crate::protocol::{Failure, Request, Response};

type Ran = Result<Transacted<()>, TransactError<Error>>;

fn key(name: impl Into<String>) -> Key {
    Key::from(name.into())
}

fn revision(number: u64) -> Revision {
    Revision::new(number)
}

fn record(mod_revision: u64) -> Record {
    Record {
        value: "v".into(),
        create_revision: revision(1),
        mod_revision: revision(mod_revision),
        version: 1,
        lease: None,
    }
}

/// A node, and a client that runs this closure against it.
fn stage<F, Fut>(closure: F) -> (Stub, JoinHandle<Ran>)
where
    F: FnMut(Transaction) -> Fut + Send + 'static,
    Fut: Future<Output = Result<(), Error>> + Send,
{
    stage_of(|client| client, closure)
}

fn stage_of<F, Fut>(of: impl FnOnce(Client) -> Client, closure: F) -> (Stub, JoinHandle<Ran>)
where
    F: FnMut(Transaction) -> Fut + Send + 'static,
    Fut: Future<Output = Result<(), Error>> + Send,
{
    let stage = Stage::new();
    let node = stage.node(1, "one:1");
    let client = of(stage.client(&["one:1"]));
    (
        node,
        env::spawn("caller", async move { client.try_transact(closure).await }),
    )
}

fn consistency(asked: &Asked) -> Consistency {
    match &asked.request {
        Request::Read { consistency, .. } => *consistency,
        other => panic!("a read was expected, not {other:?}"),
    }
}

/// Answers a read at this revision: each key, and one key of each range, was last written at it.
async fn answer_read(asked: Asked, at: u64) {
    let Request::Read { reads, .. } = &asked.request else {
        panic!("a read was expected, not {:?}", asked.request);
    };
    let result = |read: &ReadOp| match read {
        ReadOp::Get(_) => ReadResult::Get(Some(record(at))),
        ReadOp::Range(read) => ReadResult::Range {
            records: vec![KeyValue {
                key: Key::new(read.range.start().to_vec()).expect("a legal key"),
                record: record(at),
            }],
            count: 1,
            more: false,
        },
    };
    let response = ReadResponse {
        revision: revision(at),
        results: reads.iter().map(result).collect(),
    };
    asked.answer(Response::Read(response)).await;
}

/// The story: two first reads each chose a revision, and the range's guard was made with the other's.
#[tokio::test]
async fn reads_made_at_once_are_at_the_revision_of_one_of_them() {
    let (mut node, run) = stage(|t| async move {
        let (range, one) = tokio::join!(t.range(KeyRange::prefix("r/")), t.get("k"));
        range?;
        one?;
        t.put("k", "new")
    });
    let first = node.asked().await;
    assert_eq!(consistency(&first), Consistency::Linearizable);
    answer_read(first, 7).await;
    let second = node.asked().await;
    assert_eq!(
        consistency(&second),
        Consistency::At(revision(7)),
        "it waited for the first to decide"
    );
    answer_read(second, 7).await;
    let txn = commit(&mut node, true, Vec::new()).await;
    let range = KeyRange::prefix("r/");
    let expected = Guard::all([
        Guard::unchanged(key("k"), Some(revision(7))),
        Guard::range(range.clone(), RangeTest::Count(Compare::Equal, 1)),
        Guard::range(
            range,
            RangeTest::All(KeyTest::ModRevision(Compare::LessOrEqual, Some(revision(7)))),
        ),
    ]);
    assert_eq!(txn.guard, expected);
    run.await.expect("no panic").expect("it committed");
}

#[tokio::test]
async fn a_first_read_that_was_dropped_leaves_the_choice_to_the_next() {
    let (mut node, run) = stage(|t| async move {
        // Polled once, so that it has begun to decide, and dropped.
        assert!(Box::pin(t.get("left")).now_or_never().is_none());
        t.get("kept").await?;
        t.put("kept", "new")
    });
    let mut asked = node.asked().await;
    if matches!(&asked.request, Request::Read { reads, .. } if reads[0] == ReadOp::Get(key("left"))) {
        asked = node.asked().await;
    }
    assert_eq!(consistency(&asked), Consistency::Linearizable);
    answer_read(asked, 9).await;
    let txn = commit(&mut node, true, Vec::new()).await;
    let expected = Guard::all([Guard::unchanged(key("kept"), Some(revision(9)))]);
    assert_eq!(
        txn.guard, expected,
        "the closure was told nothing of the other key"
    );
    run.await.expect("no panic").expect("it committed");
}

#[tokio::test]
async fn a_read_that_ends_after_the_closure_returned_tells_nothing_and_guards_nothing() {
    let (mut node, run) = stage(|t| async move {
        t.get("seen").await?;
        let late = t.clone();
        let mut late = Box::pin(async move { late.get("late").await });
        // It has begun when the closure returns.
        assert!((&mut late).now_or_never().is_none());
        LATE.lock().await.replace(env::spawn("caller", late));
        t.put("k", "new")
    });
    let first = node.asked().await;
    answer_read(first, 7).await;
    let (mut late, mut txn) = (None, None);
    while late.is_none() || txn.is_none() {
        let asked = node.asked().await;
        match &asked.request {
            Request::Read { .. } => late = Some(asked),
            Request::Write(Command::OpenSession { .. }) => {
                let granted = opened(SessionId::new(1));
                asked.answer(Response::Written(granted)).await;
            }
            Request::Write(Command::Txn { txn: sent, .. }) => txn = Some(sent.clone()),
            other => panic!("{other:?}"),
        }
    }
    // The commit is on its way: what is read now can no longer be part of it.
    answer_read(late.expect("it was asked"), 7).await;
    let handle = LATE.lock().await.take().expect("it was spawned");
    assert_eq!(handle.await.expect("no panic"), Err(Error::TransactionEnded));
    let guard = txn.expect("it was sent").guard;
    assert_eq!(
        guard,
        Guard::all([Guard::unchanged(key("seen"), Some(revision(7)))])
    );
    run.abort();
}

/// A read of a clone that outlives its closure.
static LATE: tokio::sync::Mutex<Option<Late>> = tokio::sync::Mutex::const_new(None);

type Late = JoinHandle<Result<Option<crate::model::Value>, Error>>;

#[tokio::test]
async fn a_handle_that_outlives_its_closure_neither_reads_nor_writes() {
    let (kept, mut handles) = tokio::sync::mpsc::unbounded_channel();
    let (mut node, run) = stage(move |t| {
        let kept = kept.clone();
        async move {
            t.put("k", "new")?;
            kept.send(t).expect("the test listens");
            Ok(())
        }
    });
    commit(&mut node, true, Vec::new()).await;
    run.await.expect("no panic").expect("it committed");
    let t = handles.recv().await.expect("the closure ran");
    assert_eq!(t.get("k").await, Err(Error::TransactionEnded));
    assert_eq!(t.range(KeyRange::all()).await, Err(Error::TransactionEnded));
    assert_eq!(t.put("k", "late"), Err(Error::TransactionEnded));
    assert_eq!(t.delete("k"), Err(Error::TransactionEnded));
    assert_eq!(t.op(Op::get(key("k"))), Err(Error::TransactionEnded));
    assert!(node.asked_already().is_none(), "nothing was sent");
}

#[tokio::test]
async fn an_attempt_with_a_failed_read_does_not_commit_though_the_closure_goes_on() {
    let (mut node, run) = stage(|t| async move {
        // It takes the failure for "not there".
        let seen = t.get("k").await.unwrap_or_default();
        assert!(seen.is_none());
        t.put("k", "new")
    });
    let asked = node.asked().await;
    let failure = Failure::Refused("the answer is too large".to_owned());
    asked.answer(Response::Failed(failure)).await;
    let ended = run.await.expect("no panic").expect_err("its guard is not whole");
    assert!(
        matches!(&ended, TransactError::Client(Error::Rejected { reason, .. }) if reason.contains("too large")),
        "{ended}"
    );
    assert!(node.asked_already().is_none(), "nothing was sent");
}

#[tokio::test]
async fn a_read_or_a_write_that_could_not_be_asked_commits_nothing_though_the_closure_goes_on() {
    for which in 0..3 {
        let (mut node, run) = stage(move |t| async move {
            let long = "k".repeat(1 << 20);
            let unasked = match which {
                0 => t.get(long).await.map(|_| ()),
                1 => t.put(long, "lost"),
                _ => t.delete(""),
            };
            unasked.expect_err("it cannot be asked");
            t.put("k", "new")
        });
        let ended = run.await.expect("no panic").expect_err("a part of it is missing");
        assert!(
            matches!(
                &ended,
                TransactError::Client(Error::InvalidTxn(_) | Error::InvalidRead(_))
            ),
            "{which}: {ended}"
        );
        assert!(node.asked_already().is_none(), "nothing was sent");
    }
}

#[tokio::test]
async fn an_attempt_whose_history_went_while_it_read_begins_again() {
    let (mut node, run) = stage(|t| async move {
        t.get("a").await?;
        t.get("b").await?;
        t.put("k", "new")
    });
    answer_read(node.asked().await, 7).await;
    let second = node.asked().await;
    assert_eq!(consistency(&second), Consistency::At(revision(7)));
    let oldest = revision(9);
    second
        .answer(Response::Failed(Failure::Compacted { oldest }))
        .await;
    let again = node.asked().await;
    assert_eq!(consistency(&again), Consistency::Linearizable, "a new attempt");
    answer_read(again, 12).await;
    let second = node.asked().await;
    assert_eq!(consistency(&second), Consistency::At(revision(12)));
    answer_read(second, 12).await;
    let txn = commit(&mut node, true, Vec::new()).await;
    let seen = [key("a"), key("b")].map(|key| Guard::unchanged(key, Some(revision(12))));
    assert_eq!(txn.guard, Guard::all(seen));
    run.await.expect("no panic").expect("it committed");
}

/// The story: each read had the whole deadline of its own, and a closure of ten reads took ten deadlines.
#[tokio::test]
async fn the_reads_of_all_attempts_together_end_at_the_deadline() {
    let deadline = Duration::from_millis(300);
    let (mut node, run) = stage_of(
        move |client| client.with_deadline(deadline),
        |t| async move {
            for number in 0.. {
                t.get(format!("k{number}")).await?;
            }
            Ok(())
        },
    );
    let began = env::now();
    let answering = env::spawn("caller", async move {
        loop {
            let asked = node.asked().await;
            // The second read is never answered; those before it are.
            if consistency(&asked) == Consistency::Linearizable {
                answer_read(asked, 7).await;
            }
        }
    });
    let ended = run.await.expect("no panic").expect_err("its time is over");
    answering.abort();
    assert!(
        matches!(ended, TransactError::Aborted(Error::Unavailable { .. })),
        "{ended}"
    );
    // Far below a second deadline of the default's length.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_lost_race_is_run_again_at_a_newer_revision() {
    let (mut node, run) = stage(|t| async move {
        t.get("a").await?;
        t.put("a", "new")
    });
    for at in [7, 9] {
        let asked = node.asked().await;
        assert_eq!(consistency(&asked), Consistency::Linearizable);
        answer_read(asked, at).await;
        let txn = commit(&mut node, at == 9, Vec::new()).await;
        let expected = Guard::all([Guard::unchanged(key("a"), Some(revision(at)))]);
        assert_eq!(txn.guard, expected);
    }
    run.await.expect("no panic").expect("it committed");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However many reads are made at once, whichever of them is answered first: all that the closure was told is of one revision, and guarded at it.
    #[test]
    fn every_closure_reads_one_revision(
        reads in 1usize..6,
        ranges in any::<u8>(),
        order in prop::collection::vec(any::<u8>(), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let (mut node, run) = stage(move |t| async move {
                let read = |number: usize| {
                    let t = t.clone();
                    async move {
                        if ranges >> number & 1 == 1 {
                            t.range(KeyRange::prefix(format!("r{number}/"))).await.map(drop)
                        } else {
                            t.get(format!("k{number}")).await.map(drop)
                        }
                    }
                };
                for result in join_all((0..reads).map(read)).await {
                    result?;
                }
                t.put("k", "new")
            });
            // The cluster moves on with each answer to a linearizable read.
            let (mut newest, mut waiting, mut told) = (10, Vec::new(), Vec::new());
            let mut order = order.into_iter().cycle();
            while told.len() < reads {
                if waiting.is_empty() {
                    waiting.push(node.asked().await);
                }
                while let Some(more) = node.asked_already() {
                    waiting.push(more);
                }
                let next = usize::from(order.next().expect("endless")) % waiting.len();
                let asked = waiting.swap_remove(next);
                let at = match consistency(&asked) {
                    Consistency::At(at) => at.number(),
                    Consistency::Linearizable => {
                        newest += 1;
                        newest
                    }
                    Consistency::Stale { .. } => panic!("a stale read"),
                };
                told.push(at);
                answer_read(asked, at).await;
            }
            assert!(told.iter().all(|at| *at == told[0]), "{told:?}");
            let txn = commit(&mut node, true, Vec::new()).await;
            let one = Some(revision(told[0]));
            for condition in txn.guard.conditions() {
                match condition {
                    Condition::Key { test: KeyTest::ModRevision(Compare::Equal, seen), .. } => assert_eq!(*seen, one),
                    Condition::Range { test: RangeTest::All(KeyTest::ModRevision(_, seen)), .. } => {
                        assert_eq!(*seen, one);
                    }
                    Condition::Range { test: RangeTest::Count(..), .. } => {}
                    other => panic!("{other:?}"),
                }
            }
            run.await.expect("no panic").expect("it committed");
        });
    }
}
