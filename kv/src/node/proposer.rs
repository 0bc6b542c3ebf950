//! Gathers commands that wait into one entry.
//!
//! A bounded number of proposals is on its way at once; commands that arrive meanwhile share the next one.
//! So one client's command leaves at once, and many clients' commands share an entry, a sync and an apply.
//! Each command stays a transaction of its own.
//!
//! Always: every command that was taken in is answered, at once where the node stops or has a fault; one that was not
//! proposed is told so.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::reply::{ReplyTo, SIGN_INTERVAL};
use super::service::Service;
use super::space::may_grow;
use crate::env::{self, Instant, Semaphore, mpsc};
use crate::machine::EntryOutcome;
use crate::model::{Command, Outcome, Proposal};
use crate::protocol::{Failure, Response};
use crate::raft::{ProposalData, Proposed, RaftNode};
use crate::room::Room;

/// Commands that wait to be proposed; more wait in their callers.
const QUEUE: usize = 4096;
/// An entry is closed at this size, so that a large transaction travels alone.
const ENTRY_BYTES_MAX: usize = 1024 * 1024;
/// How long a command waits for room at most, whatever its caller's patience.
pub(super) const ROOM_WAIT_MAX: Duration = Duration::from_secs(10);

/// Where commands are handed in. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Proposals {
    queue: mpsc::Sender<Waiting>,
    /// The bytes of commands that wait to be proposed.
    room: Room,
    /// Permits of the proposals that may be on their way.
    in_flight: Arc<Semaphore>,
    in_flight_max: usize,
    service: Service,
}

/// A command that is to be proposed.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) command: Command,
    /// About how many bytes it takes in an entry.
    pub(super) size: usize,
    /// What the store uses, where it is nearly full, so that this must not let it grow.
    pub(super) full_at: Option<u64>,
}

/// A command and who waits for its answer.
#[derive(Debug)]
struct Waiting {
    write: Write,
    reply: ReplyTo,
    _room: OwnedSemaphorePermit,
}

/// Takes commands to Raft, until the node ends.
pub(super) struct Proposer {
    raft: Arc<RaftNode>,
    queue: mpsc::Receiver<Waiting>,
    in_flight: Arc<Semaphore>,
    /// Commands that were taken out of the queue, and are not proposed yet.
    waiting: VecDeque<Waiting>,
    /// Those that may still be on their way.
    sent: VecDeque<Weak<Pending>>,
    service: Service,
}

impl Proposals {
    /// A desk, and what is to run behind it. Of the commands that wait no more than so many bytes are held, and so many
    /// proposals are on their way at once.
    pub(super) fn open(
        raft: Arc<RaftNode>,
        bytes_max: u64,
        in_flight_max: usize,
        service: Service,
    ) -> (Self, Proposer) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let in_flight = Arc::new(Semaphore::new(in_flight_max));
        let proposer = Proposer {
            raft,
            queue: waiting,
            in_flight: Arc::clone(&in_flight),
            waiting: VecDeque::new(),
            sent: VecDeque::new(),
            service: service.clone(),
        };
        let proposals = Self {
            queue,
            room: Room::new(bytes_max),
            in_flight,
            in_flight_max,
            service,
        };
        (proposals, proposer)
    }

    /// Hands a command in where there is room for it; gives it back otherwise. The answer goes to `reply`.
    pub(super) fn send_now(&self, write: Write, reply: ReplyTo) -> Option<(Write, ReplyTo)> {
        if let Some(failure) = self.service.is_over() {
            reply.send(Response::Failed(failure));
            return None;
        }
        match (self.room.take_now(write.size), self.queue.try_reserve()) {
            (Some(room), Ok(place)) => {
                place.send(Waiting {
                    write,
                    reply,
                    _room: room,
                });
                None
            }
            _ => Some((write, reply)),
        }
    }

    /// The same, waiting for room until then, and no longer than ten seconds.
    pub(super) async fn send(&self, write: Write, reply: ReplyTo, until: Instant) {
        let Some((write, reply)) = self.send_now(write, reply) else {
            return;
        };
        let size = write.size;
        let room = async {
            let room = self.room.take(size).await;
            (room, self.queue.reserve().await)
        };
        let until = until.min(env::now() + ROOM_WAIT_MAX);
        let mut room = std::pin::pin!(env::timeout_at(until, room));
        let mut over = std::pin::pin!(self.service.over());
        let waited = loop {
            tokio::select! {
                biased;
                failure = &mut over => break Err(failure),
                waited = &mut room => break Ok(waited),
                () = env::sleep(SIGN_INTERVAL) => reply.is_worked_on(),
            }
        };
        let failure = match waited {
            Ok(Ok((room, Ok(place)))) => {
                return place.send(Waiting {
                    write,
                    reply,
                    _room: room,
                });
            }
            Ok(Ok((_, Err(_closed)))) => Failure::Stopped("the node has stopped".to_owned()),
            Ok(Err(env::Elapsed)) => {
                metrics::counter!("quorate_proposals_refused_total").increment(1);
                Failure::Busy("the writes that wait here left no room for another in time".to_owned())
            }
            Err(failure) => failure,
        };
        reply.send(Response::Failed(failure));
    }

    /// Waits until no proposal is on its way, once the node has begun to stop. Cancel safe.
    pub(super) async fn idle(&self) {
        let all = u32::try_from(self.in_flight_max).unwrap_or(u32::MAX);
        // Closed with nobody left to close it: then none is on its way either.
        if let Ok(all) = self.in_flight.acquire_many(all).await {
            all.forget();
        }
    }
}

impl Proposer {
    /// Proposes until the node ends, and refuses what waits and what comes then.
    pub(super) async fn run(mut self) {
        let (service, raft) = (self.service.clone(), Arc::clone(&self.raft));
        let failure = loop {
            tokio::select! {
                biased;
                failure = service.over() => break failure,
                () = raft.lost_leadership() => {
                    // Raft answers them when it hears of another leader, which may take as long as a cut lasts.
                    let reason = "this node led, and leads no more; nobody is known to lead";
                    self.give_up(&Failure::unknown(reason));
                }
                () = self.propose_all() => break Failure::Stopped("the node has stopped".to_owned()),
            }
        };
        if service.faults().is_raised() {
            // What is on its way may be committed, and nobody here will learn of it.
            self.give_up(&Failure::unknown("a fault ended the node on the way"));
        }
        for waiting in self.waiting.drain(..) {
            waiting.reply.send(Response::Failed(failure.clone()));
        }
        while let Some(waiting) = self.queue.recv().await {
            waiting.reply.send(Response::Failed(failure.clone()));
        }
    }

    /// Answers those whose commands are on their way, and gives their places to others.
    fn give_up(&mut self, failure: &Failure) {
        for pending in self.sent.drain(..).filter_map(|sent| sent.upgrade()) {
            pending.fail(failure);
        }
    }

    /// Proposes until nobody can hand anything in. Cancel safe: what was not proposed is still among those that wait.
    async fn propose_all(&mut self) {
        let mut taken = Vec::new();
        loop {
            // First the permit, then the commands: those that came while we waited share the entry.
            let Ok(permit) = Arc::clone(&self.in_flight).acquire_owned().await else {
                return;
            };
            if self.waiting.is_empty() {
                if self.queue.recv_many(&mut taken, QUEUE).await == 0 {
                    return;
                }
                self.waiting.extend(taken.drain(..));
            }
            let (proposal, replies) = next_entry(&mut self.waiting);
            self.propose(&proposal, Pending::new(replies, permit)).await;
        }
    }

    async fn propose(&mut self, proposal: &Proposal, pending: Arc<Pending>) {
        metrics::histogram!("quorate_proposal_commands").record(proposal.commands.len() as f64);
        let data = ProposalData::encode(proposal);
        let started = env::now();
        self.sent.retain(|sent| sent.strong_count() > 0);
        self.sent.push_back(Arc::downgrade(&pending));
        let answered = move |proposed| {
            metrics::histogram!("quorate_commit_seconds").record(started.elapsed().as_secs_f64());
            match proposed {
                Proposed::Applied {
                    outcome: EntryOutcome::Proposal(outcomes),
                } => pending.answer(outcomes),
                Proposed::Applied { .. } => {}
                Proposed::NotLeader { leader } => pending.fail(&Failure::NotLeader { leader }),
                Proposed::Unknown { leader } => {
                    let reason = "leadership was lost on the way".to_owned();
                    pending.fail(&Failure::Unknown { leader, reason });
                }
            }
        };
        self.raft.propose(data, answered).await;
    }
}

/// Takes what shares the next entry. What may grow and was taken while there was room shares none with what found none.
fn next_entry(waiting: &mut VecDeque<Waiting>) -> (Proposal, Vec<ReplyTo>) {
    let (mut commands, mut replies, mut size) = (Vec::new(), Vec::new(), 0);
    let mut full_at: Option<u64> = None;
    while let Some(Waiting { write: next, .. }) = waiting.front()
        && (commands.is_empty() || size + next.size <= ENTRY_BYTES_MAX)
        && match (full_at, next.full_at) {
            (None, None) | (Some(_), Some(_)) => true,
            (Some(_), None) => !may_grow(&next.command),
            (None, Some(_)) => !commands.iter().any(may_grow),
        }
        && let Some(Waiting { write, reply, .. }) = waiting.pop_front()
    {
        size += write.size;
        full_at = full_at.max(write.full_at);
        commands.push(write.command);
        replies.push(reply);
    }
    let proposal = Proposal {
        stamp: env::wall_clock(),
        full_at,
        commands,
    };
    (proposal, replies)
}

/// Those who wait for one entry. Dropped without an answer, it tells them that the outcome is unknown.
#[derive(Debug)]
struct Pending {
    replies: Mutex<Vec<ReplyTo>>,
    /// One of the proposals on their way, until those who wait are answered.
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Pending {
    fn new(replies: Vec<ReplyTo>, permit: OwnedSemaphorePermit) -> Arc<Self> {
        Arc::new(Self {
            replies: Mutex::new(replies),
            permit: Mutex::new(Some(permit)),
        })
    }

    fn take(&self) -> Vec<ReplyTo> {
        drop(self.permit.lock().unwrap_or_else(PoisonError::into_inner).take());
        std::mem::take(&mut *self.replies.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn answer(&self, outcomes: Vec<Outcome>) {
        let mut replies = self.take().into_iter();
        for (outcome, reply) in outcomes.into_iter().zip(&mut replies) {
            reply.send(Response::Written(outcome));
        }
        // As many outcomes as commands is the machine's promise; a reply left over says that it is unknown.
        for reply in replies {
            reply.send(Response::Failed(Failure::unknown(
                "the node answered fewer commands than it was given",
            )));
        }
    }

    fn fail(&self, failure: &Failure) {
        for reply in self.take() {
            reply.send(Response::Failed(failure.clone()));
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.fail(&Failure::unknown("the node stopped on the way"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Key, Op, Txn};

    fn waiting(writes: impl IntoIterator<Item = (bool, Option<u64>, usize)>) -> VecDeque<Waiting> {
        let room = Room::new(1_000);
        let key = || Key::from("k");
        let one = |(may_grow, full_at, size)| Waiting {
            write: Write {
                command: Command::Txn {
                    session: None,
                    txn: Txn::new([if may_grow {
                        Op::put(key(), "v")
                    } else {
                        Op::get(key())
                    }]),
                },
                size,
                full_at,
            },
            reply: ReplyTo::local().0,
            _room: room.take_now(1).expect("there is room"),
        };
        writes.into_iter().map(one).collect()
    }

    /// How many commands each entry has, and what it says of the store.
    fn entries(writes: impl IntoIterator<Item = (bool, Option<u64>, usize)>) -> Vec<(usize, Option<u64>)> {
        let mut waiting = waiting(writes);
        let next = || {
            (!waiting.is_empty()).then(|| {
                let (proposal, replies) = next_entry(&mut waiting);
                assert_eq!(proposal.commands.len(), replies.len());
                (replies.len(), proposal.full_at)
            })
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn what_was_taken_while_there_was_room_shares_no_entry_with_what_found_none() {
        let (there, none, never) = ((true, None, 1), |used| (true, Some(used), 1), (false, None, 1));
        assert_eq!(entries([there, there, never]), [(3, None)]);
        assert_eq!(entries([never, none(7), none(9), none(8), never]), [(5, Some(9))]);
        assert_eq!(
            entries([none(7), never, there, never, there, none(8)]),
            [(2, Some(7)), (3, None), (1, Some(8))]
        );
    }

    #[test]
    fn an_entry_ends_at_its_size_and_one_command_always_goes() {
        let of = |size| (true, None, size);
        let sizes = [ENTRY_BYTES_MAX + 1, ENTRY_BYTES_MAX - 1, 1, 1];
        assert_eq!(entries(sizes.map(of)), [(1, None), (2, None), (1, None)]);
    }
}
