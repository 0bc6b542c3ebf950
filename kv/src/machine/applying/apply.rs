//! Applying entries, one after the other: what each command does to the batch, to the sessions, and to where the node stands.
//!
//! Always: what is refused changes nothing but its session's standing; the time only grows, and it is the entries' own.

use super::batch::Batch;
use super::entry::{Entry, EntryOutcome, Payload};
use super::execute::{self, Executed, Room};
use super::work::EntryWork;
use crate::fault::Fault;
use crate::machine::rows::sessions::{SessionCounts, Sessions, Use};
use crate::machine::rows::system::System;
use crate::model::{
    self, Command, Compacted, LimitChange, LimitsSet, LogPosition, LogTime, Outcome, Proposal,
    ReplicatedLimits, Revision, SessionId, SessionOpened, SessionRef, TooManyOf, Txn, TxnRefused,
};
use crate::planted::{self, Bug};

/// One call of [`Machine::apply`](crate::machine::Machine::apply) under way.
pub(in crate::machine) struct Apply<'a, 's> {
    pub(in crate::machine) batch: Batch<'s>,
    pub(in crate::machine) system: &'a mut System,
    pub(in crate::machine) sessions: &'a mut Sessions,
    pub(in crate::machine) session_counts: &'a mut SessionCounts,
    pub(in crate::machine) noted: &'a mut Option<LogTime>,
    pub(in crate::machine) time_spacing_millis: u64,
    /// Keys that all transactions have looked at.
    pub(in crate::machine) looked_at: u64,
    /// Bytes that their reads return.
    pub(in crate::machine) answer_bytes: u64,
}

impl Apply<'_, '_> {
    /// Applies the next entry of the log.
    pub(in crate::machine) fn entry(&mut self, entry: Entry) -> Result<EntryOutcome, Fault> {
        let last = self.system.standing.position;
        if last.is_some_and(|last| entry.position.index <= last.index || entry.position < last) {
            return Err(Fault::invariant(
                "entries are applied in the log's order",
                format!("{} after {last:?}", entry.position),
            ));
        }
        let outcome = match entry.payload {
            Payload::Blank => EntryOutcome::Blank,
            Payload::Membership(bytes) => {
                self.system.membership = Some((entry.position, bytes));
                EntryOutcome::Membership
            }
            Payload::Proposal(bytes) => {
                self.batch.entry(&bytes);
                let proposal: Proposal = model::decode_shared(&bytes).map_err(|e| Fault::Corrupt {
                    path: format!("the log entry {}", entry.position),
                    offset: 0,
                    detail: format!("a committed proposal cannot be decoded: {e}"),
                })?;
                EntryOutcome::Proposal(self.proposal(entry.position, proposal)?)
            }
        };
        self.system.standing.position = Some(entry.position);
        Ok(outcome)
    }

    fn proposal(&mut self, position: LogPosition, proposal: Proposal) -> Result<Vec<Outcome>, Fault> {
        let standing = &mut self.system.standing;
        standing.log_time = standing.log_time.max(proposal.stamp);
        let now = Use {
            time: standing.log_time,
            entry: position.index,
        };
        for id in self.sessions.due(now.time) {
            self.end_session(id);
        }
        let mut work = EntryWork::new(proposal.full_at);
        let mut outcomes = Vec::with_capacity(proposal.commands.len());
        for command in proposal.commands {
            outcomes.push(match command {
                Command::Txn { session: None, txn } => {
                    Outcome::Txn(self.txn(now, txn, &mut work, None)?.answer)
                }
                Command::Txn {
                    session: Some(session),
                    txn,
                } => self.session_txn(now, session, txn, &mut work)?,
                Command::OpenSession { id, ttl_millis } => {
                    Outcome::SessionOpened(self.open_session(id, ttl_millis, now))
                }
                Command::CloseSession { session } => {
                    self.end_session(session);
                    Outcome::SessionClosed
                }
                Command::SetLimits { expected, changes } => {
                    Outcome::LimitsSet(self.set_limits(expected, &changes))
                }
                Command::Compact { revision } => Outcome::Compacted(self.compact(revision)),
            });
        }
        Ok(outcomes)
    }

    fn txn(
        &mut self,
        now: Use,
        txn: Txn,
        work: &mut EntryWork,
        room: Option<Room>,
    ) -> Result<Executed, Fault> {
        let System { limits, standing, .. } = &mut *self.system;
        let at = (standing.revision, now.entry);
        let executed = execute::execute(&mut self.batch, txn, at, limits, work, room)?;
        if let Ok(response) = &executed.answer
            && response.revision > standing.revision
        {
            standing.revision = response.revision;
            let is_new = |noted: &LogTime| {
                now.time.millis() >= noted.millis().saturating_add(self.time_spacing_millis.max(1))
            };
            if self.noted.as_ref().is_none_or(is_new) {
                *self.noted = Some(now.time);
                self.batch.stood((now.time, response.revision));
            }
        }
        self.looked_at = self.looked_at.saturating_add(executed.looked_at);
        self.answer_bytes = self.answer_bytes.saturating_add(executed.answer_bytes);
        Ok(executed)
    }

    /// Runs a session's write once, however often it comes.
    fn session_txn(
        &mut self,
        now: Use,
        session: SessionRef,
        txn: Txn,
        work: &mut EntryWork,
    ) -> Result<Outcome, Fault> {
        let SessionRef { id, sequence, .. } = session;
        let Some((found, forgotten)) = self.sessions.touch(id, session.answered_below, now) else {
            return Ok(Outcome::Txn(Err(TxnRefused::SessionExpired { session: id })));
        };
        let known = found.answers.get(&sequence).copied();
        let was_forgotten = sequence < found.answered_below;
        let unanswered = (found.answers.len() as u64, found.answer_bytes);
        self.batch.forget(id, forgotten);
        if was_forgotten {
            return Ok(Outcome::Txn(Err(TxnRefused::SequenceForgotten {
                session: id,
                sequence,
            })));
        }
        if let Some(known) = known
            && !planted::is(Bug::RetryAppliedTwice)
        {
            if let Err(refused) = work.give_again(known.bytes, &self.system.limits) {
                return Ok(Outcome::Txn(Err(refused)));
            }
            self.answer_bytes = self.answer_bytes.saturating_add(known.bytes);
            return self.first_answer(id, sequence);
        }
        let ReplicatedLimits {
            unanswered_max: limit,
            unanswered_bytes_max,
            ..
        } = self.system.limits;
        if unanswered.0 >= limit {
            let what = TooManyOf::UnansweredWrites;
            return Ok(Outcome::Txn(Err(TxnRefused::TooMany { what, limit })));
        }
        let room = Room {
            left: unanswered_bytes_max.saturating_sub(unanswered.1),
            max: unanswered_bytes_max,
        };
        let Executed {
            answer, remembered, ..
        } = self.txn(now, txn, work, Some(room))?;
        if let Some(bytes) = remembered {
            let answer = self.batch.remember(id, sequence, bytes);
            self.sessions.answered(id, sequence, answer);
        }
        Ok(Outcome::Txn(answer))
    }

    fn first_answer(&self, id: SessionId, sequence: model::Sequence) -> Result<Outcome, Fault> {
        let file = self.batch.file();
        let answer = self.batch.answer(id, sequence)?;
        let answer =
            answer.ok_or_else(|| file.corrupt(format!("session {id} lacks its answer {sequence}")))?;
        model::decode(&answer).map_err(|e| {
            file.corrupt(format!(
                "the answer {sequence} of session {id} cannot be decoded: {e}"
            ))
        })
    }

    fn open_session(
        &mut self,
        id: SessionId,
        ttl_millis: u64,
        now: Use,
    ) -> Result<SessionOpened, TxnRefused> {
        let limits = self.system.limits;
        while self.sessions.len() as u64 >= limits.sessions_max {
            let Some(idle) = self.sessions.idle(now, &limits) else {
                self.session_counts.refused += 1;
                return Err(TxnRefused::TooMany {
                    what: TooManyOf::Sessions,
                    limit: limits.sessions_max,
                });
            };
            self.session_counts.evicted += 1;
            self.end_session(idle);
        }
        let session = self.sessions.free_from(id);
        let ttl_millis = ttl_millis.min(limits.session_ttl_millis_max);
        self.sessions.open(session, ttl_millis, now);
        Ok(SessionOpened { session, ttl_millis })
    }

    fn set_limits(&mut self, expected: Option<u64>, changes: &[LimitChange]) -> LimitsSet {
        let System {
            limits: stand,
            standing,
            ..
        } = &mut *self.system;
        let is_expected = expected.is_none_or(|version| version == standing.limits_version);
        let changed = stand
            .with(changes)
            .ok()
            .filter(|_| is_expected && !changes.is_empty());
        if let Some(limits) = changed {
            *stand = limits;
            standing.limits_version += 1;
        }
        LimitsSet {
            changed: changed.is_some(),
            version: standing.limits_version,
            limits: *stand,
        }
    }

    fn compact(&mut self, revision: Revision) -> Compacted {
        let standing = &mut self.system.standing;
        if revision <= standing.revision {
            standing.oldest = standing.oldest.max(revision);
        }
        self.batch.oldest = standing.oldest;
        Compacted {
            oldest: standing.oldest,
            revision: standing.revision,
        }
    }

    fn end_session(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.remove(id) {
            self.batch.session_ended(session.row_hash);
            self.batch.forget(id, session.answers);
        }
    }
}
