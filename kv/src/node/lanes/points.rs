//! The fast lane: reads of a few keys. Those that wait together share one pinned state.

use std::collections::VecDeque;
use std::sync::Arc;

use super::jobs::{PointJob, Progress, ReadJob, ScanJob, Stepped, refuse_scan, size};
use super::waiting::{WantsRoom, wait_for_room};
use crate::env::{self, Owner, OwnerHandle, mpsc};
use crate::machine::{ReadBudget, ReadClass, Reader, Scan, View};
use crate::model::ReadResponse;
use crate::node::cost;
use crate::node::reply::ReplyTo;
use crate::node::service::Service;
use crate::node::settings::Settings;
use crate::protocol::{Failure, Response};

/// What one read may look at before it changes to the other lane: more than its keys, since those deleted of late in the
/// middle of a range count too, and far less than a slice there.
const BUDGET: ReadBudget = ReadBudget {
    keys: 512,
    bytes: 1024 * 1024,
};
/// Reads that share one pinned state at most. The first of them is answered when all are made: few, so that it does not
/// wait for long.
const BATCH: usize = 64;

/// The thread's state.
#[derive(Debug)]
pub(in crate::node) struct Points {
    reader: Reader,
    settings: Arc<Settings>,
    service: Service,
    scans: OwnerHandle<ScanJob>,
    waiting: mpsc::Sender<WantsRoom>,
    /// Reads that have not had their turn: as many as there is room for, a small answer each.
    next: VecDeque<PointJob>,
}

/// What became of a read.
#[derive(Debug)]
pub(in crate::node) enum Done {
    Answered(ReplyTo, Response),
    /// It is longer than it looked.
    ChangesLane(ScanJob),
    /// Its answer is larger than there is room for now.
    WantsRoom(WantsRoom),
}

impl Done {
    pub(super) fn publish(self, scans: &OwnerHandle<ScanJob>, waiting: &mpsc::Sender<WantsRoom>) {
        match self {
            Done::Answered(reply, response) => reply.send(response),
            Done::ChangesLane(job) => refuse_scan(scans.try_send(job)),
            Done::WantsRoom(wants) => wait_for_room(waiting, wants),
        }
    }
}

impl PointJob {
    /// What becomes of a read whose answer is made: it leaves where there is room for it.
    pub(super) fn answered(self, response: ReadResponse) -> Done {
        /// What a read has more than its answer needs is given back above so many bytes.
        const SURPLUS_MAX: usize = 16 * 1024;
        let PointJob { mut job, mut room } = self;
        let bytes = size(&response);
        let more = bytes.saturating_sub(room.bytes());
        if more > 0 {
            match job.guest.answers(ReadClass::Point).take_now(more) {
                Some(more) => job.reply.hold(more),
                None => return wants(ReadClass::Point, job, bytes),
            }
        } else if room.bytes() > SURPLUS_MAX + bytes {
            room.shrink(bytes);
        }
        job.reply.hold(room);
        Done::Answered(job.reply, Response::Read(response))
    }
}

impl Points {
    pub(in crate::node) fn new(
        reader: Reader,
        settings: Arc<Settings>,
        service: Service,
        scans: OwnerHandle<ScanJob>,
        waiting: mpsc::Sender<WantsRoom>,
    ) -> Self {
        Self {
            reader,
            settings,
            service,
            scans,
            waiting,
            next: VecDeque::new(),
        }
    }

    /// Refuses all that have not had their turn.
    fn refuse_all(&mut self, failure: &Failure) -> Vec<Done> {
        let answers = self.next.drain(..);
        answers
            .map(|point| Done::Answered(point.job.reply, Response::Failed(failure.clone())))
            .collect()
    }

    fn read(&self, view: &View, PointJob { mut job, room }: PointJob) -> Done {
        let (reads, at) = (std::mem::take(&mut job.reads), job.at);
        match self.service.step(view, Progress::Waiting { reads, at }, BUDGET) {
            Stepped::Failed(response) => Done::Answered(job.reply, response),
            Stepped::Unfinished(scan) => self.change_lane(job, scan),
            Stepped::Read(response, reads) => {
                let job = ReadJob { reads, ..job };
                PointJob { job, room }.answered(response)
            }
        }
    }

    /// What was gathered goes along where there is room there for all of the answer; else it is begun again.
    fn change_lane(&self, job: ReadJob, scan: Scan) -> Done {
        env::mark("read.changed_lane");
        let bytes = cost::of_read_answer(scan.reads(), &self.settings.limits);
        match job.guest.answers(ReadClass::Scan).take_now(bytes) {
            Some(room) => {
                let mut job = ScanJob::waiting(job, room);
                job.progress = Progress::Begun(scan);
                Done::ChangesLane(job)
            }
            None => {
                let reads = scan.into_reads();
                wants(ReadClass::Scan, ReadJob { reads, ..job }, bytes)
            }
        }
    }
}

fn wants(class: ReadClass, job: ReadJob, bytes: usize) -> Done {
    env::mark("read.has_no_room");
    Done::WantsRoom(WantsRoom { class, job, bytes })
}

impl Owner for Points {
    type Job = Vec<PointJob>;
    type Effects = Vec<Done>;

    fn work(&mut self, batch: &mut Vec<Vec<PointJob>>) -> Vec<Done> {
        self.next.extend(batch.drain(..).flatten());
        if let Some(failure) = self.service.is_over() {
            return self.refuse_all(&failure);
        }
        let view = match self.reader.view() {
            Ok(view) => view,
            Err(fault) => {
                let failure = Failure::Stopped(fault.to_string());
                self.service.faults().raise(fault);
                return self.refuse_all(&failure);
            }
        };
        let now = env::now();
        let mut done = Vec::with_capacity(BATCH.min(self.next.len()));
        while done.len() < BATCH
            && let Some(point) = self.next.pop_front()
        {
            let ReadJob { reply, end, .. } = &point.job;
            if !reply.is_wanted() {
                continue;
            }
            done.push(match end.is_over(now) {
                Some(failure) => Done::Answered(point.job.reply, Response::Failed(failure)),
                None => self.read(&view, point),
            });
        }
        done
    }

    fn publish(&mut self, done: Vec<Done>) {
        for done in done {
            done.publish(&self.scans, &self.waiting);
        }
    }

    fn is_idle(&self) -> bool {
        self.next.is_empty()
    }
}
