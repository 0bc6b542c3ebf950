//! An embedded node without peers: ten lines, no ports, serving at once, and nothing lost at a restart.

#![allow(
    clippy::disallowed_methods,
    reason = "a user's program, in real time; the simulator has no part in it"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_kv::client::Error;
use quorate_kv::model::{Consistency, Guard, Key, Op, OpResult, Revision, Txn};
use quorate_kv::node::{NodeRole, Settings, StartError, StorageError};
use quorate_kv::{Client, Node};
use quorate_transport::memory::{MemoryNetwork, TokioClock};
use quorate_transport::{ClusterId, Identity};

async fn start(dir: &tempfile::TempDir) -> Node {
    Node::builder()
        .data_dir(dir.path())
        .start()
        .await
        .expect("a single node starts")
}

fn key(text: &str) -> Key {
    Key::from(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_node_serves_when_start_returns() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(&dir).await;
    assert_eq!(node.status().role, NodeRole::Leader);
    assert_eq!(node.address(), None, "no port is opened");
    let client = node.client();
    let revision = client.put("a", "1").await.unwrap();
    assert_eq!(revision, Revision::new(2), "the empty store is at revision 1");
    let record = client.get("a").await.unwrap().expect("it was written");
    assert_eq!(&record.value[..], b"1");
    assert_eq!(
        (record.version, record.create_revision, record.mod_revision),
        (1, revision, revision)
    );
    assert!(node.shutdown().await.drained);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_finds_every_acknowledged_write() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3u64 {
        let node = start(&dir).await;
        let client = node.client();
        for i in 0..round * 10 {
            let record = client
                .get(format!("k{i}"))
                .await
                .unwrap()
                .expect("written in an earlier round");
            assert_eq!(&record.value[..], format!("v{i}").as_bytes());
        }
        for i in round * 10..(round + 1) * 10 {
            client.put(format!("k{i}"), format!("v{i}")).await.unwrap();
        }
        assert!(node.shutdown().await.drained, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_all_or_nothing_and_tells_what_failed() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(&dir).await;
    let client = node.client();
    let create = Txn::new([Op::put(key("x"), "1"), Op::put(key("y"), "1")]).when(Guard::missing(key("x")));
    let first = client.commit(create.clone()).await.unwrap();
    assert!(first.succeeded);
    let second = client.commit(create.or_else([Op::get(key("x"))])).await.unwrap();
    assert!(!second.succeeded);
    assert_eq!(second.failed.len(), 1);
    assert_eq!(second.revision, first.revision, "nothing was changed");
    assert!(matches!(&second.results[..], [OpResult::Get(Some(record))] if &record.value[..] == b"1"));
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_past_is_read_at_its_revision() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(&dir).await;
    let client = node.client();
    let first = client.put("a", "old").await.unwrap();
    let second = client.put("a", "new").await.unwrap();
    let at = |revision| client.get("a").consistency(Consistency::At(revision));
    assert_eq!(&at(first).await.unwrap().unwrap().value[..], b"old");
    assert_eq!(&at(second).await.unwrap().unwrap().value[..], b"new");
    assert!(at(Revision::FIRST).await.unwrap().is_none());
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_increments_by_optimistic_transactions_are_never_lost() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(&dir).await;
    let client = node.client();
    const TASKS: usize = 8;
    const EACH: usize = 10;
    let increment = |client: Client| async move {
        for _ in 0..EACH {
            let run = client.transact(|t| async move {
                let found = t.get("n").await?;
                let n: u64 = found.map_or(0, |value| String::from_utf8_lossy(&value).parse().unwrap());
                t.put("n", (n + 1).to_string())
            });
            run.await.unwrap();
        }
    };
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| tokio::spawn(increment(client.clone())))
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let total = client.get("n").await.unwrap().unwrap();
    assert_eq!(&total.value[..], (TASKS * EACH).to_string().as_bytes());
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_serves_one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(&dir).await;
    let second = Node::builder().data_dir(dir.path()).start().await;
    assert!(
        matches!(second, Err(StartError::Storage(StorageError::InUse { .. }))),
        "{second:?}"
    );
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_gives_the_directory_free_while_handles_remain() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(&dir).await;
    let client = first.client();
    client.put("a", "1").await.unwrap();
    first.shutdown().await;
    let second = start(&dir).await;
    second.client().put("a", "2").await.unwrap();
    let late = client
        .with_deadline(Duration::from_millis(50))
        .put("a", "3")
        .await
        .unwrap_err();
    assert!(!late.may_have_committed(), "{late}");
    drop((client, first));
    assert_eq!(&second.client().get("a").await.unwrap().unwrap().value[..], b"2");
    second.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_node_ends_and_gives_the_directory_free() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(&dir).await;
    node.client().put("a", "1").await.unwrap();
    drop(node);
    let deadline = Instant::now() + Duration::from_secs(30);
    let again = loop {
        match Node::builder().data_dir(dir.path()).start().await {
            Ok(node) => break node,
            Err(StartError::Storage(StorageError::InUse { .. })) if Instant::now() < deadline => {
                tokio::task::yield_now().await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    assert!(again.client().get("a").await.unwrap().is_some());
    again.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_nodes_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    start(&dir).await.shutdown().await;
    let other = Node::builder()
        .data_dir(dir.path())
        .node_id(2)
        .start()
        .await
        .unwrap_err();
    let text = other.to_string();
    assert!(text.contains('1') && text.contains('2'), "{text}");
    let foreign = Node::builder()
        .data_dir(dir.path())
        .cluster("elsewhere")
        .start()
        .await
        .unwrap_err();
    assert!(foreign.to_string().contains("elsewhere"), "{foreign}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_log_state_or_identity_is_refused_and_nothing_is_changed() {
    for part in ["log", "state", "IDENTITY"] {
        let dir = tempfile::tempdir().unwrap();
        let node = start(&dir).await;
        node.client().put("a", "1").await.unwrap();
        node.shutdown().await;
        drop(node);
        let (lost, aside) = (dir.path().join(part), dir.path().join("aside"));
        std::fs::rename(&lost, &aside).unwrap();
        let refused = Node::builder().data_dir(dir.path()).start().await;
        let text = refused.expect_err(part).to_string();
        assert!(text.contains(&dir.path().display().to_string()), "{part}: {text}");
        if lost.exists() {
            std::fs::remove_dir_all(&lost).unwrap();
        }
        std::fs::rename(&aside, &lost).unwrap();
        let node = start(&dir).await;
        assert!(
            node.client().get("a").await.unwrap().is_some(),
            "{part} back in its place"
        );
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_to_service_takes_a_fraction_of_an_election_timeout() {
    let dir = tempfile::tempdir().unwrap();
    start(&dir).await.shutdown().await;
    let begun = Instant::now();
    let node = start(&dir).await;
    node.client().put("a", "1").await.unwrap();
    // Not a benchmark: it tells a start that waits for an election timeout (2 s) from one that does not.
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    node.shutdown().await;
}

/// The story: each command of the command line opened a session and left it behind, and an hour's worth of them
/// was more than the cluster keeps.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_closed_leave_their_sessions_to_others() {
    const SESSIONS_MAX: u64 = 4;
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings::default();
    settings.sessions_max = SESSIONS_MAX;
    let node = Node::builder().data_dir(dir.path()).settings(settings);
    let node = node.start().await.expect("a single node starts");
    for number in 0..SESSIONS_MAX * 3 {
        let client = node.client();
        client.put(format!("k{number}"), "v").await.unwrap();
        client.close().await;
    }
    // A client that only reads has nothing to give back.
    let reader = node.client();
    assert!(reader.get("k0").await.unwrap().is_some());
    reader.close().await;

    // Those that stay take up the room, and a clone of one that was closed writes on in a session of its own.
    let mut held = Vec::new();
    for _ in 0..SESSIONS_MAX {
        let client = node.client();
        client.put("held", "v").await.unwrap();
        held.push(client);
    }
    let hurried = node.client().with_deadline(Duration::from_millis(200));
    let refused = hurried.put("one too many", "v").await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    held[0].clone().close().await;
    held[0].put("again", "v").await.unwrap();
    node.shutdown().await;
}

/// The story: a program that took a client for each request locked all writers out for an hour after 10,000 of them.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_dropped_leave_their_sessions_to_others() {
    const SESSIONS_MAX: u64 = 4;
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings::default();
    settings.sessions_max = SESSIONS_MAX;
    let node = Node::builder().data_dir(dir.path()).settings(settings);
    let node = node.start().await.expect("a single node starts");
    for number in 0..SESSIONS_MAX * 5 {
        // Where those before it are still on their way out, it waits for them.
        node.client().put(format!("k{number}"), "v").await.unwrap();
    }
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_whose_state_cannot_be_opened_is_given_free_with_its_log_closed() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(&dir).await;
    node.client().put("a", "1").await.unwrap();
    node.shutdown().await;
    let state = dir.path().join("state");
    let away = dir.path().join("away");
    std::fs::rename(&state, &away).unwrap();
    for _ in 0..3 {
        // Each time the same refusal, and never that of a directory in use.
        let refused = Node::builder().data_dir(dir.path()).start().await;
        assert!(
            matches!(refused, Err(StartError::Storage(StorageError::State(_)))),
            "{refused:?}"
        );
    }
    if state.exists() {
        std::fs::remove_dir_all(&state).unwrap();
    }
    std::fs::rename(&away, &state).unwrap();
    let node = start(&dir).await;
    assert!(node.client().get("a").await.unwrap().is_some());
    node.shutdown().await;
}

/// Said twice, it could only differ.
#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_cluster_and_id_are_those_of_its_certificate_unless_others_are_given() {
    let network = MemoryNetwork::new(Arc::new(TokioClock::new(1)));
    let me = Identity::node(ClusterId::new("orders").unwrap(), 7);
    let builder = |dir: &tempfile::TempDir| {
        Node::builder()
            .data_dir(dir.path())
            .transport(network.transport(me.clone(), "seven:1"))
            .peers([(7, "seven:1")])
    };
    let dir = tempfile::tempdir().unwrap();
    let node = builder(&dir).start().await.expect("it is alone in its cluster");
    node.client().put("k", "v").await.unwrap();
    let status = node.status();
    assert_eq!((status.cluster.as_str(), status.node.number()), ("orders", 7));
    node.shutdown().await;

    let other = tempfile::tempdir().unwrap();
    for (refused, given) in [
        (
            builder(&other).node_id(8).peers([(8, "seven:1")]).start().await,
            ("orders", 8),
        ),
        (builder(&other).cluster("others").start().await, ("others", 7)),
    ] {
        let error = refused.expect_err("the certificate says otherwise");
        let StartError::WrongIdentity { certificate, node } = error else {
            panic!("{given:?}: {error}");
        };
        assert_eq!(certificate, me);
        assert_eq!((node.cluster.as_str(), node.node_id()), (given.0, Some(given.1)));
    }
}
