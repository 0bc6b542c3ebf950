//! The certificates of a configuration that is only checked: read as a start would, and nothing made.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use quorate_transport::Identity;
use quorate_transport::certs::Credentials;
use serde::Serialize;

use super::given_certs::given_credentials;
use super::own_certs;
use crate::failure::Failure;

/// Certificates with which the node would start.
#[derive(Debug, Serialize)]
pub struct Certificates {
    directory: PathBuf,
    /// The last second of the node's own, and of the authority's, in UTC.
    not_after: String,
    authority_not_after: String,
}

impl Certificates {
    fn of(directory: &Path, credentials: &Credentials) -> Self {
        let utc = |moment: SystemTime| humantime::format_rfc3339_seconds(moment).to_string();
        Self {
            directory: directory.to_owned(),
            not_after: utc(credentials.validity().not_after),
            authority_not_after: utc(credentials.authority_validity().not_after),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        format!(
            "until {}, its authority's until {}",
            self.not_after, self.authority_not_after
        )
    }
}

/// Reads the certificates; `None` where the first start makes them.
pub(super) fn check(
    certs: Option<&Path>,
    data_dir: &Path,
    identity: &Identity,
) -> Result<Option<Certificates>, Failure> {
    match certs {
        Some(dir) => {
            let credentials = given_credentials(dir, identity)?;
            Ok(Some(Certificates::of(dir, &credentials)))
        }
        None => {
            let found = own_certs::look(data_dir, identity)?;
            Ok(found.map(|(credentials, dir)| Certificates::of(&dir, &credentials)))
        }
    }
}
