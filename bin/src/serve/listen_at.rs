//! Where a server listens: an address, or a name that is looked up when it starts.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};

use crate::failure::Failure;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAt {
    /// An address; port 0 takes any free one.
    Address(SocketAddr),
    /// A host's name with a port.
    Name(String),
}

impl ListenAt {
    /// `ADDRESS:PORT` or `NAME:PORT`; `None` for what is neither.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse() {
            return Some(Self::Address(address));
        }
        let (host, port) = text.rsplit_once(':')?;
        let is_name = !host.is_empty()
            && host.len() <= 253
            && host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        let is_name = is_name && port.parse::<u16>().is_ok();
        is_name.then(|| Self::Name(text.to_owned()))
    }

    /// Whether it is all addresses of the machine.
    pub fn is_everywhere(&self) -> bool {
        matches!(self, Self::Address(address) if address.ip().is_unspecified())
    }

    /// The address. A name that has none now may have one later: a machine starts its services in no sure order.
    pub fn resolve(&self, key: &str) -> Result<SocketAddr, Failure> {
        match self {
            Self::Address(address) => Ok(*address),
            Self::Name(name) => {
                let none = |reason: String| {
                    Failure::unavailable(format!("{key}: {name:?} has no address now: {reason}"))
                        .hint("an address in its place needs no looking up")
                };
                let mut found = name.to_socket_addrs().map_err(|error| none(error.to_string()))?;
                found
                    .next()
                    .ok_or_else(|| none("the look-up found nothing".to_owned()))
            }
        }
    }
}

impl fmt::Display for ListenAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Kind;

    #[test]
    fn an_address_or_a_name_with_a_port_is_taken() {
        for address in ["127.0.0.1:0", "[::1]:7001", "0.0.0.0:65535"] {
            assert!(
                matches!(ListenAt::parse(address), Some(ListenAt::Address(_))),
                "{address}"
            );
        }
        for name in ["localhost:7001", "node-1.example:0"] {
            assert_eq!(ListenAt::parse(name), Some(ListenAt::Name(name.to_owned())));
        }
        for neither in [
            "nowhere",
            "::1",
            "::1:7001",
            ":7001",
            "a:",
            "a:65536",
            "http://a:7001",
            "a b:1",
        ] {
            assert_eq!(ListenAt::parse(neither), None, "{neither}");
        }
    }

    #[test]
    fn a_name_without_an_address_may_have_one_later() {
        let name = ListenAt::parse("no-such-host.invalid:7001").unwrap();
        let failure = name.resolve("listen").unwrap_err();
        assert_eq!(failure.kind(), Kind::Unavailable);
        assert!(
            failure.to_string().contains("no-such-host.invalid:7001"),
            "{failure}"
        );
    }
}
