//! Clients' streams: what they hold, and that it ends with them.

use std::time::Duration;

use futures_util::future::join_all;
use quorate_transport::memory::MemoryTransport;
use quorate_transport::{Class, Peer, Transport as _};

use super::{NODE, World, key, until};
use crate::client::Error;
use crate::env;
use crate::model::{self, Command, Consistency, KeyRange, Op, RangeRead, ReadOp, ReadResult, Revision, Txn};
use crate::node::Node;
use crate::protocol::{Call, Reply, Request, Response};

/// What the node holds of calls, and of answers to point reads and to scans, in bytes.
fn held(node: &Node) -> (usize, usize, usize) {
    node.inner.front.held()
}

fn never() -> Consistency {
    Consistency::At(Revision::new(u64::MAX))
}

/// The story: a read's wait was its caller's word: a thousand reads of a revision that never comes, the stream closed, and
/// again, and the node held them all.
#[tokio::test]
async fn reads_that_wait_end_with_their_stream() {
    let world = World::start(|_| {}).await;
    for _ in 0..3 {
        let client = world.client("caller").with_deadline(Duration::from_secs(3600));
        let waiting = env::spawn("callers", {
            let client = client.clone();
            async move { join_all((0..1_000).map(|number| client.get(key(number)).consistency(never()))).await }
        });
        until("a thousand reads wait", || held(&world.node).0 > 1_000 * 1024).await;
        waiting.abort();
        drop(client);
        until("nothing of them is left", || held(&world.node) == (0, 0, 0)).await;
    }
    world.node.shutdown().await;
}

#[tokio::test]
async fn a_read_that_its_caller_gives_up_is_given_up_by_the_node() {
    let world = World::start(|_| {}).await;
    let client = world.client("caller");
    // Its stream stays, for the next one.
    assert!(client.get(key(0)).await.expect("it is read").is_none());
    let get = client.get(key(0)).consistency(never());
    let gave_up = env::timeout(Duration::from_millis(50), get).await;
    assert!(gave_up.is_err());
    until("nothing of it is left", || held(&world.node) == (0, 0, 0)).await;
    assert!(client.get(key(0)).await.expect("the stream stands").is_none());
    world.node.shutdown().await;
}

#[tokio::test]
async fn no_read_takes_longer_than_the_node_lets_it() {
    let world = World::start(|settings| settings.read_time_max = Duration::from_millis(50)).await;
    let client = world.node.client().with_deadline(Duration::from_millis(500));
    let error = client
        .get(key(0))
        .consistency(never())
        .await
        .expect_err("it never comes");
    assert!(matches!(error, Error::NotYet { .. }), "{error}");
    assert!(client.get(key(0)).await.expect("a quick one is read").is_none());
    world.node.shutdown().await;
}

/// The story: queues were bounded by number, and a thousand clients that ask for the largest answers and do not read them
/// could have a node hold sixteen gigabytes.
#[tokio::test]
async fn clients_that_ask_for_the_largest_answers_and_never_read_them_hold_only_their_share() {
    const ANSWERS: usize = 16 << 20;
    let world = World::start(|settings| settings.answers_bytes_max = Some(ANSWERS as u64)).await;
    world.fill(64, 64 * 1024).await;
    let largest = || {
        let range = RangeRead::new(KeyRange::all());
        vec![ReadOp::Range(range.clone()), ReadOp::Range(range)]
    };
    // One client with many connections; nothing that the node sends arrives at any of them.
    let mut deaf = Vec::new();
    for number in 0..20 {
        let place = format!("deaf-{number}");
        let identity = quorate_transport::Identity::client(world.cluster.clone(), "deaf").expect("a name");
        let transport = world.network.transport(identity, &place);
        let client =
            crate::Client::connect([NODE], transport, crate::model::Limits::default()).expect("an address");
        assert!(client.get(key(0)).await.expect("it is read").is_some());
        world.network.pause(NODE, &place);
        deaf.push(env::spawn("deaf", async move {
            let asks = (0..100).map(|_| client.read(largest()).consistency(Consistency::Linearizable));
            join_all(asks).await
        }));
    }
    let scans = ANSWERS - ANSWERS / 4;
    until("they hold all that one client may", || {
        held(&world.node).2 >= scans / 2 * 3 / 4
    })
    .await;
    // Another client's reads, long and short, go on as if nobody else were there.
    let other = world.client("other");
    for number in 0..20 {
        let response = other
            .read(largest())
            .consistency(Consistency::Linearizable)
            .await
            .expect("it is read");
        assert!(matches!(&response.results[0], ReadResult::Range { records, .. } if records.len() > 10));
        assert!(other.get(key(number)).await.expect("it is read").is_some());
    }
    let (_, points, scans_held) = held(&world.node);
    assert!(scans_held <= scans / 2, "{scans_held} of {scans}");
    assert!(points <= ANSWERS / 4);
    for deaf in deaf {
        deaf.abort();
    }
    world.network.heal_all();
    until("nothing of them is left", || held(&world.node).2 == 0).await;
    world.node.shutdown().await;
}

#[tokio::test]
async fn a_client_that_sends_more_than_its_share_is_read_no_further_until_there_is_room() {
    const CALLS: usize = 8 << 20;
    let world = World::start(|settings| settings.calls_bytes_max = Some(CALLS as u64)).await;
    let client = world.client("caller");
    let value = vec![b'v'; 512 * 1024];
    let puts = (0..64).map(|number| client.put(key(number), value.clone()));
    let seen = std::sync::atomic::AtomicUsize::new(0);
    let watching = async {
        loop {
            seen.fetch_max(held(&world.node).0, std::sync::atomic::Ordering::Relaxed);
            env::sleep(Duration::from_micros(200)).await;
        }
    };
    tokio::select! {
        written = join_all(puts) => {
            for written in written {
                written.expect("it is written");
            }
        }
        () = watching => {}
    }
    let seen = seen.into_inner();
    assert!(seen <= CALLS / 2, "one client held {seen} of {CALLS}");
    assert!(seen > 0);
    world.node.shutdown().await;
}

/// The story: reads that arrived together were begun once all were looked at, and the last of them waited for places and room
/// that only the first could give back: the stream answered nothing any more, and its client was as if cut off.
#[tokio::test]
async fn more_reads_at_once_than_a_stream_may_have_open_are_all_answered() {
    for calls in [128 << 20, 1 << 20] {
        let world = World::start(|settings| settings.calls_bytes_max = Some(calls)).await;
        let client = world.client("caller").with_deadline(Duration::from_secs(60));
        assert!(client.get(key(0)).await.expect("it is read").is_none());
        // All of them wait on the way, and arrive together.
        world.network.pause("caller", NODE);
        let reads = env::spawn("callers", {
            let client = client.clone();
            async move { join_all((0..5_000).map(|number| client.get(key(number)))).await }
        });
        until("most are on the way", || world.network.under_way() > 4_000).await;
        world.network.heal_all();
        for read in reads.await.expect("they end") {
            assert!(read.expect("it is read").is_none());
        }
        until("nothing of them is left", || held(&world.node) == (0, 0, 0)).await;
        world.node.shutdown().await;
    }
}

/// A client's stream as a program of another make might use it.
struct Raw {
    stream: quorate_transport::Stream,
    _transport: std::sync::Arc<MemoryTransport>,
}

impl Raw {
    async fn open(world: &World) -> Self {
        let identity = quorate_transport::Identity::client(world.cluster.clone(), "caller").expect("a name");
        let transport = world.network.transport(identity, "caller");
        let peer = Peer {
            node_id: Some(1),
            address: NODE.parse().expect("an address"),
        };
        Self {
            stream: transport.open(&peer, Class::Client).await.expect("a stream"),
            _transport: transport,
        }
    }

    /// Sends calls, numbered from 0 on.
    async fn send(&mut self, requests: impl IntoIterator<Item = Request>) {
        let calls = (0..).zip(requests).map(|(id, request)| Call { id, request });
        let mut calls = calls
            .map(|call| bytes::Bytes::from(model::encode(&call)))
            .collect();
        self.stream
            .sender
            .send_all(&mut calls)
            .await
            .expect("they are sent");
    }

    async fn receive(&mut self) -> Reply {
        let message = self.stream.receiver.receive().await.expect("the stream stands");
        model::decode(&message.expect("a reply")).expect("a reply")
    }
}

/// A read of a revision that never comes, for so long.
fn read_in_vain(time: Duration) -> Request {
    Request::Read {
        reads: vec![ReadOp::Get(key(0))],
        consistency: never(),
        wait: time,
        time,
    }
}

/// The story: calls that waited for room heard nothing. Their clients gave them up after two seconds and asked again, the
/// node answered what nobody waited for any more, and of a thousand clients most were never served.
#[tokio::test]
async fn a_call_for_which_there_is_no_room_hears_that_it_waits() {
    let world = World::start(|settings| settings.calls_bytes_max = Some(1 << 20)).await;
    let mut stream = Raw::open(&world).await;
    // Reads that wait fill the stream's share; a write then finds no room.
    const READS: u64 = 200;
    let txn = Txn::new([Op::put(key(1), "v")]);
    let put = Request::Write(Command::Txn { session: None, txn });
    let reads = (0..READS).map(|_| read_in_vain(Duration::from_secs(3600)));
    stream.send(reads.chain([put])).await;
    let reply = stream.receive().await;
    assert!(matches!(reply.response, Response::Waiting), "{reply:?}");
    assert!(
        (10..READS).contains(&reply.id),
        "the first without room: {}",
        reply.id
    );
    world.node.shutdown().await;
}

/// The story: each of many calls waited for a moment, and only one that waited for half a second alone gave a sign: what was
/// behind them heard nothing.
#[tokio::test]
async fn calls_behind_many_that_each_wait_for_a_moment_hear_that_they_wait() {
    let world = World::start(|settings| settings.calls_bytes_max = Some(1 << 20)).await;
    let mut stream = Raw::open(&world).await;
    const READS: u64 = 1_000;
    stream
        .send((0..READS).map(|_| read_in_vain(Duration::from_millis(100))))
        .await;
    let (mut answered, mut signs) = (0, 0);
    while answered < READS {
        match stream.receive().await.response {
            Response::Waiting => signs += 1,
            Response::Working => {}
            _ => answered += 1,
        }
    }
    assert!(signs > 0, "they took seconds, and none heard anything");
    world.node.shutdown().await;
}

/// Else clients that take in slowly could have a node hold, unseen, what it has sent and they have not acknowledged.
#[tokio::test]
async fn a_long_answer_has_its_room_until_it_has_arrived() {
    const VALUE: usize = 200 << 10;
    let world = World::start(|_| {}).await;
    world.fill(1, VALUE).await;
    let client = world.client("caller");
    assert!(client.get(key(0)).await.expect("it is read").is_some());
    until("nothing of it is left", || held(&world.node) == (0, 0, 0)).await;
    world.network.pause(NODE, "caller");
    let read = env::spawn("caller", {
        let client = client.clone();
        async move { client.get(key(0)).await }
    });
    // The node has done with it: its writer runs in this thread, and has sent it.
    until("the answer is on the way", || world.network.under_way() > 0).await;
    let (_, points, _) = held(&world.node);
    assert!(points >= VALUE, "{points} bytes are held");
    world.network.heal_all();
    assert!(read.await.expect("it ends").expect("it is read").is_some());
    until("nothing of it is left", || held(&world.node) == (0, 0, 0)).await;
    world.node.shutdown().await;
}
