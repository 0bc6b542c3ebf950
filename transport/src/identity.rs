//! Who a peer is: the name that its certificate carries.

use std::fmt;
use std::str::FromStr;

/// The name of a cluster: 1 to 64 characters of `[a-z0-9-]`. No message passes between clusters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(String);

/// What a certificate holder is in its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Role {
    /// A node of the Raft group.
    Node(u64),
    /// A client, by name: 1 to 64 characters of `[A-Za-z0-9._-]`.
    Client(String),
}

/// A proven identity, written `quorate://<cluster>/node/<id>` or `quorate://<cluster>/client/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The part played in it.
    pub role: Role,
}

/// Text that names no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}: {rule}")]
pub struct InvalidIdentity {
    /// The text.
    pub text: String,
    /// What it should have been.
    pub what: &'static str,
    /// The rule that it breaks.
    pub rule: &'static str,
}

impl ClusterId {
    /// Checks a cluster's name.
    pub fn new(name: &str) -> Result<Self, InvalidIdentity> {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 64 || !name.chars().all(legal) {
            return Err(InvalidIdentity {
                text: name.to_owned(),
                what: "cluster name",
                rule: "1 to 64 characters of a-z, 0-9 and -",
            });
        }
        Ok(Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Identity {
    /// A node's identity.
    pub fn node(cluster: ClusterId, id: u64) -> Self {
        Self {
            cluster,
            role: Role::Node(id),
        }
    }

    /// A client's identity.
    pub fn client(cluster: ClusterId, name: &str) -> Result<Self, InvalidIdentity> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() || name.len() > 64 || !name.chars().all(legal) {
            return Err(InvalidIdentity {
                text: name.to_owned(),
                what: "client name",
                rule: "1 to 64 characters of A-Z, a-z, 0-9, ., _ and -",
            });
        }
        Ok(Self {
            cluster,
            role: Role::Client(name.to_owned()),
        })
    }

    /// The node's number, if it is a node.
    pub fn node_id(&self) -> Option<u64> {
        match self.role {
            Role::Node(id) => Some(id),
            Role::Client(_) => None,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.role {
            Role::Node(id) => write!(f, "quorate://{}/node/{id}", self.cluster),
            Role::Client(name) => write!(f, "quorate://{}/client/{name}", self.cluster),
        }
    }
}

impl FromStr for Identity {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
        let invalid = || InvalidIdentity {
            text: text.to_owned(),
            what: "identity",
            rule: "quorate://<cluster>/node/<id> or quorate://<cluster>/client/<name>",
        };
        let rest = text.strip_prefix("quorate://").ok_or_else(invalid)?;
        let mut parts = rest.splitn(3, '/');
        let (cluster, kind, name) = (parts.next(), parts.next(), parts.next());
        let cluster = ClusterId::new(cluster.ok_or_else(invalid)?)?;
        let name = name.ok_or_else(invalid)?;
        match kind {
            // The number must be in its one canonical form, or two texts would name one node.
            Some("node") => match name.parse::<u64>() {
                Ok(id) if id.to_string() == name => Ok(Self::node(cluster, id)),
                _ => Err(invalid()),
            },
            Some("client") => Self::client(cluster, name),
            _ => Err(invalid()),
        }
    }
}
