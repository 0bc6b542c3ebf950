//! Sessions, within which a retried write is recognised: the tables `sessions` and `answers`.
//!
//! `sessions`: key: the id, 16 bytes. Value: the time to live in milliseconds, the log's time and the index of the entry
//! at its last command, and the number below which every answer was forgotten, 8 bytes each. A row lives until the
//! session is closed, expires, or makes room for another.
//! `answers`: key: the session's id, 16 bytes, then the write's number, 8 bytes. Value: the encoded
//! [`Outcome`](crate::model::Outcome). A row lives until the client says that it has the answer, or the
//! session ends. All numbers are big-endian.
//!
//! Who has which session and which answers stands in memory, rebuilt when the file is opened; the answers
//! themselves are read back only for a retry.
//!
//! Always: memory says what the tables will say at the end of the batch; `deadlines` and `by_use` hold each session once,
//! with the deadline and the last use that it has; a session knows how many bytes its answers have; a session knows the hashes of the rows that it stands for, so that the state's
//! hash follows without reading them.

use std::collections::{BTreeMap, BTreeSet};

use super::wire::{Malformed, Row, put_u64};
use crate::model::{LogIndex, LogTime, ReplicatedLimits, Sequence, SessionId};
use crate::planted::{self, Bug};

/// One session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::machine) struct Session {
    pub(in crate::machine) ttl_millis: u64,
    pub(in crate::machine) used: Use,
    /// Every answer below this number was forgotten.
    pub(in crate::machine) answered_below: Sequence,
    /// The answers remembered.
    pub(in crate::machine) answers: BTreeMap<Sequence, Remembered>,
    /// What they have in all.
    pub(in crate::machine) answer_bytes: u64,
    /// The hash of its row as the state's hash counts it; 0 before the first.
    pub(in crate::machine) row_hash: u128,
}

/// When a session had its last command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::machine) struct Use {
    pub(in crate::machine) time: LogTime,
    pub(in crate::machine) entry: LogIndex,
}

/// An answer that is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::machine) struct Remembered {
    /// The hash of its row.
    pub(in crate::machine) hash: u128,
    /// Its size.
    pub(in crate::machine) bytes: u64,
}

/// Answers that are remembered no more.
pub(in crate::machine) type Forgotten = BTreeMap<Sequence, Remembered>;

/// All sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::machine) struct Sessions {
    sessions: BTreeMap<SessionId, Session>,
    deadlines: BTreeSet<(LogTime, SessionId)>,
    /// By the entry of the last command.
    by_use: BTreeSet<(LogIndex, SessionId)>,
    /// Those whose row is to be written, or removed, at the end of the batch.
    changed: BTreeSet<SessionId>,
}

/// How many sessions there are, and what became of others since a machine was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionCounts {
    /// Sessions that are open.
    pub open: u64,
    /// Idle ones that made room for others.
    pub evicted: u64,
    /// Those that were not opened, since there were too many and none was idle.
    pub refused: u64,
}

pub(in crate::machine) fn session_key(id: SessionId) -> [u8; 16] {
    id.number().to_be_bytes()
}

pub(in crate::machine) fn read_session_key(bytes: &[u8]) -> Result<SessionId, Malformed> {
    let mut row = Row::new(bytes);
    let id = SessionId::new(row.u128()?);
    row.end()?;
    Ok(id)
}

pub(in crate::machine) fn answer_key(id: SessionId, sequence: Sequence) -> [u8; 24] {
    let mut key = [0; 24];
    key[..16].copy_from_slice(&id.number().to_be_bytes());
    key[16..].copy_from_slice(&sequence.number().to_be_bytes());
    key
}

pub(in crate::machine) fn read_answer_key(bytes: &[u8]) -> Result<(SessionId, Sequence), Malformed> {
    let mut row = Row::new(bytes);
    let key = (SessionId::new(row.u128()?), Sequence::new(row.u64()?));
    row.end()?;
    Ok(key)
}

impl Session {
    pub(in crate::machine) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32);
        put_u64(&mut out, self.ttl_millis);
        put_u64(&mut out, self.used.time.millis());
        put_u64(&mut out, self.used.entry.number());
        put_u64(&mut out, self.answered_below.number());
        out
    }

    /// A session without its answers.
    pub(in crate::machine) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut row = Row::new(bytes);
        let session = Self {
            ttl_millis: row.u64()?,
            used: Use {
                time: LogTime::from_millis(row.u64()?),
                entry: LogIndex::new(row.u64()?),
            },
            answered_below: Sequence::new(row.u64()?),
            answers: BTreeMap::new(),
            answer_bytes: 0,
            row_hash: 0,
        };
        row.end()?;
        Ok(session)
    }

    /// The log's time after which it is gone.
    fn deadline(&self) -> LogTime {
        LogTime::from_millis(self.used.time.millis().saturating_add(self.ttl_millis))
    }

    /// Whether it may make room for another: its client has not been heard of for so long that it waits for nothing.
    fn is_idle(&self, now: Use, limits: &ReplicatedLimits) -> bool {
        let by_time = now.time.millis().saturating_sub(self.used.time.millis());
        let by_order = now.entry.number().saturating_sub(self.used.entry.number());
        by_time >= limits.session_idle_millis
            || (now.time == self.used.time && by_order >= limits.session_idle_entries)
    }
}

impl Sessions {
    pub(in crate::machine) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// The first id from this one on that no session has.
    pub(in crate::machine) fn free_from(&self, mut id: SessionId) -> SessionId {
        while self.sessions.contains_key(&id) {
            id = id.next();
        }
        id
    }

    pub(in crate::machine) fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.sessions.get_mut(&id)
    }

    /// The sessions that were opened, touched or removed since this was asked last.
    pub(in crate::machine) fn take_changed(&mut self) -> BTreeSet<SessionId> {
        std::mem::take(&mut self.changed)
    }

    /// Takes in a row of the table, while the file is opened.
    pub(in crate::machine) fn restore(&mut self, id: SessionId, session: Session) {
        self.deadlines.insert((session.deadline(), id));
        self.by_use.insert((session.used.entry, id));
        self.sessions.insert(id, session);
    }

    /// Takes in a remembered answer, while the file is opened; whether its session exists.
    pub(in crate::machine) fn restore_answer(
        &mut self,
        id: SessionId,
        sequence: Sequence,
        answer: Remembered,
    ) -> bool {
        self.sessions.get_mut(&id).is_some_and(|session| {
            session.answer_bytes += answer.bytes;
            session.answers.insert(sequence, answer).is_none()
        })
    }

    /// Opens a session.
    pub(in crate::machine) fn open(&mut self, id: SessionId, ttl_millis: u64, now: Use) {
        let session = Session {
            ttl_millis,
            used: now,
            answered_below: Sequence::FIRST,
            answers: BTreeMap::new(),
            answer_bytes: 0,
            row_hash: 0,
        };
        self.restore(id, session);
        self.changed.insert(id);
    }

    /// Ends a session; what it was.
    pub(in crate::machine) fn remove(&mut self, id: SessionId) -> Option<Session> {
        let session = self.sessions.remove(&id)?;
        self.deadlines.remove(&(session.deadline(), id));
        self.by_use.remove(&(session.used.entry, id));
        self.changed.insert(id);
        Some(session)
    }

    /// The sessions whose deadline lies before `now`, the earliest first.
    pub(in crate::machine) fn due(&self, now: LogTime) -> Vec<SessionId> {
        let due = self.deadlines.range(..(now, SessionId::ZERO));
        due.map(|(_, id)| *id).collect()
    }

    /// The session that makes room for another: the one that was used longest ago, if it is idle.
    pub(in crate::machine) fn idle(&self, now: Use, limits: &ReplicatedLimits) -> Option<SessionId> {
        let (_, id) = self.by_use.first()?;
        let session = self.sessions.get(id)?;
        // A planted bug: it need not be idle.
        let is_idle = session.is_idle(now, limits) || planted::is(Bug::BusySessionEvicted);
        is_idle.then_some(*id)
    }

    /// A write of the session was answered, and the answer is remembered.
    pub(in crate::machine) fn answered(&mut self, id: SessionId, sequence: Sequence, answer: Remembered) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.answer_bytes += answer.bytes;
            session.answers.insert(sequence, answer);
        }
    }

    /// Notes a command of the session: its deadline moves, answers that the client has are forgotten.
    /// Answers the session and the answers forgotten, or `None` if there is no such session.
    pub(in crate::machine) fn touch(
        &mut self,
        id: SessionId,
        answered_below: Sequence,
        now: Use,
    ) -> Option<(&Session, Forgotten)> {
        let session = self.sessions.get_mut(&id)?;
        self.changed.insert(id);
        if now != session.used {
            self.deadlines.remove(&(session.deadline(), id));
            self.by_use.remove(&(session.used.entry, id));
            session.used = now;
            self.deadlines.insert((session.deadline(), id));
            self.by_use.insert((now.entry, id));
        }
        let mut forgotten = Forgotten::new();
        if answered_below > session.answered_below {
            session.answered_below = answered_below;
            let kept = session.answers.split_off(&answered_below);
            forgotten = std::mem::replace(&mut session.answers, kept);
            session.answer_bytes -= forgotten.values().map(|answer| answer.bytes).sum::<u64>();
        }
        Some((session, forgotten))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sessions_and_their_keys_read_back(
            ttl: u64, time: u64, entry: u64, below: u64, id: u128, sequence: u64,
        ) {
            let session = Session {
                ttl_millis: ttl,
                used: Use {
                    time: LogTime::from_millis(time),
                    entry: LogIndex::new(entry),
                },
                answered_below: Sequence::new(below),
                answers: BTreeMap::new(),
                answer_bytes: 0,
                row_hash: 0,
            };
            prop_assert_eq!(Session::decode(&session.encode()), Ok(session));
            let (id, sequence) = (SessionId::new(id), Sequence::new(sequence));
            prop_assert_eq!(read_session_key(&session_key(id)), Ok(id));
            prop_assert_eq!(read_answer_key(&answer_key(id, sequence)), Ok((id, sequence)));
        }

        #[test]
        fn any_bytes_are_the_one_form_of_a_row_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(session) = Session::decode(&bytes) {
                prop_assert_eq!(session.encode(), bytes.clone());
            }
            if let Ok(id) = read_session_key(&bytes) {
                prop_assert_eq!(&session_key(id)[..], &bytes[..]);
            }
            if let Ok((id, sequence)) = read_answer_key(&bytes) {
                prop_assert_eq!(&answer_key(id, sequence)[..], &bytes[..]);
            }
        }
    }
}
