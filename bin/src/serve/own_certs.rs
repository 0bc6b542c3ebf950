//! Certificates for a node that was given none: an authority of its own, in its data directory.
//!
//! Always: a certificate that exists is used as it is and never replaced; the directory appears whole or not at all, so
//! that a start that dies leaves nothing that stops the next one; of several starts at once one makes it and all use it;
//! only the node and who may read its data directory can prove themselves by it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_kv::fault::Fault;
use quorate_transport::Identity;
use quorate_transport::certs::{Authority, CertsError, Credentials};

use super::worth::kind_of;
use crate::failure::Failure;
use crate::run_file::create_private;

/// The client that the command line on the same machine is.
const CLIENT: &str = "local";

/// What tools that look at hosts find in the certificates.
const HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// They never leave the machine, and nobody renews them.
const VALIDITY: Duration = Duration::from_secs(3_650 * 86_400);

/// Where they are in the data directory.
const DIR: &str = "certs";

/// Where they are made. What is there belongs to a start that died: nobody uses it, and the next one removes it.
const MAKING: &str = "certs.making";

/// Told before each change of a file. An error ends the start there, as its death would: for tests.
type Step<'a> = &'a mut dyn FnMut(&str) -> Result<(), Failure>;

/// The node's credentials and the directory where they are; made where they are missing. Waits for another start that
/// makes them.
pub(super) fn open(data_dir: &Path, node: &Identity) -> Result<(Credentials, PathBuf), Failure> {
    open_in_steps(data_dir, node, &mut |_| Ok(()))
}

fn open_in_steps(
    data_dir: &Path,
    node: &Identity,
    step: Step<'_>,
) -> Result<(Credentials, PathBuf), Failure> {
    step("the data directory is made")?;
    create_private(data_dir).map_err(|error| disk("create the directory", data_dir, error))?;
    let _alone = alone(data_dir)?;
    let (dir, making) = (data_dir.join(DIR), data_dir.join(MAKING));
    step("what a start left is removed")?;
    remove_all(&making)?;
    let client =
        Identity::client(node.cluster.clone(), CLIENT).map_err(|error| Failure::failed(error.to_string()))?;
    let holders = [(node, stem(node)), (&client, format!("client-{CLIENT}"))];
    if is_absent_or_empty(&dir)? {
        let authority = Authority::create(node.cluster.clone()).map_err(failed)?;
        begin(&making, step)?;
        step("the authority is written")?;
        authority.write(&making).map_err(failed)?;
        for (identity, _) in &holders {
            step("a certificate is written")?;
            issue(&authority, identity, &making)?;
        }
        step("the names are made durable")?;
        sync(&making)?;
        step("the directory is put in its place")?;
        put(&making, &dir)?;
        step("its place is made durable")?;
        sync(data_dir)?;
        tracing::info!(dir = %dir.display(), "made an authority and certificates for this node alone");
    } else {
        let authority = loaded(&dir, node)?;
        for (identity, stem) in &holders {
            if !dir.join(format!("{stem}.crt")).exists() {
                complete(&authority, identity, stem, (&making, &dir), step)?;
            }
        }
    }
    Ok((credentials(&dir, node)?, dir))
}

/// What a start would find, if the certificates were made already. Nothing is changed.
pub(super) fn look(data_dir: &Path, node: &Identity) -> Result<Option<(Credentials, PathBuf)>, Failure> {
    let dir = data_dir.join(DIR);
    if is_absent_or_empty(&dir)? {
        return Ok(None);
    }
    loaded(&dir, node)?;
    if !dir.join(format!("{}.crt", stem(node))).exists() {
        return Ok(None);
    }
    Ok(Some((credentials(&dir, node)?, dir)))
}

fn credentials(dir: &Path, node: &Identity) -> Result<Credentials, Failure> {
    Credentials::load_from(dir, node).map_err(|error| {
        Failure::refused(format!(
            "the node's own certificates in {}: {error}",
            dir.display()
        ))
    })
}

/// How the names of a node's files begin.
fn stem(node: &Identity) -> String {
    format!("node-{}", node.node_id().unwrap_or_default())
}

/// The authority that is there, if it is this cluster's.
fn loaded(dir: &Path, node: &Identity) -> Result<Authority, Failure> {
    let authority = Authority::load(dir).map_err(|error| {
        let missing = matches!(error, CertsError::Missing { .. });
        let failure = failed(error);
        match missing {
            true => Failure::refused(failure.to_string()).hint(format!(
                "put it back; or move {} away, and the next start makes all certificates anew",
                dir.display()
            )),
            false => failure,
        }
    })?;
    if *authority.cluster() != node.cluster {
        return Err(Failure::refused(format!(
            "--cluster: the node was to be of cluster {}, but {} has the authority of cluster {}",
            node.cluster,
            dir.display(),
            authority.cluster()
        ))
        .hint("give the cluster's old name, or another data directory"));
    }
    Ok(authority)
}

/// Issues what is missing beside an authority that exists. The key is put in its place first; one that stands there without
/// its certificate is of no use to anybody, and gives way.
fn complete(
    authority: &Authority,
    identity: &Identity,
    stem: &str,
    (making, dir): (&Path, &Path),
    step: Step<'_>,
) -> Result<(), Failure> {
    begin(making, step)?;
    step("a certificate is written")?;
    issue(authority, identity, making)?;
    for name in [format!("{stem}.key"), format!("{stem}.crt")] {
        step("a file is put in its place")?;
        put(&making.join(&name), &dir.join(&name))?;
        step("its place is made durable")?;
        sync(dir)?;
    }
    step("what is left is removed")?;
    remove_all(making)
}

fn begin(making: &Path, step: Step<'_>) -> Result<(), Failure> {
    step("the directory is begun")?;
    create_private(making).map_err(|error| disk("create the directory", making, error))
}

fn issue(authority: &Authority, identity: &Identity, dir: &Path) -> Result<(), Failure> {
    let hosts = HOSTS.map(|host| host.parse().expect("a host"));
    let issued = authority.issue(identity, &hosts, VALIDITY).map_err(failed)?;
    issued.write(dir).map_err(failed)?;
    Ok(())
}

/// Keeps other starts out until the lock is dropped, or this process dies.
fn alone(data_dir: &Path) -> Result<File, Failure> {
    let locked = File::open(data_dir).and_then(|dir| dir.lock().map(|()| dir));
    locked.map_err(|error| disk("lock", data_dir, error))
}

fn is_absent_or_empty(dir: &Path) -> Result<bool, Failure> {
    match std::fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(disk("list", dir, error)),
    }
}

fn remove_all(making: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(making) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(disk("remove", making, error)),
        _ => Ok(()),
    }
}

fn put(from: &Path, to: &Path) -> Result<(), Failure> {
    std::fs::rename(from, to).map_err(|error| disk("put in its place", to, error))
}

fn sync(dir: &Path) -> Result<(), Failure> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|error| disk("sync", dir, error))
}

fn failed(error: CertsError) -> Failure {
    match error {
        CertsError::File { doing, path, error } => disk(doing, &path, error),
        other => other.into(),
    }
}

/// A full disk may pass; a directory that is not ours does not.
fn disk(doing: &'static str, path: &Path, error: io::Error) -> Failure {
    let message = format!(
        "the node's own certificates: cannot {doing} {}: {error}",
        path.display()
    );
    Failure::new(kind_of(&Fault::disk(doing, path.display(), error)), message)
}

#[cfg(test)]
mod tests;
