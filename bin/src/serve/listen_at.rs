//! Where a server listens: an address, or a name that is looked up when it starts.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};

use quorate_transport::ListenAddress;

use crate::failure::Failure;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenAt(pub ListenAddress);

impl ListenAt {
    /// Whether it is all addresses of the machine.
    pub fn is_everywhere(&self) -> bool {
        self.0.host().ip().is_some_and(|ip| ip.is_unspecified())
    }

    /// The address. A name that has none now may have one later: a machine starts its services in no sure order.
    pub fn resolve(&self, key: &str) -> Result<SocketAddr, Failure> {
        if let Some(ip) = self.0.host().ip() {
            return Ok(SocketAddr::new(ip, self.0.port()));
        }
        let none = |reason: String| {
            Failure::unavailable(format!(
                "{key}: {:?} has no address now: {reason}",
                self.to_string()
            ))
            .hint("an address in its place needs no looking up")
        };
        let found = self.to_string().to_socket_addrs();
        let mut found = found.map_err(|error| none(error.to_string()))?;
        found
            .next()
            .ok_or_else(|| none("the look-up found nothing".to_owned()))
    }
}

impl fmt::Display for ListenAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Kind;

    #[test]
    fn a_name_without_an_address_may_have_one_later() {
        let name = ListenAt("no-such-host.invalid:7001".parse().unwrap());
        let failure = name.resolve("listen").unwrap_err();
        assert_eq!(failure.kind(), Kind::Unavailable);
        assert!(
            failure.to_string().contains("no-such-host.invalid:7001"),
            "{failure}"
        );
    }
}
