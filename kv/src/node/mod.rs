//! A node: built, running, asked, stopped.
//!
//! [`Node::builder`] makes it from settings (data) and components (code). A node without peers serves within
//! milliseconds and opens no port; the same builder with peers, a transport and an id joins a cluster.

mod accept;
mod builder;
mod checked;
mod chronicle;
mod clients;
mod compactor;
mod cost;
mod disk_use;
mod first_limits;
mod front;
mod given_up;
mod hung_disk;
mod invalid_settings;
mod lanes;
mod limits;
mod loopback;
mod memory;
mod proposer;
mod reply;
mod room;
mod running;
mod scrub;
mod service;
mod settings;
mod shrinker;
mod space;
mod storage;

#[cfg(test)]
mod tests;

pub use crate::env::Disk;
pub use crate::fault::Fault;
pub use crate::identity::IdentityError;
pub use crate::log::LogOpenError;
pub use crate::machine::MachineOpenError;
pub use crate::raft::{LogEvent, LogVote, Tap};
pub use crate::status::{MemberStatus, NodeRole, Status};
pub use crate::timing::{InvalidTiming, Profile, Timing};
pub use builder::{Builder, StartError};
pub use invalid_settings::InvalidSettings;
pub use memory::MemoryParts;
pub use running::{Node, ShutdownReport};
pub use settings::Settings;
pub use storage::StorageError;

pub(crate) use front::Front;
