//! openraft, wired to our log, machine and transport. Its types end here.
//!
//! [`RaftNode`] is what the rest of the crate sees: propose, read index, membership, leadership, and what the
//! metrics say, in the model's words.

mod acquaintance;
mod broken_off;
mod checkpoints;
mod comparison;
#[cfg(any(test, feature = "fuzzing"))]
mod decoders;
mod forming;
mod freshness;
mod heartbeat;
mod hello;
mod intake;
mod keeping;
mod log_store;
mod membership;
mod membership_error;
mod network;
mod node;
mod owed;
mod peer_stream;
mod purge;
mod read_index;
mod rounds;
mod rpc_error;
mod sendings;
mod serve;
mod settings;
mod snapshot_data;
mod snapshot_receive;
mod snapshot_send;
#[cfg(test)]
mod snapshot_tests;
mod start;
mod state;
mod state_machine;
mod step_down;
mod succession;
#[cfg(test)]
mod suite;
mod tap;
mod turns;
mod types;
mod wire;

pub(crate) use comparison::noted as noted_to_differ;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use decoders::decoders;
pub(crate) use log_store::read_vote;
pub(crate) use membership_error::MembershipError;
pub(crate) use node::{Proposed, RaftNode};
pub(crate) use read_index::ReadIndexError;
pub(crate) use settings::RaftSettings;
pub(crate) use start::RaftParts;
pub(crate) use state::{MemberState, Part, RaftState};
pub use tap::{LogEvent, LogVote, Tap};
pub(crate) use turns::ApplyBounds;
pub(crate) use types::{Member, ProposalData, address_text, read_members};
