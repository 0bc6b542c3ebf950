//! Crash points that a test has armed.
//!
//! Random kills do not suffice: a vote that was not durable went unseen in 60 seeds of them, and was found in
//! seconds by a crash at the step itself.

use std::time::Duration;

use super::disk::PowerLoss;

/// What happens at an armed crash point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashAction {
    /// The host is switched off there and then.
    SwitchOff(PowerLoss),
    /// The code gets an error of the disk.
    Error,
    /// The disk takes so much longer (where its time is charged at all).
    Delay(Duration),
    /// The code panics.
    Panic,
}

/// How the message of a panic begins that was injected.
pub(super) const INJECTED_PANIC: &str = "injected panic at ";

/// Whether a panic was injected.
pub(super) fn is_injected(payload: &(dyn std::any::Any + Send)) -> bool {
    let message = payload.downcast_ref::<String>();
    message.is_some_and(|message| message.starts_with(INJECTED_PANIC))
}

/// A crash point that waits for its hour.
#[derive(Debug, Clone)]
pub(super) struct Armed {
    pub(super) point: String,
    /// How many more times the point is passed unharmed.
    pub(super) passes: u64,
    pub(super) action: CrashAction,
}

impl Armed {
    fn is_at(&self, name: &str) -> bool {
        match self.point.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => self.point == name,
        }
    }
}

/// What a crash point does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Pass,
    Delay(Duration),
    Error,
    Panic,
    SwitchOff(PowerLoss),
}

impl Outcome {
    /// Counts a pass of the point `name`; whatever goes off is armed no longer.
    pub(super) fn at(armed: &mut Vec<Armed>, name: &str) -> Outcome {
        for (i, one) in armed.iter_mut().enumerate() {
            if !one.is_at(name) {
                continue;
            }
            if one.passes > 0 {
                one.passes -= 1;
                continue;
            }
            return match armed.remove(i).action {
                CrashAction::SwitchOff(power) => Outcome::SwitchOff(power),
                CrashAction::Error => Outcome::Error,
                CrashAction::Delay(time) => Outcome::Delay(time),
                CrashAction::Panic => Outcome::Panic,
            };
        }
        Outcome::Pass
    }
}
