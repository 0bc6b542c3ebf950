//! The slow lane: reads of many keys, a slice at a time, in turns.

use std::time::Duration;

use super::jobs::{Progress, ScanJob, Stepped, size};
use super::rotation::Rotation;
use crate::env::{self, Instant, Owner};
use crate::fault::Fault;
use crate::machine::{ReadBudget, Reader, View};
use crate::node::reply::{ReplyTo, SIGN_INTERVAL};
use crate::node::service::Service;
use crate::protocol::{Failure, Response};

/// A slice: some milliseconds, as long as the pages are in memory. So long at most a scan waits for each of the others.
const SLICE: ReadBudget = ReadBudget {
    keys: 4096,
    bytes: 1024 * 1024,
};
/// So long a scan goes on with the state that it has pinned; then it pins a newer one, and reads its revision there. An
/// old one keeps memory, and pages of the file that grows by them.
const VIEW_AGE_MAX: Duration = Duration::from_secs(2);

/// The thread's state.
#[derive(Debug)]
pub(in crate::node) struct Scans {
    reader: Reader,
    service: Service,
    waiting: Rotation<Pinned>,
    signed_at: Instant,
}

/// A scan, and the state that it reads, once it has begun.
#[derive(Debug)]
struct Pinned {
    job: ScanJob,
    view: Option<(View, Instant)>,
}

impl Scans {
    pub(in crate::node) fn new(reader: Reader, service: Service) -> Self {
        Self {
            reader,
            service,
            waiting: Rotation::default(),
            signed_at: env::now(),
        }
    }

    /// Gives up what nobody waits for any more or nobody shall, and gives a sign of life to the others.
    fn look_around(&mut self, now: Instant) -> Vec<(ReplyTo, Response)> {
        self.signed_at = now;
        let over = self.service.is_over();
        let to_go = |pinned: &Pinned| {
            let ScanJob { end, reply, .. } = &pinned.job;
            let goes = over.is_some() || end.is_over(now).is_some() || !reply.is_wanted();
            if !goes {
                reply.is_worked_on();
            }
            goes
        };
        let gone = self.waiting.take_out(to_go).into_iter();
        let answers = gone.map(|Pinned { job, .. }| {
            let failure = over.clone().or(job.end.is_over(now));
            // Nobody hears it, where it is neither.
            let failure = failure.unwrap_or(Failure::Busy("nobody waits for the read".to_owned()));
            (job.reply, Response::Failed(failure))
        });
        answers.collect()
    }

    /// One slice of the scan whose turn it is; its answer, if that was the last.
    fn slice(&mut self, now: Instant) -> Option<(ReplyTo, Response)> {
        let Pinned { job, view } = self.waiting.next()?;
        let ScanJob {
            progress,
            guest,
            end,
            mut reply,
            mut room,
        } = job;
        if !reply.is_wanted() {
            return None;
        }
        if let Some(failure) = end.is_over(now) {
            return Some((reply, Response::Failed(failure)));
        }
        let (view, pinned_at) = match self.pin(view, now) {
            Ok(pinned) => pinned,
            Err(fault) => return Some((reply, self.service.raise(fault))),
        };
        match self.service.step(&view, progress, SLICE) {
            Stepped::Failed(response) => Some((reply, response)),
            Stepped::Read(response, _) => {
                room.shrink(size(&response));
                reply.hold(room);
                Some((reply, Response::Read(response)))
            }
            Stepped::Unfinished(scan) => {
                let number = guest.number;
                let job = ScanJob {
                    progress: Progress::Begun(scan),
                    guest,
                    end,
                    reply,
                    room,
                };
                let view = Some((view, pinned_at));
                self.waiting.push(number, Pinned { job, view });
                None
            }
        }
    }

    fn pin(&self, view: Option<(View, Instant)>, now: Instant) -> Result<(View, Instant), Fault> {
        match view {
            Some((view, pinned_at)) if now.since(pinned_at) < VIEW_AGE_MAX => Ok((view, pinned_at)),
            _ => Ok((self.reader.view()?, now)),
        }
    }
}

impl Owner for Scans {
    type Job = ScanJob;
    type Effects = Vec<(ReplyTo, Response)>;

    fn work(&mut self, batch: &mut Vec<ScanJob>) -> Self::Effects {
        for job in batch.drain(..) {
            self.waiting.push(job.guest.number, Pinned { job, view: None });
        }
        let now = env::now();
        let mut answers = Vec::new();
        if self.service.is_over().is_some() || now.since(self.signed_at) >= SIGN_INTERVAL {
            metrics::gauge!("quorate_scans_waiting").set(self.waiting.len() as f64);
            answers = self.look_around(now);
        }
        answers.extend(self.slice(now));
        answers
    }

    fn publish(&mut self, answers: Self::Effects) {
        for (reply, response) in answers {
            reply.send(response);
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }
}
