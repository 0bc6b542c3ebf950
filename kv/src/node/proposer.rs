//! Gathers commands that wait into one entry.
//!
//! A bounded number of proposals is on its way at once; commands that arrive meanwhile share the next one.
//! So one client's command leaves at once, and many clients' commands share an entry, a sync and an apply.
//! Each command stays a transaction of its own.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::reply::ReplyTo;
use crate::env::{self, Semaphore, mpsc};
use crate::machine::EntryOutcome;
use crate::model::{Command, Outcome, Proposal};
use crate::protocol::{Failure, Response};
use crate::raft::{ProposalData, Proposed, RaftNode};

/// Commands that wait to be proposed; more wait in their callers.
pub(crate) const QUEUE: usize = 4096;
/// An entry is closed at this size, so that a large transaction travels alone.
const ENTRY_BYTES_MAX: usize = 1024 * 1024;

/// A command and who waits for its answer.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub command: Command,
    /// About how many bytes it takes in an entry.
    pub size: usize,
    pub reply: ReplyTo,
}

/// Proposes until every sender is dropped.
pub(crate) async fn run(raft: Arc<RaftNode>, mut queue: mpsc::Receiver<Waiting>, in_flight: usize) {
    let permits = Arc::new(Semaphore::new(in_flight));
    let mut waiting = Vec::new();
    loop {
        // First the permit, then the commands: those that came while we waited share the entry.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        if queue.recv_many(&mut waiting, QUEUE).await == 0 {
            return;
        }
        let mut permit = Some(permit);
        let mut rest = waiting.drain(..).peekable();
        while rest.peek().is_some() {
            let (mut commands, mut replies, mut size) = (Vec::new(), Vec::new(), 0);
            while let Some(next) =
                rest.next_if(|next| commands.is_empty() || size + next.size <= ENTRY_BYTES_MAX)
            {
                size += next.size;
                commands.push(next.command);
                replies.push(next.reply);
            }
            let held = match permit.take() {
                Some(permit) => permit,
                None => match Arc::clone(&permits).acquire_owned().await {
                    Ok(permit) => permit,
                    Err(_) => return,
                },
            };
            propose(
                &raft,
                commands,
                Replies {
                    replies,
                    _permit: held,
                },
            )
            .await;
        }
    }
}

async fn propose(raft: &RaftNode, commands: Vec<Command>, mut replies: Replies) {
    metrics::histogram!("quorate_proposal_commands").record(commands.len() as f64);
    let proposal = Proposal {
        stamp: env::wall_clock(),
        commands,
    };
    let data = ProposalData::encode(&proposal);
    let started = env::now();
    raft.propose(data, move |proposed| {
        metrics::histogram!("quorate_commit_seconds").record(started.elapsed().as_secs_f64());
        match proposed {
            Proposed::Applied {
                outcome: EntryOutcome::Proposal(outcomes),
            } => replies.answer(outcomes),
            Proposed::Applied { .. } => {}
            Proposed::NotLeader { leader } => replies.fail(&Failure::NotLeader { leader }),
            Proposed::Unknown { leader } => {
                let reason = "leadership was lost on the way".to_owned();
                replies.fail(&Failure::Unknown { leader, reason });
            }
        }
    })
    .await;
}

/// Those who wait for one entry. Dropped without an answer, it tells them that the outcome is unknown.
struct Replies {
    replies: Vec<ReplyTo>,
    /// One of the proposals on their way.
    _permit: OwnedSemaphorePermit,
}

impl Replies {
    fn answer(&mut self, outcomes: Vec<Outcome>) {
        let mut replies = std::mem::take(&mut self.replies).into_iter();
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

    fn fail(&mut self, failure: &Failure) {
        for reply in self.replies.drain(..) {
            reply.send(Response::Failed(failure.clone()));
        }
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        self.fail(&Failure::unknown("the node stopped on the way"));
    }
}
