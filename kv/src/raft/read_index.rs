//! Linearizable reads without a log entry: ReadIndex (Raft dissertation, section 6.4), one round for all
//! readers that wait.
//!
//! While a round is on its way, later readers gather for the next: a read may only use a round that began
//! after it did. On a follower the round is one question to the leader.

use std::sync::Arc;

use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use quorate_transport::{Address, Peer, Transport};

use super::network::ask_control;
use super::types::Raft;
use super::wire::{ControlRequest, ControlResponse};
use crate::env::{mpsc, oneshot};
use crate::model::{LogIndex, NodeId};

/// Readers that wait for a round to begin; more wait in their callers.
const QUEUE: usize = 4096;

/// Why no read index was confirmed. Nothing was read; a retry is safe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadIndexError {
    /// This node does not lead, and the leader (where one is known) did not confirm either.
    #[error("no leader confirmed the read")]
    NoLeader { leader: Option<NodeId> },
    /// The leader is cut off from a quorum.
    #[error("the leader reached no quorum")]
    NoQuorum,
    /// The node has stopped.
    #[error("the node has stopped: {reason}")]
    Stopped { reason: String },
}

type Answer = oneshot::Sender<Result<Option<LogIndex>, ReadIndexError>>;

struct Reader {
    /// Whether a follower may ask its leader, which a question from another follower may not.
    forward: bool,
    answer: Answer,
}

/// The queue of readers. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ReadRounds {
    tx: mpsc::Sender<Reader>,
}

/// Runs the rounds until every handle is dropped.
pub(crate) struct Rounds {
    rx: mpsc::Receiver<Reader>,
    raft: Raft,
    transport: Arc<dyn Transport>,
    to_leader: Option<(u64, quorate_transport::Stream)>,
}

impl ReadRounds {
    pub(crate) fn new(raft: Raft, transport: Arc<dyn Transport>) -> (Self, Rounds) {
        let (tx, rx) = mpsc::channel(QUEUE);
        (
            Self { tx },
            Rounds {
                rx,
                raft,
                transport,
                to_leader: None,
            },
        )
    }

    /// The index that must be applied before reading. Cancel safe.
    pub(crate) async fn index(&self, forward: bool) -> Result<Option<LogIndex>, ReadIndexError> {
        let (answer, index) = oneshot::channel();
        let stopped = || ReadIndexError::Stopped {
            reason: "it was shut down".to_owned(),
        };
        self.tx
            .send(Reader { forward, answer })
            .await
            .map_err(|_| stopped())?;
        index.await.unwrap_or_else(|_| Err(stopped()))
    }
}

impl Rounds {
    pub(crate) async fn run(mut self) {
        let mut waiting = Vec::new();
        while self.rx.recv_many(&mut waiting, QUEUE).await > 0 {
            // Readers that gave up need no round.
            waiting.retain(|reader| !reader.answer.is_closed());
            if waiting.is_empty() {
                continue;
            }
            metrics::histogram!("quorate_read_round_readers").record(waiting.len() as f64);
            match self.local().await {
                Err((ReadIndexError::NoLeader { leader }, address)) => {
                    let (forwarded, refused): (Vec<_>, Vec<_>) = waiting.drain(..).partition(|r| r.forward);
                    answer(refused, &Err(ReadIndexError::NoLeader { leader }));
                    if !forwarded.is_empty() {
                        let result = self.ask_leader(leader, address).await;
                        answer(forwarded, &result);
                    }
                }
                Err((error, _)) => answer(waiting.drain(..), &Err(error)),
                Ok(index) => answer(waiting.drain(..), &Ok(index)),
            }
        }
    }

    /// Confirms by a heartbeat to a quorum that this node leads.
    async fn local(&mut self) -> Result<Option<LogIndex>, (ReadIndexError, Option<Address>)> {
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(Some(LogIndex::new(linearizer.read_log_id().index()))),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                let leader = forward.leader_id.map(NodeId::new);
                let address = forward.leader_node.and_then(|member| member.address);
                Err((ReadIndexError::NoLeader { leader }, address))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err((ReadIndexError::NoQuorum, None))
            }
            Err(RaftError::Fatal(fatal)) => Err((
                ReadIndexError::Stopped {
                    reason: fatal.to_string(),
                },
                None,
            )),
        }
    }

    async fn ask_leader(
        &mut self,
        leader: Option<NodeId>,
        address: Option<Address>,
    ) -> Result<Option<LogIndex>, ReadIndexError> {
        let no_leader = Err(ReadIndexError::NoLeader { leader });
        let (Some(leader), Some(address)) = (leader, address) else {
            return no_leader;
        };
        let peer = Peer {
            node_id: Some(leader.number()),
            address,
        };
        let mut cached = match self.to_leader.take() {
            Some((id, stream)) if id == leader.number() => Some(stream),
            _ => None,
        };
        let asked = ask_control(&self.transport, &peer, &mut cached, &ControlRequest::ReadIndex);
        let asked = crate::env::timeout(
            std::time::Duration::from_millis(self.raft.config().election_timeout_min),
            asked,
        )
        .await;
        self.to_leader = cached.map(|stream| (leader.number(), stream));
        match asked {
            Ok(Ok(ControlResponse::ReadIndex(index))) => Ok(index),
            _ => no_leader,
        }
    }
}

fn answer(readers: impl IntoIterator<Item = Reader>, result: &Result<Option<LogIndex>, ReadIndexError>) {
    for reader in readers {
        let _ = reader.answer.send(result.clone());
    }
}
