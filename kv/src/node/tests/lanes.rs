//! The two lanes, worked by hand: what one call of their threads does, and what is left then.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{World, key};
use crate::env::{self, Owner, oneshot};
use crate::fault::{Fault, Faults};
use crate::model::{Consistency, KeyRange, Op, RangeRead, ReadOp, ReadResult, Revision, Txn};
use crate::node::lanes::{End, ReadJob, ScanJob, Scans};
use crate::node::reply::ReplyTo;
use crate::node::room::GuestNumber;
use crate::node::service::Service;
use crate::protocol::{Failure, Response};

const FULL: u64 = 20_000;

/// A lane of scans that the test works.
struct Lane {
    world: World,
    scans: Scans,
    faults: Faults,
    stop: CancellationToken,
}

impl Lane {
    async fn start() -> Self {
        let world = World::start(|_| {}).await;
        world.fill(FULL, 10).await;
        let (faults, stop) = (Faults::default(), CancellationToken::new());
        let service = Service::new(faults.clone(), stop.clone());
        let reader = world.node.inner.raft.machine().reader().clone();
        Self {
            scans: Scans::new(reader, service),
            world,
            faults,
            stop,
        }
    }

    /// One call of the thread, with these jobs.
    fn work(&mut self, jobs: Vec<ScanJob>) {
        let mut jobs = jobs;
        let effects = self.scans.work(&mut jobs);
        assert!(jobs.is_empty(), "every job is taken");
        self.scans.publish(effects);
    }
}

fn in_an_hour() -> End {
    End {
        at: env::now() + Duration::from_secs(3600),
        limit: None,
    }
}

fn job(guest: u64, read: ReadOp, end: End) -> (ScanJob, oneshot::Receiver<Response>) {
    let (reply, answer) = ReplyTo::local();
    let job = ReadJob {
        reads: vec![read],
        at: None,
        guest: GuestNumber::new(guest),
        end,
        reply,
    };
    (ScanJob::waiting(job), answer)
}

fn count(range: KeyRange) -> ReadOp {
    ReadOp::Range(RangeRead {
        count_only: true,
        ..RangeRead::new(range)
    })
}

fn counted(answer: Response) -> u64 {
    match answer {
        Response::Read(response) => match &response.results[..] {
            [ReadResult::Range { count, .. }] => *count,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// The story: one count over millions of keys stopped every read of its node for ten seconds.
#[tokio::test]
async fn scans_take_turns_slice_by_slice_and_a_short_one_does_not_wait_for_a_long_one() {
    let mut lane = Lane::start().await;
    let (long, mut long_answer) = job(0, count(KeyRange::all()), in_an_hour());
    let some = KeyRange::new(key(0).into_bytes(), key(100).into_bytes());
    let (short, mut short_answer) = job(1, count(some), in_an_hour());
    lane.work(vec![long]);
    assert!(!lane.scans.is_idle(), "one slice is not all of it");
    // The next turn may still be the first one's: then it is the other's.
    lane.work(vec![short]);
    lane.work(vec![]);
    assert_eq!(short_answer.try_recv().map(counted), Ok(100));
    assert!(long_answer.try_recv().is_err());
    let mut slices = 3;
    while !lane.scans.is_idle() {
        lane.work(vec![]);
        slices += 1;
    }
    assert_eq!(long_answer.try_recv().map(counted), Ok(FULL));
    assert!(
        (5..10).contains(&slices),
        "{FULL} keys were counted in {slices} slices"
    );
    lane.world.node.shutdown().await;
}

#[tokio::test]
async fn one_guest_with_many_scans_has_no_more_turns_than_one_with_a_single_one() {
    let mut lane = Lane::start().await;
    let mut many = Vec::new();
    let mut jobs = Vec::new();
    for _ in 0..50 {
        let (job, answer) = job(0, count(KeyRange::all()), in_an_hour());
        jobs.push(job);
        many.push(answer);
    }
    let (single, mut answer) = job(1, count(KeyRange::all()), in_an_hour());
    jobs.push(single);
    lane.work(jobs);
    let mut calls = 1;
    while answer.try_recv().is_err() {
        lane.work(vec![]);
        calls += 1;
    }
    assert!(calls <= 14, "its 5 slices took {calls} turns");
    lane.world.node.shutdown().await;
}

#[tokio::test]
async fn a_scan_is_of_one_revision_however_much_is_written_meanwhile() {
    let mut lane = Lane::start().await;
    let (scan, mut answer) = job(0, count(KeyRange::all()), in_an_hour());
    lane.work(vec![scan]);
    let client = lane.world.node.client();
    let deletes = (FULL - 100..FULL).map(|number| Op::delete(key(number)));
    client.txn(Txn::new(deletes)).await.expect("they are deleted");
    while !lane.scans.is_idle() {
        lane.work(vec![]);
    }
    assert_eq!(answer.try_recv().map(counted), Ok(FULL));
    lane.world.node.shutdown().await;
}

#[tokio::test]
async fn a_scan_that_nobody_waits_for_is_not_gone_on_with() {
    let mut lane = Lane::start().await;
    let (scan, answer) = job(0, count(KeyRange::all()), in_an_hour());
    lane.work(vec![scan]);
    assert!(!lane.scans.is_idle());
    drop(answer);
    lane.work(vec![]);
    assert!(lane.scans.is_idle());
    lane.world.node.shutdown().await;
}

#[tokio::test]
async fn a_scan_whose_time_is_over_is_given_up_and_says_whose_time_it_was() {
    let mut lane = Lane::start().await;
    let limit = Duration::from_secs(60);
    for (limit, expected) in [
        (Some(limit), Failure::ReadTooLong { limit }),
        (
            None,
            Failure::Busy("the read's time was over before it was answered".to_owned()),
        ),
    ] {
        let end = End {
            at: env::now(),
            limit,
        };
        let (scan, mut answer) = job(0, count(KeyRange::all()), end);
        lane.work(vec![scan]);
        let Ok(Response::Failed(failure)) = answer.try_recv() else {
            panic!("it is answered at once");
        };
        assert_eq!(failure, expected);
        assert!(lane.scans.is_idle());
    }
    lane.world.node.shutdown().await;
}

#[tokio::test]
async fn a_fault_or_a_stop_ends_every_scan_at_once() {
    for stops in [false, true] {
        let mut lane = Lane::start().await;
        let mut answers = Vec::new();
        let mut jobs = Vec::new();
        for guest in 0..3 {
            let (job, answer) = job(guest, count(KeyRange::all()), in_an_hour());
            jobs.push(job);
            answers.push(answer);
        }
        lane.work(jobs);
        if stops {
            lane.stop.cancel();
        } else {
            lane.faults.raise(Fault::Stopped { owner: "test" });
        }
        lane.work(vec![]);
        for mut answer in answers {
            let answer = answer.try_recv().expect("it is answered");
            assert!(
                matches!(answer, Response::Failed(Failure::Stopped(_))),
                "{answer:?}"
            );
        }
        assert!(lane.scans.is_idle());
        lane.world.node.shutdown().await;
    }
}

#[tokio::test]
async fn a_read_that_is_longer_than_it_looked_changes_the_lane_and_is_answered_whole() {
    let world = World::start(|_| {}).await;
    // Many deleted keys in front of the one that is there: a range of one key looks at them all.
    world.fill(5_000, 10).await;
    let client = world.node.client();
    let deletes = (0..4_999).map(|number| Op::delete(key(number)));
    client.txn(Txn::new(deletes)).await.expect("they are deleted");
    let read = ReadOp::Range(RangeRead::new(KeyRange::all()).limit(1));
    let response = client.read(vec![read], Consistency::Linearizable).await;
    let response = response.expect("it is answered");
    assert_eq!(response.revision, Revision::new(3));
    let ReadResult::Range { records, more, .. } = &response.results[0] else {
        panic!("{response:?}");
    };
    assert_eq!(records[0].key, key(4_999));
    assert!(!more);
    world.node.shutdown().await;
}

#[tokio::test]
async fn gets_and_counts_beside_each_other_are_all_answered_right() {
    let world = World::start(|_| {}).await;
    world.fill(FULL, 10).await;
    let client = world.client("caller");
    let counting = async {
        for _ in 0..20 {
            let response = client
                .read(vec![count(KeyRange::all())], Consistency::Linearizable)
                .await
                .expect("it is counted");
            assert_eq!(counted(Response::Read(response)), FULL);
        }
    };
    let getting = async {
        for number in 0..500 {
            let record = client.get(key(number)).await.expect("it is read");
            assert!(record.is_some());
        }
    };
    // A get beside a count is no point read, and sees the same revision.
    let mixed = async {
        for number in 0..20 {
            let reads = vec![ReadOp::Get(key(number)), count(KeyRange::all())];
            let response = client.read(reads, Consistency::Linearizable).await.expect("both");
            assert!(
                matches!(&response.results[..], [ReadResult::Get(Some(_)), ReadResult::Range { count, .. }] if *count == FULL)
            );
        }
    };
    tokio::join!(counting, getting, mixed);
    world.node.shutdown().await;
}
