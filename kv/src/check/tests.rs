//! What is said of whole files, and of each way in which they are not.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use super::*;
use crate::env::RealDisk;
use crate::model::{Op, Txn};
use crate::node::{Node, Settings};

/// Short values in many pages, and one that has a page of its own.
async fn run(dir: &Path) -> Node {
    let settings = Settings {
        log_segment_bytes: 64 << 10,
        log_bytes_kept: Some(1 << 30),
        // Nothing is written to the state while it is copied.
        durable_interval: std::time::Duration::from_secs(3_600),
        ..Settings::default()
    };
    let node = Node::builder().data_dir(dir).settings(settings).start().await;
    let node = node.expect("a node alone starts");
    let client = node.client();
    for round in 0..20 {
        let puts = (0..20).map(|key| {
            let value = format!("value of round {round} {}", "v".repeat(100));
            Op::put(format!("key {key:03} {round:02}"), value)
        });
        client.commit(Txn::new(puts)).await.expect("written");
    }
    client.put("long", vec![b'l'; 30_000]).await.expect("written");
    client.delete("key 000 00").await.expect("deleted");
    node
}

/// The files of a node that was stopped.
async fn stopped() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let node = run(dir.path()).await;
    assert!(node.shutdown().await.closed);
    dir
}

/// Every file below a directory, with what it holds and when it was changed.
fn files(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            let changed = path.metadata().and_then(|file| file.modified()).expect("a time");
            files.insert(path.clone(), (std::fs::read(&path).expect("a file"), changed));
        }
    }
    files
}

/// Checks a directory, and that the check changes none of its files.
fn found(dir: &Path) -> Report {
    let before = files(dir);
    let report = check(dir, Expected::default()).expect("a node's directory");
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        files(dir).keys().collect::<Vec<_>>()
    );
    assert!(before == files(dir), "a file was changed");
    assert_eq!(report.whole, report.damages.is_empty());
    report
}

#[track_caller]
fn assert_told(report: &Report, part: Part, file: &Path, says: &str) {
    let told = report
        .damages
        .iter()
        .any(|damage| damage.part == part && damage.file == file && damage.detail.contains(says));
    assert!(
        told,
        "{says:?} of {} is not in {:#?}",
        file.display(),
        report.damages
    );
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).expect("a file");
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).expect("rot");
}

/// Where in a file these bytes stand.
fn places(path: &Path, what: &[u8]) -> Vec<usize> {
    let bytes = std::fs::read(path).expect("a file");
    let windows = bytes.windows(what.len()).enumerate();
    windows
        .filter(|(_, found)| *found == what)
        .map(|(at, _)| at)
        .collect()
}

/// The segments of the log that hold something, the oldest first.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let log = RealDisk.list(&dir.join("log")).expect("a log");
    log.into_iter()
        .filter(|path| !places(path, b"value of round").is_empty())
        .collect()
}

#[tokio::test]
async fn the_files_of_a_stopped_node_are_whole_and_what_they_hold_is_told() {
    let dir = stopped().await;
    let report = found(dir.path());
    assert!(report.whole && report.notes.is_empty(), "{report:#?}");
    let identity = report.identity.expect("an identity");
    assert_eq!(identity.node, NodeId::new(1));
    let rows = report.state.rows.as_ref().expect("rows");
    assert_eq!((rows.keys, rows.deleted, rows.versions), (400, 1, 402));
    assert_eq!(rows.applied, report.log.last);
    assert_eq!(rows.revision, Revision::new(23));
    assert!(report.state.pages > 20, "{:?}", report.state);
    assert_eq!(report.log.vote.as_ref().expect("a vote").node, NodeId::new(1));
    assert!(report.log.entries.is_some_and(|entries| entries > 20));
}

#[tokio::test]
async fn the_files_of_a_node_that_was_killed_are_whole_and_stay_as_they_are() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = run(dir.path()).await;
    // As a crash leaves them: what the process had not written is missing.
    let copy = tempfile::tempdir().expect("a directory");
    for (path, (bytes, _)) in files(dir.path()) {
        let to = copy.path().join(path.strip_prefix(dir.path()).expect("within"));
        std::fs::create_dir_all(to.parent().expect("a directory")).expect("made");
        std::fs::write(to, bytes).expect("copied");
    }
    node.abort().await;
    for dir in [copy.path(), dir.path()] {
        let report = found(dir);
        assert!(report.whole, "{report:#?}");
        assert!(report.log.entries.is_some_and(|entries| entries > 20));
    }
    // Nothing was put in order that the start has to put in order.
    let node = Node::builder()
        .data_dir(copy.path())
        .start()
        .await
        .expect("a start");
    let record = node.client().get("long").await.expect("an answer");
    assert_eq!(record.expect("it was written").value.len(), 30_000);
    assert!(node.shutdown().await.closed);
    assert!(found(copy.path()).whole);
}

#[tokio::test]
async fn a_directory_on_which_a_node_runs_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = run(dir.path()).await;
    let refused = check(dir.path(), Expected::default());
    assert!(matches!(&refused, Err(error @ CheckError::InUse { .. }) if error.is_retryable()));
    assert!(node.shutdown().await.closed);
    assert!(found(dir.path()).whole);
}

#[tokio::test]
async fn a_directory_without_a_node_is_refused_and_stays_empty() {
    let dir = tempfile::tempdir().expect("a directory");
    for dir in [dir.path().to_owned(), dir.path().join("missing")] {
        let refused = check(&dir, Expected::default());
        assert!(matches!(refused, Err(CheckError::NoNode { .. })), "{refused:?}");
    }
    assert!(files(dir.path()).is_empty());
}

#[tokio::test]
async fn any_flipped_bit_of_the_state_file_is_found_at_its_page_or_touches_nothing_that_counts() {
    let dir = stopped().await;
    let state = dir.path().join("state/state.redb");
    let whole = found(dir.path());
    let bytes = std::fs::read(&state).expect("the state");
    let (mut wrong, mut named) = (0, 0);
    for at in (0..bytes.len()).step_by(1_511) {
        flip(&state, at);
        let report = found(dir.path());
        if report.whole {
            assert_eq!(report.state.rows, whole.state.rows, "byte {at}");
        } else {
            wrong += 1;
            let told = report.damages.first().expect("one at least");
            assert_eq!(
                (told.part, &told.file),
                (Part::State, &state),
                "byte {at}: {told}"
            );
            // A page, or of a large value some in a row.
            let offset = told.offset.unwrap_or_default() as usize;
            assert!(offset <= at && at < offset + (64 << 10), "byte {at}: {told}");
            named += usize::from(offset > 0);
        }
        flip(&state, at);
    }
    assert!(wrong > 20 && named > 20, "{wrong} found, {named} by their page");
    assert!(found(dir.path()).whole);
}

/// The story: a page that had been in use was said to be whole, and the start ended at it, of which the manual said that it finds
/// less than a check.
#[tokio::test]
async fn what_a_start_would_find_in_the_state_file_a_check_finds() {
    let dir = stopped().await;
    let node = run(dir.path()).await;
    assert!(node.shutdown().await.closed);
    let state = dir.path().join("state/state.redb");
    let len = std::fs::read(&state).expect("the state").len();
    let (mut wrong, mut of_no_use) = (0, 0);
    for page in (0..len).step_by(4_096) {
        let copy = tempfile::tempdir().expect("a directory");
        for (path, (bytes, _)) in files(dir.path()) {
            let path = copy
                .path()
                .join(path.strip_prefix(dir.path()).expect("it is in there"));
            std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            std::fs::write(&path, bytes).expect("copied");
        }
        flip(&copy.path().join("state/state.redb"), page + 2_000);
        let report = found(copy.path());
        if !report.whole {
            wrong += 1;
            let is_told =
                |damage: &Damage| damage.detail.contains("in what the state does not use of it now");
            of_no_use += usize::from(report.damages.iter().any(is_told));
            continue;
        }
        let disk = std::sync::Arc::new(RealDisk);
        let mode = crate::machine::OpenMode::Existing;
        let settings = crate::machine::MachineSettings::default();
        let opened = crate::machine::Machine::open(disk, &copy.path().join("state"), mode, settings);
        let (_machine, reader) = opened.unwrap_or_else(|error| panic!("page at {page}: {error}"));
        let mut scrubber = reader.scrubber();
        while scrubber
            .step()
            .unwrap_or_else(|fault| panic!("page at {page}: {fault}"))
            .left
            > 0
        {}
    }
    assert!(
        wrong > 20 && of_no_use > 2,
        "{wrong} found, {of_no_use} of them in no use"
    );
}

#[tokio::test]
async fn a_state_that_most_nodes_found_to_be_another_is_not_said_to_be_whole() {
    let dir = stopped().await;
    assert!(found(dir.path()).whole);
    std::fs::write(dir.path().join("state/DIFFERS"), "at entry 7").expect("noted");
    let report = found(dir.path());
    assert_told(
        &report,
        Part::State,
        &dir.path().join("state"),
        "at entry 7; no node starts on it",
    );
    let started = Node::builder().data_dir(dir.path()).start().await;
    let refused = started.map(drop).expect_err("it is refused").to_string();
    assert!(refused.contains("at entry 7"), "{refused}");
}

#[tokio::test]
async fn all_that_rotted_is_told_and_not_only_the_first() {
    let dir = stopped().await;
    let state = dir.path().join("state/state.redb");
    let value = |round: u32| places(&state, format!("value of round {round} ").as_bytes());
    let rotten: Vec<usize> = [2, 9, 17].iter().map(|round| value(*round)[0]).collect();
    rotten.iter().for_each(|at| flip(&state, *at));
    let ended = segments(dir.path());
    assert!(ended.len() >= 3, "{ended:?}");
    for path in &ended[..2] {
        flip(path, places(path, b"value of round")[0]);
    }
    let report = found(dir.path());
    for at in rotten {
        let page = (at / 4096 * 4096) as u64;
        let told = |damage: &&Damage| damage.file == state && damage.offset == Some(page);
        assert!(
            report.damages.iter().any(|damage| told(&damage)),
            "{page}: {:#?}",
            report.damages
        );
    }
    for path in &ended[..2] {
        let told = report.damages.iter().filter(|damage| damage.file == *path);
        let offsets: Vec<_> = told.filter_map(|damage| damage.offset).collect();
        assert!(
            !offsets.is_empty() && offsets[0] >= 4096,
            "{}: {:#?}",
            path.display(),
            report.damages
        );
    }
    // What can be read all the same is told by its key.
    let keys = report.damages.iter().filter(|damage| damage.key.is_some());
    assert!(keys.count() >= 3, "{:#?}", report.damages);
}

#[tokio::test]
async fn a_file_that_is_missing_is_named() {
    let dir = stopped().await;
    let parts = [
        (
            dir.path().join(IDENTITY_FILE),
            Part::Identity,
            dir.path().join(IDENTITY_FILE),
            "is missing",
        ),
        (
            dir.path().join("state/state.redb"),
            Part::State,
            dir.path().join("state/state.redb"),
            "is missing",
        ),
    ];
    for (path, part, named, says) in parts {
        let bytes = std::fs::read(&path).expect("a file");
        std::fs::remove_file(&path).expect("removed");
        assert_told(&found(dir.path()), part, &named, says);
        std::fs::write(&path, bytes).expect("put back");
        assert!(found(dir.path()).whole, "{}", path.display());
    }
    // The last entries stand in the newest segment, whose absence shows in the one before it, as that of any other does.
    for path in segments(dir.path()) {
        let bytes = std::fs::read(&path).expect("a segment");
        std::fs::remove_file(&path).expect("removed");
        let report = found(dir.path());
        let told = report
            .damages
            .iter()
            .any(|damage| damage.part == Part::Log && damage.detail.contains("no file is that"));
        assert!(told, "without {}: {:#?}", path.display(), report.damages);
        std::fs::write(&path, bytes).expect("put back");
    }
    std::fs::write(dir.path().join("state/state.redb"), b"").expect("emptied");
    std::fs::remove_dir_all(dir.path().join("log")).expect("removed");
    let report = found(dir.path());
    assert_told(&report, Part::Log, &dir.path().join("log"), "no log in");
    assert_told(
        &report,
        Part::State,
        &dir.path().join("state/state.redb"),
        "less than its header",
    );
}

#[tokio::test]
async fn the_identity_of_another_node_is_found_out() {
    let dir = stopped().await;
    let identity = dir.path().join(IDENTITY_FILE);
    let own = std::fs::read(&identity).expect("an identity");
    let expect = |expected| check(dir.path(), expected).expect("a node's directory");
    let cluster = expect(Expected {
        cluster: Some("another"),
        node: None,
    });
    assert_told(&cluster, Part::Identity, &identity, "\"another\" is configured");
    let node = expect(Expected {
        cluster: None,
        node: Some(NodeId::new(9)),
    });
    assert_told(&node, Part::Identity, &identity, "and node 9 is configured");

    let other = stopped().await;
    std::fs::copy(other.path().join(IDENTITY_FILE), &identity).expect("copied");
    assert_told(&found(dir.path()), Part::Together, dir.path(), "another node's");
    std::fs::write(&identity, &own[..own.len() - 1]).expect("cut");
    assert_told(&found(dir.path()), Part::Identity, &identity, "corrupt");
    std::fs::write(&identity, own).expect("put back");
    assert!(found(dir.path()).whole);
}

#[tokio::test]
async fn files_of_two_times_are_found_not_to_belong_together() {
    let dir = tempfile::tempdir().expect("a directory");
    let settings = || Settings {
        log_segment_bytes: 64 << 10,
        log_bytes_kept: Some(128 << 10),
        snapshot_entries: 10,
        log_entries_kept: 0,
        ..Settings::default()
    };
    let state = dir.path().join("state/state.redb");
    let start = || Node::builder().data_dir(dir.path()).settings(settings()).start();
    let node = start().await.expect("a start");
    assert!(node.shutdown().await.closed);
    let old = std::fs::read(&state).expect("the state");
    let node = start().await.expect("a start");
    for number in 0..200 {
        node.client()
            .put("key", vec![number; 10_000])
            .await
            .expect("written");
    }
    assert!(node.shutdown().await.closed);
    let node = start().await.expect("a start");
    for number in 0..200 {
        node.client()
            .put("key", vec![number; 10_000])
            .await
            .expect("written");
    }
    assert!(node.shutdown().await.closed);
    assert!(found(dir.path()).log.purged.is_some());
    std::fs::write(&state, old).expect("put back");
    assert_told(
        &found(dir.path()),
        Part::Together,
        dir.path(),
        "from another time",
    );
}

#[tokio::test]
async fn a_first_start_that_was_cut_short_is_called_that() {
    let dir = stopped().await;
    std::fs::rename(dir.path().join(IDENTITY_FILE), dir.path().join("CREATING")).expect("renamed");
    assert_told(
        &found(dir.path()),
        Part::Identity,
        &dir.path().join(IDENTITY_FILE),
        "cut short",
    );
}
