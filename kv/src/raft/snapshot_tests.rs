//! A snapshot whose stream breaks: a real sender before a receiver that hangs up, and a real receiver before such a sender.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::raft::{AppendEntriesRequest, SnapshotResponse};
use quorate_transport::memory::{MemoryNetwork, TokioClock};
use quorate_transport::{Class, ClusterId, Identity, MessageSender, Peer, Stream, Transport};

use super::acquaintance::Opened;
use super::acquaintance::testing::{directory, of_two, two};
use super::sendings::{KEPT, Sendings};
use super::snapshot_data::SnapshotData;
use super::snapshot_receive;
use super::snapshot_send::{SendError, Sending};
use super::state_machine::stored_membership;
use super::types::{Entry as LogEntry, EntryPayload, Snapshot, SnapshotMeta, Vote, log_id};
use super::wire::{SnapshotAnswer, SnapshotHeader};
use super::{RaftNode, RaftParts};
use crate::env::{self, Disk, RealDisk};
use crate::fault::Faults;
use crate::log::crash_disk::{CrashDisk, Failures};
use crate::log::{Log, LogSettings};
use crate::machine::{Entry, Machine, MachineSettings, OpenMode, Payload, Reader, SnapshotSource, Tuning};
use crate::model::{self, Command, Key, LogIndex, LogPosition, LogTime, NodeId, Op, Proposal, Term, Txn};
use crate::node::Settings;

const LEADER: u64 = 1;
const FOLLOWER: u64 = 2;

fn tuned() -> MachineSettings {
    MachineSettings {
        cache_bytes: 8 << 20,
        tuning: Tuning {
            snapshot_chunk_bytes: 1_000,
            ..Tuning::default()
        },
        ..MachineSettings::default()
    }
}

/// A state of some twenty chunks.
fn state(dir: &Path) -> Reader {
    let (mut machine, reader) =
        Machine::open(Arc::new(RealDisk), dir, OpenMode::Create, tuned()).expect("a state");
    let puts = (0..100).map(|number| {
        let key = Key::from(format!("key-{number}"));
        Op::put(key, vec![b'v'; 100])
    });
    let proposal = Proposal {
        stamp: LogTime::ZERO,
        full_at: None,
        commands: vec![Command::Txn {
            session: None,
            txn: Txn::new(puts),
        }],
    };
    let entry = Entry {
        position: position(1),
        payload: Payload::Proposal(model::encode(&proposal).into()),
    };
    machine.apply(vec![entry]).expect("it is applied");
    machine.make_durable().expect("it is durable");
    reader
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir).expect("a directory").count()
}

async fn node(dir: &Path, transport: &Arc<dyn Transport>, disk: Arc<dyn Disk>) -> Arc<RaftNode> {
    let (machine, reader) =
        Machine::open(Arc::new(RealDisk), dir, OpenMode::Create, tuned()).expect("a state");
    let log = Log::open(disk, &dir.join("log"), LogSettings::default().create());
    let settings = Settings::default();
    let node = RaftNode::start(RaftParts {
        id: NodeId::new(FOLLOWER),
        member: directory(FOLLOWER),
        log: log.expect("a log"),
        machine,
        tap: None,
        reader,
        disk: Arc::new(RealDisk),
        dir: dir.to_owned(),
        transport: Arc::clone(transport),
        timing: settings.timing,
        settings: settings.raft(&settings.memory().unwrap()),
        faults: Faults::default(),
    });
    Arc::new(node.await.expect("a node"))
}

fn snapshot(source: SnapshotSource) -> Snapshot {
    let meta = source.meta();
    Snapshot {
        meta: SnapshotMeta {
            last_log_id: meta.position.map(log_id),
            last_membership: stored_membership(meta.membership.as_ref()).expect("none"),
        },
        snapshot: SnapshotData::Source(Box::new(source)),
    }
}

fn vote() -> Vote {
    Vote::new_committed(1, LEADER)
}

fn network() -> (Arc<dyn Transport>, Arc<dyn Transport>) {
    let network = MemoryNetwork::new(Arc::new(TokioClock::new(1)));
    let cluster = ClusterId::new("snapshots").expect("a legal name");
    let of = |id: u64| network.transport(Identity::node(cluster.clone(), id), &format!("node-{id}:7000"));
    (of(LEADER), of(FOLLOWER))
}

fn position(index: u64) -> LogPosition {
    LogPosition {
        term: Term::new(1),
        leader: NodeId::new(LEADER),
        index: LogIndex::new(index),
    }
}

fn follower() -> Peer {
    Peer {
        node_id: Some(FOLLOWER),
        address: format!("node-{FOLLOWER}:7000").parse().expect("an address"),
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    let patience = Duration::from_secs(60);
    env::timeout(patience, what).await.expect("it does not hang")
}

async fn message(stream: &mut Stream) -> Bytes {
    stream
        .receiver
        .receive()
        .await
        .expect("a stream")
        .expect("a message")
}

async fn answer(stream: &mut Opened) -> SnapshotAnswer {
    let message = stream.receiver.receive().await.expect("a stream");
    model::decode(&message.expect("a message")).expect("an answer")
}

async fn say<T: serde::Serialize>(sender: &mut MessageSender, what: &T) {
    sender.send(model::encode(what).into()).await.expect("a stream");
}

#[tokio::test]
async fn a_sender_goes_on_at_the_chunk_that_the_receiver_lacks_and_the_log_is_held_meanwhile() {
    let dir = tempfile::tempdir().expect("a directory");
    let reader = state(dir.path());
    let whole: Vec<Bytes> = {
        let mut source = reader.snapshot().expect("a state");
        std::iter::from_fn(|| source.next_chunk().expect("a chunk")).collect()
    };
    assert!(whole.len() > 10, "{} chunks", whole.len());
    let (leader, accepts) = network();
    let (greets, welcomes) = (
        of_two(LEADER, Arc::clone(&leader)),
        of_two(FOLLOWER, Arc::clone(&accepts)),
    );
    let (sendings, faults, peer) = (Sendings::default(), Faults::default(), follower());
    let sending = Sending {
        acquaintance: &greets,
        peer: &peer,
        stall_max: Duration::from_secs(30),
        faults: &faults,
        sendings: &sendings,
    };

    // A receiver that hangs up after three chunks.
    let hangs_up = async {
        let mut stream = accepts.accept().await.expect("a stream").stream;
        let met = welcomes.welcome(LEADER, &mut stream).await;
        assert!(met.is_some(), "they know each other");
        let header: SnapshotHeader = model::decode(&message(&mut stream).await).expect("a header");
        say(&mut stream.sender, &SnapshotAnswer::From(0)).await;
        for chunk in &whole[..3] {
            assert_eq!(message(&mut stream).await, chunk);
        }
        header.tag
    };
    let source = reader.snapshot().expect("a state");
    sendings.begin(&source.pinned());
    assert_eq!(sendings.held(), Some(LogIndex::new(1)), "the log behind it stays");
    let (sent, tag) = within(async { tokio::join!(sending.send(vote(), snapshot(source)), hangs_up) }).await;
    assert!(matches!(sent, Err(SendError::Broken(_))), "{sent:?}");

    // The same again goes on where that ended.
    let broken = sendings.broken().expect("what broke is kept");
    assert_eq!(sendings.held(), Some(LogIndex::new(1)), "and the log behind it");
    let takes_the_rest = async {
        let mut stream = accepts.accept().await.expect("a stream").stream;
        let met = welcomes.welcome(LEADER, &mut stream).await;
        assert!(met.is_some(), "they know each other");
        let header: SnapshotHeader = model::decode(&message(&mut stream).await).expect("a header");
        assert_eq!(header.tag, tag, "it is the same");
        say(&mut stream.sender, &SnapshotAnswer::From(3)).await;
        for chunk in &whole[3..] {
            assert_eq!(message(&mut stream).await, chunk);
        }
        assert!(stream.receiver.receive().await.expect("an end").is_none());
        say(
            &mut stream.sender,
            &SnapshotAnswer::Installed(SnapshotResponse::new(vote())),
        )
        .await;
        stream
    };
    let again = snapshot(SnapshotSource::of(broken));
    let (sent, _stream) = within(async { tokio::join!(sending.send(vote(), again), takes_the_rest) }).await;
    sent.expect("it has arrived");
    assert!(sendings.broken().is_none(), "nothing is kept then");
    // Nor held, once the thread that read it has ended.
    within(async {
        while sendings.held().is_some() {
            env::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_broke_off_is_kept_for_five_minutes_and_until_the_log_behind_it_goes() {
    let dir = tempfile::tempdir().expect("a directory");
    let reader = state(dir.path());
    let sendings = Sendings::default();
    let broke = || sendings.broke(reader.snapshot().expect("a state").pinned());
    broke();
    assert!(sendings.broken_at(env::now() + KEPT / 2).is_some());
    assert!(sendings.broken_at(env::now() + KEPT * 2).is_none());
    assert!(sendings.broken().is_none(), "it is gone then");
    broke();
    sendings.overrun(LogIndex::new(1));
    assert!(sendings.broken().is_some(), "what follows it is there");
    sendings.overrun(LogIndex::new(2));
    assert!(sendings.broken().is_none());
}

#[tokio::test]
async fn a_receiver_keeps_the_chunks_of_a_stream_that_broke_and_asks_for_the_rest() {
    let (of_leader, of_follower) = (
        tempfile::tempdir().expect("one"),
        tempfile::tempdir().expect("two"),
    );
    let reader = state(of_leader.path());
    let mut source = reader.snapshot().expect("a state");
    let header = SnapshotHeader {
        vote: vote(),
        tag: source.tag(),
        meta: SnapshotMeta {
            last_log_id: source.meta().position.map(log_id),
            last_membership: stored_membership(None).expect("none"),
        },
    };
    let chunks: Vec<Bytes> = std::iter::from_fn(|| source.next_chunk().expect("a chunk")).collect();
    let (leader, transport) = network();
    let node = node(of_follower.path(), &transport, Arc::new(RealDisk)).await;
    let before = files(of_follower.path());
    let serve = async || {
        let stream = transport.accept().await.expect("a stream").stream;
        snapshot_receive::snapshot(Arc::clone(&node), LEADER, stream).await;
    };
    let peer = follower();
    let greets = of_two(LEADER, Arc::clone(&leader));
    let open = async || greets.open(&peer, Class::Bulk).await.expect("a stream");

    let breaks_off = async {
        let mut stream = open().await;
        say(&mut stream.sender, &header).await;
        assert!(matches!(answer(&mut stream).await, SnapshotAnswer::From(0)));
        for chunk in &chunks[..4] {
            stream.sender.send(chunk.clone()).await.expect("a stream");
        }
        // What has not come in when a stream is dropped is lost with it: the first chunk makes a file.
        while files(of_follower.path()) == before {
            env::sleep(Duration::from_millis(1)).await;
        }
    };
    within(async { tokio::join!(serve(), breaks_off) }).await;

    let goes_on = async {
        let mut stream = open().await;
        say(&mut stream.sender, &header).await;
        let SnapshotAnswer::From(number) = answer(&mut stream).await else {
            panic!("it says from where on");
        };
        assert!((1..=4).contains(&number), "from {number}");
        for chunk in &chunks[number as usize..] {
            stream.sender.send(chunk.clone()).await.expect("a stream");
        }
        let Opened { sender, mut receiver } = stream;
        sender.finish().await.expect("a stream");
        let installed = receiver.receive().await.expect("a stream").expect("an answer");
        let installed: SnapshotAnswer = model::decode(&installed).expect("an answer");
        assert!(matches!(installed, SnapshotAnswer::Installed(_)), "{installed:?}");
    };
    within(async { tokio::join!(serve(), goes_on) }).await;
    let applied = node.machine.applied().borrow().position.expect("something");
    assert_eq!(applied.index, LogIndex::new(1), "it is the state");
}

/// The story: entries that others have on disk are applied before this node has them there. Asked for a snapshot of them it
/// said that it had it all; its log failed, and the leader went on to count entries as durable that were gone (seed 61279).
#[tokio::test]
async fn what_is_applied_is_acknowledged_as_a_snapshot_only_once_the_log_has_it_on_disk() {
    for fails in [false, true] {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = CrashDisk::default();
        let (leader, transport) = network();
        let node = node(dir.path(), &transport, Arc::new(disk.clone())).await;
        let append = |prev: Option<u64>, index: u64, payload, commit| {
            let raft = node.raft.clone();
            let request = AppendEntriesRequest {
                vote: vote(),
                prev_log_id: prev.map(|prev| log_id(position(prev))),
                entries: vec![LogEntry {
                    log_id: log_id(position(index)),
                    payload,
                }],
                leader_commit: Some(log_id(position(commit))),
            };
            async move { raft.append_entries(request).await }
        };
        let first = append(None, 0, EntryPayload::Membership(two()), 0);
        within(first).await.expect("Raft runs");
        let held = disk.hold_syncs();
        let waits = env::spawn("append", append(Some(0), 1, EntryPayload::Blank, 1));
        let mut applied = node.machine.applied();
        let is_applied = applied.wait_for(|at| at.position.is_some_and(|at| at.index >= LogIndex::new(1)));
        within(is_applied).await.expect("the machine runs");
        assert!(!waits.is_finished(), "it is not on disk");

        let serve = async {
            let stream = transport.accept().await.expect("a stream").stream;
            snapshot_receive::snapshot(Arc::clone(&node), LEADER, stream).await;
        };
        let asks = async {
            let peer = follower();
            let greets = of_two(LEADER, Arc::clone(&leader));
            let mut stream = greets.open(&peer, Class::Bulk).await.expect("a stream");
            let header = SnapshotHeader {
                vote: vote(),
                tag: 7,
                meta: SnapshotMeta {
                    last_log_id: Some(log_id(position(1))),
                    last_membership: stored_membership(None).expect("none"),
                },
            };
            say(&mut stream.sender, &header).await;
            if fails {
                disk.fail(Failures {
                    syncs_from: Some(0),
                    ..Failures::default()
                });
            }
            drop(held);
            answer(&mut stream).await
        };
        let (answer, ()) = within(async { tokio::join!(asks, serve) }).await;
        match answer {
            SnapshotAnswer::Installed(_) => assert!(!fails, "what may be gone counts as durable"),
            SnapshotAnswer::Failed(reason) => assert!(fails, "{reason}"),
            SnapshotAnswer::From(chunk) => panic!("it has that: from chunk {chunk}"),
        }
        node.abort().await;
    }
}
