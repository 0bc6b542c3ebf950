//! The front desk: takes requests of clients, near and far, and sees each to where it is answered.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use quorate_transport::{Identity, InvalidAddress, Transport};
use tokio_util::sync::CancellationToken;

use super::lanes::{End, Lanes, ReadJob};
use super::limits::LimitsSet;
use super::memory::MemoryParts;
use super::proposer::{Proposals, ROOM_WAIT_MAX, Write};
use super::reply::{NO_ANSWER, ReplyTo};
use super::room::{Guest, Rooms};
use super::service::Service;
use super::settings::Settings;
use super::space::{Admits, Attempt, Space, Used};
use crate::env::{self, Instant};
use crate::fault::{Fault, Faults};
use crate::identity::{ClusterUuid, MemberUuid};
use crate::log::Log;
use crate::machine::{NotShrunk, ReadClass, View};
use crate::model::{
    CheckedTxn, Command, Consistency, LogIndex, NodeId, ReadOp, ReadResponse, ReplicatedLimits, Revision,
    SessionId, check_reads,
};
use crate::planted::{self, Bug};
use crate::protocol::{Admin, Failure, Request, Response};
use crate::raft::{MemberState, MembershipError, Part, RaftNode, RaftState, ReadIndexError, address_text};
use crate::status::{MemberStatus, NodeRole, Status};
use crate::tasks::Tasks;

/// How long a write waits for history that goes by itself, in a store that is full of it: less than a client is patient with
/// a node that says nothing.
const SPACE_WAIT_MAX: Duration = Duration::from_millis(1_500);
/// How often it looks.
const SPACE_LOOK: Duration = Duration::from_millis(50);

/// What the front desk needs to know of its node.
pub(crate) struct Front {
    pub(crate) raft: Arc<RaftNode>,
    pub(crate) settings: Arc<Settings>,
    cluster: Arc<str>,
    node: NodeId,
    log: Log,
    transport: Arc<dyn Transport>,
    service: Service,
    proposals: Proposals,
    lanes: Lanes,
    rooms: Rooms,
    /// The callers in this process.
    here: Arc<Guest>,
    limits_set: LimitsSet,
    space: Space,
    tasks: Tasks,
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Front")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// How large a command is in an entry when it is no transaction.
const SMALL: usize = 32;

/// A command within the limits, and about how many bytes it takes in an entry.
type Checked = (Command, usize);

/// A read of a client's.
#[derive(Debug)]
pub(super) struct ReadCall {
    class: ReadClass,
    reads: Vec<ReadOp>,
    consistency: Consistency,
    /// How long the state that it asks for may be waited for.
    wait: Duration,
    end: End,
    reply: ReplyTo,
}

/// What the front desk is opened with.
pub(crate) struct FrontParts {
    pub(crate) raft: Arc<RaftNode>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) memory: MemoryParts,
    pub(crate) cluster: Arc<str>,
    pub(crate) node: NodeId,
    pub(crate) log: Log,
    pub(crate) transport: Arc<dyn Transport>,
    /// Tells that the node stops.
    pub(crate) stop: CancellationToken,
    pub(crate) faults: Faults,
}

impl Front {
    pub(crate) fn open(parts: FrontParts, tasks: &Tasks) -> Arc<Self> {
        let FrontParts {
            raft,
            settings,
            memory,
            cluster,
            node,
            log,
            transport,
            stop,
            faults,
        } = parts;
        let service = Service::new(faults, stop);
        let (proposals, proposer) = Proposals::open(
            Arc::clone(&raft),
            memory.proposals,
            settings.proposals_in_flight,
            service.clone(),
        );
        tasks.spawn("proposer", proposer.run());
        let reader = raft.machine().reader().clone();
        let lanes = Lanes::start(reader, Arc::clone(&settings), &service, tasks);
        let rooms = Rooms::new(memory.calls, memory.answers);
        Arc::new(Self {
            here: Arc::new(rooms.here(transport.identity())),
            rooms,
            raft,
            settings,
            cluster,
            node,
            log,
            transport,
            service,
            proposals,
            lanes,
            limits_set: LimitsSet::default(),
            space: Space::default(),
            tasks: tasks.clone(),
        })
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    /// What room there is for what grows.
    pub(super) fn space(&self) -> &Space {
        &self.space
    }

    pub(super) fn log(&self) -> &Log {
        &self.log
    }

    /// The fault that ended the node's part, if one did.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.service.faults().first()
    }

    /// Whether the node answers calls: it has no fault, and does not stop.
    pub(super) fn serves(&self) -> bool {
        self.service.is_over().is_none()
    }

    /// The node's tasks.
    pub(super) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Waits until every request that is under way is answered, and lets no other begin; for a node that has begun to
    /// stop. Cancel safe.
    pub(super) async fn idle(&self) {
        self.proposals.idle().await;
        self.rooms.idle().await;
    }

    /// What is held of calls, of answers to reads of a few keys, and of those to all others, in bytes.
    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize, usize) {
        self.rooms.held()
    }

    /// All the room that callers in this process have for answers to reads of a few keys, once it is free: an answer
    /// gives its own back a moment after it was given.
    #[cfg(test)]
    pub(super) async fn all_room_for_points(&self) -> super::room::Held {
        self.here.answers(ReadClass::Point).take(usize::MAX).await
    }

    /// A new stream of this client, if there is a place for it.
    pub(super) fn guest(&self, client: &Identity) -> Option<Guest> {
        self.rooms.guest(client)
    }

    /// Answers one request of a caller in this process, who waits for it until then.
    pub(crate) async fn call(self: &Arc<Self>, request: Request, until: Instant) -> Response {
        let (reply, answer) = ReplyTo::local();
        match request {
            Request::Write(command) => self.write(command, Attempt::First, reply, until).await,
            Request::WriteAgain(command) => self.write(command, Attempt::Again, reply, until).await,
            Request::Read {
                reads,
                consistency,
                wait,
                time,
            } => {
                let read = self.read_call(reads, consistency, wait, time, reply);
                self.read(&self.here, read).await;
            }
            Request::Status => reply.send(Response::Status(Box::new(self.status()))),
            Request::Shrink => self.begin_shrinking(reply),
            Request::Admin(admin) => self.begin_change(admin, reply),
            // Here a caller gives a read up by dropping it.
            Request::GiveUp { .. } => reply.send(Response::Done),
        }
        answer
            .await
            .unwrap_or(Response::Failed(Failure::unknown(NO_ANSWER)))
    }

    async fn write(&self, command: Command, attempt: Attempt, reply: ReplyTo, until: Instant) {
        match self.check(command) {
            Ok(checked) => self.hand_in(checked, attempt, reply, until).await,
            Err(failure) => reply.send(Response::Failed(failure)),
        }
    }

    /// Checks a command and hands it in, where there is room for it; gives it back otherwise. The answer goes to `reply`.
    pub(super) fn write_now(
        &self,
        command: Command,
        attempt: Attempt,
        reply: ReplyTo,
    ) -> Option<(Checked, ReplyTo)> {
        let admitted = self.check(command).map(|checked| {
            let admits = self.admits(&checked.0, attempt);
            (checked, admits)
        });
        match admitted {
            Ok((_, Admits::Never(failure))) | Err(failure) => {
                reply.send(Response::Failed(failure));
                None
            }
            Ok(((command, size), Admits::Now { full_at })) if !self.waits_for_limits(&command) => {
                let write = Write {
                    command,
                    size,
                    full_at,
                };
                let back = self.proposals.send_now(write, reply);
                back.map(|(Write { command, size, .. }, reply)| ((command, size), reply))
            }
            Ok((checked, Admits::Now { .. } | Admits::OnceHistoryIsGone)) => Some((checked, reply)),
        }
    }

    /// Hands in what was given back, once there is room for it, or tells its caller that there was none.
    pub(super) async fn write_in_time(&self, checked: Checked, attempt: Attempt, reply: ReplyTo) {
        self.hand_in(checked, attempt, reply, env::now() + ROOM_WAIT_MAX)
            .await;
    }

    async fn hand_in(&self, (command, size): Checked, attempt: Attempt, reply: ReplyTo, until: Instant) {
        let full_at = match self.wait_for_space(&command, attempt, until).await {
            Ok(full_at) => full_at,
            Err(failure) => {
                reply.send(Response::Failed(failure));
                return;
            }
        };
        self.wait_for_limits(&command, until).await;
        let write = Write {
            command,
            size,
            full_at,
        };
        self.proposals.send(write, reply, until).await;
    }

    /// Whether a command is taken. Only within a session is there an answer of an earlier attempt.
    fn admits(&self, command: &Command, attempt: Attempt) -> Admits {
        let attempt = match (attempt, command) {
            (Attempt::Again, Command::Txn { session: Some(_), .. }) => Attempt::Again,
            (Attempt::Again, _) => Attempt::First,
            (attempt, _) => attempt,
        };
        // Who does not lead has another state, perhaps an older one, and is answered that it does not. A state that cannot be looked
        // at has stopped the node, which says so itself.
        self.space.admits(command, attempt, || {
            let leads = self.raft.role() == Part::Leader;
            let view = leads.then(|| self.raft.machine().reader().view())?;
            Some(Used::of(&view.ok()?))
        })
    }

    /// Waits for history that goes by itself, where the store is full of that: a burst of writes is no full store. Answers what is
    /// used, where nothing may grow.
    async fn wait_for_space(
        &self,
        command: &Command,
        attempt: Attempt,
        until: Instant,
    ) -> Result<Option<u64>, Failure> {
        let until = until.min(env::now() + SPACE_WAIT_MAX);
        loop {
            let attempt = match attempt {
                Attempt::First if env::now() >= until => Attempt::FirstOutOfTime,
                attempt => attempt,
            };
            match self.admits(command, attempt) {
                Admits::Now { full_at } => return Ok(full_at),
                Admits::Never(failure) => return Err(failure),
                Admits::OnceHistoryIsGone => {
                    env::mark("space.waits_for_history");
                    env::sleep(SPACE_LOOK).await;
                }
            }
        }
    }

    /// Whether a command comes before the cluster has its limits, which its leader is about to propose: they are to count
    /// from the first write on.
    fn waits_for_limits(&self, command: &Command) -> bool {
        !self.limits_set.look(self.raft.machine().reader())
            && !matches!(
                command,
                Command::SetLimits {
                    expected: Some(0),
                    ..
                }
            )
            && self.raft.role() == Part::Leader
    }

    async fn wait_for_limits(&self, command: &Command, until: Instant) {
        if self.waits_for_limits(command) {
            let set = self.raft.wait_for(|state| {
                state.role != Part::Leader || self.limits_set.look(self.raft.machine().reader())
            });
            // Else the defaults count.
            let _in_time = env::timeout_at(until, set).await;
        }
    }

    fn check(&self, command: Command) -> Result<Checked, Failure> {
        match command {
            Command::Txn { session, txn } => {
                let checked = CheckedTxn::check(txn, &self.settings.limits)?;
                let size = checked.size();
                Ok((
                    Command::Txn {
                        session,
                        txn: checked.into_inner(),
                    },
                    size,
                ))
            }
            Command::SetLimits { expected, changes } => {
                ReplicatedLimits::default().with(&changes)?;
                let size = SMALL + 10 * changes.len();
                Ok((Command::SetLimits { expected, changes }, size))
            }
            Command::OpenSession { ttl_millis, .. } => {
                let id = SessionId::new(env::random_u128());
                Ok((Command::OpenSession { id, ttl_millis }, SMALL))
            }
            other @ (Command::CloseSession { .. } | Command::Compact { .. }) => Ok((other, SMALL)),
        }
    }

    /// A read, with the time that it has here.
    pub(super) fn read_call(
        &self,
        reads: Vec<ReadOp>,
        consistency: Consistency,
        wait: Duration,
        time: Duration,
        reply: ReplyTo,
    ) -> ReadCall {
        let longest = self.settings.read_time_max;
        let (time, limit) = if time > longest {
            (longest, Some(longest))
        } else {
            (time, None)
        };
        ReadCall {
            class: ReadClass::of(&reads),
            reads,
            consistency,
            wait: wait.min(time),
            end: End {
                at: env::now() + time,
                limit,
            },
            reply,
        }
    }

    /// Answers a read: waits for the state that it asks for, and hands it to its lane.
    pub(super) async fn read(&self, guest: &Arc<Guest>, read: ReadCall) {
        let prepared = self.prepare_read(&read.reads, read.consistency, read.wait).await;
        self.read_prepared(guest, [(read, prepared)]);
    }

    /// The same at once, where nothing is to be waited for; gives the read back otherwise.
    pub(super) fn read_now(&self, guest: &Arc<Guest>, read: ReadCall) -> Option<ReadCall> {
        // That one must be asked for.
        if read.consistency == Consistency::Linearizable {
            return Some(read);
        }
        let preparing = self.prepare_read(&read.reads, read.consistency, read.wait);
        let Some(prepared) = preparing.now_or_never() else {
            return Some(read);
        };
        self.read_prepared(guest, [(read, prepared)]);
        None
    }

    /// Answers a read of a few keys of a caller in this process, on its own task: where the state here is what the
    /// consistency asks for, and memory has what the read does. `None` else: it goes the usual way, and is refused there. The
    /// caller has checked it.
    pub(crate) fn read_at_once(&self, reads: &[ReadOp], consistency: Consistency) -> Option<ReadResponse> {
        let revision = || self.raft.machine().applied_revision();
        let at = match consistency {
            // That one must be asked for.
            Consistency::Linearizable => return None,
            Consistency::Stale {
                min_revision,
                max_lag,
            } => {
                let has_come = min_revision.is_none_or(|asked| revision() >= asked)
                    && max_lag.is_none_or(|bound| self.is_level(bound, env::now()));
                has_come.then_some(None)?
            }
            Consistency::At(asked) => (revision() >= asked).then_some(Some(asked))?,
        };
        self.lanes.read_at_once(&self.here, reads, at)
    }

    /// Linearizable reads that arrived together share one confirmation.
    pub(super) async fn read_linearizable(&self, guest: &Arc<Guest>, reads: Vec<ReadCall>) {
        let wait = reads.iter().map(|read| read.wait).max().unwrap_or_default();
        let prepared = self.prepare_read(&[], Consistency::Linearizable, wait).await;
        let reads = reads.into_iter().map(|read| {
            let at = prepared.clone().and_then(|at| {
                check_reads(&read.reads, &self.settings.limits)?;
                Ok(at)
            });
            (read, at)
        });
        self.read_prepared(guest, reads);
    }

    /// Hands reads whose state is there to their lanes.
    fn read_prepared(
        &self,
        guest: &Arc<Guest>,
        reads: impl IntoIterator<Item = (ReadCall, Result<Option<Revision>, Failure>)>,
    ) {
        let ready = reads.into_iter().filter_map(|(read, prepared)| {
            let ReadCall {
                class,
                reads,
                end,
                reply,
                ..
            } = read;
            match prepared {
                Ok(at) => {
                    let guest = Arc::clone(guest);
                    let job = ReadJob {
                        reads,
                        at,
                        guest,
                        end,
                        reply,
                    };
                    Some((class, job))
                }
                Err(failure) => {
                    reply.send(Response::Failed(failure));
                    None
                }
            }
        });
        self.lanes.take(ready);
    }

    /// Waits until the state here is what the consistency asks for; answers which revision to read.
    pub(crate) async fn prepare_read(
        &self,
        reads: &[ReadOp],
        consistency: Consistency,
        wait: Duration,
    ) -> Result<Option<Revision>, Failure> {
        check_reads(reads, &self.settings.limits)?;
        let called = env::now();
        tokio::select! {
            biased;
            prepared = env::timeout(wait, self.await_state(consistency, called)) => match prepared {
                Ok(prepared) => prepared,
                Err(env::Elapsed) => self.state_in_time(consistency, called),
            },
            failure = self.service.over() => Err(failure),
        }
    }

    /// What is said of a state that was waited for long enough. What came at the last moment counts.
    fn state_in_time(&self, consistency: Consistency, called: Instant) -> Result<Option<Revision>, Failure> {
        let current = self.raft.machine().applied().borrow().revision;
        match consistency {
            Consistency::Linearizable => Err(Failure::NoQuorum),
            Consistency::Stale {
                min_revision: Some(asked),
                ..
            }
            | Consistency::At(asked)
                if current < asked =>
            {
                Err(Failure::NotYet { asked, current })
            }
            // Nobody has told in time how old it is.
            Consistency::Stale {
                max_lag: Some(bound), ..
            } => match reaches_back(bound, self.raft.level_at(), called) {
                true => Ok(None),
                false => Err(self.too_stale()),
            },
            Consistency::Stale { max_lag: None, .. } => Ok(None),
            Consistency::At(revision) => Ok(Some(revision)),
        }
    }

    async fn await_state(
        &self,
        consistency: Consistency,
        called: Instant,
    ) -> Result<Option<Revision>, Failure> {
        match consistency {
            Consistency::Linearizable if planted::is(Bug::ReadWithoutIndex) => Ok(None),
            Consistency::Linearizable => {
                let index = self.raft.read_index().await.map_err(|error| match error {
                    ReadIndexError::NoLeader { .. } | ReadIndexError::NoQuorum => Failure::NoQuorum,
                    ReadIndexError::Stopped { reason } => Failure::Stopped(reason),
                })?;
                self.await_applied(|applied, _| applied >= index).await?;
                Ok(None)
            }
            Consistency::Stale {
                min_revision,
                max_lag,
            } => {
                if let Some(revision) = min_revision {
                    self.await_applied(|_, current| current >= revision).await?;
                }
                if let Some(bound) = max_lag {
                    self.await_level(bound, called).await?;
                }
                Ok(None)
            }
            Consistency::At(revision) => {
                self.await_applied(|_, current| current >= revision).await?;
                Ok(Some(revision))
            }
        }
    }

    /// Waits until everything that was acknowledged anywhere up to `bound` before the call is in the state here. Asks
    /// where that is not known: what a question confirms that begins now is in every bound.
    async fn await_level(&self, bound: Duration, called: Instant) -> Result<(), Failure> {
        if self.is_level(bound, called) {
            return Ok(());
        }
        let Ok(index) = self.raft.read_index().await else {
            return Err(self.too_stale());
        };
        self.await_applied(|applied, _| applied >= index).await
    }

    /// Whether everything that was acknowledged anywhere up to `bound` before the call is known to be in the state here.
    fn is_level(&self, bound: Duration, called: Instant) -> bool {
        let level_at = self.raft.level_at();
        let is_level = reaches_back(bound, level_at, called);
        // As long as such reads come, the next ones need not wait for an answer either.
        if is_level && !reaches_back(bound / 2, level_at, called) {
            self.raft.refresh_level();
        }
        is_level
    }

    fn too_stale(&self) -> Failure {
        Failure::TooStale { lag: self.raft.lag() }
    }

    async fn await_applied(
        &self,
        reached: impl Fn(Option<LogIndex>, Revision) -> bool,
    ) -> Result<(), Failure> {
        let mut applied = self.raft.machine().applied();
        loop {
            {
                let applied = applied.borrow_and_update();
                if reached(applied.position.map(|p| p.index), applied.revision) {
                    return Ok(());
                }
            }
            if applied.changed().await.is_err() {
                return Err(Failure::Stopped("the state machine has stopped".to_owned()));
            }
        }
    }

    /// Begins a change of the group, which goes on when its caller goes.
    pub(super) fn begin_change(self: &Arc<Self>, admin: Admin, reply: ReplyTo) {
        let front = Arc::clone(self);
        self.tasks.spawn("change-of-the-group", async move {
            reply.send(front.admin(admin).await);
        });
    }

    async fn admin(&self, admin: Admin) -> Response {
        let result = match admin {
            Admin::AddLearner { id, address } => match address.parse() {
                Ok(address) => self.raft.add_learner(id, address).await,
                Err(error) => Err(MembershipError::Refused(InvalidAddress::to_string(&error))),
            },
            Admin::Promote { id } => self.raft.promote(id).await,
            Admin::Remove { id } => self.remove(id).await,
            Admin::MoveLeader { to } => self.move_leader(to).await,
        };
        match result {
            Ok(()) => Response::Done,
            Err(MembershipError::NotLeader { leader }) => Response::Failed(Failure::NotLeader { leader }),
            Err(MembershipError::Refused(reason)) => Response::Failed(Failure::Refused(reason)),
            Err(MembershipError::NotReady(reason)) => Response::Failed(Failure::MemberNotReady(reason)),
            Err(MembershipError::Busy(reason)) => Response::Failed(Failure::Busy(reason)),
            Err(MembershipError::Unknown(reason)) => Response::Failed(Failure::unknown(reason)),
            Err(MembershipError::LedByAnother { asked, leader }) => {
                Response::Failed(Failure::LedByAnother { asked, leader })
            }
            Err(MembershipError::Stopped(reason)) => Response::Failed(Failure::Stopped(reason)),
        }
    }

    /// Removes a member. A leader that is to go hands leadership over first and leaves its removal to the next one:
    /// it could not lead the second half of the change, after its vote has gone.
    async fn remove(&self, id: NodeId) -> Result<(), MembershipError> {
        let state = self.raft.state();
        if id == self.node && state.role == Part::Leader {
            self.move_leader(None).await.map_err(|error| match error {
                // Of the removal nothing was begun.
                MembershipError::Unknown(reason) => MembershipError::Busy(reason),
                error => error,
            })?;
            let leader = leader_of(&self.raft.state());
            return Err(MembershipError::NotLeader { leader });
        }
        self.raft.remove(id).await
    }

    /// Hands leadership over and waits until the node named leads; without a name, until any other does.
    pub(crate) async fn move_leader(&self, to: Option<NodeId>) -> Result<(), MembershipError> {
        let timing = &self.settings.timing;
        let patience = timing.failover_min;
        // One that leads since a moment has heard of nobody yet.
        let heard = self.raft.wait_for(|state| {
            state.role != Part::Leader || successor(&state.members, self.node, to, patience).is_ok()
        });
        let _in_time = env::timeout(timing.heartbeat * 2, heard).await;
        let state = self.raft.state();
        if state.role != Part::Leader {
            let leader = leader_of(&state);
            return Err(MembershipError::NotLeader { leader });
        }
        if to == Some(self.node) {
            return Ok(());
        }
        let chosen = successor(&state.members, self.node, to, patience).map_err(MembershipError::Refused)?;
        self.raft.transfer_leader(chosen).await?;
        let mut leader = None;
        let moved = self.raft.wait_for(|state| {
            leader = state.leader.filter(|leader| *leader != self.node);
            leader.is_some() || state.role == Part::Stopped
        });
        let waited = env::timeout(timing.failover_max, moved).await;
        took_over(to, chosen, waited.ok().and(leader))
    }

    /// What the measured times say against the configured ones, if anything.
    pub(crate) fn timing_warning(&self) -> Option<String> {
        let members = self.raft.state().members;
        let round_trips = members
            .iter()
            .filter_map(|m| self.transport.round_trip(m.id.number()));
        let sync = self.log.statistics().write_p99?;
        self.settings
            .timing
            .warning(round_trips.max().unwrap_or_default(), sync)
    }

    /// Has the state file of this node shrink. A copy that has begun goes on when its caller goes.
    pub(super) fn begin_shrinking(self: &Arc<Self>, reply: ReplyTo) {
        let front = Arc::clone(self);
        self.tasks
            .spawn("shrink", async move { reply.send(front.shrink().await) });
    }

    async fn shrink(&self) -> Response {
        match self.raft.machine().shrink().await {
            Ok(shrunk) => Response::Shrunk(shrunk),
            Err(reason @ NotShrunk::Stopped) => Response::Failed(Failure::Stopped(reason.to_string())),
            Err(reason) => Response::Failed(Failure::Refused(reason.to_string())),
        }
    }

    /// What this node knows of itself and the group.
    pub(crate) fn status(&self) -> Status {
        let state = self.raft.state();
        let applied = Arc::clone(&self.raft.machine().applied().borrow());
        let view = self.raft.machine().reader().view().ok();
        let used = view.as_ref().map(Used::of);
        let disk = self.space.disk_used();
        let leading = state.role == Part::Leader;
        let members = state.members.iter().map(|m| MemberStatus {
            id: m.id,
            address: address_text(m.address.as_ref()),
            uuid: m.member.map(MemberUuid::uuid),
            voter: m.voter,
            lag_entries: match leading {
                true if m.id == self.node => Some(0),
                // One that never answered this leader is behind by all there is, as far as the leader knows.
                true => Some(entries_behind(state.last_log, m.matched)),
                false => None,
            },
            round_trip: self.transport.round_trip(m.id.number()),
            answered: m.answered,
        });
        Status {
            cluster: self.cluster.to_string(),
            cluster_uuid: state.cluster.map(ClusterUuid::uuid),
            node: self.node,
            uuid: self.raft.member().uuid(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role: match state.role {
                Part::Leader => NodeRole::Leader,
                Part::Follower => NodeRole::Follower,
                Part::Candidate => NodeRole::Candidate,
                Part::Learner => NodeRole::Learner,
                Part::Stopped => NodeRole::Stopped,
            },
            term: state.term,
            leader: state.leader,
            quorum: state.has_quorum,
            confirmed: state.confirmed,
            revision: applied.revision,
            oldest: applied.oldest,
            state_hash: applied.state_hash,
            file_bytes: view.as_ref().map(View::file_bytes).unwrap_or_default(),
            holds: view.as_ref().map(View::holds).unwrap_or_default(),
            store_bytes_max: used.and_then(|used| used.max),
            is_full: used.is_some_and(|used| self.space.is_full(used)),
            disk_bytes: disk.map(|disk| disk.bytes),
            disk_bytes_max: disk.and_then(|disk| disk.max),
            disk_is_full: self.space.disk_is_full(),
            hashes: view.map(|view| view.hashes()).unwrap_or_default(),
            last_log: state.last_log,
            committed: state.committed,
            applied: applied.position.map(|p| p.index),
            purged: state.purged,
            lag: self.raft.lag(),
            sync_p50_micros: self
                .log
                .statistics()
                .write_p50
                .and_then(|p50| u64::try_from(p50.as_micros()).ok()),
            members: members.collect(),
            fault: state.stopped,
        }
    }
}

/// Whether a state that has everything from before `level_at` has everything from `bound` before the call.
fn reaches_back(bound: Duration, level_at: Option<Instant>, called: Instant) -> bool {
    level_at.is_some_and(|level_at| called.since(level_at) <= bound)
}

/// Who is to lead in the place of this node: the voter that was named, or the one whose log is furthest. Not one that has
/// not answered lately: meanwhile nobody would serve.
fn successor(
    members: &[MemberState],
    own: NodeId,
    named: Option<NodeId>,
    patience: Duration,
) -> Result<NodeId, String> {
    let voters = || members.iter().filter(|m| m.voter && m.id != own);
    let is_heard = |member: &&MemberState| member.answered.is_some_and(|silence| silence <= patience);
    match named {
        Some(named) => match voters().find(|m| m.id == named) {
            None => Err(format!("node {named} has no vote")),
            Some(member) if is_heard(&member) => Ok(named),
            Some(_) => Err(format!(
                "node {named} has not answered for {patience:?} or longer"
            )),
        },
        None if voters().next().is_none() => Err("there is no other voter".to_owned()),
        None => match voters().filter(is_heard).max_by_key(|m| m.matched) {
            Some(member) => Ok(member.id),
            None => Err(format!("no other voter has answered within {patience:?}")),
        },
    }
}

/// What a transfer came to: who was named, who was asked to stand, and who leads in the place of this node.
fn took_over(named: Option<NodeId>, chosen: NodeId, leader: Option<NodeId>) -> Result<(), MembershipError> {
    match (leader, named) {
        (None, _) => Err(MembershipError::Unknown(format!(
            "node {chosen} was asked to lead, and nobody has taken over yet"
        ))),
        (Some(leader), Some(asked)) if leader != asked => {
            Err(MembershipError::LedByAnother { asked, leader })
        }
        (Some(_), _) => Ok(()),
    }
}

/// Who leads, and where it is reached, as far as this node knows.
fn leader_of(state: &RaftState) -> Option<(NodeId, String)> {
    let id = state.leader?;
    let member = state.members.iter().find(|m| m.id == id)?;
    Some((id, address_text(member.address.as_ref())))
}

fn entries_behind(last: Option<LogIndex>, matched: Option<LogIndex>) -> u64 {
    let past = |index: Option<LogIndex>| index.map_or(0, |index| index.number() + 1);
    past(last).saturating_sub(past(matched))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voter(id: u64, answered_ms: Option<u64>, matched: u64) -> MemberState {
        MemberState {
            id: NodeId::new(id),
            address: None,
            member: None,
            voter: true,
            matched: Some(LogIndex::new(matched)),
            answered: answered_ms.map(Duration::from_millis),
        }
    }

    #[test]
    fn leadership_goes_to_the_voter_whose_log_is_furthest_of_those_that_answered_lately() {
        let (own, patience) = (NodeId::new(1), Duration::from_secs(2));
        let chosen = |members: &[MemberState]| successor(members, own, None, patience).ok();
        let leader = voter(1, None, 99);
        let [two, three] = [NodeId::new(2), NodeId::new(3)];
        assert_eq!(
            chosen(&[leader.clone(), voter(2, Some(5), 8), voter(3, Some(5), 9)]),
            Some(three)
        );
        assert_eq!(
            chosen(&[leader.clone(), voter(2, Some(5), 9), voter(3, Some(5_000), 9)]),
            Some(two)
        );
        assert_eq!(
            chosen(&[leader.clone(), voter(2, Some(5_000), 9), voter(3, Some(5), 1)]),
            Some(three)
        );
        assert_eq!(
            chosen(&[leader.clone(), voter(2, None, 9), voter(3, Some(5_000), 9)]),
            None
        );
        let learner = MemberState {
            voter: false,
            ..voter(3, Some(5), 9)
        };
        assert_eq!(chosen(&[leader.clone(), learner.clone()]), None);
        let named = successor(
            &[leader, voter(2, Some(5), 1), learner],
            own,
            Some(three),
            patience,
        );
        assert_eq!(named, Err("node 3 has no vote".to_owned()));
    }

    #[test]
    fn a_transfer_succeeds_only_when_the_node_that_was_named_leads() {
        let [one, two] = [1, 2].map(NodeId::new);
        assert!(took_over(Some(one), one, Some(one)).is_ok());
        assert!(took_over(None, one, Some(two)).is_ok(), "nobody was named");
        let another = took_over(Some(one), one, Some(two));
        assert!(
            matches!(another, Err(MembershipError::LedByAnother { asked, leader }) if asked == one && leader == two),
            "{another:?}"
        );
        let nobody = took_over(Some(one), one, None);
        assert!(
            matches!(nobody, Err(MembershipError::Unknown(_))),
            "it may take over yet: {nobody:?}"
        );
    }
}
