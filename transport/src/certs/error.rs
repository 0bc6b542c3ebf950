//! Why certificates were not made, written or read.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{ClusterId, Identity};

/// Certificates were not made, written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertsError {
    /// Files are never overwritten: another certificate may be in use.
    #[error("{path} exists already: move it away or choose another directory", path = path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The directory holds no authority.
    #[error("{path} is missing: `quorate certs init` makes an authority", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot {doing} {path}: {error}", path = path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
    /// A file holds something else than an authority of ours.
    #[error("{path} is no authority's: {reason}", path = path.display())]
    NotAnAuthority {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An authority issues for its own cluster alone.
    #[error("{identity} is not of the cluster {cluster}, whose authority this is")]
    OtherCluster {
        /// Who was to get a certificate.
        identity: Box<Identity>,
        /// The authority's cluster.
        cluster: ClusterId,
    },
    /// A certificate must be valid for a while, and end before the year 10000.
    #[error("a validity of {validity:?} is not possible")]
    InvalidValidity {
        /// What was asked for.
        validity: Duration,
    },
    /// The cryptography refused.
    #[error("the certificate was not made: {reason}")]
    Crypto {
        /// What it said.
        reason: String,
    },
}

impl CertsError {
    pub(super) fn file(doing: &'static str, path: &Path, error: io::Error) -> Self {
        CertsError::File {
            doing,
            path: path.to_owned(),
            error,
        }
    }
}

impl From<rcgen::Error> for CertsError {
    fn from(error: rcgen::Error) -> Self {
        CertsError::Crypto {
            reason: error.to_string(),
        }
    }
}
