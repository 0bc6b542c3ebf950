//! Certificates for a node that was given none: an authority of its own, in its data directory.
//!
//! Always: what exists is used as it is and never replaced; only the node and who may read its data directory can
//! prove themselves by it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_transport::Identity;
use quorate_transport::certs::{Authority, CertsError, Credentials};

use crate::failure::Failure;

/// The client that the command line on the same machine is.
const CLIENT: &str = "local";

/// What tools that look at hosts find in the certificates.
const HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// They never leave the machine, and nobody renews them.
const VALIDITY: Duration = Duration::from_secs(3_650 * 86_400);

/// The node's credentials and the directory where they are; made where they are missing.
pub(super) fn open(data_dir: &Path, node: &Identity) -> Result<(Credentials, PathBuf), Failure> {
    let dir = data_dir.join("certs");
    let authority = match Authority::load(&dir) {
        Ok(authority) => authority,
        Err(CertsError::Missing { .. }) if !dir.join("ca.crt").exists() => {
            let authority = Authority::create(node.cluster.clone())?;
            authority.write(&dir)?;
            tracing::info!(dir = %dir.display(), "made an authority and certificates for this node alone");
            authority
        }
        Err(error) => return Err(error.into()),
    };
    if *authority.cluster() != node.cluster {
        return Err(Failure::refused(format!(
            "--cluster: the node was to be of cluster {}, but {} has the authority of cluster {}",
            node.cluster,
            dir.display(),
            authority.cluster()
        ))
        .hint("give the cluster's old name, or another data directory"));
    }
    let client =
        Identity::client(node.cluster.clone(), CLIENT).map_err(|error| Failure::failed(error.to_string()))?;
    for (identity, stem) in [
        (node, format!("node-{}", node.node_id().unwrap_or_default())),
        (&client, format!("client-{CLIENT}")),
    ] {
        if !dir.join(format!("{stem}.crt")).exists() {
            authority
                .issue(
                    identity,
                    &HOSTS.map(|host| host.parse().expect("a host")),
                    VALIDITY,
                )?
                .write(&dir)?;
        }
    }
    let credentials = Credentials::load_from(&dir, node).map_err(|error| {
        Failure::refused(format!(
            "the node's own certificates in {}: {error}",
            dir.display()
        ))
    })?;
    Ok((credentials, dir))
}
