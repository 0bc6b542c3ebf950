//! Sessions: a write that is retried takes effect once.

use super::*;
use crate::model::{LimitsSet, Op, OpResult, Revision, Sequence, SessionId, SessionRef, TooManyOf, Work};

fn open_session(store: &mut Store, millis: u64, ttl_millis: u64) -> SessionId {
    let id = SessionId::new(u128::from(store.index) << 64);
    match store.one(millis, Command::OpenSession { id, ttl_millis }) {
        Outcome::SessionOpened(Ok(opened)) => opened.session,
        other => panic!("opening a session answered {other:?}"),
    }
}

/// An add of 1 to `n`, as the session's write of that number.
fn add(id: SessionId, sequence: u64, answered_below: u64) -> Command {
    Command::Txn {
        session: Some(SessionRef {
            id,
            sequence: Sequence::new(sequence),
            answered_below: Sequence::new(answered_below),
        }),
        txn: Txn::new([Op::Add {
            key: key("n"),
            delta: 1,
        }]),
    }
}

fn number(outcome: &Outcome) -> i64 {
    match outcome {
        Outcome::Txn(Ok(TxnResponse { results, .. })) => match results[..] {
            [OpResult::Number(number)] => number,
            ref other => panic!("an add answered {other:?}"),
        },
        other => panic!("an add answered {other:?}"),
    }
}

fn refusal(outcome: Outcome) -> TxnRefused {
    match outcome {
        Outcome::Txn(Err(refused)) => refused,
        other => panic!("a write that was to be refused answered {other:?}"),
    }
}

#[test]
fn a_retried_write_returns_the_first_answer() {
    let mut store = Store::new();
    let id = open_session(&mut store, 0, 1_000);
    let first = store.one(1, add(id, 1, 1));
    assert_eq!(number(&first), 1);
    store.one(2, add(id, 2, 1));
    assert_eq!(store.one(3, add(id, 1, 1)), first, "in a later entry");
    let both = store.apply(4, vec![add(id, 3, 1), add(id, 3, 1)]);
    assert_eq!(both[0], both[1], "in the same entry");
    assert_eq!(number(&both[0]), 3);
    assert_eq!(store.machine.applied().revision, Revision::new(4));
    store.verify();
}

#[test]
fn a_retry_after_a_restart_returns_the_first_answer() {
    let mut store = Store::new();
    let id = open_session(&mut store, 0, 1_000);
    let first = store.one(1, add(id, 1, 1));
    store.machine.make_durable().unwrap();
    let mut store = store.reopened(settings());
    assert_eq!(store.one(2, add(id, 1, 1)), first);
    assert_eq!(number(&store.one(3, add(id, 2, 1))), 2);
    store.verify();
}

#[test]
fn writes_in_flight_may_arrive_in_any_order() {
    let mut store = Store::new();
    let id = open_session(&mut store, 0, 1_000);
    for sequence in [3, 1, 2] {
        store.one(1, add(id, sequence, 1));
    }
    assert_eq!(number(&store.one(2, add(id, 1, 1))), 2, "the second to arrive");
    assert_eq!(number(&store.one(2, add(id, 4, 4))), 4);
}

#[test]
fn a_refused_write_is_refused_again_also_when_it_would_succeed_now() {
    let mut store = Store::new();
    let id = open_session(&mut store, 0, 1_000);
    let create = |sequence| Command::Txn {
        session: Some(SessionRef {
            id,
            sequence: Sequence::new(sequence),
            answered_below: Sequence::FIRST,
        }),
        txn: Txn::new([Op::create(key("a"), value("1"))]),
    };
    store.one(1, create(1));
    let refused = store.one(1, create(2));
    assert_eq!(
        refusal(refused.clone()),
        TxnRefused::KeyExists { op: 0, key: key("a") }
    );
    store.txn(Txn::new([Op::delete(key("a"))])).unwrap();
    assert_eq!(store.one(1, create(2)), refused);
    assert!(matches!(store.one(1, create(3)), Outcome::Txn(Ok(_))));
}

#[test]
fn an_answer_that_the_client_has_is_forgotten_and_its_write_never_runs_again() {
    let mut store = Store::new();
    let id = open_session(&mut store, 0, 1_000);
    store.one(1, add(id, 1, 1));
    store.one(1, add(id, 2, 2));
    let forgotten = |sequence| TxnRefused::SequenceForgotten {
        session: id,
        sequence: Sequence::new(sequence),
    };
    assert_eq!(
        refusal(store.one(1, add(id, 1, 1))),
        forgotten(1),
        "the bound never falls"
    );
    assert_eq!(number(&store.one(1, add(id, 2, 2))), 2, "this one is remembered");
    assert_eq!(
        refusal(store.one(1, add(id, 2, 3))),
        forgotten(2),
        "the retry itself may say so"
    );
    assert_eq!(store.machine.applied().revision, Revision::new(3));
    store.verify();
}

#[test]
fn a_session_expires_by_the_logs_time_after_its_last_command_and_never_early() {
    let mut store = Store::new();
    let id = open_session(&mut store, 100, 50);
    store.one(150, add(id, 1, 1));
    store.one(200, add(id, 2, 1));
    assert_eq!(
        number(&store.one(120, add(id, 3, 1))),
        3,
        "a stamp that falls does not turn time back"
    );
    assert_eq!(
        number(&store.one(250, add(id, 4, 1))),
        4,
        "the deadline itself is in time"
    );
    store.one(
        301,
        Command::CloseSession {
            session: SessionId::new(99),
        },
    );
    let expired = TxnRefused::SessionExpired { session: id };
    assert_eq!(
        refusal(store.one(301, add(id, 4, 1))),
        expired,
        "a retry is not executed"
    );
    assert_eq!(refusal(store.one(301, add(id, 5, 1))), expired);
    assert_eq!(store.machine.applied().revision, Revision::new(5));
    store.verify();
}

#[test]
fn a_closed_session_is_gone() {
    let mut store = Store::new();
    let id = open_session(&mut store, 0, 50);
    store.one(0, add(id, 1, 1));
    let before_open = store.apply(0, vec![Command::CloseSession { session: id }, add(id, 1, 1)]);
    assert_eq!(
        refusal(before_open[1].clone()),
        TxnRefused::SessionExpired { session: id }
    );
    store.verify();
}

/// The rows of the session before came back once the one with its id had ended too: nothing said any more that they had gone.
#[test]
fn an_id_drawn_again_brings_no_answer_of_the_session_before_back() {
    /// What parts the steps: nothing but entries, or a checkpoint as well, so that the row is in the file, in an older layer, in
    /// the newest one or in the batch.
    const PARTED: [bool; 2] = [false, true];
    let id = SessionId::new(7);
    let open = || Command::OpenSession { id, ttl_millis: 50 };
    let close = || Command::CloseSession { session: id };
    let life = || vec![open(), add(id, 1, 1), close()];
    for durable_first in PARTED {
        for (parted, entries) in [
            (
                "an entry for each step",
                life().into_iter().chain(life()).map(|one| vec![one]).collect(),
            ),
            ("an entry for each life", vec![life(), life()]),
            (
                "one entry",
                vec![life().into_iter().chain(life()).collect::<Vec<_>>()],
            ),
            (
                "a life that spans entries",
                vec![vec![open(), add(id, 1, 1)], [vec![close()], life()].concat()],
            ),
        ] {
            for checkpoint_at in 0..entries.len() {
                let mut store = Store::new();
                if durable_first {
                    store.apply(0, vec![open(), add(id, 1, 1)]);
                    store.machine.make_durable().unwrap();
                    store.apply(0, vec![close()]);
                }
                let mut under_way = None;
                for (at, entry) in entries.clone().into_iter().enumerate() {
                    store.apply(0, entry);
                    if at == checkpoint_at {
                        under_way = store.machine.begin_checkpoint();
                    }
                }
                if let Some(checkpoint) = under_way {
                    store.machine.end_checkpoint(checkpoint.write()).unwrap();
                }
                store.apply(0, vec![open()]);
                let answered = number(&store.one(0, add(id, 1, 1)));
                assert_eq!(
                    answered,
                    if durable_first { 4 } else { 3 },
                    "{parted}, {checkpoint_at}"
                );
                store.apply(0, vec![close()]);
                store.verify();
            }
        }
    }
}

#[test]
fn a_session_has_the_id_that_was_drawn_or_the_first_behind_it_that_is_free() {
    let mut store = Store::new();
    let mut open = |id| match store.one(
        0,
        Command::OpenSession {
            id: SessionId::new(id),
            ttl_millis: 50,
        },
    ) {
        Outcome::SessionOpened(Ok(opened)) => opened.session.number(),
        other => panic!("opening a session answered {other:?}"),
    };
    assert_eq!(open(u128::MAX), u128::MAX);
    assert_eq!(open(7), 7);
    assert_eq!(open(u128::MAX), 0, "behind the last comes the first");
    assert_eq!(open(7), 8);
    assert_eq!(open(7), 9);
    store.verify();
}

#[test]
fn a_session_lives_no_longer_than_the_cluster_allows_and_the_answer_says_so() {
    let mut store = Store::new();
    store.limit(|limits| limits.session_ttl_millis_max = 50);
    let opened = |store: &mut Store, ttl_millis| match store.one(0, Command::open_session(ttl_millis)) {
        Outcome::SessionOpened(Ok(opened)) => opened,
        other => panic!("opening a session answered {other:?}"),
    };
    assert_eq!(opened(&mut store, 49).ttl_millis, 49);
    let longest = opened(&mut store, u64::MAX);
    assert_eq!(longest.ttl_millis, 50);
    assert_eq!(number(&store.one(50, add(longest.session, 1, 1))), 1);
    let expired = TxnRefused::SessionExpired {
        session: longest.session,
    };
    assert_eq!(refusal(store.one(101, add(longest.session, 2, 1))), expired);
    store.verify();
}

fn too_many(what: TooManyOf, limit: u64) -> TxnRefused {
    TxnRefused::TooMany { what, limit }
}

#[test]
fn the_session_that_was_idle_longest_makes_room_for_a_new_one() {
    let mut store = Store::new();
    store.limit(|limits| {
        limits.sessions_max = 2;
        limits.session_idle_millis = 100;
    });
    let first = open_session(&mut store, 0, 1_000);
    let second = open_session(&mut store, 10, 1_000);
    store.one(20, add(first, 1, 1));
    let refused = Outcome::SessionOpened(Err(too_many(TooManyOf::Sessions, 2)));
    let mut ids = 1..;
    let mut open = || Command::OpenSession {
        id: SessionId::new(ids.next().unwrap()),
        ttl_millis: 1_000,
    };
    assert_eq!(store.one(109, open()), refused, "none is idle");
    assert!(too_many(TooManyOf::Sessions, 2).is_retryable());
    // The second one wrote last, or was opened, at 10.
    open_session(&mut store, 110, 1_000);
    let expired = TxnRefused::SessionExpired { session: second };
    assert_eq!(refusal(store.one(111, add(second, 1, 1))), expired);
    let again = store.one(112, add(first, 1, 1));
    assert_eq!(number(&again), 1, "the first one is still there, and its answer");
    let counts = store.machine.sessions();
    assert_eq!((counts.open, counts.evicted, counts.refused), (2, 1, 1));
    store.verify();
}

/// A leader's clock was eight hours ahead for once: the log's time stands still for eight hours, in which no session
/// expires and none becomes idle by it. After 10,000 command lines that were killed nobody could write for nine hours.
#[test]
fn while_the_logs_time_stands_still_sessions_make_room_by_the_order_of_their_use() {
    const HOURS_AHEAD: u64 = 8 * 3_600_000;
    let mut store = Store::new();
    store.limit(|limits| {
        limits.sessions_max = 2;
        limits.session_idle_entries = 3;
    });
    let first = open_session(&mut store, HOURS_AHEAD, 3_600_000);
    let second = open_session(&mut store, 1_000, 3_600_000);
    store.one(1_001, add(first, 1, 1));
    let refused = Outcome::SessionOpened(Err(too_many(TooManyOf::Sessions, 2)));
    let mut ids = 1..;
    let mut open = || Command::OpenSession {
        id: SessionId::new(ids.next().unwrap()),
        ttl_millis: 1_000,
    };
    assert_eq!(
        store.one(1_002, open()),
        refused,
        "the second was opened two entries ago"
    );
    open_session(&mut store, 1_003, 3_600_000);
    let expired = TxnRefused::SessionExpired { session: second };
    assert_eq!(refusal(store.one(1_004, add(second, 1, 1))), expired);
    // Once time goes on, entries do not count any more.
    assert_eq!(number(&store.one(HOURS_AHEAD + 1, add(first, 2, 1))), 2);
    for _ in 0..5 {
        store.one(HOURS_AHEAD + 2, open());
    }
    assert_eq!(number(&store.one(HOURS_AHEAD + 3, add(first, 3, 1))), 3);
    store.verify();
}

#[test]
fn the_unanswered_writes_of_a_session_are_bounded_and_what_is_refused_runs_when_there_is_room() {
    let mut store = Store::new();
    store.limit(|limits| limits.unanswered_max = 2);
    let id = open_session(&mut store, 0, 50);
    store.apply(40, vec![add(id, 1, 1), add(id, 2, 1)]);
    let refused = too_many(TooManyOf::UnansweredWrites, 2);
    assert_eq!(refusal(store.one(40, add(id, 3, 1))), refused);
    assert!(refused.is_retryable());
    assert_eq!(
        number(&store.one(40, add(id, 3, 2))),
        3,
        "it was not executed, and runs when there is room"
    );
    store.verify();
}

/// A get of `big`, as the session's write of that number, which also writes `n`.
fn big(id: SessionId, sequence: u64, answered_below: u64) -> Command {
    let Command::Txn { session, mut txn } = add(id, sequence, answered_below) else {
        panic!("an add is a transaction");
    };
    txn.then.push(Op::get(key("big")));
    Command::Txn { session, txn }
}

/// 4,096 small writes whose answers are 4 MiB each were remembered: 16 GiB of one session, in memory and on every disk.
#[test]
fn the_bytes_of_the_answers_that_a_session_has_remembered_are_bounded() {
    let mut store = Store::new();
    store.limit(|limits| limits.unanswered_bytes_max = 2_500);
    let id = open_session(&mut store, 0, 50);
    let thousand = "x".repeat(1_000);
    store
        .txn(Txn::new([Op::put(key("big"), value(&thousand))]))
        .unwrap();
    let before = store.machine.applied().state_hash;
    for sequence in [1, 2] {
        assert!(matches!(store.one(1, big(id, sequence, 1)), Outcome::Txn(Ok(_))));
    }
    let revision = store.machine.applied().revision;
    let refused = too_many(TooManyOf::UnansweredBytes, 2_500);
    assert_eq!(refusal(store.one(1, big(id, 3, 1))), refused);
    assert!(refused.is_retryable());
    assert_eq!(store.machine.applied().revision, revision, "nothing was changed");
    assert_ne!(store.machine.applied().state_hash, before);
    // A small answer still fits, and a large one does once the client has some of the others.
    assert_eq!(number(&store.one(1, add(id, 4, 1))), 3);
    assert!(matches!(store.one(1, big(id, 3, 2)), Outcome::Txn(Ok(_))));
    assert!(
        matches!(store.one(1, big(id, 2, 2)), Outcome::Txn(Ok(_))),
        "remembered"
    );
    store.verify();
}

#[test]
fn an_answer_that_no_session_could_remember_is_refused_for_good() {
    let mut store = Store::new();
    store.limit(|limits| limits.unanswered_bytes_max = 900);
    let id = open_session(&mut store, 0, 50);
    let thousand = "x".repeat(1_000);
    store
        .txn(Txn::new([Op::put(key("big"), value(&thousand))]))
        .unwrap();
    let refused = refusal(store.one(1, big(id, 1, 1)));
    assert!(
        matches!(
            refused,
            TxnRefused::AnswerTooLarge {
                size: 1_000..,
                limit: 900
            }
        ),
        "{refused:?}"
    );
    assert!(!refused.is_retryable());
    store.txn(Txn::new([Op::put(key("big"), value("x"))])).unwrap();
    assert_eq!(
        refusal(store.one(1, big(id, 1, 1))),
        refused,
        "and remembered as such"
    );
    assert!(matches!(store.one(1, big(id, 2, 1)), Outcome::Txn(Ok(_))));
    store.verify();
}

#[test]
fn what_the_retries_of_one_entry_are_given_again_is_bounded_and_one_alone_always_gets_its_answer() {
    let mut store = Store::new();
    let id = open_session(&mut store, 0, 50);
    let thousand = "x".repeat(1_000);
    store
        .txn(Txn::new([Op::put(key("big"), value(&thousand))]))
        .unwrap();
    let first = store.one(1, big(id, 1, 1));
    store.limit(|limits| {
        limits.unanswered_bytes_max = 900;
        limits.entry_budget = 1;
    });
    let both = store.apply(2, vec![big(id, 1, 1), big(id, 1, 1)]);
    assert_eq!(
        both[0], first,
        "also where it is larger than answers may be by now"
    );
    let spent = TxnRefused::EntrySpent {
        what: Work::AnswerBytes,
    };
    assert_eq!(refusal(both[1].clone()), spent);
    assert!(spent.is_retryable());
    assert_eq!(store.one(3, big(id, 1, 1)), first);
    store.verify();
}

#[test]
fn limits_are_set_by_a_command_once_for_each_version_and_belong_to_the_state() {
    let mut store = Store::new();
    let limits = ReplicatedLimits {
        sessions_max: 1,
        ..ReplicatedLimits::default()
    };
    let set = |version, limits: ReplicatedLimits| Command::SetLimits {
        expected: Some(version),
        changes: limits.to_changes(),
    };
    let stand = |changed, version, limits| {
        Outcome::LimitsSet(LimitsSet {
            changed,
            version,
            limits,
        })
    };
    let hash = store.machine.applied().state_hash;
    assert_eq!(store.one(0, set(0, limits)), stand(true, 1, limits));
    assert_ne!(store.machine.applied().state_hash, hash, "the hash covers them");
    let others = ReplicatedLimits::default();
    assert_eq!(
        store.one(0, set(0, others)),
        stand(false, 1, limits),
        "they were set before"
    );
    let mut useless = limits;
    useless.keys_changed_max = 0;
    assert_eq!(store.one(0, set(1, useless)), stand(false, 1, limits));
    // They count from the next command on.
    let mut ids = 1..;
    let mut open = || Command::OpenSession {
        id: SessionId::new(ids.next().unwrap()),
        ttl_millis: 9,
    };
    let outcomes = store.apply(0, vec![open(), open(), set(1, others), open()]);
    let is_open: Vec<bool> = outcomes
        .iter()
        .map(|outcome| matches!(outcome, Outcome::SessionOpened(Ok(_))))
        .collect();
    assert_eq!(is_open, [true, false, false, true]);
    store.machine.make_durable().unwrap();
    let store = store.reopened(settings());
    assert_eq!(*store.machine.limits(), others);
    assert_eq!(store.reader.view().unwrap().limits(), (2, &others));
}

/// A replica that was started anew and one that was not must refuse the same writes.
#[test]
fn what_the_answers_of_a_session_take_is_the_same_after_a_restart() {
    let mut stores = [Store::new(), Store::new()];
    let mut outcomes = [Vec::new(), Vec::new()];
    let mut ids = [None, None];
    for (store, id) in stores.iter_mut().zip(&mut ids) {
        store.limit(|limits| limits.unanswered_bytes_max = 200);
        *id = Some(open_session(store, 0, 1_000));
    }
    let id = ids[0].unwrap();
    assert_eq!(ids[1], Some(id));
    for sequence in 1..=30 {
        for (store, outcomes) in stores.iter_mut().zip(&mut outcomes) {
            outcomes.push(store.one(1, add(id, sequence, 1)));
        }
        if sequence % 3 == 0 {
            let [_, restarted] = &mut stores;
            restarted.machine.make_durable().unwrap();
            let (machine, reader) = reopen(&restarted.disk);
            (restarted.machine, restarted.reader) = (machine, reader);
        }
    }
    assert_eq!(outcomes[0], outcomes[1]);
    let refused = too_many(TooManyOf::UnansweredBytes, 200);
    let is_refused = |outcome: &&Outcome| matches!(outcome, Outcome::Txn(Err(told)) if *told == refused);
    let refused = outcomes[0].iter().filter(is_refused).count();
    assert!((1..30).contains(&refused), "{refused} refused");
    let hashes = stores.each_ref().map(|store| store.machine.applied().state_hash);
    assert_eq!(hashes[0], hashes[1]);
}
