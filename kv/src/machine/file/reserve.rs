//! The reserve: a file that holds nothing, beside the state file, for when the disk is full.
//!
//! A store can be made smaller only where there is room: to delete keys the log must grow, and a smaller state file is written
//! beside the one that is there. So a part of the disk is taken while there is plenty, and given up when it is needed: by a
//! node that starts on a full disk, and by a copy of the state that finds no room.
//!
//! Always: the file's bytes stand on the disk, as far as its length says; it never holds anything that anybody reads; it takes
//! more only where at least as much, and 32 MiB, is left.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::env::{self, Disk};

const FILE_NAME: &str = "reserve";
const MIB: u64 = 1 << 20;

/// It grows by pieces of this size, one a second.
const PIECE_BYTES: u64 = 4 * MIB;
/// A state file from this length on has a reserve.
const OF_FILES_FROM: u64 = 16 * MIB;
/// It is half of the state file, within these bounds.
const BYTES_MIN: u64 = 16 * MIB;
const BYTES_MAX: u64 = 512 * MIB;
/// It grows only where so many times what it lacks are free, and this.
const FREE_TIMES: u64 = 2;
const FREE_MIN: u64 = 32 * MIB;
/// A node that starts with less free than this gives it up.
const START_BYTES_MIN: u64 = 32 * MIB;

/// See the module. Cheap to clone; a clone is the same file.
#[derive(Clone, Debug)]
pub struct Reserve {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Held by who changes it.
    turn: Arc<Mutex<()>>,
}

impl Reserve {
    /// Of the state in this directory, which need not exist.
    pub(crate) fn of(disk: Arc<dyn Disk>, dir: &Path) -> Self {
        Self {
            disk,
            dir: dir.to_owned(),
            turn: Arc::default(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.join(FILE_NAME)
    }

    /// Its length in bytes. Blocks.
    pub fn bytes(&self) -> io::Result<u64> {
        match self.disk.exists(&self.path())? {
            true => self.disk.open(&self.path(), false)?.len(),
            false => Ok(0),
        }
    }

    /// Takes a piece more, up to what belongs to a state file of so many bytes, where enough is free for it; answers its length.
    /// Blocks. One piece at a time: the log's syncs wait behind what is written here.
    pub(crate) fn keep(&self, file_bytes: u64, free: u64) -> io::Result<u64> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = self.bytes()?;
        let missing = wanted(file_bytes).saturating_sub(bytes);
        if missing == 0 || free < missing.saturating_mul(FREE_TIMES).saturating_add(FREE_MIN) {
            return Ok(bytes);
        }
        let file = self.disk.open(&self.path(), true)?;
        // Zeros might stand nowhere on a file system that compresses.
        let piece: Vec<u8> = std::iter::successors(Some(1u64), |n| {
            Some(n.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (n >> 29))
        })
        .flat_map(u64::to_le_bytes)
        .take(PIECE_BYTES as usize)
        .collect();
        file.write_all_at(&piece, bytes)?;
        file.sync_data()?;
        file.drop_cached();
        bytes += PIECE_BYTES;
        self.disk.sync_dir(&self.dir)?;
        env::mark("reserve.taken");
        Ok(bytes)
    }

    /// Gives it up; answers how many bytes that were. Blocks.
    pub(crate) fn give_up(&self) -> io::Result<u64> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = self.bytes()?;
        if bytes > 0 {
            self.disk.remove_file(&self.path())?;
            self.disk.sync_dir(&self.dir)?;
            env::mark("reserve.given_up");
        }
        Ok(bytes)
    }

    /// Gives it up, where the disk is so full that a node could not do anything. Blocks.
    pub(crate) fn give_up_if_full(&self) -> io::Result<()> {
        // Of a new directory there is nothing to look at.
        if self.bytes()? == 0 {
            return Ok(());
        }
        let free = self.disk.free_bytes(&self.dir)?;
        let Some(free) = free.filter(|free| *free < START_BYTES_MIN) else {
            return Ok(());
        };
        let given_up = self.give_up()?;
        tracing::warn!(
            free,
            given_up,
            "the disk is nearly full: the reserve was given up, so that the node can start and be made smaller; delete keys, \
             then shrink it, or make room on the disk"
        );
        Ok(())
    }
}

/// The reserve of a state file of so many bytes.
pub(in crate::machine) fn wanted(file_bytes: u64) -> u64 {
    match file_bytes < OF_FILES_FROM {
        true => 0,
        false => (file_bytes / 2).clamp(BYTES_MIN, BYTES_MAX) / PIECE_BYTES * PIECE_BYTES,
    }
}
