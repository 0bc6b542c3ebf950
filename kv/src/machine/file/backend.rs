//! redb's storage, over a file of the disk seam.
//!
//! redb writes a page at a time, in no order. Here pages gather in memory until it asks for durability, and then leave
//! sorted, neighbours in one write: the system takes a long write in a fraction of the time of its pages. The log may be
//! on the same device, where its syncs wait behind what leaves before one of ours, so there is one for every few MiB.
//!
//! Between two syncs of redb the order of its writes means nothing to a crash, so that they may leave in any. The first
//! page, which tells where all others begin, leaves last all the same: a crash before that finds the old state without a
//! search for it.
//!
//! What comes back from the file is compared with what left for it ([`sums`]), also by an earlier process ([`ledger`]): rot
//! is found when it is read, or by [`Backend::scrub`], and never handed out.
//!
//! Always: redb sees the length and bytes that it wrote, or an error; what it wrote is durable when a sync returns,
//! unless the file was replaced by then; after [`Backend::retire`] nothing is written to the file any more, and redb
//! does not know; no lock that a reader takes is held over I/O, but by one that found a page to be wrong.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use self::kept::Kept;
use self::ledger::{HEADER_BYTES, Ledger, page_number};
use self::pages::{Coverage, Pages, Run};
use self::sums::{Mismatch, PAGE_BYTES, Sum, Sums, sums_of};
use crate::env::{self, File};
use crate::machine::rows::error::StateFile;
use crate::planted::{self, Bug};
use crate::scrub::Scrubbed;

mod kept;
mod ledger;
mod pages;
mod sums;

/// What gathers at most, but for one page, before it leaves without being asked for.
pub(crate) const GATHERED_BYTES_MAX: usize = 16 << 20;
/// Neighbours leave in one write up to this length.
const WRITE_BYTES_MAX: usize = 1 << 20;
/// So much leaves before it is synced.
const UNSYNCED_BYTES_MAX: usize = 4 << 20;

/// The file as redb sees it.
#[derive(Debug)]
pub(in crate::machine) struct Backend {
    file: Arc<dyn File>,
    name: StateFile,
    retired: AtomicBool,
    given_up: AtomicBool,
    gathered: Mutex<Gathered>,
    /// Held by who brings pages to the file, so that those that came first leave first, and by who cuts it.
    turn: Mutex<()>,
    sums: Sums,
    /// What tells the next process of the sums. Taken by who has the turn.
    ledger: Mutex<Option<Ledger>>,
    /// What redb keeps of the file in memory. A file no longer than that is held there, and not by the system too.
    cache_bytes: u64,
}

/// What redb wrote and the file has not got.
#[derive(Debug, Default)]
struct Gathered {
    waiting: Pages,
    /// Older ones, on their way to the file. When that fails they stay, since the file cannot answer for them, and no
    /// others follow.
    leaving: Arc<Pages>,
    failed: bool,
    /// All of that, and what came since, once the file was found to be replaced.
    kept: Option<Kept>,
}

impl Gathered {
    /// What is here of a range: newer pages hide older ones.
    fn find(&self, offset: u64, length: usize) -> Coverage<'_> {
        match self.waiting.find(offset, length) {
            Coverage::Nothing => self.leaving.find(offset, length),
            found => found,
        }
    }

    /// Where in the file the last page ends.
    fn end(&self) -> u64 {
        self.waiting.end().max(self.leaving.end())
    }
}

/// Where pages of a file read as other than was written, as far as the two files beside it tell of them; whether a page is in
/// use or was. Reads the file to its end, and changes nothing. Nothing is found where they do not tell of the file as it is.
pub(in crate::machine) fn unlike_what_was_written(
    file: &dyn File,
    beside: &[Arc<dyn File>; 2],
) -> io::Result<Vec<u64>> {
    const STEP_BYTES: u64 = 1 << 20;
    let len = file.len()?;
    let mut header = vec![0; len.min(HEADER_BYTES as u64) as usize];
    file.read_from_disk_at(&mut header, 0)?;
    let Some((_, _, mut all)) = Ledger::told(beside, &header)? else {
        return Ok(Vec::new());
    };
    all.truncate((len / PAGE_BYTES as u64) as usize);
    let sums = Sums::of(all);
    let (mut unlike, mut offset) = (Vec::new(), 0);
    while offset < len {
        let mut step = vec![0; (len - offset).min(STEP_BYTES) as usize];
        file.read_from_disk_at(&mut step, offset)?;
        let pages = (offset..).step_by(PAGE_BYTES).zip(step.chunks(PAGE_BYTES));
        let wrong = pages.filter(|(at, page)| sums.compare(*at, page).is_err());
        unlike.extend(wrong.map(|(at, _)| at));
        offset += step.len() as u64;
    }
    Ok(unlike)
}

/// What pages read as from now on, by number.
type NewSums = Vec<(usize, Option<Sum>)>;

impl Backend {
    /// The file, of which redb keeps so many bytes in memory.
    pub(in crate::machine) fn new(file: Arc<dyn File>, name: StateFile, cache_bytes: u64) -> Self {
        Self {
            file,
            name,
            retired: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            gathered: Mutex::default(),
            turn: Mutex::default(),
            sums: Sums::default(),
            ledger: Mutex::default(),
            cache_bytes,
        }
    }

    /// The same for a file that redb is about to make, or to open, with what these two files tell of its pages. Whether they
    /// tell of them: where they do not, all of the file is to be read, and then [`begin_ledger`](Self::begin_ledger).
    pub(in crate::machine) fn with_ledger(mut self, files: [Arc<dyn File>; 2]) -> io::Result<(Self, bool)> {
        let len = self.file.len()?;
        if len == 0 {
            *self.ledger() = Some(Ledger::begin(files, 1, &[], None)?);
            return Ok((self, true));
        }
        let mut header = vec![0; len.min(HEADER_BYTES as u64) as usize];
        self.file.read_exact_at(&mut header, 0)?;
        let Some((ledger, mut all)) = Ledger::open(files, &header)? else {
            return Ok((self, false));
        };
        all.truncate((len / PAGE_BYTES as u64) as usize);
        self.sums = Sums::of(all);
        *self.ledger() = Some(ledger);
        Ok((self, true))
    }

    /// Begins to tell the next process of the sums, from what is known now.
    pub(in crate::machine) fn begin_ledger(&self, files: [Arc<dyn File>; 2]) -> io::Result<()> {
        self.sync_data()?;
        let _turn = self.turn();
        let mut header = vec![0; self.file.len()?.min(HEADER_BYTES as u64) as usize];
        self.file.read_exact_at(&mut header, 0)?;
        let [first, second] = files;
        second.set_len(0)?;
        *self.ledger() = Some(Ledger::begin(
            [second, first],
            1,
            &self.sums.all(),
            ledger::sum_of(&header),
        )?);
        Ok(())
    }

    fn ledger(&self) -> MutexGuard<'_, Option<Ledger>> {
        // Whoever panicked here has failed to write to the file too, and nothing is written to it any more.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it is called in messages.
    pub(in crate::machine) fn name(&self) -> &StateFile {
        &self.name
    }

    /// Ends all writing to a file that another has replaced. What redb still writes is kept in memory: a write that failed
    /// would end the reads of whoever pinned the old state.
    pub(in crate::machine) fn retire(&self) {
        // Nothing else is published by the flag, and a late write to a replaced file harms nobody.
        self.retired.store(true, Ordering::Relaxed);
    }

    /// Ends all writing to a file that nobody reads any more, so that its closing does no I/O and writes nothing to memory
    /// either: redb's writes fail.
    pub(in crate::machine) fn give_up(&self) {
        self.retire();
        self.given_up.store(true, Ordering::Relaxed);
    }

    fn in_use(&self) -> io::Result<()> {
        match self.given_up.load(Ordering::Relaxed) {
            true => Err(io::Error::other("the file was given up")),
            false => Ok(()),
        }
    }

    /// Whether the file was replaced: nothing that is written is of use any more.
    pub(in crate::machine) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        // Whoever panicked here had taken in a page or not.
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings all that waits to the file. Readers find it meanwhile where it is.
    fn write_out(&self) -> io::Result<Left> {
        let _turn = self.turn();
        let pages = {
            let mut gathered = self.gathered();
            if gathered.failed {
                return Err(io::Error::other("an earlier write to this file has failed"));
            }
            if self.is_retired() {
                drop(gathered);
                return self.keep();
            }
            gathered.leaving = Arc::new(std::mem::take(&mut gathered.waiting));
            // A panic on the way leaves it so: what redb writes while it is dropped would follow pages that are missing.
            gathered.failed = true;
            Arc::clone(&gathered.leaving)
        };
        let written = self.write_sorted(&pages);
        let mut gathered = self.gathered();
        match written {
            Ok(Left::ForTheFile) => {
                // Their memory goes with `pages`, after the lock that readers take.
                gathered.leaving = Arc::default();
                gathered.failed = false;
            }
            Ok(Left::Nowhere) => {
                gathered.failed = false;
                drop(gathered);
                return self.keep();
            }
            Err(_) => {}
        }
        written
    }

    fn write_sorted(&self, pages: &Pages) -> io::Result<Left> {
        let runs: Vec<(Run<'_>, NewSums)> = pages
            .runs(WRITE_BYTES_MAX)
            .map(|run| {
                let (mut sums, mut offset) = (Vec::new(), run.offset);
                for page in &run.pages {
                    sums.extend(sums_of(offset, page));
                    offset += page.len() as u64;
                }
                (run, sums)
            })
            .collect();
        self.announce(runs.iter().flat_map(|(_, sums)| sums))?;
        let mut unsynced = 0;
        for (run, sums) in &runs {
            if self.is_retired() {
                return Ok(Left::Nowhere);
            }
            let is_header = run.offset == 0;
            if unsynced >= UNSYNCED_BYTES_MAX || is_header && unsynced > 0 {
                unsynced = 0;
                self.sync()?;
            }
            if is_header && let Some(ledger) = &mut *self.ledger() {
                ledger.header(&run.pages.concat(), || self.sums.all())?;
            }
            self.sums.learn(sums);
            self.file.write_all_vectored_at(&run.pages, run.offset)?;
            unsynced += run.bytes;
        }
        Ok(Left::ForTheFile)
    }

    /// Tells the ledger of pages that are about to leave.
    fn announce<'s>(&self, sums: impl Iterator<Item = &'s (usize, Option<Sum>)>) -> io::Result<()> {
        let Some(ledger) = &mut *self.ledger() else {
            return Ok(());
        };
        let sums = sums.map(|(page, sum)| Ok((page_number(*page)?, *sum)));
        ledger.pages(&sums.collect::<io::Result<Vec<_>>>()?)
    }

    /// Keeps what has not left, as the file was replaced. For who has the turn.
    fn keep(&self) -> io::Result<Left> {
        let file_len = self.file.len()?;
        let mut gathered = self.gathered();
        if gathered.kept.is_none() {
            let mut kept = Kept::beside(file_len);
            let waiting = std::mem::take(&mut gathered.waiting);
            for pages in [&*std::mem::take(&mut gathered.leaving), &waiting] {
                for run in pages.runs(1) {
                    kept.put(run.offset, &run.pages.concat());
                }
            }
            gathered.kept = Some(kept);
        }
        Ok(Left::Nowhere)
    }

    /// Reads what a file seems to hold that was replaced, and of which all is kept.
    fn read_kept(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let of_file = {
            let gathered = self.gathered();
            let kept = gathered.kept.as_ref();
            kept.and_then(|kept| kept.of_file(offset, out.len()))
        };
        let of_file = of_file.ok_or(io::ErrorKind::UnexpectedEof)?;
        let (told, beyond) = out.split_at_mut(of_file);
        beyond.fill(0);
        if !told.is_empty() {
            self.read_file(offset, told)?;
        }
        if let Some(kept) = &self.gathered().kept {
            kept.lay_over(offset, out);
        }
        Ok(())
    }

    /// Reads from the file, and demands what was written there.
    fn read_file(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)?;
        if planted::is(Bug::PageSumNotChecked) || self.sums.check(offset, out).is_ok() {
            return Ok(());
        }
        // What left for the file between the read and its check would look like this.
        let _turn = self.turn();
        self.file.read_exact_at(out, offset)?;
        self.sums
            .check(offset, out)
            .map_err(|mismatch| self.rotten(mismatch))
    }

    fn rotten(&self, mismatch: Mismatch) -> io::Error {
        let Mismatch {
            offset,
            expected,
            found,
        } = mismatch;
        let fault = self.name.rotten(offset, format!(
            "the page of {PAGE_BYTES} bytes here reads as another than was written: checksum {found:016x} and not \
             {expected:016x}"
        ));
        fault.into()
    }

    /// Reads from the disk, and not from the system's memory where that can be told, what of the file lies in the range of
    /// `buf.len()` bytes from `offset` on, and compares it with what was written. `None` for a file that was replaced, or that
    /// could not be written to, which others tell.
    pub(in crate::machine) fn scrub(&self, offset: u64, buf: &mut [u8]) -> io::Result<Option<Scrubbed>> {
        if self.is_retired() {
            return Ok(None);
        }
        let scrubbed = self.within(offset, buf.len())?;
        let wanted = &mut buf[..scrubbed.bytes as usize];
        let read = self.file.read_from_disk_at(wanted, offset);
        if read.is_ok() && (planted::is(Bug::PageSumNotChecked) || self.sums.compare(offset, wanted).is_ok())
        {
            return Ok(Some(scrubbed));
        }
        // It may have been written to, or cut, meanwhile: not so with our turn.
        let _turn = self.turn();
        if self.gathered().failed || self.is_retired() {
            return Ok(None);
        }
        let scrubbed = self.within(offset, buf.len())?;
        if scrubbed.bytes == 0 {
            // It was cut to less since the step before: the pass is at its end.
            return Ok(Some(scrubbed));
        }
        let wanted = &mut buf[..scrubbed.bytes as usize];
        self.file.read_from_disk_at(wanted, offset)?;
        self.sums
            .compare(offset, wanted)
            .map_err(|mismatch| self.rotten(mismatch))?;
        Ok(Some(scrubbed))
    }

    fn within(&self, offset: u64, wanted: usize) -> io::Result<Scrubbed> {
        let beyond = self.file.len()?.saturating_sub(offset);
        let bytes = beyond.min(wanted as u64);
        let left = beyond - bytes;
        Ok(Scrubbed { bytes, left })
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()?;
        if self.file.len()? <= self.cache_bytes {
            self.file.drop_cached();
        }
        Ok(())
    }
}

/// Where what waited has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    ForTheFile,
    /// The file was replaced: it stays in memory.
    Nowhere,
}

/// What redb owns of it.
#[derive(Debug)]
pub(in crate::machine) struct Opened(pub(in crate::machine) Arc<Backend>);

impl Opened {
    /// What panics below redb is an error to it. It holds locks there, which an unwinding would poison; and what it then drops
    /// takes them again, and panics while it unwinds, which ends the whole program.
    fn guarded<T>(&self, work: impl FnOnce(&Backend) -> io::Result<T>) -> io::Result<T> {
        let done = catch_unwind(AssertUnwindSafe(|| work(&self.0)));
        done.unwrap_or_else(|panicked| {
            let message = env::panic_message(panicked.as_ref());
            tracing::error!(
                file = self.0.name.name(),
                panic = message,
                "the storage of the state panicked"
            );
            Err(io::Error::other(format!(
                "the storage of the state panicked: {message}"
            )))
        })
    }
}

impl StorageBackend for Opened {
    fn len(&self) -> io::Result<u64> {
        self.guarded(|backend| backend.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.guarded(|backend| backend.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.guarded(|backend| backend.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.guarded(|backend| backend.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.guarded(|backend| backend.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.guarded(|backend| backend.close())
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        let end = {
            let gathered = self.gathered();
            if let Some(kept) = &gathered.kept {
                return Ok(kept.len());
            }
            gathered.end()
        };
        Ok(self.file.len()?.max(end))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let in_part = {
            let gathered = self.gathered();
            if gathered.kept.is_some() {
                drop(gathered);
                return self.read_kept(offset, out);
            }
            match gathered.find(offset, out.len()) {
                Coverage::Whole(bytes) => {
                    out.copy_from_slice(bytes);
                    return Ok(());
                }
                found => found == Coverage::Part,
            }
        };
        if !in_part {
            match self.read_file(offset, out) {
                // It may be a hole before a page that waits and makes the file longer.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                read => return read,
            }
        }
        match self.write_out()? {
            Left::ForTheFile => self.read_file(offset, out),
            Left::Nowhere => self.read_kept(offset, out),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.in_use()?;
        if self.gathered().waiting.end() > len {
            self.write_out()?;
        }
        let _turn = self.turn();
        if self.is_retired() {
            self.keep()?;
            if let Some(kept) = &mut self.gathered().kept {
                kept.set_len(len);
            }
            return Ok(());
        }
        if len < self.file.len()?
            && let Some(ledger) = &mut *self.ledger()
        {
            ledger.cut(page_number((len / PAGE_BYTES as u64) as usize)?)?;
        }
        self.sums.truncate(len);
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.in_use()?;
        match self.write_out()? {
            Left::ForTheFile => self.sync(),
            Left::Nowhere => Ok(()),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.in_use()?;
        loop {
            let mut gathered = self.gathered();
            if let Some(kept) = &mut gathered.kept {
                kept.put(offset, data);
                return Ok(());
            }
            if gathered.waiting.put(offset, data) {
                break;
            }
            drop(gathered);
            // It covers a part of another: that one first.
            self.write_out()?;
        }
        if self.gathered().waiting.bytes() >= GATHERED_BYTES_MAX {
            self.write_out()?;
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        match self.in_use() {
            Ok(()) => self.write_out().map(drop),
            Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::sync::atomic::AtomicUsize;

    use proptest::prelude::*;

    use super::*;
    use crate::env::Disk;
    use crate::machine::tests::disk::MemoryDisk;

    const UNIT: u64 = 16;
    const CACHE: u64 = 1 << 20;

    fn file() -> (MemoryDisk, Arc<dyn File>) {
        let disk = MemoryDisk::default();
        let file = disk.open(Path::new("/pages"), true).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        (disk, file)
    }

    fn on(file: Arc<dyn File>) -> Backend {
        Backend::new(file, StateFile::new(Path::new("/pages")), CACHE)
    }

    fn ledger_files(disk: &MemoryDisk) -> [Arc<dyn File>; 2] {
        let files = ["/a", "/b"].map(|name| disk.open(Path::new(name), true).unwrap());
        disk.sync_dir(Path::new("/")).unwrap();
        files
    }

    fn with_ledger(disk: &MemoryDisk, file: &Arc<dyn File>) -> Backend {
        let (backend, is_told_of) = on(Arc::clone(file)).with_ledger(ledger_files(disk)).unwrap();
        if !is_told_of {
            backend.begin_ledger(ledger_files(disk)).unwrap();
        }
        backend
    }

    fn content(file: &dyn File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// So many units from one on.
        Write(u64, u64, u8),
        Length(u64),
        Sync,
        /// Power is lost, and what the file had not been synced with goes.
        Crash,
        /// The file is replaced: nothing is written to it any more, and nobody who reads it knows.
        Retire,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0u64..12, 1u64..4, any::<u8>()).prop_map(|(at, units, byte)| Step::Write(at, units, byte)),
            1 => (0u64..16).prop_map(Step::Length),
            1 => Just(Step::Sync),
            1 => Just(Step::Crash),
            1 => Just(Step::Retire),
        ]
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written_and_what_was_synced_outlives_a_crash(
            steps in proptest::collection::vec(step(), 0..60),
        ) {
            keeps_its_word(UNIT, steps)?;
        }

        /// Whole pages have sums, which are to follow all that becomes of the file: rot is never told where there is none.
        #[test]
        fn whole_pages_that_are_written_cut_and_written_again_read_as_they_must(
            steps in proptest::collection::vec(step(), 0..60),
        ) {
            keeps_its_word(PAGE_BYTES as u64, steps)?;
        }
    }

    /// Takes the steps on a file, in units of so many bytes, and on a list of bytes, and compares.
    fn keeps_its_word(unit: u64, steps: Vec<Step>) -> Result<(), TestCaseError> {
        let (disk, mut opened) = file();
        let mut backend = with_ledger(&disk, &opened);
        let (mut now, mut durable) = (Vec::new(), Vec::new());
        // What may have left since, before a sync: by unit.
        let mut left: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        // What the file had when it was replaced.
        let mut replaced: Option<Vec<u8>> = None;
        for step in steps {
            match step {
                Step::Write(at, units, byte) => {
                    let (start, data) = ((at * unit) as usize, vec![byte; (units * unit) as usize]);
                    now.resize(now.len().max(start + data.len()), 0);
                    now[start..start + data.len()].copy_from_slice(&data);
                    for place in at..at + units {
                        left.entry(place as usize).or_default().push(byte);
                    }
                    backend.write(at * unit, &data).unwrap();
                }
                Step::Length(units) => {
                    now.resize((units * unit) as usize, 0);
                    backend.set_len(units * unit).unwrap();
                }
                Step::Sync => {
                    backend.sync_data().unwrap();
                    if replaced.is_none() {
                        durable = now.clone();
                        left.clear();
                    }
                }
                Step::Crash => {
                    disk.lose_power(|| false);
                    opened = disk.open(Path::new("/pages"), false).unwrap();
                    // What left before a sync may be there or not.
                    let found = content(&*opened);
                    prop_assert!(found.len() >= durable.len() || !left.is_empty());
                    for (place, bytes) in found.chunks(unit as usize).enumerate() {
                        let start = place * unit as usize;
                        let before = durable.get(start..start + bytes.len());
                        let is_new = |byte| left.get(&place).is_some_and(|all| all.contains(byte));
                        let is_one = bytes.iter().all(|byte| *byte == bytes[0]);
                        let is_told = before == Some(bytes) || is_one && (bytes[0] == 0 || is_new(&bytes[0]));
                        prop_assert!(is_told, "{:?} at {}", bytes, start);
                    }
                    durable = found;
                    left.clear();
                    backend = with_ledger(&disk, &opened);
                    now = durable.clone();
                    replaced = None;
                }
                Step::Retire => {
                    backend.retire();
                    replaced.get_or_insert(content(&*opened));
                }
            }
            if let Some(replaced) = &replaced {
                prop_assert_eq!(&content(&*opened), replaced);
            }
            prop_assert_eq!(backend.len().unwrap(), now.len() as u64);
            // Nothing has rotted.
            let mut buf = vec![0; content(&*opened).len()];
            backend.scrub(0, &mut buf).unwrap();
            for start in (0..now.len()).step_by(unit as usize) {
                for end in [start + unit as usize, now.len()] {
                    let mut read = vec![0; end - start];
                    backend.read(start as u64, &mut read).unwrap();
                    prop_assert_eq!(&read[..], &now[start..end]);
                }
            }
        }
        prop_assert!(backend.read(now.len() as u64, &mut [0]).is_err());
        Ok(())
    }

    /// The story: a page that rotted while the node was down counted as right as it was first read, unless all of the
    /// file was read at the start.
    #[test]
    fn what_rotted_while_the_file_was_closed_is_found_when_it_is_read_and_by_a_scrub() {
        const P: usize = PAGE_BYTES;
        let (disk, opened) = file();
        let backend = with_ledger(&disk, &opened);
        let (page, header) = (|byte: u8| [byte; P], |byte: u8| [byte; HEADER_BYTES]);
        for (number, byte) in (1..6).zip(11..) {
            backend.write((number * P) as u64, &page(byte)).unwrap();
        }
        backend.write(0, &header(1)).unwrap();
        backend.sync_data().unwrap();
        backend.write((2 * P) as u64, &page(22)).unwrap();
        backend.write(0, &header(2)).unwrap();
        backend.sync_data().unwrap();
        // Not in use by what the header stands for.
        backend.write((5 * P) as u64, &page(55)).unwrap();
        backend.write_out().unwrap();
        backend.retire();
        drop(backend);
        let reopened = || on(Arc::clone(&opened)).with_ledger(ledger_files(&disk)).unwrap();
        for number in 1..6 {
            let at = (number * P + 77) as u64;
            let mut byte = [0];
            opened.read_exact_at(&mut byte, at).unwrap();
            opened.write_all_at(&[byte[0] ^ 8], at).unwrap();
            let (backend, is_told_of) = reopened();
            assert!(is_told_of);
            let is_in_use = number != 5;
            let scrubbed = backend.scrub(0, &mut [0; 6 * P]);
            assert_eq!(scrubbed.is_err(), is_in_use, "page {number}");
            let (backend, _) = reopened();
            let read = backend.read((number * P) as u64, &mut page(0));
            assert_eq!(read.is_err(), is_in_use, "page {number}");
            opened.write_all_at(&byte, at).unwrap();
            assert!(reopened().0.scrub(0, &mut [0; 6 * P]).is_ok());
        }
        // A header that nobody told of: all of the file is to be read.
        opened.write_all_at(&header(3), 0).unwrap();
        assert!(!reopened().1);
        // And one that was told of comes back with what it stands for.
        opened.write_all_at(&header(2), 0).unwrap();
        assert!(reopened().1);
    }

    /// A ledger of a file that is written to for ever would be as long.
    #[test]
    fn a_ledger_begins_anew_and_stays_short() {
        const P: usize = PAGE_BYTES;
        let (disk, opened) = file();
        let backend = with_ledger(&disk, &opened);
        let mut longest = 0;
        for round in 0..400u32 {
            for number in 1..300 {
                backend.write((number * P) as u64, &[round as u8; P]).unwrap();
            }
            let mut header = [0; HEADER_BYTES];
            header[..4].copy_from_slice(&round.to_be_bytes());
            backend.write(0, &header).unwrap();
            backend.sync_data().unwrap();
            let lengths = ledger_files(&disk).map(|file| file.len().unwrap());
            longest = lengths.into_iter().fold(longest, u64::max);
        }
        assert!((1 << 20..2 << 20).contains(&longest), "{longest}");
        backend.retire();
        drop(backend);
        let (backend, is_told_of) = on(Arc::clone(&opened)).with_ledger(ledger_files(&disk)).unwrap();
        assert!(is_told_of);
        opened.write_all_at(&[7], (299 * P) as u64).unwrap();
        assert!(backend.read((299 * P) as u64, &mut [0; P]).is_err());
    }

    #[test]
    fn a_file_that_was_cut_and_grew_again_holds_zeros_there_and_no_rot() {
        const P: u64 = PAGE_BYTES as u64;
        let (_, file) = file();
        let backend = on(Arc::clone(&file));
        backend.set_len(10 * P).unwrap();
        backend.write(9 * P, &[7; PAGE_BYTES]).unwrap();
        backend.sync_data().unwrap();
        backend.set_len(4 * P).unwrap();
        backend.set_len(12 * P).unwrap();
        let mut page = [1; PAGE_BYTES];
        backend.read(9 * P, &mut page).unwrap();
        assert_eq!(page, [0; PAGE_BYTES]);
        let scrubbed = backend.scrub(0, &mut [0; 12 * PAGE_BYTES]).unwrap();
        assert_eq!(
            scrubbed,
            Some(Scrubbed {
                bytes: 12 * P,
                left: 0
            })
        );
        // Nor where the page is scrubbed and was not read.
        backend.write(9 * P, &[8; PAGE_BYTES]).unwrap();
        backend.sync_data().unwrap();
        backend.set_len(9 * P + 1).unwrap();
        backend.set_len(12 * P).unwrap();
        backend.scrub(0, &mut [0; 12 * PAGE_BYTES]).unwrap();
        backend.read(9 * P, &mut page).unwrap();
        assert_eq!((page[0], &page[1..]), (8, &[0; PAGE_BYTES - 1][..]));
    }

    /// A file that is replaced while its first pages are on their way.
    #[derive(Debug)]
    struct ReplacedMeanwhile {
        file: Arc<dyn File>,
        backend: std::sync::OnceLock<std::sync::Weak<Backend>>,
    }

    impl File for ReplacedMeanwhile {
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            self.file.read_exact_at(buf, offset)
        }
        fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
            if let Some(backend) = self.backend.get().and_then(std::sync::Weak::upgrade) {
                backend.retire();
            }
            self.file.write_all_at(buf, offset)
        }
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.file.set_len(len)
        }
        fn sync_data(&self) -> io::Result<()> {
            panic!("nothing is of use any more");
        }
    }

    #[test]
    fn a_file_that_is_replaced_while_pages_leave_for_it_is_read_as_if_it_had_them_all() {
        let file = Arc::new(ReplacedMeanwhile {
            file: file().1,
            backend: std::sync::OnceLock::new(),
        });
        let backend = Arc::new(on(file.clone()));
        file.backend.set(Arc::downgrade(&backend)).unwrap();
        // Not neighbours, so that they leave one by one.
        for offset in [16, 32, 48] {
            backend.write(offset, b"page").unwrap();
        }
        backend.sync_data().unwrap();
        assert_eq!(content(&*file).len(), 20, "one had left");
        backend.write(32, b"PA").unwrap();
        let mut read = [0; 36];
        backend.read(16, &mut read).unwrap();
        let gap = [0; 12];
        assert_eq!(read[..], [b"page", &gap[..], b"PAge", &gap, b"page"].concat());
    }

    /// A file that takes so many more writes, and counts how often the system was to forget it.
    #[derive(Debug)]
    struct Failing {
        file: Arc<dyn File>,
        writes_left: AtomicUsize,
        panics: bool,
        drops: AtomicUsize,
    }

    impl Failing {
        fn after(writes: usize) -> Arc<Self> {
            Arc::new(Self::new(writes, false))
        }

        fn panicking_after(writes: usize) -> Arc<Self> {
            Arc::new(Self::new(writes, true))
        }

        fn new(writes: usize, panics: bool) -> Self {
            Self {
                file: file().1,
                writes_left: AtomicUsize::new(writes),
                panics,
                drops: AtomicUsize::new(0),
            }
        }
    }

    impl File for Failing {
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            self.file.read_exact_at(buf, offset)
        }
        fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
            self.writes_left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                .map_err(|_| {
                    assert!(!self.panics, "on the way to the file");
                    io::Error::other("a bad block")
                })?;
            self.file.write_all_at(buf, offset)
        }
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.file.set_len(len)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.file.sync_data()
        }
        fn drop_cached(&self) {
            self.drops.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn after_a_write_that_failed_nothing_is_promised_and_all_is_still_read() {
        let file = Failing::after(1);
        file.set_len(64).unwrap();
        let backend = on(file);
        backend.write(16, b"one").unwrap();
        backend.write(32, b"two").unwrap();
        let failed = backend.sync_data().unwrap_err();
        assert_eq!(failed.to_string(), "a bad block");
        for (offset, data) in [(16, b"one"), (32, b"two")] {
            let mut read = [0; 3];
            backend.read(offset, &mut read).unwrap();
            assert_eq!(&read, data);
        }
        backend.write(48, b"six").unwrap();
        let refused = backend.sync_data().unwrap_err();
        assert_eq!(refused.to_string(), "an earlier write to this file has failed");
    }

    /// The story: a panic in the middle of a write unwound through redb, which panicked again while it dropped what it held: the
    /// whole program was over.
    #[test]
    fn what_panics_below_redb_is_an_error_to_it() {
        let file = Failing::panicking_after(0);
        let backend = Arc::new(Backend::new(file, StateFile::new(Path::new("state")), 0));
        let opened = Opened(backend);
        opened.write(0, &[7; PAGE_BYTES]).unwrap();
        let error = opened.sync_data().unwrap_err();
        assert!(
            error.to_string().contains("panicked: on the way to the file"),
            "{error}"
        );
    }

    /// The story: redb writes while it is dropped, also behind a panic, and its header then told of pages that the panic had
    /// kept from the file.
    #[test]
    fn after_a_write_that_panicked_nothing_follows() {
        let file = Failing::panicking_after(1);
        file.set_len(64).unwrap();
        let backend = on(file);
        backend.write(16, b"one").unwrap();
        backend.write(32, b"two").unwrap();
        let synced = std::panic::AssertUnwindSafe(|| backend.sync_data());
        std::panic::catch_unwind(synced).unwrap_err();
        backend.write(48, b"six").unwrap();
        let refused = backend.sync_data().unwrap_err();
        assert_eq!(refused.to_string(), "an earlier write to this file has failed");
        let mut read = [0; 3];
        backend.read(32, &mut read).unwrap();
        assert_eq!(&read, b"two", "nothing is lost to who still reads");
    }

    #[test]
    fn a_file_that_redb_holds_whole_is_not_held_by_the_system_too_and_a_longer_one_is() {
        let file = Failing::after(usize::MAX);
        let backend = on(file.clone());
        let drops = || file.drops.load(Ordering::SeqCst);
        backend.write(CACHE - 4, b"last").unwrap();
        assert_eq!(drops(), 0, "nothing is durable yet");
        backend.sync_data().unwrap();
        assert_eq!(drops(), 1);
        backend.write(CACHE, b"more").unwrap();
        backend.sync_data().unwrap();
        assert_eq!(drops(), 1);
    }

    #[test]
    fn no_more_gathers_than_the_bound() {
        let (_, file) = file();
        let backend = on(Arc::clone(&file));
        let page = vec![7; 3 << 20];
        for number in 0..30 {
            backend.write(number * page.len() as u64, &page).unwrap();
            assert!(backend.gathered().waiting.bytes() < GATHERED_BYTES_MAX);
        }
        assert!(file.len().unwrap() >= GATHERED_BYTES_MAX as u64);
        backend.sync_data().unwrap();
        assert_eq!(backend.gathered().waiting.bytes(), 0);
        assert!(content(&*file).iter().all(|byte| *byte == 7));
    }

    #[test]
    fn nothing_leaves_for_a_file_that_was_replaced() {
        let (_, file) = file();
        let backend = on(Arc::clone(&file));
        backend.write(0, b"late").unwrap();
        backend.retire();
        backend.write(8, b"later").unwrap();
        backend.set_len(32).unwrap();
        backend.sync_data().unwrap();
        backend.close().unwrap();
        assert_eq!(content(&*file), b"");
        // And redb sees what it wrote: an error would end the reads of all that pinned the old state.
        assert_eq!(backend.len().unwrap(), 32);
        let mut read = [1; 15];
        backend.read(0, &mut read).unwrap();
        assert_eq!(&read, b"late\0\0\0\0later\0\0");

        backend.give_up();
        assert!(backend.write(8, b"never").is_err());
        assert!(backend.sync_data().is_err());
        backend.close().unwrap();
        assert_eq!(content(&*file), b"");
    }

    #[test]
    fn what_waits_is_in_the_file_once_it_is_closed() {
        let (_, file) = file();
        let backend = on(Arc::clone(&file));
        backend.write(0, b"at last").unwrap();
        assert_eq!(content(&*file), b"");
        backend.close().unwrap();
        assert_eq!(content(&*file), b"at last");
    }
}
