//! The fast lane: reads of a few keys. Those that wait together share one pinned state.

use super::{Progress, ReadJob, ScanJob, Stepped, answer};
use crate::env::{self, Owner, OwnerHandle};
use crate::machine::{ReadBudget, Reader};
use crate::node::reply::ReplyTo;
use crate::node::service::Service;
use crate::protocol::{Failure, Response};

/// What one read may look at before it changes to the other lane: more than its keys, since those deleted of late in the
/// middle of a range count too, and far less than a slice there.
const BUDGET: ReadBudget = ReadBudget {
    keys: 512,
    bytes: 1024 * 1024,
};

/// The thread's state.
#[derive(Debug)]
pub(super) struct Points {
    reader: Reader,
    service: Service,
    scans: OwnerHandle<ScanJob>,
}

/// What became of a read.
pub(super) enum Done {
    Answered(ReplyTo, Response),
    /// It is longer than it looked.
    ChangesLane(ScanJob),
}

impl Points {
    pub(super) fn new(reader: Reader, service: Service, scans: OwnerHandle<ScanJob>) -> Self {
        Self {
            reader,
            service,
            scans,
        }
    }
}

impl Owner for Points {
    type Job = ReadJob;
    type Effects = Vec<Done>;

    fn work(&mut self, batch: &mut Vec<ReadJob>) -> Vec<Done> {
        batch.retain(|job| job.reply.is_wanted());
        let over = |failure: Failure, batch: &mut Vec<ReadJob>| {
            let answers = batch.drain(..).map(|job| (job.reply, failure.clone()));
            answers
                .map(|(reply, failure)| Done::Answered(reply, Response::Failed(failure)))
                .collect()
        };
        if let Some(failure) = self.service.is_over() {
            return over(failure, batch);
        }
        let view = match self.reader.view() {
            Ok(view) => view,
            Err(fault) => {
                let failure = Failure::Stopped(fault.to_string());
                self.service.faults().raise(fault);
                return over(failure, batch);
            }
        };
        let now = env::now();
        let done = batch.drain(..).map(|job| {
            if let Some(failure) = job.end.is_over(now) {
                return Done::Answered(job.reply, Response::Failed(failure));
            }
            let ReadJob {
                reads,
                at,
                guest,
                end,
                reply,
            } = job;
            match self.service.step(&view, Progress::Waiting { reads, at }, BUDGET) {
                Stepped::Answered(response) => Done::Answered(reply, response),
                Stepped::Unfinished(scan) => {
                    env::mark("read.changed_lane");
                    Done::ChangesLane(ScanJob {
                        progress: Progress::Begun(scan),
                        guest,
                        end,
                        reply,
                    })
                }
            }
        });
        done.collect()
    }

    fn publish(&mut self, done: Vec<Done>) {
        for done in done {
            match done {
                Done::Answered(reply, response) => answer(reply, response),
                Done::ChangesLane(job) => {
                    if let Err(Some(job)) = self.scans.try_send(job) {
                        let failure = Failure::Busy("too many long reads wait".to_owned());
                        job.reply.send(Response::Failed(failure));
                    }
                }
            }
        }
    }
}
