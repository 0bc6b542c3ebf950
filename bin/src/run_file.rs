//! How the command line finds a node on the same machine: the node leaves a note of where it is.
//!
//! The note stands in the data directory (`run.json`) and, so that no data directory need be named, under the
//! user's own directory of running nodes: `$QUORATE_RUN_DIR`, else `$XDG_RUNTIME_DIR/quorate`, else
//! `~/.quorate/run`.
//!
//! Always: a note is locked by the node that wrote it for as long as the node runs, so that what a killed node
//! left behind is told from what stands; a note holds no secret, only where one is.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use quorate_transport::Address;
use serde::{Deserialize, Serialize};

/// The note's name in a data directory.
pub const FILE_NAME: &str = "run.json";

/// Where a running node is, and with which certificates it can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The cluster's name.
    pub cluster: String,
    /// The node's id.
    pub node: u64,
    /// Where it listens.
    pub address: Address,
    /// A directory with the certificates of a client, where the node knows one.
    pub certs: Option<PathBuf>,
    /// The node's files.
    pub data_dir: PathBuf,
    /// The node's process.
    pub pid: u32,
}

/// Notes that stand for as long as this value lives.
#[derive(Debug)]
pub struct Posted {
    files: Vec<(PathBuf, File)>,
}

impl Drop for Posted {
    fn drop(&mut self) {
        for (path, _) in &self.files {
            // One that stays behind is unlocked, hence not believed.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Posts a note in the data directory and in the user's own directory, where there is one.
pub fn post(note: &Note) -> io::Result<Posted> {
    let mut files = Vec::new();
    let path = note.data_dir.join(FILE_NAME);
    files.push((path.clone(), write(&path, note)?));
    if let Some(dir) = run_dir() {
        let path = dir.join(format!("{}-{}-{}.json", note.cluster, note.node, note.pid));
        match create_private(&dir).and_then(|()| write(&path, note)) {
            Ok(file) => files.push((path, file)),
            // A service without a home is found by its data directory.
            Err(error) => tracing::debug!(%error, dir = %dir.display(), "no note in the user's directory"),
        }
    }
    Ok(Posted { files })
}

fn write(path: &Path, note: &Note) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // Not truncated before it is locked: a reader must not meet half a note.
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    file.lock()?;
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&serde_json::to_vec_pretty(note)?)?;
    file.flush()?;
    Ok(file)
}

/// Makes a directory and its parents, for this user alone; existing ones stay as they are.
pub(crate) fn create_private(dir: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt as _;
        builder.mode(0o700);
    }
    builder.create(dir)
}

/// The directory in which this user's nodes leave their notes; `None` for a user without a home.
pub fn run_dir() -> Option<PathBuf> {
    let from = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    from("QUORATE_RUN_DIR")
        .or_else(|| from("XDG_RUNTIME_DIR").map(|dir| dir.join("quorate")))
        .or_else(|| from("HOME").map(|home| home.join(".quorate").join("run")))
}

/// The note of the node that runs on this data directory; `None` when none does.
pub fn of_data_dir(data_dir: &Path) -> io::Result<Option<Note>> {
    match read(&data_dir.join(FILE_NAME)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result,
    }
}

/// The notes of this user's running nodes, in the order of their clusters and ids.
pub fn all() -> Vec<Note> {
    let entries = run_dir().and_then(|dir| std::fs::read_dir(dir).ok());
    let paths = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|e| e.path()));
    let notes = paths.filter(|path| path.extension().is_some_and(|e| e == "json"));
    // One that cannot be read belongs to another release or another user.
    let mut notes: Vec<Note> = notes.filter_map(|path| read(&path).ok().flatten()).collect();
    notes.sort_by(|a, b| (&a.cluster, a.node).cmp(&(&b.cluster, b.node)));
    notes
}

/// The note in a file; `None` when its node has ended.
fn read(path: &Path) -> io::Result<Option<Note>> {
    let mut file = File::open(path)?;
    match file.try_lock_shared() {
        Ok(()) => return Ok(None),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(Some(serde_json::from_str(&text)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(dir: &Path) -> Note {
        let (cluster, address) = ("quorate".to_owned(), "127.0.0.1:7001".parse().unwrap());
        Note {
            cluster,
            node: 1,
            address,
            certs: None,
            data_dir: dir.to_owned(),
            pid: 1,
        }
    }

    #[test]
    fn a_note_is_believed_only_while_its_node_runs() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(of_data_dir(dir.path()).unwrap(), None);
        let path = dir.path().join(FILE_NAME);
        let file = write(&path, &note(dir.path())).unwrap();
        assert_eq!(of_data_dir(dir.path()).unwrap(), Some(note(dir.path())));
        drop(file);
        assert!(path.exists(), "as after a kill");
        assert_eq!(of_data_dir(dir.path()).unwrap(), None);
    }
}
