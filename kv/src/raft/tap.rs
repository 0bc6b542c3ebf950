//! A tap on what a node applies: for checkers, which compare nodes entry by entry.

use std::fmt::Debug;

use crate::machine::{Applied, Entry, EntryOutcome};

/// Hears everything that a node's state machine applies, in order, on the thread that applies.
///
/// Must not block: nothing is applied meanwhile. After a restart the stream goes on behind the state that was
/// durable, so entries may come again.
pub trait Tap: Send + Sync + Debug {
    /// Entries were applied together: their outcomes, one for each, and where the state stands behind the last.
    /// Called before any of them is answered.
    fn applied(&self, entries: &[Entry], outcomes: &[EntryOutcome], after: &Applied);

    /// A snapshot took the state's place.
    fn installed(&self, after: &Applied);
}
