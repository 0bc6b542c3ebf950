//! How streams of peers are ended and refused.

use bytes::Bytes;
use quorate_transport::Stream;

use super::types::Vote;
use super::wire::ControlResponse;

/// Ends a stream so that what was sent last still arrives.
pub(super) async fn end(stream: Stream) {
    let _gone = stream.sender.finish().await;
}

/// Refuses who speaks in another's name.
pub(super) fn refuse(from: u64, vote: &Vote) -> ControlResponse {
    tracing::warn!(
        from,
        claimed = vote.leader_id.node_id,
        "a node spoke in another's name"
    );
    ControlResponse::Refused(format!(
        "node {from} may not speak for node {}",
        vote.leader_id.node_id
    ))
}

/// In the place of an answer: one is owed, and this node lives.
pub(super) const SIGN_OF_LIFE: Bytes = Bytes::new();
