//! A node's files: found whole, or made in an order that a crash cannot confuse.
//!
//! | name | what |
//! |---|---|
//! | `LOCK` | held by the process that runs the node |
//! | `CREATING` | stands while the files are made for the first time |
//! | `IDENTITY` | cluster, node and format; made last, so that a node takes part only with whole files |
//! | `log/` | the Raft log, with the vote |
//! | `state/` | the state file and snapshots on their way in |
//!
//! Always: the lock is held until no thread of the log touches a file, also when the opening fails;
//! with `IDENTITY`, log and state must exist and belong together, or the node refuses to start: a
//! voter that forgot its vote must never come back under the same id.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::env::Disk;
use crate::env::disk::LockGuard;
use crate::fault::Faults;
use crate::identity::{self, Identity, IdentityError, MemberUuid};
use crate::log::{Log, LogOpenError, LogSettings};
use crate::machine::{self, Machine, MachineOpenError, MachineSettings, Reader, Reserve};
use crate::model::{LogPosition, NodeId};

/// A data directory that cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The operating system refused.
    #[error("{path}: {error}{}", crate::fault::advice(error))]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        error: std::io::Error,
    },
    /// Another node runs on it, in this process or another.
    #[error("{dir} is in use by another node; stop that one, or give this node a directory of its own")]
    InUse {
        /// The data directory.
        dir: PathBuf,
    },
    /// The identity file cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The identity file is gone while log or state remain.
    #[error(
        "{dir} holds a node's {found} but no IDENTITY file: remove this node from the cluster and add an \
         empty directory under a new node id"
    )]
    IdentityMissing {
        /// The data directory.
        dir: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The log cannot be used.
    #[error(transparent)]
    Log(#[from] LogOpenError),
    /// The state file cannot be used.
    #[error(transparent)]
    State(#[from] MachineOpenError),
    /// The state was found to differ from that of most nodes, in an earlier run.
    #[error(
        "the state in {dir} is not what it is on most nodes: {detail}. Remove this node from the cluster and add an empty directory \
         under a new node id; keep the files for analysis"
    )]
    StateDiffers {
        /// The data directory.
        dir: PathBuf,
        /// Where, and from whom it differs.
        detail: String,
    },
    /// The log was purged beyond the state.
    #[error(
        "the state in {dir} was applied up to {applied}, but the log begins after {purged}: one of the two is from \
         another time; remove this node from the cluster and add an empty directory under a new node id"
    )]
    StateBehindLog {
        /// The data directory.
        dir: PathBuf,
        /// What the state holds.
        applied: String,
        /// What the log no longer holds.
        purged: LogPosition,
    },
}

impl StorageError {
    /// Whether the same directory may be usable later with nothing changed: what the disk refused for now, and a lock that
    /// another process holds, which may be this node's last run that has not ended yet.
    pub fn is_retryable(&self) -> bool {
        match self {
            StorageError::Io { error, .. } => crate::fault::may_pass(error),
            StorageError::InUse { .. } => true,
            StorageError::Identity(error) => error.is_retryable(),
            StorageError::Log(error) => error.is_retryable(),
            StorageError::State(error) => error.is_retryable(),
            StorageError::IdentityMissing { .. }
            | StorageError::StateDiffers { .. }
            | StorageError::StateBehindLog { .. } => false,
        }
    }
}

/// A node's open files.
#[derive(Debug)]
pub(crate) struct Storage {
    pub lock: Box<dyn LockGuard>,
    pub log: Log,
    pub machine: Machine,
    pub reader: Reader,
    /// Where the state file stands.
    pub state_dir: PathBuf,
    /// Which directory this is.
    pub member: MemberUuid,
}

/// What the operating system refused, with the file or directory that it was about.
fn io(path: &Path) -> impl FnOnce(std::io::Error) -> StorageError {
    let path = path.to_owned();
    move |error| StorageError::Io { path, error }
}

/// Why a data directory was not opened, and what of it is open nevertheless.
pub(crate) struct Unopened {
    error: StorageError,
    open: Option<Box<(Log, Box<dyn LockGuard>)>>,
}

impl From<StorageError> for Unopened {
    fn from(error: StorageError) -> Self {
        Self { error, open: None }
    }
}

impl Unopened {
    /// Closes what is open, then gives the lock free: the next who opens the directory meets no thread of ours.
    pub(crate) async fn close(self) -> StorageError {
        let Self { error, open } = self;
        if let Some(open) = open {
            let (log, lock) = *open;
            if let Err(fault) = log.close().await {
                tracing::warn!(%fault, "the log was not closed in order; it will be recovered at the next start");
            }
            drop(lock);
        }
        error
    }
}

/// Opens or makes the files of a data directory. Blocks.
pub(crate) fn open(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    cluster: &str,
    node: NodeId,
    log: LogSettings,
    state: MachineSettings,
    faults: &Faults,
) -> Result<Storage, Unopened> {
    disk.create_dir_all(dir).map_err(io(dir))?;
    let lock = disk.lock(&dir.join("LOCK")).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => StorageError::InUse { dir: dir.to_owned() },
        _ => StorageError::Io {
            path: dir.join("LOCK"),
            error,
        },
    })?;
    let known = find_or_prepare(disk, dir, cluster, node)?;
    let state_dir = dir.join("state");
    if let Some(detail) = crate::raft::noted_to_differ(&**disk, &state_dir).map_err(io(&state_dir))? {
        let dir = dir.to_owned();
        return Err(StorageError::StateDiffers { dir, detail }.into());
    }
    // Opening writes.
    let reserve = Reserve::of(Arc::clone(disk), &state_dir);
    reserve.give_up_if_full().map_err(io(dir))?;
    let is_new = known.is_none();
    let settings = LogSettings {
        mode: match is_new {
            true => crate::log::OpenMode::Create,
            false => crate::log::OpenMode::Existing,
        },
        ..log
    };
    let log = Log::open_of_node(Arc::clone(disk), &dir.join("log"), settings, faults)
        .map_err(StorageError::from)?;
    match open_state(disk, dir, (cluster, node), known, &log, state) {
        Ok((machine, reader, member)) => Ok(Storage {
            member,
            lock,
            log,
            machine,
            reader,
            state_dir: dir.join("state"),
        }),
        Err(error) => Err(Unopened {
            error,
            open: Some(Box::new((log, lock))),
        }),
    }
}

/// Checks whose directory it is; answers which, or nothing where it is new, and then made ready for its files.
fn find_or_prepare(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    cluster: &str,
    node: NodeId,
) -> Result<Option<MemberUuid>, StorageError> {
    let creating = dir.join("CREATING");
    match Identity::load(disk.as_ref(), dir)? {
        Some(identity) => {
            identity.check(dir, cluster, node)?;
            if disk.exists(&creating).map_err(io(&creating))? {
                // The crash came after the identity was durable: the files are whole.
                disk.remove_file(&creating).map_err(io(&creating))?;
            }
            Ok(Some(MemberUuid::new(identity.uuid())))
        }
        None => {
            prepare_new(disk, dir, &dir.join("log"), &dir.join("state"), &creating)?;
            Ok(None)
        }
    }
}

/// Opens the state beside an open log, gives a new directory its identity, and checks that both belong together.
fn open_state(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    (cluster, node): (&str, NodeId),
    known: Option<MemberUuid>,
    log: &Log,
    settings: MachineSettings,
) -> Result<(Machine, Reader, MemberUuid), StorageError> {
    let mode = match known {
        None => machine::OpenMode::Create,
        Some(_) => machine::OpenMode::Existing,
    };
    let (machine, reader) = Machine::open(Arc::clone(disk), &dir.join("state"), mode, settings)?;
    let member = match known {
        Some(member) => member,
        None => {
            disk.sync_dir(dir).map_err(io(dir))?;
            let uuid = identity::draw();
            Identity::new(cluster, node, uuid)?.create(disk.as_ref(), dir)?;
            let creating = dir.join("CREATING");
            disk.remove_file(&creating).map_err(io(&creating))?;
            disk.sync_dir(dir).map_err(io(dir))?;
            MemberUuid::new(uuid)
        }
    };
    if let Some(purged) = log.purged()
        && machine.applied().position.is_none_or(|applied| applied < purged)
    {
        let applied = machine
            .applied()
            .position
            .map_or("nothing".to_owned(), |p| p.to_string());
        return Err(StorageError::StateBehindLog {
            dir: dir.to_owned(),
            applied,
            purged,
        });
    }
    Ok((machine, reader, member))
}

/// Makes room for new files: what an interrupted first start left is removed, anything else is refused.
fn prepare_new(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    log_dir: &Path,
    state_dir: &Path,
    creating: &Path,
) -> Result<(), StorageError> {
    let interrupted = disk.exists(creating).map_err(io(creating))?;
    for (part, found) in [(log_dir, "log"), (state_dir, "state")] {
        if !disk.exists(part).map_err(io(part))? {
            continue;
        }
        let files = disk.list(part).map_err(io(part))?;
        if files.is_empty() {
            continue;
        }
        if !interrupted {
            return Err(StorageError::IdentityMissing {
                dir: dir.to_owned(),
                found,
            });
        }
        for file in files {
            disk.remove_file(&file).map_err(io(&file))?;
        }
        disk.sync_dir(part).map_err(io(part))?;
    }
    let marker = disk.open(creating, true).map_err(io(creating))?;
    marker.sync_data().map_err(io(creating))?;
    disk.sync_dir(dir).map_err(io(dir))?;
    for part in [log_dir, state_dir] {
        disk.create_dir_all(part).map_err(io(part))?;
    }
    disk.sync_dir(dir).map_err(io(dir))
}
