use futures_util::FutureExt;
use quorate_transport::memory::{MemoryNetwork, MemoryTransport, TokioClock};
use quorate_transport::{ClusterId, Identity, Transport};

use super::*;
use crate::env::RealDisk;
use crate::log::LogSettings;
use crate::model::{LogTime, NodeId, Revision, StateHash, Term};
use crate::raft::acquaintance::testing::{directory, of_two};
use crate::raft::hello::{Hello, Known};
use crate::raft::peer_stream::SIGN_OF_LIFE;
use crate::raft::types::{ProposalData, log_id};

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
    let way = Way::new(Duration::from_secs(3_600));
    let mut link = way.link().await;
    let peer = async {
        let mut stream = way.accept().await;
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
    way.log.close().await.expect("a close");
}

/// From node 1 to node 2.
struct Way {
    factory: NetworkFactory,
    log: Log,
    two: Arc<MemoryTransport>,
    _dir: tempfile::TempDir,
}

impl Way {
    fn new(stall_max: Duration) -> Self {
        let network = MemoryNetwork::new(Arc::new(TokioClock::new(1)));
        let (one, two) = (transport(&network, 1), transport(&network, 2));
        let dir = tempfile::tempdir().expect("a directory");
        let log = Log::open(Arc::new(RealDisk), dir.path(), LogSettings::default().create()).expect("a log");
        let factory = NetworkFactory {
            own_id: 1,
            acquaintance: of_two(1, one),
            log: log.clone(),
            applied: watch::channel(applied_to(1)).1,
            stall_max,
            heartbeat: stall_max / 10,
            faults: Faults::default(),
            leading: Leading::default(),
            sendings: Sendings::default(),
            purge_wanted: PurgeWanted::default(),
        };
        Self {
            factory,
            log,
            two,
            _dir: dir,
        }
    }

    async fn link(&self) -> Link {
        let member = Member::at(Some("node-2:7000".parse().expect("an address")));
        self.factory.clone().new_client(2, &member).await
    }

    /// Node 2 takes a stream, and greets.
    async fn accept(&self) -> quorate_transport::Stream {
        let mut stream = self.two.accept().await.expect("a stream").stream;
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
        stream
    }
}

/// A request with one entry of so many bytes, and what follows the entry at `prev`.
fn request_of(bytes: usize, prev: u64) -> AppendEntriesRequest<TypeConfig> {
    let proposal = ProposalData::from_record(vec![0; bytes].into());
    AppendEntriesRequest {
        vote: Vote::new_committed(1, 1),
        prev_log_id: Some(committed(prev)),
        entries: vec![openraft::Entry {
            log_id: committed(prev + 1),
            payload: openraft::EntryPayload::Normal(proposal),
        }],
        leader_commit: None,
    }
}

/// The story: a message had the time of an election to be carried and answered, however long it was. One of 16 MiB over a
/// link of 5 MB/s took longer, was given up and sent again from its beginning, for ever, and no write behind it committed.
#[tokio::test]
async fn a_long_message_has_time_to_arrive_and_a_short_one_that_is_not_answered_has_not() {
    for (bytes, is_answered) in [(8 << 20, true), (100, false)] {
        // A long one has 32 seconds more.
        let patience = Duration::from_millis(20);
        let way = Way::new(patience);
        let mut link = way.link().await;
        let peer = async {
            let mut stream = way.accept().await;
            stream.receiver.receive().await.expect("a request");
            if is_answered {
                env::sleep(10 * patience).await;
                let answer: StreamAppendResult<TypeConfig> = Ok(Some(committed(2)));
                stream
                    .sender
                    .send(model::encode(&answer).into())
                    .await
                    .expect("it stands");
            }
            // The leader ends it.
            while let Ok(Some(_)) = stream.receiver.receive().await {}
            future::pending::<()>().await;
        };
        let input = Box::pin(stream::iter([request_of(bytes, 1)]).chain(stream::pending()));
        let leader = async {
            let opened = openraft::RaftNetworkV2::stream_append(
                &mut link,
                input,
                RPCOption::new(Duration::from_millis(100)),
            );
            opened
                .await
                .expect("a stream")
                .next()
                .await
                .expect("an answer, or that there is none")
        };
        let answer = tokio::select! {
            answer = leader => answer,
            () = peer => unreachable!("it stays"),
        };
        assert_eq!(answer.is_ok(), is_answered, "{bytes} bytes: {answer:?}");
        way.log.close().await.expect("a close");
    }
}

#[tokio::test]
async fn a_sign_of_life_is_no_answer() {
    let way = Way::new(Duration::from_secs(3_600));
    let mut link = way.link().await;
    let peer = async {
        let mut stream = way.accept().await;
        stream.receiver.receive().await.expect("a request");
        let answer: StreamAppendResult<TypeConfig> = Ok(Some(committed(2)));
        let mut said = vec![SIGN_OF_LIFE, SIGN_OF_LIFE, model::encode(&answer).into()];
        stream.sender.send_all(&mut said).await.expect("it stands");
        stream
    };
    let input = Box::pin(stream::iter([request_of(100, 1)]).chain(stream::pending()));
    let leader = async {
        let opened = openraft::RaftNetworkV2::stream_append(
            &mut link,
            input,
            RPCOption::new(Duration::from_secs(3_600)),
        );
        opened.await.expect("a stream").next().await.expect("an answer")
    };
    let (answer, _stream) = futures_util::future::join(leader, peer).await;
    let answer = answer.expect("the stream stands");
    assert_eq!(answer.expect("it matched"), Some(committed(2)));
    way.log.close().await.expect("a close");
}

/// The story: a follower that is slow and answers was sent what it lacks for as long as it took, and kept all of the leader's
/// log meanwhile: the leader's disk was full.
#[tokio::test]
async fn a_peer_that_lacks_what_is_to_go_for_lack_of_room_is_sent_a_snapshot() {
    let way = Way::new(Duration::from_secs(3_600));
    let mut link = way.link().await;
    let (send, input) = tokio::sync::mpsc::unbounded_channel();
    let input = Box::pin(stream::unfold(
        input,
        |mut input: tokio::sync::mpsc::UnboundedReceiver<_>| async {
            let request = input.recv().await?;
            Some((request, input))
        },
    ));
    way.factory.purge_wanted.set(LogIndex::new(10));
    send.send(request_of(100, 10)).expect("it is read");
    let leader = async {
        let opened = openraft::RaftNetworkV2::stream_append(
            &mut link,
            input,
            RPCOption::new(Duration::from_secs(3_600)),
        );
        let mut answers = opened.await.expect("what follows what goes is sent");
        let error = answers.next().await.expect("its end").expect_err("it is to go");
        assert!(error.to_string().contains("snapshot"), "{error}");
    };
    let peer = async {
        let mut stream = way.accept().await;
        stream.receiver.receive().await.expect("a request");
        // The next one is to go by now.
        way.factory.purge_wanted.set(LogIndex::new(12));
        send.send(request_of(100, 11)).expect("it is read");
        stream
    };
    let ((), _stream) = futures_util::future::join(leader, peer).await;
    let late = Box::pin(stream::iter([request_of(100, 5)]));
    let refused =
        openraft::RaftNetworkV2::stream_append(&mut link, late, RPCOption::new(Duration::from_secs(3_600)));
    assert!(refused.await.is_err(), "nor is a stream opened for it");
    way.log.close().await.expect("a close");
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
        oldest: Revision::FIRST,
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
