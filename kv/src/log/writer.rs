//! The log's one writer: takes all the jobs that wait, writes them once, syncs once, answers in order.
//!
//! Always: an answer is given after what it answers is durable, in the order of the jobs; after the first
//! fault nothing is written any more, and that batch and every later job are answered with the fault.

use std::sync::Arc;

use bytes::Bytes;

use super::appender::Appender;
use super::entry::{Completion, LogEntry};
use super::queued::Place;
use super::segment::Maker;
use super::shared::Shared;
use super::view::{Change, Written};
use crate::env::{Instant, Owner, now};
use crate::fault::Fault;
use crate::model::LogPosition;
use crate::planted::{self, Bug};

/// What the writer is asked for, and who waits for it.
pub(super) struct Job {
    pub work: Work,
    /// What was saved as committed since the job before: it goes along, since it alone is worth no write.
    pub committed: Option<Bytes>,
    pub answer: Answer,
}

/// What a job is. `from` and `last` were worked out when the job was sent.
pub(super) enum Work {
    Append(Vec<LogEntry>),
    Vote(Bytes),
    Truncate {
        from: u64,
        last: Option<LogPosition>,
    },
    Purge(LogPosition),
    /// Changes nothing, and is answered in its turn.
    Barrier,
    Close,
}

/// Who waits for a job, and the place in the queue that is free once it is answered.
///
/// Dropped unanswered, it answers that the log has stopped: nobody waits for ever.
pub(super) struct Answer {
    to: Option<Completion>,
    _place: Place,
}

impl Answer {
    pub fn new(to: Completion, place: Place) -> Self {
        Self {
            to: Some(to),
            _place: place,
        }
    }

    fn give(mut self, result: Result<(), Fault>) {
        self.tell(result);
    }

    fn tell(&mut self, result: Result<(), Fault>) {
        if let Some(to) = self.to.take() {
            to(result);
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.tell(Err(Fault::Stopped { owner: "log" }));
    }
}

/// See the module.
pub(super) struct Writer {
    shared: Arc<Shared>,
    appender: Appender,
    stopped: Option<Fault>,
}

/// What a batch came to.
pub(super) struct Effects {
    started: Instant,
    answers: Vec<Answer>,
    changes: Vec<Change>,
    durable: Option<LogPosition>,
    written: Written,
    result: Result<(), Fault>,
    /// Answered after the log has stopped.
    closes: Vec<Answer>,
}

impl Writer {
    pub fn start(shared: Arc<Shared>, maker: Maker, mut appender: Appender) -> Self {
        appender.attach(maker);
        Self {
            shared,
            appender,
            stopped: None,
        }
    }

    /// Writes the batch; `Err` when nothing of it may be taken for durable.
    fn write(
        &mut self,
        batch: &mut Vec<Job>,
        answers: &mut Vec<Answer>,
        closes: &mut Vec<Answer>,
    ) -> Result<(), Fault> {
        let mut failed = match &self.stopped {
            Some(fault) => Err(fault.clone()),
            None => Ok(()),
        };
        // Every job's answer is taken, also after a failure: all of them are told.
        for Job {
            work,
            committed,
            answer,
        } in batch.drain(..)
        {
            if let Some(committed) = committed {
                self.appender.committed(committed);
            }
            let waits = match &work {
                Work::Close => &mut *closes,
                _ => &mut *answers,
            };
            waits.push(answer);
            failed = failed.and_then(|()| self.add(work));
        }
        failed?;
        self.appender.commit()?;
        if closes.is_empty() {
            return Ok(());
        }
        // In a batch of its own, behind all others: if it rots, nothing that was answered goes with it.
        self.appender.head()?;
        self.appender.commit()
    }

    /// Adds what a job asks for to the batch.
    fn add(&mut self, work: Work) -> Result<(), Fault> {
        match work {
            Work::Append(entries) => entries
                .iter()
                .try_for_each(|entry| self.appender.entry(entry.position, &entry.payload)),
            Work::Vote(vote) => self.appender.vote(vote),
            Work::Truncate { .. } if planted::is(Bug::TruncateNotDurable) => Ok(()),
            Work::Truncate { from, last } => self.appender.truncate(from, last),
            Work::Purge(upto) => self.appender.purge(upto),
            Work::Barrier | Work::Close => Ok(()),
        }
    }
}

impl Owner for Writer {
    type Job = Job;
    type Effects = Effects;

    fn work(&mut self, batch: &mut Vec<Job>) -> Effects {
        let started = now();
        *self.shared.writing() = Some(started);
        let mut answers = Vec::with_capacity(batch.len());
        let mut closes = Vec::new();
        let result = self.write(batch, &mut answers, &mut closes);
        let (changes, mut written, durable) = self.appender.take_changes();
        written.jobs = answers.len() as u64;
        if let Err(fault) = &result {
            self.stopped.get_or_insert_with(|| fault.clone());
        } else if !closes.is_empty() {
            self.stopped = Some(Fault::Stopped { owner: "log" });
        }
        if self.stopped.is_some() {
            self.appender.detach();
        }
        Effects {
            started,
            answers,
            changes,
            durable,
            written,
            result,
            closes,
        }
    }

    fn publish(&mut self, effects: Effects) {
        let took = effects.started.elapsed();
        *self.shared.writing() = None;
        let retired = {
            let mut view = self.shared.view();
            match &effects.result {
                Ok(()) => {
                    view.count_batch(&effects.written, took);
                    view.publish(effects.changes, effects.durable);
                }
                Err(fault) => view.fail(fault),
            }
            if let Some(stopped) = &self.stopped {
                view.fail(stopped);
                Vec::new()
            } else {
                view.retire()
            }
        };
        if !retired.is_empty() {
            self.shared.view().statistics_mut().segments_retired += retired.len() as u64;
            self.appender.recycle(retired);
        }
        // Outside the lock, and after the view: who is told may look.
        for answer in effects.answers.into_iter().chain(effects.closes) {
            answer.give(effects.result.clone());
        }
    }
}
