//! The client: one type, in-process or remote.
//!
//! # What holds for every call
//!
//! - **Order.** All transactions have one order, and a call that begins after another one was answered stands behind it. Calls that
//!   are under way at once, of one client too, may take effect in any order.
//! - **Durability.** A write that was answered is on the disks of a majority, synced. So is a change of the members or of the limits.
//! - **Errors.** [`Error::is_retryable`] says whether the same call may succeed later, [`Error::may_have_committed`] whether it may have
//!   taken effect. After [`Error::OutcomeUnknown`] it may have, and after [`Error::AnswerTooLarge`] it has; every other error means that
//!   nothing was changed and nothing will be. The client itself retries what a retry may help, within the deadline.
//! - **Cancel safety.** A read may be dropped at any time. A write that is dropped after it was first polled may still commit, once.
//!
//! What one call adds to that stands at the call.
//!
//! # How it does that
//!
//! It finds the leader and follows it (`route`), retries with exponential backoff and jitter (`backoff`) within the
//! caller's deadline, says what is known of the outcome (`outcome`), and numbers its writes within a session, so that a
//! retried write happens once.
//!
//! Always: every wait ends at the caller's deadline.

mod admin;
mod backoff;
mod endpoint;
mod error;
mod outcome;
mod own;
mod read;
mod route;
mod session;
mod transact;
mod write;

#[cfg(doctest)]
mod refused;
#[cfg(test)]
mod tests;

pub use error::{Error, OutcomeUnknown};
pub(crate) use read::record_of;
pub use read::{Page, Range, Read, Records};
pub use transact::{TransactError, Transacted, Transaction};
pub use write::{DeleteRange, Expected, Replaced, Swap, TxnCall, Write};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate_transport::{InvalidAddress, Peer, Transport};

use crate::env::{self, Instant};
use crate::model::{
    CheckedTxn, Command, Consistency, Limits, Outcome, ReadOp, ReadResponse, SessionId, Txn, TxnRefused,
    TxnResponse, check_reads,
};
use crate::node::{Front, Status};
use crate::protocol::{Request, Response};
use backoff::Backoff;
use endpoint::Endpoint;
use outcome::{Effect, Kind, Progress, Step, Way};
use route::{Routes, To};
use session::{Numbered, Session};

/// How long a call may take when the caller does not say: longer than any profile takes to find another leader.
const DEADLINE: Duration = Duration::from_secs(15);
/// So long a node may be silent before another one is asked, and a node may wait for the state that a read asks for, so
/// that one that is cut off does not use up the deadline. Less than the time in which every profile promises another leader.
/// One that says that a call waits for room is not silent; it says so no longer than it takes to notice that it is cut off.
const SILENCE_MAX: Duration = Duration::from_secs(2);
const STATE_WAIT_MAX: Duration = Duration::from_millis(1_500);
/// Writes of one client that may be under way at once; more wait here, within their deadlines.
const WRITES_MAX: usize = 1024;
/// How long the session of a dropped client is tried to be given back. It is a courtesy: a session that stays ends by
/// itself.
const GOODBYE: Duration = Duration::from_secs(2);

/// A handle to a cluster. Cheap to clone; clones share connections and the session, not the deadline.
///
/// [`Node::client`](crate::Node::client) has one in this process, [`connect`](Self::connect) one of a cluster elsewhere. The calls are the same.
///
/// ```no_run
/// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
/// let written = client.put("greeting", "hello").await?;
/// let record = client.get("greeting").await?.expect("it was just written");
/// assert_eq!((record.text(), record.mod_revision), (Some("hello"), written));
///
/// // A clone for every task, and one that has less time.
/// let hurried = client.with_deadline(std::time::Duration::from_secs(1));
/// let count = tokio::spawn(async move { hurried.count(..).await });
/// # let _ = count;
/// # Ok(()) }
/// ```
///
/// When the last clone is dropped, its session is given back in the background, as far as the runtime that it is dropped
/// in still runs; [`close`](Self::close) waits for that.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
    deadline: Duration,
    /// Of reads that do not say.
    consistency: Consistency,
    /// Of a client for one operation: when all its calls end.
    end: Option<Instant>,
    /// Dropped with the last clone.
    _last: Arc<LastClone>,
}

#[derive(Debug)]
struct Inner {
    limits: Limits,
    routes: Routes,
    /// The node in this process, where there is one.
    here: Option<Arc<Front>>,
    /// Locked while a session is opened, for no longer than the deadline of the call that does so.
    session: tokio::sync::Mutex<Option<Arc<Session>>>,
    /// Places for writes under way: below what a session may have unanswered, so that none is refused.
    writes: env::Semaphore,
    retries: AtomicU64,
}

/// Gives the session back when it is dropped.
#[derive(Debug)]
struct LastClone(Arc<Inner>);

impl Drop for LastClone {
    fn drop(&mut self) {
        // No call is under way any more, each of which borrows a clone: nobody holds the lock.
        let session = self.0.session.try_lock().ok().and_then(|mut held| held.take());
        if let Some(session) = session {
            let inner = Arc::clone(&self.0);
            env::try_spawn("client-goodbye", async move {
                inner.give_back(session.id(), GOODBYE).await;
            });
        }
    }
}

/// A change of a client's, which happens twice if it is carried out twice.
const CHANGE: Kind = Kind {
    changes: true,
    repeatable: false,
};
/// One that does no more the second time.
const REPEATABLE: Kind = Kind {
    changes: true,
    repeatable: true,
};
/// What changes nothing that matters: reads, and sessions, which end by themselves.
const HARMLESS: Kind = Kind {
    changes: false,
    repeatable: true,
};

impl Client {
    pub(crate) fn local(front: Arc<Front>, transport: Arc<dyn Transport>) -> Self {
        let limits = front.settings.limits;
        let routes = Routes::new(vec![Endpoint::Local(Arc::clone(&front))], transport);
        Self::new(routes, Some(front), limits)
    }

    /// A client of the cluster that these nodes belong to: at least one `host:port`, and no harm in more.
    /// Nothing is sent before the first call. Each is an [`Address`](quorate_transport::Address) as a text; other texts are refused.
    /// The limits are those of the cluster's nodes ([`Settings::limits`](crate::node::Settings::limits)).
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::path::Path;
    ///
    /// use quorate_kv::Client;
    /// use quorate_kv::model::Limits;
    /// use quorate_transport::certs::Credentials;
    /// use quorate_transport::quic::{QuicSettings, QuicTransport};
    /// use quorate_transport::{ClusterId, Identity};
    ///
    /// // `quorate certs issue --client admin` makes the certificate.
    /// let me = Identity::client(ClusterId::new("orders")?, "admin")?;
    /// let credentials = Credentials::load_from(Path::new("certs"), &me)?;
    /// let transport = QuicTransport::bind(None, &credentials, QuicSettings::default())?;
    /// let client = Client::connect(["a.internal:7001", "b.internal:7001"], transport, Limits::default())?;
    ///
    /// client.put("greeting", "hello").await?;
    /// client.close().await;
    /// # Ok(()) }
    /// ```
    pub fn connect<A: AsRef<str>>(
        endpoints: impl IntoIterator<Item = A>,
        transport: Arc<dyn Transport>,
        limits: Limits,
    ) -> Result<Self, InvalidAddress> {
        let remote = |address: A| {
            let peer = Peer {
                node_id: None,
                address: address.as_ref().parse()?,
            };
            Ok(Endpoint::remote(Arc::clone(&transport), peer))
        };
        let endpoints: Result<_, InvalidAddress> = endpoints.into_iter().map(remote).collect();
        let routes = Routes::new(endpoints?, Arc::clone(&transport));
        Ok(Self::new(routes, None, limits))
    }

    fn new(routes: Routes, here: Option<Arc<Front>>, limits: Limits) -> Self {
        let inner = Arc::new(Inner {
            limits,
            routes,
            here,
            session: tokio::sync::Mutex::new(None),
            writes: env::Semaphore::new(WRITES_MAX),
            retries: AtomicU64::new(0),
        });
        Self {
            _last: Arc::new(LastClone(Arc::clone(&inner))),
            inner,
            deadline: DEADLINE,
            consistency: Consistency::Linearizable,
            end: None,
        }
    }

    /// The same client with another deadline for each call; 15 s by default, which is longer than any profile takes to
    /// find another leader. Choose one above `failover_max` where that is longer. Retries stay within it.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self {
            deadline,
            ..self.clone()
        }
    }

    /// The same client whose reads are of this consistency where they do not say; linearizable by default.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// use quorate_kv::model::Consistency;
    ///
    /// let then = client.revision().await?;
    /// let historian = client.with_consistency(Consistency::At(then));
    /// let (users, jobs) = tokio::join!(historian.prefix("users/"), historian.prefix("jobs/"));
    /// # let _ = (users?, jobs?);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_consistency(&self, consistency: Consistency) -> Self {
        Self {
            consistency,
            ..self.clone()
        }
    }

    /// The same client for one operation of several calls: all of them together have the deadline that each has
    /// otherwise, from now on. Of such a client it is the same client again.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// // Both within 15 s, not each.
    /// let client = client.for_one_operation();
    /// let owner = client.get("owner").await?;
    /// client.put("owner-before", owner.map_or_else(Default::default, |owner| owner.value)).await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn for_one_operation(&self) -> Self {
        Self {
            end: self.end.or(Some(env::now() + self.deadline)),
            ..self.clone()
        }
    }

    fn time(&self) -> Time {
        self.time_of(self.deadline)
    }

    /// The time of a call that begins now.
    fn time_of(&self, deadline: Duration) -> Time {
        let called = env::now();
        let end = called + deadline;
        Time {
            deadline,
            called,
            end: self.end.map_or(end, |of_all| of_all.min(end)),
        }
    }

    /// Ends the client: its session, if it ever wrote, is given back to the cluster, which keeps a limited number
    /// of them.
    ///
    /// Best effort, within the deadline, and never an error: a session that could not be closed expires by itself. Writes of other
    /// clones that are still under way lose what makes them exactly-once: let them end first. A clone that writes
    /// later opens a session anew.
    ///
    /// Cancel safe: dropped, the session may be closed all the same, or expires by itself.
    pub async fn close(self) {
        let end = env::now() + self.deadline;
        let Ok(mut held) = env::timeout_at(end, self.inner.session.lock()).await else {
            return;
        };
        let Some(session) = held.take() else { return };
        drop(held);
        let left = end.since(env::now());
        self.inner.give_back(session.id(), left).await;
    }

    /// How many attempts had to be repeated so far, over all clones.
    pub fn retries(&self) -> u64 {
        self.inner.retries.load(Ordering::Relaxed)
    }
}

/// The time of one call.
#[derive(Debug, Clone, Copy)]
struct Time {
    /// What the caller gave it.
    deadline: Duration,
    called: Instant,
    end: Instant,
}

impl Time {
    fn left(self) -> Duration {
        self.end.since(env::now())
    }

    fn is_over(self, last: String) -> Error {
        Error::Unavailable {
            deadline: self.deadline,
            node: None,
            last,
        }
    }
}

impl Inner {
    async fn txn(&self, txn: Txn, time: Time) -> Result<TxnResponse, Error> {
        let txn = CheckedTxn::check(txn, &self.limits)?.into_inner();
        let place = env::timeout_at(time.end, self.writes.acquire()).await;
        let _place =
            place.map_err(|_| time.is_over(format!("{WRITES_MAX} writes of this client were under way")))?;
        loop {
            let session = self.session(time).await?;
            let numbered = env::timeout_at(time.end, session.number()).await;
            let numbered = numbered.map_err(|_| {
                let spread = session::SPREAD_MAX;
                time.is_over(format!(
                    "a write of this client was still under way, and {spread} later ones had been made"
                ))
            })?;
            match self.write(&txn, &numbered, time).await? {
                Some(response) => return Ok(response),
                // The session had expired before this write was ever sent in it: a new one is safe.
                None => self.forget_session(numbered.session(), time).await,
            }
        }
    }

    /// Sends one write until it is answered; `None` when its session had expired and no attempt before may
    /// have taken effect.
    async fn write(&self, txn: &Txn, numbered: &Numbered, time: Time) -> Result<Option<TxnResponse>, Error> {
        let request = || {
            Request::Write(Command::Txn {
                session: Some(numbered.reference()),
                txn: txn.clone(),
            })
        };
        let mut progress = Progress::default();
        let answer = self
            .ask(To::Leader, REPEATABLE, time, &mut progress, request)
            .await?;
        match answer {
            Response::Written(Outcome::Txn(Ok(response))) => Ok(Some(response)),
            Response::Written(Outcome::Txn(Err(TxnRefused::SessionExpired { .. })))
                if progress.effect() == Effect::Impossible =>
            {
                Ok(None)
            }
            Response::Written(Outcome::Txn(Err(refused))) => Err(progress.refused(refused)),
            other => Err(outcome::unexpected(&other, REPEATABLE)),
        }
    }

    /// The session to write in, opened when first needed.
    async fn session(&self, time: Time) -> Result<Arc<Session>, Error> {
        let session = env::timeout_at(time.end, self.session.lock()).await;
        let mut session = session.map_err(|_| {
            time.is_over("another call of this client was still opening its session".to_owned())
        })?;
        if let Some(session) = &*session {
            return Ok(Arc::clone(session));
        }
        // As long as the cluster grants.
        let ttl_millis = u64::MAX;
        let request = || Request::Write(Command::open_session(ttl_millis));
        // Opening twice leaves a session that expires by itself, so this needs no number of its own.
        let mut progress = Progress::default();
        let opened = self
            .ask(To::Leader, HARMLESS, time, &mut progress, request)
            .await?;
        let id = match opened {
            Response::Written(Outcome::SessionOpened(Ok(opened))) => opened.session,
            Response::Written(Outcome::SessionOpened(Err(refused))) => return Err(refused.into()),
            other => return Err(outcome::unexpected(&other, HARMLESS)),
        };
        let opened = Session::new(id);
        *session = Some(Arc::clone(&opened));
        Ok(opened)
    }

    async fn forget_session(&self, expired: &Arc<Session>, time: Time) {
        // Who holds the lock until then is opening another one.
        let Ok(mut session) = env::timeout_at(time.end, self.session.lock()).await else {
            return;
        };
        if session
            .as_ref()
            .is_some_and(|session| Arc::ptr_eq(session, expired))
        {
            *session = None;
        }
    }

    async fn give_back(&self, session: SessionId, deadline: Duration) {
        let called = env::now();
        let time = Time {
            deadline,
            called,
            end: called + deadline,
        };
        let request = || Request::Write(Command::CloseSession { session });
        let mut progress = Progress::default();
        let closed = self.ask(To::Leader, HARMLESS, time, &mut progress, request).await;
        if let Err(error) = closed {
            tracing::debug!(%session, %error, "the session was not closed; it expires by itself");
        }
    }

    async fn read(
        &self,
        reads: Vec<ReadOp>,
        consistency: Consistency,
        time: Time,
    ) -> Result<ReadResponse, Error> {
        check_reads(&reads, &self.limits)?;
        env::give_way().await;
        match self.read_here(&reads, consistency, time) {
            Some(response) => Ok(response),
            None => self.ask_to_read(reads, consistency, time).await,
        }
    }

    /// Sends reads that were checked.
    async fn ask_to_read(
        &self,
        reads: Vec<ReadOp>,
        consistency: Consistency,
        time: Time,
    ) -> Result<ReadResponse, Error> {
        let read = || {
            let left = time.left();
            Request::Read {
                reads: reads.clone(),
                consistency,
                // What the node then says of the state still comes in time.
                wait: (left * 9 / 10).min(STATE_WAIT_MAX),
                time: left,
            }
        };
        let mut progress = Progress::default();
        match self.ask(To::Anyone, HARMLESS, time, &mut progress, read).await? {
            Response::Read(response) => Ok(response),
            other => Err(outcome::unexpected(&other, HARMLESS)),
        }
    }

    /// What the node in this process has in memory of what was checked, where it is the one to be asked.
    fn read_here(&self, reads: &[ReadOp], consistency: Consistency, time: Time) -> Option<ReadResponse> {
        let here = self.here.as_ref().filter(|_| self.routes.here_is_next())?;
        // Of a call without time the usual way tells.
        (time.called < time.end).then(|| here.read_at_once(reads, consistency))?
    }

    async fn status(&self, time: Time) -> Result<Status, Error> {
        let mut progress = Progress::default();
        let status = || Request::Status;
        match self
            .ask(To::Anyone, HARMLESS, time, &mut progress, status)
            .await?
        {
            Response::Status(status) => Ok(*status),
            other => Err(outcome::unexpected(&other, HARMLESS)),
        }
    }

    /// Asks until there is an answer, a failure that no retry helps, or no time left.
    async fn ask(
        &self,
        to: To,
        kind: Kind,
        time: Time,
        progress: &mut Progress,
        request: impl Fn() -> Request,
    ) -> Result<Response, Error> {
        let mut pause = Backoff::default();
        loop {
            let Some((place, endpoint)) = self.routes.choose(to) else {
                return Err(Error::rejected("the client was given no endpoint"));
            };
            let asking = self.routes.asks(place);
            let request = match (progress.effect(), request()) {
                (Effect::Possible, Request::Write(command @ Command::Txn { session: Some(_), .. })) => {
                    Request::WriteAgain(command)
                }
                (_, request) => request,
            };
            let result = endpoint.call(request, SILENCE_MAX, time.end).await;
            asking.ends();
            let redirected = match progress.take(place, endpoint.name(), kind, result) {
                Step::Answered(response) => {
                    if to == To::Leader {
                        self.routes.leads(place);
                    }
                    return Ok(response);
                }
                Step::Failed(error) => return Err(error),
                Step::Again(Way::Here) => false,
                Step::Again(Way::Elsewhere) => {
                    self.routes.avoid(place);
                    false
                }
                Step::Again(Way::ToLeader(leader)) => self.routes.follow(place, leader),
            };
            if let Some(error) = progress.admitted_by_none(self.routes.count()) {
                return Err(error);
            }
            if !pause.wait(redirected, time.end).await {
                return Err(progress.out_of_time(time.deadline));
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            metrics::counter!("quorate_client_retries_total").increment(1);
        }
    }
}
