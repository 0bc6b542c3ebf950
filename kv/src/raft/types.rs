//! openraft's type parameters, chosen. They end in this module: no signature beyond names them.

use std::fmt;

use bytes::Bytes;
use openraft::raft::responder::Responder;
use quorate_transport::{Address, Peer};
use serde::{Deserialize, Serialize};

use super::snapshot_data::SnapshotData;
use crate::env;
use crate::identity::{ClusterUuid, MemberUuid};
use crate::machine::EntryOutcome;
use crate::model::{self, LogIndex, LogPosition, NodeId, Proposal, Term};

/// The choices.
#[derive(Debug, Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) struct TypeConfig;

impl openraft::RaftTypeConfig for TypeConfig {
    type D = ProposalData;
    type R = EntryOutcome;
    type NodeId = u64;
    type Node = Member;
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<ProposalData, u64, Member>;
    type Entry = openraft::Entry<Self::LeaderId, Self::Payload>;
    type AsyncRuntime = env::Runtime;
    type Responder<T>
        = Callback<T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type EntryPayload = openraft::alias::EntryPayloadOf<TypeConfig>;
pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type LeaderId = openraft::alias::LeaderIdOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, Member>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// What the membership says of a node, beside its id.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Member {
    /// Where its peers and clients reach it; `None` for a node without a network. As a text `host:port`, empty for none.
    #[serde(with = "place")]
    pub address: Option<Address>,
    /// Which directory it is; `None` for one that was not introduced yet, and so has never taken part.
    pub introduced: Option<Introduced>,
}

/// The members of a membership that a state or a log holds.
pub(crate) fn read_members(bytes: &[u8]) -> Result<Vec<(NodeId, Member)>, model::DecodeError> {
    let membership: Membership = model::decode(bytes)?;
    let members = membership.nodes();
    Ok(members
        .map(|(id, member)| (NodeId::new(*id), member.clone()))
        .collect())
}

/// Which directory a member is, and of which cluster. Every member of a membership that has any names the same cluster.
///
/// That the cluster is founded and who its members are is one entry: there is no state in which the one is known without
/// the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduced {
    /// The directory.
    pub member: MemberUuid,
    /// The cluster.
    pub cluster: ClusterUuid,
}

impl Member {
    /// One that was not introduced yet.
    pub(crate) fn at(address: Option<Address>) -> Self {
        Self {
            address,
            introduced: None,
        }
    }

    /// How it is reached. A member without a network is nowhere: no name under `invalid` is ever known (RFC 6761, 6.4).
    pub(crate) fn peer(&self, id: u64) -> Peer {
        let nowhere = || "nowhere.invalid:1".parse().expect("an address");
        Peer {
            node_id: Some(id),
            address: self.address.clone().unwrap_or_else(nowhere),
        }
    }

    /// Its address as a text, empty for none.
    pub(crate) fn address_text(&self) -> String {
        address_text(self.address.as_ref())
    }
}

/// An address as a text, empty for none.
pub(crate) fn address_text(address: Option<&Address>) -> String {
    address.map(Address::to_string).unwrap_or_default()
}

/// How the membership says where a node is.
mod place {
    use quorate_transport::Address;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(address: &Option<Address>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(address.as_ref().map_or("", Address::as_str))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Address>, D::Error> {
        let text = String::deserialize(from)?;
        match text.is_empty() {
            true => Ok(None),
            false => text.parse().map(Some).map_err(D::Error::custom),
        }
    }
}

/// An encoded [`Proposal`] behind the kind byte of its log record, so that the leader encodes it once and
/// the log and the network carry the same bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct ProposalData(Bytes);

/// The first byte of a log record's payload.
pub(crate) mod kind {
    /// A leader's first entry; nothing follows.
    pub(crate) const BLANK: u8 = 0;
    /// An encoded proposal follows.
    pub(crate) const PROPOSAL: u8 = 1;
    /// An encoded membership follows.
    pub(crate) const MEMBERSHIP: u8 = 2;
}

impl ProposalData {
    pub(crate) fn encode(proposal: &Proposal) -> Self {
        let mut framed = vec![kind::PROPOSAL];
        model::encode_onto(proposal, &mut framed);
        Self(framed.into())
    }

    /// A log record's whole payload, kind byte included.
    pub(crate) fn from_record(framed: Bytes) -> Self {
        Self(framed)
    }

    /// As a log record's payload.
    pub(crate) fn record(&self) -> Bytes {
        self.0.clone()
    }

    /// The encoded proposal.
    pub(crate) fn proposal(&self) -> Bytes {
        if self.0.is_empty() {
            Bytes::new()
        } else {
            self.0.slice(1..)
        }
    }
}

impl fmt::Debug for ProposalData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "proposal of {} bytes", self.0.len())
    }
}

impl fmt::Display for ProposalData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Receives a result where it arises, without a task that waits for it. What the closure holds must say for
/// itself, when dropped uncalled, that no answer came.
pub(crate) struct Callback<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Callback<T> {
    pub(crate) fn new(f: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Box::new(f))
    }
}

impl<T: Send + 'static> Responder<TypeConfig, T> for Callback<T> {
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}

pub(crate) fn position(id: &LogId) -> LogPosition {
    LogPosition {
        term: Term::new(id.leader_id.term),
        leader: NodeId::new(id.leader_id.node_id),
        index: LogIndex::new(id.index),
    }
}

pub(crate) fn log_id(position: LogPosition) -> LogId {
    LogId::new(
        LeaderId {
            term: position.term.number(),
            node_id: position.leader.number(),
        },
        position.index.number(),
    )
}
