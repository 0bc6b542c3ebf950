use futures_util::FutureExt;
use quorate_transport::memory::{MemoryNetwork, MemoryTransport, TokioClock};
use quorate_transport::{ClusterId, Identity, Transport};

use super::*;
use crate::env::RealDisk;
use crate::log::LogSettings;
use crate::model::{LogTime, NodeId, Revision, StateHash, Term};
use crate::raft::acquaintance::testing::{directory, of_two};
use crate::raft::hello::{Hello, Known};
use crate::raft::types::log_id;

/// A transport that bears a node's name and address.
fn transport(network: &MemoryNetwork, id: u64) -> Arc<MemoryTransport> {
    let cluster = ClusterId::new("links").expect("a legal name");
    network.transport(Identity::node(cluster, id), &format!("node-{id}:7000"))
}

fn request() -> AppendEntriesRequest<TypeConfig> {
    AppendEntriesRequest {
        vote: Vote::new_committed(1, 1),
        prev_log_id: None,
        entries: Vec::new(),
        leader_commit: None,
    }
}

/// The story: a follower's log failed, and its node ended the append stream without an answer. The stream went on
/// waiting for the next entry, and in a cluster without writes none came: the follower started anew and stayed behind
/// for ever.
#[tokio::test]
async fn an_append_stream_ends_when_the_peer_ends_it_though_there_is_nothing_more_to_send() {
    let network = MemoryNetwork::new(Arc::new(TokioClock::new(1)));
    let (one, two) = (transport(&network, 1), transport(&network, 2));
    let dir = tempfile::tempdir().expect("a directory");
    let log = Log::open(Arc::new(RealDisk), dir.path(), LogSettings::default().create()).expect("a log");
    let mut factory = NetworkFactory {
        own_id: 1,
        acquaintance: of_two(1, one),
        log: log.clone(),
        applied: watch::channel(applied_to(1)).1,
        stall_max: Duration::from_secs(3_600),
        faults: Faults::default(),
        leading: Leading::default(),
        sendings: Sendings::default(),
    };
    let member = Member::at(Some("node-2:7000".parse().expect("an address")));
    let mut link = factory.new_client(2, &member).await;
    let peer = async {
        let mut stream = two.accept().await.expect("a stream").stream;
        let first = stream.receiver.receive().await.expect("a greeting");
        let theirs = Hello::decode(&first.expect("a greeting")).expect("a greeting");
        assert_eq!(theirs.you, Known::Is(directory(2)));
        let hello = Hello {
            node: 2,
            member: directory(2),
            you: Known::Is(directory(1)),
            ..theirs
        };
        stream
            .sender
            .send(hello.encode().into())
            .await
            .expect("an answer");
        stream.receiver.receive().await.expect("a request");
    };
    // One request, and then nothing until the end of days.
    let input = Box::pin(stream::iter([request()]).chain(stream::pending()));
    let leader = async {
        let opened = openraft::RaftNetworkV2::stream_append(
            &mut link,
            input,
            RPCOption::new(Duration::from_secs(3_600)),
        );
        let answers = opened.await.expect("a stream");
        answers.collect::<Vec<_>>().await
    };
    let ended = env::timeout(Duration::from_secs(60), futures_util::future::join(leader, peer)).await;
    let (answers, ()) = ended.expect("the stream ends with the peer's");
    assert!(
        answers.iter().all(Result::is_err),
        "an answer that nobody gave: {answers:?}"
    );
    log.close().await.expect("a close");
}

fn applied_to(index: u64) -> Arc<Applied> {
    let position = Some(LogPosition {
        term: Term::new(1),
        leader: NodeId::new(1),
        index: LogIndex::new(index),
    });
    Arc::new(Applied {
        position,
        membership: None,
        revision: Revision::FIRST,
        state_hash: StateHash(0),
        log_time: LogTime::ZERO,
    })
}

fn committed(index: u64) -> LogId {
    log_id(applied_to(index).position.expect("it is there"))
}

#[tokio::test]
async fn news_of_a_commit_waits_until_the_entry_is_applied_here() {
    let (tx, mut applied) = watch::channel(applied_to(4));
    let news = committed(5);
    let mut nothing = stream::pending::<()>().peekable();
    let mut held = Box::pin(hold(Some(&news), &mut applied, &mut nothing));
    assert!(
        futures_util::poll!(&mut held).is_pending(),
        "entry 5 is not applied"
    );
    tx.send_replace(applied_to(5));
    held.await;
    assert_eq!(nothing.next().now_or_never(), None, "nothing went along");
}

#[tokio::test]
async fn news_of_a_commit_goes_along_with_what_is_sent_next() {
    let (_tx, mut applied) = watch::channel(applied_to(4));
    let news = committed(5);
    let mut input = stream::iter(["next"]).chain(stream::pending()).peekable();
    let at_once = hold(Some(&news), &mut applied, &mut input).now_or_never();
    assert!(at_once.is_some(), "there is more to send");
    assert_eq!(input.next().await, Some("next"));
    let mut ended = stream::empty::<()>().peekable();
    let at_once = hold(Some(&news), &mut applied, &mut ended).now_or_never();
    assert!(at_once.is_some(), "there is nothing more to come");
    assert_eq!(ended.next().await, None);
}

#[tokio::test]
async fn news_of_a_commit_does_not_wait_for_a_state_machine_that_is_behind() {
    let (_tx, mut applied) = watch::channel(applied_to(4));
    let news = committed(5);
    let mut nothing = stream::pending::<()>().peekable();
    // It ends, though nothing is applied and nothing comes.
    hold(Some(&news), &mut applied, &mut nothing).await;
    let at_once = hold(None, &mut applied, &mut nothing).now_or_never();
    assert!(at_once.is_some(), "there is no news");
}
