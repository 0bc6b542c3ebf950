//! Where a peer is to be found: one type, parsed once, with one form as a text.
//!
//! Pure: no name is looked up here.
//!
//! Always: an [`Address`] can be reached as far as its text can tell (a port from 1 on, no "all addresses" of a machine);
//! two texts of one address make equal values; a refusal names the text, the rule and, where that can be guessed, what
//! was meant.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest name of a host, in bytes (RFC 1035, 2.3.4, without the root's dot).
const NAME_BYTES_MAX: usize = 253;

/// The longest part of such a name between two dots.
const LABEL_BYTES_MAX: usize = 63;

/// How much of a refused text an error repeats.
const SHOWN_CHARS_MAX: usize = 300;

/// A place where a node can be reached: `host:port`, the host a [`Host`] (an IPv6 address in brackets), the port from 1 to
/// 65,535. Cheap to clone.
///
/// An address that stands for all addresses of a machine (`0.0.0.0`, `[::]`) or for many machines (multicast, broadcast)
/// is none: a node can listen on it, see [`ListenAddress`], and nobody can be told to go there.
///
/// ```
/// use quorate_transport::Address;
///
/// let address: Address = "Node1.example:7001".parse()?;
/// assert_eq!(address.as_str(), "node1.example:7001");
/// assert_eq!(address.port(), 7001);
///
/// let refused = "http://node1.example:7001".parse::<Address>().unwrap_err();
/// assert!(refused.to_string().contains("leave out \"http://\""));
/// # Ok::<(), quorate_transport::InvalidAddress>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// In its one form.
    text: Arc<str>,
    host: Host,
    port: u16,
}

/// Where a node listens: like an [`Address`], and it may also be all addresses of the machine, or leave the port to the
/// system (0).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListenAddress {
    host: Host,
    port: u16,
}

/// A machine, by name or by IP address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// A name, to be looked up.
    Name(HostName),
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 address without a zone.
    V6(Ipv6Addr),
}

/// A machine's name by RFC 1123, 2.1: labels of letters, digits and hyphens, 1 to 63 bytes each and none with a hyphen at
/// an end, 253 bytes in all; letters are lower case here. A dot at the end, which keeps the resolver from trying its search
/// domains, is kept. The last label is not a number: such a text is meant for an IPv4 address, and is none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(Arc<str>);

/// A text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}: {rule}")]
pub struct InvalidAddress {
    /// The text, or its beginning.
    pub text: String,
    /// What it should have been.
    pub what: &'static str,
    /// The rule that it breaks.
    pub rule: AddressRule,
}

/// What an address must be, as an error says it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressRule {
    /// A URL is none.
    #[error("an address has no scheme: leave out \"{scheme}://\"")]
    Scheme {
        /// What stands before `://`.
        scheme: String,
    },
    /// One address at a time.
    #[error("it is several: give one address")]
    Several,
    /// Without a host.
    #[error("the host is missing before the port, such as localhost:7001")]
    HostMissing,
    /// Without a port.
    #[error("the port is missing: write {with}")]
    PortMissing {
        /// How it could be.
        with: String,
    },
    /// The colons of an IPv6 address are not the port's.
    #[error("an IPv6 address stands in brackets before its port, such as {with}")]
    Brackets {
        /// How it could be.
        with: String,
    },
    /// In brackets stands something else.
    #[error("in brackets stands an IPv6 address, such as [::1]:7001")]
    NotIpv6,
    /// A zone names an interface of one machine.
    #[error("an address with a zone ({zone}) means something on one machine alone")]
    Zone {
        /// The zone.
        zone: String,
    },
    /// A port that is none.
    #[error("{port:?} is no port: ports are numbers from 1 to 65535")]
    Port {
        /// What stands in its place.
        port: String,
    },
    /// 0 lets the system choose.
    #[error("port 0 lets the system choose one when it listens: nobody can be told to go there")]
    PortZero,
    /// A host that has a name of too many bytes.
    #[error("its host has {length} bytes: a host's name has at most 253")]
    NameLength {
        /// The bytes.
        length: usize,
    },
    /// A part of the name.
    #[error(
        "{label:?} is no part of a host's name: between dots stand 1 to 63 letters, digits and hyphens, and no hyphen \
         at an end"
    )]
    Label {
        /// The part.
        label: String,
    },
    /// An IPv4 address that is none.
    #[error(
        "a host that ends in a number is an IPv4 address: four numbers from 0 to 255, without leading zeros"
    )]
    NotIpv4,
    /// All addresses of a machine.
    #[error(
        "{ip} stands for all addresses of a machine, on which it can listen: give the name or address under which others \
         reach it"
    )]
    Unspecified {
        /// The address.
        ip: IpAddr,
    },
    /// An address of many machines.
    #[error("{ip} is the address of many machines")]
    Many {
        /// The address.
        ip: IpAddr,
    },
}

impl Address {
    /// Joins the parts.
    pub fn new(host: Host, port: u16) -> Result<Self, InvalidAddress> {
        let refused = |rule| Err(invalid(&written(&host, port), "address of a node", rule));
        if port == 0 {
            return refused(AddressRule::PortZero);
        }
        if let Some(rule) = host.is_not_one_machine() {
            return refused(rule);
        }
        let text = written(&host, port).into();
        Ok(Self { text, host, port })
    }

    /// In its one form.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The machine.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port, from 1 on.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let refused = |rule| invalid(text, "address of the form host:port", rule);
        let (host, port) = split(text).map_err(refused)?;
        Self::new(host, port).map_err(|error| refused(error.rule))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<SocketAddr> for Address {
    type Error = InvalidAddress;

    /// Refuses one on which a machine listens everywhere, or whose port the system has yet to choose.
    fn try_from(address: SocketAddr) -> Result<Self, InvalidAddress> {
        Self::new(address.ip().into(), address.port())
    }
}

impl Serialize for Address {
    /// As its text.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl ListenAddress {
    /// The machine's name or address, or all its addresses.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port; 0 leaves it to the system.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for ListenAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let refused = |rule| invalid(text, "address of the form host:port", rule);
        let (host, port) = split(text).map_err(refused)?;
        Ok(Self { host, port })
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&written(&self.host, self.port))
    }
}

impl Host {
    /// The IP address, if it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Host::Name(_) => None,
            Host::V4(ip) => Some((*ip).into()),
            Host::V6(ip) => Some((*ip).into()),
        }
    }

    /// Why nobody can be told to go there, if so.
    fn is_not_one_machine(&self) -> Option<AddressRule> {
        let ip = self.ip()?;
        // One of IPv4 may stand inside one of IPv6.
        let canonical = ip.to_canonical();
        if canonical.is_unspecified() {
            Some(AddressRule::Unspecified { ip })
        } else if canonical.is_multicast() || canonical == IpAddr::V4(Ipv4Addr::BROADCAST) {
            Some(AddressRule::Many { ip })
        } else {
            None
        }
    }

    /// A name or an IPv4 address: what stands before a port without brackets.
    fn parse(text: &str) -> Result<Self, AddressRule> {
        match text.parse::<Ipv4Addr>() {
            Ok(ip) => Ok(Host::V4(ip)),
            Err(_) => HostName::parse(text).map(Host::Name),
        }
    }
}

impl HostName {
    /// In its one form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Result<Self, AddressRule> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.len() > NAME_BYTES_MAX {
            return Err(AddressRule::NameLength { length: name.len() });
        }
        let legal = |label: &str| {
            (1..=LABEL_BYTES_MAX).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let mut last = "";
        for label in name.split('.') {
            if !legal(label) {
                let label = shown(label);
                return Err(AddressRule::Label { label });
            }
            last = label;
        }
        if last.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(AddressRule::NotIpv4);
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

impl From<IpAddr> for Host {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Host::V4(ip),
            IpAddr::V6(ip) => Host::V6(ip),
        }
    }
}

impl FromStr for Host {
    type Err = InvalidAddress;

    /// An IPv6 address stands here without brackets.
    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        if let Ok(ip) = text.parse::<Ipv6Addr>() {
            return Ok(Host::V6(ip));
        }
        Self::parse(text).map_err(|rule| invalid(text, "name or IP address of a host", rule))
    }
}

impl fmt::Display for Host {
    /// Without brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => name.fmt(f),
            Host::V4(ip) => ip.fmt(f),
            Host::V6(ip) => ip.fmt(f),
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Host and port of a text, whatever they are good for.
fn split(text: &str) -> Result<(Host, u16), AddressRule> {
    if text.contains([',', ';']) || text.split_whitespace().count() > 1 {
        return Err(AddressRule::Several);
    }
    if let Some((scheme, _)) = text.split_once("://") {
        let scheme = shown(scheme);
        return Err(AddressRule::Scheme { scheme });
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (inside, after) = rest.split_once(']').ok_or(AddressRule::NotIpv6)?;
        if let Some((ip, zone)) = inside.split_once('%')
            && ip.parse::<Ipv6Addr>().is_ok()
        {
            let zone = shown(zone);
            return Err(AddressRule::Zone { zone });
        }
        let ip: Ipv6Addr = inside.parse().map_err(|_| AddressRule::NotIpv6)?;
        return match after.strip_prefix(':') {
            Some(port) => Ok((Host::V6(ip), parse_port(port)?)),
            None if after.is_empty() => {
                let with = format!("[{ip}]:7001");
                Err(AddressRule::PortMissing { with })
            }
            None => Err(AddressRule::NotIpv6),
        };
    }
    if let Ok(ip) = text.parse::<Ipv6Addr>() {
        let with = format!("[{ip}]:7001");
        return Err(AddressRule::Brackets { with });
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        let with = match Host::parse(text) {
            Ok(_) => format!("{text}:7001"),
            Err(_) => "host:port".to_owned(),
        };
        return Err(AddressRule::PortMissing { with });
    };
    if host.is_empty() {
        return Err(AddressRule::HostMissing);
    }
    if let Ok(ip) = host.parse::<Ipv6Addr>() {
        let with = format!("[{ip}]:{}", shown(port));
        return Err(AddressRule::Brackets { with });
    }
    Ok((Host::parse(host)?, parse_port(port)?))
}

fn parse_port(text: &str) -> Result<u16, AddressRule> {
    // `u16` would take a sign.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = if digits { text.parse().ok() } else { None };
    port.ok_or_else(|| AddressRule::Port { port: shown(text) })
}

fn written(host: &Host, port: u16) -> String {
    match host {
        Host::V6(ip) => format!("[{ip}]:{port}"),
        host => format!("{host}:{port}"),
    }
}

fn invalid(text: &str, what: &'static str, rule: AddressRule) -> InvalidAddress {
    let text = shown(text);
    InvalidAddress { text, what, rule }
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_address_has_one_form_as_a_text() {
        let forms = [
            ("node-1:7000", "node-1:7000"),
            ("Node-1.Example.COM:1", "node-1.example.com:1"),
            ("node1.example.:65535", "node1.example.:65535"),
            ("3com:9092", "3com:9092"),
            ("1.2.3.example:7001", "1.2.3.example:7001"),
            ("127.0.0.1:7001", "127.0.0.1:7001"),
            ("10.0.0.1:07001", "10.0.0.1:7001"),
            ("[::1]:7001", "[::1]:7001"),
            ("[0:0:0:0:0:0:0:1]:7001", "[::1]:7001"),
            ("[2001:DB8::1]:7001", "[2001:db8::1]:7001"),
            ("[::ffff:10.0.0.1]:7001", "[::ffff:10.0.0.1]:7001"),
        ];
        for (text, form) in forms {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.as_str(), form, "{text}");
            assert_eq!(form.parse::<Address>().unwrap(), address);
        }
    }

    #[test]
    fn what_is_no_address_is_told_with_the_rule_and_what_was_meant() {
        let long = format!("{}:1", ["a".repeat(63).as_str(); 4].join("."));
        let refused = [
            ("", "the port is missing: write host:port"),
            (":7001", "the host is missing"),
            ("localhost", "the port is missing: write localhost:7001"),
            ("10.0.0.1", "the port is missing: write 10.0.0.1:7001"),
            ("localhost:", "\"\" is no port"),
            ("::1", "in brackets before its port, such as [::1]:7001"),
            (
                "fe80::2:7001",
                "in brackets before its port, such as [fe80::2:7001]:7001",
            ),
            ("1:2:3:4:5:6:7:8:7001", "such as [1:2:3:4:5:6:7:8]:7001"),
            ("[::1]", "the port is missing: write [::1]:7001"),
            ("[::1", "in brackets stands an IPv6 address"),
            ("[::1]7001", "in brackets stands an IPv6 address"),
            ("[10.0.0.1]:7001", "in brackets stands an IPv6 address"),
            ("[localhost]:7001", "in brackets stands an IPv6 address"),
            ("[fe80::1%eth0]:7001", "a zone (eth0)"),
            ("http://a:7001", "leave out \"http://\""),
            ("SSL://[::1]:9093", "leave out \"SSL://\""),
            ("SSL://[::1]:9093,PLAINTEXT://x:9092", "it is several"),
            ("a:7001,b:7001", "it is several"),
            ("a:7001 b:7001", "it is several"),
            ("a:0", "port 0"),
            ("a:65536", "\"65536\" is no port"),
            ("a:+1", "\"+1\" is no port"),
            ("a:-1", "\"-1\" is no port"),
            ("a:7001/", "\"7001/\" is no port"),
            ("a:7001 ", "\"7001 \" is no port"),
            (" a:7001", "\" a\" is no part of a host's name"),
            ("a_b:7001", "\"a_b\" is no part"),
            ("-a:7001", "\"-a\" is no part"),
            ("a-:7001", "\"a-\" is no part"),
            ("a..b:7001", "\"\" is no part"),
            (".:7001", "\"\" is no part"),
            ("user@host:7001", "\"user@host\" is no part"),
            ("münchen:7001", "\"münchen\" is no part"),
            ("a:b:7001", "\"a:b\" is no part"),
            (&long, "255 bytes"),
            ("256.0.0.1:7001", "ends in a number"),
            ("10.0.0:7001", "ends in a number"),
            ("1.2.3.4.5:7001", "ends in a number"),
            ("010.0.0.1:7001", "ends in a number"),
            ("7001:7001", "ends in a number"),
            ("0.0.0.0:7004", "0.0.0.0 stands for all addresses"),
            ("[::]:7004", ":: stands for all addresses"),
            ("[::ffff:0.0.0.0]:7004", "stands for all addresses"),
            ("224.0.0.1:7001", "address of many machines"),
            ("255.255.255.255:7001", "address of many machines"),
            ("[ff02::1]:7001", "address of many machines"),
        ];
        for (text, rule) in refused {
            let error = text.parse::<Address>().unwrap_err();
            assert_eq!(error.text, text);
            assert!(error.to_string().contains(rule), "{text}: {error}");
        }
        let label = format!("{}:1", "a".repeat(64)).parse::<Address>().unwrap_err();
        assert!(label.to_string().contains("1 to 63"), "{label}");
    }

    #[test]
    fn a_node_may_listen_where_nobody_can_be_told_to_go() {
        for text in ["0.0.0.0:7001", "[::]:0", "localhost:0", "127.0.0.1:7001"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
        for text in ["0.0.0.0", "::", "a:b", "http://a:1"] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_bound_socket_has_an_address_unless_it_listens_everywhere() {
        let bound = |text: &str| Address::try_from(text.parse::<SocketAddr>().unwrap());
        assert_eq!(bound("[::1]:7001").unwrap().as_str(), "[::1]:7001");
        for text in ["0.0.0.0:7001", "[::]:7001", "127.0.0.1:0"] {
            assert!(bound(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_host_alone_is_a_name_or_an_address_without_brackets() {
        assert_eq!(
            "DB-1.example".parse::<Host>().unwrap().to_string(),
            "db-1.example"
        );
        assert_eq!("::1".parse(), Ok(Host::V6(Ipv6Addr::LOCALHOST)));
        assert_eq!("127.0.0.1".parse(), Ok(Host::V4(Ipv4Addr::LOCALHOST)));
        for text in ["", "not a host", "[::1]", "a:1", "1.2.3"] {
            assert!(text.parse::<Host>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_text_without_end_is_not_repeated_whole() {
        let error = "x".repeat(1 << 20).parse::<Address>().unwrap_err();
        assert!(error.to_string().len() < 1_000, "{}", error.to_string().len());
    }

    proptest! {
        #[test]
        fn an_address_survives_its_text(
            name in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z]([a-z0-9-]{0,20}[a-z0-9])?){0,4}\\.?",
            v4: [u8; 4], v6: [u16; 8], kind in 0..3, port in 1_u16..,
        ) {
            let text = match kind {
                0 => format!("{name}:{port}"),
                1 => format!("{}:{port}", Ipv4Addr::from(v4)),
                _ => format!("[{}]:{port}", Ipv6Addr::from(v6)),
            };
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string(), text);
                prop_assert_eq!(Address::new(address.host().clone(), address.port()), Ok(address));
            } else {
                // All digits, or of many machines.
                prop_assert!(kind > 0 || name.trim_end_matches('.').bytes().all(|b| b.is_ascii_digit()), "{}", text);
            }
        }

        #[test]
        fn any_text_is_the_form_of_an_address_or_leads_to_it_or_is_refused(text in "\\PC{0,40}|[a-z0-9.:\\[\\]%,/-]{0,30}") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.as_str().parse::<Address>(), Ok(address));
            }
        }
    }
}
