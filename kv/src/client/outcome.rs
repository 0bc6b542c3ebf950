//! What is known of a call over all its attempts: whether it may have taken effect, and what to say of it.
//!
//! Pure: no clock, no task. Every answer and every failure of an attempt goes through [`Progress::take`], and every
//! error of a call comes from there or from [`Progress::out_of_time`].
//!
//! Always: an error other than `OutcomeUnknown` and `AnswerTooLarge` means that no attempt has changed anything, and
//! none will.

use std::collections::BTreeMap;
use std::time::Duration;

use super::endpoint::{CallError, Unanswered};
use super::error::{Error, OutcomeUnknown};
use crate::model::{NodeId, Outcome, TxnRefused};
use crate::planted::{self, Bug};
use crate::protocol::{Failure, Response};

/// Whether what was asked may have been carried out, or may be yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Effect {
    /// Nothing was changed, and nothing will be.
    #[default]
    Impossible,
    /// It may have been, may be yet, or never.
    Possible,
}

/// A call under way.
#[derive(Debug, Default)]
pub(super) struct Progress {
    effect: Effect,
    /// The last setback of each node that was asked, by its place among those known.
    setbacks: BTreeMap<usize, Setback>,
    /// What to say at the end where the last answer was one that waiting may change.
    at_the_end: Option<Error>,
    /// The last node that may have carried it out.
    doer: Option<String>,
}

/// What follows from one attempt.
#[derive(Debug)]
pub(super) enum Step {
    /// The call is answered.
    Answered(Response),
    /// The call has failed.
    Failed(Error),
    /// It is worth another attempt.
    Again(Way),
}

/// Whom to ask next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// The same node as well as another.
    Here,
    /// Another node.
    Elsewhere,
    /// The leader, where one was named.
    ToLeader(Option<(NodeId, String)>),
}

#[derive(Debug)]
struct Setback {
    told: Told,
    node: String,
    reason: String,
}

/// How much a setback says of the reason why a call fails, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Unreachable,
    NoAnswer,
    Answered,
    NotAdmitted,
}

/// A request as far as its outcome is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    /// It may change something.
    pub(super) changes: bool,
    /// Carried out twice, it does no more than once.
    pub(super) repeatable: bool,
}

/// What one attempt came to, by itself.
struct Attempt {
    next: Next,
    effect: Effect,
}

enum Next {
    Answered(Response),
    Failed(Error),
    Again {
        way: Way,
        told: Told,
        reason: String,
        at_the_end: Option<Error>,
    },
}

impl Progress {
    /// Takes in an attempt at the node of this place, which is told by this name.
    pub(super) fn take(
        &mut self,
        place: usize,
        node: &str,
        kind: Kind,
        result: Result<Response, CallError>,
    ) -> Step {
        let Attempt { next, effect } = match result {
            Ok(Response::Failed(failure)) => of_failure(failure, node),
            Ok(response) => of_answer(response, node),
            Err(error) => of_silence(error, node),
        };
        if kind.changes && effect == Effect::Possible {
            self.effect = Effect::Possible;
            self.doer = Some(node.to_owned());
        }
        match next {
            Next::Answered(response) => Step::Answered(response),
            Next::Failed(error) => Step::Failed(self.conclude(error)),
            Next::Again {
                way,
                told,
                reason,
                at_the_end,
            } => {
                if told >= Told::Answered {
                    self.at_the_end = at_the_end;
                }
                if self.effect == Effect::Possible && !kind.repeatable {
                    return Step::Failed(self.conclude(Error::rejected(reason)));
                }
                tracing::debug!(%reason, "an attempt failed; the call is tried again while there is time");
                let node = node.to_owned();
                self.setbacks.insert(place, Setback { told, node, reason });
                Step::Again(way)
            }
        }
    }

    /// Why the call failed, where so many nodes are known and every one of them refuses this client.
    pub(super) fn admitted_by_none(&self, known: usize) -> Option<Error> {
        let refused = |setback: &&Setback| setback.told == Told::NotAdmitted;
        if self.setbacks.len() < known || !self.setbacks.values().all(|setback| refused(&setback)) {
            return None;
        }
        let Setback { node, reason, .. } = self.most_telling()?;
        Some(self.conclude(Error::NotAdmitted {
            node: Some(node.clone()),
            reason: reason.clone(),
        }))
    }

    /// What the call ends with when its time is over.
    pub(super) fn out_of_time(&self, deadline: Duration) -> Error {
        self.conclude(self.at_the_end.clone().unwrap_or_else(|| {
            Error::Unavailable {
                deadline,
                node: self.most_telling().map(|setback| setback.node.clone()),
                last: self
                    .all_that_tells()
                    .unwrap_or_else(|| "there was no time to ask".to_owned()),
            }
        }))
    }

    /// What the call ends with, which fails with this.
    pub(super) fn conclude(&self, error: Error) -> Error {
        match (self.effect, error) {
            (Effect::Impossible, error) => error,
            (Effect::Possible, error) if planted::is(Bug::FailureTakenForCertain) => error,
            // Each says itself what became of the call.
            (Effect::Possible, error @ (Error::OutcomeUnknown(_) | Error::AnswerTooLarge { .. })) => error,
            (Effect::Possible, error) => unknown(self.doer.clone(), &error),
        }
    }

    /// What the state machine's refusal of a write means for the call.
    pub(super) fn refused(&self, refused: TxnRefused) -> Error {
        if is_first_answer(&refused) {
            refused.into()
        } else {
            self.conclude(refused.into())
        }
    }

    /// Whether an attempt may have taken effect.
    pub(super) fn effect(&self) -> Effect {
        self.effect
    }

    /// Of each node the last that it came to, the most telling first: that one does not lead says little without what became
    /// of the one that does.
    fn all_that_tells(&self) -> Option<String> {
        const NODES_MAX: usize = 4;
        let mut setbacks: Vec<&Setback> = self.setbacks.values().collect();
        setbacks.sort_by_key(|setback| std::cmp::Reverse(setback.told));
        let reasons: Vec<&str> = setbacks
            .iter()
            .take(NODES_MAX)
            .map(|setback| setback.reason.as_str())
            .collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    fn most_telling(&self) -> Option<&Setback> {
        // The first of those that tell as much, as where all are told.
        let setbacks = self.setbacks.values();
        setbacks.rev().max_by_key(|setback| setback.told)
    }
}

/// A request that changes something was answered with what is no answer to it: what became of it is not known.
pub(super) fn unexpected(response: &Response, kind: Kind) -> Error {
    let error = Error::rejected(format!("the node answered something else: {response:?}"));
    if kind.changes {
        unknown(None, &error)
    } else {
        error
    }
}

fn unknown(node: Option<String>, error: &Error) -> Error {
    let reason = error.to_string();
    OutcomeUnknown { node, reason }.into()
}

/// Whether this refusal is remembered under the write's number, so that no attempt ever gets, or got, another answer.
fn is_first_answer(refused: &TxnRefused) -> bool {
    match refused {
        TxnRefused::KeyExists { .. }
        | TxnRefused::NotANumber { .. }
        | TxnRefused::Overflow { .. }
        | TxnRefused::RangeTooLarge { .. }
        | TxnRefused::NoSuchLease { .. }
        | TxnRefused::ResponseTooLarge { .. }
        | TxnRefused::TooMuchWork { .. }
        | TxnRefused::AnswerTooLarge { .. } => true,
        // Nothing is known of the write any more, or nothing yet.
        TxnRefused::SessionExpired { .. }
        | TxnRefused::SequenceForgotten { .. }
        | TxnRefused::TooMany { .. }
        | TxnRefused::EntrySpent { .. }
        | TxnRefused::NoSpace { .. } => false,
    }
}

fn of_answer(response: Response, node: &str) -> Attempt {
    // What there are too many of becomes fewer: sessions end, answers are fetched; the next entry has a budget of its own.
    let passing = match &response {
        Response::Written(Outcome::Txn(Err(refused)) | Outcome::SessionOpened(Err(refused))) => {
            Some(refused.clone()).filter(TxnRefused::is_retryable)
        }
        _ => None,
    };
    let next = match passing {
        None => Next::Answered(response),
        // That may take as long as somebody takes to delete something.
        Some(TxnRefused::NoSpace { used, limit, wanted }) => {
            Next::Failed(Error::NoSpace { used, limit, wanted })
        }
        Some(refused) => Next::Again {
            way: Way::Here,
            told: Told::Answered,
            reason: format!("{node}: {refused}"),
            at_the_end: Some(refused.into()),
        },
    };
    Attempt {
        next,
        effect: Effect::Impossible,
    }
}

fn of_silence(CallError { sent, why, reason }: CallError, node: &str) -> Attempt {
    let told = match why {
        Unanswered::Unreachable => Told::Unreachable,
        Unanswered::Broken | Unanswered::Late => Told::NoAnswer,
        Unanswered::NotAdmitted => Told::NotAdmitted,
        Unanswered::TooLarge => {
            let node = Some(node.to_owned());
            return Attempt {
                next: Next::Failed(Error::Rejected { node, reason }),
                effect: Effect::Impossible,
            };
        }
    };
    Attempt {
        next: Next::Again {
            way: Way::Elsewhere,
            told,
            reason,
            at_the_end: None,
        },
        effect: if sent {
            Effect::Possible
        } else {
            Effect::Impossible
        },
    }
}

fn of_failure(failure: Failure, node: &str) -> Attempt {
    let asked_node = || Some(node.to_owned());
    let again = |way, reason: &str, at_the_end| Next::Again {
        way,
        told: Told::Answered,
        reason: format!("{node}: {reason}"),
        at_the_end,
    };
    let (next, effect) = match failure {
        Failure::NotLeader { leader } => (
            again(Way::ToLeader(leader), "it does not lead", None),
            Effect::Impossible,
        ),
        Failure::Unknown { leader, reason } => {
            (again(Way::ToLeader(leader), &reason, None), Effect::Possible)
        }
        Failure::NoQuorum => (
            again(Way::Elsewhere, "no quorum confirmed the read", None),
            Effect::Impossible,
        ),
        Failure::Stopped(reason) => (again(Way::Elsewhere, &reason, None), Effect::Impossible),
        Failure::Busy(reason) => (again(Way::Here, &reason, None), Effect::Impossible),
        Failure::NotYet { asked, current } => {
            let reason = format!("revision {asked} has not come, it is at {current}");
            let node = asked_node();
            let error = Error::NotYet { node, asked, current };
            (again(Way::Here, &reason, Some(error)), Effect::Impossible)
        }
        Failure::Compacted { oldest } => (Next::Failed(Error::Compacted { oldest }), Effect::Impossible),
        Failure::TooStale { lag } => {
            let node = asked_node();
            (Next::Failed(Error::TooStale { node, lag }), Effect::Impossible)
        }
        Failure::ReadTooLong { limit } => {
            let node = asked_node();
            (
                Next::Failed(Error::ReadTooLong { node, limit }),
                Effect::Impossible,
            )
        }
        Failure::NoSpace { used, limit, wanted } => {
            let error = Error::NoSpace { used, limit, wanted };
            (Next::Failed(error), Effect::Impossible)
        }
        Failure::DiskFull { used, limit } => {
            let node = asked_node();
            (
                Next::Failed(Error::DiskFull { node, used, limit }),
                Effect::Impossible,
            )
        }
        Failure::Invalid(reason) | Failure::Refused(reason) => {
            let node = asked_node();
            (Next::Failed(Error::Rejected { node, reason }), Effect::Impossible)
        }
        Failure::MemberNotReady(reason) => {
            let node = asked_node();
            (
                Next::Failed(Error::MemberNotReady { node, reason }),
                Effect::Impossible,
            )
        }
        Failure::LedByAnother { asked, leader } => (
            Next::Failed(Error::LedByAnother { asked, leader }),
            Effect::Impossible,
        ),
        Failure::AnswerTooLarge { size, limit } => (
            Next::Failed(Error::AnswerTooLarge { size, limit }),
            Effect::Possible,
        ),
    };
    Attempt { next, effect }
}
