//! What a call says of its outcome, for every way in which its attempts can end.

use std::time::Duration;

use quorate_transport::Arrived;

use super::stub::{self, Stage};
use crate::client::endpoint::{CallError, Unanswered};
use crate::client::outcome::{Kind, Progress, Step};
use crate::client::{Error, SILENCE_MAX};
use crate::env;
use crate::model::{
    Command, Compacted, Key, LeaseId, NodeId, Op, Outcome, Place, ReadResponse, ReadResult, Revision,
    Sequence, SessionId, TooManyOf, Txn, TxnRefused, Work,
};
use crate::protocol::{Admin, Failure, Request, Response};

const DEADLINE: Duration = Duration::from_secs(1);
const CHANGE: Kind = Kind {
    changes: true,
    repeatable: true,
};
const READ: Kind = Kind {
    changes: false,
    repeatable: true,
};

/// What one attempt by itself says of the change that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    /// Nothing was changed by it.
    Nothing,
    /// It may have been, or may be yet.
    Maybe,
    /// It was carried out.
    Done,
}
use Says::{Done, Maybe, Nothing};

/// Every failure that a node can tell, and what each says; the compiler asks for a new one.
fn failures() -> Vec<(Failure, Says)> {
    let says = |failure: &Failure| match failure {
        Failure::NotLeader { .. }
        | Failure::NoQuorum
        | Failure::NotYet { .. }
        | Failure::Compacted { .. }
        | Failure::TooStale { .. }
        | Failure::Invalid(_)
        | Failure::Refused(_)
        | Failure::Stopped(_)
        | Failure::Busy(_)
        | Failure::ReadTooLong { .. }
        | Failure::NoSpace { .. }
        | Failure::DiskFull { .. }
        | Failure::MemberNotReady(_)
        | Failure::LedByAnother { .. } => Nothing,
        Failure::Unknown { .. } => Maybe,
        Failure::AnswerTooLarge { .. } => Done,
    };
    let leader = Some((NodeId::new(2), "two:1".to_owned()));
    let all = vec![
        Failure::NotLeader { leader: None },
        Failure::NotLeader {
            leader: leader.clone(),
        },
        Failure::NoQuorum,
        Failure::NotYet {
            asked: Revision::new(9),
            current: Revision::new(3),
        },
        Failure::Compacted {
            oldest: Revision::new(3),
        },
        Failure::TooStale { lag: None },
        Failure::Invalid("a limit".to_owned()),
        Failure::Refused("a reason".to_owned()),
        Failure::Stopped("a fault".to_owned()),
        Failure::Busy("no room".to_owned()),
        Failure::ReadTooLong { limit: DEADLINE },
        Failure::NoSpace {
            used: 9,
            limit: 8,
            wanted: 1,
        },
        Failure::DiskFull { used: 9, limit: 8 },
        Failure::MemberNotReady("start it".to_owned()),
        Failure::LedByAnother {
            asked: NodeId::new(1),
            leader: NodeId::new(2),
        },
        Failure::Unknown {
            leader,
            reason: "leadership was lost".to_owned(),
        },
        Failure::unknown("the node stopped"),
        Failure::AnswerTooLarge { size: 9, limit: 8 },
    ];
    all.into_iter()
        .map(|failure| {
            let says = says(&failure);
            (failure, says)
        })
        .collect()
}

fn silences() -> Vec<(CallError, Says)> {
    let error = |sent, why| CallError {
        sent,
        why,
        reason: format!("one:1: {why:?}"),
    };
    vec![
        (error(false, Unanswered::Unreachable), Nothing),
        (error(false, Unanswered::NotAdmitted), Nothing),
        (error(false, Unanswered::TooLarge), Nothing),
        (error(false, Unanswered::Broken), Nothing),
        (error(false, Unanswered::Late), Nothing),
        (error(true, Unanswered::Broken), Maybe),
        (error(true, Unanswered::Late), Maybe),
    ]
}

/// Every refusal of the state machine, and whether it is what every attempt of the write gets.
fn refusals() -> Vec<(TxnRefused, bool)> {
    let key = || Key::from("k");
    let (session, sequence) = (SessionId::new(1), Sequence::FIRST);
    vec![
        (TxnRefused::KeyExists { op: 0, key: key() }, true),
        (
            TxnRefused::NotANumber {
                op: 0,
                key: key(),
                size: 3,
            },
            true,
        ),
        (
            TxnRefused::Overflow {
                op: 0,
                found: 1,
                delta: i64::MAX,
            },
            true,
        ),
        (TxnRefused::RangeTooLarge { op: 0, limit: 1 }, true),
        (
            TxnRefused::NoSuchLease {
                op: 0,
                lease: LeaseId::new(1),
            },
            true,
        ),
        (TxnRefused::ResponseTooLarge { op: 0, limit: 1 }, true),
        (
            TxnRefused::TooMuchWork {
                place: Place::Then(0),
                what: Work::KeysLookedAt,
                limit: 1,
            },
            true,
        ),
        (TxnRefused::AnswerTooLarge { size: 2, limit: 1 }, true),
        (
            TxnRefused::EntrySpent {
                what: Work::AnswerBytes,
            },
            false,
        ),
        (TxnRefused::SessionExpired { session }, false),
        (TxnRefused::SequenceForgotten { session, sequence }, false),
        (
            TxnRefused::TooMany {
                what: TooManyOf::UnansweredWrites,
                limit: 1,
            },
            false,
        ),
        (NO_SPACE, false),
    ]
}

const NO_SPACE: TxnRefused = TxnRefused::NoSpace {
    used: 9,
    limit: 10,
    wanted: 2,
};

type Attempt = Result<Response, CallError>;

/// Every way in which an attempt can fail.
fn attempts() -> Vec<(Attempt, Says)> {
    let failures = failures().into_iter();
    let failures = failures.map(|(failure, says)| (Ok(Response::Failed(failure)), says));
    let silences = silences().into_iter().map(|(error, says)| (Err(error), says));
    // It was proposed, and the state machine found no room for it.
    let refused = Ok(Response::Written(Outcome::Txn(Err(NO_SPACE))));
    failures.chain(silences).chain([(refused, Nothing)]).collect()
}

/// What a call ends with whose attempts fail so, one after the other, and whose time is over then. `None` where one of
/// them ended it earlier.
fn ends_with(kind: Kind, attempts: &[&Attempt]) -> Option<Error> {
    let mut progress = Progress::default();
    let (last, before) = attempts.split_last().expect("an attempt at least");
    for attempt in before {
        match progress.take(0, "one:1", kind, (*attempt).clone()) {
            Step::Again(_) => {}
            Step::Failed(_) | Step::Answered(_) => return None,
        }
    }
    match progress.take(0, "one:1", kind, (*last).clone()) {
        Step::Failed(error) => Some(error),
        Step::Again(_) => Some(progress.out_of_time(DEADLINE)),
        Step::Answered(response) => panic!("{response:?} is no failure"),
    }
}

#[test]
fn a_change_says_that_nothing_happened_only_when_no_attempt_can_have_taken_effect() {
    let all = attempts();
    for (first, says_first) in &all {
        let alone = ends_with(CHANGE, &[first]).expect("one attempt");
        assert_eq!(
            alone.may_have_committed(),
            *says_first != Nothing,
            "{first:?}: {alone}"
        );
        for (second, says_second) in &all {
            let Some(error) = ends_with(CHANGE, &[first, second]) else {
                continue;
            };
            let may = *says_first != Nothing || *says_second != Nothing;
            assert_eq!(
                error.may_have_committed(),
                may,
                "{first:?}, then {second:?}: {error}"
            );
            let unknown = may && *says_second != Done;
            assert_eq!(
                matches!(error, Error::OutcomeUnknown(_)),
                unknown,
                "{first:?}, then {second:?}: {error}"
            );
        }
    }
}

#[test]
fn a_refusal_for_want_of_room_says_what_the_state_machine_found() {
    let refused = Ok(Response::Written(Outcome::Txn(Err(NO_SPACE))));
    let expected = Error::NoSpace {
        used: 9,
        limit: 10,
        wanted: 2,
    };
    assert_eq!(ends_with(CHANGE, &[&refused]), Some(expected));
}

#[test]
fn a_read_never_says_that_something_may_have_happened() {
    for (attempt, says) in attempts() {
        if says != Done {
            let error = ends_with(READ, &[&attempt]).expect("one attempt");
            assert!(!error.may_have_committed(), "{attempt:?}: {error}");
        }
    }
}

#[test]
fn what_cannot_be_asked_twice_ends_with_the_first_attempt_that_may_have_taken_effect() {
    let once = Kind {
        changes: true,
        repeatable: false,
    };
    for (attempt, says) in attempts() {
        let mut progress = Progress::default();
        let step = progress.take(0, "one:1", once, attempt.clone());
        if says != Nothing {
            assert!(
                matches!(&step, Step::Failed(error) if error.may_have_committed()),
                "{attempt:?}: {step:?}"
            );
        }
    }
}

#[test]
fn a_refusal_is_certain_after_an_unknown_attempt_only_where_it_is_the_first_answer() {
    let lost = Err(CallError {
        sent: true,
        why: Unanswered::Broken,
        reason: "one:1: the connection broke".to_owned(),
    });
    for (refused, is_first_answer) in refusals() {
        let fresh = Progress::default().refused(refused.clone());
        assert_eq!(fresh, Error::Refused(refused.clone()));
        let mut progress = Progress::default();
        let step = progress.take(0, "one:1", CHANGE, lost.clone());
        assert!(matches!(step, Step::Again(_)), "{step:?}");
        let after = progress.refused(refused.clone());
        assert_eq!(after.may_have_committed(), !is_first_answer, "{refused}: {after}");
    }
}

#[test]
fn the_most_telling_setback_is_told_with_the_node_that_it_came_from() {
    let unreachable = |address: &str| {
        Err(CallError {
            sent: false,
            why: Unanswered::Unreachable,
            reason: format!("{address} cannot be reached"),
        })
    };
    let refused = Err(CallError {
        sent: false,
        why: Unanswered::NotAdmitted,
        reason: "two:1 was refused: unknown authority".to_owned(),
    });
    let mut progress = Progress::default();
    for (place, attempt) in [unreachable("one:1"), refused.clone(), unreachable("three:1")]
        .into_iter()
        .enumerate()
    {
        let step = progress.take(place, "a node", READ, attempt);
        assert!(matches!(step, Step::Again(_)), "{step:?}");
    }
    assert_eq!(progress.admitted_by_none(3), None, "two may still come back");
    let error = progress.out_of_time(DEADLINE).to_string();
    assert!(
        error.contains("two:1") && error.contains("unknown authority"),
        "{error}"
    );

    let mut progress = Progress::default();
    for place in 0..2 {
        progress.take(place, "a node", READ, refused.clone());
    }
    let error = progress.admitted_by_none(2).expect("nobody admits us");
    assert!(
        matches!(&error, Error::NotAdmitted { reason, .. } if reason.contains("two:1")),
        "{error}"
    );
    assert!(!error.is_retryable());
    assert_eq!(progress.admitted_by_none(3), None, "a third was not asked yet");
}

/// The story: the first attempt committed, its answer was lost, and the node that was asked next had a smaller limit:
/// "nothing was changed".
#[tokio::test]
async fn a_final_failure_after_a_lost_answer_is_an_unknown_outcome() {
    let stage = Stage::new();
    let mut node = stage.node(1, "one:1");
    let client = stage.client(&["one:1"]);
    let put = env::spawn("caller", async move { client.put("k", "v").await });
    let opened = stub::opened(SessionId::new(1));
    node.asked().await.answer(Response::Written(opened)).await;
    let first = node.asked().await;
    assert!(matches!(first.request, Request::Write(Command::Txn { .. })));
    stage.break_streams("one:1");
    let second = node.asked().await;
    assert!(
        matches!(
            second.request,
            Request::WriteAgain(Command::Txn { session: Some(_), .. })
        ),
        "a full store is not to refuse what may have happened"
    );
    let smaller = Failure::Invalid("the value has 1 byte, the limit is 0".to_owned());
    second.answer(Response::Failed(smaller)).await;
    let error = put.await.expect("no panic").expect_err("nobody knows");
    assert!(
        matches!(&error, Error::OutcomeUnknown(unknown) if unknown.reason.contains("the limit is 0")),
        "{error}"
    );
    drop(first);
}

/// The story: one of three nodes was down, `member add --deadline 3s` said "nothing was changed", and the node was a
/// member when the others came back.
#[tokio::test]
async fn a_membership_call_that_ran_out_of_time_is_an_unknown_outcome() {
    let stage = Stage::new();
    let mut node = stage.node(1, "one:1");
    let client = stage.client(&["one:1"]).with_deadline(Duration::from_millis(200));
    let added = env::spawn("caller", async move {
        client.add_learner(NodeId::new(4), "four:1").await
    });
    let asked = node.asked().await;
    assert!(matches!(asked.request, Request::Admin(Admin::AddLearner { .. })));
    let error = added.await.expect("no panic").expect_err("nobody answered");
    assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
    assert!(error.may_have_committed() && error.is_retryable());
}

#[tokio::test]
async fn a_call_that_reached_nobody_changed_nothing() {
    let stage = Stage::new();
    stage.node(1, "one:1").leave().await;
    let client = stage.client(&["one:1"]).with_deadline(Duration::from_millis(200));
    for error in [
        client.put("k", "v").await.expect_err("nobody is there"),
        client.remove(NodeId::new(4)).await.expect_err("nobody is there"),
    ] {
        assert!(
            matches!(&error, Error::Unavailable { last, .. } if last.contains("one:1")),
            "{error}"
        );
        assert_eq!(error.node(), Some("one:1"));
        assert!(!error.may_have_committed());
    }
}

/// An attempt whose answer was lost may come to the store when the revision has come too.
#[tokio::test]
async fn a_compaction_that_is_too_early_is_refused_unless_an_attempt_before_may_still_come() {
    let stage = Stage::new();
    let mut node = stage.node(1, "one:1");
    for is_lost in [false, true] {
        let client = stage.client(&["one:1"]);
        let revision = Revision::new(10);
        let asked = env::spawn("caller", async move { client.compact(revision).await });
        let mut lost = None;
        if is_lost {
            lost = Some(node.asked().await);
            stage.break_streams("one:1");
        }
        let last = node.asked().await;
        assert!(
            matches!(last.request, Request::Write(Command::Compact { revision: asked }) if asked == revision)
        );
        let too_early = Outcome::Compacted(Compacted {
            oldest: Revision::new(3),
            revision: Revision::new(9),
        });
        last.answer(Response::Written(too_early)).await;
        let error = asked.await.expect("no panic").expect_err("it has not come");
        assert_eq!(error.may_have_committed(), is_lost, "{error}");
        assert!(is_lost || matches!(error, Error::NotYet { .. }), "{error}");
        drop(lost);
    }
}

#[tokio::test]
async fn a_move_of_leadership_to_anyone_is_not_repeated_once_it_may_have_happened() {
    let stage = Stage::new();
    let mut node = stage.node(1, "one:1");
    let client = stage.client(&["one:1"]);
    let moved = env::spawn("caller", async move { client.move_leader(None).await });
    let first = node.asked().await;
    stage.break_streams("one:1");
    let error = moved.await.expect("no panic").expect_err("the answer was lost");
    assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
    assert_eq!(error.node(), Some("one:1"));
    assert!(node.asked_already().is_none(), "it was not asked again");
    drop(first);
}

/// The story: a certificate of another authority was reported as "try again", behind the last endpoint's error.
#[tokio::test]
async fn a_stranger_is_told_at_once_that_no_node_admits_it() {
    let stage = Stage::new();
    let _nodes = [stage.node(1, "one:1"), stage.node(2, "two:1")];
    let client = stage.stranger(&["one:1", "two:1"]);
    let error = client.put("k", "v").await.expect_err("it is of another cluster");
    assert!(matches!(&error, Error::NotAdmitted { .. }), "{error}");
    assert!(!error.is_retryable() && !error.may_have_committed());
}

#[tokio::test]
async fn a_read_at_a_revision_that_has_not_come_is_waited_for_within_the_deadline() {
    let stage = Stage::new();
    let mut node = stage.node(1, "one:1");
    let client = stage.client(&["one:1"]).with_deadline(Duration::from_millis(300));
    let (asked, current) = (Revision::new(9), Revision::new(3));
    let at = crate::model::Consistency::At(asked);
    let get = env::spawn("caller", async move { client.get("k").consistency(at).await });
    let refusing = env::spawn("caller", async move {
        loop {
            let failure = Failure::NotYet { asked, current };
            node.asked().await.answer(Response::Failed(failure)).await;
        }
    });
    let error = get.await.expect("no panic").expect_err("it did not come");
    refusing.abort();
    let node = Some("one:1".to_owned());
    let told = format!("revision {asked} has not come; node one:1 is at {current}");
    assert_eq!(
        (error.to_string(), error),
        (told, Error::NotYet { node, asked, current })
    );
}

/// Each sign of life counts once: a node that was cut off behind one would use up the whole deadline.
#[tokio::test]
async fn a_node_that_said_once_that_it_works_and_is_silent_then_is_left_for_another() {
    let stage = Stage::new();
    let (mut one, mut two) = (stage.node(1, "one:1"), stage.node(2, "two:1"));
    let client = stage.client(&["one:1", "two:1"]);
    let get = env::spawn("caller", async move { client.get("k").await });
    let (asked, other) = tokio::select! {
        asked = one.asked() => (asked, &mut two),
        asked = two.asked() => (asked, &mut one),
    };
    let since = env::now();
    asked.is_worked_on().await;
    let again = other.asked().await;
    let after = env::now().since(since);
    // Its sign gave it a second silence, and no third.
    let silences = SILENCE_MAX..3 * SILENCE_MAX;
    assert!(silences.contains(&after), "{after:?}");
    assert!(
        matches!(again.request, Request::Read { .. }),
        "{:?}",
        again.request
    );
    get.abort();
}

/// The story: an answer of 16 MiB on a way of 30 Mbit/s was given up after three seconds, asked for again, and never came.
#[tokio::test]
async fn a_long_answer_that_still_comes_is_waited_for() {
    let stage = Stage::new();
    let mut node = stage.node(1, "one:1");
    let arrived = Arrived::default();
    let client = stage.slow_client(&["one:1"], &arrived);
    let get = env::spawn("caller", {
        let client = client.clone();
        async move { client.get("k").await }
    });
    let asked = node.asked().await;
    for _ in 0..20 {
        env::sleep(SILENCE_MAX / 4).await;
        arrived.add(32 << 10);
    }
    asked
        .answer(Response::Read(ReadResponse {
            revision: Revision::new(1),
            results: vec![ReadResult::Get(None)],
        }))
        .await;
    assert_eq!(get.await.expect("no panic"), Ok(None));
    assert_eq!(client.retries(), 0);
}

/// What comes of a stream of short answers is no sign of life for a call that is not answered.
#[tokio::test]
async fn a_node_of_which_little_comes_is_left_for_another() {
    let stage = Stage::new();
    let (mut one, mut two) = (stage.node(1, "one:1"), stage.node(2, "two:1"));
    let arrived = Arrived::default();
    let client = stage.slow_client(&["one:1", "two:1"], &arrived);
    let since = env::now();
    let get = env::spawn("caller", async move { client.get("k").await });
    let (asked, other) = tokio::select! {
        asked = one.asked() => (asked, &mut two),
        asked = two.asked() => (asked, &mut one),
    };
    let trickle = env::spawn("trickle", async move {
        loop {
            env::sleep(SILENCE_MAX / 4).await;
            arrived.add(8 << 10);
        }
    });
    let _again = other.asked().await;
    let after = env::now().since(since);
    assert!((SILENCE_MAX..2 * SILENCE_MAX).contains(&after), "{after:?}");
    get.abort();
    trickle.abort();
    drop(asked);
}

/// A large request takes its time on the way, and is not sent again meanwhile.
#[tokio::test]
async fn a_large_write_is_given_the_time_to_be_sent() {
    let stage = Stage::new();
    let mut node = stage.node(1, "one:1");
    let client = stage.client(&["one:1"]);
    let put = env::spawn("caller", {
        let client = client.clone();
        async move {
            let puts = (0..8_u32).map(|n| Op::put(Key::from(format!("k{n}")), vec![0; 1 << 20]));
            client.commit(Txn::new(puts)).await
        }
    });
    let opening = node.asked().await;
    let id = SessionId::new(7);
    opening.answer(Response::Written(stub::opened(id))).await;
    let asked = node.asked().await;
    env::sleep(3 * SILENCE_MAX).await;
    assert!(node.asked_already().is_none(), "it was sent again");
    asked
        .answer(Response::Failed(Failure::Invalid("seen".to_owned())))
        .await;
    let error = put.await.expect("no panic").expect_err("it was refused");
    assert!(error.to_string().contains("seen"), "{error}");
    assert_eq!(client.retries(), 0);
}

/// The story: callers that gave up after a second asked a frozen node for as long as it was frozen, since the client itself waits
/// for two.
#[tokio::test]
async fn callers_that_give_up_early_leave_a_silent_node_too() {
    let stage = Stage::new();
    let (mut one, mut two) = (stage.node(1, "one:1"), stage.node(2, "two:1"));
    let client = stage.client(&["one:1", "two:1"]);
    let patience = SILENCE_MAX / 4;
    assert!(env::timeout(patience, client.get("k")).await.is_err());
    let (silent, other) = tokio::select! {
        asked = one.asked() => (asked, &mut two),
        asked = two.asked() => (asked, &mut one),
    };
    assert!(other.asked_already().is_none());
    assert!(env::timeout(patience, client.get("k")).await.is_err());
    assert!(matches!(other.asked().await.request, Request::Read { .. }));
    drop(silent);
}

/// The story: an operation on the metadata that lost races while nodes died gave each of its calls the whole deadline, and took
/// minutes.
#[tokio::test]
async fn the_calls_of_one_operation_have_one_deadline_together() {
    let stage = Stage::new();
    let _deaf = stage.node(1, "one:1");
    let client = stage
        .client(&["one:1"])
        .with_deadline(DEADLINE)
        .for_one_operation();
    let began = env::now();
    let ended = client.get("k").await;
    assert!(matches!(ended, Err(Error::Unavailable { .. })), "{ended:?}");
    for client in [client.clone(), client.for_one_operation()] {
        for _ in 0..5 {
            let ended = client.get("k").await;
            assert!(
                matches!(
                    ended,
                    Err(Error::Unavailable {
                        deadline: DEADLINE,
                        ..
                    })
                ),
                "{ended:?}"
            );
            let ended = client.put("k", "v").await;
            assert!(ended.is_err(), "{ended:?}");
        }
    }
    let took = began.elapsed();
    assert!(took >= DEADLINE && took < DEADLINE * 2, "{took:?} for 21 calls");
}

/// An operator with five nodes has to know which of them said it.
#[test]
fn an_error_that_one_node_caused_names_it_and_one_that_any_node_would_tell_names_none() {
    for (failure, _) in failures() {
        let mut progress = Progress::default();
        let kind = Kind {
            changes: true,
            repeatable: true,
        };
        let step = progress.take(0, "one:1", kind, Ok(Response::Failed(failure.clone())));
        let error = match step {
            Step::Failed(error) => error,
            Step::Again(_) => progress.out_of_time(DEADLINE),
            Step::Answered(answer) => panic!("{failure:?} is no answer: {answer:?}"),
        };
        let of_all = matches!(
            failure,
            Failure::Compacted { .. }
                | Failure::NoSpace { .. }
                | Failure::LedByAnother { .. }
                | Failure::AnswerTooLarge { .. }
        );
        assert_eq!(error.node().is_none(), of_all, "{failure:?}: {error:?}");
        assert!(of_all || error.node() == Some("one:1"), "{failure:?}: {error:?}");
    }
    let here = Error::TooStale {
        node: Some(super::super::endpoint::THIS_NODE.to_owned()),
        lag: None,
    };
    assert!(
        here.to_string().contains("the state of this node is new enough"),
        "{here}"
    );
}
