//! Making a state file, and opening one: what the machine keeps of it in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::Durability;

use super::base::Base;
use super::database::{
    FILE_NAME, OpenState, RECEIVING_CACHE_BYTES, UNFINISHED_PREFIX, for_each_row, open_database, pages_bytes,
    read_system, rename, write_frame, write_system,
};
use super::open_error::{MachineOpenError, corrupt, failed};
use super::runs::Runs;
use crate::env::Disk;
use crate::machine::rows::row_hash::hash_row;
use crate::machine::rows::sessions;
use crate::machine::rows::system::System;
use crate::machine::rows::tables::Table;
use crate::machine::settings::MachineSettings;
use crate::model::LogTime;

/// Whether a state file is to be made or must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Makes an empty state. One that is there already is opened if no entry was ever applied to it (a first
    /// start that was cut short), and refused otherwise.
    Create,
    /// Opens the state that is there; a missing one is an error, never replaced by an empty one.
    Existing,
}

/// Makes an empty state file: under another name first, so that the state's name never stands for half a file.
pub(in crate::machine) fn create_empty(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    settings: &MachineSettings,
) -> Result<(), MachineOpenError> {
    let path = dir.join(format!("{UNFINISHED_PREFIX}new"));
    let (database, backend) = open_database(&**disk, &path, RECEIVING_CACHE_BYTES, false, true)?;
    let state = OpenState::new(database, backend, settings);
    let txn = state.begin_write(Durability::Immediate)?;
    write_frame(&state.file, &txn)?;
    write_system(&state.file, &txn, &System::empty())?;
    Runs::NONE.write(&state.file, &txn)?;
    state.commit(txn)?;
    state.close()?;
    rename(&**disk, &path, &dir.join(FILE_NAME)).map_err(failed("renaming", &path))?;
    disk.sync_dir(dir)
        .map_err(failed("syncing the directory of", &path))
}

/// Everything that the machine keeps in memory of a state file.
#[derive(Debug)]
pub(in crate::machine) struct Loaded {
    pub(in crate::machine) base: Base,
    pub(in crate::machine) system: System,
    pub(in crate::machine) sessions: sessions::Sessions,
    /// The time of the last row of `times`.
    pub(in crate::machine) noted: Option<LogTime>,
}

/// Opens the state file and reads what the machine keeps in memory.
pub(in crate::machine) fn load(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    settings: &MachineSettings,
) -> Result<Loaded, MachineOpenError> {
    let path: PathBuf = dir.join(FILE_NAME);
    let (database, backend) = open_database(
        &**disk,
        &path,
        pages_bytes(settings),
        settings.verify_on_open,
        false,
    )?;
    let state = OpenState::new(database, backend, settings);
    let file = &state.file;
    let txn = state.begin_read()?;
    let system = read_system(&path, file, &txn)?;
    let mut all = sessions::Sessions::default();
    let mut scratch = Vec::new();
    for_each_row(file, &txn, Table::Sessions, |key, value| {
        let mut session = sessions::Session::decode(value)?;
        session.row_hash = hash_row(&mut scratch, Table::Sessions, key, value);
        all.restore(sessions::read_session_key(key)?, session);
        Ok(())
    })?;
    let mut orphan = false;
    for_each_row(file, &txn, Table::Answers, |key, value| {
        let (id, sequence) = sessions::read_answer_key(key)?;
        let answer = sessions::Remembered {
            hash: hash_row(&mut scratch, Table::Answers, key, value),
            bytes: value.len() as u64,
        };
        orphan |= !all.restore_answer(id, sequence, answer);
        Ok(())
    })?;
    if orphan {
        return Err(corrupt(&path, "an answer is remembered for no session".into()));
    }
    drop(txn);
    let base = Base::of_opened(state)?;
    let noted = base.stood(LogTime::from_millis(u64::MAX))?;
    Ok(Loaded {
        base,
        system,
        sessions: all,
        noted: noted.map(|(time, _)| time),
    })
}
