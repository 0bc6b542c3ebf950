//! A read on its way through the lanes: how it is handed over, gone on with, given up and refused.

use std::sync::Arc;
use std::time::Duration;

use crate::env::Instant;
use crate::fault::Fault;
use crate::machine::{Answered, ReadBudget, ReadRefused, Scan, Step, View};
use crate::model::{ReadOp, ReadResponse, Revision};
use crate::node::reply::ReplyTo;
use crate::node::room::{Guest, Held};
use crate::node::service::Service;
use crate::protocol::{Failure, Response};

/// A batch of reads that may run now.
#[derive(Debug)]
pub(in crate::node) struct ReadJob {
    pub(in crate::node) reads: Vec<ReadOp>,
    pub(in crate::node) at: Option<Revision>,
    pub(in crate::node) guest: Arc<Guest>,
    pub(in crate::node) end: End,
    pub(in crate::node) reply: ReplyTo,
}

/// A read of the fast lane, and the room for its answer.
#[derive(Debug)]
pub(in crate::node) struct PointJob {
    pub(in crate::node) job: ReadJob,
    pub(in crate::node) room: Held,
}

/// When a read is given up.
#[derive(Debug, Clone, Copy)]
pub(in crate::node) struct End {
    pub(in crate::node) at: Instant,
    /// The longest that a read may take here, where it is that which ends it, and not its caller's own time.
    pub(in crate::node) limit: Option<Duration>,
}

/// A read of the slow lane, begun or not, and the room for its answer.
#[derive(Debug)]
pub(in crate::node) struct ScanJob {
    /// What was done of it.
    pub(super) progress: Progress,
    pub(super) guest: Arc<Guest>,
    pub(super) end: End,
    pub(super) reply: ReplyTo,
    pub(in crate::node) room: Held,
}

#[derive(Debug)]
pub(super) enum Progress {
    Waiting {
        reads: Vec<ReadOp>,
        at: Option<Revision>,
    },
    Begun(Scan),
}

/// What became of one step.
pub(super) enum Stepped {
    /// With what was read.
    Read(ReadResponse, Vec<ReadOp>),
    Failed(Response),
    Unfinished(Scan),
}

/// Answers those for whom their lane's queue had no place, if it had none.
pub(super) fn refuse_points(sent: Result<(), Option<Vec<PointJob>>>) {
    for point in sent.err().flatten().into_iter().flatten() {
        point.job.reply.send(too_many());
    }
}

/// The same of the other lane.
pub(super) fn refuse_scan(sent: Result<(), Option<ScanJob>>) {
    if let Err(Some(job)) = sent {
        job.reply.send(too_many());
    }
}

pub(super) fn too_many() -> Response {
    Response::Failed(Failure::Busy("too many reads wait".to_owned()))
}

impl ScanJob {
    pub(in crate::node) fn waiting(job: ReadJob, room: Held) -> Self {
        let ReadJob {
            reads,
            at,
            guest,
            end,
            reply,
        } = job;
        Self {
            progress: Progress::Waiting { reads, at },
            guest,
            end,
            reply,
            room,
        }
    }
}

impl End {
    /// What a read is answered with that is given up now; `None` while there is time.
    pub(super) fn is_over(self, now: Instant) -> Option<Failure> {
        (now >= self.at).then(|| self.failure("the read's time was over before it was answered"))
    }

    /// What it is answered with then, for this reason where the time was its caller's own.
    pub(super) fn failure(self, reason: &str) -> Failure {
        match self.limit {
            Some(limit) => Failure::ReadTooLong { limit },
            None => Failure::Busy(reason.to_owned()),
        }
    }
}

impl Service {
    /// What a fault that a read met is answered with. It is one of the node: what a read finds to be spoiled ends the
    /// node's part, and others have the same record whole.
    pub(super) fn raise(&self, fault: Fault) -> Response {
        self.faults().raise(fault.clone());
        Response::Failed(Failure::Stopped(fault.to_string()))
    }

    /// Takes a step with a read.
    pub(super) fn step(&self, view: &View, progress: Progress, budget: ReadBudget) -> Stepped {
        let scan = match progress {
            Progress::Begun(scan) => scan,
            Progress::Waiting { reads, at } => match view.begin(reads, at) {
                Ok(scan) => scan,
                Err(refused) => return Stepped::Failed(refusal(refused)),
            },
        };
        match scan.step(view, budget) {
            Ok(Step::More(scan)) => Stepped::Unfinished(scan),
            Ok(Step::Done(Answered {
                revision,
                reads,
                results,
            })) => Stepped::Read(ReadResponse { revision, results }, reads),
            Ok(Step::Refused(refused)) => Stepped::Failed(refusal(refused)),
            Err(fault) => Stepped::Failed(self.raise(fault)),
        }
    }
}

fn refusal(refused: ReadRefused) -> Response {
    Response::Failed(match refused {
        ReadRefused::Compacted { oldest, .. } => Failure::Compacted { oldest },
        ReadRefused::FutureRevision { asked, current } => Failure::NotYet { asked, current },
        refused @ ReadRefused::TooLarge { .. } => Failure::Refused(refused.to_string()),
    })
}

/// What an answer takes, near enough.
pub(super) fn size(response: &ReadResponse) -> usize {
    use crate::model::{ReadResult, Record};
    let of_record = |record: &Record| size_of::<Record>() + record.value.len();
    let of_result = |result: &ReadResult| match result {
        ReadResult::Get(record) => record.as_ref().map_or(0, of_record),
        ReadResult::Range { records, .. } => records
            .iter()
            .map(|pair| size_of_val(&pair.key) + pair.key.len() + of_record(&pair.record))
            .sum(),
    };
    let results = response.results.iter();
    results
        .map(|result| size_of_val(result) + of_result(result))
        .sum()
}
