//! A node whose files rot while it runs leaves service by itself, and serves nothing of what rotted.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::fault::Fault;
use crate::node::{Node, Settings};

const VALUE: &[u8; 64] = b"a value that is long enough to be found in the file it stands in";

async fn start(dir: &Path, scrub_interval: Duration) -> Node {
    let settings = Settings {
        // Nothing of the state stays in memory.
        state_cache_bytes: Some(0),
        log_segment_bytes: 65_536,
        log_bytes_kept: Some(1 << 30),
        scrub_interval,
        ..Settings::default()
    };
    Node::builder()
        .data_dir(dir)
        .settings(settings)
        .start()
        .await
        .unwrap()
}

/// Flips a bit wherever in a file these bytes stand, old pages that are free included, as a disk would: beneath whoever has
/// it open. Answers whether they stand in it.
fn flip(path: &Path, what: &[u8]) -> bool {
    let bytes = std::fs::read(path).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let places = bytes.windows(what.len()).enumerate();
    let mut places = places.filter(|(_, found)| *found == what).peekable();
    let any = places.peek().is_some();
    for (at, _) in places {
        file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
    }
    any
}

/// Waits until the node has stopped, for the reason that this file has rotted.
async fn stops_over(node: &Node, path: &Path) {
    let stopped = crate::env::timeout(Duration::from_secs(60), node.stopped()).await;
    stopped.expect("the node stops by itself");
    match node.fault() {
        Some(Fault::Corrupt { path: named, .. }) => assert_eq!(Path::new(&named), path),
        other => panic!("{other:?}"),
    }
    assert!(!node.fault().unwrap().is_retryable());
}

/// A node whose state file has the value, and that keeps nothing of it in memory: it was started with it.
async fn started_with_value(dir: &Path, scrub_interval: Duration) -> Node {
    let node = start(dir, Duration::ZERO).await;
    node.client().put("key", &VALUE[..]).await.unwrap();
    assert!(node.shutdown().await.closed);
    start(dir, scrub_interval).await
}

#[tokio::test]
async fn what_rots_in_a_state_that_nobody_reads_is_found_by_the_scrubber() {
    let dir = tempfile::tempdir().unwrap();
    let node = started_with_value(dir.path(), Duration::from_secs(1)).await;
    let state = dir.path().join("state").join("state.redb");
    assert!(flip(&state, VALUE));
    stops_over(&node, &state).await;
    node.abort().await;
}

#[tokio::test]
async fn what_rots_in_an_old_segment_of_the_log_is_found_by_the_scrubber() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), Duration::from_secs(1)).await;
    node.client().put("first", &VALUE[..]).await.unwrap();
    for i in 0..20 {
        node.client()
            .put(format!("key {i}"), vec![b'x'; 10_000])
            .await
            .unwrap();
    }
    let mut segments: Vec<PathBuf> = std::fs::read_dir(dir.path().join("log"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    segments.sort();
    let rotten = segments.iter().find(|path| flip(path, VALUE));
    stops_over(&node, rotten.expect("a segment that holds the entry")).await;
    node.abort().await;
}
