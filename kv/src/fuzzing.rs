//! Every decoder of messages that a peer or a disk could have spoiled, with what must hold of it for any bytes: the
//! way in for the fuzzer, and what the laws beside it ask in every test run.
//!
//! Behind the feature `fuzzing`, which no release has. The rows of the state file and the records of the log have
//! decoders of their own, without this crate's other types; the fuzzer takes these from the source. Blocks of heads are here.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use crate::decoder::{decoder_of, message};
use crate::model::{
    self, CheckedTxn, Command, Compacted, Compare, Consistency, FailedCondition, Found, Guard, Key, KeyRange,
    KeyTest, KeyValue, LeaseChange, LeaseId, Limit, LimitChange, Limits, LimitsSet, LogIndex, LogPosition,
    LogTime, NodeId, Op, OpResult, Outcome, Place, Proposal, PutMode, RangeRead, RangeTest, ReadOp,
    ReadResponse, ReadResult, Record, ReplicatedLimits, Revision, Sequence, SessionId, SessionOpened,
    SessionRef, StateHash, Term, Txn, TxnRefused, TxnResponse, Work, decode, encode,
};
use crate::protocol::{Admin, Call, Failure, Reply, Request, Response};
use crate::status::{MemberStatus, NodeRole, Status};

pub use crate::decoder::Decoder;

/// All of them.
pub fn decoders() -> Vec<Decoder> {
    let mut all = model_decoders();
    all.extend(protocol_decoders());
    all.extend(crate::raft::decoders());
    all.push(crate::identity::decoder());
    all.push(crate::machine::decoder());
    all
}

/// What passes the gate never makes the guard's evaluation panic, and its size was counted.
fn proposal(bytes: &[u8]) {
    message::<Proposal>(bytes);
    let Ok(proposal) = decode::<Proposal>(bytes) else {
        return;
    };
    for command in proposal.commands {
        if let Command::Txn { txn, .. } = command {
            let _either = txn.guard.evaluate(|_, _| Ok::<_, ()>(true));
            let well_formed = txn.guard.is_well_formed();
            let checked = CheckedTxn::check(txn, &Limits::default());
            assert!(
                well_formed || checked.is_err(),
                "a guard that is no tree passed the gate"
            );
        }
    }
}

fn model_decoders() -> Vec<Decoder> {
    let proposals = Decoder {
        name: "proposal",
        check: proposal,
        samples: vec![encode(&Proposal {
            stamp: LogTime::from_millis(1_700_000_000_000),
            full_at: Some(1 << 20),
            commands: vec![
                Command::Txn {
                    session: Some(session()),
                    txn: txn(),
                },
                Command::open_session(30_000),
                Command::CloseSession {
                    session: SessionId::new(3),
                },
                Command::SetLimits {
                    expected: Some(7),
                    changes: vec![LimitChange::new(Limit::HistoryKept, 60_000)],
                },
                Command::Compact {
                    revision: Revision::new(70_000),
                },
            ],
        })],
    };
    vec![
        proposals,
        decoder_of("outcome", &outcomes()),
        decoder_of(
            "position",
            &[LogPosition {
                term: Term::new(3),
                leader: NodeId::new(2),
                index: LogIndex::new(300),
            }],
        ),
    ]
}

fn protocol_decoders() -> Vec<Decoder> {
    let requests = [
        Request::Write(Command::Txn {
            session: Some(session()),
            txn: txn(),
        }),
        Request::Read {
            reads: vec![
                ReadOp::Get(key("a")),
                ReadOp::Range(RangeRead::new(KeyRange::prefix("p")).limit(7)),
            ],
            consistency: Consistency::Stale {
                min_revision: Some(Revision::new(9)),
                max_lag: Some(Duration::from_millis(1_500)),
            },
            wait: Duration::from_secs(2),
            time: Duration::from_secs(9),
        },
        Request::WriteAgain(Command::Txn {
            session: Some(session()),
            txn: txn(),
        }),
        Request::Status,
        Request::Shrink,
        Request::Admin(Admin::AddLearner {
            id: NodeId::new(4),
            address: "node-4:7000".to_owned(),
        }),
        Request::Admin(Admin::MoveLeader {
            to: Some(NodeId::new(2)),
        }),
    ];
    let calls: Vec<Call> = (0..)
        .zip(requests)
        .map(|(id, request)| Call { id, request })
        .collect();
    let leader = || Some((NodeId::new(2), "node-2:7000".to_owned()));
    let mut responses: Vec<Response> = outcomes().into_iter().map(Response::Written).collect();
    responses.extend([
        Response::Read(ReadResponse {
            revision: Revision::new(12),
            results: vec![
                ReadResult::Get(Some(record())),
                ReadResult::Range {
                    records: vec![KeyValue {
                        key: key("a"),
                        record: record(),
                    }],
                    count: 1,
                    more: true,
                },
            ],
        }),
        Response::Status(Box::new(status())),
        Response::Done,
        Response::Working,
        Response::Waiting,
        Response::Failed(Failure::NotLeader { leader: leader() }),
        Response::Failed(Failure::unknown("nobody knows")),
        Response::Failed(Failure::TooStale {
            lag: Some(Duration::new(3, 5)),
        }),
        Response::Failed(Failure::Invalid("too large".to_owned())),
        Response::Failed(Failure::Busy("no room".to_owned())),
        Response::Failed(Failure::AnswerTooLarge {
            size: 30_000_000,
            limit: 25_165_824,
        }),
        Response::Failed(Failure::ReadTooLong {
            limit: Duration::from_secs(60),
        }),
    ]);
    let replies: Vec<Reply> = (300..)
        .zip(responses)
        .map(|(id, response)| Reply { id, response })
        .collect();
    vec![decoder_of("call", &calls), decoder_of("reply", &replies)]
}

fn key(name: &'static str) -> Key {
    #[allow(clippy::expect_used, reason = "a sample's key is legal")]
    Key::new(Bytes::from_static(name.as_bytes())).expect("a legal key")
}

fn session() -> SessionRef {
    SessionRef {
        id: SessionId::new(3),
        sequence: Sequence::new(200),
        answered_below: Sequence::new(198),
    }
}

fn txn() -> Txn {
    let guard = Guard::all([
        Guard::exists(key("a")),
        Guard::any([
            Guard::not(Guard::key(
                key("b"),
                KeyTest::Value(Compare::Equal, Bytes::from_static(b"v")),
            )),
            Guard::key(
                key("c"),
                KeyTest::ModRevision(Compare::Less, Some(Revision::new(300))),
            ),
            Guard::condition(model::Condition::Range {
                range: KeyRange::prefix("p/"),
                test: RangeTest::Count(Compare::GreaterOrEqual, 2),
            }),
        ]),
    ]);
    Txn::new([
        Op::Put {
            key: key("a"),
            value: Bytes::from_static(b"value"),
            mode: PutMode::OnlyIfAbsent,
            lease: LeaseChange::Attach(LeaseId::new(1)),
        },
        Op::delete(key("b")),
        Op::delete_range(KeyRange::starting_at("z"), 10),
        Op::delete_some_of(KeyRange::prefix("z"), 11),
        Op::Add {
            key: key("n"),
            delta: -7,
        },
        Op::Max {
            key: key("n"),
            operand: i64::MAX,
        },
    ])
    .when(guard)
    .or_else([
        Op::get(key("b")),
        Op::Range(RangeRead::new(KeyRange::all())),
        Op::PutSequence {
            prefix: key("seq/"),
            value: Bytes::new(),
        },
    ])
}

fn record() -> Record {
    Record {
        value: Bytes::from_static(b"value"),
        create_revision: Revision::new(2),
        mod_revision: Revision::new(12),
        version: 3,
        lease: Some(LeaseId::new(1)),
    }
}

fn outcomes() -> Vec<Outcome> {
    let response = TxnResponse {
        revision: Revision::new(12),
        log_index: LogIndex::new(20),
        succeeded: false,
        failed: vec![FailedCondition {
            index: 1,
            found: Found::Missing,
        }],
        results: vec![
            OpResult::Put { existed: true },
            OpResult::Deleted { count: 3, more: true },
            OpResult::Get(Some(record())),
            OpResult::Number(-1),
            OpResult::Sequenced { key: key("seq/1") },
        ],
    };
    let refusals = [
        TxnRefused::KeyExists { op: 1, key: key("a") },
        TxnRefused::Overflow {
            op: 0,
            found: i64::MIN,
            delta: -1,
        },
        TxnRefused::SessionExpired {
            session: SessionId::new(3),
        },
        TxnRefused::TooMuchWork {
            place: Place::Otherwise(300),
            what: Work::KeysLookedAt,
            limit: 131_072,
        },
        TxnRefused::EntrySpent {
            what: Work::KeysChanged,
        },
        TxnRefused::AnswerTooLarge { size: 300, limit: 7 },
        TxnRefused::NoSpace {
            used: 1 << 20,
            limit: 1 << 20,
            wanted: 300,
        },
    ];
    let mut outcomes = vec![
        Outcome::Txn(Ok(response)),
        Outcome::SessionOpened(Ok(SessionOpened {
            session: SessionId::new(3),
            ttl_millis: 30_000,
        })),
        Outcome::SessionClosed,
        Outcome::LimitsSet(LimitsSet {
            changed: true,
            version: 1,
            limits: ReplicatedLimits::default(),
        }),
        Outcome::Compacted(Compacted {
            oldest: Revision::new(70_000),
            revision: Revision::new(80_000),
        }),
    ];
    outcomes.extend(refusals.map(|refused| Outcome::Txn(Err(refused))));
    outcomes
}

fn status() -> Status {
    Status {
        cluster_uuid: Some(Uuid::from_u128(7)),
        uuid: Uuid::from_u128(1),
        cluster: "orders".to_owned(),
        node: NodeId::new(1),
        version: "0.1.0".to_owned(),
        role: NodeRole::Leader,
        term: Term::new(3),
        quorum: true,
        confirmed: Some(Duration::from_millis(40)),
        leader: Some(NodeId::new(1)),
        revision: Revision::new(12),
        oldest: Revision::new(3),
        state_hash: StateHash(1 << 100),
        file_bytes: 1 << 20,
        holds: crate::machine::Holds {
            records: 9,
            live_bytes: 900,
            history_bytes: 70_000,
        },
        store_bytes_max: Some(1 << 33),
        is_full: false,
        disk_bytes: Some(3 << 20),
        disk_bytes_max: Some(1 << 40),
        disk_is_full: false,
        hashes: vec![(
            LogPosition {
                term: Term::new(3),
                leader: NodeId::new(1),
                index: LogIndex::new(1_024),
            },
            StateHash(1 << 90),
        )],
        last_log: Some(LogIndex::new(30)),
        committed: Some(LogIndex::new(30)),
        applied: Some(LogIndex::new(29)),
        purged: None,
        lag: Some(Duration::from_millis(3)),
        sync_p50_micros: Some(900),
        members: vec![MemberStatus {
            uuid: Some(Uuid::from_u128(2)),
            id: NodeId::new(1),
            address: "node-1:7000".to_owned(),
            voter: true,
            lag_entries: Some(0),
            round_trip: Some(Duration::from_micros(150)),
            answered: Some(Duration::from_millis(90)),
        }],
        fault: None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    /// What becomes of bytes on their way.
    #[derive(Debug, Clone)]
    enum Damage {
        Flip(Index, u8),
        Cut(Index),
        Insert(Index, Vec<u8>),
        /// A number that claims much: a varint of many bytes.
        Claim(Index),
        Repeat(Index, Index),
    }

    fn damage() -> impl Strategy<Value = Damage> {
        prop_oneof![
            4 => (any::<Index>(), 1u8..=255).prop_map(|(at, bits)| Damage::Flip(at, bits)),
            1 => any::<Index>().prop_map(Damage::Cut),
            2 => (any::<Index>(), prop::collection::vec(any::<u8>(), 1..9))
                .prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
            2 => any::<Index>().prop_map(Damage::Claim),
            1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Damage::Repeat(from, to)),
        ]
    }

    fn damaged(mut bytes: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
        for damage in damages {
            let size = bytes.len() + 1;
            match damage {
                Damage::Flip(at, bits) if !bytes.is_empty() => {
                    let at = at.index(bytes.len());
                    bytes[at] ^= bits;
                }
                Damage::Flip(..) => {}
                Damage::Cut(at) => bytes.truncate(at.index(size)),
                Damage::Insert(at, new) => {
                    let at = at.index(size);
                    bytes.splice(at..at, new.iter().copied());
                }
                Damage::Claim(at) => {
                    let at = at.index(size);
                    bytes.splice(at..(at + 1).min(size - 1).max(at), [0xff, 0xff, 0xff, 0xff, 0x7f]);
                }
                Damage::Repeat(from, to) => {
                    let (from, to) = (from.index(size), to.index(size));
                    let part = bytes[from.min(to)..from.max(to)].to_vec();
                    bytes.extend(part);
                }
            }
        }
        bytes
    }

    #[test]
    fn every_sample_is_accepted_and_written_as_it_is() {
        for decoder in decoders() {
            assert!(!decoder.samples.is_empty(), "{} has no sample", decoder.name);
            for sample in decoder.samples {
                (decoder.check)(&sample);
            }
        }
    }

    /// What is written here stands in files of those who use it: when a seed differs, a format has changed. With
    /// `QUORATE_WRITE_SEEDS=1` they are written anew.
    #[test]
    fn the_seeds_of_the_fuzzer_are_the_samples() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/messages");
        for (which, decoder) in (0u8..).zip(decoders()) {
            for (number, sample) in decoder.samples.iter().enumerate() {
                let seed = [&[which][..], sample].concat();
                let file = dir.join(format!("{}-{number}", decoder.name.replace(' ', "-")));
                if std::env::var_os("QUORATE_WRITE_SEEDS").is_some() {
                    std::fs::write(&file, &seed).unwrap();
                }
                let found = std::fs::read(&file).unwrap_or_default();
                assert_eq!(found, seed, "{}", file.display());
            }
        }
    }

    #[test]
    fn bytes_behind_a_message_and_bytes_that_lack_are_noticed() {
        // Of each kind whose decoding can be told here without its type.
        let bytes = encode(&txn());
        for cut in 0..bytes.len() {
            assert!(decode::<Txn>(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        assert!(decode::<Txn>(&[&bytes[..], &[0]].concat()).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn damaged_messages_are_refused_or_have_one_form(
            which: Index, sample: Index, damages in prop::collection::vec(damage(), 1..5),
        ) {
            let decoders = decoders();
            let decoder = which.get(&decoders);
            let bytes = damaged(sample.get(&decoder.samples).clone(), &damages);
            (decoder.check)(&bytes);
        }

        #[test]
        fn any_bytes_are_refused_or_have_one_form(which: Index, mut bytes: Vec<u8>, versioned: bool) {
            if versioned {
                bytes.insert(0, 1);
            }
            let decoders = decoders();
            (which.get(&decoders).check)(&bytes);
        }
    }
}
