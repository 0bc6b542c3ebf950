//! Creating certificate and key files, without ever touching one that exists.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::error::CertsError;
use crate::{Identity, Role};

/// Who may read a new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readers {
    Everyone,
    OwnerAlone,
}

/// Creates a file with its final permissions, writes it and makes it durable.
pub(super) fn create(path: &Path, text: &str, readers: Readers) -> Result<(), CertsError> {
    let mut options = OpenOptions::new();
    // `create_new` refuses what exists, a symbolic link too, in one step with the creation.
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(match readers {
            Readers::Everyone => 0o644,
            Readers::OwnerAlone => 0o600,
        });
    }
    #[cfg(not(unix))]
    let _ = readers;
    let written = options.open(path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => CertsError::Exists { path: path.into() },
        _ => CertsError::file("create", path, error),
    })
}

/// Refuses before anything was written, if one of the files exists.
pub(super) fn refuse_existing(paths: &[&PathBuf]) -> Result<(), CertsError> {
    for path in paths {
        match path.symlink_metadata() {
            Ok(_) => {
                return Err(CertsError::Exists {
                    path: (*path).clone(),
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(CertsError::file("look for", path, error)),
        }
    }
    Ok(())
}

/// Makes the directory if it is missing.
pub(super) fn directory(path: &Path) -> Result<(), CertsError> {
    std::fs::create_dir_all(path).map_err(|error| CertsError::file("create the directory", path, error))
}

/// The beginning of the file names that belong to an identity.
pub(super) fn stem(identity: &Identity) -> String {
    match &identity.role {
        Role::Node(id) => format!("node-{id}"),
        Role::Client(name) => format!("client-{name}"),
    }
}
