//! A store that is full, and who writes to it.

use std::time::Duration;

use super::World;
use crate::env;
use crate::model::{Command, Key, Op, Outcome, Sequence, SessionRef, Txn};
use crate::protocol::{Failure, Request, Response};

fn put(session: Option<SessionRef>, name: &str) -> Command {
    let key = Key::try_from(name).expect("a legal key");
    Command::Txn {
        session,
        txn: Txn::new([Op::put(key, vec![1; 1_000])]),
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
    let is_full = |response: &Response| matches!(response, Response::Failed(Failure::NoSpace { .. }));
    let mut number = 0;
    while !is_full(&call(Request::Write(put(None, &format!("k{number}")))).await) {
        number += 1;
        assert!(number < 100, "it never fills up");
    }
    assert!(
        is_full(&call(Request::Write(put(session, "mine"))).await),
        "for the first time"
    );
    let again = call(Request::WriteAgain(put(session, "mine"))).await;
    assert!(
        matches!(&again, Response::Written(outcome) if *outcome == first),
        "{again:?}"
    );
    let of_none = call(Request::WriteAgain(put(None, "more"))).await;
    assert!(is_full(&of_none), "{of_none:?}");
    world.node.shutdown().await;
}
