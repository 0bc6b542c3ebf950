//! The two lanes, worked by hand: what one call of their threads does, and what is left then.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;

use super::{World, key, until};
use crate::env::{self, Owner, OwnerHandle, mpsc, oneshot};
use crate::fault::{Fault, Faults};
use crate::machine::{ReadBudget, ReadClass};
use crate::model::{Consistency, KeyRange, Op, RangeRead, ReadOp, ReadResult, Revision, Txn};
use crate::node::lanes::{
    Done, End, PointJob, Points, READS_MAX, ReadJob, ScanJob, Scans, Waiting, WantsRoom,
};
use crate::node::reply::{Outgoing, ReplyTo};
use crate::node::room::{Guest, Held};
use crate::node::service::Service;
use crate::node::{Node, Settings};
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
        guest: Arc::new(Guest::alone(guest, 256 << 20)),
        end,
        reply,
    };
    let room = job
        .guest
        .answers(ReadClass::Scan)
        .take_now(1)
        .expect("there is room");
    (ScanJob::waiting(job, room), answer)
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
    client.commit(Txn::new(deletes)).await.expect("they are deleted");
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
    client.commit(Txn::new(deletes)).await.expect("they are deleted");
    let read = ReadOp::Range(RangeRead::new(KeyRange::all()).limit(1));
    let response = client
        .read(vec![read])
        .consistency(Consistency::Linearizable)
        .await;
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
                .read(vec![count(KeyRange::all())])
                .consistency(Consistency::Linearizable)
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
            let response = client
                .read(reads)
                .consistency(Consistency::Linearizable)
                .await
                .expect("both");
            assert!(
                matches!(&response.results[..], [ReadResult::Get(Some(_)), ReadResult::Range { count, .. }] if *count == FULL)
            );
        }
    };
    tokio::join!(counting, getting, mixed);
    world.node.shutdown().await;
}

/// A lane of point reads that the test works, and what leaves it.
struct Fast {
    world: World,
    points: Points,
    guest: Arc<Guest>,
    wants: mpsc::Receiver<WantsRoom>,
    _scans: OwnerHandle<ScanJob>,
}

/// Of a stream's room for answers to point reads.
const SHARE: usize = 128 << 10;

/// Keeps what it is sent.
struct Keeps<J>(mpsc::UnboundedSender<J>);

impl<J: Send + 'static> Owner for Keeps<J> {
    type Job = J;
    type Effects = ();

    fn work(&mut self, batch: &mut Vec<J>) {
        batch.drain(..).for_each(|job| drop(self.0.send(job)));
    }

    fn publish(&mut self, (): ()) {}
}

fn keeps<J: Send + 'static>(name: &'static str) -> (OwnerHandle<J>, mpsc::UnboundedReceiver<J>) {
    let (tx, kept) = mpsc::unbounded_channel();
    (env::spawn_owner(name, 1_000, 1_000, Keeps(tx), |_| {}), kept)
}

/// With 32 times a stream's share for all answers.
const NARROW: u64 = 32 * SHARE as u64;

impl Fast {
    /// Over so many keys with values of so many bytes.
    async fn start(keys: u64, value: usize) -> Self {
        let world = World::start(|_| {}).await;
        world.fill(keys, value).await;
        let service = Service::new(Faults::default(), CancellationToken::new());
        let reader = world.node.inner.raft.machine().reader().clone();
        let (scans, _kept) = keeps("scans");
        let (waiting, wants) = mpsc::channel(1_000);
        Self {
            points: Points::new(
                reader,
                Arc::new(Settings::default()),
                service,
                scans.clone(),
                waiting,
            ),
            guest: Arc::new(Guest::alone(0, NARROW)),
            world,
            wants,
            _scans: scans,
        }
    }

    fn get(&self, number: u64) -> (ReadJob, oneshot::Receiver<Response>) {
        let (reply, answer) = ReplyTo::local();
        let job = ReadJob {
            reads: vec![ReadOp::Get(key(number))],
            at: None,
            guest: Arc::clone(&self.guest),
            end: in_an_hour(),
            reply,
        };
        (job, answer)
    }

    /// Gives a job this much room, and works until nothing is left.
    fn work(&mut self, job: ReadJob, bytes: usize) {
        let room = self.guest.answers(ReadClass::Point).take_now(bytes);
        let room = room.expect("there is room for a small answer");
        let mut batch = vec![vec![PointJob { job, room }]];
        while !batch.is_empty() || !self.points.is_idle() {
            let done: Vec<Done> = self.points.work(&mut batch);
            self.points.publish(done);
        }
    }
}

fn is_whole(answer: &mut oneshot::Receiver<Response>, value: usize) -> bool {
    match answer.try_recv() {
        Ok(Response::Read(response)) => {
            matches!(&response.results[..], [ReadResult::Get(Some(record))] if record.value.len() == value)
        }
        _ => false,
    }
}

/// The story: a get took room for the largest value that there may be, and of 64 callers over one connection seven were
/// served at a time: reads had half their former rate.
#[tokio::test]
async fn a_small_answer_takes_little_room_however_large_it_might_have_been() {
    let mut fast = Fast::start(100, 100).await;
    let mut answers = Vec::new();
    for number in 0..100 {
        let (job, answer) = fast.get(number);
        fast.work(job, 1_024);
        answers.push(answer);
    }
    assert!(answers.iter_mut().all(|answer| is_whole(answer, 100)));
    assert!(fast.wants.try_recv().is_err(), "none waits");
    fast.world.node.shutdown().await;
}

#[tokio::test]
async fn an_answer_for_which_there_is_no_room_is_made_again_once_there_is() {
    const VALUE: usize = 100 << 10;
    let mut fast = Fast::start(2, VALUE).await;
    // Another answer on the same stream, that has not left.
    let other = fast.guest.answers(ReadClass::Point).take_now(SHARE / 2);
    assert!(other.is_some());
    let (job, mut answer) = fast.get(0);
    fast.work(job, 1_024);
    assert!(answer.try_recv().is_err());
    let wants = fast.wants.try_recv().expect("it waits for room");
    assert!((VALUE..VALUE + 1_024).contains(&wants.bytes), "{}", wants.bytes);
    let all_else = fast.guest.answers(ReadClass::Point).take_now(SHARE / 2);
    assert!(all_else.is_some(), "it holds nothing while it waits");
    drop((other, all_else));
    fast.work(wants.job, wants.bytes);
    assert!(is_whole(&mut answer, VALUE));
    fast.world.node.shutdown().await;
}

/// Else it would wait for room that there never is.
#[tokio::test]
async fn an_answer_larger_than_all_the_room_takes_all_of_it_and_is_given() {
    const VALUE: usize = 1 << 20;
    let mut fast = Fast::start(1, VALUE - 1_024).await;
    let (job, mut answer) = fast.get(0);
    fast.work(job, 1_024);
    let wants = fast.wants.try_recv().expect("it waits for room");
    assert!(wants.bytes > SHARE);
    fast.work(wants.job, wants.bytes);
    assert!(is_whole(&mut answer, VALUE - 1_024));
    fast.world.node.shutdown().await;
}

/// Those who wait for room, and the lanes to which they go.
struct Waits {
    wants: mpsc::Sender<WantsRoom>,
    guest: Arc<Guest>,
    points: mpsc::UnboundedReceiver<Vec<PointJob>>,
    scans: mpsc::UnboundedReceiver<ScanJob>,
    stop: CancellationToken,
    _lanes: (OwnerHandle<Vec<PointJob>>, OwnerHandle<ScanJob>),
}

impl Waits {
    fn start() -> Self {
        let stop = CancellationToken::new();
        let service = Service::new(Faults::default(), stop.clone());
        let (wants, receiver) = mpsc::channel(1_000);
        let (to_points, points) = keeps("points");
        let (to_scans, scans) = keeps("scans");
        let waiting = Waiting::new(receiver, to_points.downgrade(), to_scans.downgrade(), service);
        env::spawn("waiting", waiting.run());
        Self {
            wants,
            guest: Arc::new(Guest::alone(0, NARROW)),
            points,
            scans,
            stop,
            _lanes: (to_points, to_scans),
        }
    }

    /// All the room that there is for answers to point reads.
    fn all(&self) -> Held {
        let all = self.guest.answers(ReadClass::Point).take_now(SHARE);
        all.expect("nobody holds any")
    }

    async fn wait(&self, class: ReadClass, bytes: usize, end: End) -> oneshot::Receiver<Response> {
        let (reply, answer) = ReplyTo::local();
        self.wait_with(reply, class, bytes, end).await;
        answer
    }

    async fn wait_with(&self, reply: ReplyTo, class: ReadClass, bytes: usize, end: End) {
        let job = ReadJob {
            reads: vec![ReadOp::Get(key(0))],
            at: None,
            guest: Arc::clone(&self.guest),
            end,
            reply,
        };
        let sent = self.wants.send(WantsRoom { class, job, bytes }).await;
        assert!(sent.is_ok());
    }
}

#[tokio::test]
async fn who_waits_for_room_comes_to_its_lane_with_it_in_its_turn() {
    let mut waits = Waits::start();
    let all = waits.all();
    let _first = waits.wait(ReadClass::Point, 1_000, in_an_hour()).await;
    let _second = waits.wait(ReadClass::Point, 2_000, in_an_hour()).await;
    // Of the other kind there is enough.
    let _scan = waits.wait(ReadClass::Scan, 3_000, in_an_hour()).await;
    assert_eq!(waits.scans.recv().await.map(|job| job.room.bytes()), Some(3_000));
    assert!(waits.points.try_recv().is_err());
    drop(all);
    for expected in [1_000, 2_000] {
        let jobs = waits.points.recv().await.expect("its turn comes");
        assert_eq!(jobs[0].room.bytes(), expected);
    }
}

#[tokio::test]
async fn who_waits_for_room_in_vain_is_told_so_when_its_time_is_over() {
    let mut waits = Waits::start();
    let _all = waits.all();
    let limit = Duration::from_millis(20);
    let soon = |limit| End {
        at: env::now() + Duration::from_millis(20),
        limit,
    };
    let own = waits.wait(ReadClass::Point, 1_000, soon(None)).await;
    let nodes = waits.wait(ReadClass::Point, 1_000, soon(Some(limit))).await;
    let patient = waits.wait(ReadClass::Point, 1_000, in_an_hour()).await;
    let own = own.await.expect("an answer");
    assert!(matches!(own, Response::Failed(Failure::Busy(_))), "{own:?}");
    let nodes = nodes.await.expect("an answer");
    assert!(
        matches!(nodes, Response::Failed(Failure::ReadTooLong { .. })),
        "{nodes:?}"
    );
    waits.stop.cancel();
    let patient = patient.await.expect("an answer");
    assert!(
        matches!(patient, Response::Failed(Failure::Stopped(_))),
        "{patient:?}"
    );
    let late = waits.wait(ReadClass::Point, 1_000, in_an_hour()).await;
    let late = late.await.expect("an answer");
    assert!(matches!(late, Response::Failed(Failure::Stopped(_))), "{late:?}");
    assert!(waits.points.try_recv().is_err());
}

/// It may have waited for its state before, and heard nothing.
#[tokio::test]
async fn who_waits_for_room_hears_at_once_that_it_waits_and_goes_on_hearing_it() {
    let waits = Waits::start();
    let _all = waits.all();
    let asks = async |end| {
        let (replies, outgoing) = mpsc::channel(100);
        let reply = ReplyTo::stream(7, replies, None);
        waits.wait_with(reply, ReadClass::Point, 1_000, end).await;
        outgoing
    };
    let is_sign =
        |told: Option<Outgoing>| matches!(told.expect("it is told").reply.response, Response::Working);
    let mut patient = asks(in_an_hour()).await;
    assert!(is_sign(patient.recv().await) && is_sign(patient.recv().await));
    // When those who wait are looked at, its time is over: the one sign that it hears came before.
    let soon = End {
        at: env::now(),
        limit: None,
    };
    let mut hasty = asks(soon).await;
    assert!(is_sign(hasty.recv().await) && !is_sign(hasty.recv().await));
}

#[tokio::test]
async fn one_more_read_than_may_wait_for_room_is_refused_and_the_others_wait_on() {
    let waits = Waits::start();
    let _all = waits.all();
    let mut answers = Vec::new();
    for _ in 0..READS_MAX {
        answers.push(waits.wait(ReadClass::Point, 1, in_an_hour()).await);
    }
    let refused = waits.wait(ReadClass::Point, 1, in_an_hour()).await;
    let refused = refused.await.expect("an answer");
    assert!(
        matches!(refused, Response::Failed(Failure::Busy(_))),
        "{refused:?}"
    );
    assert!(answers.iter_mut().all(|answer| answer.try_recv().is_err()));
}

const STALE: Consistency = Consistency::Stale {
    min_revision: None,
    max_lag: None,
};

/// A node alone, whose state is in its file and, of the keys, not in memory: it was started with them.
async fn started_with_keys(dir: &std::path::Path) -> Node {
    let start = || Node::builder().data_dir(dir).start();
    let node = start().await.expect("it starts");
    let puts = (0..10).map(|number| Op::put(key(number), "value"));
    node.client()
        .commit(Txn::new(puts))
        .await
        .expect("they are written");
    assert!(node.shutdown().await.closed);
    start().await.expect("it starts again")
}

/// The story: the way to the reading thread and back took a stale get sixteen times as long as the get.
#[tokio::test]
async fn a_get_is_answered_at_its_first_look_once_memory_has_the_record_and_by_the_thread_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = started_with_keys(dir.path()).await;
    let client = node.client();
    let look = |number| client.get(key(number)).consistency(STALE).now_or_never();
    // Whether the thread is needed: it may be quick.
    let is_in_memory = |numbers: &[u64]| {
        let gets: Vec<ReadOp> = numbers.iter().map(|number| ReadOp::Get(key(*number))).collect();
        let view = node.inner.front.raft.machine().reader().view().expect("a view");
        view.recall(&gets, None, ReadBudget::UNLIMITED).is_some()
    };
    assert!(!is_in_memory(&[0]));
    drop(look(0));
    // Who gave up left nothing behind.
    until("no answer holds room", || node.inner.front.held() == (0, 0, 0)).await;
    assert!(!is_in_memory(&[1]));
    let by_the_thread = client.get(key(1)).consistency(STALE).await.expect("it is read");
    let at_once = look(1).expect("it is there").expect("it is read");
    assert!(at_once.is_some());
    assert_eq!(at_once, by_the_thread);
    // Also what does not exist, and of a batch all or nothing.
    assert!(!is_in_memory(&[99]));
    assert_eq!(
        client.get(key(99)).consistency(STALE).await.expect("it is read"),
        None
    );
    assert_eq!(look(99).expect("that is known").expect("it is read"), None);
    let gets = [1, 99].map(|number| ReadOp::Get(key(number)));
    assert!(
        client
            .read(gets.to_vec())
            .consistency(STALE)
            .now_or_never()
            .is_some()
    );
    assert!(!is_in_memory(&[1, 99, 2]));
    // What is written is in memory from then on.
    client.put(key(3), "another").await.expect("it is written");
    let at_once = look(3)
        .expect("it is there")
        .expect("it is read")
        .expect("a record");
    assert_eq!(at_once.value, "another");
    // It is answered on the way that others take where no call has time, or answers have no room.
    let no_time = client.with_deadline(Duration::ZERO);
    assert!(no_time.get(key(3)).consistency(STALE).await.is_err());
    node.shutdown().await;
    let refused = client.with_deadline(Duration::from_millis(10));
    assert!(
        refused.get(key(3)).consistency(STALE).await.is_err(),
        "it does not serve any more"
    );
}

#[tokio::test]
async fn a_get_is_answered_at_once_only_where_answers_have_room() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = started_with_keys(dir.path()).await;
    let client = node.client();
    client.get(key(0)).consistency(STALE).await.expect("it is read");
    let look = || client.get(key(0)).consistency(STALE).now_or_never();
    assert!(look().is_some());
    let all = node.inner.front.all_room_for_points().await;
    assert!(look().is_none(), "others wait for room");
    drop(all);
    assert!(look().is_some());
    node.shutdown().await;
}

/// Each runs a round of its own where nobody else waits, and others gather behind it.
#[tokio::test]
async fn a_reader_that_gives_up_its_own_round_holds_up_nobody() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = started_with_keys(dir.path()).await;
    let raft = &node.inner.raft;
    for _ in 0..20 {
        assert!(raft.read_index().now_or_never().is_none(), "Raft's core is asked");
        let mut given_up = Box::pin(raft.read_index());
        assert!(futures_util::poll!(&mut given_up).is_pending());
        let behind = (0..5).map(|_| raft.read_index());
        let behind = futures_util::future::join_all(behind);
        let (confirmed, ()) = tokio::join!(behind, async { drop(given_up) });
        for index in confirmed {
            assert!(index.expect("it leads").is_some());
        }
    }
    node.shutdown().await;
}
