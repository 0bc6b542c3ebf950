//! openraft's network on a [`Transport`]: the sending side.
//!
//! Each kind of traffic has its class, so that votes and heartbeats never wait behind entries or snapshots.
//! Every wait has a deadline: a link that went silent is reported, and openraft comes back to it.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future;
use futures_util::stream::Peekable;
use futures_util::{Stream, StreamExt, stream};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption, RPCTypes};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftMetrics, RaftNetworkFactory};
use quorate_transport::{Class, Peer, TransportError};

use super::acquaintance::{Acquaintance, Greeted, Opened};
use super::freshness::{Echoes, confirmed_by_quorum};
use super::owed::Owed;
use super::purge::PurgeWanted;
use super::rpc_error::rpc_error;
use super::sendings::Sendings;
use super::snapshot_data::SnapshotData;
use super::snapshot_send::{SendError, Sending, pause_after};
use super::types::{LogId, Member, Snapshot, TypeConfig, Vote};
use super::wire::{Confirmed, ControlRequest, ControlResponse, Heartbeat, encode_append};
use crate::env::{self, Instant, watch};
use crate::fault::Faults;
use crate::log::Log;
use crate::machine::Applied;
use crate::model::{self, LogIndex, LogPosition};

/// Makes the links to peers.
#[derive(Clone, Debug)]
pub(crate) struct NetworkFactory {
    pub(crate) own_id: u64,
    pub(crate) acquaintance: Acquaintance,
    /// What is sent comes from here.
    pub(crate) log: Log,
    /// How far the state here has come.
    pub(crate) applied: watch::Receiver<Arc<Applied>>,
    /// How long an append stream may owe an answer before its link counts as dead.
    pub(crate) stall_max: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) faults: Faults,
    pub(crate) leading: Leading,
    pub(crate) sendings: Sendings,
    pub(crate) purge_wanted: PurgeWanted,
}

/// What this node knows of its own leadership, once Raft runs. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Leading(Arc<OnceLock<watch::Receiver<RaftMetrics<TypeConfig>>>>);

impl std::fmt::Debug for Leading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leading").finish_non_exhaustive()
    }
}

impl Leading {
    /// Raft runs, and these are its metrics.
    pub(crate) fn runs(&self, metrics: watch::Receiver<RaftMetrics<TypeConfig>>) {
        // It starts once.
        let _again = self.0.set(metrics);
    }

    /// What a heartbeat on a stream with these answers may tell.
    fn confirmed(&self, echoes: &Echoes) -> Option<Confirmed> {
        let (asked_at, index) = confirmed_by_quorum(&self.0.get()?.borrow())?;
        let answers = echoes.before(asked_at)?;
        Some(Confirmed { answers, index })
    }
}

/// A link to one peer for one kind of traffic.
#[derive(Debug)]
pub(crate) struct Link {
    own_id: u64,
    target: u64,
    peer: Peer,
    acquaintance: Acquaintance,
    log: Log,
    applied: watch::Receiver<Arc<Applied>>,
    stall_max: Duration,
    heartbeat: Duration,
    faults: Faults,
    /// On a link for heartbeats, which are appends that travel as control messages: how long each takes.
    heartbeats: Option<metrics::Histogram>,
    /// In a mutex for `Sync` alone: only `&mut self` reaches it.
    control: Mutex<Option<ControlStream>>,
    leading: Leading,
    sendings: Sendings,
    purge_wanted: PurgeWanted,
    /// Snapshots that the peer refused, one after the other.
    refusals: u32,
}

impl NetworkFactory {
    fn link(&self, target: u64, node: &Member) -> Link {
        Link {
            own_id: self.own_id,
            target,
            peer: node.peer(target),
            acquaintance: self.acquaintance.clone(),
            log: self.log.clone(),
            applied: self.applied.clone(),
            stall_max: self.stall_max,
            heartbeat: self.heartbeat,
            faults: self.faults.clone(),
            heartbeats: None,
            control: Mutex::new(None),
            leading: self.leading.clone(),
            sendings: self.sendings.clone(),
            purge_wanted: self.purge_wanted.clone(),
            refusals: 0,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &Member) -> Link {
        self.link(target, node)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Member) -> Link {
        let mut link = self.link(target, node);
        let answered = metrics::histogram!("quorate_heartbeat_seconds", "node" => target.to_string());
        link.heartbeats = Some(answered);
        link
    }
}

/// Records how long it lived: what is timed may be given up in the middle.
struct Timed {
    started: Instant,
    histogram: metrics::Histogram,
}

impl Timed {
    fn start(histogram: metrics::Histogram) -> Self {
        Self {
            started: env::now(),
            histogram,
        }
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        self.histogram.record(self.started.elapsed().as_secs_f64());
    }
}

/// A control stream on which no answer is owed, and the answers that came on it.
#[derive(Debug)]
pub(crate) struct ControlStream {
    stream: Opened,
    echoes: Echoes,
}

impl ControlStream {
    async fn open(acquaintance: &Acquaintance, peer: &Peer) -> Result<Self, TransportError> {
        Ok(Self {
            stream: acquaintance.open(peer, Class::Control).await?,
            echoes: Echoes::default(),
        })
    }

    async fn ask(&mut self, request: &ControlRequest) -> Result<ControlResponse, TransportError> {
        self.stream.sender.send(model::encode(request).into()).await?;
        let answer = self.stream.receiver.receive().await?;
        let broken = |reason: String| TransportError::Broken { reason };
        let answer =
            answer.ok_or_else(|| broken("the peer ended the stream without an answer".to_owned()))?;
        self.echoes.answer(env::now());
        model::decode(&answer).map_err(|e| broken(format!("the peer's answer: {e}")))
    }
}

/// Asks a node's control stream one thing, on the cached stream or a new one. A stream that did not answer
/// is dropped, since a later answer on it would be taken for another's.
pub(crate) async fn ask_control(
    acquaintance: &Acquaintance,
    peer: &Peer,
    cached: &mut Option<ControlStream>,
    request: impl Fn(&Echoes) -> ControlRequest,
) -> Result<ControlResponse, TransportError> {
    if let Some(mut stream) = cached.take()
        && let Ok(answer) = stream.ask(&request(&stream.echoes)).await
    {
        *cached = Some(stream);
        return Ok(answer);
    }
    let mut stream = ControlStream::open(acquaintance, peer).await?;
    let answer = stream.ask(&request(&stream.echoes)).await?;
    *cached = Some(stream);
    Ok(answer)
}

/// A state machine that is behind, as that of a new leader, does not keep its peers behind.
const NEWS_HELD_MAX: Duration = Duration::from_millis(1);

const PURGED: &str = "what comes next for this peer was purged: it needs a snapshot";

/// Whether a request stands for entries that were purged before they could be read. The log answers none then,
/// and openraft would repeat the empty request for as long as the stream lives; its end lets it think again.
///
/// Or for entries that are to go: openraft purges nothing of which a stream still reads, and a peer that is slow and
/// answers would keep all of the log, of a leader whose disk has its bound.
fn needs_snapshot(
    request: &AppendEntriesRequest<TypeConfig>,
    purged: Option<LogPosition>,
    wanted: Option<LogIndex>,
) -> bool {
    let next = request.prev_log_id.as_ref().map_or(0, |id| id.index + 1);
    let is_in = |upto: Option<LogIndex>| upto.is_some_and(|upto| next <= upto.number());
    request.entries.is_empty() && is_in(purged.map(|purged| purged.index)) || is_in(wanted)
}

/// That an entry is committed is no news for which anybody waits; the answer to whoever wrote it is. Both come of the same
/// step, and on a busy core the news of all peers would be encrypted and sent before the entry is even applied.
///
/// Waits until the entry is applied here and what that made ready has run; or until there is something more to send, so
/// that it goes along; or for [`NEWS_HELD_MAX`].
async fn hold<S: Stream + Unpin>(
    committed: Option<&LogId>,
    applied: &mut watch::Receiver<Arc<Applied>>,
    input: &mut Peekable<S>,
) {
    let Some(committed) = committed else { return };
    let committed = LogIndex::new(committed.index);
    let is_applied = |applied: &Arc<Applied>| applied.position.is_some_and(|at| at.index >= committed);
    let applying = async {
        // Of a state machine that has ended there is nothing to wait for.
        let _ = applied.wait_for(is_applied).await;
        tokio::task::yield_now().await;
    };
    future::select(
        pin!(env::timeout(NEWS_HELD_MAX, applying)),
        Pin::new(input).peek(),
    )
    .await;
}

fn unexpected(answer: &ControlResponse) -> RPCError<TypeConfig> {
    match answer {
        ControlResponse::Stopped(_) | ControlResponse::Refused(_) => {
            RPCError::Unreachable(Unreachable::from_string(format!("{answer:?}")))
        }
        _ => RPCError::Network(NetworkError::from_string(format!("unexpected answer {answer:?}"))),
    }
}

impl Link {
    async fn ask(
        &mut self,
        request: impl Fn(&Echoes) -> ControlRequest,
        what: RPCTypes,
        ttl: Duration,
    ) -> Result<ControlResponse, RPCError<TypeConfig>> {
        let control = self.control.get_mut().unwrap_or_else(PoisonError::into_inner);
        let asked = ask_control(&self.acquaintance, &self.peer, control, request);
        match env::timeout(ttl, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(rpc_error(&error)),
            Err(env::Elapsed) => Err(RPCError::Timeout(Timeout {
                action: what,
                id: self.own_id,
                target: self.target,
                timeout: ttl,
            })),
        }
    }

    async fn ask_for_pre_vote(
        &mut self,
        request: &VoteRequest<TypeConfig>,
        ttl: Duration,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let pre_vote = |_: &Echoes| ControlRequest::PreVote(request.clone());
        match self.ask(pre_vote, RPCTypes::Vote, ttl).await? {
            ControlResponse::Vote(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    }
}

impl openraft::RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<openraft::raft::AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let input = Box::pin(stream::once(async { request }));
        let mut answers = self.stream_append(input, option).await?;
        match answers.next().await {
            Some(answer) => Ok(answer?.into()),
            None => Err(RPCError::Network(NetworkError::from_string(
                "the append stream ended without an answer",
            ))),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>,
            RPCError<TypeConfig>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.heartbeats.is_some() {
            return Box::pin(async move {
                let ttl = option.soft_ttl();
                let answers = stream::unfold((self, input), move |(link, mut input)| async move {
                    let request = input.next().await?;
                    let leading = link.leading.clone();
                    let heartbeat = |echoes: &Echoes| {
                        ControlRequest::Heartbeat(Heartbeat {
                            vote: request.vote,
                            prev: request.prev_log_id,
                            commit: request.leader_commit,
                            confirmed: leading.confirmed(echoes),
                        })
                    };
                    let timed = link.heartbeats.clone().map(Timed::start);
                    let asked = link.ask(heartbeat, RPCTypes::AppendEntries, ttl).await;
                    let answer = match asked {
                        Ok(ControlResponse::Append(result)) => Ok(result),
                        Ok(other) => Err(unexpected(&other)),
                        Err(error) => Err(error),
                    };
                    drop(timed);
                    Some((answer, (link, input)))
                });
                Ok(Box::pin(answers) as BoxStream<'s, _>)
            });
        }
        Box::pin(async move {
            // The pause after a failure lies in the input: were it not asked first, a peer that cannot be
            // reached would be tried again at once, and again.
            let mut input = input.peekable();
            let Some(first) = Pin::new(&mut input).peek().await else {
                return Ok(Box::pin(stream::empty()) as BoxStream<'s, _>);
            };
            let (log, mut applied) = (self.log.clone(), self.applied.clone());
            let wanted = self.purge_wanted.clone();
            if needs_snapshot(first, log.purged(), wanted.upto()) {
                return Err(RPCError::Network(NetworkError::from_string(PURGED)));
            }
            let ttl = option.soft_ttl().max(self.stall_max);
            let opened = env::timeout(ttl, self.acquaintance.open(&self.peer, Class::Append)).await;
            let opened = match opened {
                Ok(opened) => opened.map_err(|e| rpc_error(&e))?,
                Err(env::Elapsed) => {
                    return Err(RPCError::Unreachable(Unreachable::from_string(
                        "no connection in time",
                    )));
                }
            };
            let (mut sender, receiver) = (opened.sender, opened.receiver);
            let owed = Owed::new(ttl);
            let handed_over = owed.clone();
            // Sends until the input ends; yields only its error. Polled together with the answers, so that
            // back-pressure on one never stops the other.
            let sending = async move {
                while let Some(request) = input.next().await {
                    if needs_snapshot(&request, log.purged(), wanted.upto()) {
                        return Err(TransportError::Broken {
                            reason: PURGED.to_owned(),
                        });
                    }
                    if request.entries.is_empty() {
                        hold(request.leader_commit.as_ref(), &mut applied, &mut input).await;
                    }
                    let message = encode_append(&request);
                    handed_over.hand_over(env::now(), message.len());
                    sender.send(message).await?;
                }
                sender.finish().await
            };
            let sending = stream::once(sending)
                .filter_map(|result| async move { result.err().map(|error| Some(Err(rpc_error(&error)))) });
            let answers = Answers {
                receiver,
                owed,
                stall_max: ttl,
                own_id: self.own_id,
                target: self.target,
            };
            let answers = stream::unfold(Some(answers), |answers| async move {
                let mut answers = answers?;
                match answers.next().await {
                    Ok(Some(answer)) => Some((Some(Ok(answer)), Some(answers))),
                    Ok(None) => None,
                    Err(error) => Some((Some(Err(error)), None)),
                }
            });
            // It ends with the answers: a peer that gives no more takes no more. Were the input waited for besides,
            // nothing would be sent to a peer that has started anew until there is a next entry.
            let answers = answers.chain(stream::once(std::future::ready(None)));
            let both = stream::select(Box::pin(answers), Box::pin(sending))
                .take_while(|item| std::future::ready(item.is_some()))
                .filter_map(std::future::ready);
            Ok(Box::pin(both) as BoxStream<'s, _>)
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self
            .ask(
                |_| ControlRequest::Vote(request.clone()),
                RPCTypes::Vote,
                option.soft_ttl(),
            )
            .await?
        {
            ControlResponse::Vote(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    }

    /// A grant says that its sender knew of no leader when it left. One that was long on its way, to a node that was cut off,
    /// may be older than the leader elected meanwhile, whom a candidate in a later term would unseat: it is asked for
    /// again.
    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let ttl = option.soft_ttl();
        let asked_at = env::now();
        let answer = self.ask_for_pre_vote(&request, ttl).await?;
        let took = asked_at.elapsed();
        let round_trip = self.acquaintance.round_trip(self.target).unwrap_or_default();
        if !answer.vote_granted || took <= self.heartbeat / 2 + 2 * round_trip {
            return Ok(answer);
        }
        env::mark("raft.pre_vote_anew");
        self.ask_for_pre_vote(&request, ttl.saturating_sub(took)).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let cancel = pin!(cancel);
        let refused = {
            let sending = Sending {
                acquaintance: &self.acquaintance,
                peer: &self.peer,
                stall_max: self.stall_max,
                faults: &self.faults,
                sendings: &self.sendings,
            };
            match future::select(pin!(sending.send(vote, snapshot)), cancel).await {
                future::Either::Left((Ok(response), _)) => return Ok(response),
                future::Either::Left((Err(SendError::Broken(error)), _)) => return Err(error),
                future::Either::Left((Err(SendError::Refused(reason)), cancel)) => (reason, cancel),
                future::Either::Right((closed, _)) => return Err(StreamingError::Closed(closed)),
            }
        };
        // A receiver that has no room has none a moment later: what was pinned goes, and the next one is not begun at once.
        let (reason, cancel) = refused;
        let pause = pause_after(self.refusals);
        self.refusals = self.refusals.saturating_add(1);
        metrics::counter!("quorate_snapshots_refused_total", "node" => self.target.to_string()).increment(1);
        tracing::warn!(to = self.target, reason, again_in = ?pause, "a snapshot was not taken");
        match future::select(pin!(env::sleep(pause)), cancel).await {
            future::Either::Left(_) => Err(StreamingError::Network(NetworkError::from_string(reason))),
            future::Either::Right((closed, _)) => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self
            .ask(
                |_| ControlRequest::TransferLeader(request.clone()),
                RPCTypes::TransferLeader,
                option.soft_ttl(),
            )
            .await?
        {
            ControlResponse::TransferLeader(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        // The transport has its own backoff with jitter, and answers at once while it waits.
        None
    }
}

/// The answers on an append stream, in the order of the requests.
struct Answers {
    receiver: Greeted,
    owed: Owed,
    /// Looked at as often, where nothing is owed.
    stall_max: Duration,
    own_id: u64,
    target: u64,
}

impl Answers {
    async fn next(&mut self) -> Result<Option<StreamAppendResult<TypeConfig>>, RPCError<TypeConfig>> {
        loop {
            let until = self.owed.until().unwrap_or_else(|| env::now() + self.stall_max);
            match env::timeout_at(until, self.receiver.receive()).await {
                Ok(Ok(Some(sign))) if sign.is_empty() => self.owed.sign_of_life(env::now()),
                Ok(Ok(Some(bytes))) => {
                    self.owed.answer(env::now());
                    let answer = model::decode(&bytes).map_err(|e| {
                        RPCError::Network(NetworkError::from_string(format!("append answer: {e}")))
                    })?;
                    return Ok(Some(answer));
                }
                Ok(Ok(None)) => return Ok(None),
                Ok(Err(error)) => return Err(rpc_error(&error)),
                // Silence is a fault only while an answer is owed, and for as long as that may take.
                Err(env::Elapsed) if self.owed.until().is_some_and(|until| until <= env::now()) => {
                    return Err(RPCError::Timeout(Timeout {
                        action: RPCTypes::AppendEntries,
                        id: self.own_id,
                        target: self.target,
                        timeout: self.stall_max,
                    }));
                }
                Err(env::Elapsed) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
