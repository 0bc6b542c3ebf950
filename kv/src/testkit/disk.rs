//! A disk in memory. It forgets nothing while the process lives: a node that crashed finds what it had written.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::env::disk::{Disk, File, LockGuard};

/// Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct MemoryDisk(Arc<Mutex<Names>>);

#[derive(Debug, Default)]
struct Names {
    files: BTreeMap<PathBuf, MemoryFile>,
    locked: BTreeMap<PathBuf, Arc<()>>,
}

#[derive(Clone, Debug, Default)]
struct MemoryFile(Arc<Mutex<Vec<u8>>>);

/// The lock of a directory is held as long as this lives.
#[derive(Debug)]
struct Held(#[allow(dead_code, reason = "held for its count")] Arc<()>);

impl LockGuard for Held {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one step, which a panic elsewhere leaves whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn index(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(io::Error::other)
}

impl Disk for MemoryDisk {
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn File>> {
        let mut names = lock(&self.0);
        match names.files.get(path) {
            Some(file) => Ok(Arc::new(file.clone())),
            None if create => Ok(Arc::new(names.files.entry(path.to_owned()).or_default().clone())),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let names = lock(&self.0);
        Ok(names.files.keys().any(|name| name.starts_with(path)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let names = lock(&self.0);
        // What is right in the directory: files, and directories with something in them.
        let mut found: Vec<PathBuf> = Vec::new();
        for name in names.files.keys() {
            let Ok(below) = name.strip_prefix(dir) else {
                continue;
            };
            let Some(first) = below.components().next() else {
                continue;
            };
            let entry = dir.join(first);
            if found.last() != Some(&entry) {
                found.push(entry);
            }
        }
        Ok(found)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut names = lock(&self.0);
        let file = names.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        names.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let removed = lock(&self.0).files.remove(path);
        removed.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        let mut names = lock(&self.0);
        let held = names.locked.entry(path.to_owned()).or_default();
        match Arc::strong_count(held) {
            1 => Ok(Box::new(Held(Arc::clone(held)))),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl File for MemoryFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = lock(&self.0);
        let from = index(offset)?;
        let part = bytes.get(from..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut bytes = lock(&self.0);
        let from = index(offset)?;
        let end = from + buf.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        if let Some(part) = bytes.get_mut(from..end) {
            part.copy_from_slice(buf);
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.0).len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        lock(&self.0).resize(index(len)?, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}
