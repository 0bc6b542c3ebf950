//! A disk that keeps after a crash only what it had promised, and of the rest what the seed says.
//!
//! Reads see every write at once. A write is durable when a sync that began after it has completed; the
//! name of a file, when its directory was synced. Of all other writes a power loss keeps any subset, sector
//! by sector; lengths and names are kept or lost apart from the bytes.
//!
//! Time: an owner does its work at once and its disk time passes afterwards. Each operation therefore bears
//! the moment at which it is issued in that time: a host that dies before it never issued it, and a sync has
//! completed only when its time has passed.
//!
//! Always: what a completed sync covered is never lost; what was never written is never found (but in bytes
//! that a lost write covered, where the profile says so); a handle from before a crash does nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_kv::env::{self, disk::LockGuard};
use xxhash_rust::xxh3::xxh3_64;

use super::rng::Rng;
use super::world::{Effect, Event, HostId, World, lock};

mod image;
mod power;
#[cfg(test)]
mod tests;

pub use image::{DiskImage, Survivors};
pub use power::PowerLoss;

/// What a disk writes or loses as one.
pub const SECTOR: u64 = 512;

/// How fast a disk is, and how reliable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskProfile {
    /// The least time of a sync.
    pub sync_min: Duration,
    /// The usual most of a sync.
    pub sync_max: Duration,
    /// In how many thousandths of the syncs the disk stalls.
    pub stall_permille: u64,
    /// How long a stall lasts at most.
    pub stall_max: Duration,
    /// In how many millionths of the writes the disk answers with an error.
    pub write_error_per_million: u64,
    /// In how many millionths of the syncs the disk answers with an error.
    pub sync_error_per_million: u64,
    /// How many bytes all files may have together.
    pub capacity: u64,
    /// Bytes that a lost write covered may hold anything in files whose path contains one of these.
    pub garbage_in: Vec<&'static str>,
}

impl Default for DiskProfile {
    /// A decent disk without errors.
    fn default() -> Self {
        DiskProfile {
            sync_min: Duration::from_micros(200),
            sync_max: Duration::from_millis(3),
            stall_permille: 0,
            stall_max: Duration::from_secs(2),
            write_error_per_million: 0,
            sync_error_per_million: 0,
            capacity: u64::MAX,
            garbage_in: Vec::new(),
        }
    }
}

/// What a disk did and suffered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Writes of bytes.
    pub writes: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Syncs of files and directories.
    pub syncs: u64,
    /// Times the power was lost.
    pub power_losses: u64,
    /// Times it was lost while something was not durable yet.
    pub power_losses_with_pending: u64,
    /// Times it took bytes of writes.
    pub power_losses_with_lost_bytes: u64,
    /// Bytes of writes that power losses took.
    pub bytes_lost: u64,
    /// Writes of which a power loss took only a part.
    pub writes_torn: u64,
    /// Changes of length that power losses took.
    pub lengths_lost: u64,
    /// Changes of names that power losses took.
    pub names_lost: u64,
    /// Errors that the disk answered with.
    pub errors: u64,
}

impl std::ops::Add for DiskStats {
    type Output = DiskStats;
    fn add(self, other: DiskStats) -> DiskStats {
        DiskStats {
            writes: self.writes + other.writes,
            bytes_written: self.bytes_written + other.bytes_written,
            syncs: self.syncs + other.syncs,
            power_losses: self.power_losses + other.power_losses,
            power_losses_with_pending: self.power_losses_with_pending + other.power_losses_with_pending,
            power_losses_with_lost_bytes: self.power_losses_with_lost_bytes
                + other.power_losses_with_lost_bytes,
            bytes_lost: self.bytes_lost + other.bytes_lost,
            writes_torn: self.writes_torn + other.writes_torn,
            lengths_lost: self.lengths_lost + other.lengths_lost,
            names_lost: self.names_lost + other.names_lost,
            errors: self.errors + other.errors,
        }
    }
}

/// One process's view of a host's disk. A clone is the same view.
#[derive(Debug, Clone)]
pub struct SimDisk {
    shared: Arc<Shared>,
    generation: u64,
}

#[derive(Debug)]
struct Shared {
    host: HostId,
    world: Arc<World>,
    state: Mutex<State>,
}

#[derive(Debug, Clone)]
struct State {
    /// Rises with each crash: handles of an earlier one are dead.
    generation: u64,
    names: BTreeMap<PathBuf, Entry>,
    durable_names: BTreeMap<PathBuf, Entry>,
    pending_names: Vec<Pending<NameOp>>,
    files: BTreeMap<u64, FileState>,
    next_file: u64,
    /// Numbers all operations of the disk, in the order in which they were issued.
    next_op: u64,
    locks: BTreeSet<PathBuf>,
    /// Nothing becomes durable before this moment.
    settles_at: u64,
    /// The calls so far that changed something or made it durable.
    calls: u64,
    /// After so many more the disk answers nothing but errors.
    calls_left: Option<u64>,
    /// After so many more syncs of files one fails.
    syncs_left: Option<u64>,
    profile: DiskProfile,
    random: Rng,
    stats: DiskStats,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Dir,
    File(u64),
}

#[derive(Debug, Clone, Default)]
struct FileState {
    /// For traces.
    path: PathBuf,
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending<FileOp>>,
}

impl FileState {
    /// From now on reads find what is durable, changed by what is pending, and nothing else.
    fn reread(&mut self) {
        self.live.clone_from(&self.durable);
        for pending in &self.pending {
            pending.op.apply(&mut self.live);
        }
    }
}

/// An operation that is not known to be durable.
#[derive(Debug, Clone)]
struct Pending<T> {
    number: u64,
    /// When it was issued.
    at: u64,
    /// When the sync that covers it completes.
    durable_at: Option<u64>,
    op: T,
}

#[derive(Debug, Clone)]
enum FileOp {
    Write { offset: u64, bytes: Arc<[u8]> },
    SetLen(u64),
}

#[derive(Debug, Clone)]
enum NameOp {
    Link {
        path: PathBuf,
        entry: Entry,
    },
    Unlink {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
        entry: Entry,
    },
}

impl FileOp {
    /// Does it to `bytes`. A write comes behind the growth that made room for it. Where a failed sync has lost that
    /// growth it grows the file itself, as fdatasync must: a length without which what it wrote cannot be read is
    /// part of what it makes durable.
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            FileOp::SetLen(len) => bytes.resize(*len as usize, 0),
            FileOp::Write { offset, bytes: new } => {
                let start = *offset as usize;
                let end = start + new.len();
                bytes.resize(bytes.len().max(end), 0);
                bytes[start..end].copy_from_slice(new);
            }
        }
    }

    /// What of it lies within a file of `len` bytes.
    fn within(self, len: usize) -> Option<Self> {
        let FileOp::Write { offset, bytes } = self else {
            return Some(self);
        };
        let room = len.saturating_sub(offset as usize);
        let bytes = if bytes.len() > room {
            bytes[..room].into()
        } else {
            bytes
        };
        (!bytes.is_empty()).then_some(FileOp::Write { offset, bytes })
    }
}

impl NameOp {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Entry>) {
        match self {
            NameOp::Link { path, entry } => {
                names.insert(path.clone(), *entry);
            }
            NameOp::Unlink { path } => {
                names.remove(path);
            }
            NameOp::Rename { from, to, entry } => {
                if names.get(from) == Some(entry) {
                    names.remove(from);
                }
                names.insert(to.clone(), *entry);
            }
        }
    }

    /// Whether syncing `dir` makes it durable.
    fn is_in(&self, dir: &Path) -> bool {
        match self {
            NameOp::Link { path, .. } | NameOp::Unlink { path } => path.parent() == Some(dir),
            NameOp::Rename { from, to, .. } => from.parent() == Some(dir) || to.parent() == Some(dir),
        }
    }
}

fn is_root(path: &Path) -> bool {
    path.as_os_str().is_empty() || path.parent().is_none()
}

fn off() -> io::Error {
    io::Error::other("the host is off")
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("{} does not exist", path.display()),
    )
}

impl SimDisk {
    pub(super) fn new(host: HostId, world: Arc<World>, random: Rng) -> Self {
        let state = State {
            generation: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            files: BTreeMap::new(),
            next_file: 0,
            next_op: 0,
            locks: BTreeSet::new(),
            settles_at: u64::MAX,
            calls: 0,
            calls_left: None,
            syncs_left: None,
            profile: DiskProfile::default(),
            random,
            stats: DiskStats::default(),
        };
        Self::with_state(host, world, state)
    }

    /// A disk outside of any simulation, empty.
    pub fn standalone(seed: u64) -> Self {
        Self::new(HostId::OUTSIDE, World::new(), Rng::new(seed))
    }

    fn with_state(host: HostId, world: Arc<World>, state: State) -> Self {
        let generation = state.generation;
        let shared = Arc::new(Shared {
            host,
            world,
            state: Mutex::new(state),
        });
        SimDisk { shared, generation }
    }

    /// The same disk as a process sees it that starts now.
    pub fn reopened(&self) -> Self {
        let generation = lock(&self.shared.state).generation;
        SimDisk {
            shared: Arc::clone(&self.shared),
            generation,
        }
    }

    /// Makes it another disk from now on.
    pub fn set_profile(&self, profile: DiskProfile) {
        lock(&self.shared.state).profile = profile;
    }

    /// What it is like now.
    pub fn profile(&self) -> DiskProfile {
        lock(&self.shared.state).profile.clone()
    }

    /// Loses everything, as a disk that is exchanged: whoever starts on it finds nothing.
    pub fn wipe(&self) {
        let mut state = lock(&self.shared.state);
        state.generation += 1;
        state.names.clear();
        state.durable_names.clear();
        state.pending_names.clear();
        state.files.clear();
        state.locks.clear();
        drop(state);
        self.mark("the disk was wiped".to_owned());
    }

    /// What it did and suffered so far.
    pub fn stats(&self) -> DiskStats {
        lock(&self.shared.state).stats
    }

    /// Flips one bit of a file, on the disk itself, as rot does; in a sector with something in it, if there is one. Answers
    /// where, or `None` for an empty or unknown file.
    pub fn flip_bit(&self, path: &Path) -> Option<u64> {
        let mut state = lock(&self.shared.state);
        let state = &mut *state;
        let Some(Entry::File(id)) = state.names.get(path) else {
            return None;
        };
        let file = state.files.get_mut(id)?;
        if file.durable.is_empty() {
            return None;
        }
        let sectors = file.durable.chunks(SECTOR as usize).enumerate();
        let written: Vec<usize> = sectors
            .filter(|(_, sector)| sector.iter().any(|byte| *byte != 0))
            .map(|(number, _)| number * SECTOR as usize)
            .collect();
        let at = match written[..] {
            [] => state.random.index(file.durable.len()),
            _ => {
                let start = *state.random.pick(&written);
                start
                    + state
                        .random
                        .index((file.durable.len() - start).min(SECTOR as usize))
            }
        };
        let bit = 1 << state.random.below(8);
        file.durable[at] ^= bit;
        if let Some(byte) = file.live.get_mut(at) {
            *byte ^= bit;
        }
        self.mark(format!("bit flipped in {} at {at}", path.display()));
        Some(at as u64)
    }

    /// The paths of all files, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        let state = lock(&self.shared.state);
        let files = state.names.iter().filter(|(_, e)| matches!(e, Entry::File(_)));
        files.map(|(path, _)| path.clone()).collect()
    }

    /// The bytes of a file as reads see them.
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let state = lock(&self.shared.state);
        match state.names.get(path) {
            Some(Entry::File(id)) => state.files.get(id).map(|f| f.live.clone()),
            _ => None,
        }
    }

    fn mark(&self, what: String) {
        self.shared.world.record(self.shared.host, Event::Mark(what));
    }

    /// Begins a call that changes something or makes it durable: a crash point of its name, then a look at
    /// whether this view is still alive.
    fn begin(&self, point: &'static str) -> io::Result<std::sync::MutexGuard<'_, State>> {
        // The crash may happen in here, and take the disk's state with it: no lock is held.
        env::crash_point(point)?;
        let mut state = self.look()?;
        if state.calls_left == Some(0) {
            // Whatever was issued so far stands as it is, for an image to be taken of it.
            state.settle(self.shared.world.now_charged());
            state.generation += 1;
            return Err(off());
        }
        state.calls += 1;
        state.calls_left = state.calls_left.map(|left| left - 1);
        Ok(state)
    }

    /// Begins a read.
    fn look(&self) -> io::Result<std::sync::MutexGuard<'_, State>> {
        let mut state = lock(&self.shared.state);
        if state.generation != self.generation {
            return Err(off());
        }
        state.settle(self.shared.world.now());
        Ok(state)
    }

    fn record(&self, op: &'static str, path: &Path, offset: u64, len: u64, data: u64) {
        let event = Event::Disk {
            op,
            path: path.to_string_lossy().into(),
            offset,
            len,
            data,
        };
        self.shared.world.record(self.shared.host, event);
    }

    /// Changes a name, not durably.
    fn change_name(&self, state: &mut State, op: NameOp) {
        op.apply(&mut state.names);
        let number = state.number();
        state.pending_names.push(Pending {
            number,
            at: self.shared.world.now_charged(),
            durable_at: None,
            op,
        });
    }

    /// The time of one sync.
    fn charge_sync(&self, state: &mut State) {
        let profile = &state.profile;
        let mut time = state.random.duration(profile.sync_min, profile.sync_max);
        if state.random.permille(profile.stall_permille) {
            time += state.random.duration(profile.sync_max, profile.stall_max);
        }
        state.stats.syncs += 1;
        self.shared.world.charge(time);
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next_op += 1;
        self.next_op
    }

    /// A sync covers something, which becomes durable at `done` or later.
    fn covered(&mut self, done: u64) {
        self.settles_at = self.settles_at.min(done);
    }

    /// Takes over as durable what completed syncs cover. Every call of the disk asks for it, few find any.
    fn settle(&mut self, now: u64) {
        if now < self.settles_at {
            return;
        }
        let is_durable = |at: Option<u64>| at.is_some_and(|at| at <= now);
        for file in self.files.values_mut() {
            let durable = file
                .pending
                .iter()
                .take_while(|p| is_durable(p.durable_at))
                .count();
            for pending in file.pending.drain(..durable) {
                pending.op.apply(&mut file.durable);
            }
        }
        let durable_names = &mut self.durable_names;
        self.pending_names.retain(|pending| {
            let durable = is_durable(pending.durable_at);
            if durable {
                pending.op.apply(durable_names);
            }
            !durable
        });
        let of_files = self.files.values().flat_map(|file| &file.pending);
        let of_files = of_files.filter_map(|pending| pending.durable_at);
        let of_names = self.pending_names.iter().filter_map(|pending| pending.durable_at);
        self.settles_at = of_files.chain(of_names).min().unwrap_or(u64::MAX);
    }

    fn file(&mut self, id: u64) -> io::Result<&mut FileState> {
        self.files.get_mut(&id).ok_or_else(off)
    }

    fn bytes_used(&self) -> u64 {
        self.files.values().map(|f| f.live.len() as u64).sum()
    }

    fn check_parent(&self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(parent) if !is_root(parent) && self.names.get(parent) != Some(&Entry::Dir) => {
                Err(not_found(parent))
            }
            _ => Ok(()),
        }
    }
}

impl env::Disk for SimDisk {
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn env::File>> {
        let mut state = self.begin("disk.open")?;
        let id = match state.names.get(path) {
            Some(Entry::File(id)) => *id,
            Some(Entry::Dir) => return Err(io::ErrorKind::IsADirectory.into()),
            None if !create => return Err(not_found(path)),
            None => {
                state.check_parent(path)?;
                let id = state.next_file;
                state.next_file += 1;
                let file = FileState {
                    path: path.to_owned(),
                    ..FileState::default()
                };
                state.files.insert(id, file);
                let entry = Entry::File(id);
                let path = path.to_owned();
                self.change_name(&mut state, NameOp::Link { path, entry });
                id
            }
        };
        drop(state);
        self.record("open", path, 0, 0, u64::from(create));
        Ok(Arc::new(SimFile {
            disk: self.clone(),
            path: path.to_owned(),
            id,
        }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.begin("disk.create_dir")?;
        let mut missing: Vec<_> = path
            .ancestors()
            .take_while(|p| !is_root(p) && !state.names.contains_key(*p))
            .collect();
        missing.reverse();
        for dir in missing {
            let (path, entry) = (dir.to_owned(), Entry::Dir);
            self.change_name(&mut state, NameOp::Link { path, entry });
        }
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let state = self.look()?;
        Ok(is_root(path) || state.names.contains_key(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let state = self.look()?;
        if !is_root(dir) && state.names.get(dir) != Some(&Entry::Dir) {
            return Err(not_found(dir));
        }
        let inside = state.names.keys().filter(|p| p.parent() == Some(dir));
        Ok(inside.cloned().collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.begin("disk.rename")?;
        let Some(entry) = state.names.get(from).copied() else {
            return Err(not_found(from));
        };
        state.check_parent(to)?;
        if let Entry::File(id) = entry {
            state.file(id)?.path = to.to_owned();
        }
        let op = NameOp::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
            entry,
        };
        self.change_name(&mut state, op);
        drop(state);
        self.record("rename", to, 0, 0, 0);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.begin("disk.remove")?;
        match state.names.get(path) {
            Some(Entry::File(_)) => {}
            Some(Entry::Dir) => return Err(io::ErrorKind::IsADirectory.into()),
            None => return Err(not_found(path)),
        }
        self.change_name(
            &mut state,
            NameOp::Unlink {
                path: path.to_owned(),
            },
        );
        drop(state);
        self.record("remove", path, 0, 0, 0);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.begin("disk.sync_dir")?;
        if !is_root(dir) && state.names.get(dir) != Some(&Entry::Dir) {
            return Err(not_found(dir));
        }
        self.charge_sync(&mut state);
        let done = self.shared.world.now_charged();
        state.covered(done);
        for pending in &mut state.pending_names {
            if pending.op.is_in(dir) && pending.durable_at.is_none() {
                pending.durable_at = Some(done);
            }
        }
        state.settle(self.shared.world.now());
        drop(state);
        self.record("sync_dir", dir, 0, 0, 0);
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        let mut state = self.begin("disk.lock")?;
        state.check_parent(path)?;
        if !state.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock {
            disk: self.clone(),
            path: path.to_owned(),
        }))
    }
}

#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
    path: PathBuf,
}

impl LockGuard for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = lock(&self.disk.shared.state);
        // A crash has released it already, and another may hold it.
        if state.generation == self.disk.generation {
            state.locks.remove(&self.path);
        }
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    id: u64,
}

impl SimFile {
    fn pend(&self, state: &mut State, op: FileOp) -> io::Result<()> {
        let number = state.number();
        let at = self.disk.shared.world.now_charged();
        let file = state.file(self.id)?;
        op.apply(&mut file.live);
        file.pending.push(Pending {
            number,
            at,
            durable_at: None,
            op,
        });
        Ok(())
    }

    fn grow(&self, state: &mut State, len: u64) -> io::Result<()> {
        let old = state.file(self.id)?.live.len() as u64;
        if len > old && state.bytes_used() + (len - old) > state.profile.capacity {
            state.stats.errors += 1;
            self.disk
                .shared
                .world
                .notice(self.disk.shared.host, Effect::DiskFull);
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the simulated disk is full",
            ));
        }
        self.pend(state, FileOp::SetLen(len))
    }
}

impl env::File for SimFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.look()?;
        let file = state.file(self.id)?;
        if buf.is_empty() {
            // As systems do, wherever the file ends.
            return Ok(());
        }
        let end = offset.checked_add(buf.len() as u64);
        match end.and_then(|end| file.live.get(offset as usize..end as usize)) {
            Some(bytes) => buf.copy_from_slice(bytes),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.begin("disk.write")?;
        if state.random.below(1_000_000) < state.profile.write_error_per_million {
            state.stats.errors += 1;
            return Err(io::Error::other("the simulated disk failed a write"));
        }
        let end = offset + buf.len() as u64;
        if end > state.file(self.id)?.live.len() as u64 {
            self.grow(&mut state, end)?;
        }
        let bytes = buf.into();
        self.pend(&mut state, FileOp::Write { offset, bytes })?;
        state.stats.writes += 1;
        state.stats.bytes_written += buf.len() as u64;
        drop(state);
        self.disk
            .record("write", &self.path, offset, buf.len() as u64, xxh3_64(buf));
        // A copy into the page cache: 2 µs, and 1 GiB a second.
        self.disk
            .shared
            .world
            .charge(Duration::from_nanos(2_000 + buf.len() as u64));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.look()?.file(self.id)?.live.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.begin("disk.set_len")?;
        self.grow(&mut state, len)?;
        drop(state);
        self.disk.record("set_len", &self.path, len, 0, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let injected = self.disk.begin("disk.sync").map(|_| ());
        let mut state = lock(&self.disk.shared.state);
        if state.generation != self.disk.generation {
            return Err(off());
        }
        let issued = self.disk.shared.world.now_charged();
        self.disk.charge_sync(&mut state);
        let drawn = state.random.below(1_000_000) < state.profile.sync_error_per_million;
        let failed = drawn || state.syncs_left == Some(0);
        state.syncs_left = state.syncs_left.and_then(|left| left.checked_sub(1));
        if failed || injected.is_err() {
            // As Linux does it: what could not be written counts as clean from now on, and no later sync
            // makes it durable.
            state.stats.errors += 1;
            let ended = self.disk.shared.world.now_charged();
            state.lose_pending_of(self.id, issued, ended);
            drop(state);
            self.disk.record("sync failed", &self.path, 0, 0, 0);
            return injected.and(Err(io::Error::other("the simulated disk failed a sync")));
        }
        let done = self.disk.shared.world.now_charged();
        state.covered(done);
        for pending in &mut state.file(self.id)?.pending {
            let sooner = pending.durable_at.map_or(done, |before| before.min(done));
            pending.durable_at = Some(sooner.max(pending.at));
        }
        state.settle(self.disk.shared.world.now());
        drop(state);
        self.disk.record("sync", &self.path, 0, 0, 0);
        Ok(())
    }

    /// What a failed sync lost is then found to be lost.
    fn drop_cached(&self) {
        let Ok(mut state) = self.disk.look() else {
            return;
        };
        let Ok(file) = state.file(self.id) else {
            return;
        };
        let length = file.live.len();
        file.reread();
        // The length is no page.
        file.live.resize(length, 0);
    }
}
