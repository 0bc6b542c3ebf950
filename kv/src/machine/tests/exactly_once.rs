//! Sessions: a write that is retried takes effect once.

use super::*;
use crate::model::{Op, OpResult, Revision, Sequence, SessionId, SessionRef, TooManyOf};

fn open_session(store: &mut Store, millis: u64, ttl_millis: u64) -> SessionId {
    match store.one(millis, Command::OpenSession { ttl_millis }) {
        Outcome::SessionOpened(Ok(id)) => id,
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
    let Store {
        disk,
        machine,
        reader,
        index,
    } = store;
    drop((machine, reader));
    let (machine, reader) = reopen(&disk);
    let mut store = Store {
        disk,
        machine,
        reader,
        index,
    };
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
fn a_closed_session_is_gone_and_its_id_is_not_given_again() {
    let mut store = Store::new();
    let id = open_session(&mut store, 0, 50);
    store.one(0, add(id, 1, 1));
    let before_open = store.apply(0, vec![Command::CloseSession { session: id }, add(id, 1, 1)]);
    assert_eq!(
        refusal(before_open[1].clone()),
        TxnRefused::SessionExpired { session: id }
    );
    assert_ne!(open_session(&mut store, 0, 50), id);
    store.verify();
}

#[test]
fn sessions_and_their_unanswered_writes_are_bounded() {
    let disk: Arc<dyn Disk> = Arc::new(disk::MemoryDisk::default());
    let settings = MachineSettings {
        sessions_max: 2,
        unanswered_max: 2,
        ..settings()
    };
    let (machine, reader) = Machine::open(Arc::clone(&disk), dir(), OpenMode::Create, settings).unwrap();
    let mut store = Store {
        disk,
        machine,
        reader,
        index: 0,
    };
    let id = open_session(&mut store, 0, 50);
    open_session(&mut store, 0, 40);
    let refused = |what| TxnRefused::TooMany { what, limit: 2 };
    assert_eq!(
        store.one(40, Command::OpenSession { ttl_millis: 1 }),
        Outcome::SessionOpened(Err(refused(TooManyOf::Sessions)))
    );
    store.apply(40, vec![add(id, 1, 1), add(id, 2, 1)]);
    assert_eq!(
        refusal(store.one(40, add(id, 3, 1))),
        refused(TooManyOf::UnansweredWrites)
    );
    assert_eq!(
        number(&store.one(40, add(id, 3, 2))),
        3,
        "it was not executed, and runs when there is room"
    );
    open_session(&mut store, 41, 1);
    store.verify();
}

#[test]
fn limits_belong_to_the_state_and_not_to_who_opens_it() {
    let store = Store::new();
    let limits = *store.machine.limits();
    let Store {
        disk,
        machine,
        reader,
        ..
    } = store;
    drop((machine, reader));
    let other = MachineSettings {
        sessions_max: 1,
        unanswered_max: 1,
        response_bytes_max: 1,
        ..settings()
    };
    let (machine, _) = Machine::open(disk, dir(), OpenMode::Existing, other).unwrap();
    assert_eq!(*machine.limits(), limits);
}
