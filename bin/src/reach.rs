//! Finds the cluster that a command is about, and makes a client of it.
//!
//! In this order: the endpoints given; the node on the data directory given; the nodes that this user runs on this
//! machine. Certificates come from the directory given, else from what the node's note says.

use std::path::{Path, PathBuf};

use quorate_kv::Client;
use quorate_kv::model::Limits;
use quorate_transport::certs::Credentials;
use quorate_transport::quic::{QuicSettings, QuicTransport};
use quorate_transport::{Address, InvalidAddress};

use crate::cli::Reach;
use crate::failure::Failure;
use crate::run_file::{self, Note};
use crate::text::with_brackets;

/// Nodes to ask, and who asks them.
#[derive(Debug)]
pub struct Reached {
    endpoints: Vec<Address>,
    credentials: Credentials,
    deadline: std::time::Duration,
}

impl Reached {
    /// These nodes, asked by the holder of these credentials.
    pub fn new(endpoints: Vec<Address>, credentials: Credentials, deadline: std::time::Duration) -> Self {
        Self {
            endpoints,
            credentials,
            deadline,
        }
    }

    /// Looks for the cluster. Asks nobody yet.
    pub fn find(reach: &Reach) -> Result<Self, Failure> {
        let (endpoints, noted) = endpoints(reach)?;
        let certs = reach.certs.clone().or(noted).ok_or_else(|| {
            Failure::refused("a client needs a certificate of the cluster: no --certs was given").hint(
                "quorate certs issue --dir DIR --client NAME makes one; then give --certs DIR, or set QUORATE_CERTS",
            )
        })?;
        let credentials = credentials(&certs, reach.client.as_deref())?;
        if let Some(asked) = &reach.cluster {
            is_of_cluster(asked, credentials.identity().cluster.as_str(), &certs)?;
        }
        Ok(Self {
            endpoints,
            credentials,
            deadline: reach.deadline,
        })
    }

    /// Where the nodes are.
    pub fn endpoints(&self) -> &[Address] {
        &self.endpoints
    }

    /// A client with a connection of its own. Must be called inside a runtime.
    pub fn client(&self) -> Result<Client, Failure> {
        self.client_from(0)
    }

    /// A client with a connection of its own that asks the `first`-th node before the others.
    pub fn client_from(&self, first: usize) -> Result<Client, Failure> {
        let transport =
            QuicTransport::bind(None, &self.credentials, QuicSettings::default()).map_err(|error| {
                Failure::failed(format!("no connection can be made from this machine: {error}"))
            })?;
        let mut endpoints = self.endpoints.clone();
        let count = endpoints.len().max(1);
        endpoints.rotate_left(first % count);
        let endpoints = endpoints.iter().map(Address::as_str);
        let client = Client::connect(endpoints, transport, limits())
            .map_err(|error| Failure::refused(error.to_string()))?;
        Ok(client.with_deadline(self.deadline))
    }
}

/// Gives a client's session back to the cluster. A command that has its answer, or none, does not wait long for it.
pub async fn close(client: Client) {
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);
    client.with_deadline(PATIENCE).close().await;
}

/// The highest that any node can be configured for: the nodes' own limits decide, and the command line does not
/// know them.
pub fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.key_bytes_max = 32 * 1024;
    limits.value_bytes_max = 24 << 20;
    limits.txn_bytes_max = 24 << 20;
    limits.txn_ops_max = 1 << 24;
    limits
}

/// Where to ask, and the directory of certificates that belongs to it, where it is known.
fn endpoints(reach: &Reach) -> Result<(Vec<Address>, Option<PathBuf>), Failure> {
    if !reach.endpoints.is_empty() {
        let parsed: Result<_, InvalidAddress> = reach.endpoints.iter().map(|text| text.parse()).collect();
        let endpoints = parsed.map_err(|error| {
            Failure::refused(format!(
                "--endpoints (QUORATE_ENDPOINTS): {}",
                with_brackets(error)
            ))
        })?;
        return Ok((endpoints, None));
    }
    if let Some(dir) = &reach.data_dir {
        let note = run_file::of_data_dir(dir)
            .map_err(|error| {
                Failure::refused(format!("{}: {error}", dir.join(run_file::FILE_NAME).display()))
            })?
            .ok_or_else(|| {
                let dir = dir.display();
                Failure::unavailable(format!("no node that quorate serve started runs on {dir}")).hint(format!(
                    "start it: quorate serve --data-dir {dir}; a node inside another program leaves no note of where it is: \
                     give --endpoints and --certs, where it has a transport"
                ))
            })?;
        return Ok((vec![note.address], note.certs));
    }
    let notes = run_file::all();
    match &reach.cluster {
        Some(cluster) => of_one_cluster(named(notes, cluster)?),
        None => of_one_cluster(notes),
    }
}

/// Refuses a cluster that the certificate is not of: nodes admit a client by its certificate alone, so that the name would
/// count for nothing where endpoints say whom to ask.
fn is_of_cluster(asked: &str, certified: &str, certs: &Path) -> Result<(), Failure> {
    if asked == certified {
        return Ok(());
    }
    let certs = certs.display();
    Err(Failure::refused(format!(
        "--cluster (QUORATE_CLUSTER) says {asked}, but the client's certificate in {certs} is of cluster {certified}"
    ))
    .hint(format!("give the certificates of {asked} by --certs, or --cluster {certified}")))
}

/// Those of this cluster; where there are none, the failure says of which clusters there are.
fn named(notes: Vec<Note>, cluster: &str) -> Result<Vec<Note>, Failure> {
    let (named, others): (Vec<Note>, Vec<Note>) = notes.into_iter().partition(|note| note.cluster == cluster);
    if !named.is_empty() || others.is_empty() {
        return Ok(named);
    }
    let others = others.iter().map(|note| note.cluster.as_str());
    let others: Vec<&str> = others
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    Err(Failure::unavailable(format!(
        "no node of cluster {cluster} runs on this machine; nodes of yours of {} do",
        others.join(", ")
    ))
    .hint("give another --cluster (QUORATE_CLUSTER), or say where the cluster is: --endpoints and --certs"))
}

fn of_one_cluster(notes: Vec<Note>) -> Result<(Vec<Address>, Option<PathBuf>), Failure> {
    // Two nodes of one name that make their own certificates are two clusters all the same.
    let mut clusters: Vec<(&str, Option<&Path>)> = notes
        .iter()
        .map(|note| (note.cluster.as_str(), note.certs.as_deref()))
        .collect();
    clusters.dedup();
    match clusters.as_slice() {
        [] => Err(Failure::unavailable("no node of yours runs on this machine")
            .hint("start one: quorate serve --data-dir DIR; or say where the cluster is: --endpoints and --certs")),
        [(_, certs)] => {
            let certs = certs.map(Path::to_path_buf);
            Ok((notes.iter().map(|note| note.address.clone()).collect(), certs))
        }
        _ => {
            let list: String = notes
                .iter()
                .map(|note| {
                    format!("\n  node {} of {} at {} ({})", note.node, note.cluster, note.address, note.data_dir.display())
                })
                .collect();
            Err(Failure::refused(format!("nodes of more than one cluster run on this machine:{list}"))
                .hint("say which with --cluster NAME, --data-dir DIR or --endpoints"))
        }
    }
}

/// The credentials of a client in a directory.
fn credentials(dir: &Path, name: Option<&str>) -> Result<Credentials, Failure> {
    let name = match name {
        Some(name) => name.to_owned(),
        None => only_client(dir)?,
    };
    let file = |suffix: &str| dir.join(format!("client-{name}.{suffix}"));
    Credentials::load(&dir.join("ca.crt"), &file("crt"), &file("key"))
        .map_err(|error| Failure::refused(format!("the client's certificate: {error}")))
}

fn only_client(dir: &Path) -> Result<String, Failure> {
    let entries = std::fs::read_dir(dir).map_err(|error| {
        Failure::refused(format!(
            "the directory of certificates {}: {error}",
            dir.display()
        ))
    })?;
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        Some(name.strip_prefix("client-")?.strip_suffix(".crt")?.to_owned())
    };
    let mut names: Vec<String> = entries.filter_map(name).collect();
    names.sort();
    match names.as_slice() {
        [name] => Ok(name.clone()),
        [] => Err(
            Failure::refused(format!("{} holds no client's certificate", dir.display())).hint(format!(
                "make one: quorate certs issue --dir {} --client NAME",
                dir.display()
            )),
        ),
        names => Err(Failure::refused(format!(
            "{} holds the certificates of {}",
            dir.display(),
            names.join(", ")
        ))
        .hint("say whose with --client NAME")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Kind;

    fn note(cluster: &str, node: u64, certs: &str) -> Note {
        Note {
            cluster: cluster.to_owned(),
            node,
            address: format!("127.0.0.1:{node}").parse().unwrap(),
            certs: Some(certs.into()),
            data_dir: "d".into(),
            pid: 1,
        }
    }

    #[test]
    fn all_local_nodes_of_one_cluster_are_asked() {
        let (endpoints, certs) = of_one_cluster(vec![note("a", 1, "c"), note("a", 2, "c")]).unwrap();
        let endpoints: Vec<&str> = endpoints.iter().map(Address::as_str).collect();
        assert_eq!(endpoints, ["127.0.0.1:1", "127.0.0.1:2"]);
        assert_eq!(certs, Some("c".into()));
    }

    /// The story: with endpoints given, `kv del --all --cluster staging` emptied the production cluster of the certificate.
    #[test]
    fn a_cluster_that_the_certificate_is_not_of_is_refused_with_both_names() {
        let certs = Path::new("c");
        is_of_cluster("orders", "orders", certs).unwrap();
        let refused = is_of_cluster("staging", "orders", certs).unwrap_err();
        assert_eq!(refused.kind(), Kind::Refused);
        let refused = refused.to_string();
        assert!(
            refused.contains("says staging") && refused.contains("of cluster orders"),
            "{refused}"
        );
    }

    #[test]
    fn a_cluster_that_does_not_run_here_is_told_with_those_that_do() {
        let notes = || vec![note("a", 1, "c"), note("a", 2, "c"), note("b", 1, "d")];
        assert_eq!(named(notes(), "b").unwrap(), [note("b", 1, "d")]);
        let missing = named(notes(), "other").unwrap_err();
        assert_eq!(missing.kind(), Kind::Unavailable);
        assert!(
            missing.to_string().contains("no node of cluster other runs"),
            "{missing}"
        );
        assert!(missing.to_string().contains("of a, b do"), "{missing}");
    }

    #[test]
    fn two_clusters_are_told_apart_and_neither_is_guessed() {
        for other in [note("b", 1, "c"), note("a", 1, "elsewhere")] {
            let refused = of_one_cluster(vec![note("a", 1, "c"), other]).unwrap_err();
            assert_eq!(refused.kind(), Kind::Refused);
            assert!(refused.to_string().contains("more than one cluster"), "{refused}");
        }
        assert_eq!(of_one_cluster(Vec::new()).unwrap_err().kind(), Kind::Unavailable);
    }
}
