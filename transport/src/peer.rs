//! A peer, as its callers name it.

use crate::Address;

/// Where a peer is to be found and who it must prove to be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Peer {
    /// The node that must answer there; `None` takes any node of the cluster (clients know addresses only).
    pub node_id: Option<u64>,
    /// Where it listens.
    pub address: Address,
}
