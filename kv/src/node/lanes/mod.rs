//! Reads of the state, in two lanes, each with a thread of its own: those of a few keys, and all others.
//!
//! A read of a few keys takes microseconds and never waits behind a scan; scans go on slice by slice, in turns. What
//! turns out to be longer than it looked changes the lane. Each answer leaves when it is made.
//!
//! Always: an answer is of one revision; a read that nobody waits for any more is not gone on with; before a read comes
//! here the state that it asks for is applied, and the room for its answer is taken.

mod points;
mod rotation;
mod scans;

use std::time::Duration;

use super::reply::ReplyTo;
use super::room::GuestNumber;
use super::service::Service;
use crate::env::{self, Instant, OwnerHandle};
use crate::fault::Fault;
use crate::machine::{ReadBudget, ReadClass, ReadRefused, Reader, Scan, Step, View};
use crate::model::{ReadOp, ReadResponse, Revision};
use crate::protocol::{Failure, Response};
use points::Points;
pub(super) use scans::Scans;

/// Reads that wait for the threads; more wait in their callers.
const POINTS_QUEUE: usize = 4096;
const SCANS_QUEUE: usize = 1024;
/// Reads of a few keys that share one pinned state at most. The first of them is answered when all are made: few, so
/// that it does not wait for long.
const POINTS_BATCH: usize = 32;

/// The lanes of a node. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Lanes {
    points: OwnerHandle<ReadJob>,
    scans: OwnerHandle<ScanJob>,
}

/// A batch of reads that may run now.
#[derive(Debug)]
pub(super) struct ReadJob {
    pub(super) reads: Vec<ReadOp>,
    pub(super) at: Option<Revision>,
    pub(super) guest: GuestNumber,
    pub(super) end: End,
    pub(super) reply: ReplyTo,
}

/// When a read is given up.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) at: Instant,
    /// The longest that a read may take here, where it is that which ends it, and not its caller's own time.
    pub(super) limit: Option<Duration>,
}

/// A read of the slow lane, begun or not.
#[derive(Debug)]
pub(super) struct ScanJob {
    /// What was done of it.
    progress: Progress,
    guest: GuestNumber,
    end: End,
    reply: ReplyTo,
}

#[derive(Debug)]
enum Progress {
    Waiting {
        reads: Vec<ReadOp>,
        at: Option<Revision>,
    },
    Begun(Scan),
}

/// What became of one step.
enum Stepped {
    Answered(Response),
    Unfinished(Scan),
}

impl Lanes {
    pub(super) fn start(reader: Reader, service: &Service) -> Self {
        let faults = service.faults();
        let scans = env::spawn_owner(
            "quorate-scan",
            SCANS_QUEUE,
            SCANS_QUEUE,
            Scans::new(reader.clone(), service.clone()),
            faults.on_panic("scanner of the state"),
        );
        let points = env::spawn_owner(
            "quorate-read",
            POINTS_QUEUE,
            POINTS_BATCH,
            Points::new(reader, service.clone(), scans.clone()),
            faults.on_panic("reader of the state"),
        );
        Self { points, scans }
    }

    /// Hands a read to its lane. Waits only for room in its queue.
    pub(super) async fn send(&self, class: ReadClass, job: ReadJob) {
        // A job that was not taken says so by being dropped.
        match class {
            ReadClass::Point => drop(self.points.send(job).await),
            ReadClass::Scan => drop(self.scans.send(ScanJob::waiting(job)).await),
        }
    }
}

impl ScanJob {
    pub(super) fn waiting(job: ReadJob) -> Self {
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
        }
    }
}

impl End {
    /// What a read is answered with that is given up now; `None` while there is time.
    fn is_over(self, now: Instant) -> Option<Failure> {
        (now >= self.at).then(|| match self.limit {
            Some(limit) => Failure::ReadTooLong { limit },
            None => Failure::Busy("the read's time was over before it was answered".to_owned()),
        })
    }
}

impl Service {
    /// What a fault that a read met is answered with. It is one of the node: what a read finds to be spoiled ends the
    /// node's part, and others have the same record whole.
    fn raise(&self, fault: Fault) -> Response {
        self.faults().raise(fault.clone());
        Response::Failed(Failure::Stopped(fault.to_string()))
    }

    /// Takes a step with a read.
    fn step(&self, view: &View, progress: Progress, budget: ReadBudget) -> Stepped {
        let scan = match progress {
            Progress::Begun(scan) => scan,
            Progress::Waiting { reads, at } => match view.begin(reads, at) {
                Ok(scan) => scan,
                Err(refused) => return Stepped::Answered(refusal(refused)),
            },
        };
        let revision = scan.revision();
        match scan.step(view, budget) {
            Ok(Step::More(scan)) => Stepped::Unfinished(scan),
            Ok(Step::Done(results)) => Stepped::Answered(Response::Read(ReadResponse { revision, results })),
            Ok(Step::Refused(refused)) => Stepped::Answered(refusal(refused)),
            Err(fault) => Stepped::Answered(self.raise(fault)),
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

/// Answers, and gives back what was taken for a larger answer.
fn answer(mut reply: ReplyTo, response: Response) {
    reply.shrink(size(&response));
    reply.send(response);
}

/// What an answer takes, near enough.
fn size(response: &Response) -> usize {
    use crate::model::{ReadResult, Record};
    let of_record = |record: &Record| size_of::<Record>() + record.value.len();
    let Response::Read(response) = response else {
        return size_of::<Response>();
    };
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
