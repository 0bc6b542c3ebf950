//! A start that its caller no longer waits for.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::PATIENCE;
use crate::env::disk::LockGuard;
use crate::env::{self, Disk, File, RealDisk};
use crate::node::{Builder, Node, Settings, StartError, StorageError};

/// Counts the locks that are held, the writes, and those that came while no lock was held.
#[derive(Debug, Default)]
struct Counts {
    locks: AtomicUsize,
    writes: AtomicUsize,
    unlocked_writes: AtomicUsize,
    written: env::Notify,
}

impl Counts {
    fn write(&self) {
        self.writes.fetch_add(1, Ordering::SeqCst);
        if self.locks.load(Ordering::SeqCst) == 0 {
            self.unlocked_writes.fetch_add(1, Ordering::SeqCst);
        }
        self.written.notify_one();
    }

    /// Returns when so many writes have come.
    async fn wait_for(&self, writes: usize) {
        while self.writes.load(Ordering::SeqCst) < writes {
            self.written.notified().await;
        }
    }
}

/// The operating system's files, looked at.
#[derive(Debug, Clone, Default)]
struct Watched(Arc<Counts>);

#[derive(Debug)]
struct WatchedFile {
    file: Arc<dyn File>,
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct WatchedLock {
    _lock: Box<dyn LockGuard>,
    counts: Arc<Counts>,
}

impl LockGuard for WatchedLock {}

impl Drop for WatchedLock {
    fn drop(&mut self) {
        self.counts.locks.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Disk for Watched {
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn File>> {
        let file = RealDisk.open(path, create)?;
        let counts = Arc::clone(&self.0);
        Ok(Arc::new(WatchedFile { file, counts }))
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
        self.0.write();
        RealDisk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.write();
        RealDisk.remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        let lock = RealDisk.lock(path)?;
        self.0.locks.fetch_add(1, Ordering::SeqCst);
        let counts = Arc::clone(&self.0);
        Ok(Box::new(WatchedLock { _lock: lock, counts }))
    }
}

impl File for WatchedFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        // The other side of the race: what was begun under the lock may end behind it.
        self.counts.write();
        let written = self.file.write_all_at(buf, offset);
        self.counts.write();
        written
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.counts.write();
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn builder(dir: &Path, disk: &Watched) -> Builder {
    let settings = Settings {
        // Making one takes a while, which a start that nobody waits for may end in.
        log_segment_bytes: 16 << 20,
        ..Settings::default()
    };
    Node::builder()
        .data_dir(dir)
        .settings(settings)
        .disk(Arc::new(disk.clone()))
}

async fn start_when_free(dir: &Path, disk: &Watched) -> Node {
    let began = env::now();
    loop {
        match builder(dir, disk).start().await {
            Ok(node) => return node,
            Err(StartError::Storage(StorageError::InUse { .. })) => {
                assert!(began.elapsed() < PATIENCE, "the directory is never given free");
                env::sleep(Duration::from_millis(1)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// The story: the lock of the directory was given free while threads of the start still wrote: a second start could then
/// run on the files of the first.
#[tokio::test]
async fn a_start_that_nobody_waits_for_keeps_its_directory_until_nothing_writes_there_any_more() {
    for writes in 0.. {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = Watched::default();
        let started = tokio::select! {
            biased;
            () = disk.0.wait_for(writes) => None,
            started = builder(dir.path(), &disk).start() => Some(started.expect("it starts")),
        };
        let is_whole = started.is_some();
        if let Some(node) = started {
            node.shutdown().await;
        }
        let node = start_when_free(dir.path(), &disk).await;
        node.client().put("k", "v").await.expect("it serves");
        assert!(node.shutdown().await.closed);
        let unlocked = disk.0.unlocked_writes.load(Ordering::SeqCst);
        assert_eq!(unlocked, 0, "writes without the lock, after {writes} with it");
        if is_whole {
            assert!(writes > 10, "only {writes} moments were met");
            return;
        }
    }
}
