//! The checkers are checked: a good history is spoiled on purpose, each time in one way, and each time the rule
//! made for it must say so.

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use quorate_kv::client::Error;
use quorate_kv::machine::{Entry, EntryOutcome, Payload};
use quorate_kv::model::{
    Command, Consistency, Key, KeyRange, KeyValue, LogIndex, LogPosition, LogTime, NodeId, Op, Outcome,
    Proposal, ReadOp, ReadResult, Record, Revision, StateHash, Term, Txn, TxnRefused, decode, encode,
};
use quorate_kv::node::{LogEvent, NodeRole, Status};
use quorate_meta::keys::{Keys, RowKey};
use quorate_meta::{Epochs, PartitionEpoch, PartitionIndex};
use quorate_tests::check::ground::Ground;
use quorate_tests::check::history::{Answer, Call, CallId, History, MetaFailure, MetaRequest, Request};
use quorate_tests::check::model::PAGE_BYTES;
use quorate_tests::check::raft::Statuses;
use quorate_tests::check::recording::{Recording, record};
use quorate_tests::check::taps::{Agreement, TapEvent, TapWhat};
use quorate_tests::check::{Rule, Violation, judge, membership, metadata, second};

/// The first of some runs in which a node received a snapshot: which they are changes with every change of timing.
static GOOD: LazyLock<Recording> = LazyLock::new(|| {
    let runs = (7..27).map(|seed| record(seed, 600, 5));
    let has_snapshot = |run: &Recording| run.events.iter().any(is_installed);
    runs.into_iter()
        .find(has_snapshot)
        .expect("a run with a snapshot")
});

fn is_installed(event: &TapEvent) -> bool {
    matches!(event.what, TapWhat::Installed { .. })
}

fn agreement(events: &[TapEvent]) -> Agreement {
    let mut agreement = Agreement::default();
    events.iter().for_each(|event| agreement.take(event));
    agreement
}

fn good_ground() -> Ground {
    Ground::replay(&agreement(&GOOD.events), PAGE_BYTES).0
}

fn rules(violations: &[Violation]) -> Vec<Rule> {
    let mut rules: Vec<Rule> = violations.iter().map(|violation| violation.rule).collect();
    rules.sort_unstable();
    rules.dedup();
    rules
}

#[track_caller]
fn caught(name: &str, by: Rule, violations: &[Violation]) {
    let shown: Vec<String> = violations.iter().take(3).map(ToString::to_string).collect();
    assert!(
        rules(violations).contains(&by),
        "{name}: expected {by:?}, got {shown:#?}"
    );
}

// ----- the good history

#[test]
fn a_good_history_breaks_no_rule() {
    let agreement = agreement(&GOOD.events);
    assert_eq!(agreement.violations(), []);
    let (ground, violations) = Ground::replay(&agreement, PAGE_BYTES);
    assert_eq!(violations, []);
    assert_eq!(judge::judge(&ground, &GOOD.history.calls), []);
    assert_eq!(
        metadata::judge(&ground, &GOOD.history.calls, &GOOD.history.meta),
        []
    );
    assert_eq!(statuses(&GOOD.statuses), []);
    assert_eq!(ground.model.range_at(&KeyRange::all(), GOOD.last.0), GOOD.last.1);
    // And it is one that has something to spoil.
    assert!(GOOD.events.iter().any(is_installed), "nobody received a snapshot");
    assert!(
        ground.model.revision() > Revision::new(300),
        "{}",
        ground.model.revision()
    );
}

// ----- what nodes apply

/// Spoils the events; what the agreement or the replay says.
fn with_events(spoil: impl FnOnce(&mut Vec<TapEvent>)) -> Vec<Violation> {
    let mut events = GOOD.events.clone();
    spoil(&mut events);
    let agreement = agreement(&events);
    let (_, replayed) = Ground::replay(&agreement, PAGE_BYTES);
    [agreement.violations().to_vec(), replayed].concat()
}

/// The number of an event of this node in the middle of the run at which it applied several entries, or one.
fn applied_by(events: &[TapEvent], node: u64, least: usize) -> usize {
    let fits = |event: &TapEvent| {
        event.node == node
            && matches!(&event.what, TapWhat::Applied { entries, .. } if entries.len() >= least)
    };
    let all: Vec<usize> = (0..events.len())
        .filter(|number| fits(&events[*number]))
        .collect();
    all[all.len() / 2]
}

fn applied(event: &mut TapEvent) -> (&mut Vec<Entry>, &mut Vec<EntryOutcome>) {
    match &mut event.what {
        TapWhat::Applied {
            entries, outcomes, ..
        } => (entries, outcomes),
        other => panic!("{other:?}"),
    }
}

/// Changes what every node says of one entry, which carries a transaction that was answered.
fn everywhere(events: &mut [TapEvent], index: LogIndex, change: impl Fn(&mut Entry, &mut EntryOutcome)) {
    for event in events {
        if let TapWhat::Applied {
            entries, outcomes, ..
        } = &mut event.what
        {
            for (entry, outcome) in entries.iter_mut().zip(outcomes) {
                if entry.position.index == index {
                    change(entry, outcome);
                }
            }
        }
    }
}

/// An entry in the middle whose first command is a transaction that made a revision.
fn some_write() -> LogIndex {
    let ground = good_ground();
    let commit = ground.commit(Revision::new(ground.model.revision().number() / 2));
    commit.expect("it was made").index
}

#[test]
fn an_entry_that_one_node_left_out_is_missed() {
    let violations = with_events(|events| {
        let number = applied_by(events, 2, 1);
        events.remove(number);
    });
    caught("left out", Rule::NoGap, &violations);
}

#[test]
fn an_entry_that_one_node_applied_twice_is_seen() {
    let violations = with_events(|events| {
        let number = applied_by(events, 2, 1);
        let again = events[number].clone();
        events.insert(number + 1, again);
    });
    caught("applied twice by one node", Rule::NoGap, &violations);
}

#[test]
fn another_entry_at_the_same_place_of_one_node_is_seen() {
    let violations = with_events(|events| {
        let number = applied_by(events, 3, 1);
        applied(&mut events[number]).0[0].payload = Payload::Blank;
    });
    caught("another entry", Rule::SameEntries, &violations);
}

#[test]
fn another_outcome_on_one_node_is_seen() {
    let violations = with_events(|events| {
        let number = applied_by(events, 3, 1);
        applied(&mut events[number]).1[0] = EntryOutcome::Proposal(vec![Outcome::SessionClosed]);
    });
    caught("another outcome on one node", Rule::SameOutcomes, &violations);
}

#[test]
fn another_state_on_one_node_is_seen() {
    let violations = with_events(|events| {
        // The nodes stand behind the last entry all three.
        let last = events
            .iter_mut()
            .rev()
            .find(|event| matches!(event.what, TapWhat::Applied { .. }));
        if let TapWhat::Applied { after, .. } = &mut last.expect("something was applied").what {
            after.hash = StateHash(after.hash.0 ^ 1);
        }
    });
    caught("another state", Rule::SameState, &violations);
}

#[test]
fn an_answer_that_all_nodes_get_wrong_is_seen() {
    let index = some_write();
    let violations = with_events(|events| {
        everywhere(events, index, |_, outcome| {
            if let EntryOutcome::Proposal(outcomes) = outcome
                && let Some(Outcome::Txn(Ok(response))) = outcomes.first_mut()
            {
                response.succeeded = !response.succeeded;
            }
        });
    });
    caught("an answer wrong everywhere", Rule::Replay, &violations);
}

#[test]
fn a_refused_transaction_that_all_nodes_applied_in_part_is_seen() {
    // As if an operation's error had not undone the ones before it: all later revisions are one too high.
    let index = some_write();
    let violations = with_events(|events| {
        for event in events {
            if let TapWhat::Applied { after, .. } = &mut event.what
                && after.index >= Some(index)
            {
                after.revision = after.revision.next();
            }
        }
    });
    caught("a revision too many", Rule::Replay, &violations);
}

#[test]
fn an_entry_that_nobody_applied_is_missed() {
    let index = some_write();
    let violations = with_events(|events| {
        for event in events {
            if let TapWhat::Applied {
                entries, outcomes, ..
            } = &mut event.what
                && let Some(at) = entries.iter().position(|entry| entry.position.index == index)
            {
                entries.remove(at);
                outcomes.remove(at);
            }
        }
    });
    caught("a hole in the log", Rule::NoGap, &violations);
}

#[test]
fn an_entry_of_an_earlier_leader_behind_a_later_one_is_seen() {
    let index = some_write();
    let violations = with_events(|events| {
        everywhere(events, index, |entry, _| {
            entry.position = LogPosition {
                term: Term::new(0),
                ..entry.position
            };
        });
    });
    caught("an earlier leader's entry", Rule::NoGap, &violations);
}

#[test]
fn a_node_that_starts_behind_what_it_purged_is_seen() {
    let violations = with_events(|events| {
        let start = events
            .iter()
            .rposition(|event| matches!(event.what, TapWhat::Started))
            .expect("it started anew");
        let node = events[start].node;
        let next = (start..events.len())
            .find(|n| events[*n].node == node && matches!(events[*n].what, TapWhat::Applied { .. }));
        let first = applied(&mut events[next.expect("it went on")]).0[0]
            .position
            .index;
        let (at, what) = (events[start].at, TapWhat::Purged { index: first });
        events.insert(start, TapEvent { node, at, what });
        // No snapshot helps it.
        events.retain(|event| event.node != node || !matches!(event.what, TapWhat::Installed { .. }));
    });
    caught("started too far back", Rule::DurableStart, &violations);
}

#[test]
fn a_node_that_starts_ahead_of_itself_is_seen() {
    let violations = with_events(|events| {
        let number = applied_by(events, 1, 1);
        let (node, at) = (1, events[number].at);
        // As if its process had begun anew before a part that it never applied.
        events[number] = TapEvent {
            node,
            at,
            what: TapWhat::Started,
        };
    });
    caught("started too far ahead", Rule::DurableStart, &violations);
}

/// A process of node 1 that ended when its installation of a snapshot had begun, `beyond` entries past the state that
/// the next one begins from, and was never told to have succeeded.
fn ended_while_installing(beyond: i64) -> Vec<Violation> {
    with_events(|events| {
        let number = applied_by(events, 1, 1);
        let next = (number + 1..events.len())
            .find(|n| events[*n].node == 1 && matches!(events[*n].what, TapWhat::Applied { .. }))
            .expect("it went on");
        let found = applied(&mut events[next]).0[0].position.index.number() - 1;
        let (node, at) = (1, events[number].at);
        let last = Some(LogIndex::new(found.checked_add_signed(beyond).expect("an index")));
        events[number].what = TapWhat::Installing { last };
        let what = TapWhat::Started;
        events.insert(number + 1, TapEvent { node, at, what });
    })
}

#[test]
fn a_process_may_end_with_a_snapshot_installed_and_nobody_told() {
    assert_eq!(ended_while_installing(0), []);
    for beyond in [-1, 1] {
        let violations = ended_while_installing(beyond);
        caught("found another state", Rule::DurableStart, &violations);
    }
}

/// The number of an event of a log that fits.
fn logged(events: &[TapEvent], fits: impl Fn(&LogEvent) -> bool) -> usize {
    let found = events
        .iter()
        .position(|event| matches!(&event.what, TapWhat::Log(event) if fits(event)));
    found.expect("such an event of a log")
}

/// The last time that a node opened its log.
fn last_opened(events: &[TapEvent]) -> usize {
    let opened =
        |event: &TapEvent| matches!(event.what, TapWhat::Log(LogEvent::Opened { last: Some(_), .. }));
    events.iter().rposition(opened).expect("a node that started anew")
}

#[test]
fn a_log_that_lost_what_it_had_told_durable_is_seen() {
    let found = with_events(|events| {
        let at = last_opened(events);
        let node = events[at].node;
        // What it found may go further than what it had told: an append that was not answered yet.
        let told = events[..at].iter().rev().find_map(|event| match event.what {
            TapWhat::Log(LogEvent::Durable(last)) if event.node == node => Some(last.index),
            _ => None,
        });
        let told = told.expect("it had told something durable");
        let TapWhat::Log(LogEvent::Opened { last: Some(last), .. }) = &mut events[at].what else {
            unreachable!()
        };
        last.index = LogIndex::new(told.number() - 1);
    });
    caught("an entry is gone", Rule::DurableLog, &found);
    let found = with_events(|events| {
        let at = last_opened(events);
        let TapWhat::Log(LogEvent::Opened { vote, last, purged }) = &mut events[at].what else {
            unreachable!()
        };
        (*vote, *last, *purged) = (None, None, None);
    });
    caught("an empty log", Rule::DurableLog, &found);
}

#[test]
fn a_log_that_forgot_its_vote_or_has_entries_of_a_leader_it_does_not_know_is_seen() {
    let found = with_events(|events| {
        let at = last_opened(events);
        let TapWhat::Log(LogEvent::Opened { vote: Some(vote), .. }) = &mut events[at].what else {
            unreachable!()
        };
        vote.leads = false;
    });
    caught("a vote that was not known to lead", Rule::DurableLog, &found);
    let found = with_events(|events| {
        let node = events[last_opened(events)].node;
        let of_this_node =
            |event: &TapEvent| event.node != node || !matches!(event.what, TapWhat::Log(LogEvent::Voted(_)));
        events.retain(of_this_node);
        let at = last_opened(events);
        let TapWhat::Log(LogEvent::Opened { vote, .. }) = &mut events[at].what else {
            unreachable!()
        };
        *vote = None;
    });
    caught("entries without a vote", Rule::DurableLog, &found);
}

#[test]
fn an_entry_that_is_told_durable_out_of_turn_is_seen() {
    let found = with_events(|events| {
        let at = logged(events, |event| matches!(event, LogEvent::Appending(_)));
        events.remove(at);
    });
    caught("an entry that nobody appended", Rule::DurableLog, &found);
}

#[test]
fn a_change_of_voters_that_nobody_finished_is_seen() {
    let (index, good) = membership::last(&agreement(&GOOD.events))
        .expect("a membership that can be read")
        .expect("a membership");
    assert!(!good.is_joint(), "{good:?}");
    let mut events = GOOD.events.clone();
    let joint = (vec![&good.voters[0], &good.voters[0]], &good.members);
    everywhere(&mut events, index, |entry, _| {
        let Payload::Membership(bytes) = &entry.payload else {
            unreachable!()
        };
        let body = postcard::to_stdvec(&joint).expect("it can be written");
        let spoiled = [&bytes[..1], &body].concat();
        entry.payload = Payload::Membership(spoiled.into());
    });
    let found = membership::judge(&agreement(&events));
    caught("two sets of voters", Rule::NoJointLeft, &found);
}

#[test]
fn a_write_that_runs_twice_is_seen() {
    // As if the session's memory had been lost: the same transaction again, outside of any session.
    let mut ground = good_ground();
    let (index, call, txn) = {
        let run = ground
            .runs
            .iter()
            .find(|run| run.call.is_some() && run.changed)
            .expect("a write");
        (LogIndex::new(1_000_000), run.call, run.txn.clone())
    };
    let before = ground.model.revision();
    let outcome = ground.model.run_now(&txn, index);
    let step = quorate_tests::check::model::Step {
        txn,
        session: None,
        how: quorate_tests::check::model::How::Ran,
        changed: ground.model.revision() != before,
        outcome,
    };
    ground.push(index, call, step, None);
    caught(
        "ran twice",
        Rule::Once,
        &judge::judge(&ground, &GOOD.history.calls),
    );
}

#[test]
fn a_retry_in_a_new_entry_is_answered_from_memory_and_is_not_a_second_run() {
    // The good counterpart: the very same command once more, in a further entry of every node.
    let ground = good_ground();
    let run = ground
        .runs
        .iter()
        .rev()
        .find(|run| run.call.is_some() && run.changed)
        .expect("a write");
    let agreed = agreement(&GOOD.events);
    let entry = &agreed.entries()[&run.index].entry;
    let Payload::Proposal(bytes) = &entry.payload else {
        panic!("a transaction comes in a proposal")
    };
    let proposal: Proposal = decode(bytes).expect("it was decoded before");
    let commands = proposal
        .commands
        .into_iter()
        .filter(|command| matches!(command, Command::Txn { .. }));
    let commands: Vec<Command> = commands.collect();
    let last = agreed
        .entries()
        .last_key_value()
        .expect("entries")
        .1
        .entry
        .position;
    let again = Entry {
        position: LogPosition {
            index: last.index.next(),
            ..last
        },
        payload: Payload::Proposal(Bytes::from(encode(&Proposal {
            stamp: LogTime::ZERO,
            full_at: None,
            commands,
        }))),
    };
    let mut model = ground.model.clone();
    let (_, steps) = model.apply(&again).expect("it follows");
    assert!(steps.iter().all(|step| !step.changed), "{steps:?}");
    assert_eq!(model.revision(), ground.model.revision());
}

// ----- what callers are told

/// Spoils the first call that fits, and judges.
fn with_call(name: &str, by: Rule, spoil: impl Fn(&Ground, &mut Call) -> bool) {
    let ground = good_ground();
    let mut calls = GOOD.history.calls.clone();
    // Late ones: most has been seen by then.
    let spoiled = calls.iter_mut().rev().any(|call| spoil(&ground, call));
    assert!(spoiled, "{name}: no call fits");
    caught(name, by, &judge::judge(&ground, &calls));
}

fn is_write(call: &Call) -> bool {
    matches!((&call.request, &call.answer), (Request::Txn(_), Answer::Txn(response)) if response.succeeded)
}

fn ran(ground: &Ground, call: &Call) -> bool {
    ground.of_call(call.id).any(|(_, run)| run.changed)
}

#[test]
fn a_lost_write_is_missed() {
    with_call("a lost acknowledged write", Rule::Acknowledged, |ground, call| {
        let fits = is_write(call) && ran(ground, call);
        if fits {
            call.id = CallId {
                client: 99,
                number: 1,
            };
        }
        fits
    });
}

#[test]
fn an_answer_of_another_write_is_seen() {
    with_call(
        "another revision",
        Rule::Acknowledged,
        |ground, call| match &mut call.answer {
            Answer::Written(revision) if *revision < ground.model.revision() => {
                *revision = revision.next();
                true
            }
            _ => false,
        },
    );
    with_call("another result", Rule::Acknowledged, |_, call| {
        match &mut call.answer {
            Answer::Txn(response) => response.results.pop().is_some(),
            _ => false,
        }
    });
    with_call(
        "a delete told the contrary",
        Rule::Acknowledged,
        |_, call| match &mut call.answer {
            Answer::Deleted(existed) => {
                *existed = !*existed;
                true
            }
            _ => false,
        },
    );
}

#[test]
fn a_write_that_failed_for_certain_and_ran_is_seen() {
    let unavailable = || Error::Unavailable {
        node: None,
        deadline: Duration::from_secs(1),
        last: "spoiled".to_owned(),
    };
    with_call("failed and ran", Rule::NeverRan, |ground, call| {
        let fits = is_write(call) && ran(ground, call);
        if fits {
            call.answer = Answer::Failed(unavailable());
        }
        fits
    });
    with_call("refused and ran", Rule::NeverRan, |ground, call| {
        let fits = is_write(call) && ran(ground, call);
        if fits {
            call.answer = Answer::Refused(TxnRefused::RangeTooLarge { op: 0, limit: 1 });
        }
        fits
    });
    with_call(
        "refused for another reason",
        Rule::NeverRan,
        |_, call| match &mut call.answer {
            Answer::Refused(refused) => {
                *refused = TxnRefused::RangeTooLarge { op: 77, limit: 1 };
                true
            }
            _ => false,
        },
    );
}

#[test]
fn answers_from_the_future_and_writes_from_the_past_are_seen() {
    with_call(
        "answered before it was applied",
        Rule::NotFromTheFuture,
        |ground, call| {
            let fits = is_write(call) && ran(ground, call);
            if fits {
                call.answered = call.called;
            }
            fits
        },
    );
    with_call(
        "applied before it was asked",
        Rule::NotFromTheFuture,
        |ground, call| {
            let fits = is_write(call) && ran(ground, call);
            if fits {
                call.called = call.answered + Duration::from_secs(1);
                call.answered = call.called;
            }
            fits
        },
    );
    with_call(
        "an unknown write that ran before it was asked",
        Rule::NotFromTheFuture,
        |ground, call| {
            let fits = is_write(call) && ran(ground, call);
            if fits {
                call.answer = Answer::Unknown("spoiled".to_owned());
                call.called = call.answered + Duration::from_secs(1);
                call.answered = call.called;
            }
            fits
        },
    );
    with_call(
        "a revision that never was",
        Rule::NotFromTheFuture,
        |ground, call| match &mut call.answer {
            Answer::Read(response) => {
                response.revision = ground.model.revision().next();
                true
            }
            _ => false,
        },
    );
}

#[test]
fn a_stale_linearizable_read_is_seen() {
    with_call("a stale read", Rule::RealTime, |ground, call| {
        let (
            Request::Read {
                reads,
                consistency: Consistency::Linearizable,
            },
            Answer::Read(response),
        ) = (&call.request, &mut call.answer)
        else {
            return false;
        };
        // True of an older state, which is the point.
        let old = Revision::new(response.revision.number() / 2);
        response.revision = old;
        response.results = reads.iter().map(|read| ground.model.read(read, old)).collect();
        true
    });
    with_call(
        "a stale get, which tells no revision",
        Rule::RealTime,
        |ground, call| {
            let (
                Request::Get {
                    key,
                    consistency: Consistency::Linearizable,
                },
                Answer::Record(record),
            ) = (&call.request, &mut call.answer)
            else {
                return false;
            };
            let versions = ground.model.versions(key);
            let old = versions.first().and_then(|version| version.record.clone());
            let fits = old.is_some() && versions.len() > 5 && old != *record;
            if fits {
                *record = old;
            }
            fits
        },
    );
    with_call(
        "a stale range, which tells no revision",
        Rule::RealTime,
        |ground, call| {
            let (Request::Range(range), Answer::Records(result)) = (&call.request, &mut call.answer) else {
                return false;
            };
            let read = ReadOp::Range(quorate_kv::model::RangeRead::new(range.clone()));
            let old = ground.model.read(&read, Revision::FIRST);
            let fits = old != *result;
            *result = old;
            fits
        },
    );
}

#[test]
fn writes_out_of_the_order_of_time_are_seen() {
    with_call("an old write asked late", Rule::RealTime, |ground, call| {
        let fits = is_write(call) && ran(ground, call) && call.answered < Duration::from_secs(2);
        if fits {
            call.called += Duration::from_secs(100);
            call.answered += Duration::from_secs(100);
        }
        fits
    });
}

#[test]
fn values_that_the_state_does_not_have_are_seen() {
    fn other(record: &mut Record) {
        record.value = Bytes::from_static(b"nobody wrote this");
    }
    with_call(
        "a get of a batch",
        Rule::ReadsTheState,
        |_, call| match &mut call.answer {
            Answer::Read(response) => response.results.iter_mut().any(|result| match result {
                ReadResult::Get(Some(record)) => {
                    other(record);
                    true
                }
                _ => false,
            }),
            _ => false,
        },
    );
    with_call(
        "a range of a batch",
        Rule::ReadsTheState,
        |_, call| match &mut call.answer {
            Answer::Read(response) => response.results.iter_mut().any(|result| match result {
                ReadResult::Range { records, .. } => records.pop().is_some(),
                ReadResult::Get(_) => false,
            }),
            _ => false,
        },
    );
    with_call("a plain get", Rule::ReadsTheState, |_, call| {
        match &mut call.answer {
            Answer::Record(Some(record)) => {
                other(record);
                true
            }
            _ => false,
        }
    });
    with_call("a get at a revision", Rule::ReadsTheState, |_, call| {
        match (&call.request, &mut call.answer) {
            (
                Request::Get {
                    consistency: Consistency::At(_),
                    ..
                },
                Answer::Record(record),
            ) if record.is_some() => {
                *record = None;
                true
            }
            _ => false,
        }
    });
}

#[test]
fn bounds_that_are_not_kept_are_seen() {
    with_call(
        "a stale read below its bound",
        Rule::KeepsTheBound,
        |_, call| match (&mut call.request, &call.answer) {
            (
                Request::Read {
                    consistency:
                        Consistency::Stale {
                            min_revision: Some(least),
                            ..
                        },
                    ..
                },
                Answer::Read(response),
            ) => {
                *least = response.revision.next();
                true
            }
            _ => false,
        },
    );
    with_call(
        "a stale read that is older than its bound",
        Rule::KeepsTheBound,
        |ground, call| match (&mut call.request, &call.answer) {
            (Request::Read { consistency, .. }, Answer::Read(response))
                if response.revision < ground.model.revision() =>
            {
                *consistency = Consistency::Stale {
                    min_revision: None,
                    max_lag: Some(Duration::from_millis(100)),
                };
                // Asked again when all has been answered for long.
                call.called += Duration::from_secs(3_600);
                call.answered += Duration::from_secs(3_600);
                true
            }
            _ => false,
        },
    );
    with_call(
        "a key as it was before a stale read's bound",
        Rule::KeepsTheBound,
        |ground, call| {
            let Answer::Record(Some(record)) = &call.answer else {
                return false;
            };
            let Request::Get { key, consistency } = &mut call.request else {
                return false;
            };
            let later = ground.model.versions(key).iter();
            let Some(next) = later
                .map(|version| version.revision)
                .find(|at| *at > record.mod_revision)
            else {
                return false;
            };
            *consistency = Consistency::Stale {
                min_revision: Some(next),
                max_lag: None,
            };
            true
        },
    );
    with_call(
        "another revision than was asked for",
        Rule::KeepsTheBound,
        |_, call| match (&mut call.request, &call.answer) {
            (
                Request::Read {
                    consistency: Consistency::At(at),
                    ..
                },
                Answer::Read(_),
            ) => {
                *at = at.next();
                true
            }
            _ => false,
        },
    );
}

#[test]
fn answers_of_another_kind_are_seen() {
    with_call("history gone that is kept", Rule::PlainAnswer, |_, call| {
        let fits = matches!(call.request, Request::Read { .. });
        if fits {
            call.answer = Answer::Failed(Error::Compacted {
                oldest: Revision::new(9),
            });
        }
        fits
    });
    with_call("a read answered as a write", Rule::PlainAnswer, |_, call| {
        let fits = matches!(call.request, Request::Range(_));
        if fits {
            call.answer = Answer::Deleted(true);
        }
        fits
    });
    with_call("a write answered as a read", Rule::PlainAnswer, |_, call| {
        let fits = matches!(call.request, Request::Put { .. });
        if fits {
            call.answer = Answer::Record(None);
        }
        fits
    });
}

#[test]
fn a_closure_that_read_what_its_writes_did_not_find_is_seen() {
    with_call("a key", Rule::Isolation, |ground, call| {
        let (Request::Transact { keys, .. }, Answer::Txn(response)) = (&mut call.request, &call.answer)
        else {
            return false;
        };
        let Some((key, seen)) = keys.first_mut() else {
            return false;
        };
        let newer = ground.model.at(key, response.revision).cloned();
        let fits = newer != *seen;
        *seen = newer;
        fits
    });
    with_call("a phantom in a range", Rule::Isolation, |_, call| {
        match (&mut call.request, &call.answer) {
            (Request::Transact { ranges, .. }, Answer::Txn(_)) => ranges
                .first_mut()
                .is_some_and(|(_, records)| records.pop().is_some()),
            _ => false,
        }
    });
}

// ----- the metadata

/// Writes bytes over rows, as a broken planner would, and looks at the rows.
fn with_rows(name: &str, by: Rule, spoil: impl FnOnce(&Ground) -> Vec<Op>) {
    let mut ground = good_ground();
    let ops = spoil(&ground);
    assert!(!ops.is_empty(), "{name}: no row fits");
    ground
        .model
        .run_now(&Txn::new(ops), LogIndex::new(1_000_000))
        .expect("plain writes");
    caught(name, by, &metadata::judge(&ground, &[], &[]));
}

/// The rows of a range now: without the keys that another application wrote there.
fn rows_in(ground: &Ground, range: &KeyRange) -> Vec<KeyValue> {
    let mut rows = ground.model.range_at(range, ground.model.revision());
    rows.retain(|row| Keys::default().parse(&row.key).is_some());
    rows
}

/// The partitions' rows now.
fn partitions(ground: &Ground) -> Vec<KeyValue> {
    rows_in(ground, &Keys::default().partitions())
}

/// Where in a partition's row the mask of its ISR stands: behind the format's version, the row's version, and the
/// replicas, which are their count and then a byte each, since the workload's brokers have small ids.
fn isr_mask(row: &[u8]) -> usize {
    3 + usize::from(row[2])
}

#[test]
fn an_epoch_that_went_back_is_seen() {
    with_rows("a partition's epoch that fell", Rule::Epochs, |ground| {
        let row = partitions(ground).pop().expect("a partition");
        let mut bytes = row.record.value.to_vec();
        // Behind the ISR's mask come four more masks, the leader, and the two epochs, a byte each.
        let partition_epoch = isr_mask(&bytes) + 7;
        bytes[partition_epoch] -= 1;
        vec![Op::put(row.key, bytes)]
    });
    with_rows("a change without a new epoch", Rule::Epochs, |ground| {
        let row = partitions(ground).into_iter().next_back().expect("a partition");
        vec![Op::put(row.key, row.record.value)]
    });
    with_rows("a broker's older life", Rule::Epochs, |ground| {
        let epoch = |key: &Key, record: &Record| {
            let mut image = quorate_meta::Image::new(Revision::FIRST);
            image.insert(key, record).expect("a sound row");
            image.brokers.into_values().next().expect("a broker").epoch
        };
        let brokers = rows_in(ground, &Keys::default().brokers());
        let reborn = brokers.iter().find_map(|row| {
            let now = epoch(&row.key, &row.record);
            let versions = ground.model.versions(&row.key).iter();
            // One that says its epoch: a registration's own row leaves it to its record.
            let mut older = versions
                .filter_map(|version| version.record.as_ref())
                .filter(|r| r.value[2] == 1);
            older
                .find(|record| epoch(&row.key, record) < now)
                .map(|record| (row.key.clone(), record.value.clone()))
        });
        let (key, value) = reborn.expect("a broker that registered anew");
        vec![Op::put(key, value)]
    });
}

#[test]
fn half_a_batch_is_seen() {
    with_rows("a partition that is missing", Rule::Counts, |ground| {
        vec![Op::delete(partitions(ground).pop().expect("a partition").key)]
    });
    with_rows("a partition of no topic", Rule::Counts, |ground| {
        let row = partitions(ground).pop().expect("a partition");
        let Some(RowKey::Partition(topic, _)) = Keys::default().parse(&row.key) else {
            panic!("a partition's key");
        };
        vec![Op::put(
            Keys::default().partition(topic, PartitionIndex::new(77)),
            row.record.value,
        )]
    });
    let (ground, mut history) = (good_ground(), GOOD.history.clone());
    let batch = history
        .meta
        .iter_mut()
        .rev()
        .find_map(|call| match (&mut call.request, &call.answer) {
            (MetaRequest::CreatePartitions(batch), Ok(_)) => Some(batch),
            _ => None,
        });
    let batch = batch.expect("a batch of partitions");
    let mut more = batch.last().expect("not empty").clone();
    more.index = PartitionIndex::new(more.index.number() + 1);
    batch.push(more);
    caught(
        "a batch without its last",
        Rule::WholeBatches,
        &metadata::judge(&ground, &history.calls, &history.meta),
    );
}

#[test]
fn an_unsound_row_is_seen() {
    with_rows("a leader outside the ISR", Rule::SoundRows, |ground| {
        let row = partitions(ground).into_iter().find(|row| {
            let mut image = quorate_meta::Image::new(Revision::FIRST);
            image.insert(&row.key, &row.record).expect("a sound row");
            image
                .partitions
                .values()
                .all(|partition| partition.leader.is_some())
        });
        let row = row.expect("a partition with a leader");
        let mut bytes = row.record.value.to_vec();
        let mask = isr_mask(&bytes);
        bytes[mask] = 0;
        vec![Op::put(row.key, bytes)]
    });
    with_rows("bytes that are no row", Rule::SoundRows, |ground| {
        vec![Op::put(
            partitions(ground).pop().expect("a partition").key,
            "no row",
        )]
    });
}

/// Spoils the last call of the metadata that fits, and judges.
fn with_meta(name: &str, by: Rule, spoil: impl Fn(&mut quorate_tests::check::history::MetaCall) -> bool) {
    let (ground, mut history): (Ground, History) = (good_ground(), GOOD.history.clone());
    let spoiled = history.meta.iter_mut().rev().any(spoil);
    assert!(spoiled, "{name}: no call fits");
    caught(name, by, &metadata::judge(&ground, &history.calls, &history.meta));
}

#[test]
fn an_update_over_epochs_that_nobody_saw_is_seen() {
    fn older(epochs: &mut Epochs) {
        epochs.partition = PartitionEpoch::new(epochs.partition.number() + 1);
    }
    with_meta("a leader", Rule::Fencing, |call| {
        match (&mut call.request, &call.answer) {
            (MetaRequest::UpdateLeaders(updates), Ok(_)) if !updates.is_empty() => {
                older(&mut updates[0].expected);
                true
            }
            _ => false,
        }
    });
    with_meta("an ISR", Rule::Fencing, |call| {
        match (&mut call.request, &call.answer) {
            (MetaRequest::UpdateIsrs(updates), Ok(_)) if !updates.is_empty() => {
                older(&mut updates[0].expected);
                true
            }
            _ => false,
        }
    });
}

#[test]
fn rows_that_were_told_and_are_not_there_are_seen() {
    with_meta("a partition", Rule::ToldRows, |call| match &mut call.answer {
        Ok(rows) => rows.partitions.first_mut().is_some_and(|row| {
            row.leader_epoch = row.leader_epoch.next();
            true
        }),
        Err(_) => false,
    });
    with_meta("a broker", Rule::ToldRows, |call| match &mut call.answer {
        Ok(rows) => rows.brokers.first_mut().is_some_and(|row| {
            row.fenced = !row.fenced;
            true
        }),
        Err(_) => false,
    });
    with_meta("a refused update that happened", Rule::NeverRan, |call| {
        let fits = call.answer.is_ok() && matches!(call.request, MetaRequest::CreateTopics(_));
        if fits {
            let why = "spoiled".to_owned();
            call.answer = Err(MetaFailure {
                may_have_committed: false,
                refused: true,
                corrupt: false,
                why,
            });
        }
        fits
    });
    with_meta("a read that a foreign key failed", Rule::SoundRows, |call| {
        let fits = call.answer.is_ok() && matches!(call.request, MetaRequest::Other(_));
        if fits {
            call.answer = Err(MetaFailure {
                may_have_committed: false,
                refused: false,
                corrupt: true,
                why: "spoiled".to_owned(),
            });
        }
        fits
    });
}

// ----- what nodes tell of themselves

fn statuses(all: &[Status]) -> Vec<Violation> {
    let mut statuses = Statuses::default();
    // The third node's process started anew once; which status is the first of the new one, its terms tell.
    let mut revisions = std::collections::BTreeMap::new();
    for status in all {
        let before = revisions.insert(status.node, status.applied);
        if before.is_some_and(|before| before > status.applied) {
            statuses.started(status.node);
        }
        statuses.take(status);
    }
    statuses.violations().to_vec()
}

fn with_statuses(name: &str, by: Rule, spoil: impl FnOnce(&mut Status, &mut Status)) {
    let last = |node: u64| {
        GOOD.statuses
            .iter()
            .rev()
            .find(|s| s.node == NodeId::new(node))
            .expect("a status")
            .clone()
    };
    let leader = GOOD
        .statuses
        .iter()
        .rev()
        .find(|s| s.role == NodeRole::Leader)
        .expect("a leader")
        .clone();
    let other = if leader.node == NodeId::new(1) {
        last(2)
    } else {
        last(1)
    };
    let (mut first, mut second) = (leader, other);
    let mut statuses = Statuses::default();
    statuses.take(&first);
    statuses.take(&second);
    spoil(&mut first, &mut second);
    statuses.take(&first);
    statuses.take(&second);
    caught(name, by, statuses.violations());
}

#[test]
fn statuses_that_raft_does_not_allow_are_seen() {
    let earlier = |index: Option<LogIndex>| index.map(|index| LogIndex::new(index.number() - 1));
    with_statuses("a term that fell", Rule::Monotone, |status, _| {
        status.term = Term::new(status.term.number() - 1);
        status.leader = None;
        status.role = NodeRole::Follower;
    });
    with_statuses("an applied entry that fell", Rule::Monotone, |_, status| {
        status.applied = earlier(status.applied)
    });
    with_statuses("an earlier leader", Rule::LeadersForward, |_, status| {
        status.leader = Some(NodeId::new(0));
    });
    with_statuses(
        "a leader without what was committed",
        Rule::LogOrder,
        |_, status| {
            status.role = NodeRole::Leader;
            status.term = status.term.next();
            status.leader = Some(status.node);
            status.last_log = earlier(status.last_log);
        },
    );
    with_statuses("purged and not applied", Rule::LogOrder, |status, _| {
        status.purged = status.applied.map(LogIndex::next);
    });
}

// ----- the second opinion

#[test]
fn another_checker_finds_the_good_history_sound_and_a_stale_read_not() {
    let opinion = second::opinion(&GOOD.history.calls, Duration::from_secs(5));
    assert_eq!(opinion.violations, []);
    assert!(opinion.sound >= 3, "{opinion:?}");

    let key = Key::from("k");
    let call = |number: u64, from: u64, to: u64, request: Request, answer: Answer| Call {
        id: CallId { client: 1, number },
        parent: None,
        called: Duration::from_millis(from),
        answered: Duration::from_millis(to),
        request,
        answer,
    };
    let put = |number: u64, at: u64, value: &'static str| {
        let request = Request::Put {
            key: key.clone(),
            value: Bytes::from_static(value.as_bytes()),
        };
        call(
            number,
            at,
            at + 1,
            request,
            Answer::Written(Revision::new(number)),
        )
    };
    let get = |number: u64, at: u64, value: &'static str| {
        let request = Request::Get {
            key: key.clone(),
            consistency: Consistency::Linearizable,
        };
        let record = Record {
            value: Bytes::from_static(value.as_bytes()),
            create_revision: Revision::new(2),
            mod_revision: Revision::new(2),
            version: 1,
            lease: None,
        };
        call(number, at, at + 1, request, Answer::Record(Some(record)))
    };
    let sound = [put(2, 0, "a"), put(3, 10, "b"), get(4, 20, "b")];
    assert_eq!(second::opinion(&sound, Duration::from_secs(5)).violations, []);
    let stale = [put(2, 0, "a"), put(3, 10, "b"), get(4, 20, "a")];
    caught(
        "a stale read",
        Rule::SecondOpinion,
        &second::opinion(&stale, Duration::from_secs(5)).violations,
    );
}
