//! Which broker is meant, and which of its flags change: what steps name and operations on brokers do.

use crate::error::Error;
use crate::ids::{BrokerEpoch, BrokerId};
use crate::image::Image;
use crate::refusal::{Item, Reason, Refusal};
use crate::rows::Broker;

/// Which broker is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Its id.
    pub id: BrokerId,
    /// Which life of it; any, when not said.
    pub epoch: Option<BrokerEpoch>,
}

impl Target {
    /// Its row, where it is the life that is meant.
    pub(super) fn find<'a>(&self, image: &'a Image) -> Result<&'a Broker, Error> {
        let broker = self.id;
        let row = image.brokers.get(&broker);
        let row = row.ok_or_else(|| self.refused(Reason::UnknownBroker { broker }))?;
        match self.epoch {
            Some(asked) if asked != row.epoch => Err(self.refused(Reason::StaleBrokerEpoch {
                broker,
                asked,
                present: Some(row.epoch),
            })),
            _ => Ok(row),
        }
    }

    pub(super) fn refused(&self, reason: Reason) -> Error {
        Error::Refused(vec![Refusal::new(Item::Broker(self.id), reason)])
    }
}

impl From<BrokerId> for Target {
    fn from(id: BrokerId) -> Self {
        Self { id, epoch: None }
    }
}

impl From<u64> for Target {
    fn from(id: u64) -> Self {
        BrokerId::new(id).into()
    }
}

/// The life that was seen.
impl From<&Broker> for Target {
    fn from(broker: &Broker) -> Self {
        Self {
            id: broker.id,
            epoch: Some(broker.epoch),
        }
    }
}

/// Sets flags of a broker's row, and nothing else: the first step of a fence, of an unregistration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetFlags {
    /// The broker.
    pub target: Target,
    /// The new flags.
    pub flags: Flags,
}

/// Flags of a broker's row; `None` leaves one as it is. Lifting a fence is [`Unfence`](super::brokers::Unfence).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags {
    /// Fence it.
    pub fence: bool,
    /// It takes no new replicas.
    pub cordoned: Option<bool>,
}

impl Flags {
    /// A fence, and nothing else.
    pub const FENCE: Flags = Flags {
        fence: true,
        cordoned: None,
    };
    /// A fence, and no new replicas.
    pub const RETIRE: Flags = Flags {
        fence: true,
        cordoned: Some(true),
    };
}
