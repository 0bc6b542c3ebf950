//! What a client holds of the cluster, and gives back.

use std::time::Duration;

use super::stub::{Asked, Stage, Stub, opened};
use crate::client::Error;
use crate::env;
use crate::model::{Command, LogIndex, Outcome, Revision, SessionId, TooManyOf, TxnRefused, TxnResponse};
use crate::protocol::{Request, Response};

const SESSION: SessionId = SessionId::new(41);

async fn open_session(node: &mut Stub) {
    open_as(node, SESSION).await;
}

/// The client asks for a session, and gets this one.
async fn open_as(node: &mut Stub, session: SessionId) {
    let asked = node.asked().await;
    assert!(
        matches!(asked.request, Request::Write(Command::OpenSession { .. })),
        "{:?}",
        asked.request
    );
    asked.answer(Response::Written(opened(session))).await;
}

async fn acknowledge(asked: Asked) {
    let response = TxnResponse {
        revision: Revision::new(2),
        log_index: LogIndex::new(1),
        succeeded: true,
        failed: Vec::new(),
        results: Vec::new(),
    };
    asked.answer(Response::Written(Outcome::Txn(Ok(response)))).await;
}

fn too_many(what: TooManyOf) -> TxnRefused {
    TxnRefused::TooMany { what, limit: 4 }
}

/// The story: a client for each request locked all writers out of the cluster for an hour.
#[tokio::test]
async fn a_clients_session_is_given_back_when_its_last_clone_is_dropped() {
    let stage = Stage::new();
    let mut node = stage.node(1, "one:1");
    let client = stage.client(&["one:1"]);
    let clone = client.clone();
    let put = env::spawn("caller", async move { clone.put("k", "v").await });
    open_session(&mut node).await;
    acknowledge(node.asked().await).await;
    put.await.expect("no panic").expect("it is written");

    // One clone is gone with its task; the other still holds the session.
    assert!(node.asked_already().is_none());
    drop(client);
    let asked = node.asked().await;
    assert!(
        matches!(asked.request, Request::Write(Command::CloseSession { session }) if session == SESSION),
        "{:?}",
        asked.request
    );
}

#[tokio::test]
async fn a_client_that_never_wrote_has_nothing_to_give_back() {
    let stage = Stage::new();
    let mut node = stage.node(1, "one:1");
    let client = stage.client(&["one:1"]);
    let status = env::spawn("caller", {
        let client = client.clone();
        async move { client.status().await }
    });
    let asked = node.asked().await;
    drop((client, asked));
    status.abort();
    let _aborted = status.await;
    let other = stage.client(&["one:1"]);
    let put = env::spawn("caller", async move { other.put("k", "v").await });
    open_session(&mut node).await;
    put.abort();
}

#[test]
fn a_client_may_be_dropped_outside_of_any_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let client = runtime.block_on(async {
        let stage = Stage::new();
        let mut node = stage.node(1, "one:1");
        let client = stage.client(&["one:1"]);
        let put = env::spawn("caller", {
            let client = client.clone();
            async move { client.put("k", "v").await }
        });
        open_session(&mut node).await;
        acknowledge(node.asked().await).await;
        put.await.expect("no panic").expect("it is written");
        client
    });
    drop(runtime);
    drop(client);
}

#[tokio::test]
async fn a_cluster_with_too_many_sessions_is_asked_again_and_says_so_in_the_end() {
    let stage = Stage::new();
    let mut node = stage.node(1, "one:1");
    let client = stage.client(&["one:1"]).with_deadline(Duration::from_millis(400));
    let put = env::spawn("caller", async move { client.put("k", "v").await });
    let refusing = env::spawn("caller", async move {
        let mut asked = 0;
        loop {
            let refused = Outcome::SessionOpened(Err(too_many(TooManyOf::Sessions)));
            node.asked().await.answer(Response::Written(refused)).await;
            asked += 1;
            REFUSED.store(asked, std::sync::atomic::Ordering::Relaxed);
        }
    });
    let error = put.await.expect("no panic").expect_err("there is no room");
    refusing.abort();
    assert_eq!(error, Error::Refused(too_many(TooManyOf::Sessions)));
    assert!(error.is_retryable() && !error.may_have_committed());
    let asked = REFUSED.load(std::sync::atomic::Ordering::Relaxed);
    assert!(asked > 1, "it was asked {asked} times");
}

static REFUSED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

#[tokio::test]
async fn a_write_refused_for_too_many_answers_is_sent_again_under_its_number() {
    let stage = Stage::new();
    let mut node = stage.node(1, "one:1");
    let client = stage.client(&["one:1"]);
    let put = env::spawn("caller", async move { client.put("k", "v").await });
    open_session(&mut node).await;
    let number = |asked: &Asked| match &asked.request {
        Request::Write(Command::Txn { session, .. }) => session.expect("a session").sequence,
        other => panic!("{other:?}"),
    };
    let first = node.asked().await;
    let sequence = number(&first);
    let refused = Outcome::Txn(Err(too_many(TooManyOf::UnansweredWrites)));
    first.answer(Response::Written(refused)).await;
    let again = node.asked().await;
    assert_eq!(number(&again), sequence);
    acknowledge(again).await;
    put.await.expect("no panic").expect("it is written");
}

/// Two writes learn one after the other that their session has expired. The second one finds the session that the first has
/// opened since: to forget that too would open a third, and leave one in the cluster for an hour.
#[tokio::test]
async fn a_session_that_expired_is_replaced_once_however_many_writes_learn_of_it() {
    const NEXT: SessionId = SessionId::new(42);
    let stage = Stage::new();
    let mut node = stage.node(1, "one:1");
    let client = stage.client(&["one:1"]);
    let put = |name: &'static str| {
        let client = client.clone();
        env::spawn("caller", async move { client.put(name, "v").await })
    };
    let session = |asked: &Asked| match &asked.request {
        Request::Write(Command::Txn { session, .. }) => session.expect("a session").id,
        other => panic!("{other:?}"),
    };
    let expired = || {
        let refused = TxnRefused::SessionExpired { session: SESSION };
        Response::Written(Outcome::Txn(Err(refused)))
    };
    let first = put("a");
    open_session(&mut node).await;
    let first_asked = node.asked().await;
    let second = put("b");
    let second_asked = node.asked().await;
    assert_eq!(
        (session(&first_asked), session(&second_asked)),
        (SESSION, SESSION)
    );

    first_asked.answer(expired()).await;
    open_as(&mut node, NEXT).await;
    let first_again = node.asked().await;
    assert_eq!(session(&first_again), NEXT);
    second_asked.answer(expired()).await;
    let second_again = node.asked().await;
    assert_eq!(session(&second_again), NEXT, "it opens no session of its own");
    for asked in [first_again, second_again] {
        acknowledge(asked).await;
    }
    for put in [first, second] {
        put.await.expect("no panic").expect("it is written");
    }

    let closing = env::spawn("caller", client.close());
    let asked = node.asked().await;
    assert!(
        matches!(asked.request, Request::Write(Command::CloseSession { session }) if session == NEXT),
        "{:?}",
        asked.request
    );
    asked.answer(Response::Written(Outcome::SessionClosed)).await;
    closing.await.expect("no panic");
    assert!(node.asked_already().is_none(), "one session was to be given back");
}

/// The story: whoever opened the session held a lock, and a clone in a hurry waited for as long as the other would.
#[tokio::test]
async fn a_clone_in_a_hurry_does_not_wait_for_another_ones_session() {
    let stage = Stage::new();
    let mut node = stage.node(1, "one:1");
    let patient = stage.client(&["one:1"]).with_deadline(Duration::from_secs(60));
    let hurried = patient.with_deadline(Duration::from_millis(100));
    let slow = env::spawn("caller", async move { patient.put("a", "v").await });
    let opening = node.asked().await;
    let error = hurried.put("b", "v").await.expect_err("nobody answers");
    assert!(
        matches!(&error, Error::Unavailable { last, .. } if last.contains("session")),
        "{error}"
    );
    assert!(!error.may_have_committed());
    drop(opening);
    slow.abort();
}
