//! Reads that wait for room for their answers: first come, first served, each of its kind.
//!
//! Always: who waits here holds no room for an answer, hears at once and every half second that it is not forgotten, and is
//! answered within half a second once its time is over, and at once when the node does not serve any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::{AbortHandle, Abortable, Aborted, BoxFuture};
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::jobs::{PointJob, ReadJob, ScanJob, refuse_points, refuse_scan, too_many};
use crate::env::{self, Instant, WeakOwnerHandle, mpsc};
use crate::machine::ReadClass;
use crate::node::reply::SIGN_INTERVAL;
use crate::node::room::Held;
use crate::node::service::Service;
use crate::protocol::{Failure, Response};

/// Reads that may wait; more are refused, and may be tried again.
pub(in crate::node) const READS_MAX: usize = 16 * 1024;

/// A read, and the room that its answer wants.
#[derive(Debug)]
pub(in crate::node) struct WantsRoom {
    pub(in crate::node) class: ReadClass,
    pub(in crate::node) job: ReadJob,
    pub(in crate::node) bytes: usize,
}

/// Those who wait, until the node ends.
pub(in crate::node) struct Waiting {
    wants: mpsc::Receiver<WantsRoom>,
    points: WeakOwnerHandle<Vec<PointJob>>,
    scans: WeakOwnerHandle<ScanJob>,
    service: Service,
    reads: BTreeMap<u64, (WantsRoom, AbortHandle)>,
    taking: FuturesUnordered<BoxFuture<'static, Result<(u64, Held), Aborted>>>,
    begun: u64,
}

impl Waiting {
    pub(in crate::node) fn new(
        wants: mpsc::Receiver<WantsRoom>,
        points: WeakOwnerHandle<Vec<PointJob>>,
        scans: WeakOwnerHandle<ScanJob>,
        service: Service,
    ) -> Self {
        Self {
            wants,
            points,
            scans,
            service,
            reads: BTreeMap::new(),
            taking: FuturesUnordered::new(),
            begun: 0,
        }
    }

    pub(in crate::node) async fn run(mut self) {
        let service = self.service.clone();
        let mut over = std::pin::pin!(service.over());
        let mut look_at = env::now() + SIGN_INTERVAL;
        loop {
            let nobody_waits = self.reads.is_empty();
            tokio::select! {
                biased;
                failure = &mut over => return self.refuse_all(&failure).await,
                Some(taken) = self.taking.next() => {
                    if let Ok((number, room)) = taken {
                        self.go_on(number, room);
                    }
                }
                wants = self.wants.recv() => match wants {
                    Some(wants) => {
                        if nobody_waits {
                            look_at = env::now() + SIGN_INTERVAL;
                        }
                        self.begin(wants);
                    }
                    None => return,
                },
                () = env::sleep_until(look_at), if !nobody_waits => {
                    let now = env::now();
                    look_at = now + SIGN_INTERVAL;
                    self.look_around(now);
                }
            }
            metrics::gauge!("quorate_reads_without_room").set(self.reads.len() as f64);
        }
    }

    fn begin(&mut self, wants: WantsRoom) {
        if self.reads.len() >= READS_MAX {
            return wants.job.reply.send(too_many());
        }
        // It may have waited for its state before.
        wants.job.reply.is_worked_on();
        self.begun += 1;
        let (number, bytes, class) = (self.begun, wants.bytes, wants.class);
        let (abort, registration) = AbortHandle::new_pair();
        let guest = Arc::clone(&wants.job.guest);
        let taking = async move { (number, guest.answers(class).take(bytes).await) };
        self.taking.push(Box::pin(Abortable::new(taking, registration)));
        self.reads.insert(number, (wants, abort));
    }

    /// There is room for this one.
    fn go_on(&mut self, number: u64, room: Held) {
        let Some((WantsRoom { class, job, .. }, _)) = self.reads.remove(&number) else {
            return;
        };
        match class {
            ReadClass::Point => refuse_points(self.points.try_send(vec![PointJob { job, room }])),
            ReadClass::Scan => refuse_scan(self.scans.try_send(ScanJob::waiting(job, room))),
        }
    }

    /// Gives up those whose time is over or for whom nobody waits, and gives the others a sign of life.
    fn look_around(&mut self, now: Instant) {
        let gone = self.reads.extract_if(.., |_, (wants, _)| {
            let ReadJob { end, reply, .. } = &wants.job;
            let goes = end.is_over(now).is_some() || !reply.is_wanted();
            if !goes {
                reply.is_worked_on();
            }
            goes
        });
        for (_, (wants, taking)) in gone {
            taking.abort();
            let no_room = "the answers that wait here left no room for another in time";
            let failure = wants.job.end.failure(no_room);
            wants.job.reply.send(Response::Failed(failure));
        }
    }

    async fn refuse_all(mut self, failure: &Failure) {
        self.taking.clear();
        for (_, (wants, _)) in std::mem::take(&mut self.reads) {
            wants.job.reply.send(Response::Failed(failure.clone()));
        }
        metrics::gauge!("quorate_reads_without_room").set(0.0);
        while let Some(wants) = self.wants.recv().await {
            wants.job.reply.send(Response::Failed(failure.clone()));
        }
    }
}

/// Has a read wait for room, or refuses it where too many do.
pub(super) fn wait_for_room(waiting: &mpsc::Sender<WantsRoom>, wants: WantsRoom) {
    // Of one that ended nobody hears any more: what was in it says so by being dropped.
    if let Err(mpsc::error::TrySendError::Full(wants)) = waiting.try_send(wants) {
        wants.job.reply.send(too_many());
    }
}
