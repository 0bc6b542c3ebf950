//! The front desk: takes requests of clients, near and far, and sees each to where it is answered.

use std::sync::Arc;
use std::time::Duration;

use quorate_transport::{Identity, Transport};
use tokio_util::sync::CancellationToken;

use super::cost;
use super::lanes::{End, Lanes, ReadJob};
use super::proposer::{Proposals, ROOM_WAIT_MAX};
use super::reply::{NO_ANSWER, ReplyTo};
use super::room::{Guest, Rooms};
use super::service::Service;
use super::settings::Settings;
use super::status::{MemberStatus, NodeRole, Status};
use crate::env::{self, Instant};
use crate::fault::{Fault, Faults};
use crate::log::Log;
use crate::machine::ReadClass;
use crate::model::{CheckedTxn, Command, Consistency, LogIndex, NodeId, ReadOp, Revision, check_reads};
use crate::planted::{self, Bug};
use crate::protocol::{Admin, Failure, Request, Response};
use crate::raft::{MembershipError, Part, RaftNode, RaftState, ReadIndexError};
use crate::tasks::Tasks;

/// What the front desk needs to know of its node. Cheap to clone.
#[derive(Clone)]
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
    rooms: Arc<Rooms>,
    /// The callers in this process.
    here: Arc<Guest>,
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
    pub(crate) cluster: Arc<str>,
    pub(crate) node: NodeId,
    pub(crate) log: Log,
    pub(crate) transport: Arc<dyn Transport>,
    /// Tells that the node stops.
    pub(crate) stop: CancellationToken,
    pub(crate) faults: Faults,
}

impl Front {
    pub(crate) fn open(parts: FrontParts, tasks: &Tasks) -> Self {
        let FrontParts {
            raft,
            settings,
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
            settings.proposals_bytes_max,
            settings.proposals_in_flight,
            service.clone(),
        );
        tasks.spawn("proposer", proposer.run());
        let lanes = Lanes::start(raft.machine().reader().clone(), &service);
        let rooms = Rooms::new(&settings);
        Self {
            here: Arc::new(rooms.here(transport.identity())),
            rooms: Arc::new(rooms),
            raft,
            settings,
            cluster,
            node,
            log,
            transport,
            service,
            proposals,
            lanes,
            tasks: tasks.clone(),
        }
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    /// The fault that ended the node's part, if one did.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.service.faults().first()
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

    /// A new stream of this client.
    pub(super) fn guest(&self, client: &Identity) -> Guest {
        self.rooms.guest(client)
    }

    /// Answers one request of a caller in this process, who waits for it until then.
    pub(crate) async fn call(&self, request: Request, until: Instant) -> Response {
        let (reply, answer) = ReplyTo::local();
        match request {
            Request::Write(command) => match self.check(command) {
                Ok((command, size)) => self.proposals.send(command, size, reply, until).await,
                Err(failure) => reply.send(Response::Failed(failure)),
            },
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
            Request::Admin(admin) => {
                // A change that has begun goes on when its caller goes.
                let front = self.clone();
                self.tasks.spawn("change-of-the-group", async move {
                    let response = front.admin(admin).await;
                    reply.send(response);
                });
            }
            // Here a caller gives a read up by dropping it.
            Request::GiveUp { .. } => reply.send(Response::Done),
        }
        answer
            .await
            .unwrap_or(Response::Failed(Failure::unknown(NO_ANSWER)))
    }

    /// Checks a command and hands it in, where there is room for it; gives it back otherwise. The answer goes to `reply`.
    pub(super) fn write_now(&self, command: Command, reply: ReplyTo) -> Result<(), (Checked, ReplyTo)> {
        match self.check(command) {
            Ok((command, size)) => {
                let sent = self.proposals.send_now(command, size, reply);
                sent.map_err(|(command, reply)| ((command, size), reply))
            }
            Err(failure) => {
                reply.send(Response::Failed(failure));
                Ok(())
            }
        }
    }

    /// Hands in what was given back, once there is room for it, or tells its caller that there was none.
    pub(super) async fn write_in_time(&self, (command, size): Checked, reply: ReplyTo) {
        let until = env::now() + ROOM_WAIT_MAX;
        self.proposals.send(command, size, reply, until).await;
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
            Command::OpenSession { ttl_millis } => {
                // How long it is kept is not the client's word alone.
                let longest = u64::try_from(self.settings.session_ttl.as_millis()).unwrap_or(u64::MAX);
                let ttl_millis = ttl_millis.min(longest);
                Ok((Command::OpenSession { ttl_millis }, SMALL))
            }
            other @ Command::CloseSession { .. } => Ok((other, SMALL)),
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

    /// Answers a read: waits for the state that it asks for, for room for its answer, and for its turn.
    pub(super) async fn read(&self, guest: &Guest, read: ReadCall) {
        match self.prepare_read(&read.reads, read.consistency, read.wait).await {
            Ok(at) => self.send_read(guest, read, at).await,
            Err(failure) => read.reply.send(Response::Failed(failure)),
        }
    }

    /// Linearizable reads that arrived together share one confirmation.
    pub(super) async fn read_linearizable(&self, guest: &Guest, reads: Vec<ReadCall>) {
        let wait = reads.iter().map(|read| read.wait).max().unwrap_or_default();
        let prepared = self.prepare_read(&[], Consistency::Linearizable, wait).await;
        for read in reads {
            let at = match &prepared {
                Ok(at) => check_reads(&read.reads, &self.settings.limits)
                    .map(|()| *at)
                    .map_err(Failure::from),
                Err(failure) => Err(failure.clone()),
            };
            match at {
                Ok(at) => self.send_read(guest, read, at).await,
                Err(failure) => read.reply.send(Response::Failed(failure)),
            }
        }
    }

    /// Hands a read, whose state is there, to its lane, once there is room for its answer.
    async fn send_read(&self, guest: &Guest, read: ReadCall, at: Option<Revision>) {
        let ReadCall {
            class,
            reads,
            end,
            mut reply,
            ..
        } = read;
        let room = match class {
            ReadClass::Point => &guest.points,
            ReadClass::Scan => &guest.scans,
        };
        let bytes = cost::of_read_answer(&reads, &self.settings.limits);
        let held = tokio::select! {
            biased;
            held = env::timeout_at(end.at, room.take(bytes)) => held.map_err(|env::Elapsed| {
                let no_room = "the answers that wait here left no room for another in time";
                Failure::Busy(no_room.to_owned())
            }),
            failure = self.service.over() => Err(failure),
        };
        match held {
            Ok(held) => {
                reply.hold(held);
                let job = ReadJob {
                    reads,
                    at,
                    guest: guest.number,
                    end,
                    reply,
                };
                self.lanes.send(class, job).await;
            }
            Err(failure) => reply.send(Response::Failed(failure)),
        }
    }

    /// Waits until the state here is what the consistency asks for; answers which revision to read.
    pub(crate) async fn prepare_read(
        &self,
        reads: &[ReadOp],
        consistency: Consistency,
        wait: Duration,
    ) -> Result<Option<Revision>, Failure> {
        check_reads(reads, &self.settings.limits)?;
        tokio::select! {
            biased;
            prepared = env::timeout(wait, self.await_state(consistency)) => match prepared {
                Ok(prepared) => prepared,
                Err(env::Elapsed) => self.state_in_time(consistency),
            },
            failure = self.service.over() => Err(failure),
        }
    }

    /// What is said of a state that was waited for long enough. What came at the last moment counts.
    fn state_in_time(&self, consistency: Consistency) -> Result<Option<Revision>, Failure> {
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
            } => within(bound, self.raft.lag()).map(|()| None),
            Consistency::Stale { max_lag: None, .. } => Ok(None),
            Consistency::At(revision) => Ok(Some(revision)),
        }
    }

    async fn await_state(&self, consistency: Consistency) -> Result<Option<Revision>, Failure> {
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
                    let lag = match self.raft.lag() {
                        Some(lag) => Some(lag),
                        None => self.find_out_lag().await,
                    };
                    within(bound, lag)?;
                }
                Ok(None)
            }
            Consistency::At(revision) => {
                self.await_applied(|_, current| current >= revision).await?;
                Ok(Some(revision))
            }
        }
    }

    /// How long ago this node was level with its leader, where nothing has told so yet since it started or was
    /// elected: it asks. `None` when nobody answers.
    async fn find_out_lag(&self) -> Option<Duration> {
        let asked = env::now();
        let index = self.raft.read_index().await.ok()?;
        self.await_applied(|applied, _| applied >= index).await.ok()?;
        Some(asked.elapsed())
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

    pub(crate) async fn admin(&self, admin: Admin) -> Response {
        let result = match admin {
            Admin::AddLearner { id, address } => self.raft.add_learner(id, address).await,
            Admin::Promote { id } => self.promote(id).await,
            Admin::Remove { id } => self.remove(id).await,
            Admin::MoveLeader { to } => self.move_leader(to).await,
        };
        match result {
            Ok(()) => Response::Done,
            Err(MembershipError::NotLeader { leader }) => Response::Failed(Failure::NotLeader { leader }),
            Err(MembershipError::Refused(reason)) => Response::Failed(Failure::Refused(reason)),
            Err(MembershipError::LedByAnother { asked, leader }) => {
                Response::Failed(Failure::LedByAnother { asked, leader })
            }
            Err(MembershipError::Stopped(reason)) => Response::Failed(Failure::Stopped(reason)),
        }
    }

    /// Promotes a learner once it has caught up: a voter far behind would lower the group's resilience.
    async fn promote(&self, id: NodeId) -> Result<(), MembershipError> {
        let state = self.raft.state();
        let Some(member) = state.members.iter().find(|m| m.id == id) else {
            return Err(MembershipError::Refused(format!(
                "node {id} is no member; add it as a learner first"
            )));
        };
        // One that votes already may do so by an entry that is not committed: it is asked for again, and waited for.
        if state.role == Part::Leader && !member.voter {
            let lag = entries_behind(state.last_log, member.matched);
            const LAG_MAX: u64 = 1000;
            if lag > LAG_MAX {
                return Err(MembershipError::Refused(format!(
                    "node {id} is {lag} entries behind; a learner is promoted when it is at most {LAG_MAX} behind"
                )));
            }
        }
        self.raft.promote(id).await
    }

    /// Removes a member. A leader that is to go hands leadership over first and leaves its removal to the next one:
    /// it could not lead the second half of the change, after its vote has gone.
    async fn remove(&self, id: NodeId) -> Result<(), MembershipError> {
        let state = self.raft.state();
        if id == self.node && state.role == Part::Leader {
            self.move_leader(None).await?;
            let leader = leader_of(&self.raft.state());
            return Err(MembershipError::NotLeader { leader });
        }
        self.raft.remove(id).await
    }

    /// Hands leadership over and waits until the node named leads; without a name, until any other does.
    pub(crate) async fn move_leader(&self, to: Option<NodeId>) -> Result<(), MembershipError> {
        let state = self.raft.state();
        if state.role != Part::Leader {
            let leader = leader_of(&state);
            return Err(MembershipError::NotLeader { leader });
        }
        let candidates = state.members.iter().filter(|m| m.voter && m.id != self.node);
        let chosen = match to {
            Some(to) if to == self.node => return Ok(()),
            Some(to) if !state.members.iter().any(|m| m.voter && m.id == to) => {
                return Err(MembershipError::Refused(format!("node {to} has no vote")));
            }
            Some(to) => to,
            None => match candidates.max_by_key(|m| m.matched) {
                Some(member) => member.id,
                None => return Err(MembershipError::Refused("there is no other voter".to_owned())),
            },
        };
        self.raft.transfer_leader(chosen).await?;
        let mut leader = None;
        let moved = self.raft.wait_for(|state| {
            leader = state.leader.filter(|leader| *leader != self.node);
            leader.is_some() || state.role == Part::Stopped
        });
        let waited = env::timeout(self.settings.timing.election_timeout_max, moved).await;
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

    /// What this node knows of itself and the group.
    pub(crate) fn status(&self) -> Status {
        let state = self.raft.state();
        let applied = Arc::clone(&self.raft.machine().applied().borrow());
        let leading = state.role == Part::Leader;
        let members = state.members.iter().map(|m| MemberStatus {
            id: m.id,
            address: m.address.clone(),
            voter: m.voter,
            lag_entries: match leading {
                true if m.id == self.node => Some(0),
                true => m
                    .matched
                    .map(|matched| entries_behind(state.last_log, Some(matched))),
                false => None,
            },
            round_trip: self.transport.round_trip(m.id.number()),
        });
        Status {
            cluster: self.cluster.to_string(),
            node: self.node,
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
            revision: applied.revision,
            state_hash: applied.state_hash,
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

/// Whether a state that was level with the leader's `lag` ago is young enough.
fn within(bound: Duration, lag: Option<Duration>) -> Result<(), Failure> {
    match lag {
        Some(lag) if lag <= bound => Ok(()),
        lag => Err(Failure::TooStale { lag }),
    }
}

/// What a transfer came to: who was named, who was asked to stand, and who leads in the place of this node.
fn took_over(named: Option<NodeId>, chosen: NodeId, leader: Option<NodeId>) -> Result<(), MembershipError> {
    match (leader, named) {
        (None, _) => Err(MembershipError::Refused(format!(
            "node {chosen} did not take over in time"
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
    Some((id, member.address.clone()))
}

fn entries_behind(last: Option<LogIndex>, matched: Option<LogIndex>) -> u64 {
    let past = |index: Option<LogIndex>| index.map_or(0, |index| index.number() + 1);
    past(last).saturating_sub(past(matched))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(matches!(nobody, Err(MembershipError::Refused(_))), "{nobody:?}");
    }
}
