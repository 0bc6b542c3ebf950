//! A disk in memory that remembers every operation, and what a crash at any moment could leave of it.
//!
//! For exhaustive tests of small workloads: run one, then walk through its history and open every image. A
//! write is durable after a sync of its file, a name after a sync of its directory; of everything else a
//! crash keeps any subset, and of a write any subset of its sectors. A sector that is overwritten by what it
//! holds keeps it: devices write sectors whole.
//!
//! A sync that fails takes what it was about with it: reads still see it, as from the page cache, and no later
//! sync makes it durable, since its pages count as clean.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::env::{Disk, File, disk::LockGuard};

const SECTOR: u64 = 512;

/// Files by name: what a crash left.
pub(crate) type Image = BTreeMap<PathBuf, Vec<u8>>;

/// Something that happened on a disk, or that a test noted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Write {
        file: usize,
        offset: u64,
        bytes: Vec<u8>,
    },
    SetLen {
        file: usize,
        len: u64,
    },
    Sync {
        file: usize,
    },
    /// What was written since the last sync is in the page cache only, and stays there.
    SyncFailed {
        file: usize,
    },
    Create {
        path: PathBuf,
        file: usize,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove {
        path: PathBuf,
    },
    SyncDir {
        dir: PathBuf,
    },
    /// Whatever the test wants to remember in the order of events.
    Note(Note),
}

/// A test's note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Note {
    /// The first so many steps of the workload were asked for.
    Sent(usize),
    /// They were answered as durable.
    Acknowledged(usize),
}

/// Which operations fail.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Failures {
    /// Writes from this one on, counted from 0.
    pub writes_from: Option<u64>,
    /// Syncs from this one on.
    pub syncs_from: Option<u64>,
}

/// See the module. A clone is the same disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct CrashDisk {
    state: Arc<Mutex<State>>,
    gate: Arc<Gate>,
}

/// Where syncs wait while somebody holds them.
#[derive(Debug, Default)]
struct Gate {
    held: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn held(&self) -> MutexGuard<'_, bool> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self) {
        let mut held = self.held();
        while *held {
            held = self.opened.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// No sync returns until this is dropped: a disk that stalls.
#[derive(Debug)]
#[must_use]
pub(crate) struct SyncsHeld(Arc<Gate>);

impl Drop for SyncsHeld {
    fn drop(&mut self) {
        *self.0.held() = false;
        self.0.opened.notify_all();
    }
}

#[derive(Debug, Default)]
struct State {
    files: Vec<Vec<u8>>,
    names: BTreeMap<PathBuf, usize>,
    history: Vec<Event>,
    failures: Failures,
    writes: u64,
    syncs: u64,
}

#[derive(Debug)]
struct CrashFile {
    disk: CrashDisk,
    file: usize,
}

#[derive(Debug)]
struct NoLock;

impl LockGuard for NoLock {}

impl CrashDisk {
    /// A disk on which a crash left `image`; its history begins here.
    pub fn from_image(image: &Image) -> Self {
        let mut state = State::default();
        for (path, bytes) in image {
            state.names.insert(path.clone(), state.files.len());
            state.files.push(bytes.clone());
        }
        Self {
            state: Arc::new(Mutex::new(state)),
            gate: Arc::default(),
        }
    }

    /// What is there now, durable or not.
    pub fn image(&self) -> Image {
        let state = self.state();
        let named = state.names.iter();
        named
            .map(|(path, file)| (path.clone(), state.files[*file].clone()))
            .collect()
    }

    pub fn history(&self) -> Vec<Event> {
        self.state().history.clone()
    }

    pub fn note(&self, note: Note) {
        self.state().history.push(Event::Note(note));
    }

    /// From now on these operations fail; the counts start anew.
    pub fn fail(&self, failures: Failures) {
        let mut state = self.state();
        state.failures = failures;
        state.writes = 0;
        state.syncs = 0;
    }

    /// Holds every sync from now on.
    pub fn hold_syncs(&self) -> SyncsHeld {
        *self.gate.held() = true;
        SyncsHeld(Arc::clone(&self.gate))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for CrashDisk {
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn File>> {
        let mut state = self.state();
        let file = match state.names.get(path) {
            Some(file) => *file,
            None if create => {
                let file = state.files.len();
                state.files.push(Vec::new());
                state.names.insert(path.to_owned(), file);
                let path = path.to_owned();
                state.history.push(Event::Create { path, file });
                file
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(CrashFile {
            disk: self.clone(),
            file,
        }))
    }

    fn create_dir_all(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.state().names.keys().any(|name| name.starts_with(path)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let state = self.state();
        Ok(state
            .names
            .keys()
            .filter(|name| name.parent() == Some(dir))
            .cloned()
            .collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), file);
        state.history.push(Event::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
        });
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        state.history.push(Event::Remove {
            path: path.to_owned(),
        });
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.state().history.push(Event::SyncDir { dir: dir.to_owned() });
        Ok(())
    }

    fn lock(&self, _path: &Path) -> io::Result<Box<dyn LockGuard>> {
        Ok(Box::new(NoLock))
    }
}

impl File for CrashFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.state();
        let from = offset as usize;
        let bytes = state.files[self.file]
            .get(from..from + buf.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let count = state.writes;
        state.writes += 1;
        if state.failures.writes_from.is_some_and(|from| count >= from) {
            return Err(io::Error::other("the disk refused to write"));
        }
        write(&mut state.files[self.file], offset, buf);
        state.history.push(Event::Write {
            file: self.file,
            offset,
            bytes: buf.to_vec(),
        });
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().files[self.file].len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.files[self.file].resize(len as usize, 0);
        state.history.push(Event::SetLen { file: self.file, len });
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.gate.pass();
        let mut state = self.disk.state();
        let count = state.syncs;
        state.syncs += 1;
        if state.failures.syncs_from.is_some_and(|from| count >= from) {
            state.history.push(Event::SyncFailed { file: self.file });
            return Err(io::Error::other("the disk refused to sync"));
        }
        state.history.push(Event::Sync { file: self.file });
        Ok(())
    }
}

fn write(content: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let end = offset as usize + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset as usize..end].copy_from_slice(bytes);
}

/// A moment in a disk's history.
#[derive(Debug, Default, Clone)]
pub(crate) struct Moment {
    /// Content by file, as far as it is durable.
    durable: Vec<Vec<u8>>,
    names: BTreeMap<PathBuf, usize>,
    pending: Vec<Event>,
    /// The newest notes.
    pub sent: usize,
    pub acknowledged: usize,
    random: u64,
}

/// What becomes of a pending operation.
enum Fate {
    Lost,
    Kept,
    /// Of a write, the sectors for which this holds; the others hold this.
    Torn(Vec<bool>, Fill),
}

/// What a lost sector holds.
#[derive(Debug, Clone, Copy)]
enum Fill {
    Old,
    Zeros,
    Garbage,
}

/// How thoroughly images are enumerated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// None, all, each single operation, each prefix, each complement, and sector subsets.
    Full,
    /// None, all, and each prefix.
    Prefixes,
}

impl Moment {
    /// The moment at which `image` is found on a disk, and nothing was done to it.
    pub fn of_image(image: &Image) -> Self {
        let mut moment = Self::default();
        for (path, bytes) in image {
            moment.names.insert(path.clone(), moment.durable.len());
            moment.durable.push(bytes.clone());
        }
        moment
    }

    /// Goes on by one event.
    pub fn step(&mut self, event: &Event) {
        match event {
            Event::Note(Note::Sent(steps)) => self.sent = *steps,
            Event::Note(Note::Acknowledged(steps)) => self.acknowledged = *steps,
            Event::Sync { file } => {
                let (synced, pending): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending)
                    .into_iter()
                    .partition(|event| event.file() == Some(*file));
                self.pending = pending;
                for event in synced {
                    event.apply(&mut self.durable, &mut BTreeMap::new());
                }
            }
            Event::SyncFailed { file } => self.pending.retain(|event| event.file() != Some(*file)),
            Event::SyncDir { dir } => {
                let (synced, pending): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending)
                    .into_iter()
                    .partition(|event| event.dir() == Some(dir));
                self.pending = pending;
                for event in synced {
                    event.apply(&mut self.durable, &mut self.names);
                }
            }
            operation => {
                if let Event::Create { file, .. } = operation
                    && self.durable.len() <= *file
                {
                    self.durable.resize(*file + 1, Vec::new());
                }
                self.pending.push(operation.clone());
            }
        }
    }

    /// Shows every image that a crash at this moment could leave, with a word on which it is.
    pub fn images(&mut self, depth: Depth, show: &mut dyn FnMut(&str, &Image)) {
        let count = self.pending.len();
        show("nothing pending survives", &self.image(|_| Fate::Lost));
        if count == 0 {
            return;
        }
        show("all pending survives", &self.image(|_| Fate::Kept));
        let keep = |kept: bool| if kept { Fate::Kept } else { Fate::Lost };
        for at in 1..count {
            show(&format!("the first {at} survive"), &self.image(|i| keep(i < at)));
        }
        if depth == Depth::Prefixes {
            return;
        }
        for at in 0..count {
            show(&format!("only {at} survives"), &self.image(|i| keep(i == at)));
            show(&format!("all but {at} survive"), &self.image(|i| keep(i != at)));
            let Event::Write { offset, bytes, .. } = &self.pending[at] else {
                continue;
            };
            let sectors = sectors(*offset, bytes.len()).count();
            for subset in self.subsets(sectors) {
                for fill in [Fill::Old, Fill::Zeros, Fill::Garbage] {
                    let torn = |i| {
                        if i == at {
                            Fate::Torn(subset.clone(), fill)
                        } else {
                            Fate::Kept
                        }
                    };
                    let what = format!("{at} torn, lost sectors hold {fill:?}, kept are {subset:?}");
                    show(&what, &self.image(torn));
                }
            }
        }
    }

    /// All subsets of so many sectors, or a selection of them if there are many. Without none and all.
    fn subsets(&mut self, sectors: usize) -> Vec<Vec<bool>> {
        if sectors <= 4 {
            let masks = 1..(1_u32 << sectors) - 1;
            return masks
                .map(|mask| (0..sectors).map(|i| mask & (1 << i) != 0).collect())
                .collect();
        }
        let mut subsets: Vec<Vec<bool>> = Vec::new();
        for at in [0, 1, sectors / 2, sectors - 1] {
            subsets.push((0..sectors).map(|i| i != at).collect());
            subsets.push((0..sectors).map(|i| i == at).collect());
        }
        for _ in 0..4 {
            subsets.push((0..sectors).map(|_| self.random() & 1 == 0).collect());
        }
        subsets
    }

    /// A fixed sequence: a failure is found again.
    fn random(&mut self) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.random >> 33
    }

    fn image(&self, fate: impl Fn(usize) -> Fate) -> Image {
        let mut contents = self.durable.clone();
        let mut names = self.names.clone();
        for (at, event) in self.pending.iter().enumerate() {
            match fate(at) {
                Fate::Lost => {}
                Fate::Kept => event.apply(&mut contents, &mut names),
                Fate::Torn(kept, fill) => {
                    let Event::Write { file, offset, bytes } = event else {
                        continue;
                    };
                    for ((from, to), kept) in sectors(*offset, bytes.len()).zip(kept) {
                        let at = *offset + from as u64;
                        match (kept, fill) {
                            (true, _) => write(&mut contents[*file], at, &bytes[from..to]),
                            (false, Fill::Old) => {}
                            (false, _) if holds(&contents[*file], at, &bytes[from..to]) => {}
                            (false, fill) => spoil(&mut contents[*file], at, fill),
                        }
                    }
                }
            }
        }
        names
            .into_iter()
            .map(|(path, file)| (path, contents[file].clone()))
            .collect()
    }
}

fn holds(content: &[u8], offset: u64, bytes: &[u8]) -> bool {
    let from = offset as usize;
    content.get(from..from + bytes.len()) == Some(bytes)
}

/// Spoils the whole sector at `offset`: what stood in it beside the lost bytes goes with them.
fn spoil(content: &mut [u8], offset: u64, fill: Fill) {
    let from = (offset / SECTOR * SECTOR) as usize;
    let to = content.len().min(from + SECTOR as usize);
    for (at, byte) in content.iter_mut().enumerate().take(to).skip(from) {
        match fill {
            Fill::Old => {}
            Fill::Zeros => *byte = 0,
            Fill::Garbage => *byte = (at * 31 + 7) as u8,
        }
    }
}

/// The parts of a write that lie in one sector each.
fn sectors(offset: u64, len: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        if from >= len {
            return None;
        }
        let left_in_sector = SECTOR - (offset + from as u64) % SECTOR;
        let to = len.min(from + left_in_sector as usize);
        let part = (from, to);
        from = to;
        Some(part)
    })
}

impl Event {
    fn file(&self) -> Option<usize> {
        match self {
            Event::Write { file, .. } | Event::SetLen { file, .. } => Some(*file),
            _ => None,
        }
    }

    fn dir(&self) -> Option<&Path> {
        match self {
            Event::Create { path, .. } | Event::Remove { path } => path.parent(),
            Event::Rename { to, .. } => to.parent(),
            _ => None,
        }
    }

    fn apply(&self, contents: &mut [Vec<u8>], names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Event::Write { file, offset, bytes } => write(&mut contents[*file], *offset, bytes),
            Event::SetLen { file, len } => contents[*file].resize(*len as usize, 0),
            Event::Create { path, file } => {
                names.insert(path.clone(), *file);
            }
            Event::Rename { from, to } => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            Event::Remove { path } => {
                names.remove(path);
            }
            Event::Sync { .. } | Event::SyncFailed { .. } | Event::SyncDir { .. } | Event::Note(_) => {}
        }
    }
}
