//! The certificates of a node that was given a directory of them.

use std::path::Path;

use quorate_transport::Identity;
use quorate_transport::certs::Credentials;

use crate::failure::Failure;

pub(super) fn given_credentials(dir: &Path, identity: &Identity) -> Result<Credentials, Failure> {
    let id = identity.node_id().unwrap_or_default();
    let cluster = &identity.cluster;
    Credentials::load_from(dir, identity).map_err(|error| {
        // A sound certificate of somebody else: told with both names.
        let file = |suffix: &str| dir.join(format!("node-{id}.{suffix}"));
        if let Ok(other) = Credentials::load(&dir.join("ca.crt"), &file("crt"), &file("key")) {
            let other = other.identity();
            return Failure::refused(format!(
                "--certs: the certificate in {} is {other}'s, and the node is {identity}",
                file("crt").display()
            ))
            .hint(match other.cluster == *cluster {
                true => format!("quorate certs issue --dir DIR --node {id} makes node {id}'s own"),
                false => format!(
                    "give --cluster {}, if that is the cluster; or the certificates of cluster {cluster}'s authority",
                    other.cluster
                ),
            });
        }
        Failure::refused(format!("--certs: {error}")).hint(format!(
            "node {id} of cluster {cluster} needs ca.crt, node-{id}.crt and node-{id}.key there; \
             quorate certs issue --dir DIR --node {id} makes them"
        ))
    })
}
