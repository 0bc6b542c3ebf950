//! A disk in memory that forgets, when power is lost, what was not synced.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::env::disk::{Disk, File, LockGuard};

/// A disk in memory. Cheap to clone: clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(in crate::machine) struct MemoryDisk(Arc<Mutex<Names>>);

#[derive(Debug, Default)]
struct Names {
    now: BTreeMap<PathBuf, MemoryFile>,
    durable: BTreeMap<PathBuf, MemoryFile>,
    /// What it says is free.
    free: Option<u64>,
}

#[derive(Debug, Clone, Default)]
struct MemoryFile(Arc<Mutex<Content>>);

#[derive(Debug, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// What was done since the last sync.
    pending: Vec<Change>,
    /// Handles of before the loss of power are dead: what still holds them changes nothing.
    life: u64,
    /// Runs before the next write.
    meanwhile: Meanwhile,
    /// How often it was read.
    reads: u64,
}

#[derive(Default)]
struct Meanwhile(Option<Box<dyn FnOnce() + Send>>);

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Meanwhile").finish_non_exhaustive()
    }
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Write(offset, data) => {
                if bytes.len() < offset + data.len() {
                    bytes.resize(offset + data.len(), 0);
                }
                bytes[*offset..offset + data.len()].copy_from_slice(data);
            }
            Change::Length(len) => bytes.resize(*len, 0),
        }
    }
}

#[derive(Debug)]
struct Handle {
    file: MemoryFile,
    life: u64,
}

impl MemoryDisk {
    /// Loses power: of what was not synced, `survives` says for each change in turn whether it remains.
    pub(in crate::machine) fn lose_power(&self, mut survives: impl FnMut() -> bool) {
        let mut names = self.0.lock().unwrap();
        names.now = names.durable.clone();
        for file in names.now.values() {
            let mut content = file.0.lock().unwrap();
            let mut bytes = content.durable.clone();
            for change in std::mem::take(&mut content.pending) {
                if survives() {
                    change.apply(&mut bytes);
                }
            }
            content.durable = bytes.clone();
            content.now = bytes;
            content.life += 1;
        }
    }

    /// Does something when the file is written to next, before that.
    pub(in crate::machine) fn meanwhile(&self, path: &Path, act: impl FnOnce() + Send + 'static) {
        let names = self.0.lock().unwrap();
        names.now[path].0.lock().unwrap().meanwhile = Meanwhile(Some(Box::new(act)));
    }

    /// Changes bytes of a file behind everyone's back.
    pub(super) fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let names = self.0.lock().unwrap();
        let mut content = names.now[path].0.lock().unwrap();
        change(&mut content.now);
        content.durable = content.now.clone();
        content.pending.clear();
    }

    /// Says from here on that so many bytes are free.
    pub(super) fn say_free(&self, bytes: u64) {
        self.0.lock().unwrap().free = Some(bytes);
    }

    /// How often a file was read.
    pub(super) fn reads(&self, path: &Path) -> u64 {
        let names = self.0.lock().unwrap();
        names.now[path].0.lock().unwrap().reads
    }

    pub(super) fn names(&self) -> Vec<String> {
        let names = self.0.lock().unwrap();
        names.now.keys().map(|path| path.display().to_string()).collect()
    }
}

impl Disk for MemoryDisk {
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn File>> {
        let mut names = self.0.lock().unwrap();
        let file = match names.now.get(path) {
            Some(file) => file.clone(),
            None if create => names.now.entry(path.to_owned()).or_default().clone(),
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        let life = file.0.lock().unwrap().life;
        Ok(Arc::new(Handle { file, life }))
    }

    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.0.lock().unwrap().now.contains_key(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let names = self.0.lock().unwrap();
        Ok(names
            .now
            .keys()
            .filter(|p| p.parent() == Some(dir))
            .cloned()
            .collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut names = self.0.lock().unwrap();
        let file = names.now.remove(from).ok_or(io::ErrorKind::NotFound)?;
        names.now.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let removed = self.0.lock().unwrap().now.remove(path);
        removed.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        let mut names = self.0.lock().unwrap();
        names.durable = names.now.clone();
        Ok(())
    }

    fn free_bytes(&self, _: &Path) -> io::Result<Option<u64>> {
        Ok(self.0.lock().unwrap().free)
    }

    fn lock(&self, _: &Path) -> io::Result<Box<dyn LockGuard>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Handle {
    fn content<T>(&self, use_it: impl FnOnce(&mut Content) -> io::Result<T>) -> io::Result<T> {
        let mut content = self.file.0.lock().unwrap();
        if content.life != self.life {
            return Err(io::Error::other("power was lost"));
        }
        use_it(&mut content)
    }

    fn change(&self, change: Change) -> io::Result<()> {
        self.content(|content| {
            change.apply(&mut content.now);
            content.pending.push(change);
            Ok(())
        })
    }
}

impl File for Handle {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.content(|content| {
            content.reads += 1;
            let offset = usize::try_from(offset).unwrap();
            let bytes = content.now.get(offset..offset + buf.len());
            buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let meanwhile = self.content(|content| Ok(content.meanwhile.0.take()))?;
        if let Some(act) = meanwhile {
            act();
        }
        self.change(Change::Write(usize::try_from(offset).unwrap(), buf.to_vec()))
    }

    fn len(&self) -> io::Result<u64> {
        self.content(|content| Ok(content.now.len() as u64))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::Length(usize::try_from(len).unwrap()))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.content(|content| {
            content.durable = content.now.clone();
            content.pending.clear();
            Ok(())
        })
    }
}
