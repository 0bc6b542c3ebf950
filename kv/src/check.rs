//! Verifies the files of a node that does not run, whole, and changes none of them.
//!
//! What a start verifies ends with the first thing that is wrong; here all of it is told that can be found. And a start makes files
//! durable, cuts off what a crash left unfinished and brings the state file in order: here it is only said.
//!
//! [`check`] is all there is: it blocks, and reads every byte of log and state that counts.
//!
//! Always: files are opened for reading alone; no node runs on them meanwhile, unless its directory has lost its lock file.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};
use uuid::Uuid;

pub use crate::damage::{Damage, Part};

use crate::damage::Damages;
use crate::env::{Disk, ReadOnlyDisk};
use crate::identity::{IDENTITY_FILE, Identity};
use crate::model::{LogPosition, LogTime, NodeId, Revision, StateHash, Term};
use crate::{log, machine, raft};

/// Whose directory it should be, as far as that is known from elsewhere.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expected<'a> {
    /// The cluster's name.
    pub cluster: Option<&'a str>,
    /// The node's id.
    pub node: Option<NodeId>,
}

/// Why a directory was not verified.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// A node runs on it.
    #[error("a node runs on {}: stop it first, since files that are written to cannot be verified", dir.display())]
    InUse {
        /// The data directory.
        dir: PathBuf,
    },
    /// There is no node's file in it, or no directory.
    #[error("{} is no node's data directory: it has no IDENTITY, no log and no state", dir.display())]
    NoNode {
        /// The data directory.
        dir: PathBuf,
    },
    /// The operating system refused.
    #[error("{}: {error}{}", path.display(), crate::fault::advice(error))]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        #[source]
        error: io::Error,
    },
}

impl CheckError {
    /// Whether the same may succeed later with nothing changed.
    pub fn is_retryable(&self) -> bool {
        match self {
            CheckError::InUse { .. } => true,
            CheckError::NoNode { .. } => false,
            CheckError::Io { error, .. } => crate::fault::may_pass(error),
        }
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The data directory.
    pub dir: PathBuf,
    /// Whether nothing is wrong.
    pub whole: bool,
    /// Whose directory it is; none where that cannot be read.
    pub identity: Option<IdentityReport>,
    /// The log.
    pub log: LogReport,
    /// The state file.
    pub state: StateReport,
    /// What is wrong: 1,000 of it at most.
    pub damages: Vec<Damage>,
    /// How much more is wrong.
    pub further_damages: u64,
    /// What is to be known, and no damage: what a crash left and the next start puts in order.
    pub notes: Vec<String>,
}

/// Whose directory it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct IdentityReport {
    /// The cluster's name.
    pub cluster: String,
    /// The node's id.
    pub node: NodeId,
    /// The directory's own uuid.
    pub uuid: Uuid,
}

/// What the log holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LogReport {
    /// Segment files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Entries that are not purged; none of these where the log is damaged.
    pub entries: Option<u64>,
    /// The last entry.
    pub last: Option<LogPosition>,
    /// Everything up to here is purged, behind the state.
    pub purged: Option<LogPosition>,
    /// The vote.
    pub vote: Option<VoteReport>,
}

/// A vote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VoteReport {
    /// The term.
    pub term: Term,
    /// For whom.
    pub node: NodeId,
    /// Whether that node was known to lead.
    pub leads: bool,
}

/// What the state file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StateReport {
    /// Its length.
    pub bytes: u64,
    /// Pages in use, each of which was verified.
    pub pages: u64,
    /// What its rows say; none where they cannot be read.
    pub rows: Option<RowsReport>,
}

/// What the rows of the state file say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RowsReport {
    /// The last entry that was applied.
    pub applied: Option<LogPosition>,
    /// The store's revision.
    pub revision: Revision,
    /// The oldest revision that can be read.
    pub oldest: Revision,
    /// The time of the newest entry, in milliseconds since 1970.
    pub log_time: LogTime,
    /// The hash of the replicated state, in hexadecimal digits: nodes that applied the same entries have the same.
    #[serde(serialize_with = "hash")]
    pub state_hash: StateHash,
    /// Keys that exist.
    pub keys: u64,
    /// Keys that were deleted and have a history.
    pub deleted: u64,
    /// Versions, those of the keys that exist included.
    pub versions: u64,
    /// Sessions.
    pub sessions: u64,
    /// Answers that they remember.
    pub answers: u64,
    /// Sequences.
    pub sequences: u64,
}

fn hash<S: Serializer>(hash: &StateHash, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&format!("{:032x}", hash.0))
}

/// Verifies the files of a node that does not run.
///
/// Holds the directory's lock meanwhile, so that a node that is started on it says that it is in use and tries again. Blocks for as long
/// as reading log and state takes, about a second for each GiB or two. Memory: some 64 MiB, and 4 bytes for each entry of the log.
///
/// # Errors
/// See [`CheckError`]. What is wrong with the files is no error but in the [`Report`].
pub fn check(dir: &Path, expected: Expected<'_>) -> Result<Report, CheckError> {
    check_on(&ReadOnlyDisk, dir, expected)
}

fn check_on(disk: &dyn Disk, dir: &Path, expected: Expected<'_>) -> Result<Report, CheckError> {
    let [lock, creating, identity, log_dir, state_dir] =
        ["LOCK", "CREATING", IDENTITY_FILE, "log", "state"].map(|name| dir.join(name));
    let exists = |path: &Path| {
        disk.exists(path).map_err(|error| CheckError::Io {
            path: path.to_owned(),
            error,
        })
    };
    let _lock = match disk.lock(&lock) {
        Ok(lock) => Some(lock),
        // No node ran here: it is a copy, or none at all.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(CheckError::InUse { dir: dir.to_owned() });
        }
        // Such as a directory's name that is a file's.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(CheckError::NoNode { dir: dir.to_owned() });
        }
        Err(error) => return Err(CheckError::Io { path: lock, error }),
    };
    let (is_cut_short, has_identity) = (exists(&creating)?, exists(&identity)?);
    if !(is_cut_short || has_identity || exists(&log_dir)? || exists(&state_dir)?) {
        return Err(CheckError::NoNode { dir: dir.to_owned() });
    }
    let mut found = Findings::default();
    if is_cut_short && !has_identity {
        let detail = "the first start was cut short before the node took part in anything: the next one makes all files anew";
        found.damages.add(Damage::new(Part::Identity, &identity, detail));
        return Ok(found.report(dir));
    }
    found.identity(disk, dir, expected);
    found.log(disk, &log_dir);
    found.state(disk, &state_dir);
    found.together(dir);
    Ok(found.report(dir))
}

/// What has been found so far.
#[derive(Default)]
struct Findings {
    identity: Option<IdentityReport>,
    log: LogReport,
    state: StateReport,
    /// The membership of the state.
    members: Option<Vec<(NodeId, raft::Member)>>,
    damages: Damages,
    notes: Vec<String>,
}

impl Findings {
    fn identity(&mut self, disk: &dyn Disk, dir: &Path, expected: Expected<'_>) {
        let file = dir.join(IDENTITY_FILE);
        let damage = |detail: String| Damage::new(Part::Identity, &file, detail);
        let identity = match Identity::load(disk, dir) {
            Ok(Some(identity)) => identity,
            Ok(None) => {
                let detail = "the file is missing, and log or state are there";
                self.damages.add(damage(detail.to_owned()));
                return;
            }
            Err(error) => {
                self.damages.add(damage(error.to_string()));
                return;
            }
        };
        let cluster = expected.cluster.unwrap_or(identity.cluster());
        let node = expected.node.unwrap_or(identity.node());
        if let Err(error) = identity.check(dir, cluster, node) {
            self.damages.add(damage(error.to_string()));
        }
        self.identity = Some(IdentityReport {
            cluster: identity.cluster().to_owned(),
            node: identity.node(),
            uuid: identity.uuid(),
        });
    }

    fn log(&mut self, disk: &dyn Disk, dir: &Path) {
        let log::Examined { files, bytes, held } = log::examine(disk, dir, &mut self.damages);
        self.log = LogReport {
            files,
            bytes,
            ..LogReport::default()
        };
        let Some(held) = held else { return };
        if held.torn {
            let note = "the log ends in a write that was never answered; the next start cuts it off";
            self.notes.push(note.to_owned());
        }
        match held.vote.as_deref().map(raft::read_vote).transpose() {
            Ok(vote) => {
                self.log.vote = vote.map(|vote| VoteReport {
                    term: vote.term,
                    node: vote.node,
                    leads: vote.leads,
                });
            }
            Err(error) => self
                .damages
                .add(Damage::new(Part::Log, dir, format!("the vote: {error}"))),
        }
        let voted = self.log.vote.as_ref().map_or(Term::new(0), |vote| vote.term);
        if let Some(last) = held.last
            && last.term > voted
        {
            let detail =
                format!("the last entry is {last}, of a later term than the vote, {voted}: a vote was lost");
            self.damages.add(Damage::new(Part::Log, dir, detail));
        }
        self.log.entries = Some(held.entries);
        (self.log.last, self.log.purged) = (held.last, held.purged);
    }

    fn state(&mut self, disk: &dyn Disk, dir: &Path) {
        let machine::Examined { bytes, pages, held } = machine::examine(disk, dir, &mut self.damages);
        if let Ok(Some(detail)) = crate::raft::noted_to_differ(disk, dir) {
            let detail = format!(
                "most nodes found that the state is not what it is on them: {detail}; no node starts on it"
            );
            self.damages.add(Damage::new(Part::State, dir, detail));
        }
        let unfinished = machine::unfinished(disk, dir);
        if unfinished > 0 {
            self.notes.push(format!(
                "{unfinished} files of a snapshot that was not received to its end; the next start removes them"
            ));
        }
        let rows = held.as_ref().map(|held| RowsReport {
            applied: held.applied.position,
            revision: held.applied.revision,
            oldest: held.applied.oldest,
            log_time: held.applied.log_time,
            state_hash: held.applied.state_hash,
            keys: held.keys,
            deleted: held.deleted,
            versions: held.versions,
            sessions: held.sessions,
            answers: held.answers,
            sequences: held.sequences,
        });
        self.state = StateReport { bytes, pages, rows };
        let membership = held.and_then(|held| held.applied.membership);
        match membership
            .map(|(_, bytes)| raft::read_members(&bytes))
            .transpose()
        {
            Ok(members) => self.members = members,
            Err(error) => {
                let detail = format!("the membership: {error}");
                self.damages
                    .add(Damage::new(Part::State, &dir.join("state.redb"), detail));
            }
        }
    }

    /// What the parts say of each other.
    fn together(&mut self, dir: &Path) {
        let mut wrong = Vec::new();
        if let (Some(purged), Some(rows)) = (self.log.purged, &self.state.rows)
            && rows.applied.is_none_or(|applied| applied < purged)
        {
            let applied = rows.applied.map_or("nothing".to_owned(), |at| at.to_string());
            wrong.push(format!(
                "the state was applied up to {applied}, and the log begins after {purged}: one of the two is from another time"
            ));
        }
        if let (Some(identity), Some(members)) = (&self.identity, &self.members) {
            let node = identity.node;
            match members.iter().find(|(id, _)| *id == node) {
                None if !members.is_empty() => self.notes.push(format!(
                    "node {node} is no member of its cluster, as far as this node has heard: it was removed, or not added yet"
                )),
                Some((_, raft::Member { introduced: Some(introduced), .. }))
                    if introduced.member.uuid() != identity.uuid =>
                {
                    wrong.push(format!(
                        "the cluster knows node {node} as the directory {}, and {IDENTITY_FILE} says {}: one of the two is another \
                         node's",
                        introduced.member, identity.uuid
                    ));
                }
                _ => {}
            }
        }
        for detail in wrong {
            self.damages.add(Damage::new(Part::Together, dir, detail));
        }
    }

    fn report(self, dir: &Path) -> Report {
        let whole = self.damages.is_empty();
        let (damages, further_damages) = self.damages.into_parts();
        Report {
            dir: dir.to_owned(),
            whole,
            identity: self.identity,
            log: self.log,
            state: self.state,
            damages,
            further_damages,
            notes: self.notes,
        }
    }
}

#[cfg(test)]
mod tests;
