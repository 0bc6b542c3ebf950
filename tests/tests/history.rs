//! History is given up: by hand, and by itself. In simulated time, since it is ten minutes that are waited for.

use std::sync::Arc;
use std::time::Duration;

use quorate_kv::Node;
use quorate_kv::client::Error;
use quorate_kv::env;
use quorate_kv::model::{Consistency, Key, Revision};
use quorate_kv::node::Settings;
use quorate_tests::sim::Simulation;

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
    let record = node.client().get_with(key(), Consistency::At(revision)).await?;
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
