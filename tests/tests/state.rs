//! What becomes of a state: its history is given up, it fills, it differs between nodes. In simulated time, since minutes are
//! waited for.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{self, Either};
use quorate_kv::Node;
use quorate_kv::client::Error;
use quorate_kv::env;
use quorate_kv::model::{Consistency, Key, KeyRange, Limit, Op, Revision, Txn};
use quorate_kv::node::Settings;
use quorate_kv::planted::{self, Bug};
use quorate_tests::sim::Simulation;
use quorate_tests::sim::net::SimClock;
use quorate_transport::memory::MemoryNetwork;
use quorate_transport::{ClusterId, Identity};

/// A node alone, and what is done to it.
fn run<F: Future<Output = ()>>(settings: Settings, test: impl FnOnce(Node) -> F) {
    let sim = Simulation::new(7);
    let host = sim.host(1);
    let node = Node::builder()
        .cluster("quorate")
        .data_dir("/node")
        .disk(Arc::new(host.disk()))
        .settings(settings);
    let started = host.spawn("node", node.start());
    let ended = sim.block_on(async {
        let node = started.await.expect("no panic").expect("a node alone starts");
        test(node).await;
    });
    sim.end();
    ended.expect("the simulation goes on");
}

fn key() -> Key {
    Key::new("k").expect("a legal key")
}

async fn at(node: &Node, revision: Revision) -> Result<Vec<u8>, Error> {
    let record = node
        .client()
        .get(key())
        .consistency(Consistency::At(revision))
        .await?;
    Ok(record.map(|record| record.value.to_vec()).unwrap_or_default())
}

async fn put(node: &Node, value: &str) -> Revision {
    let value = value.to_owned();
    node.client().put(key(), value).await.expect("it is written")
}

#[test]
fn old_history_goes_by_itself_and_by_hand_and_the_rest_can_be_read() {
    let mut settings = Settings::default();
    settings.history_revisions_kept = 2;
    let kept = settings.history_kept;
    assert_eq!(kept, Duration::from_secs(600));
    run(settings, |node| async move {
        let old = put(&node, "old").await;
        let older_than_kept = put(&node, "older than is kept").await;
        env::sleep(kept / 2).await;
        let young = put(&node, "young").await;
        assert_eq!(at(&node, old).await.expect("nothing is old"), b"old");
        env::sleep(kept / 2 + kept / 10).await;
        assert_eq!(
            at(&node, old).await,
            Err(Error::Compacted {
                oldest: older_than_kept
            }),
            "at the oldest that is kept the state is whole"
        );
        assert_eq!(at(&node, older_than_kept).await.unwrap(), b"older than is kept");
        assert_eq!(at(&node, young).await.unwrap(), b"young");
        // All of it is old, and the newest are kept.
        let newest: Vec<Revision> = [
            put(&node, "1").await,
            put(&node, "2").await,
            put(&node, "3").await,
        ]
        .into();
        env::sleep(kept * 2).await;
        assert_eq!(at(&node, newest[1]).await.unwrap(), b"2");
        assert_eq!(
            at(&node, newest[0]).await,
            Err(Error::Compacted { oldest: newest[1] })
        );

        let client = node.client();
        assert_eq!(client.compact(newest[2]).await, Ok(newest[2]));
        assert_eq!(
            client.compact(newest[1]).await,
            Ok(newest[2]),
            "it was given up already"
        );
        let next = Revision::new(newest[2].number() + 1);
        let not_yet = Error::NotYet {
            node: None,
            asked: next,
            current: newest[2],
        };
        assert_eq!(client.compact(next).await, Err(not_yet));
        assert_eq!(at(&node, newest[2]).await.unwrap(), b"3");
        assert!(at(&node, newest[1]).await.is_err());
        let status = client.status().await.expect("it answers");
        assert_eq!((status.oldest, status.revision), (newest[2], newest[2]));
        assert!(node.shutdown().await.closed);
    });
}

#[test]
fn history_that_is_kept_for_ever_stays() {
    let mut settings = Settings::default();
    settings.history_kept = Duration::ZERO;
    settings.history_revisions_kept = 0;
    run(settings, |node| async move {
        let first = put(&node, "first").await;
        put(&node, "second").await;
        env::sleep(Duration::from_secs(3_600)).await;
        put(&node, "third").await;
        env::sleep(Duration::from_secs(3_600)).await;
        assert_eq!(at(&node, first).await.unwrap(), b"first");
        assert!(node.shutdown().await.closed);
    });
}

#[test]
fn limits_are_changed_while_the_node_serves_and_count_from_then_on() {
    run(Settings::default(), |node| async move {
        let client = node.client();
        let stand = client.limits().await.expect("it answers");
        assert_eq!(stand.keys_changed_max, 131_072);
        let both = [(Limit::KeysChangedMax, 1_000), (Limit::HistoryRevisionsKept, 3)];
        let stand = client.set_limits(both).await.expect("it answers");
        assert_eq!((stand.keys_changed_max, stand.history_revisions_kept), (1_000, 3));
        assert_eq!(client.limits().await, Ok(stand));
        let puts = |count: u32| {
            let name = |number| Key::new(format!("k{number}")).expect("a legal key");
            Txn::new((0..count).map(|number| Op::put(name(number), "")))
        };
        client.commit(puts(1_000)).await.expect("as many as may be");
        let refused = client.commit(puts(1_001)).await.expect_err("one too many");
        assert!(
            refused.to_string().contains("limit of 1000 keys changed"),
            "{refused}"
        );
        let bad = [(Limit::KeysChangedMax, 2_000), (Limit::SessionsMax, 0)];
        let refused = client.set_limits(bad).await.expect_err("none is too few");
        assert!(matches!(refused, Error::InvalidLimit(_)), "{refused}");
        assert_eq!(client.limits().await, Ok(stand), "all or none");
        assert!(node.shutdown().await.closed);
    });
}

/// Writes until it is refused; how many were written.
async fn fill(node: &Node, from: u32) -> u32 {
    for number in from.. {
        let key = Key::new(format!("fill/{number}")).expect("a legal key");
        match node.client().put(key, vec![1; 1_000]).await {
            Ok(_) => {}
            Err(Error::NoSpace { used, limit, .. }) => {
                assert!(used * 100 >= limit * 95, "{used} of {limit}");
                return number;
            }
            Err(other) => panic!("{other}"),
        }
    }
    unreachable!("numbers do not end")
}

/// The story: a store of which a tenth lived refused half of all writes while its history went, and took none for a minute after
/// all of its keys were deleted: each half of the history waited for a checkpoint of its own.
#[test]
fn a_store_full_of_history_has_its_writers_wait_for_a_moment_and_refuses_none() {
    let mut settings = Settings::default();
    settings.store_bytes_max = 1_000_000;
    run(settings, |node| async move {
        let client = node.client();
        for number in 0..3_000 {
            let put = client.put(key(), vec![1; 1_000]).await;
            put.unwrap_or_else(|error| panic!("put {number} of one key: {error}"));
        }
        // Far less than its history has.
        client
            .set_limits([(Limit::StoreBytesMax, 20_000)])
            .await
            .expect("it is lowered");
        let begun = env::now();
        while client.put(key(), "1").await.is_err() {
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "the history does not go"
            );
        }
    });
}

/// The story: a log that might take 4 MiB took 52 within half a second, and the disk was full long before the store.
#[test]
fn the_log_is_purged_for_its_length_without_waiting_for_the_next_checkpoint_by_time() {
    const VALUE: usize = 100_000;
    let mut settings = Settings::default();
    settings.log_segment_bytes = 256 << 10;
    settings.log_bytes_kept = Some(1 << 20);
    settings.durable_interval = Duration::from_secs(60);
    run(settings, |node| async move {
        let client = node.client();
        let begun = env::now();
        for _ in 0..100 {
            client.put(key(), vec![1; VALUE]).await.expect("it is written");
            env::sleep(Duration::from_millis(20)).await;
        }
        let entries = || async {
            let status = client.status().await.expect("it answers");
            let last = status.last_log.map_or(0, |last| last.number());
            last - status.purged.map_or(0, |purged| purged.number())
        };
        // Half as much again, a segment that is not full, and what came in a tenth of a second.
        let most = (3 << 19) / VALUE as u64 + 8;
        while entries().await > most {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "{} entries",
                entries().await
            );
            env::sleep(Duration::from_millis(100)).await;
        }
    });
}

#[test]
fn a_store_that_is_full_takes_what_frees_room_and_writes_again_once_there_is() {
    let mut settings = Settings::default();
    settings.store_bytes_max = 200_000;
    // Else it goes by itself.
    settings.history_kept = Duration::ZERO;
    run(settings, |node| async move {
        let client = node.client();
        let count = fill(&node, 0).await;
        assert!((150..200).contains(&count), "{count} puts of some 1,080 bytes");
        let holds = client.status().await.expect("it answers").holds;
        assert_eq!(holds.records, u64::from(count));
        assert_eq!(holds.history_bytes, 0, "all of it is live");
        assert!(client.get(key()).await.is_ok(), "reads go on");
        let all = Txn::new([Op::delete_range(KeyRange::all(), 1_000)]);
        let revision = client.commit(all).await.expect("deletes go on").revision;
        let still = client.put(key(), "1").await;
        assert!(
            matches!(still, Err(Error::NoSpace { .. })),
            "the history is there yet: {still:?}"
        );
        client.compact(revision).await.expect("so does compaction");
        let waited = env::timeout(Duration::from_secs(60), async {
            while client.put(key(), "1").await.is_err() {
                env::sleep(Duration::from_millis(100)).await;
            }
        });
        waited.await.expect("there is room once the rows are gone");
        let holds = client.status().await.expect("it answers").holds;
        assert_eq!(
            (holds.records, holds.history_bytes < 1_000),
            (1, true),
            "{holds:?}"
        );

        fill(&node, 1_000).await;
        client
            .set_limits([(Limit::StoreBytesMax, 300_000)])
            .await
            .expect("limits can be changed");
        client.put(key(), "2").await.expect("there is room at once");
        assert!(node.shutdown().await.closed);
    });
}

#[test]
fn a_state_file_that_gave_much_up_is_made_small_while_the_node_serves() {
    run(Settings::default(), |node| async move {
        let client = node.client();
        for number in 0..300 {
            let key = Key::new(format!("much/{number}")).expect("a legal key");
            client.put(key, vec![1; 20_000]).await.expect("it is written");
        }
        let all = Txn::new([Op::delete_range(KeyRange::all(), 1_000)]);
        let revision = client.commit(all).await.expect("it is written").revision;
        client.compact(revision).await.expect("it is given up");
        let forgotten = env::timeout(Duration::from_secs(120), async {
            while client.status().await.expect("it answers").holds.history_bytes > 0 {
                env::sleep(Duration::from_millis(100)).await;
            }
        });
        forgotten.await.expect("the rows go");
        put(&node, "kept").await;
        let before = client.status().await.expect("it answers").file_bytes;
        let told = client.shrink().await;
        let shrunk = told
            .values()
            .next()
            .expect("one node")
            .clone()
            .expect("it shrinks");
        assert_eq!(shrunk.before, before);
        assert!(before > 6_000_000 && shrunk.after < 1_500_000, "{shrunk:?}");
        assert_eq!(
            client.status().await.expect("it answers").file_bytes,
            shrunk.after
        );
        let record = client.get(key()).await.expect("it answers").expect("a record");
        assert_eq!(record.value, "kept");
        put(&node, "goes on").await;
        assert!(node.shutdown().await.closed);
    });
}

/// The ancestor's state machine called the clock while it applied, and nobody noticed that its replicas differed.
#[test]
fn a_node_whose_state_differs_from_the_others_leaves_service() {
    let sim = Simulation::new(7);
    let network = MemoryNetwork::new(Arc::new(SimClock::new(sim.world(), sim.rng("network"))));
    let cluster = ClusterId::new("quorate").expect("a legal name");
    let address = |number: u32| format!("node-{number}:7000");
    let start = |number: u32| {
        let (host, mut settings) = (sim.host(number), Settings::default());
        settings.tuning.hash_entries = 1;
        settings.compare_interval = Duration::from_secs(1);
        let identity = Identity::node(cluster.clone(), number.into());
        let node = Node::builder()
            .cluster("quorate")
            .node_id(number.into())
            .data_dir("/node")
            .transport(network.transport(identity, &address(number)))
            .disk(Arc::new(host.disk()))
            .peers((1..=3).map(|peer| (u64::from(peer), address(peer))))
            .settings(settings);
        host.spawn("node", node.start())
    };
    let starting: Vec<_> = (1..=3).map(start).collect();
    let ended = sim.block_on(async {
        let mut nodes = Vec::new();
        for node in starting {
            nodes.push(node.await.expect("no panic").expect("it starts"));
        }
        for node in &nodes {
            node.ready().await;
        }
        put(&nodes[0], "the same everywhere").await;
        env::sleep(Duration::from_secs(5)).await;
        assert!(
            nodes.iter().all(|node| node.fault().is_none()),
            "equal states stay"
        );
        planted::plant(Some(Bug::RandomInApply));
        // Somebody tosses another coin than the others soon.
        let stops = nodes.iter().map(|node| Box::pin(node.stopped()));
        let writing = async {
            loop {
                let _told = nodes[0].client().put(key(), "1").await;
                env::sleep(Duration::from_millis(100)).await;
            }
        };
        let first = future::select(future::select_all(stops), Box::pin(writing));
        let Either::Left(((reason, which, _), _)) = first.await;
        planted::plant(None);
        nodes.remove(which).shutdown().await;
        let again = start(which as u32 + 1).await.expect("no panic");
        (reason.expect("it stopped by itself"), again.map(drop))
    });
    planted::plant(None);
    sim.end();
    let (reason, again) = ended.expect("the simulation goes on");
    let refused = again.expect_err("its hashes are gone, and its state is as wrong as before");
    assert!(!refused.is_retryable(), "{refused}");
    let refused = refused.to_string();
    assert!(
        refused.contains("is not what it is on most nodes: at entry"),
        "{refused}"
    );
    assert!(reason.contains("is not what it is on other nodes"), "{reason}");
    assert!(reason.contains("entry 1/"), "it says at which: {reason}");
}
