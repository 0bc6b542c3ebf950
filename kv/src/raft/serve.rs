//! The receiving side of what nodes say to each other.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use quorate_transport::{Class, Incoming, MessageReceiver, Role, Stream};

use super::acquaintance::Met;
use super::freshness::Echoes;
use super::heartbeat;
use super::intake::{Intake, committed_with};
use super::node::RaftNode;
use super::peer_stream::{SIGN_OF_LIFE, end, refuse};
use super::snapshot_receive;
use super::types::TypeConfig;
use super::wire::{ControlRequest, ControlResponse, decode_append};
use crate::env;
use crate::model::{self, LogIndex};

impl RaftNode {
    /// Hands a peer's stream to what serves its class. Returns it when the class is not Raft's.
    pub(crate) async fn serve(self: &Arc<Self>, incoming: Incoming) {
        let Role::Node(from) = incoming.from.role else {
            return;
        };
        let node = Arc::clone(self);
        match incoming.class {
            Class::Control => control(node, from, incoming.stream).await,
            Class::Append => append(node, from, incoming.stream).await,
            Class::Bulk => snapshot_receive::snapshot(node, from, incoming.stream).await,
            Class::Client => {}
        }
    }
}

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
        ControlRequest::StateHashes => match node.machine.reader().view() {
            Ok(view) => ControlResponse::StateHashes(view.hashes()),
            Err(fault) => stopped(&fault),
        },
    }
}

/// Takes a leader's entries until the stream ends, answering each message in order after its entries are
/// durable here.
pub(crate) async fn append(node: Arc<RaftNode>, from: u64, mut stream: Stream) {
    let Some(met) = node.acquaintance.welcome(from, &mut stream).await else {
        return end(stream).await;
    };
    let Stream { mut sender, receiver } = stream;
    let intake = node.intakes.begin(from);
    let _ends = intake.end_with();
    let unanswered = intake.unanswered();
    let requests = requests(receiver, from, met, intake);
    let mut answers = Box::pin(node.raft.stream_append(requests));
    let mut ready = Vec::new();
    let sign_every = node.timing.failover_min / 4;
    loop {
        let answer = match env::timeout(sign_every, answers.next()).await {
            Ok(Some(answer)) => answer,
            Ok(None) => break,
            // Disk or state machine are behind, and what was read waits for them: whoever sent it is not to take that for
            // the stream's end, and send it all again.
            Err(env::Elapsed) => {
                if unanswered.is_any() {
                    env::mark("append.sign_of_life");
                    if sender.send(SIGN_OF_LIFE).await.is_err() {
                        break;
                    }
                }
                continue;
            }
        };
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
            let message = model::own(intake.receive(&mut receiver).await?);
            if !met.still_fits() {
                return None;
            }
            match decode_append(&message) {
                Ok(request) if request.vote.leader_id.node_id == from => {
                    intake.admit(message.len(), committed_with(&request)).await.ok()?;
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
