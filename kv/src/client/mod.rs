//! The client: one type, in-process or remote.
//!
//! It finds the leader and follows it, retries with exponential backoff and jitter within the caller's
//! deadline, and numbers its writes within a session, so that a retried write happens once.

mod endpoint;
mod error;
mod session;
mod transact;

pub use error::{Error, OutcomeUnknown};
pub use transact::{TransactError, Transaction};

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate_transport::{Peer, Transport};

use crate::env::{self, Instant};
use crate::model::{
    CheckedTxn, Command, Consistency, Key, KeyRange, Limits, NodeId, Op, OpResult, Outcome, RangeRead,
    ReadOp, ReadResponse, ReadResult, Record, Revision, Txn, TxnRefused, TxnResponse, Value, check_reads,
};
use crate::node::{Front, Status};
use crate::protocol::{Admin, Failure, Request, Response};
use endpoint::{CallError, Endpoint};
use session::{Numbered, Session};

/// How long a call may take when the caller does not say.
const DEADLINE: Duration = Duration::from_secs(10);
/// The first pause after a failed attempt; it doubles up to the second, and half of each is drawn at random.
const BACKOFF_FIRST: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// The longest pause after a conflict.
const CONFLICT_PAUSE_MAX: Duration = Duration::from_millis(40);
/// One attempt waits at most this long, so that a node that went silent does not use up the deadline.
const ATTEMPT_MAX: Duration = Duration::from_secs(3);
/// Writes of one client that may be under way at once; more wait here, within their deadlines.
const WRITES_MAX: usize = 1024;
/// How long a session outlives its last write, by the log's time.
const SESSION_TTL: Duration = Duration::from_secs(3600);

/// A handle to a cluster. Cheap to clone; clones share connections and the session, not the deadline.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
    deadline: Duration,
}

#[derive(Debug)]
struct Inner {
    transport: Arc<dyn Transport>,
    limits: Limits,
    /// In the order of preference; the first is this process's node, where there is one.
    endpoints: Mutex<Endpoints>,
    session: tokio::sync::Mutex<Option<Arc<Session>>>,
    /// Places for writes under way: below what a session may have unanswered, so that none is refused.
    writes: env::Semaphore,
    retries: std::sync::atomic::AtomicU64,
}

#[derive(Debug)]
struct Endpoints {
    known: Vec<Arc<Endpoint>>,
    /// Where writes go: the leader as last heard of.
    leader: Option<usize>,
    /// Where to try next while no leader is known.
    next: usize,
}

/// What an attempt met, when it gave no result.
#[derive(Debug)]
struct Setback {
    reason: String,
    /// Try at once: the leader is known.
    redirected: bool,
}

impl Client {
    pub(crate) fn local(front: Front, transport: Arc<dyn Transport>) -> Self {
        let limits = front.settings.limits;
        Self::new(vec![Endpoint::Local(front)], transport, limits)
    }

    /// A client of the cluster that these nodes belong to: at least one `host:port`, and no harm in more.
    /// Nothing is sent before the first call.
    pub fn connect<A: Into<String>>(
        endpoints: impl IntoIterator<Item = A>,
        transport: Arc<dyn Transport>,
        limits: Limits,
    ) -> Self {
        let remote = |address: A| {
            Endpoint::remote(
                Arc::clone(&transport),
                Peer {
                    node_id: None,
                    address: address.into(),
                },
            )
        };
        let endpoints = endpoints.into_iter().map(remote).collect();
        Self::new(endpoints, transport, limits)
    }

    fn new(endpoints: Vec<Endpoint>, transport: Arc<dyn Transport>, limits: Limits) -> Self {
        let known = endpoints.into_iter().map(Arc::new).collect();
        let inner = Inner {
            transport,
            limits,
            endpoints: Mutex::new(Endpoints {
                known,
                leader: None,
                next: 0,
            }),
            session: tokio::sync::Mutex::new(None),
            writes: env::Semaphore::new(WRITES_MAX),
            retries: std::sync::atomic::AtomicU64::new(0),
        };
        Self {
            inner: Arc::new(inner),
            deadline: DEADLINE,
        }
    }

    /// The same client with another deadline for each call; 10 s by default. Retries stay within it.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            deadline,
        }
    }

    /// Runs a transaction, exactly once however often it had to be sent.
    ///
    /// Cancel safety: a dropped call may still commit.
    pub async fn txn(&self, txn: Txn) -> Result<TxnResponse, Error> {
        let txn = CheckedTxn::check(txn, &self.inner.limits)?.into_inner();
        let end = env::now() + self.deadline;
        let place = env::timeout(self.deadline, self.inner.writes.acquire()).await;
        let _place = place.map_err(|env::Elapsed| Error::Unavailable {
            deadline: self.deadline,
            last: format!("{WRITES_MAX} writes of this client were under way"),
        })?;
        let mut sent_before = false;
        loop {
            let numbered = self.session(end).await?.number();
            match self.write(&txn, &numbered, end, &mut sent_before).await? {
                Some(Ok(response)) => return Ok(response),
                Some(Err(refused)) => return Err(refused.into()),
                // The session had expired before this write was ever sent in it: a new one is safe.
                None => self.forget_session(numbered.session()).await,
            }
        }
    }

    /// Sends one write until it is answered; `None` when its session had expired and no attempt before may
    /// have taken effect.
    async fn write(
        &self,
        txn: &Txn,
        numbered: &Numbered,
        end: Instant,
        sent_before: &mut bool,
    ) -> Result<Option<Result<TxnResponse, TxnRefused>>, Error> {
        let mut pause = Backoff::default();
        loop {
            let command = Command::Txn {
                session: Some(numbered.reference()),
                txn: txn.clone(),
            };
            let (result, maybe) = self.attempt(Request::Write(command), true, end).await;
            let setback = match result {
                Ok(Response::Written(Outcome::Txn(Err(TxnRefused::SessionExpired { .. }))))
                    if !*sent_before =>
                {
                    return Ok(None);
                }
                Ok(Response::Written(Outcome::Txn(Err(refused @ TxnRefused::SessionExpired { .. })))) => {
                    return Err(OutcomeUnknown {
                        reason: refused.to_string(),
                    }
                    .into());
                }
                Ok(Response::Written(Outcome::Txn(result))) => return Ok(Some(result)),
                Ok(other) => return Err(unexpected(&other)),
                Err(End::Final(error)) => return Err(error),
                Err(End::Retry(setback)) => setback,
            };
            *sent_before |= maybe;
            if !pause.wait(&setback, end).await {
                return Err(if *sent_before {
                    let reason = format!("no answer within {:?}: {}", self.deadline, setback.reason);
                    OutcomeUnknown { reason }.into()
                } else {
                    Error::Unavailable {
                        deadline: self.deadline,
                        last: setback.reason,
                    }
                });
            }
            self.count_retry();
        }
    }

    /// The session to write in, opened when first needed.
    async fn session(&self, end: Instant) -> Result<Arc<Session>, Error> {
        let mut session = self.inner.session.lock().await;
        if let Some(session) = &*session {
            return Ok(Arc::clone(session));
        }
        let ttl_millis = u64::try_from(SESSION_TTL.as_millis()).unwrap_or(u64::MAX);
        // Opening twice leaves a session that expires by itself, so this needs no number of its own.
        let opened = self
            .retry(true, end, || Request::Write(Command::OpenSession { ttl_millis }))
            .await?;
        let id = match opened {
            Response::Written(Outcome::SessionOpened(Ok(id))) => id,
            Response::Written(Outcome::SessionOpened(Err(refused))) => return Err(refused.into()),
            other => return Err(unexpected(&other)),
        };
        let opened = Session::new(id);
        *session = Some(Arc::clone(&opened));
        Ok(opened)
    }

    /// Ends the client: its session, if it ever wrote, is given back to the cluster, which keeps a limited number
    /// of them and otherwise keeps this one for an hour.
    ///
    /// Best effort, within the deadline: a session that could not be closed expires by itself. Writes of other
    /// clones that are still under way lose what makes them exactly-once: let them end first. A clone that writes
    /// later opens a session anew.
    ///
    /// Cancel safe: dropped, the session may be closed all the same, or expires by itself.
    pub async fn close(self) {
        let end = env::now() + self.deadline;
        let Ok(mut held) = env::timeout(self.deadline, self.inner.session.lock()).await else {
            return;
        };
        let Some(session) = held.take() else { return };
        drop(held);
        let session = session.id();
        let closed = self
            .retry(true, end, || Request::Write(Command::CloseSession { session }))
            .await;
        if let Err(error) = closed {
            tracing::debug!(%session, %error, "the session was not closed; it expires by itself");
        }
    }

    async fn forget_session(&self, expired: &Arc<Session>) {
        let mut session = self.inner.session.lock().await;
        if session
            .as_ref()
            .is_some_and(|session| Arc::ptr_eq(session, expired))
        {
            *session = None;
        }
    }

    /// Writes a key. Answers the revision.
    ///
    /// Cancel safety: a dropped call may still commit.
    pub async fn put<K, V>(&self, key: K, value: V) -> Result<Revision, Error>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
        V: Into<Value>,
    {
        let response = self.txn(Txn::new([Op::put(key.try_into()?, value)])).await?;
        Ok(response.revision)
    }

    /// Deletes a key. Answers whether it existed.
    ///
    /// Cancel safety: a dropped call may still commit.
    pub async fn delete<K>(&self, key: K) -> Result<bool, Error>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        let response = self.txn(Txn::new([Op::delete(key.try_into()?)])).await?;
        Ok(matches!(
            response.results.first(),
            Some(OpResult::Deleted { count: 1.. })
        ))
    }

    /// Reads a key, linearizably. Cancel safe.
    pub async fn get<K>(&self, key: K) -> Result<Option<Record>, Error>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        self.get_with(key, Consistency::Linearizable).await
    }

    /// Reads a key with the consistency given. Cancel safe.
    pub async fn get_with<K>(&self, key: K, consistency: Consistency) -> Result<Option<Record>, Error>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        let response = self.read(vec![ReadOp::Get(key.try_into()?)], consistency).await?;
        match response.results.into_iter().next() {
            Some(ReadResult::Get(record)) => Ok(record),
            other => Err(Error::Rejected {
                reason: format!("a get was answered with {other:?}"),
            }),
        }
    }

    /// Reads up to 1,000 keys of a range, linearizably; see [`RangeRead`] for more. Cancel safe.
    pub async fn range(&self, range: KeyRange) -> Result<ReadResult, Error> {
        let read = ReadOp::Range(RangeRead::new(range));
        let response = self.read(vec![read], Consistency::Linearizable).await?;
        response.results.into_iter().next().ok_or(Error::Rejected {
            reason: "an empty answer".to_owned(),
        })
    }

    /// Runs reads that all see one revision. Cancel safe.
    pub async fn read(&self, reads: Vec<ReadOp>, consistency: Consistency) -> Result<ReadResponse, Error> {
        check_reads(&reads, &self.inner.limits)?;
        let end = env::now() + self.deadline;
        let read = || {
            let wait = end.since(env::now()).min(ATTEMPT_MAX);
            Request::Read {
                reads: reads.clone(),
                consistency,
                wait,
            }
        };
        match self.retry(false, end, read).await? {
            Response::Read(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    }

    /// What the node asked first tells of itself. Cancel safe.
    pub async fn status(&self) -> Result<Status, Error> {
        let end = env::now() + self.deadline;
        match self.retry(false, end, || Request::Status).await? {
            Response::Status(status) => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }

    /// What every node that is known tells of itself, by address; an unreachable one tells why. Cancel safe.
    pub async fn statuses(&self) -> BTreeMap<String, Result<Status, String>> {
        let mut addresses: Vec<(String, Arc<Endpoint>)> = {
            let endpoints = self.endpoints();
            endpoints
                .known
                .iter()
                .map(|e| (e.address().to_owned(), Arc::clone(e)))
                .collect()
        };
        if let Ok(status) = self.status().await {
            for member in status.members.into_iter().filter(|m| !m.address.is_empty()) {
                let known = |(address, endpoint): &(String, Arc<Endpoint>)| {
                    *address == member.address
                        || matches!(&**endpoint, Endpoint::Local(front) if front.node() == member.id)
                };
                if !addresses.iter().any(known) {
                    let peer = Peer {
                        node_id: Some(member.id.number()),
                        address: member.address.clone(),
                    };
                    let endpoint = Arc::new(Endpoint::remote(Arc::clone(&self.inner.transport), peer));
                    addresses.push((member.address, endpoint));
                }
            }
        }
        let asks = addresses.into_iter().map(|(address, endpoint)| async move {
            let status = match endpoint
                .call(Request::Status, self.deadline.min(ATTEMPT_MAX))
                .await
            {
                Ok(Response::Status(status)) => Ok(*status),
                Ok(other) => Err(format!("{other:?}")),
                Err(error) => Err(error.reason),
            };
            (address, status)
        });
        futures_util::future::join_all(asks).await.into_iter().collect()
    }

    /// Adds a node without a vote; it receives the log from then on. The id must never have been used.
    pub async fn add_learner(&self, id: NodeId, address: impl Into<String>) -> Result<(), Error> {
        let address = address.into();
        self.admin(|| Admin::AddLearner {
            id,
            address: address.clone(),
        })
        .await
    }

    /// Gives a learner that has caught up a vote.
    pub async fn promote(&self, id: NodeId) -> Result<(), Error> {
        self.admin(|| Admin::Promote { id }).await
    }

    /// Takes a node out of the cluster; its id is never to be used again.
    pub async fn remove(&self, id: NodeId) -> Result<(), Error> {
        self.admin(|| Admin::Remove { id }).await
    }

    /// Hands leadership to a voter, or to the one whose log is furthest, and waits until it leads.
    ///
    /// # Errors
    /// [`Error::LedByAnother`] when a voter was named and another one took over: an election came between.
    ///
    /// Cancel safe: dropped, leadership may move all the same.
    pub async fn move_leader(&self, to: Option<NodeId>) -> Result<(), Error> {
        self.admin(|| Admin::MoveLeader { to }).await
    }

    /// How many attempts had to be repeated so far, over all clones.
    pub fn retries(&self) -> u64 {
        self.inner.retries.load(std::sync::atomic::Ordering::Relaxed)
    }

    async fn admin(&self, admin: impl Fn() -> Admin) -> Result<(), Error> {
        let end = env::now() + self.deadline;
        match self.retry(true, end, || Request::Admin(admin())).await? {
            Response::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Repeats a request that may be carried out more than once.
    async fn retry(
        &self,
        to_leader: bool,
        end: Instant,
        request: impl Fn() -> Request,
    ) -> Result<Response, Error> {
        let mut pause = Backoff::default();
        loop {
            let setback = match self.attempt(request(), to_leader, end).await.0 {
                Ok(response) => return Ok(response),
                Err(End::Final(error)) => return Err(error),
                Err(End::Retry(setback)) => setback,
            };
            if !pause.wait(&setback, end).await {
                return Err(Error::Unavailable {
                    deadline: self.deadline,
                    last: setback.reason,
                });
            }
            self.count_retry();
        }
    }

    /// One attempt; also answers whether it may have had an effect.
    async fn attempt(
        &self,
        request: Request,
        to_leader: bool,
        end: Instant,
    ) -> (Result<Response, End>, bool) {
        let (index, endpoint) = match self.choose(to_leader) {
            Ok(chosen) => chosen,
            Err(error) => return (Err(End::Final(error)), false),
        };
        let time = end.since(env::now()).min(ATTEMPT_MAX);
        match endpoint.call(request, time).await {
            Ok(Response::Failed(failure)) => self.judge(index, failure),
            Ok(response) => {
                if to_leader {
                    self.endpoints().leader = Some(index);
                }
                (Ok(response), true)
            }
            Err(CallError { sent, reason }) => {
                self.avoid(index);
                (
                    Err(End::Retry(Setback {
                        reason,
                        redirected: false,
                    })),
                    sent,
                )
            }
        }
    }

    fn judge(&self, index: usize, failure: Failure) -> (Result<Response, End>, bool) {
        let again = |reason: &str, redirected| {
            End::Retry(Setback {
                reason: reason.to_owned(),
                redirected,
            })
        };
        let (end, maybe) = match failure {
            Failure::NotLeader { leader } => (
                again("the node asked does not lead", self.follow(index, leader)),
                false,
            ),
            Failure::Unknown { leader } => (
                again("leadership was lost on the way", self.follow(index, leader)),
                true,
            ),
            Failure::NoQuorum => {
                self.avoid(index);
                (again("no quorum confirmed the read", false), false)
            }
            Failure::Stopped(reason) => {
                self.avoid(index);
                (again(&reason, false), false)
            }
            Failure::NotYet { asked, current } => (End::Final(Error::NotYet { asked, current }), false),
            Failure::Compacted { oldest } => (End::Final(Error::Compacted { oldest }), false),
            Failure::TooStale { lag } => (End::Final(Error::TooStale { lag }), false),
            Failure::Invalid(reason) | Failure::Refused(reason) => {
                (End::Final(Error::Rejected { reason }), false)
            }
            Failure::LedByAnother { asked, leader } => {
                (End::Final(Error::LedByAnother { asked, leader }), false)
            }
        };
        (Err(end), maybe)
    }

    fn choose(&self, to_leader: bool) -> Result<(usize, Arc<Endpoint>), Error> {
        let endpoints = self.endpoints();
        let count = endpoints.known.len();
        if count == 0 {
            return Err(Error::Rejected {
                reason: "the client was given no endpoint".to_owned(),
            });
        }
        let local = matches!(endpoints.known.first().map(|e| &**e), Some(Endpoint::Local(_)));
        let index = match endpoints.leader {
            Some(leader) if to_leader || !local => leader,
            _ => endpoints.next % count,
        };
        Ok((index, Arc::clone(&endpoints.known[index])))
    }

    /// Goes to the leader that a node named; answers whether there is one to go to that is not itself.
    fn follow(&self, from: usize, leader: Option<(NodeId, String)>) -> bool {
        let mut endpoints = self.endpoints();
        endpoints.leader = None;
        let Some((id, address)) = leader.filter(|(_, address)| !address.is_empty()) else {
            endpoints.next = from + 1;
            return false;
        };
        let here = |e: &Arc<Endpoint>| match &**e {
            Endpoint::Local(front) => front.node() == id,
            Endpoint::Remote(_) => e.address() == address,
        };
        let index = endpoints.known.iter().position(here).unwrap_or_else(|| {
            let peer = Peer {
                node_id: Some(id.number()),
                address,
            };
            let endpoint = Endpoint::remote(Arc::clone(&self.inner.transport), peer);
            endpoints.known.push(Arc::new(endpoint));
            endpoints.known.len() - 1
        });
        endpoints.leader = Some(index);
        index != from
    }

    /// Another node next time.
    fn avoid(&self, index: usize) {
        let mut endpoints = self.endpoints();
        if endpoints.leader == Some(index) {
            endpoints.leader = None;
        }
        endpoints.next = index + 1;
    }

    fn count_retry(&self) {
        self.inner
            .retries
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        metrics::counter!("quorate_client_retries_total").increment(1);
    }

    fn endpoints(&self) -> std::sync::MutexGuard<'_, Endpoints> {
        self.inner
            .endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// How an attempt ended without a result.
#[derive(Debug)]
enum End {
    Final(Error),
    Retry(Setback),
}

fn unexpected(response: &Response) -> Error {
    Error::Rejected {
        reason: format!("the node answered something else: {response:?}"),
    }
}

/// Exponential backoff with jitter.
#[derive(Debug)]
struct Backoff {
    next: Duration,
    max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            next: BACKOFF_FIRST,
            max: BACKOFF_MAX,
        }
    }
}

impl Backoff {
    /// Between conflicts, which are over in a moment: who waits long while others go on at once never gets a turn.
    fn of_conflicts() -> Self {
        Self {
            max: CONFLICT_PAUSE_MAX,
            ..Self::default()
        }
    }

    /// Waits before the next attempt; answers false when the deadline leaves no time for one.
    async fn wait(&mut self, setback: &Setback, end: Instant) -> bool {
        let left = end.since(env::now());
        let half = self.next / 2;
        let jitter = half.mul_f64((env::random_u64() >> 11) as f64 / (1u64 << 53) as f64);
        // Two nodes that name each other must not be asked in a tight loop, so even a redirect waits from
        // the second time on.
        let pause = if setback.redirected && self.next == BACKOFF_FIRST {
            Duration::ZERO
        } else {
            half + jitter
        };
        self.next = (self.next * 2).min(self.max);
        if pause >= left || left.is_zero() {
            return false;
        }
        env::sleep(pause).await;
        true
    }
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}
