//! Why a run failed: which rule was broken, and how.

use std::fmt;
use std::time::Duration;

use quorate_kv::client::Error;

use super::plan::Plan;
use super::workload::History;
use crate::check::history::{Answer, Call};
use crate::sim::Halt;

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which: a few words that two failures for the same reason share.
    pub rule: String,
    /// What was expected and what was seen, with the events.
    pub detail: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.detail)
    }
}

impl Failure {
    fn new(rule: &str, detail: impl fmt::Display) -> Self {
        Failure {
            rule: rule.to_owned(),
            detail: detail.to_string(),
        }
    }

    /// The simulation could not go on.
    pub(super) fn of_halt(halt: &Halt) -> Self {
        match halt {
            Halt::Deadlock { .. } => Failure::new("deadlock", halt),
            Halt::Livelock { .. } => Failure::new("livelock", halt),
            Halt::Violation(violation) => {
                let panicked = violation.what.contains("panicked");
                Failure::new(if panicked { "panic" } else { "violation" }, violation)
            }
        }
    }

    /// The audit says "rule: detail".
    pub(super) fn of_audit(told: String) -> Self {
        let is_rule = |rule: &str| rule.len() <= 40 && !rule.contains(|c: char| c.is_ascii_digit());
        match told.split_once(": ") {
            Some((rule, detail)) if is_rule(rule) => Failure::new(rule, detail),
            _ if told.starts_with("node ") => Failure::new("nodes differ", told),
            _ => Failure::new("history", told),
        }
    }

    /// Where nothing can go wrong, every outcome is known; and once there is a leader, somebody serves every call, unless the
    /// links are so slow that no heartbeat can be answered in time.
    pub(super) fn of_calm(plan: &Plan, history: &History, led_since: Option<Duration>) -> Option<Self> {
        if !plan.is_calm() {
            return None;
        }
        let unknown = history.counts().unknown;
        if unknown > 0 {
            let told = format!("{unknown} outcomes are unknown in a run without faults");
            return Some(Failure::new("calm", told));
        }
        let is_quick = plan.links.latency_max <= plan.tuning.heartbeat;
        let led_since = led_since.filter(|_| is_quick)?;
        let unserved = |call: &&Call| {
            let is_unserved = matches!(call.answer, Answer::Failed(Error::Unavailable { .. }));
            is_unserved && call.called >= led_since && call.answered <= plan.faulty
        };
        let calls = history.calls();
        let call = calls.iter().find(unserved)?;
        let told = format!(
            "nobody served {} in a run without faults: {:?}",
            call.id, call.answer
        );
        Some(Failure::new("calm", told))
    }
}
