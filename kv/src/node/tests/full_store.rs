//! A store that is full, and who writes to it.

use std::time::Duration;

use super::World;
use crate::env;
use crate::model::{Command, Key, Op, Outcome, Sequence, SessionRef, Txn, TxnRefused};
use crate::protocol::{Failure, Request, Response};

fn put(session: Option<SessionRef>, name: &str) -> Command {
    of(session, [op(name, 1_000)])
}

fn op(name: &str, bytes: usize) -> Op {
    Op::put(key(name), vec![1; bytes])
}

fn key(name: &str) -> Key {
    Key::from(name)
}

fn of(session: Option<SessionRef>, ops: impl IntoIterator<Item = Op>) -> Command {
    Command::Txn {
        session,
        txn: Txn::new(ops),
    }
}

/// Whether a write was refused for want of room: before it was proposed, or by the state machine.
fn is_refused(response: &Response) -> bool {
    matches!(
        response,
        Response::Failed(Failure::NoSpace { .. })
            | Response::Written(Outcome::Txn(Err(TxnRefused::NoSpace { .. })))
    )
}

async fn write(world: &World, command: Command) -> Response {
    let until = env::now() + Duration::from_secs(10);
    world.node.inner.front.call(Request::Write(command), until).await
}

/// Writes keys `k0`, `k1`, … until none is taken any more.
async fn fill(world: &World) {
    let mut number = 0;
    while !is_refused(&write(world, put(None, &format!("k{number}"))).await) {
        number += 1;
        assert!(number < 100, "it never fills up");
    }
}

/// The story: the store was full by the time that a write was sent again, which had been carried out: its caller was told that
/// nobody knows.
#[tokio::test]
async fn a_write_that_is_sent_again_gets_its_first_answer_from_a_full_store_and_only_within_a_session() {
    let world = World::start(|settings| {
        settings.store_bytes_max = 20_000;
        // Else room would come by itself.
        settings.history_kept = Duration::ZERO;
    })
    .await;
    let call = async |request| {
        let until = env::now() + Duration::from_secs(10);
        world.node.inner.front.call(request, until).await
    };
    let opened = call(Request::Write(Command::open_session(60_000))).await;
    let Response::Written(Outcome::SessionOpened(Ok(opened))) = opened else {
        panic!("{opened:?}");
    };
    let session = Some(SessionRef {
        id: opened.session,
        sequence: Sequence::FIRST,
        answered_below: Sequence::FIRST,
    });
    let Response::Written(first) = call(Request::Write(put(session, "mine"))).await else {
        panic!("it has room yet");
    };
    fill(&world).await;
    let again = call(Request::WriteAgain(put(session, "mine"))).await;
    assert!(
        matches!(&again, Response::Written(outcome) if *outcome == first),
        "{again:?}"
    );
    let of_none = call(Request::WriteAgain(put(None, "more"))).await;
    assert!(
        matches!(of_none, Response::Failed(Failure::NoSpace { .. })),
        "nobody remembers it: {of_none:?}"
    );
    let next = session.map(|session| SessionRef {
        sequence: session.sequence.next(),
        ..session
    });
    let never_sent = call(Request::WriteAgain(put(next, "more"))).await;
    assert!(is_refused(&never_sent), "that one grows: {never_sent:?}");
    world.node.shutdown().await;
}

/// The story: a store was full, and no broker could be fenced and no partition get another leader.
#[tokio::test]
async fn a_full_store_takes_what_leaves_what_lives_as_large_as_it_is_and_says_what_the_rest_would_add() {
    let world = World::start(|settings| {
        settings.store_bytes_max = 100_000;
        settings.history_kept = Duration::ZERO;
    })
    .await;
    let first = write(&world, of(None, [op("a", 10), op("b", 10), op("c", 10)])).await;
    assert!(
        matches!(first, Response::Written(Outcome::Txn(Ok(_)))),
        "{first:?}"
    );
    fill(&world).await;
    let taken = [
        ("written over", vec![op("a", 10)]),
        ("a little larger", vec![op("a", 74)]),
        ("each a little larger", vec![op("a", 100), op("b", 74)]),
        ("smaller", vec![op("a", 0)]),
        ("in the place of another", vec![Op::delete(key("b")), op("d", 10)]),
    ];
    for (what, ops) in taken {
        let answer = write(&world, of(None, ops)).await;
        assert!(
            matches!(answer, Response::Written(Outcome::Txn(Ok(_)))),
            "{what}: {answer:?}"
        );
    }
    let refused = [
        ("new", vec![op("e", 0)], 66),
        ("much larger", vec![op("c", 75)], 65),
        ("larger together", vec![op("a", 65), op("c", 74)], 129),
        (
            "more than in the place of another",
            vec![Op::delete(key("d")), op("e", 11)],
            1,
        ),
    ];
    for (what, ops, added) in refused {
        let answer = write(&world, of(None, ops)).await;
        let Response::Written(Outcome::Txn(Err(TxnRefused::NoSpace { used, limit, wanted }))) = answer else {
            panic!("{what}: {answer:?}");
        };
        assert!(
            limit == 100_000 && (95_000..=100_000).contains(&used),
            "{used} of {limit}"
        );
        assert_eq!(wanted, added, "{what}");
    }
    // What is written over stays as history, which is kept for ever here.
    let mut times = 0;
    let beyond = loop {
        let answer = write(&world, of(None, [op("c", 10)])).await;
        if !matches!(answer, Response::Written(Outcome::Txn(Ok(_)))) {
            break answer;
        }
        times += 1;
        assert!(times < 100, "the limit is one");
    };
    assert!(
        matches!(beyond, Response::Failed(Failure::NoSpace { .. })),
        "{beyond:?}"
    );
    let delete = write(&world, of(None, [Op::delete(key("k1"))])).await;
    assert!(
        matches!(delete, Response::Written(Outcome::Txn(Ok(_)))),
        "{delete:?}"
    );
    world.node.shutdown().await;
}

#[tokio::test]
async fn keys_of_a_full_store_are_written_over_again_and_again_while_history_may_go() {
    let world = World::start(|settings| {
        settings.store_bytes_max = 100_000;
        settings.history_kept = Duration::from_secs(600);
    })
    .await;
    fill(&world).await;
    for round in 0..40 {
        let answer = write(&world, put(None, "k0")).await;
        assert!(
            matches!(answer, Response::Written(Outcome::Txn(Ok(_)))),
            "{round}: {answer:?}"
        );
    }
    world.node.shutdown().await;
}
