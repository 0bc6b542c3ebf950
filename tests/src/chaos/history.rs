//! What the callers of real processes saw, held against the store that they left behind.
//!
//! There are no taps in another process: the one order is rebuilt from the answers, and from what the store says
//! where nobody was told. Then the rule book judges, the same as in the simulator.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use quorate_kv::Client;
use quorate_kv::model::Revision;

use crate::check::history::{Answer, History};
use crate::check::{judge, metadata, rebuild, second};

/// How long the search for an order of one key may take.
const OPINION_MAX: Duration = Duration::from_secs(5);

/// Hears what is judged, how much of it is done, and how much there is.
pub type Progress<'p> = &'p (dyn Fn(&'static str, u64, u64) + Sync);

/// What a history came to, when it was found sound.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sound {
    /// Writes that were acknowledged, each found once.
    pub acknowledged: u64,
    /// Reads, each explained.
    pub reads: u64,
    /// Writes of unknown outcome, each found at most once.
    pub unknown: u64,
    /// Calls that were refused or failed, and changed nothing.
    pub without_effect: u64,
    /// Keys for which another checker found an order as well.
    pub second_opinions: u64,
}

/// Reads everything back and demands that it is explained; an error lists what is not.
///
/// Nobody else may have written to the store, and nobody may write while this runs.
pub async fn check(history: &History, client: &Client, tell: Progress<'_>) -> Result<Sound> {
    let revisions = |done: Revision, all: Revision| tell("revisions", done.number(), all.number());
    let rebuilt = rebuild::rebuild(&history.calls, client, revisions).await;
    let (ground, mut violations) = rebuilt.context("reading the store back")?;
    let calls = history.calls.len() as u64;
    if violations.is_empty() {
        tell("calls", 0, calls);
        violations.extend(judge::judge(&ground, &history.calls));
        tell("rows of metadata", 0, ground.model.revision().number());
        violations.extend(metadata::judge(&ground, &history.calls, &history.meta));
    }
    tell("for a second opinion", 0, calls);
    let opinion = second::opinion(&history.calls, OPINION_MAX);
    violations.extend(opinion.violations);
    if !violations.is_empty() {
        const SHOWN: usize = 20;
        let shown: Vec<String> = violations.iter().take(SHOWN).map(ToString::to_string).collect();
        bail!(
            "{} faults, the first ones:\n  {}",
            violations.len(),
            shown.join("\n  ")
        );
    }
    let mut sound = Sound {
        second_opinions: opinion.sound as u64,
        ..Sound::default()
    };
    for call in &history.calls {
        *match (&call.answer, call.request.writes()) {
            (Answer::Unknown(_), _) => &mut sound.unknown,
            (Answer::Refused(_) | Answer::Failed(_), _) => &mut sound.without_effect,
            (_, true) => &mut sound.acknowledged,
            (_, false) => &mut sound.reads,
        } += 1;
    }
    Ok(sound)
}
