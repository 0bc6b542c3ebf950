//! Commands that wait to be proposed: their room, their time, and their end.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{PATIENCE, World};
use crate::env::{self, mpsc, oneshot};
use crate::fault::{Fault, Faults};
use crate::model::{Command, Key, Op, Txn};
use crate::node::proposer::{Proposals, Proposer, Write};
use crate::node::reply::ReplyTo;
use crate::node::service::Service;
use crate::protocol::{Failure, Response};

/// A desk behind which nobody works until the test says so.
struct Desk {
    world: World,
    proposals: Proposals,
    proposer: Option<Proposer>,
    faults: Faults,
    stop: CancellationToken,
}

const ROOM: usize = 1_000;

impl Desk {
    async fn open() -> Self {
        let world = World::start(|_| {}).await;
        let (faults, stop) = (Faults::default(), CancellationToken::new());
        let service = Service::new(faults.clone(), stop.clone());
        let raft = std::sync::Arc::clone(&world.node.inner.raft);
        let (proposals, proposer) = Proposals::open(raft, ROOM as u64, 4, service);
        Self {
            world,
            proposals,
            proposer: Some(proposer),
            faults,
            stop,
        }
    }

    /// Hands a command of this size in, within so long.
    fn send(&self, size: usize, within: Duration) -> oneshot::Receiver<Response> {
        let (reply, answer) = ReplyTo::local();
        let proposals = self.proposals.clone();
        let until = env::now() + within;
        env::spawn("caller", async move {
            proposals.send(put(size), reply, until).await;
        });
        answer
    }

    fn work(&mut self) {
        env::spawn(
            "proposer",
            self.proposer.take().expect("it does not run yet").run(),
        );
    }
}

fn put(size: usize) -> Write {
    let key = Key::from("k");
    let command = Command::Txn {
        session: None,
        txn: Txn::new([Op::put(key, "v")]),
    };
    Write {
        command,
        size,
        full_at: None,
    }
}

const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn what_finds_no_room_waits_for_it_and_goes_its_way_then() {
    let mut desk = Desk::open().await;
    let answers: Vec<_> = (0..5).map(|_| desk.send(ROOM, LONG)).collect();
    desk.work();
    for answer in answers {
        let answer = answer.await.expect("an answer");
        assert!(matches!(answer, Response::Written(_)), "{answer:?}");
    }
    desk.world.node.shutdown().await;
}

#[tokio::test]
async fn what_finds_no_room_in_time_is_told_that_nothing_was_proposed() {
    let desk = Desk::open().await;
    let first = desk.send(ROOM, LONG);
    let second = desk.send(1, Duration::from_millis(50));
    let answer = second.await.expect("an answer");
    assert!(matches!(answer, Response::Failed(Failure::Busy(_))), "{answer:?}");
    drop(first);
    desk.world.node.shutdown().await;
}

#[tokio::test]
async fn what_waits_for_room_hears_that_it_is_not_forgotten() {
    let desk = Desk::open().await;
    let _first = desk.send(ROOM, LONG);
    let (replies, mut outgoing) = mpsc::channel(100);
    let (proposals, reply) = (desk.proposals.clone(), ReplyTo::stream(7, replies, None));
    env::spawn("caller", async move {
        proposals.send(put(1), reply, env::now() + LONG).await;
    });
    let sign = outgoing.recv().await.expect("a sign").reply;
    assert!(
        sign.id == 7 && matches!(sign.response, Response::Working),
        "{sign:?}"
    );
    desk.world.node.shutdown().await;
}

/// The story: whoever waited for room, or to be proposed, waited on for as long as Raft's core did not move.
#[tokio::test]
async fn after_a_fault_everything_that_waits_is_answered_at_once() {
    for stops in [false, true] {
        let mut desk = Desk::open().await;
        let (queued, waits) = (desk.send(ROOM, LONG), desk.send(ROOM, LONG));
        if stops {
            desk.stop.cancel();
        } else {
            desk.faults.raise(Fault::Stopped { owner: "test" });
        }
        desk.work();
        let late = desk.send(1, LONG);
        for answer in [queued, waits, late] {
            let answer = answer.await.expect("an answer");
            assert!(
                matches!(answer, Response::Failed(Failure::Stopped(_))),
                "{answer:?}"
            );
        }
        desk.world.node.shutdown().await;
    }
}

#[tokio::test]
async fn a_desk_that_stops_is_idle_when_all_that_was_proposed_is_answered() {
    let mut desk = Desk::open().await;
    let answers: Vec<_> = (0..100).map(|_| desk.send(1, LONG)).collect();
    desk.work();
    // Some are on their way, and some still wait.
    desk.stop.cancel();
    env::timeout(PATIENCE, desk.proposals.idle())
        .await
        .expect("it becomes idle");
    for answer in answers {
        let answer = answer.await.expect("an answer");
        assert!(
            matches!(
                answer,
                Response::Written(_) | Response::Failed(Failure::Stopped(_))
            ),
            "{answer:?}"
        );
    }
    desk.world.node.shutdown().await;
}
