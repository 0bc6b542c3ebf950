//! Reads of the state, by a thread of their own: reads that wait together share one pinned state.

use super::reply::ReplyTo;
use crate::env::Owner;
use crate::fault::{Fault, Faults};
use crate::machine::{ReadRefused, Reader, View};
use crate::model::{ReadOp, ReadResponse, Revision};
use crate::protocol::{Failure, Response};

/// Reads that wait for the thread; more wait in their callers.
pub(crate) const QUEUE: usize = 4096;
/// Reads that share one pinned state at most.
pub(crate) const BATCH: usize = 512;

/// A batch of reads that may run now: the state that it asks for is applied.
#[derive(Debug)]
pub(crate) struct ReadJob {
    pub reads: Vec<ReadOp>,
    pub at: Option<Revision>,
    pub reply: ReplyTo,
}

/// The thread's state.
#[derive(Debug)]
pub(crate) struct ReadOwner {
    pub reader: Reader,
    /// What a read finds to be spoiled ends the node's part: others have the same record whole.
    pub faults: Faults,
}

impl Owner for ReadOwner {
    type Job = ReadJob;
    type Effects = Vec<(ReplyTo, Response)>;

    fn work(&mut self, batch: &mut Vec<ReadJob>) -> Self::Effects {
        let view = self.reader.view();
        batch
            .drain(..)
            .map(|job| {
                let answer = answer(&view, &job.reads, job.at);
                let answer = answer.unwrap_or_else(|fault| {
                    self.faults.raise(fault.clone());
                    Response::Failed(Failure::Stopped(fault.to_string()))
                });
                (job.reply, answer)
            })
            .collect()
    }

    fn publish(&mut self, effects: Self::Effects) {
        for (reply, response) in effects {
            reply.send(response);
        }
    }
}

fn answer(view: &Result<View, Fault>, reads: &[ReadOp], at: Option<Revision>) -> Result<Response, Fault> {
    let view = view.as_ref().map_err(Clone::clone)?;
    Ok(match view.read(reads, at)? {
        Ok(results) => {
            let revision = at.unwrap_or(view.applied().revision);
            Response::Read(ReadResponse { revision, results })
        }
        Err(ReadRefused::Compacted { oldest, .. }) => Response::Failed(Failure::Compacted { oldest }),
        Err(ReadRefused::FutureRevision { asked, current }) => {
            Response::Failed(Failure::NotYet { asked, current })
        }
        Err(refused @ ReadRefused::TooLarge { .. }) => {
            Response::Failed(Failure::Refused(refused.to_string()))
        }
    })
}
