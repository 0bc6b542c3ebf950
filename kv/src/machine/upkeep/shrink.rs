//! Shrinking: the state file is copied into a new one, which has no free pages, and takes its place.
//!
//! A B-tree that gave much up keeps its pages for what comes, and its file its length. The copy is made as a snapshot is, from
//! the state of the last checkpoint, on the checkpoints' thread, while entries are applied and reads go on; its hash, its chain
//! and its counts are proven on the way. It takes the old file's place between two checkpoints: what was applied meanwhile
//! is in memory and stays there. So a crash finds the old file or the new one, both at the same entry.
//!
//! Always: no checkpoint is written while the copy is made; a copy of a state that is not the file's any more is thrown away.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::env::{self, Disk};
use crate::fault::Fault;
use crate::machine::file::base::Base;
use crate::machine::file::database::{self, FILE_NAME, OpenState, open_database};
use crate::machine::file::reserve::Reserve;
use crate::machine::settings::MachineSettings;
use crate::machine::snapshot::{ReceivedSnapshot, SnapshotError, SnapshotSink, SnapshotSource};

/// What must be free on the disk beside a second state file, so that the log has room meanwhile.
const SPARE_BYTES: u64 = 64 << 20;
/// The same where the reserve is given up for the copy.
const SPARE_BYTES_MIN: u64 = 16 << 20;
/// A file is no longer than so many times what it holds, and this.
const COPY_TIMES: u64 = 2;
const COPY_BYTES_MIN: u64 = 16 << 20;

/// A copy to be made.
#[derive(Debug)]
pub(in crate::machine) struct Copy {
    pub(in crate::machine) disk: Arc<dyn Disk>,
    pub(in crate::machine) dir: PathBuf,
    /// Of no other copy of this machine's: one of a state that a snapshot has replaced may be thrown away when the next is there.
    pub(in crate::machine) number: u64,
    /// The copy is not wanted any more.
    pub(in crate::machine) is_cancelled: Arc<AtomicBool>,
}

/// What a shrinking came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Shrunk {
    /// The file's length before, in bytes.
    pub before: u64,
    /// And after.
    pub after: u64,
}

/// Why a file was not shrunk. Nothing is wrong with it, and nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotShrunk {
    /// What was written meanwhile had to go to the file.
    #[error("too much is written to copy the state meanwhile; try again when less is")]
    Interrupted,
    /// The disk has no room for a second file.
    #[error("the disk has {free} bytes free, and a second state file may take {wanted}")]
    NoRoom {
        /// Bytes that are free.
        free: u64,
        /// Bytes that are wanted at most.
        wanted: u64,
    },
    /// Another shrinking is under way.
    #[error("the state is being shrunk already")]
    UnderWay,
    /// The machine has been closed.
    #[error("the node is stopping")]
    Stopped,
}

impl Copy {
    /// Makes it. `None`: it was cancelled, or the disk had no room after all.
    pub(in crate::machine) fn make(&self, state: &Arc<OpenState>) -> Result<Option<ReceivedSnapshot>, Fault> {
        let failed = |error: SnapshotError| match error {
            SnapshotError::Fault(fault) => fault,
            other => state.file.corrupt(format!("its copy: {other}")),
        };
        env::crash_point("state.shrinking_begins")
            .map_err(|e| Fault::disk("copying", state.file.name(), e))?;
        let mut source = SnapshotSource::new(Arc::clone(state), state.begin_read()?)?;
        let copied = (|| {
            let goes_on = || !self.is_cancelled.load(Ordering::Relaxed) && !state.backend.is_retired();
            let name = format!("shrunk-{}", self.number);
            let mut sink = SnapshotSink::begin_as(Arc::clone(&self.disk), &self.dir, &name)?;
            while let Some(chunk) = source.next_chunk()? {
                if !goes_on() {
                    return Ok(None);
                }
                sink.write(&chunk)?;
            }
            sink.finish_while(&goes_on)
        })();
        match copied {
            Ok(copy) => Ok(copy),
            Err(SnapshotError::Fault(Fault::Disk { error, .. })) if is_full(&error) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    )
}

/// Whether there is room for a second file, beside one of so many bytes that holds what counts so many. Where there is not and
/// the reserve makes it, that is given up.
pub(in crate::machine) fn make_room(
    disk: &dyn Disk,
    dir: &std::path::Path,
    file_bytes: u64,
    held_bytes: u64,
    reserve: &Reserve,
) -> Result<(), NotShrunk> {
    let copy = held_bytes
        .saturating_mul(COPY_TIMES)
        .saturating_add(COPY_BYTES_MIN)
        .min(file_bytes);
    let wanted = copy.saturating_add(SPARE_BYTES);
    // Who does not know how much is free finds out.
    let Ok(Some(free)) = disk.free_bytes(dir) else {
        return Ok(());
    };
    if free >= wanted {
        return Ok(());
    }
    let reserved = reserve.bytes().unwrap_or(0);
    if reserved == 0 || free.saturating_add(reserved) < copy.saturating_add(SPARE_BYTES_MIN) {
        return Err(NotShrunk::NoRoom { free, wanted });
    }
    match reserve.give_up() {
        Ok(_) => {
            tracing::info!(
                free,
                given_up = reserved,
                "the reserve was given up for a smaller state file"
            );
            Ok(())
        }
        Err(_) => Err(NotShrunk::NoRoom { free, wanted }),
    }
}

/// Puts a copy into the place of the state file, and opens it.
pub(in crate::machine) fn take_place(
    disk: &Arc<dyn Disk>,
    dir: &std::path::Path,
    settings: &MachineSettings,
    copy: ReceivedSnapshot,
) -> Result<Base, Fault> {
    let ReceivedSnapshot { unfinished, .. } = copy;
    let path = dir.join(FILE_NAME);
    database::rename(&**disk, &unfinished.path, &path)
        .map_err(|e| Fault::disk("renaming", unfinished.path.display(), e))?;
    unfinished.keep();
    env::crash_point("state.shrunk_not_durable").map_err(|e| Fault::disk("syncing", dir.display(), e))?;
    disk.sync_dir(dir)
        .map_err(|e| Fault::disk("syncing", dir.display(), e))?;
    // It was written a moment ago, and verified on the way.
    let (database, backend) = open_database(&**disk, &path, database::pages_bytes(settings), false, false)?;
    env::mark("state.shrunk");
    Base::of_opened(OpenState::new(database, backend, settings))
}
