//! Reads of the state, in two lanes, each with a thread of its own: those of a few keys, and all others.
//!
//! A read of a few keys takes microseconds and never waits behind a scan; scans go on slice by slice, in turns. What
//! turns out to be longer than it looked changes the lane. Each answer leaves when it is made. Where memory has all that a read
//! of a few keys asks for, it needs no thread (`memory`).
//!
//! A read has room for its answer before it is made. That of many keys has it for the largest that it may be, since it is
//! gathered over many turns. That of a few keys has it for a small one: most are, and how large it is shows once it is
//! made. Where there is no room for it then, it is forgotten, and made again once there is (`waiting`).
//!
//! Always: an answer is of one revision; a read that nobody waits for any more is not gone on with; before a read comes
//! here the state that it asks for is applied; nothing here waits for room while it holds some.

mod memory;
mod points;
mod rotation;
mod scans;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use super::cost;
use super::reply::ReplyTo;
use super::room::{Guest, Held};
use super::service::Service;
use super::settings::Settings;
use crate::env::{self, Instant, OwnerHandle, mpsc};
use crate::fault::Fault;
use crate::machine::{Answered, ReadBudget, ReadClass, ReadRefused, Reader, Scan, Step, View};
use crate::model::{ReadOp, ReadResponse, Revision};
use crate::protocol::{Failure, Response};
use crate::tasks::Tasks;
use memory::{Look, Memory};
pub(super) use points::Done;
pub(super) use points::Points;
pub(super) use scans::Scans;
#[cfg(test)]
pub(super) use waiting::READS_MAX;
pub(super) use waiting::{Waiting, WantsRoom};

/// What may be sent to a thread between two looks of it: batches of reads to that of the fast lane, reads to the other. More
/// are refused, and may be tried again. What the threads hold is bounded by the room for answers and for calls.
const POINTS_QUEUE: usize = 16 * 1024;
const SCANS_QUEUE: usize = 16 * 1024;

/// The lanes of a node. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Lanes {
    settings: Arc<Settings>,
    memory: Memory,
    points: OwnerHandle<Vec<PointJob>>,
    scans: OwnerHandle<ScanJob>,
    waiting: mpsc::Sender<WantsRoom>,
}

/// A batch of reads that may run now.
#[derive(Debug)]
pub(super) struct ReadJob {
    pub(super) reads: Vec<ReadOp>,
    pub(super) at: Option<Revision>,
    pub(super) guest: Arc<Guest>,
    pub(super) end: End,
    pub(super) reply: ReplyTo,
}

/// A read of the fast lane, and the room for its answer.
#[derive(Debug)]
pub(super) struct PointJob {
    pub(super) job: ReadJob,
    pub(super) room: Held,
}

/// When a read is given up.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) at: Instant,
    /// The longest that a read may take here, where it is that which ends it, and not its caller's own time.
    pub(super) limit: Option<Duration>,
}

/// A read of the slow lane, begun or not, and the room for its answer.
#[derive(Debug)]
pub(super) struct ScanJob {
    /// What was done of it.
    progress: Progress,
    guest: Arc<Guest>,
    end: End,
    reply: ReplyTo,
    pub(super) room: Held,
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
    /// With what was read.
    Read(ReadResponse, Vec<ReadOp>),
    Failed(Response),
    Unfinished(Scan),
}

impl Lanes {
    pub(super) fn start(reader: Reader, settings: Arc<Settings>, service: &Service, tasks: &Tasks) -> Self {
        let faults = service.faults();
        let memory = Memory::new(reader.clone(), service.clone());
        let (waiting, wants) = mpsc::channel(waiting::READS_MAX);
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
            POINTS_QUEUE,
            Points::new(
                reader,
                Arc::clone(&settings),
                service.clone(),
                scans.clone(),
                waiting.clone(),
            ),
            faults.on_panic("reader of the state"),
        );
        let waits = Waiting::new(wants, points.downgrade(), scans.downgrade(), service.clone());
        tasks.spawn("reads-without-room", waits.run());
        Self {
            settings,
            memory,
            points,
            scans,
            waiting,
        }
    }

    /// Answers a batch of reads of a caller that takes its answer along, where memory has what it asks for and answers have
    /// room. The answer takes none: it waits for nobody.
    pub(super) fn read_at_once(
        &self,
        guest: &Guest,
        reads: &[ReadOp],
        at: Option<Revision>,
    ) -> Option<ReadResponse> {
        let class = ReadClass::of(reads);
        let has_room = |bytes| guest.answers(class).has(bytes);
        if class != ReadClass::Point || !has_room(cost::of_small_answer(reads)) {
            return None;
        }
        let response = self.memory.look()?.answer(reads, at)?;
        has_room(size(&response)).then_some(response)
    }

    /// Answers reads, hands them to their lanes, or to where they wait for room. Never waits.
    pub(super) fn take(&self, reads: impl IntoIterator<Item = (ReadClass, ReadJob)>) {
        let limits = &self.settings.limits;
        let mut points = Vec::new();
        let mut look = None;
        for (class, job) in reads {
            let bytes = match class {
                ReadClass::Point => cost::of_small_answer(&job.reads),
                ReadClass::Scan => cost::of_read_answer(&job.reads, limits),
            };
            match (job.guest.answers(class).take_now(bytes), class) {
                (None, _) => wait_for_room(&self.waiting, WantsRoom { class, job, bytes }),
                (Some(room), ReadClass::Point) => {
                    let look = look.get_or_insert_with(|| self.memory.look());
                    let point = PointJob { job, room };
                    match recalled(look.as_mut(), &point, self.settings.tuning.recall_elsewhere) {
                        Some(response) => point.answered(response).publish(&self.scans, &self.waiting),
                        None => points.push(point),
                    }
                }
                (Some(room), ReadClass::Scan) => {
                    refuse_scan(self.scans.try_send(ScanJob::waiting(job, room)));
                }
            }
        }
        if !points.is_empty() {
            refuse_points(self.points.try_send(points));
        }
    }
}

/// What memory answers to a read, where somebody waits for it in time.
fn recalled(look: Option<&mut Look<'_>>, point: &PointJob, elsewhere: bool) -> Option<ReadResponse> {
    let look = look?;
    let ReadJob {
        reads,
        at,
        end,
        reply,
        ..
    } = &point.job;
    let is_for_us = elsewhere || reply.is_here();
    (is_for_us && reply.is_wanted() && look.is_in_time(*end)).then(|| look.answer(reads, *at))?
}

/// Answers those for whom their lane's queue had no place, if it had none.
fn refuse_points(sent: Result<(), Option<Vec<PointJob>>>) {
    for point in sent.err().flatten().into_iter().flatten() {
        point.job.reply.send(too_many());
    }
}

/// The same of the other lane.
fn refuse_scan(sent: Result<(), Option<ScanJob>>) {
    if let Err(Some(job)) = sent {
        job.reply.send(too_many());
    }
}

fn wait_for_room(waiting: &mpsc::Sender<WantsRoom>, wants: WantsRoom) {
    // Of one that ended nobody hears any more: what was in it says so by being dropped.
    if let Err(mpsc::error::TrySendError::Full(wants)) = waiting.try_send(wants) {
        wants.job.reply.send(too_many());
    }
}

fn too_many() -> Response {
    Response::Failed(Failure::Busy("too many reads wait".to_owned()))
}

impl ScanJob {
    pub(super) fn waiting(job: ReadJob, room: Held) -> Self {
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

impl PointJob {
    /// What becomes of a read whose answer is made: it leaves where there is room for it.
    fn answered(self, response: ReadResponse) -> Done {
        /// What a read has more than its answer needs is given back above so many bytes.
        const SURPLUS_MAX: usize = 16 * 1024;
        let PointJob { mut job, mut room } = self;
        let bytes = size(&response);
        let more = bytes.saturating_sub(room.bytes());
        if more > 0 {
            match job.guest.answers(ReadClass::Point).take_now(more) {
                Some(more) => job.reply.hold(more),
                None => return points::wants(ReadClass::Point, job, bytes),
            }
        } else if room.bytes() > SURPLUS_MAX + bytes {
            room.shrink(bytes);
        }
        job.reply.hold(room);
        Done::Answered(job.reply, Response::Read(response))
    }
}

impl End {
    /// What a read is answered with that is given up now; `None` while there is time.
    fn is_over(self, now: Instant) -> Option<Failure> {
        (now >= self.at).then(|| self.failure("the read's time was over before it was answered"))
    }

    /// What it is answered with then, for this reason where the time was its caller's own.
    fn failure(self, reason: &str) -> Failure {
        match self.limit {
            Some(limit) => Failure::ReadTooLong { limit },
            None => Failure::Busy(reason.to_owned()),
        }
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
fn size(response: &ReadResponse) -> usize {
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
