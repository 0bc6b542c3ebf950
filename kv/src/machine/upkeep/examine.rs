//! Verifies the state file of a node that does not run, whole, and tells all that is wrong with it. Changes nothing: what
//! redb writes to a file that was not closed stays in memory.
//!
//! First the pages, each by its checksum (`pages`); then the rows: whether each is one, whether they add up to the digests that
//! the file keeps of them, whether every value is the one that its head tells of, and whether what the numbers say is so.

mod pages;

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use redb::{ReadTransaction, TableHandle as _};

use self::pages::Walked;
use super::verify;
use crate::damage::{Damage, Damages, Part};
use crate::env::{self, Disk};
use crate::fault::Fault;
use crate::machine::applying::applied::Applied;
use crate::machine::file::backend;
use crate::machine::file::blocks::Block;
use crate::machine::file::database::{self, FILE_NAME, OpenState, RECEIVING_CACHE_BYTES, UNFINISHED_PREFIX};
use crate::machine::file::filter::FilterHash;
use crate::machine::file::heads;
use crate::machine::file::open_error::MachineOpenError;
use crate::machine::file::runs::{self, Dead, Runs};
use crate::machine::rows::chain::Fold;
use crate::machine::rows::counters::Counters;
use crate::machine::rows::error::{StateFile, step, storage};
use crate::machine::rows::head::{Head, ValueDigest};
use crate::machine::rows::row_hash::hash_of_logical_row;
use crate::machine::rows::sequences;
use crate::machine::rows::sessions;
use crate::machine::rows::system::{Standing, System};
use crate::machine::rows::tables::{FILTERS, SYSTEM, Table};
use crate::machine::rows::times;
use crate::machine::rows::version::{self, Version};
use crate::machine::rows::wire::Malformed;
use crate::machine::settings::MachineSettings;
use crate::model::{self, Outcome, SessionId};

/// What a state file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Examined {
    /// The file's length.
    pub bytes: u64,
    /// Pages that are in use, and were verified.
    pub pages: u64,
    /// What the rows say; none where they could not be read.
    pub held: Option<StateContent>,
}

/// What the rows of a state file say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StateContent {
    pub applied: crate::machine::Applied,
    /// All versions behind this revision are there.
    pub history_since: model::Revision,
    pub keys: u64,
    pub deleted: u64,
    pub versions: u64,
    pub sessions: u64,
    pub answers: u64,
    pub sequences: u64,
}

/// Reads the state file in `dir`.
pub(crate) fn examine(disk: &dyn Disk, dir: &Path, damages: &mut Damages) -> Examined {
    let path = dir.join(FILE_NAME);
    let mut examined = Examined::default();
    let damage = |detail: String| Damage::new(Part::State, &path, detail);
    let file = match disk.exists(&path) {
        Ok(true) => disk.open(&path, false),
        Ok(false) => {
            damages.add(damage("the state file is missing".to_owned()));
            return examined;
        }
        Err(error) => Err(error),
    };
    let walked = file.and_then(|file| {
        examined.bytes = file.len()?;
        let (walked, places) = pages::walk(&*file, &path, damages)?;
        // A start reads with the sums of the pages, and finds these too.
        for at in unlike_what_was_written(disk, &path, &*file).unwrap_or_default() {
            if !places.iter().any(|place| place.contains(&at)) {
                let detail = "the page of 4096 bytes here reads as another than was written, in what the state does not use of it now";
                damages.add(Damage::new(Part::State, &path, detail).at(at));
            }
        }
        Ok(walked)
    });
    let Walked { pages, wrong, .. } = match walked {
        Ok(walked) => walked,
        Err(error) => {
            damages.add(damage(format!("reading: {error}")));
            return examined;
        }
    };
    examined.pages = pages;
    if examined.bytes == 0 {
        return examined;
    }
    // With wrong pages redb would not open the file; what can be read of the rows is looked at all the same. redb may panic
    // over such pages.
    let rows = std::panic::AssertUnwindSafe(|| rows(disk, &path, wrong == 0, damages));
    match std::panic::catch_unwind(rows) {
        Ok(Ok(held)) => examined.held = Some(held),
        // Of a file with wrong pages this is no news.
        Ok(Err(_)) | Err(_) if wrong > 0 => {}
        Ok(Err(error)) => {
            let detail = match error {
                MachineOpenError::Corrupt { detail, .. } => detail,
                MachineOpenError::Fault(Fault::Corrupt { detail, .. }) => detail,
                other => other.to_string(),
            };
            damages.add(damage(detail));
        }
        Err(panicked) => damages.add(damage(format!(
            "the database could not make sense of the file: {}",
            env::panic_message(panicked.as_ref())
        ))),
    }
    examined
}

/// Where pages of the state file read as other than was written, as far as the files beside it tell.
fn unlike_what_was_written(
    disk: &dyn Disk,
    path: &Path,
    file: &dyn crate::env::File,
) -> io::Result<Vec<u64>> {
    let [a, b] = database::ledger_paths(path);
    match (disk.exists(&a)?, disk.exists(&b)?) {
        (true, true) => {
            backend::unlike_what_was_written(file, &[disk.open(&a, false)?, disk.open(&b, false)?])
        }
        _ => Ok(Vec::new()),
    }
}

/// Names in the directory of the state that a start would remove: a snapshot on its way in, whose sender or receiver ended.
pub(crate) fn unfinished(disk: &dyn Disk, dir: &Path) -> u64 {
    let names = disk.list(dir).unwrap_or_default();
    let unfinished = names.iter().filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(UNFINISHED_PREFIX))
    });
    unfinished.count() as u64
}

fn rows(
    disk: &dyn Disk,
    path: &Path,
    pages_are_whole: bool,
    damages: &mut Damages,
) -> Result<StateContent, MachineOpenError> {
    let cache_bytes = RECEIVING_CACHE_BYTES;
    let (database, backend) = database::open_without_changes(disk, path, cache_bytes, pages_are_whole)?;
    let settings = MachineSettings {
        cache_bytes,
        ..MachineSettings::default()
    };
    let state = Arc::new(OpenState::new(database, backend, &settings));
    let txn = state.begin_read()?;
    let system = database::read_system(path, &state.file, &txn)?;
    let runs = {
        let table = txn
            .open_table(SYSTEM)
            .map_err(step(&state.file, "opening the system table of"))?;
        Runs::read(&state.file, &table)?
    };
    let mut rows = Rows {
        path,
        file: &state.file,
        txn: &txn,
        runs: &runs,
        standing: &system.standing,
        sum: 0,
        scratch: Vec::new(),
        counters: Counters::ZERO,
        is_complete: true,
        damages,
    };
    let held = rows.all(&system);
    Ok(held)
}

/// The rows, on the way through them.
struct Rows<'a> {
    path: &'a Path,
    file: &'a StateFile,
    txn: &'a ReadTransaction,
    runs: &'a Runs,
    standing: &'a Standing,
    /// Of the hashes of the logical rows.
    sum: u128,
    scratch: Vec<u8>,
    counters: Counters,
    /// No row was left out.
    is_complete: bool,
    damages: &'a mut Damages,
}

type Checked = Result<(), Malformed>;

impl Rows<'_> {
    fn all(&mut self, system: &System) -> StateContent {
        let standing = self.standing;
        if let Err(fault) = self.runs() {
            self.is_complete = false;
            self.tell(format!("the runs of heads cannot be read: {fault}"));
        }
        let keys = self.current();
        let deleted = self.deleted();
        let versions = self.versions();
        let leases = self.logical(Table::Leases, |_, _, _| {
            Err(Malformed("this release writes no leases"))
        });
        debug_assert!(leases == 0 || !self.damages.is_empty());
        let (sessions, answers) = self.sessions();
        let sequences = self.logical(Table::Sequences, |rows, prefix, row| {
            rows.counters.sequence_begins(prefix.len());
            sequences::decode(row).map(drop)
        });
        self.times();
        if self.is_complete {
            let wrong = [
                verify::other_counters(self.counters, standing),
                verify::other_rows(self.sum, standing),
            ];
            wrong.into_iter().flatten().for_each(|wrong| self.tell(wrong));
        }
        let membership = system.membership.as_ref();
        if membership.is_some_and(|(position, _)| Some(*position) > standing.position) {
            self.tell("the membership is of a later entry than the last that was applied".to_owned());
        }
        StateContent {
            applied: Applied::of(system),
            history_since: standing.history.since,
            keys,
            deleted,
            versions,
            sessions,
            answers,
            sequences,
        }
    }

    fn tell(&mut self, detail: String) {
        self.damages.add(Damage::new(Part::State, self.path, detail));
    }

    fn tell_of(&mut self, table: Table, key: &[u8], error: Malformed) {
        self.is_complete = false;
        let detail = format!("table {}: {error}", table.name());
        let damage = Damage::new(Part::State, self.path, detail).of_key(key);
        self.damages.add(damage);
    }

    /// Visits all rows of a table, and answers how many there are. What cannot be read is told, and ends the table.
    fn visit(&mut self, table: Table, mut visit: impl FnMut(&mut Self, &[u8], &[u8]) -> Checked) -> u64 {
        let mut count = 0;
        let visited = (|| {
            if table.is_of_heads() {
                let mut heads = runs::heads(self.file, self.txn, self.runs)?;
                while let Some(row) = heads.next()? {
                    let checked = match heads::is_of(table, row.head(), self.standing.history.since) {
                        Ok(false) => continue,
                        Ok(true) => {
                            count += 1;
                            visit(self, row.key(), row.head())
                        }
                        Err(error) => Err(error),
                    };
                    if let Err(error) = checked {
                        self.tell_of(table, row.key(), error);
                    }
                }
                return Ok(());
            }
            let rows = self
                .txn
                .open_table(table.definition())
                .map_err(step(self.file, "opening a table of"))?;
            for row in rows.range::<&[u8]>(..).map_err(storage(self.file))? {
                let (key, row) = row.map_err(storage(self.file))?;
                count += 1;
                if let Err(error) = visit(self, key.value(), row.value()) {
                    self.tell_of(table, key.value(), error);
                }
            }
            Ok::<(), Fault>(())
        })();
        if let Err(fault) = visited {
            self.is_complete = false;
            self.tell(format!(
                "table {} cannot be read to its end: {fault}",
                table.name()
            ));
        }
        count
    }

    /// The same for a table that the state's hash covers.
    fn logical(&mut self, table: Table, mut visit: impl FnMut(&mut Self, &[u8], &[u8]) -> Checked) -> u64 {
        self.visit(table, |rows, key, row| {
            let hash = hash_of_logical_row(&mut rows.scratch, table, key, row)?;
            rows.sum = rows.sum.wrapping_add(hash);
            visit(rows, key, row)
        })
    }

    /// Demands that there are the runs that are listed, with as many heads as is said of them, and none besides.
    fn runs(&mut self) -> Result<(), Fault> {
        let listed = self.runs.list.iter().map(|run| run.number);
        let known: BTreeSet<u64> = listed.chain(self.runs.unlisted.iter().copied()).collect();
        let tables = self.txn.list_tables().map_err(storage(self.file))?;
        for table in tables {
            let name = table.name();
            let Some(number) = runs::run_of_table(name) else {
                continue;
            };
            if !number.is_some_and(|number| known.contains(&number)) {
                self.tell(format!("table {name} is a run that is not listed"));
            }
        }
        let filters = self
            .txn
            .open_table(FILTERS)
            .map_err(step(self.file, "opening the filters of"))?;
        for row in filters.range::<&[u8]>(..).map_err(storage(self.file))? {
            let (key, _) = row.map_err(storage(self.file))?;
            if !runs::run_of_filter(key.value()).is_some_and(|number| known.contains(&number)) {
                let detail = "table filters: it is of a run that is not listed";
                let damage = Damage::new(Part::State, self.path, detail);
                self.damages.add(damage.of_key(key.value()));
            }
        }
        for run in &self.runs.list {
            let table = runs::open(self.file, self.txn, run.number)?;
            let filter = match runs::read_filter(self.file, self.txn, run.number) {
                Ok(filter) => Some(filter),
                Err(fault) => {
                    self.tell(format!(
                        "the filter of run {} cannot be read: {fault}",
                        run.number
                    ));
                    None
                }
            };
            let (mut rows, mut dead) = (0, Dead::default());
            let (mut last, mut bound): (Option<Vec<u8>>, Option<Vec<u8>>) = (None, None);
            for row in table.range::<&[u8]>(..).map_err(storage(self.file))? {
                let (key, block) = row.map_err(storage(self.file))?;
                let bound_before = bound.replace(key.value().to_vec());
                let checked = (|| {
                    for row in Block::of(block)?.rows() {
                        let row = row?;
                        rows += 1;
                        // What is no head is told of by those who go through the keys.
                        let _no_head = dead.note(row.head());
                        if last
                            .replace(row.key().to_vec())
                            .is_some_and(|last| &last[..] >= row.key())
                        {
                            return Err(Malformed("its keys are not in order"));
                        }
                        if bound_before.as_ref().is_some_and(|bound| row.key() <= &bound[..]) {
                            return Err(Malformed(
                                "a key of it is not above the bound of the block before",
                            ));
                        }
                        let hash = FilterHash::of(row.key());
                        if filter.as_ref().is_some_and(|filter| !filter.may_have(hash)) {
                            return Err(Malformed("a key of it is not in the run's filter"));
                        }
                    }
                    match last.as_deref() <= Some(key.value()) {
                        true => Ok(()),
                        false => Err(Malformed("its last key is above its bound")),
                    }
                })();
                if let Err(error) = checked {
                    self.is_complete = false;
                    let detail = format!("a block of run {}: {error}", run.number);
                    let damage = Damage::new(Part::State, self.path, detail);
                    self.damages.add(damage.of_key(key.value()));
                }
            }
            if (rows, dead) != (run.rows, run.dead) {
                let number = run.number;
                self.tell(format!(
                    "run {number} has {rows} heads, {} of them of deleted keys, and is listed with {} and {}",
                    dead.rows, run.rows, run.dead.rows
                ));
            }
        }
        Ok(())
    }

    fn current(&mut self) -> u64 {
        let versions = match self.txn.open_table(Table::Versions.definition()) {
            Ok(versions) => versions,
            Err(error) => {
                self.tell(format!("opening table versions: {error}"));
                return 0;
            }
        };
        self.logical(Table::Current, |rows, key, row| {
            let head = Head::decode(row)?;
            let Some((_, digest)) = head.record else {
                return Err(Malformed(
                    "it is the head of a deleted key, among those that exist",
                ));
            };
            verify::count_head(&mut rows.counters, key, row)?;
            if head.revision > rows.standing.revision {
                return Err(Malformed("it was written by a revision that is yet to come"));
            }
            let found = versions.get(&version::row_key(head.revision, key)[..]);
            let Ok(found) = found else {
                return Err(Malformed("its value cannot be read"));
            };
            let found = found.ok_or(Malformed("its value is missing"))?;
            match ValueDigest::of(Version::decode(found.value())?.value) == digest {
                true => Ok(()),
                false => Err(Malformed("its value is not the one that was written")),
            }
        })
    }

    fn deleted(&mut self) -> u64 {
        self.visit(Table::Deleted, |rows, _, row| {
            let head = Head::decode(row)?;
            if head.revision > rows.standing.revision {
                return Err(Malformed("it was deleted by a revision that is yet to come"));
            }
            Ok(())
        })
    }

    fn versions(&mut self) -> u64 {
        let standing = self.standing;
        let mut fold = Some(Fold::after(standing.history.since, standing.history.chain));
        let count = self.visit(Table::Versions, |rows, key, row| {
            verify::count_version(&mut rows.counters, key, row)?;
            let added = match &mut fold {
                Some(fold) => fold.row(key, row),
                None => version::read_key(key)
                    .and_then(|_| Version::decode(row))
                    .map(drop),
            };
            // Behind a row that is none the chain tells nothing any more.
            added.inspect_err(|_| fold = None)
        });
        if let Some(wrong) = fold.and_then(|fold| verify::other_chain(fold, standing)) {
            self.tell(wrong);
        }
        count
    }

    fn times(&mut self) {
        let mut last = None;
        self.visit(Table::Times, |rows, key, row| {
            let stood = times::read(key, row)?;
            if stood.1 > rows.standing.revision {
                return Err(Malformed("it tells of a revision that is yet to come"));
            }
            times::follows(last.replace(stood), stood)
        });
    }

    fn sessions(&mut self) -> (u64, u64) {
        let mut known: std::collections::BTreeMap<SessionId, model::Sequence> = Default::default();
        let sessions = self.logical(Table::Sessions, |rows, key, row| {
            let id = sessions::read_session_key(key)?;
            let session = sessions::Session::decode(row)?;
            known.insert(id, session.answered_below);
            let applied = rows.standing.position.map(|position| position.index);
            match Some(session.used.entry) > applied {
                true => Err(Malformed("the session was used by an entry that is yet to come")),
                false => Ok(()),
            }
        });
        let answers = self.logical(Table::Answers, |_, key, row| {
            let (id, sequence) = sessions::read_answer_key(key)?;
            let below = known
                .get(&id)
                .ok_or(Malformed("an answer is remembered for no session"))?;
            if sequence < *below {
                return Err(Malformed(
                    "an answer is remembered that its session has forgotten",
                ));
            }
            let outcome: Result<Outcome, _> = model::decode(row);
            outcome
                .map(drop)
                .map_err(|_| Malformed("the answer cannot be decoded"))
        });
        (sessions, answers)
    }
}
