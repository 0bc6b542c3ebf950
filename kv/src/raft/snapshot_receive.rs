//! The receiving side of a snapshot: chunks into a file beside the state, verified, and installed by openraft.
//!
//! What had come when a stream broke is kept for a while, and gone on with when the same snapshot is sent again.

use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::raft::SnapshotResponse;
use quorate_transport::{MessageReceiver, Stream};

use super::broken_off::{ChunkJob, ChunkWriter, Partial};
use super::node::RaftNode;
use super::peer_stream::{end, refuse};
use super::sendings::KEPT;
use super::snapshot_data::SnapshotData;
use super::state_machine::Raft;
use super::types::{Snapshot, TypeConfig, Vote};
use super::wire::{SnapshotAnswer, SnapshotHeader};
use crate::env::{self, oneshot};
use crate::machine::ReceivedSnapshot;
use crate::model;

/// Chunks that wait for the writer thread: the sender reads one ahead, so more would only hold memory.
const CHUNK_QUEUE: usize = 2;

/// Why a snapshot was not received.
enum Failed {
    /// The stream broke; what came is kept.
    Broken(String),
    /// It is no use, or there is no room for it.
    Refused(String),
}

/// Receives a snapshot into a file, verifies it, and has openraft install it.
pub(crate) async fn snapshot(node: Arc<RaftNode>, from: u64, mut stream: Stream) {
    let _span = env::span("snapshot.receive");
    if node.acquaintance.welcome(from, &mut stream).await.is_none() {
        return end(stream).await;
    }
    let answer = match receive(&node, from, &mut stream).await {
        Ok(Arrived::Known) => {
            env::mark("snapshot.known");
            let vote = node.raft.metrics().borrow_watched().vote;
            acknowledged(&node, Ok(SnapshotResponse::new(vote))).await
        }
        Ok(Arrived::Whole(vote, snapshot)) => {
            let installed = install(&node.raft, vote, *snapshot).await;
            if installed.is_ok() {
                env::mark("snapshot.installed");
            }
            acknowledged(&node, installed).await
        }
        Err(Failed::Broken(reason)) => {
            tracing::info!(
                from,
                reason,
                "a snapshot broke off; what came of it is kept for a while"
            );
            return;
        }
        Err(Failed::Refused(reason)) => SnapshotAnswer::Failed(reason),
    };
    if let SnapshotAnswer::Failed(reason) = &answer {
        tracing::warn!(from, reason, "a snapshot was not installed");
    }
    if stream.sender.send(model::encode(&answer).into()).await.is_ok() {
        let _ = stream.sender.finish().await;
    }
}

/// The answer on which the leader counts everything in the snapshot as durable here.
///
/// What is applied need not be: entries are applied once they are committed, which others may have on disk before this
/// node has. Nor does openraft install a snapshot of what it knows to be committed. So the log is waited for.
async fn acknowledged(
    node: &RaftNode,
    response: Result<SnapshotResponse<TypeConfig>, String>,
) -> SnapshotAnswer {
    match response {
        Ok(response) => match node.log.durable().await {
            Ok(()) => SnapshotAnswer::Installed(response),
            Err(fault) => SnapshotAnswer::Failed(fault.to_string()),
        },
        Err(reason) => SnapshotAnswer::Failed(reason),
    }
}

async fn install(
    raft: &Raft,
    vote: Vote,
    snapshot: Snapshot,
) -> Result<openraft::raft::SnapshotResponse<TypeConfig>, String> {
    raft.install_full_snapshot(vote, snapshot)
        .await
        .map_err(|e| e.to_string())
}

/// What comes of a snapshot's stream.
enum Arrived {
    /// All of it.
    Whole(Vote, Box<Snapshot>),
    /// Its header alone: what it has is applied here already, durable or not, as when the answer to it was lost or came too late.
    Known,
}

async fn receive(node: &Arc<RaftNode>, from: u64, stream: &mut Stream) -> Result<Arrived, Failed> {
    let broken = |e: &dyn std::fmt::Display| Failed::Broken(e.to_string());
    let header = stream.receiver.receive().await.map_err(|e| broken(&e))?;
    let header = header.ok_or_else(|| broken(&"no header"))?;
    let header: SnapshotHeader = model::decode(&header).map_err(|e| Failed::Refused(e.to_string()))?;
    if header.vote.leader_id.node_id != from {
        refuse(from, &header.vote);
        return Err(Failed::Refused(format!(
            "node {from} may not speak for node {}",
            header.vote.leader_id.node_id
        )));
    }
    let applied = node
        .machine
        .applied()
        .borrow()
        .position
        .map(|at| at.index.number());
    let last = header.meta.last_log_id.as_ref().map(|id| id.index);
    if applied >= last {
        return Ok(Arrived::Known);
    }
    let mut partial = node.broken_off.take(header.tag).unwrap_or_else(|| {
        let writer = ChunkWriter {
            machine: node.machine.clone(),
            sink: None,
        };
        let on_panic = node.machine.faults().on_panic("snapshot writer");
        Partial {
            tag: header.tag,
            chunks: 0,
            writer: env::spawn_owner("quorate-snapshot-write", CHUNK_QUEUE, 1, writer, on_panic),
        }
    });
    let from_chunk = SnapshotAnswer::From(partial.chunks);
    let received = match stream.sender.send(model::encode(&from_chunk).into()).await {
        Ok(()) => write_all(&mut partial, &mut stream.receiver).await,
        Err(error) => Err(broken(&error)),
    };
    match received {
        Ok(received) => Ok(Arrived::Whole(
            header.vote,
            Box::new(Snapshot {
                meta: header.meta,
                snapshot: SnapshotData::Received(received),
            }),
        )),
        Err(failed) => {
            if matches!(failed, Failed::Broken(_)) && partial.chunks > 0 {
                keep(node, partial);
            }
            Err(failed)
        }
    }
}

/// Keeps what came, for as long as the sender keeps what it sent.
fn keep(node: &Arc<RaftNode>, partial: Partial) {
    let (tag, chunks) = (partial.tag, partial.chunks);
    *node.broken_off.partial() = Some(partial);
    let weak = Arc::downgrade(node);
    node.tasks.spawn("broken-off", async move {
        env::sleep(KEPT).await;
        if let Some(node) = weak.upgrade() {
            node.broken_off.forget(tag, chunks);
        }
    });
}

/// Writes what comes, up to the end.
async fn write_all(
    partial: &mut Partial,
    receiver: &mut MessageReceiver,
) -> Result<ReceivedSnapshot, Failed> {
    let stopped = || Failed::Refused("the snapshot's writer stopped".to_owned());
    while let Some(chunk) = receiver
        .receive()
        .await
        .map_err(|e| Failed::Broken(e.to_string()))?
    {
        metrics::counter!("quorate_snapshot_received_bytes_total").increment(chunk.len() as u64);
        let (done, written) = oneshot::channel();
        let sent = partial.writer.send(ChunkJob::Write(chunk, done)).await;
        sent.map_err(|_| stopped())?;
        written.await.map_err(|_| stopped())?.map_err(Failed::Refused)?;
        partial.chunks = partial.chunks.saturating_add(1);
    }
    let (done, finished) = oneshot::channel();
    let sent = partial.writer.send(ChunkJob::Finish(done)).await;
    sent.map_err(|_| stopped())?;
    finished.await.map_err(|_| stopped())?.map_err(Failed::Refused)
}
