//! Linearizable reads without a log entry: ReadIndex (Raft dissertation, section 6.4), one round for all
//! readers that wait.
//!
//! While a round is on its way, later readers gather for the next: a read may only use a round that began
//! after it did (`rounds` has the rule). On a follower the round is one question to the leader. One that waits longer
//! than usual, as for a leader that is dead, holds nobody up: the next begins beside it; and a question is given up, and
//! asked anew, as soon as this node knows of another leader.
//!
//! A reader at a leader that finds nobody else waiting begins a round itself, on its own task, and nobody stands between it and
//! Raft's core. It is a round as any other: those who come meanwhile gather for the next.
//!
//! Each round that is confirmed tells `freshness` when it began.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{self, BoxFuture, Either};
use futures_util::stream::{FuturesUnordered, StreamExt};
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{LinearizableReadError, RaftError};
use openraft::{ReadPolicy, ServerState};
use quorate_transport::{Address, Peer};

use super::acquaintance::Acquaintance;
use super::freshness::Freshness;
use super::network::{ControlStream, ask_control};
use super::rounds::{ROUNDS_MAX, RoundId, Rounds};
use super::state_machine::Raft;
use super::wire::{ControlRequest, ControlResponse};
use crate::env::{self, Instant, Notify, mpsc, oneshot};
use crate::model::{LogIndex, NodeId};
use crate::planted::{self, Bug};

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

#[derive(Debug)]
enum Reader {
    /// Of this node; a follower asks its leader for it.
    Own(Answer),
    /// The question of another node, which is not passed on.
    Peer(Answer),
    /// Nobody waits: that the round confirms how fresh the state is suffices.
    Refresh,
}

impl Reader {
    /// Whether its round still serves anybody.
    fn is_waiting(&self) -> bool {
        match self {
            Reader::Own(answer) | Reader::Peer(answer) => !answer.is_closed(),
            Reader::Refresh => true,
        }
    }

    fn is_peer(&self) -> bool {
        matches!(self, Reader::Peer(_))
    }

    fn answer(self, result: Result<Option<LogIndex>, ReadIndexError>) {
        if let Reader::Own(answer) | Reader::Peer(answer) = self {
            let _ = answer.send(result);
        }
    }
}

/// The queue of readers. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ReadRounds {
    tx: mpsc::Sender<Reader>,
    shared: Arc<Shared>,
}

/// Runs the rounds until every handle is dropped.
pub(crate) struct RoundsTask {
    rx: mpsc::Receiver<Reader>,
    under_way: FuturesUnordered<BoxFuture<'static, (RoundId, Step)>>,
    shared: Arc<Shared>,
}

/// What the task has in common with readers that begin a round themselves.
struct Shared {
    state: Mutex<State>,
    /// A round that a reader began has ended, and the task does not look at who comes.
    ended: Notify,
    asking: Arc<Asking>,
    freshness: Arc<Freshness>,
}

#[derive(Default)]
struct State {
    rounds: Rounds<Reader>,
    /// The task looks at who comes. Where not, it waits for a round to end.
    looks: bool,
}

/// A reader's own round, until it has ended or the reader has given up.
struct OwnRound<'a> {
    id: RoundId,
    shared: &'a Shared,
}

/// How far a round has come.
enum Step {
    Confirmed(Option<LogIndex>),
    Failed(ReadIndexError),
    /// This node follows that one.
    Follows {
        leader: Option<NodeId>,
        address: Option<Address>,
    },
    /// The leader that was asked leads no more, as far as this node knows.
    LeaderChanged,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rounds, for the task, which looks at who comes from here on, or does not.
    fn rounds_as(&self, looks: impl FnOnce(&Rounds<Reader>) -> bool) -> MutexGuard<'_, State> {
        let mut state = self.state();
        state.looks = looks(&state.rounds);
        state
    }

    /// A round is confirmed: those who wait for it are answered.
    fn confirmed(&self, id: RoundId, index: Option<LogIndex>) {
        let ended = self.state().rounds.end(id);
        if let Some((began, readers)) = ended {
            self.freshness.confirm(began, index);
            readers.into_iter().for_each(|reader| reader.answer(Ok(index)));
        }
    }
}

impl Drop for OwnRound<'_> {
    fn drop(&mut self) {
        let looks = {
            let mut state = self.shared.state();
            // Nothing of one that was confirmed is left. Nobody joins another's round, but where that is planted.
            state.rounds.begin_anew(self.id);
            state.looks
        };
        if !looks {
            self.shared.ended.notify_one();
        }
    }
}

/// What the questions share.
struct Asking {
    raft: Raft,
    acquaintance: Acquaintance,
    /// How long a leader may take to answer.
    patience: Duration,
    /// Streams to a leader on which no answer is owed. Taken for a question and put back: as many as rounds at most.
    streams: Mutex<Vec<(NodeId, ControlStream)>>,
}

impl ReadRounds {
    pub(super) fn new(
        raft: Raft,
        acquaintance: Acquaintance,
        freshness: Arc<Freshness>,
        patience: Duration,
    ) -> (Self, RoundsTask) {
        let (tx, rx) = mpsc::channel(QUEUE);
        let asking = Arc::new(Asking {
            raft,
            acquaintance,
            patience,
            streams: Mutex::default(),
        });
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            ended: Notify::new(),
            asking,
            freshness,
        });
        let task = RoundsTask {
            rx,
            under_way: FuturesUnordered::new(),
            shared: Arc::clone(&shared),
        };
        (Self { tx, shared }, task)
    }

    /// The index that a read of this node must have applied; a follower asks its leader. Cancel safe.
    pub(crate) async fn index(&self) -> Result<Option<LogIndex>, ReadIndexError> {
        match self.alone().await {
            Some(index) => index,
            None => self.wait(Reader::Own).await,
        }
    }

    /// The same for a question of another node, which is answered by a leader alone. Cancel safe.
    pub(crate) async fn index_as_leader(&self) -> Result<Option<LogIndex>, ReadIndexError> {
        match self.alone().await {
            Some(index) => index,
            None => self.wait(Reader::Peer).await,
        }
    }

    /// The same by a round of the reader's own, where this node leads, nobody waits and no round is under way; `None` where
    /// not. Cancel safe.
    async fn alone(&self) -> Option<Result<Option<LogIndex>, ReadIndexError>> {
        let shared = &*self.shared;
        // Whoever is in the queue came before.
        if self.tx.capacity() < QUEUE || !shared.asking.seems_to_lead() {
            return None;
        }
        let own = {
            let mut state = shared.state();
            if !state.rounds.is_idle() {
                return None;
            }
            let (id, _nobody) = state.rounds.begin(env::now());
            OwnRound { id, shared }
        };
        metrics::histogram!("quorate_read_round_readers").record(1.0);
        match shared.asking.itself().await {
            Step::Confirmed(index) => {
                shared.confirmed(own.id, index);
                Some(Ok(index))
            }
            Step::Failed(error) => Some(Err(error)),
            Step::Follows { .. } | Step::LeaderChanged => None,
        }
    }

    /// Begins a round for which nobody waits, unless so many do that one begins anyway.
    pub(crate) fn refresh(&self) {
        let _full = self.tx.try_send(Reader::Refresh);
    }

    async fn wait(&self, reader: impl FnOnce(Answer) -> Reader) -> Result<Option<LogIndex>, ReadIndexError> {
        let (answer, index) = oneshot::channel();
        let stopped = || ReadIndexError::Stopped {
            reason: "it was shut down".to_owned(),
        };
        self.tx.send(reader(answer)).await.map_err(|_| stopped())?;
        index.await.unwrap_or_else(|_| Err(stopped()))
    }
}

impl RoundsTask {
    pub(crate) async fn run(mut self) {
        let mut came = Vec::new();
        loop {
            // Until the next round may begin nobody looks at who comes: each look would cost the one under way some of its
            // processor.
            let now = env::now();
            let shared = Arc::clone(&self.shared);
            let is_due = |due: Option<Instant>| due.is_some_and(|due| due <= now);
            let looks =
                |rounds: &Rounds<Reader>| is_due(rounds.due(now)) || planted::is(Bug::RoundJoinedLate);
            let (due, looks) = {
                let mut state = shared.rounds_as(looks);
                let due = state.rounds.due(now);
                if is_due(due) && self.gather(&mut state.rounds) {
                    self.begin(&mut state.rounds, now);
                    continue;
                }
                (due, state.looks)
            };
            let may_begin = is_due(due);
            let patience = async {
                match due {
                    Some(due) => env::sleep_until(due).await,
                    None => future::pending().await,
                }
            };
            tokio::select! {
                // Rounds first: they are driven here, and readers may come without an end.
                biased;
                Some((id, step)) = self.under_way.next() => self.take(id, step),
                count = self.rx.recv_many(&mut came, QUEUE), if looks => {
                    if count == 0 {
                        return;
                    }
                    let mut state = shared.state();
                    came.drain(..).for_each(|reader| arrive(&mut state.rounds, reader));
                }
                () = shared.ended.notified() => {}
                () = patience, if !may_begin => {}
            }
        }
    }

    /// Takes in who has come meanwhile; whether anybody waits for a round. Readers that gave up need none.
    fn gather(&mut self, rounds: &mut Rounds<Reader>) -> bool {
        while let Ok(reader) = self.rx.try_recv() {
            arrive(rounds, reader);
        }
        rounds.retain(Reader::is_waiting);
        rounds.is_awaited()
    }

    fn begin(&mut self, rounds: &mut Rounds<Reader>, now: Instant) {
        let (id, readers) = rounds.begin(now);
        metrics::histogram!("quorate_read_round_readers").record(readers.len() as f64);
        let asking = Arc::clone(&self.shared.asking);
        self.under_way
            .push(Box::pin(async move { (id, asking.itself().await) }));
    }

    fn take(&mut self, id: RoundId, step: Step) {
        match step {
            Step::Confirmed(index) => self.shared.confirmed(id, index),
            Step::Failed(error) => {
                let ended = self.shared.state().rounds.end(id);
                let readers = ended.into_iter().flat_map(|(_, readers)| readers);
                readers.for_each(|reader| reader.answer(Err(error.clone())));
            }
            Step::Follows { leader, address } => {
                let peers = self.shared.state().rounds.dismiss(id, Reader::is_peer);
                peers
                    .into_iter()
                    .for_each(|peer| peer.answer(Err(ReadIndexError::NoLeader { leader })));
                let asking = Arc::clone(&self.shared.asking);
                let asked = async move { (id, asking.leader(leader, address).await) };
                self.under_way.push(Box::pin(asked));
            }
            Step::LeaderChanged => {
                env::mark("raft.read_round_anew");
                self.shared.state().rounds.begin_anew(id);
            }
        }
    }
}

fn arrive(rounds: &mut Rounds<Reader>, reader: Reader) {
    // Any round serves who wants none of its own.
    if matches!(reader, Reader::Refresh) && !rounds.is_idle() {
        return;
    }
    rounds.arrive(reader);
}

impl Asking {
    /// What the metrics say. They may be old, and prove nothing.
    fn seems_to_lead(&self) -> bool {
        self.raft.server_metrics().borrow_watched().state == ServerState::Leader
    }

    /// Confirms by a heartbeat to a quorum that this node leads.
    async fn itself(&self) -> Step {
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Step::Confirmed(Some(LogIndex::new(linearizer.read_log_id().index()))),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => Step::Follows {
                leader: forward.leader_id.map(NodeId::new),
                address: forward.leader_node.and_then(|member| member.address),
            },
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Step::Failed(ReadIndexError::NoQuorum)
            }
            Err(RaftError::Fatal(fatal)) => Step::Failed(ReadIndexError::Stopped {
                reason: fatal.to_string(),
            }),
        }
    }

    /// Asks the leader that openraft has just named, until it answers, or another leads, or for as long as it may be silent.
    async fn leader(&self, leader: Option<NodeId>, address: Option<Address>) -> Step {
        let no_leader = Step::Failed(ReadIndexError::NoLeader { leader });
        let (Some(leader), Some(address)) = (leader, address) else {
            return no_leader;
        };
        let peer = Peer {
            node_id: Some(leader.number()),
            address,
        };
        let changed = pin!(self.follows_another_than(leader));
        let asked = pin!(self.ask(leader, &peer));
        match future::select(asked, changed).await {
            Either::Left((Some(index), _)) => Step::Confirmed(index),
            Either::Left((None, _)) => no_leader,
            Either::Right(((), _)) => Step::LeaderChanged,
        }
    }

    /// Waits until the metrics change, now or later, to another leader or to none. What they say now does not count: it may
    /// be older than what the core has just answered, and while leadership is handed on the core names the next leader
    /// already.
    async fn follows_another_than(&self, leader: NodeId) {
        let mut server = self.raft.server_metrics();
        drop(server.borrow_and_update());
        // Raft's end ends the wait for answers too.
        while server.changed().await.is_ok() {
            if server.borrow_watched().current_leader != Some(leader.number()) {
                return;
            }
        }
    }

    async fn ask(&self, leader: NodeId, peer: &Peer) -> Option<Option<LogIndex>> {
        let mut stream = self.stream_to(leader);
        let asked = ask_control(&self.acquaintance, peer, &mut stream, |_| {
            ControlRequest::ReadIndex
        });
        let answer = env::timeout(self.patience, asked).await;
        if let Some(stream) = stream {
            self.put_back(leader, stream);
        }
        match answer {
            Ok(Ok(ControlResponse::ReadIndex(index))) => Some(index),
            _ => None,
        }
    }

    fn stream_to(&self, leader: NodeId) -> Option<ControlStream> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        // Streams to who led before are of no more use.
        streams.retain(|(to, _)| *to == leader);
        streams.pop().map(|(_, stream)| stream)
    }

    fn put_back(&self, leader: NodeId, stream: ControlStream) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if streams.len() < ROUNDS_MAX {
            streams.push((leader, stream));
        }
    }
}
