//! The receiving side of what nodes say to each other.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use quorate_transport::{MessageReceiver, Stream};

use super::acquaintance::Met;
use super::freshness::Echoes;
use super::heartbeat;
use super::intake::{Intake, committed_with};
use super::types::{Raft, Snapshot, TypeConfig, Vote};
use super::wire::{ControlRequest, ControlResponse, SnapshotAnswer, SnapshotHeader, decode_append};
use super::{RaftNode, SnapshotData, StateMachine};
use crate::env::{self, Owner, oneshot};
use crate::machine::{ReceivedSnapshot, SnapshotSink};
use crate::model::{self, LogIndex};

/// Chunks that wait for the writer thread: the sender reads one ahead, so more would only hold memory.
const CHUNK_QUEUE: usize = 2;

/// Answers a peer's control stream until it ends.
pub(crate) async fn control(node: Arc<RaftNode>, from: u64, mut stream: Stream) {
    let mut echoes = Echoes::default();
    let Some(mut met) = node.acquaintance.welcome(from, &mut stream).await else {
        return end(stream).await;
    };
    while let Ok(Some(message)) = stream.receiver.receive().await {
        if !met.still_fits() {
            return end(stream).await;
        }
        let answer = match model::decode::<ControlRequest>(&message) {
            Ok(request) => answer_control(&node, from, request, &echoes).await,
            Err(error) => ControlResponse::Refused(error.to_string()),
        };
        echoes.answer(env::now());
        if stream.sender.send(model::encode(&answer).into()).await.is_err() {
            return;
        }
    }
}

/// Ends a stream so that what was sent last still arrives.
async fn end(stream: Stream) {
    let _gone = stream.sender.finish().await;
}

async fn answer_control(
    node: &RaftNode,
    from: u64,
    request: ControlRequest,
    echoes: &Echoes,
) -> ControlResponse {
    let stopped = |e: &dyn std::fmt::Display| ControlResponse::Stopped(e.to_string());
    match request {
        ControlRequest::Vote(request) | ControlRequest::PreVote(request)
            if request.vote.leader_id.node_id != from =>
        {
            refuse(from, &request.vote)
        }
        ControlRequest::Vote(request) => match node.raft.vote(request).await {
            Ok(response) => ControlResponse::Vote(response),
            Err(error) => stopped(&error),
        },
        ControlRequest::PreVote(request) => match node.raft.pre_vote(request).await {
            Ok(response) => ControlResponse::Vote(response),
            Err(error) => stopped(&error),
        },
        ControlRequest::Heartbeat(heartbeat) if heartbeat.vote.leader_id.node_id != from => {
            refuse(from, &heartbeat.vote)
        }
        ControlRequest::Heartbeat(heartbeat) => {
            node.freshness
                .heard(heartbeat.commit.map(|id| LogIndex::new(id.index)));
            if let Some(confirmed) = heartbeat.confirmed
                && let Some(left_at) = echoes.left_at(confirmed.answers)
            {
                node.freshness.confirm(left_at, Some(confirmed.index));
            }
            match heartbeat::answer(&node.raft, &heartbeat).await {
                Ok(answer) => ControlResponse::Append(answer),
                Err(error) => stopped(&error),
            }
        }
        ControlRequest::TransferLeader(request) if request.from_leader().leader_id.node_id != from => {
            refuse(from, request.from_leader())
        }
        ControlRequest::TransferLeader(request) => match node.raft.handle_transfer_leader(request).await {
            Ok(response) => ControlResponse::TransferLeader(response),
            Err(error) => stopped(&error),
        },
        ControlRequest::LeaderEnded { vote } => node.witness.answer(&node.raft, vote).await,
        ControlRequest::ReadIndex => match node.rounds.index_as_leader().await {
            Ok(index) => ControlResponse::ReadIndex(index),
            Err(_) => ControlResponse::NotLeader,
        },
    }
}

fn refuse(from: u64, vote: &Vote) -> ControlResponse {
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

/// Takes a leader's entries until the stream ends, answering each message in order after its entries are
/// durable here.
pub(crate) async fn append(node: Arc<RaftNode>, from: u64, mut stream: Stream) {
    let Some(met) = node.acquaintance.welcome(from, &mut stream).await else {
        return end(stream).await;
    };
    let Stream { mut sender, receiver } = stream;
    let intake = Intake::new(node.log.clone(), node.machine.applied());
    let unanswered = intake.unanswered();
    let requests = requests(receiver, from, met, intake);
    let mut answers = Box::pin(node.raft.stream_append(requests));
    let mut ready = Vec::new();
    while let Some(answer) = answers.next().await {
        unanswered.answered();
        let Ok(answer) = answer else { return };
        let last = answer.is_err();
        ready.push(encode_answer(&answer));
        if sender.send_all(&mut ready).await.is_err() || last {
            break;
        }
    }
    let _ = sender.finish().await;
}

fn encode_answer(answer: &StreamAppendResult<TypeConfig>) -> Bytes {
    model::encode(answer).into()
}

/// A message whose entries may stay in memory for long. A small one shares its buffer with whatever arrived
/// in the same packets, and would keep all of that; a large one is its buffer.
fn own(message: Bytes) -> Bytes {
    const SHARED_MAX: usize = 64 * 1024;
    if message.len() <= SHARED_MAX {
        Bytes::copy_from_slice(&message)
    } else {
        message
    }
}

/// The messages of an append stream as requests; ends with the stream or at the first that is malformed or
/// in another's name, or of who is not whom the members know any more.
fn requests(
    receiver: MessageReceiver,
    from: u64,
    met: Met,
    intake: Intake,
) -> impl futures_util::Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static {
    stream::unfold(
        (receiver, met, intake),
        move |(mut receiver, mut met, mut intake)| async move {
            let message = own(receiver.receive().await.ok()??);
            if !met.still_fits() {
                return None;
            }
            match decode_append(&message) {
                Ok(request) if request.vote.leader_id.node_id == from => {
                    intake.admit(message.len(), committed_with(&request)).await;
                    Some((request, (receiver, met, intake)))
                }
                Ok(request) => {
                    refuse(from, &request.vote);
                    None
                }
                Err(error) => {
                    tracing::warn!(from, %error, "an append message cannot be read");
                    None
                }
            }
        },
    )
}

/// Receives a snapshot into a file, verifies it, and has openraft install it.
pub(crate) async fn snapshot(node: Arc<RaftNode>, from: u64, mut stream: Stream) {
    let _span = env::span("snapshot.receive");
    if node.acquaintance.welcome(from, &mut stream).await.is_none() {
        return end(stream).await;
    }
    let answer = match receive_snapshot(&node, from, &mut stream.receiver).await {
        Ok((vote, snapshot)) => match install(&node.raft, vote, snapshot).await {
            Ok(response) => {
                env::mark("snapshot.installed");
                SnapshotAnswer::Installed(response)
            }
            Err(reason) => SnapshotAnswer::Failed(reason),
        },
        Err(reason) => SnapshotAnswer::Failed(reason),
    };
    if let SnapshotAnswer::Failed(reason) = &answer {
        tracing::warn!(from, reason, "a snapshot was not installed");
    }
    if stream.sender.send(model::encode(&answer).into()).await.is_ok() {
        let _ = stream.sender.finish().await;
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

async fn receive_snapshot(
    node: &RaftNode,
    from: u64,
    receiver: &mut MessageReceiver,
) -> Result<(Vote, Snapshot), String> {
    let header = receiver
        .receive()
        .await
        .map_err(|e| e.to_string())?
        .ok_or("no header")?;
    let header: SnapshotHeader = model::decode(&header).map_err(|e| e.to_string())?;
    if header.vote.leader_id.node_id != from {
        refuse(from, &header.vote);
        return Err(format!(
            "node {from} may not speak for node {}",
            header.vote.leader_id.node_id
        ));
    }
    let writer = ChunkWriter {
        machine: node.machine.clone(),
        sink: None,
    };
    let on_panic = node.machine.faults().on_panic("snapshot writer");
    let writer = env::spawn_owner("quorate-snapshot-write", CHUNK_QUEUE, 1, writer, on_panic);
    while let Some(chunk) = receiver.receive().await.map_err(|e| e.to_string())? {
        metrics::counter!("quorate_snapshot_received_bytes_total").increment(chunk.len() as u64);
        let (done, written) = oneshot::channel();
        writer
            .send(ChunkJob::Write(chunk, done))
            .await
            .map_err(|e| e.to_string())?;
        written
            .await
            .map_err(|_| "the snapshot's writer stopped".to_owned())??;
    }
    let (done, finished) = oneshot::channel();
    writer
        .send(ChunkJob::Finish(done))
        .await
        .map_err(|e| e.to_string())?;
    let received = finished
        .await
        .map_err(|_| "the snapshot's writer stopped".to_owned())??;
    Ok((
        header.vote,
        Snapshot {
            meta: header.meta,
            snapshot: SnapshotData::Received(received),
        },
    ))
}

struct ChunkWriter {
    machine: StateMachine,
    sink: Option<SnapshotSink>,
}

enum ChunkJob {
    Write(Bytes, oneshot::Sender<Result<(), String>>),
    Finish(oneshot::Sender<Result<ReceivedSnapshot, String>>),
}

enum ChunkEffect {
    Wrote(Result<(), String>, oneshot::Sender<Result<(), String>>),
    Finished(
        Result<ReceivedSnapshot, String>,
        oneshot::Sender<Result<ReceivedSnapshot, String>>,
    ),
}

impl ChunkWriter {
    fn write(&mut self, chunk: &[u8]) -> Result<(), String> {
        if self.sink.is_none() {
            self.sink = Some(self.machine.sink().map_err(|e| e.to_string())?);
        }
        match &mut self.sink {
            Some(sink) => sink.write(chunk).map_err(|e| e.to_string()),
            None => Err("no file to write to".to_owned()),
        }
    }

    fn complete(&mut self) -> Result<ReceivedSnapshot, String> {
        let sink = self.sink.take().ok_or("the snapshot has no chunk")?;
        sink.finish().map_err(|e| e.to_string())
    }
}

impl Owner for ChunkWriter {
    type Job = ChunkJob;
    type Effects = Vec<ChunkEffect>;

    fn work(&mut self, batch: &mut Vec<ChunkJob>) -> Vec<ChunkEffect> {
        let jobs = batch.drain(..);
        jobs.map(|job| match job {
            ChunkJob::Write(chunk, done) => ChunkEffect::Wrote(self.write(&chunk), done),
            ChunkJob::Finish(done) => ChunkEffect::Finished(self.complete(), done),
        })
        .collect()
    }

    fn publish(&mut self, effects: Vec<ChunkEffect>) {
        for effect in effects {
            match effect {
                ChunkEffect::Wrote(result, done) => {
                    let _ = done.send(result);
                }
                ChunkEffect::Finished(result, done) => {
                    let _ = done.send(result);
                }
            }
        }
    }
}
