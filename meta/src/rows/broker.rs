//! `b/<broker id>` → who the broker is, where it is reached and which of its flags are up.
//!
//! Lifetime: from registration to unregistration. Liveness is not in here: every creation and ISR change pins
//! broker rows, so that a heartbeat written here would make all of them conflict.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use quorate_kv::model::{Key, LogTime, Record, Revision, decode, encode};
use quorate_transport::{Address, AddressRule, InvalidAddress};
use serde::{Deserialize, Serialize};

use super::{CorruptReason, CorruptRow};
use crate::ids::{BrokerEpoch, BrokerId, Incarnation};

/// A registered broker. Its flags are independent of each other: a draining broker may be fenced too.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Broker {
    /// Its id.
    pub id: BrokerId,
    /// The revision of the commit that registered this incarnation; kept when the row is amended.
    pub epoch: BrokerEpoch,
    /// The life of the process that registered.
    pub incarnation: Incarnation,
    /// Where it is reached; at least one.
    pub endpoints: Vec<Endpoint>,
    /// Its failure domain.
    pub rack: Option<String>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// What it can hold.
    pub capacity: Capacity,
    /// It may neither lead nor be in an ISR.
    pub fenced: bool,
    /// It is leaving: it takes no leadership and joins no ISR any more in this epoch.
    pub shutting_down: bool,
    /// It takes no new replicas.
    pub cordoned: bool,
    /// Its replicas are being moved away; it takes no new ones.
    pub draining: bool,
    /// When this incarnation registered, by the proposer's clock.
    pub registered_at: LogTime,
    /// When the row was last written, by the proposer's clock.
    pub modified_at: LogTime,
    /// The revision that last wrote the row.
    pub revision: Revision,
}

/// What a broker can hold. `None` means that it did not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// The most replicas.
    pub replicas_max: Option<u32>,
    /// The size of its disks, in bytes.
    pub disk_bytes: Option<u64>,
}

/// A place where a broker is reached: a listener's name and an address, as a text `host:port` or `LISTENER://host:port`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "EndpointRow", try_from = "EndpointRow")]
pub struct Endpoint {
    listener: String,
    address: Address,
}

/// Text that is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no endpoint of the form host:port or LISTENER://host:port: {rule}")]
pub struct InvalidEndpoint {
    /// The text, or its beginning.
    pub text: String,
    /// The rule that it breaks.
    pub rule: EndpointRule,
}

/// What an endpoint must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointRule {
    /// A listener's name.
    #[error("a listener's name is 1 to 64 characters of A-Z, a-z, 0-9, ., _ and -")]
    Listener,
    /// Its address.
    #[error(transparent)]
    Address(AddressRule),
}

impl Endpoint {
    /// The listener of an endpoint that names none.
    pub const DEFAULT_LISTENER: &str = "PLAINTEXT";

    /// An endpoint of a listener: 1 to 64 characters of `[A-Za-z0-9._-]`.
    pub fn new(listener: &str, address: Address) -> Result<Self, InvalidEndpoint> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if listener.is_empty() || listener.len() > 64 || !listener.chars().all(legal) {
            return Err(InvalidEndpoint::new(
                &format!("{listener}://{address}"),
                EndpointRule::Listener,
            ));
        }
        Ok(Self {
            listener: listener.to_owned(),
            address,
        })
    }

    /// The listener's name.
    pub fn listener(&self) -> &str {
        &self.listener
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

impl InvalidEndpoint {
    fn new(text: &str, rule: EndpointRule) -> Self {
        let text = text.chars().take(300).collect();
        Self { text, rule }
    }
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;
    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        let refused = |rule| InvalidEndpoint::new(text, EndpointRule::Address(rule));
        if text.contains(',') {
            return Err(refused(AddressRule::Several));
        }
        let (listener, address) = text.split_once("://").unwrap_or((Self::DEFAULT_LISTENER, text));
        let address = address
            .parse()
            .map_err(|error: InvalidAddress| refused(error.rule))?;
        Self::new(listener, address).map_err(|error| InvalidEndpoint::new(text, error.rule))
    }
}

impl TryFrom<&str> for Endpoint {
    type Error = InvalidEndpoint;
    fn try_from(text: &str) -> Result<Self, InvalidEndpoint> {
        text.parse()
    }
}

impl TryFrom<&String> for Endpoint {
    type Error = InvalidEndpoint;
    fn try_from(text: &String) -> Result<Self, InvalidEndpoint> {
        text.parse()
    }
}

impl TryFrom<String> for Endpoint {
    type Error = InvalidEndpoint;
    fn try_from(text: String) -> Result<Self, InvalidEndpoint> {
        text.parse()
    }
}

impl From<&Endpoint> for Endpoint {
    fn from(endpoint: &Endpoint) -> Self {
        endpoint.clone()
    }
}

/// An address without a listener's name is of [`Endpoint::DEFAULT_LISTENER`].
impl From<Address> for Endpoint {
    fn from(address: Address) -> Self {
        Self {
            listener: Self::DEFAULT_LISTENER.to_owned(),
            address,
        }
    }
}

/// Of an endpoint that needs no check.
impl From<Infallible> for InvalidEndpoint {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.listener, self.address)
    }
}

/// How a row has it; a host that is an IPv6 address stands without brackets.
#[derive(Serialize, Deserialize)]
struct EndpointRow {
    listener: String,
    host: String,
    port: u16,
}

impl From<Endpoint> for EndpointRow {
    fn from(endpoint: Endpoint) -> Self {
        Self {
            listener: endpoint.listener,
            host: endpoint.address.host().to_string(),
            port: endpoint.address.port(),
        }
    }
}

impl TryFrom<EndpointRow> for Endpoint {
    type Error = InvalidEndpoint;
    fn try_from(row: EndpointRow) -> Result<Self, InvalidEndpoint> {
        let EndpointRow { listener, host, port } = row;
        let refused =
            |error: InvalidAddress| InvalidEndpoint::new(&error.text, EndpointRule::Address(error.rule));
        let address = host
            .parse()
            .and_then(|host| Address::new(host, port))
            .map_err(refused)?;
        Self::new(&listener, address)
    }
}

#[derive(Serialize, Deserialize)]
enum Stored {
    V1(StoredV1),
}

#[derive(Serialize, Deserialize)]
struct StoredV1 {
    /// `None`: this very record's revision, since the registration's commit cannot know its own revision.
    epoch: Option<Revision>,
    incarnation: Incarnation,
    endpoints: Vec<Endpoint>,
    rack: Option<String>,
    labels: BTreeMap<String, String>,
    capacity: Capacity,
    flags: u8,
    registered_at: LogTime,
    modified_at: LogTime,
}

const FENCED: u8 = 1;
const SHUTTING_DOWN: u8 = 2;
const CORDONED: u8 = 4;
const DRAINING: u8 = 8;
const FLAGS: u8 = FENCED | SHUTTING_DOWN | CORDONED | DRAINING;

/// Whether a row's encoding begins an epoch or continues one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EpochOf {
    /// The commit that carries the row is the registration.
    Begins,
    /// The row is amended, its epoch stays.
    Continues,
}

impl Broker {
    pub(crate) fn encode(&self, epoch: EpochOf) -> Vec<u8> {
        let flag = |up, bit| if up { bit } else { 0 };
        encode(&Stored::V1(StoredV1 {
            epoch: match epoch {
                EpochOf::Begins => None,
                EpochOf::Continues => Some(self.epoch.revision()),
            },
            incarnation: self.incarnation,
            endpoints: self.endpoints.clone(),
            rack: self.rack.clone(),
            labels: self.labels.clone(),
            capacity: self.capacity,
            flags: flag(self.fenced, FENCED)
                | flag(self.shutting_down, SHUTTING_DOWN)
                | flag(self.cordoned, CORDONED)
                | flag(self.draining, DRAINING),
            registered_at: self.registered_at,
            modified_at: self.modified_at,
        }))
    }

    pub(crate) fn decode(key: &Key, id: BrokerId, record: &Record) -> Result<Self, CorruptRow> {
        let stored = decode(&record.value).map_err(|e| CorruptRow::new(key, e))?;
        let Stored::V1(row) = stored;
        if row.flags & !FLAGS != 0 {
            return Err(CorruptRow::new(key, CorruptReason::Flags(row.flags)));
        }
        Ok(Self {
            id,
            epoch: BrokerEpoch::new(row.epoch.unwrap_or(record.mod_revision)),
            incarnation: row.incarnation,
            endpoints: row.endpoints,
            rack: row.rack,
            labels: row.labels,
            capacity: row.capacity,
            fenced: row.flags & FENCED != 0,
            shutting_down: row.flags & SHUTTING_DOWN != 0,
            cordoned: row.flags & CORDONED != 0,
            draining: row.flags & DRAINING != 0,
            registered_at: row.registered_at,
            modified_at: row.modified_at,
            revision: record.mod_revision,
        })
    }

    /// Whether it may lead and be in an ISR: neither fenced nor shutting down.
    pub fn is_active(&self) -> bool {
        !self.fenced && !self.shutting_down
    }

    /// Whether placement may give it new replicas: active, neither cordoned nor draining.
    pub fn takes_replicas(&self) -> bool {
        self.is_active() && !self.cordoned && !self.draining
    }
}
