//! The sending side of a snapshot: a pinned state over a stream, from the chunk on that the receiver lacks.

use std::time::Duration;

use bytes::Bytes;
use openraft::errors::{NetworkError, StreamingError};
use openraft::raft::SnapshotResponse;
use quorate_transport::{Class, Peer, TransportError};

use super::acquaintance::{Acquaintance, Greeted};
use super::rpc_error::rpc_error;
use super::sendings::Sendings;
use super::snapshot_data::SnapshotData;
use super::types::{Snapshot, TypeConfig, Vote};
use super::wire::{SnapshotAnswer, SnapshotHeader};
use crate::env::{self, Owner};
use crate::fault::{Fault, Faults};
use crate::machine::SnapshotSource;
use crate::model;

/// The longest pause after a refusal.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// What a receiver verifies and installs in a second, at least.
const INSTALLED_BYTES_A_SECOND: u64 = 4 << 20;

/// How long to wait after the next refusal, where there were so many before it.
pub(super) fn pause_after(refusals: u32) -> Duration {
    Duration::from_secs(1 << refusals.min(6)).min(PAUSE_MAX)
}

/// Why a snapshot did not arrive.
#[derive(Debug)]
pub(super) enum SendError {
    /// The connection broke, or this node cannot read its state.
    Broken(StreamingError<TypeConfig>),
    /// The receiver will not have it, or cannot keep it.
    Refused(String),
}

impl SendError {
    fn network(what: &str) -> Self {
        SendError::Broken(StreamingError::Network(NetworkError::from_string(what)))
    }
}

impl From<TransportError> for SendError {
    fn from(error: TransportError) -> Self {
        SendError::Broken(StreamingError::from(rpc_error(&error)))
    }
}

/// One snapshot to one peer.
pub(super) struct Sending<'a> {
    pub(super) acquaintance: &'a Acquaintance,
    pub(super) peer: &'a Peer,
    pub(super) stall_max: Duration,
    pub(super) faults: &'a Faults,
    pub(super) sendings: &'a Sendings,
}

impl Sending<'_> {
    pub(super) async fn send(
        &self,
        vote: Vote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<TypeConfig>, SendError> {
        let SnapshotData::Source(source) = snapshot.snapshot else {
            return Err(SendError::network("a received snapshot cannot be sent on"));
        };
        let _span = env::span("snapshot.send");
        let pinned = source.pinned();
        let header = SnapshotHeader {
            vote,
            meta: snapshot.meta,
            tag: source.tag(),
        };
        let sent = self.stream(&header, source).await;
        match &sent {
            // It may go on where it broke.
            Err(SendError::Broken(_)) => self.sendings.broke(pinned),
            Ok(_) | Err(SendError::Refused(_)) => self.sendings.arrived(&pinned),
        }
        sent
    }

    async fn stream(
        &self,
        header: &SnapshotHeader,
        source: Box<SnapshotSource>,
    ) -> Result<SnapshotResponse<TypeConfig>, SendError> {
        let mut bytes = 0_u64;
        let mut stream = self.acquaintance.open(self.peer, Class::Bulk).await?;
        stream.sender.send(model::encode(header).into()).await?;
        let begin = match self.answer(&mut stream.receiver, self.stall_max).await? {
            SnapshotAnswer::From(number) => number,
            SnapshotAnswer::Installed(response) => return Ok(response),
            SnapshotAnswer::Failed(reason) => return Err(SendError::Refused(reason)),
        };
        if begin > 0 {
            env::mark("snapshot.resumed");
            tracing::info!(
                to = self.peer.node_id,
                chunk = begin,
                "a snapshot goes on where it broke"
            );
        }
        // Chunks are read by a thread of their own, one ahead of the network.
        let reader = ChunkReader { source, begin };
        let on_panic = self.faults.on_panic("snapshot reader");
        let chunks = env::spawn_owner("quorate-snapshot-read", 1, 1, reader, on_panic);
        let stopped = || Fault::Stopped {
            owner: "snapshot reader",
        };
        loop {
            let (done, chunk) = env::oneshot::channel();
            let chunk = match chunks.send(done).await {
                Ok(()) => chunk.await.unwrap_or_else(|_| Err(stopped())),
                Err(_) => Err(stopped()),
            };
            let chunk = chunk.map_err(|fault| {
                let told = SendError::Broken(StreamingError::Network(NetworkError::new(&fault)));
                // What it finds to be spoiled is no fault of the network's.
                if !matches!(fault, Fault::Stopped { .. }) {
                    self.faults.raise(fault);
                }
                told
            })?;
            let Some(chunk) = chunk else { break };
            metrics::counter!("quorate_snapshot_sent_bytes_total").increment(chunk.len() as u64);
            bytes += chunk.len() as u64;
            match env::timeout(self.stall_max, stream.sender.send(chunk)).await {
                Ok(Ok(())) => {}
                // A receiver that refuses says why, and takes no more.
                Ok(Err(error)) => {
                    return match self.answer(&mut stream.receiver, self.stall_max).await {
                        Ok(SnapshotAnswer::Failed(reason)) => Err(SendError::Refused(reason)),
                        _ => Err(error.into()),
                    };
                }
                Err(env::Elapsed) => return Err(SendError::network("the receiver takes no more")),
            }
        }
        stream.sender.finish().await?;
        // The receiver verifies and installs before it answers, which takes time in proportion to the state.
        let patience = self.stall_max * 30 + Duration::from_secs(bytes / INSTALLED_BYTES_A_SECOND);
        match self.answer(&mut stream.receiver, patience).await? {
            SnapshotAnswer::Installed(response) => Ok(response),
            SnapshotAnswer::Failed(reason) => Err(SendError::Refused(reason)),
            SnapshotAnswer::From(_) => Err(SendError::network("an answer that nobody asked for")),
        }
    }

    async fn answer(&self, receiver: &mut Greeted, patience: Duration) -> Result<SnapshotAnswer, SendError> {
        match env::timeout(patience, receiver.receive()).await {
            Ok(Ok(Some(bytes))) => model::decode(&bytes)
                .map_err(|e| SendError::Broken(StreamingError::Network(NetworkError::new(&e)))),
            Ok(Ok(None)) => Err(SendError::network("no answer to the snapshot")),
            Ok(Err(error)) => Err(error.into()),
            Err(env::Elapsed) => Err(SendError::network("no answer to the snapshot in time")),
        }
    }
}

struct ChunkReader {
    source: Box<SnapshotSource>,
    /// The first chunk that is wanted.
    begin: u32,
}

impl Owner for ChunkReader {
    type Job = env::oneshot::Sender<Result<Option<Bytes>, Fault>>;
    type Effects = Vec<(Self::Job, Result<Option<Bytes>, Fault>)>;

    fn work(&mut self, batch: &mut Vec<Self::Job>) -> Self::Effects {
        let mut next = || {
            self.source.skip_to(self.begin)?;
            self.source.next_chunk()
        };
        batch.drain(..).map(|done| (done, next())).collect()
    }

    fn publish(&mut self, effects: Self::Effects) {
        for (done, chunk) in effects {
            let _ = done.send(chunk);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_that_refuses_is_asked_again_after_twice_as_long_each_time_and_a_minute_at_most() {
        let seconds: Vec<u64> = (0..9).map(|refusals| pause_after(refusals).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }
}
