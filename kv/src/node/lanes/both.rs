//! Both lanes of a node, and which of them a read takes.

use std::sync::Arc;

use super::jobs::{PointJob, ReadJob, ScanJob, refuse_points, refuse_scan, size};
use super::memory::{Look, Memory};
use super::points::Points;
use super::scans::Scans;
use super::waiting::{READS_MAX, Waiting, WantsRoom, wait_for_room};
use crate::env::{self, OwnerHandle, mpsc};
use crate::machine::{ReadClass, Reader};
use crate::model::{ReadOp, ReadResponse, Revision};
use crate::node::cost;
use crate::node::room::Guest;
use crate::node::service::Service;
use crate::node::settings::Settings;
use crate::tasks::Tasks;

/// What may be sent to a thread between two looks of it: batches of reads to that of the fast lane, reads to the other. More
/// are refused, and may be tried again. What the threads hold is bounded by the room for answers and for calls.
const POINTS_QUEUE: usize = 16 * 1024;
const SCANS_QUEUE: usize = 16 * 1024;

/// The lanes of a node. Cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::node) struct Lanes {
    settings: Arc<Settings>,
    memory: Memory,
    points: OwnerHandle<Vec<PointJob>>,
    scans: OwnerHandle<ScanJob>,
    waiting: mpsc::Sender<WantsRoom>,
}

impl Lanes {
    pub(in crate::node) fn start(
        reader: Reader,
        settings: Arc<Settings>,
        service: &Service,
        tasks: &Tasks,
    ) -> Self {
        let faults = service.faults();
        let memory = Memory::new(reader.clone(), service.clone());
        let (waiting, wants) = mpsc::channel(READS_MAX);
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
    pub(in crate::node) fn read_at_once(
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
    pub(in crate::node) fn take(&self, reads: impl IntoIterator<Item = (ReadClass, ReadJob)>) {
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
