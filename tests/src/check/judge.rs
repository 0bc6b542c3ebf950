//! Holds what callers were told against the one order.
//!
//! Sound without a search: the order contains every effect, so replaying it makes each answer right or wrong by
//! itself, and real time is one sweep over the calls sorted by their beginnings.

use std::time::Duration;

use quorate_kv::client::Error;
use quorate_kv::model::{Consistency, Key, Op, ReadOp, ReadResult, Record, Revision, TxnRefused};

use super::ground::{Ground, Run};
use super::history::{Answer, Call, CallId, Request};
use super::model::How;
use super::{Rule, Violation};

/// Everything in the calls that the order does not explain.
pub fn judge(ground: &Ground, calls: &[Call]) -> Vec<Violation> {
    let mut judge = Judge {
        ground,
        violations: Vec::new(),
    };
    judge.once();
    for call in calls {
        if call.request.writes() {
            judge.write(call);
        } else {
            judge.read(call);
        }
    }
    judge.states(calls);
    judge.lags(calls);
    judge.real_time(calls);
    judge.violations
}

/// What places a call in the order: a state that it saw or made, and where it stands among the transactions.
#[derive(Debug, Clone, Copy)]
struct Point {
    revision: Revision,
    /// It made the revision, rather than saw it.
    made: bool,
    /// Its number among the transactions, where it is one.
    place: Option<usize>,
}

struct Judge<'g> {
    ground: &'g Ground,
    violations: Vec<Violation>,
}

impl Judge<'_> {
    fn broken(&mut self, rule: Rule, what: String) {
        self.violations.push(Violation::new(rule, what));
    }

    /// No call's transaction runs twice, whoever knows of it.
    fn once(&mut self) {
        for (call, count) in self.ground.calls() {
            if count > 1 {
                let runs: Vec<String> = self.ground.of_call(call).map(|(_, run)| told_run(run)).collect();
                let what = format!("call {call} ran {count} times: {}", runs.join("; "));
                self.violations.push(Violation::new(Rule::Once, what));
            }
        }
    }

    fn write(&mut self, call: &Call) {
        let ground = self.ground;
        let ran = ground
            .of_call(call.id)
            .find(|(_, run)| run.how == How::Ran)
            .map(|(_, run)| run);
        match (&call.request, &call.answer) {
            (_, Answer::Unknown(_)) => {
                // At most once, which `once` has seen to; never before it was asked.
                if let Some(run) = ran {
                    self.not_before(call, run);
                }
            }
            (_, Answer::Failed(error)) => self.never(call, ran, error),
            (_, Answer::Refused(refused)) => self.refused(call, ran, refused),
            (Request::Txn(_) | Request::Transact { .. }, Answer::Txn(response)) => {
                let Some(run) = self.acknowledged(call, ran) else {
                    return;
                };
                if run.outcome.as_ref() != Ok(response) {
                    let what = format!("{} was told {response:?}, it was {:?}", told(call), run.outcome);
                    self.broken(Rule::Acknowledged, what);
                }
                if let Request::Transact { keys, ranges, .. } = &call.request {
                    // What the closure saw is what its writes found.
                    let before = if run.changed {
                        previous(response.revision)
                    } else {
                        response.revision
                    };
                    for (key, seen) in keys {
                        let there = ground.model.at(key, before);
                        if there != seen.as_ref() {
                            let what = format!(
                                "{} read {seen:?} of {key}, at {before} there is {there:?}",
                                told(call)
                            );
                            self.broken(Rule::Isolation, what);
                        }
                    }
                    for (range, seen) in ranges {
                        let there = ground.model.range_at(range, before);
                        if there != *seen {
                            let what = format!(
                                "{} read {seen:?} of {range:?}, at {before} there is {there:?}",
                                told(call)
                            );
                            self.broken(Rule::Isolation, what);
                        }
                    }
                }
            }
            (Request::Put { .. }, Answer::Written(revision)) => {
                let Some(run) = self.acknowledged(call, ran) else {
                    return;
                };
                if run.outcome.as_ref().map(|response| response.revision) != Ok(*revision) {
                    let what = format!("{} was told {revision}, it was {:?}", told(call), run.outcome);
                    self.broken(Rule::Acknowledged, what);
                }
            }
            // Where it stood among the others is not known; `real_time` looks whether it can stand anywhere.
            (Request::Delete { .. }, Answer::Deleted(false)) if ran.is_none() && !ground.complete => {}
            (Request::Delete { .. }, Answer::Deleted(existed)) => {
                let Some(run) = self.acknowledged(call, ran) else {
                    return;
                };
                if run.changed != *existed {
                    let what = format!("{} was told {existed}, it was {:?}", told(call), run.outcome);
                    self.broken(Rule::Acknowledged, what);
                }
            }
            _ => self.broken(Rule::PlainAnswer, told(call)),
        }
    }

    /// The run of an acknowledged write, which happened within its call.
    fn acknowledged<'r>(&mut self, call: &Call, ran: Option<&'r Run>) -> Option<&'r Run> {
        match ran {
            None => {
                let what = format!("{} was acknowledged and never ran", told(call));
                self.broken(Rule::Acknowledged, what);
            }
            Some(run) => {
                self.not_before(call, run);
                self.not_after(call, run);
            }
        }
        ran
    }

    fn not_before(&mut self, call: &Call, run: &Run) {
        if let Some(at) = run.at.filter(|at| *at < call.called) {
            let what = format!(
                "{} was applied at {at:?}, before it was asked: {}",
                told(call),
                told_run(run)
            );
            self.broken(Rule::NotFromTheFuture, what);
        }
    }

    fn not_after(&mut self, call: &Call, run: &Run) {
        if let Some(at) = run.at.filter(|at| *at > call.answered) {
            let what = format!(
                "{} was applied at {at:?}, after its answer: {}",
                told(call),
                told_run(run)
            );
            self.broken(Rule::NotFromTheFuture, what);
        }
    }

    fn never(&mut self, call: &Call, ran: Option<&Run>, error: &Error) {
        if let Some(run) = ran {
            let what = format!(
                "{} failed with {error}, and yet ran: {}",
                told(call),
                told_run(run)
            );
            self.broken(Rule::NeverRan, what);
        }
        let plain = match error {
            Error::InvalidKey(_)
            | Error::InvalidTxn(_)
            | Error::Rejected { .. }
            | Error::Unavailable { .. } => true,
            // Whatever frees room goes on, and what grows until there is little.
            Error::NoSpace { used, limit, wanted } => {
                let is_near = u128::from(*used) * 100 >= u128::from(*limit) * 80;
                grows(&call.request) && (is_near || used.saturating_add(*wanted) > *limit)
            }
            // What only reads are answered with, or what is no failure at all. A transact reads.
            Error::Compacted { .. } | Error::NotYet { .. } => {
                matches!(call.request, Request::Transact { .. })
            }
            _ => false,
        };
        if !plain {
            self.broken(Rule::PlainAnswer, told(call));
        }
    }

    fn refused(&mut self, call: &Call, ran: Option<&Run>, refused: &TxnRefused) {
        match (ran, refused) {
            (Some(run), refused) if run.outcome.as_ref() == Err(refused) => {
                self.not_before(call, run);
                self.not_after(call, run);
            }
            // It was kept from running: by there being too many, or by what shared its entry.
            (None, refused) if refused.is_retryable() => {}
            // It ran, and where is not known.
            (None, _) if !self.ground.complete => {}
            (ran, refused) => {
                let what = format!(
                    "{} was refused ({refused}), and this is what became of it: {:?}",
                    told(call),
                    ran.map(told_run)
                );
                self.broken(Rule::NeverRan, what);
            }
        }
    }

    fn read(&mut self, call: &Call) {
        let newest = self.ground.model.revision();
        match (&call.request, &call.answer) {
            (Request::Read { reads, consistency }, Answer::Read(response)) => {
                let revision = response.revision;
                self.keeps_bound(call, *consistency, revision);
                self.exists(call, revision);
                if reads.len() != response.results.len() {
                    self.broken(Rule::PlainAnswer, told(call));
                }
                // What it read, `states` looks at.
            }
            (Request::Get { key, consistency }, Answer::Record(record)) => match consistency {
                Consistency::At(revision) => {
                    let there = self.ground.model.at(key, *revision);
                    if there != record.as_ref() {
                        let what = format!("{} should have found {there:?}", told(call));
                        self.broken(Rule::ReadsTheState, what);
                    }
                }
                Consistency::Stale {
                    min_revision: Some(least),
                    ..
                } if !self.held_since(key, record.as_ref(), *least, call.answered) => {
                    let what = format!("{} found nothing that stood at {least} or later", told(call));
                    self.broken(Rule::KeepsTheBound, what);
                }
                Consistency::Linearizable | Consistency::Stale { .. } => {
                    if let Some(record) = record {
                        self.exists(call, record.mod_revision);
                        if self.ground.model.at(key, record.mod_revision) != Some(record) {
                            let what = format!("{} found what never was", told(call));
                            self.broken(Rule::ReadsTheState, what);
                        }
                    }
                }
            },
            (Request::Range(_), Answer::Records(ReadResult::Range { .. })) => {}
            (Request::Compact(asked), Answer::Compacted(oldest)) => {
                if oldest < asked || !self.was_given_up(*oldest) {
                    self.broken(Rule::PlainAnswer, told(call));
                }
            }
            (Request::SetLimits(changes), Answer::Limits(stand)) => {
                if changes.iter().any(|(limit, value)| stand.get(*limit) != *value) {
                    self.broken(Rule::PlainAnswer, told(call));
                }
            }
            // Asked for again it does no harm, and reads tell.
            (Request::Compact(_) | Request::SetLimits(_), Answer::Unknown(_)) => {}
            (request, Answer::Failed(error)) => {
                let possible = match (request, error) {
                    (_, Error::Unavailable { .. } | Error::InvalidKey(_) | Error::InvalidRead(_)) => true,
                    // Only for what a batch of reads returns.
                    (Request::Read { .. }, Error::Rejected { .. }) => true,
                    (_, Error::NotYet { asked, current, .. }) => current < asked && *current <= newest,
                    (_, Error::TooStale { .. }) => matches!(
                        consistency_of(request),
                        Consistency::Stale { max_lag: Some(_), .. }
                    ),
                    (request, Error::Compacted { oldest }) => {
                        let is_older = match consistency_of(request) {
                            Consistency::At(asked) => asked < *oldest,
                            // What reads the present begins anew.
                            _ => false,
                        };
                        is_older && self.was_given_up(*oldest)
                    }
                    _ => false,
                };
                if !possible {
                    self.broken(Rule::PlainAnswer, told(call));
                }
            }
            _ => self.broken(Rule::PlainAnswer, told(call)),
        }
    }

    /// Whether the history before a revision was given up in the end. Where there are no taps, nobody knows who gave up what.
    fn was_given_up(&self, oldest: Revision) -> bool {
        !self.ground.complete || oldest <= self.ground.model.oldest()
    }

    /// What each batch of reads was told is what stood at its revision. In the order of revisions, so that the state
    /// is walked through once.
    fn states(&mut self, calls: &[Call]) {
        let mut batches = Vec::new();
        for call in calls {
            if let (Request::Read { reads, .. }, Answer::Read(response)) = (&call.request, &call.answer) {
                batches.push((call, reads, response));
            }
        }
        batches.sort_by_key(|(_, _, response)| response.revision);
        let mut walk = self.ground.model.walk();
        for (call, reads, response) in batches {
            let revision = response.revision;
            for (read, result) in reads.iter().zip(&response.results) {
                let there = walk.read(read, revision);
                if there != *result {
                    let what = format!(
                        "{} read {} at {revision}, the state has {} for {read:?}",
                        told(call),
                        told_result(result),
                        told_result(&there)
                    );
                    self.broken(Rule::ReadsTheState, what);
                }
            }
        }
    }

    fn keeps_bound(&mut self, call: &Call, consistency: Consistency, revision: Revision) {
        let kept = match consistency {
            Consistency::Linearizable => true,
            Consistency::Stale { min_revision, .. } => min_revision.is_none_or(|least| revision >= least),
            Consistency::At(asked) => revision == asked,
        };
        if !kept {
            let what = format!("{} was answered at revision {revision}", told(call));
            self.broken(Rule::KeepsTheBound, what);
        }
    }

    /// A stale read with a bound on its lag saw everything that had been answered so long before it began.
    fn lags(&mut self, calls: &[Call]) {
        let mut bounded: Vec<(Duration, &Call)> = calls
            .iter()
            .filter_map(|call| Some((call.called.checked_sub(longest(max_lag(call)?))?, call)))
            .collect();
        bounded.sort_by_key(|(since, _)| *since);
        let mut answered = self.by_answer(calls).into_iter().peekable();
        let mut newest: Option<(Revision, CallId)> = None;
        for (since, call) in bounded {
            while let Some((before, point)) = answered.next_if(|(before, _)| before.answered < since) {
                newest = newest.max(Some((point.revision, before.id)));
            }
            let Some((least, before)) = newest else {
                continue;
            };
            let kept = match (&call.request, &call.answer) {
                (_, Answer::Read(response)) => response.revision >= least,
                (Request::Get { key, .. }, Answer::Record(record)) => {
                    self.held_since(key, record.as_ref(), least, call.answered)
                }
                _ => true,
            };
            if !kept {
                let what = format!(
                    "{} does not know revision {least}, with which call {before} had been answered before {since:?}",
                    told(call)
                );
                self.broken(Rule::KeepsTheBound, what);
            }
        }
    }

    /// The calls that have a place in the order, by their answers.
    fn by_answer<'c>(&self, calls: &'c [Call]) -> Vec<(&'c Call, Point)> {
        let mut by_answer: Vec<_> = calls
            .iter()
            .filter_map(|call| Some((call, self.point(call)?)))
            .collect();
        by_answer.sort_by_key(|(call, _)| call.answered);
        by_answer
    }

    /// A revision that was told had been applied somewhere.
    fn exists(&mut self, call: &Call, revision: Revision) {
        if revision == Revision::FIRST {
            return;
        }
        match self.ground.commit(revision) {
            None => {
                let what = format!("{} was told revision {revision}, which never was", told(call));
                self.broken(Rule::NotFromTheFuture, what);
            }
            Some(run) => self.not_after(call, run),
        }
    }

    /// One sweep over time: each call against the latest that had been answered when it began.
    fn real_time(&mut self, calls: &[Call]) {
        let mut by_call: Vec<&Call> = calls.iter().collect();
        by_call.sort_by_key(|call| call.called);
        let mut answered = self.by_answer(calls).into_iter().peekable();
        let mut newest: Option<(Revision, CallId)> = None;
        let mut furthest: Option<(usize, CallId)> = None;
        for call in by_call {
            while let Some((before, point)) = answered.next_if(|(before, _)| before.answered < call.called) {
                newest = newest.max(Some((point.revision, before.id)));
                furthest = furthest.max(point.place.map(|place| (place, before.id)));
            }
            let Some((least, before)) = newest else {
                continue;
            };
            if let Some(point) = self.point(call) {
                let in_order = match (&call.request, point.made) {
                    (_, true) => point.revision > least,
                    (request, false) => point.revision >= least || !is_linearizable(request),
                };
                if !in_order {
                    let what = format!(
                        "{} has revision {}, though call {before} had been answered with {least} before it began",
                        told(call),
                        point.revision
                    );
                    self.broken(Rule::RealTime, what);
                }
                if let (Some(place), Some((last, before))) = (point.place, furthest)
                    && place <= last
                {
                    let what = format!(
                        "{} ran before call {before}, which had been answered before it began",
                        told(call)
                    );
                    self.broken(Rule::RealTime, what);
                }
            } else {
                self.some_state_since(call, least, before);
            }
        }
    }

    fn point(&self, call: &Call) -> Option<Point> {
        let ran = || self.ground.of_call(call.id).find(|(_, run)| run.how == How::Ran);
        match &call.answer {
            Answer::Txn(_) | Answer::Written(_) | Answer::Deleted(_) => {
                let (place, run) = ran()?;
                let revision = run.outcome.as_ref().ok()?.revision;
                Some(Point {
                    revision,
                    made: run.changed,
                    place: Some(place),
                })
            }
            // Also what nobody knows of has its place, if it has one: no earlier than its call.
            Answer::Read(response) if is_linearizable(&call.request) => Some(Point {
                revision: response.revision,
                made: false,
                place: None,
            }),
            Answer::Read(_)
            | Answer::Record(_)
            | Answer::Records(_)
            | Answer::Compacted(_)
            | Answer::Limits(_)
            | Answer::Refused(_)
            | Answer::Failed(_)
            | Answer::Unknown(_) => None,
        }
    }

    /// For answers that tell no revision: some state since `least` explains them; and an unknown write that
    /// ran, ran behind what had been answered.
    fn some_state_since(&mut self, call: &Call, least: Revision, before: CallId) {
        let ground = self.ground;
        let explained = match (&call.request, &call.answer) {
            (
                Request::Get {
                    key,
                    consistency: Consistency::Linearizable,
                },
                Answer::Record(record),
            ) => self.held_since(key, record.as_ref(), least, call.answered),
            (Request::Range(range), Answer::Records(result)) => {
                let read = ReadOp::Range(quorate_kv::model::RangeRead::new(range.clone()));
                // The states that may have been seen: from `least` on, to the last one applied by the answer.
                let mut revision = least;
                loop {
                    if ground.model.read(&read, revision) == *result {
                        break true;
                    }
                    revision = revision.next();
                    let run = ground.commit(revision);
                    if run.is_none_or(|run| run.at.is_some_and(|at| at > call.answered)) {
                        break false;
                    }
                }
            }
            (Request::Delete { key }, Answer::Deleted(false)) => {
                ground.complete || self.held_since(key, None, least, call.answered)
            }
            (_, Answer::Unknown(_)) => {
                let ran = ground
                    .of_call(call.id)
                    .find(|(_, run)| run.how == How::Ran && run.changed);
                let made = ran.and_then(|(_, run)| run.outcome.as_ref().ok());
                made.is_none_or(|response| response.revision > least)
            }
            _ => true,
        };
        if !explained {
            let what = format!(
                "no state since {least} explains {}, though call {before} had been answered with {least}",
                told(call)
            );
            self.broken(Rule::RealTime, what);
        }
    }

    /// Whether a key held this at some revision from `least` on that existed at `until`.
    fn held_since(&self, key: &Key, record: Option<&Record>, least: Revision, until: Duration) -> bool {
        let model = &self.ground.model;
        if model.at(key, least) == record {
            return true;
        }
        let later = model
            .versions(key)
            .iter()
            .filter(|version| version.revision > least);
        let seen = later.take_while(|version| {
            let run = self.ground.commit(version.revision);
            run.and_then(|run| run.at).is_none_or(|at| at <= until)
        });
        let mut seen = seen.filter(|version| version.record.as_ref() == record);
        seen.next().is_some()
    }
}

/// Whether what a call asks for may add to what is stored.
fn grows(request: &Request) -> bool {
    let is_growth = |op: &Op| {
        !matches!(
            op,
            Op::Delete { .. } | Op::DeleteRange { .. } | Op::Get { .. } | Op::Range(_)
        )
    };
    match request {
        Request::Txn(txn) => txn.then.iter().chain(&txn.otherwise).any(is_growth),
        Request::Transact { ops, .. } => ops.iter().any(is_growth),
        Request::Put { .. } => true,
        _ => false,
    }
}

fn is_linearizable(request: &Request) -> bool {
    request.writes() || consistency_of(request) == Consistency::Linearizable
}

fn consistency_of(request: &Request) -> Consistency {
    match request {
        Request::Read { consistency, .. } | Request::Get { consistency, .. } => *consistency,
        Request::Txn(_)
        | Request::Put { .. }
        | Request::Delete { .. }
        | Request::Transact { .. }
        | Request::Range(_)
        | Request::Compact(_)
        | Request::SetLimits(_) => Consistency::Linearizable,
    }
}

fn max_lag(call: &Call) -> Option<Duration> {
    match consistency_of(&call.request) {
        Consistency::Stale { max_lag, .. } => max_lag,
        Consistency::Linearizable | Consistency::At(_) => None,
    }
}

/// How long a lag may have been that a node's own clock, which may be slow, took for this one.
fn longest(lag: Duration) -> Duration {
    /// The slowest clock that plans draw, in thousandths of a right one.
    const SLOWEST: u32 = 950;
    lag.saturating_mul(1000) / SLOWEST
}

fn previous(revision: Revision) -> Revision {
    Revision::new(revision.number().saturating_sub(1))
}

/// A call for people: long values are cut.
pub fn told(call: &Call) -> String {
    let Call {
        id,
        called,
        answered,
        request,
        answer,
        ..
    } = call;
    let text = format!("call {id} ({called:?} to {answered:?}, {request:?}, answered {answer:?})");
    shorten(text)
}

fn told_run(run: &Run) -> String {
    let Run {
        index,
        how,
        outcome,
        at,
        ..
    } = run;
    shorten(format!("{how:?} in entry {index} at {at:?}: {outcome:?}"))
}

fn told_result(result: &ReadResult) -> String {
    shorten(format!("{result:?}"))
}

fn shorten(mut text: String) -> String {
    // Padding is dots.
    while let Some(start) = text.find("........") {
        let dots = text[start..].bytes().take_while(|byte| *byte == b'.').count();
        text.replace_range(start..start + dots, "…");
    }
    const SHOWN: usize = 4_000;
    if text.len() > SHOWN {
        let mut end = SHOWN;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}
