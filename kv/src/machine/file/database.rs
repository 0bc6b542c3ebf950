//! The state file as an open database, shared between the machine that writes it and whoever reads it.
//!
//! Always: whoever holds a read transaction holds the database that it belongs to, so that a replaced file
//! stays open until its last reader is done; what a file holds when it was opened is durable, and so is its name.

use std::io;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database, Durability, ReadableDatabase, StorageBackend as _, WriteTransaction};

use super::backend::{Backend, Opened};
use super::open_error::{MachineOpenError, corrupt, failed};
use super::recent::Recent;
use super::runs::RunsKept;
use crate::env::{self, Disk, File};
use crate::fault::Fault;
use crate::machine::rows::error::{StateFile, step, storage};
use crate::machine::rows::system::{self, System};
use crate::machine::rows::tables::{FILTERS, SYSTEM, Table};
use crate::machine::rows::wire::Malformed;
use crate::machine::settings::{MachineSettings, Tuning};

/// The state file's name in its directory.
pub(in crate::machine) const FILE_NAME: &str = "state.redb";

/// What begins the name of a file that is not, or not yet, the state.
pub(in crate::machine) const UNFINISHED_PREFIX: &str = "state.unfinished-";

/// How much of the cache a file gets while a snapshot is received into it.
pub(crate) const RECEIVING_CACHE_BYTES: usize = 8 * 1024 * 1024;

/// The part of a state's cache that holds records: one in so many bytes. The rest holds pages.
const RECORDS_PART: usize = 8;

/// An open state file.
#[derive(Debug)]
pub(in crate::machine) struct OpenState {
    database: OpenDatabase,
    pub(in crate::machine) file: StateFile,
    pub(in crate::machine) backend: Arc<Backend>,
    /// What was read of it of late.
    pub(in crate::machine) recent: Recent,
    pub(in crate::machine) runs: RunsKept,
    pub(in crate::machine) read_bytes_max: u64,
    pub(in crate::machine) tuning: Tuning,
}

/// The database, which its last holder closes: often a reader, on a thread of the program that embeds the node. So closing
/// one whose file was replaced does no I/O; and after a panic inside of the database another, while it is closed, stays here.
#[derive(Debug)]
struct OpenDatabase {
    /// There until it is closed.
    database: Option<Database>,
    backend: Arc<Backend>,
}

impl OpenDatabase {
    fn open(&self) -> Result<&Database, Fault> {
        self.database.as_ref().ok_or_else(|| {
            Fault::invariant(
                "a database is open while someone holds it",
                self.backend.name().name(),
            )
        })
    }
}

impl Drop for OpenDatabase {
    fn drop(&mut self) {
        let Some(database) = self.database.take() else {
            return;
        };
        if self.backend.is_retired() {
            self.backend.give_up();
        }
        if let Err(panicked) = std::panic::catch_unwind(AssertUnwindSafe(|| drop(database))) {
            tracing::error!(
                file = self.backend.name().name(),
                panic = env::panic_message(panicked.as_ref()),
                "closing the state's database panicked"
            );
        }
    }
}

impl OpenState {
    pub(in crate::machine) fn new(
        database: Database,
        backend: Arc<Backend>,
        settings: &MachineSettings,
    ) -> Self {
        let file = backend.name().clone();
        Self {
            database: OpenDatabase {
                database: Some(database),
                backend: Arc::clone(&backend),
            },
            file,
            backend,
            recent: Recent::new(settings.cache_bytes / RECORDS_PART),
            runs: RunsKept::default(),
            read_bytes_max: settings.read_bytes_max,
            tuning: settings.tuning,
        }
    }

    /// The file's length, in bytes; 0 where it cannot be told.
    pub(in crate::machine) fn file_bytes(&self) -> u64 {
        self.backend.len().unwrap_or(0)
    }

    /// Closes the database. What it wrote is durable already.
    pub(in crate::machine) fn close(mut self) -> Result<(), Fault> {
        match self.database.database.take() {
            Some(database) => database.close().map_err(step(&self.file, "closing")),
            None => Ok(()),
        }
    }

    pub(in crate::machine) fn begin_write(&self, durability: Durability) -> Result<WriteTransaction, Fault> {
        let mut txn = self
            .database
            .open()?
            .begin_write()
            .map_err(step(&self.file, "beginning a transaction on"))?;
        txn.set_durability(durability)
            .map_err(step(&self.file, "beginning a transaction on"))?;
        if matches!(durability, Durability::Immediate) {
            // The allocator's state is saved with the commit, so that opening after a crash is a matter of
            // milliseconds and not of reading the whole file; that also makes the commit two-phase.
            txn.set_quick_repair(true);
        }
        Ok(txn)
    }

    pub(in crate::machine) fn commit(&self, txn: WriteTransaction) -> Result<(), Fault> {
        txn.commit().map_err(step(&self.file, "committing to"))
    }

    pub(in crate::machine) fn begin_read(&self) -> Result<redb::ReadTransaction, Fault> {
        self.database
            .open()?
            .begin_read()
            .map_err(step(&self.file, "beginning a read of"))
    }
}

/// The files that have the sums of the pages of a database.
pub(in crate::machine) fn ledger_paths(path: &Path) -> [PathBuf; 2] {
    [".sums-a", ".sums-b"].map(|end| {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        PathBuf::from(name)
    })
}

/// Gives a database another name, in the same directory, which is to be synced. A crash in the middle leaves each name
/// with a whole database, or none.
pub(in crate::machine) fn rename(disk: &dyn Disk, from: &Path, to: &Path) -> io::Result<()> {
    for (from, to) in ledger_paths(from).iter().zip(&ledger_paths(to)) {
        disk.rename(from, to)?;
    }
    disk.rename(from, to)
}

/// Removes a database.
pub(in crate::machine) fn remove(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    let of_sums = ledger_paths(path).map(|path| disk.remove_file(&path));
    disk.remove_file(path)?;
    of_sums.into_iter().collect()
}

/// How much of the cache pages have.
pub(in crate::machine) fn pages_bytes(settings: &MachineSettings) -> usize {
    settings.cache_bytes - settings.cache_bytes / RECORDS_PART
}

/// Opens the database in a file that has at least one byte.
///
/// redb makes a new database of an empty file in silence; the callers have looked before.
pub(in crate::machine) fn open_database(
    disk: &dyn Disk,
    path: &Path,
    cache_bytes: usize,
    verify: bool,
    create: bool,
) -> Result<(Database, Arc<Backend>), MachineOpenError> {
    let file = disk.open(path, create).map_err(failed("opening", path))?;
    // A process that died may have left writes that the operating system has and the disk has not: what is
    // read below counts as durable, so it must be.
    //
    // After a sync that failed this is not enough: what it was about counts as clean, is read, and is written by no
    // later sync. Such pages may be read here all the same. A commit syncs its pages before the header points to them,
    // and the header is written anew, and synced, before redb hands the database out: `docs/upstream.md`.
    file.sync_data().map_err(failed("syncing", path))?;
    if !create {
        // A snapshot may have taken the name, and the process died before that was durable.
        let dir = path.parent().unwrap_or(Path::new(""));
        disk.sync_dir(dir)
            .map_err(failed("syncing the directory of", path))?;
    }
    let ledger = || -> io::Result<[Arc<dyn File>; 2]> {
        let [first, second] = ledger_paths(path);
        Ok([disk.open(&first, true)?, disk.open(&second, true)?])
    };
    let backend = Backend::new(file, StateFile::new(path), cache_bytes as u64);
    let (backend, is_told_of) = ledger()
        .and_then(|files| backend.with_ledger(files))
        .map_err(failed("opening the sums of the pages of", path))?;
    if !is_told_of && verify {
        tracing::info!(
            file = backend.name().name(),
            "nothing tells of the state file's pages as they are: all of it is read"
        );
    }
    let (database, backend) = open_on(
        path,
        Arc::new(backend),
        cache_bytes,
        verify && !create && !is_told_of,
    )?;
    if !is_told_of {
        ledger()
            .and_then(|files| backend.begin_ledger(files))
            .map_err(failed("beginning the sums of the pages of", path))?;
    }
    Ok((database, backend))
}

/// Opens the database in a file of which nothing may be changed: whatever redb writes to it, to open a file that was not
/// closed, stays in memory.
pub(in crate::machine) fn open_without_changes(
    disk: &dyn Disk,
    path: &Path,
    cache_bytes: usize,
    verify: bool,
) -> Result<(Database, Arc<Backend>), MachineOpenError> {
    let file = disk.open(path, false).map_err(failed("opening", path))?;
    let backend = Backend::new(file, StateFile::new(path), cache_bytes as u64);
    backend.retire();
    open_on(path, Arc::new(backend), cache_bytes, verify)
}

fn open_on(
    path: &Path,
    backend: Arc<Backend>,
    cache_bytes: usize,
    verify: bool,
) -> Result<(Database, Arc<Backend>), MachineOpenError> {
    let mut builder = Database::builder();
    builder.set_cache_size(cache_bytes);
    builder.set_check_integrity_on_open(verify);
    // redb may panic on a damaged file that it has not verified.
    let opened = std::panic::catch_unwind(AssertUnwindSafe(|| {
        builder.create_with_backend(Opened(Arc::clone(&backend)))
    }));
    if let Some(rot) = backend.name().rot() {
        return Err(corrupt(path, rot.to_string()));
    }
    match opened {
        Ok(Ok(database)) => Ok((database, backend)),
        Ok(Err(redb::DatabaseError::Storage(redb::StorageError::Io(error))))
            if error.kind() != io::ErrorKind::InvalidData && error.kind() != io::ErrorKind::UnexpectedEof =>
        {
            Err(failed("opening the database in", path)(error))
        }
        Ok(Err(error)) => Err(corrupt(path, error.to_string())),
        Err(panicked) => {
            let message = env::panic_message(panicked.as_ref());
            Err(corrupt(
                path,
                format!("the database could not make sense of the file: {message}"),
            ))
        }
    }
}

/// Writes the row of the system table that is written once, and makes every table, so that readers find them.
pub(in crate::machine) fn write_frame(file: &StateFile, txn: &WriteTransaction) -> Result<(), Fault> {
    let stored = Table::ALL.into_iter().filter(|table| !table.is_of_heads());
    for definition in stored.map(Table::definition).chain([FILTERS]) {
        txn.open_table(definition)
            .map_err(step(file, "making a table of"))?;
    }
    write_rows(file, txn, &[(system::FORMAT, system::format_row())])
}

/// Writes where the node stands.
pub(in crate::machine) fn write_system(
    file: &StateFile,
    txn: &WriteTransaction,
    system: &System,
) -> Result<(), Fault> {
    let mut rows = vec![
        (system::STANDING, system.standing.encode()),
        (system::LIMITS, system::encode_limits(&system.limits)),
    ];
    if let Some(membership) = &system.membership {
        rows.push((system::MEMBERSHIP, system::membership_row(membership)));
    }
    write_rows(file, txn, &rows)
}

fn write_rows(file: &StateFile, txn: &WriteTransaction, rows: &[(&[u8], Vec<u8>)]) -> Result<(), Fault> {
    let mut table = txn
        .open_table(SYSTEM)
        .map_err(step(file, "opening the system table of"))?;
    for (key, value) in rows {
        table.insert(*key, &value[..]).map_err(storage(file))?;
    }
    Ok(())
}

/// Removes what was left unfinished in the directory.
pub(in crate::machine) fn remove_unfinished(disk: &dyn Disk, dir: &Path) -> Result<(), MachineOpenError> {
    for path in disk.list(dir).map_err(failed("listing", dir))? {
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with(UNFINISHED_PREFIX)) {
            disk.remove_file(&path).map_err(failed("removing", &path))?;
        }
    }
    Ok(())
}

/// Reads where the node stood, in a file of the format that this release knows.
pub(in crate::machine) fn read_system(
    path: &Path,
    file: &StateFile,
    txn: &redb::ReadTransaction,
) -> Result<System, MachineOpenError> {
    let table = txn
        .open_table(SYSTEM)
        .map_err(|error| corrupt(path, format!("not a state file: {error}")))?;
    let format = table
        .get(system::FORMAT)
        .map_err(storage(file))?
        .ok_or_else(|| corrupt(path, "not a state file: it has no format row".into()))?;
    let found = system::read_format(format.value()).map_err(|e| corrupt(path, e.to_string()))?;
    if found != system::FORMAT_VERSION {
        return Err(MachineOpenError::UnknownFormat {
            path: path.to_owned(),
            found,
            known: system::FORMAT_VERSION,
        });
    }
    Ok(System::read(file, &table)?)
}

/// Visits each row of a table that does not hold heads, in key order.
pub(in crate::machine) fn for_each_row(
    file: &StateFile,
    txn: &redb::ReadTransaction,
    table: Table,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), Malformed>,
) -> Result<(), Fault> {
    let rows = txn
        .open_table(table.definition())
        .map_err(step(file, "opening a table of"))?;
    for row in rows.range_owned::<&[u8]>(..).map_err(storage(file))? {
        let (key, value) = row.map_err(storage(file))?;
        visit(key.value(), value.value()).map_err(|e| file.malformed(&e))?;
    }
    Ok(())
}
