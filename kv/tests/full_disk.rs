//! A node whose disk fills up: nothing that it acknowledged is lost, it says what to do, and it comes back.

#![allow(
    clippy::disallowed_methods,
    reason = "a user's program, in real time; the simulator has no part in it"
)]

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate_kv::Node;
use quorate_kv::client::Error;
use quorate_kv::env::disk::LockGuard;
use quorate_kv::env::{Disk, File, RealDisk};
use quorate_kv::node::{Settings, StartError};

/// Real files on a device with so much room left.
#[derive(Debug, Clone)]
struct Device {
    room: Arc<AtomicU64>,
    /// What it says that files in a directory take, in bytes of a free mebibyte; 0 says nothing.
    says: Arc<AtomicU64>,
}

impl Device {
    fn with_room(bytes: u64) -> Self {
        Self {
            room: Arc::new(AtomicU64::new(bytes)),
            says: Arc::default(),
        }
    }
}

#[derive(Debug)]
struct OnDevice {
    file: Arc<dyn File>,
    room: Arc<AtomicU64>,
}

impl OnDevice {
    /// Takes room for a file that grows to `len`.
    fn grow(&self, len: u64) -> io::Result<()> {
        let more = len.saturating_sub(self.file.len()?);
        let taken = self
            .room
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |room| room.checked_sub(more));
        match taken {
            Ok(_) => Ok(()),
            Err(_) => Err(io::ErrorKind::StorageFull.into()),
        }
    }
}

impl File for OnDevice {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.grow(offset + buf.len() as u64)?;
        self.file.write_all_at(buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.grow(len)?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

impl Disk for Device {
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(OnDevice {
            file: RealDisk.open(path, create)?,
            room: Arc::clone(&self.room),
        }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir_all(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        RealDisk.exists(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        RealDisk.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_dir(dir)
    }

    fn free_bytes(&self, _: &Path) -> io::Result<Option<u64>> {
        Ok((self.says.load(Ordering::SeqCst) > 0).then_some(1 << 20))
    }

    fn taken_bytes(&self, _: &Path) -> io::Result<Option<u64>> {
        Ok(Some(self.says.load(Ordering::SeqCst)).filter(|bytes| *bytes > 0))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        RealDisk.lock(path)
    }
}

async fn start(dir: &Path, device: &Device) -> Result<Node, StartError> {
    let mut settings = Settings::default();
    settings.log_segment_bytes = 64 << 10;
    Node::builder()
        .data_dir(dir)
        .disk(Arc::new(device.clone()))
        .settings(settings)
        .start()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_the_node_with_advice_and_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let device = Device::with_room(64 << 20);
    let node = start(dir.path(), &device).await.expect("a node starts");
    let client = node.client().with_deadline(Duration::from_secs(2));
    client.put("before", "v").await.unwrap();
    // As if somebody else had taken the rest: a few more segments fit.
    device.room.store(1 << 20, Ordering::SeqCst);

    let mut acknowledged = 0;
    let error = loop {
        match client.put(format!("k{acknowledged}"), vec![b'x'; 8 << 10]).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 10_000, "the disk never filled up");
    };
    assert!(acknowledged > 0, "{error}");
    let why = node.stopped().await.expect("a reason");
    let place = dir.path().display().to_string();
    assert!(why.contains(&place), "the reason names the directory: {why}");
    assert!(why.contains("make room"), "the reason says what to do: {why}");
    node.shutdown().await;

    // Without room it does not start, for the same reason, and does no harm.
    device.room.store(0, Ordering::SeqCst);
    if let Ok(node) = start(dir.path(), &device).await {
        node.shutdown().await;
    }

    device.room.store(64 << 20, Ordering::SeqCst);
    let node = start(dir.path(), &device).await.expect("there is room again");
    let client = node.client();
    assert!(client.get("before").await.unwrap().is_some());
    for number in 0..acknowledged {
        let found = client.get(format!("k{number}")).await.unwrap();
        assert!(found.is_some(), "k{number} of {acknowledged} is lost");
    }
    client.put("after", "v").await.unwrap();
    node.shutdown().await;
}

/// Waits until a put is answered so, for ten seconds at most: the disk is looked at once a second.
async fn put_until(node: &Node, is_so: impl Fn(&Result<(), Error>) -> bool) {
    let client = node.client();
    let put = async {
        loop {
            let put = client.put("k", "v").await.map(drop);
            if is_so(&put) {
                return;
            }
            assert!(matches!(put, Ok(()) | Err(Error::DiskFull { .. })), "{put:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), put)
        .await
        .expect("it notices");
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_disk_is_full_what_grows_is_refused_and_what_makes_room_goes_on() {
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let device = Device::with_room(64 << 20);
    let node = start(dir.path(), &device).await.expect("a node starts");
    let client = node.client();
    client.put("before", "v").await.unwrap();
    // Two directories of ten MiB each, and one MiB is free.
    device.says.store(10 * MIB, Ordering::SeqCst);
    put_until(&node, |put| matches!(put, Err(Error::DiskFull { .. }))).await;
    let Err(error) = client.put("k", "v").await else {
        panic!("it was full a moment ago");
    };
    assert_eq!(
        error,
        Error::DiskFull {
            node: Some("this node".to_owned()),
            used: 20 * MIB,
            limit: 21 * MIB
        }
    );
    assert!(error.is_retryable() && !error.may_have_committed());
    let status = client.status().await.unwrap();
    assert_eq!(
        (status.disk_bytes, status.disk_bytes_max, status.disk_is_full),
        (Some(20 * MIB), Some(21 * MIB), true)
    );
    assert!(!status.is_full, "the store has its room");
    assert!(client.get("before").await.unwrap().is_some());
    assert!(client.delete("before").await.expect("deletes go on"));
    let revision = client.status().await.unwrap().revision;
    client.compact(revision).await.expect("compaction goes on");
    // Less than 80 % of what there is for it.
    device.says.store(2 * MIB - 100_000, Ordering::SeqCst);
    put_until(&node, Result::is_ok).await;
    node.shutdown().await;
}

/// The story: on a disk that was full while Raft started, the end of a node was told as one that no retry helps.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_at_any_moment_of_a_first_start_may_have_room_later() {
    let (mut refused, mut started) = (0, 0);
    for room in (0..48).map(|step| step * (16 << 10)) {
        let dir = tempfile::tempdir().unwrap();
        match start(dir.path(), &Device::with_room(room)).await {
            Ok(node) => {
                started += 1;
                node.shutdown().await;
            }
            Err(error) => {
                refused += 1;
                assert!(error.is_retryable(), "{room}: {error}");
            }
        }
    }
    assert!(refused > 5 && started > 5, "{refused} refused, {started} started");
}
