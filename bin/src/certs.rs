//! `quorate certs`: the cluster's authority, and the certificates that it issues.

use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_transport::certs::{Authority, CertsError};
use quorate_transport::{ClusterId, Host, Identity, InvalidAddress};
use serde::Serialize;

use crate::cli::{CertsArgs, CertsCommand};
use crate::failure::Failure;
use crate::output::{Line, Output};
use crate::text::set_time;

/// Runs the command.
pub fn run(args: CertsArgs, output: Output) -> Result<(), Failure> {
    match args.command {
        CertsCommand::Init { cluster, dir } => init(&cluster, &dir, output),
        CertsCommand::Issue {
            dir,
            out,
            node,
            client,
            hosts,
            validity,
        } => {
            let authority = Authority::load(&dir)?;
            let cluster = authority.cluster().clone();
            let identity = match (node, client) {
                (Some(0), _) => return Err(Failure::refused("--node: 0 is no node's id; the first is 1")),
                (Some(id), _) => Identity::node(cluster, id),
                (None, Some(name)) => {
                    Identity::client(cluster, &name).map_err(|error| Failure::refused(error.to_string()))?
                }
                (None, None) => return Err(Failure::refused("say for whom: --node ID or --client NAME")),
            };
            let parsed: Result<Vec<Host>, InvalidAddress> = hosts.iter().map(|host| host.parse()).collect();
            let hosts = parsed.map_err(|error| Failure::refused(format!("--host: {error}")))?;
            issue(
                &authority,
                &identity,
                &hosts,
                validity,
                out.as_deref().unwrap_or(&dir),
                output,
            )
        }
    }
}

/// Files that were written.
#[derive(Debug, Serialize)]
struct Written {
    identity: String,
    certificate: PathBuf,
    key: PathBuf,
}

fn init(cluster: &str, dir: &Path, output: Output) -> Result<(), Failure> {
    let cluster = ClusterId::new(cluster).map_err(|error| Failure::refused(format!("--cluster: {error}")))?;
    let authority = Authority::create(cluster)?;
    authority.write(dir)?;
    let shown = dir.display();
    let line = format!(
        "the authority of cluster {cluster} is in {shown}: ca.crt for every node and client, ca.key for you alone\n\
         next, for each node:    quorate certs issue --dir {shown} --node ID --host NAME\n\
         and for each client:    quorate certs issue --dir {shown} --client NAME",
        cluster = authority.cluster()
    );
    let written = Written {
        identity: format!("quorate://{}/authority", authority.cluster()),
        certificate: dir.join("ca.crt"),
        key: dir.join("ca.key"),
    };
    output.show(&Line::new(written, line))
}

fn issue(
    authority: &Authority,
    identity: &Identity,
    hosts: &[Host],
    validity: Duration,
    out: &Path,
    output: Output,
) -> Result<(), Failure> {
    let issued = authority.issue(identity, hosts, validity)?;
    let (certificate, key) = issued.write(out)?;
    let mut line = format!(
        "{identity}, valid for {}:\n  {}\n  {}",
        set_time(validity),
        certificate.display(),
        key.display()
    );
    if !out.join("ca.crt").exists() {
        line.push_str(&format!("\nput ca.crt beside them: {} has none", out.display()));
    }
    output.show(&Line::new(
        Written {
            identity: identity.to_string(),
            certificate,
            key,
        },
        line,
    ))
}

impl From<CertsError> for Failure {
    fn from(error: CertsError) -> Self {
        let message = error.to_string();
        match error {
            CertsError::Missing { .. } => Failure::not_found(message),
            CertsError::File { .. } | CertsError::Crypto { .. } => Failure::failed(message),
            _ => Failure::refused(message),
        }
    }
}
