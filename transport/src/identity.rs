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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn identities() -> impl Strategy<Value = Identity> {
        let role = prop_oneof![
            any::<u64>().prop_map(Role::Node),
            "[A-Za-z0-9._-]{1,64}".prop_map(Role::Client),
        ];
        ("[a-z0-9-]{1,64}", role).prop_map(|(cluster, role)| Identity {
            cluster: ClusterId::new(&cluster).unwrap(),
            role,
        })
    }

    proptest! {
        #[test]
        fn an_identity_survives_its_text(identity in identities()) {
            prop_assert_eq!(identity.to_string().parse::<Identity>().unwrap(), identity);
        }

        #[test]
        fn any_text_is_the_one_form_of_an_identity_or_refused(
            text in "(quorate://)?[a-zA-Z0-9/._-]{0,20}(/(node|client)/)?[a-zA-Z0-9+/._-]{0,24}",
        ) {
            if let Ok(identity) = text.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), text);
            }
        }
    }

    #[test]
    fn texts_that_are_almost_identities_are_refused() {
        let refused = [
            "",
            "quorate://",
            "quorate://c",
            "quorate://c/node",
            "quorate://c/node/",
            "quorate://c/node/01",
            "quorate://c/node/+1",
            "quorate://c/node/-1",
            "quorate://c/node/18446744073709551616",
            "quorate://c/node/1/",
            "quorate://c/node/1 ",
            "quorate://C/node/1",
            "quorate:///node/1",
            "quorate://c/client/",
            "quorate://c/client/a/b",
            "quorate://c/client/ä",
            "quorate://c/authority",
            "Quorate://c/node/1",
            "http://c/node/1",
        ];
        for text in refused {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
        let long = "a".repeat(65);
        assert!(ClusterId::new(&long).is_err());
        assert!(Identity::client(ClusterId::new("c").unwrap(), &long).is_err());
    }
}
