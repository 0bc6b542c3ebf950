//! Who a node is: the identity file of its data directory; and the two uuids by which directories and clusters are told
//! apart, whatever ids and names they were given.
//!
//! Written once, when a data directory is made. A directory with an identity and without its log or state has
//! lost something that a voter must not lose; that judgement is `node`'s. `docs/formats/identity.md` specifies
//! the bytes.
//!
//! Always: the file is there whole and durable, or it is not there; it is never changed.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::env::{self, Disk};
use crate::model::NodeId;

/// The identity file's name in the data directory.
pub const IDENTITY_FILE: &str = "IDENTITY";

/// The format that this release writes and reads.
const FORMAT_VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"QUORAIDY";
/// Magic, version, length of the body, checksum.
const HEADER: usize = 20;
/// The longest cluster id.
const CLUSTER_BYTES_MAX: usize = 255;
/// Far above what an identity takes: a longer file is not one.
const FILE_BYTES_MAX: u64 = 4096;

/// Tells a data directory from any other that ever claimed the same id. Drawn when the directory is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberUuid(#[serde(with = "uuid::serde::compact")] Uuid);

/// Tells a cluster from any other that ever had the same name. Drawn by the first leader when the cluster is founded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterUuid(#[serde(with = "uuid::serde::compact")] Uuid);

impl MemberUuid {
    /// Of a directory that has this one.
    pub fn new(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// As a uuid.
    pub fn uuid(self) -> Uuid {
        self.0
    }
}

impl ClusterUuid {
    /// Draws the one of a new cluster.
    pub(crate) fn draw() -> Self {
        Self(draw())
    }

    /// Of a cluster that has this one.
    pub fn new(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// As a uuid.
    pub fn uuid(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for MemberUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ClusterUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A random uuid, of the environment's randomness.
pub(crate) fn draw() -> Uuid {
    let (high, low) = (env::random_u64(), env::random_u64());
    let number = (u128::from(high) << 64) | u128::from(low);
    uuid::Builder::from_random_bytes(number.to_be_bytes()).into_uuid()
}

/// Who a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    cluster: String,
    node: NodeId,
    uuid: Uuid,
}

/// The body of the file.
#[derive(Serialize, Deserialize)]
struct Body {
    cluster: String,
    node: u64,
    uuid: [u8; 16],
}

/// Why an identity could not be read, written or accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The file is there, and is not an identity.
    #[error(
        "the identity file {} is corrupt: {detail}. Check the disk, remove this node from the cluster and add an \
         empty directory under a new node id", file.display()
    )]
    Corrupt {
        /// Which file.
        file: PathBuf,
        /// What was expected and what was found.
        detail: String,
    },
    /// The file is of another release.
    #[error(
        "the identity file {} has format version {found}, this release reads version {known}: start the release \
         that wrote it", file.display()
    )]
    UnknownFormat {
        /// Which file.
        file: PathBuf,
        /// The version found.
        found: u32,
        /// The version that is read.
        known: u32,
    },
    /// The data directory belongs to a node of another cluster.
    #[error(
        "{} belongs to cluster {found:?}, and cluster {expected:?} is configured: point the node to its own data \
         directory, or correct the cluster's name", file.display()
    )]
    WrongCluster {
        /// Which file says so.
        file: PathBuf,
        /// The cluster that is configured.
        expected: String,
        /// The cluster that the directory belongs to.
        found: String,
    },
    /// The data directory belongs to another node.
    #[error(
        "{} belongs to node {found}, and node {expected} is configured: point the node to its own data \
         directory, or correct its id. An id is never given to another directory", file.display()
    )]
    WrongNode {
        /// Which file says so.
        file: PathBuf,
        /// The node that is configured.
        expected: NodeId,
        /// The node that the directory belongs to.
        found: NodeId,
    },
    /// The data directory has an identity already.
    #[error("{} exists already: a data directory gets its identity once", file.display())]
    Exists {
        /// Which file.
        file: PathBuf,
    },
    /// A cluster id has a wrong length.
    #[error("a cluster id of {bytes} bytes: it must have from 1 to {max}")]
    InvalidCluster {
        /// Its length.
        bytes: usize,
        /// The longest.
        max: usize,
    },
    /// The disk refused an operation.
    #[error("{doing} {}: {error}", path.display())]
    Disk {
        /// What was being done.
        doing: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        error: io::Error,
    },
}

impl IdentityError {
    /// Whether the same may succeed later with nothing changed: only what the disk refused.
    pub fn is_retryable(&self) -> bool {
        match self {
            IdentityError::Disk { error, .. } => crate::fault::may_pass(error),
            IdentityError::Corrupt { .. }
            | IdentityError::UnknownFormat { .. }
            | IdentityError::WrongCluster { .. }
            | IdentityError::WrongNode { .. }
            | IdentityError::Exists { .. }
            | IdentityError::InvalidCluster { .. } => false,
        }
    }
}

impl Identity {
    /// An identity. The cluster id has 1 to 255 bytes; `uuid` is drawn anew for each data directory.
    pub fn new(cluster: impl Into<String>, node: NodeId, uuid: Uuid) -> Result<Self, IdentityError> {
        let cluster = cluster.into();
        if !(1..=CLUSTER_BYTES_MAX).contains(&cluster.len()) {
            return Err(IdentityError::InvalidCluster {
                bytes: cluster.len(),
                max: CLUSTER_BYTES_MAX,
            });
        }
        Ok(Self { cluster, node, uuid })
    }

    /// The cluster that the node belongs to.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The node's id in its cluster.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Tells this data directory from any other that ever claimed the same id.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Reads the identity of a data directory; `None` when it has none, or does not exist.
    pub fn load(disk: &dyn Disk, dir: &Path) -> Result<Option<Self>, IdentityError> {
        let file = dir.join(IDENTITY_FILE);
        let failed = |doing| {
            let path = file.clone();
            move |error| IdentityError::Disk { doing, path, error }
        };
        if !disk.exists(&file).map_err(failed("look for"))? {
            return Ok(None);
        }
        let open = disk.open(&file, false).map_err(failed("open"))?;
        let len = open.len().map_err(failed("measure"))?;
        if len > FILE_BYTES_MAX {
            return Err(corrupt(&file, format!("it has {len} bytes")));
        }
        let mut bytes = vec![0; len as usize];
        open.read_exact_at(&mut bytes, 0).map_err(failed("read"))?;
        decode(&file, &bytes).map(Some)
    }

    /// Writes the identity into a data directory that has none, and makes it durable.
    ///
    /// The directory is made when it is missing. Interrupted, it leaves no identity behind, and may be called
    /// again.
    pub fn create(&self, disk: &dyn Disk, dir: &Path) -> Result<(), IdentityError> {
        let file = dir.join(IDENTITY_FILE);
        let temporary = dir.join(format!("{IDENTITY_FILE}.new"));
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |error| IdentityError::Disk { doing, path, error }
        };
        disk.create_dir_all(dir).map_err(failed("make directory", dir))?;
        if disk.exists(&file).map_err(failed("look for", &file))? {
            return Err(IdentityError::Exists { file });
        }
        let open = disk.open(&temporary, true).map_err(failed("make", &temporary))?;
        // An interrupted attempt may have left a longer one.
        open.set_len(0).map_err(failed("empty", &temporary))?;
        open.write_all_at(&self.encode(), 0)
            .map_err(failed("write", &temporary))?;
        open.sync_data().map_err(failed("sync", &temporary))?;
        disk.rename(&temporary, &file).map_err(failed("name", &file))?;
        disk.sync_dir(dir).map_err(failed("sync directory", dir))?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            disk.sync_dir(parent).map_err(failed("sync directory", parent))?;
        }
        Ok(())
    }

    /// Checks that a data directory's identity is that of the configured cluster and node.
    pub fn check(&self, dir: &Path, cluster: &str, node: NodeId) -> Result<(), IdentityError> {
        let file = dir.join(IDENTITY_FILE);
        if self.cluster != cluster {
            return Err(IdentityError::WrongCluster {
                file,
                expected: cluster.to_owned(),
                found: self.cluster.clone(),
            });
        }
        if self.node != node {
            return Err(IdentityError::WrongNode {
                file,
                expected: node,
                found: self.node,
            });
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let body = crate::model::encode(&Body {
            cluster: self.cluster.clone(),
            node: self.node.number(),
            uuid: self.uuid.into_bytes(),
        });
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        // At most a few hundred bytes: the cluster id is bounded.
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), &body);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }
}

fn decode(file: &Path, bytes: &[u8]) -> Result<Identity, IdentityError> {
    let Some((header, body)) = bytes.split_at_checked(HEADER) else {
        return Err(corrupt(
            file,
            format!("it has {} bytes, and at least {HEADER} are needed", bytes.len()),
        ));
    };
    let (checked, crc) = header.split_at(HEADER - 4);
    if checked[..8] != MAGIC {
        return Err(corrupt(file, "it does not start as an identity does"));
    }
    let number = |at: usize| {
        let mut value = [0; 4];
        value.copy_from_slice(&header[at..at + 4]);
        u32::from_le_bytes(value)
    };
    if number(12) as usize != body.len() {
        let detail = format!(
            "its body has {} bytes, and should have {}",
            body.len(),
            number(12)
        );
        return Err(corrupt(file, detail));
    }
    if crc != crc32c::crc32c_append(crc32c::crc32c(checked), body).to_le_bytes() {
        return Err(corrupt(file, "its checksum differs"));
    }
    let found = number(8);
    if found != FORMAT_VERSION {
        return Err(IdentityError::UnknownFormat {
            file: file.to_owned(),
            found,
            known: FORMAT_VERSION,
        });
    }
    let body: Body = crate::model::decode(body).map_err(|e| corrupt(file, e.to_string()))?;
    Identity::new(body.cluster, NodeId::new(body.node), Uuid::from_bytes(body.uuid))
        .map_err(|e| corrupt(file, e.to_string()))
}

/// See [`crate::fuzzing`].
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn decoder() -> crate::decoder::Decoder {
    let sample = Identity {
        cluster: "orders".to_owned(),
        node: NodeId::new(7),
        uuid: Uuid::from_u128(0x1234),
    };
    crate::decoder::Decoder {
        name: "identity file",
        check: |bytes| {
            if let Ok(identity) = decode(Path::new(IDENTITY_FILE), bytes) {
                let written = identity.encode();
                assert!(
                    written == bytes || written.len() < bytes.len(),
                    "{bytes:?} is written as {written:?}"
                );
            }
        },
        samples: vec![sample.encode()],
    }
}

fn corrupt(file: &Path, detail: impl Into<String>) -> IdentityError {
    IdentityError::Corrupt {
        file: file.to_owned(),
        detail: detail.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::RealDisk;

    fn identity() -> Identity {
        Identity::new("orders", NodeId::new(7), Uuid::from_u128(0x1234)).expect("a valid identity")
    }

    #[test]
    fn an_identity_is_written_once_and_read_back() -> anyhow::Result<()> {
        let root = tempfile::tempdir()?;
        let dir = root.path().join("data");
        assert_eq!(Identity::load(&RealDisk, &dir)?, None);
        identity().create(&RealDisk, &dir)?;
        assert_eq!(Identity::load(&RealDisk, &dir)?, Some(identity()));
        let again = identity().create(&RealDisk, &dir);
        assert!(matches!(again, Err(IdentityError::Exists { .. })), "{again:?}");
        Ok(())
    }

    #[test]
    fn an_interrupted_attempt_leaves_no_identity_and_is_no_hindrance() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("IDENTITY.new"), [b'x'; 1000])?;
        assert_eq!(Identity::load(&RealDisk, dir.path())?, None);
        identity().create(&RealDisk, dir.path())?;
        assert_eq!(Identity::load(&RealDisk, dir.path())?, Some(identity()));
        Ok(())
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_noticed() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        identity().create(&RealDisk, dir.path())?;
        let file = dir.path().join(IDENTITY_FILE);
        let whole = std::fs::read(&file)?;
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&file, &bytes)?;
            let loaded = Identity::load(&RealDisk, dir.path());
            assert!(
                matches!(loaded, Err(IdentityError::Corrupt { .. })),
                "byte {at}: {loaded:?}"
            );
            std::fs::write(&file, &whole[..at])?;
            let loaded = Identity::load(&RealDisk, dir.path());
            assert!(
                matches!(loaded, Err(IdentityError::Corrupt { .. })),
                "cut at {at}: {loaded:?}"
            );
        }
        Ok(())
    }

    #[test]
    fn another_cluster_and_another_node_are_refused_with_both_values() {
        let dir = Path::new("/data");
        assert!(identity().check(dir, "orders", NodeId::new(7)).is_ok());
        let error = identity()
            .check(dir, "payments", NodeId::new(7))
            .expect_err("another cluster");
        assert!(error.to_string().contains("\"orders\""), "{error}");
        assert!(error.to_string().contains("\"payments\""), "{error}");
        let error = identity()
            .check(dir, "orders", NodeId::new(8))
            .expect_err("another node");
        assert!(error.to_string().contains("node 7"), "{error}");
        assert!(error.to_string().contains("node 8"), "{error}");
    }

    #[test]
    fn another_format_is_told_apart_from_corruption() {
        let mut bytes = identity().encode();
        bytes[8] = 2;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..16]), &bytes[20..]);
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
        let decoded = decode(Path::new("identity"), &bytes);
        assert!(
            matches!(decoded, Err(IdentityError::UnknownFormat { found: 2, .. })),
            "{decoded:?}"
        );
    }

    #[test]
    fn the_bytes_of_version_1_are_these() {
        let expected =
            "51554f52414944590100000019000000cb8616eb01066f72646572730700000000000000000000000000001234";
        let bytes = identity().encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected);
    }

    #[test]
    fn a_cluster_id_has_1_to_255_bytes() {
        for (cluster, valid) in [
            (String::new(), false),
            ("c".repeat(255), true),
            ("c".repeat(256), false),
        ] {
            let identity = Identity::new(cluster.clone(), NodeId::new(1), Uuid::nil());
            assert_eq!(identity.is_ok(), valid, "{} bytes", cluster.len());
        }
    }
}
