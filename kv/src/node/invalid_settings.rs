//! What is wrong with a setting.

use crate::timing::InvalidTiming;

/// A setting outside its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSettings {
    /// The times contradict each other.
    #[error(transparent)]
    Timing(#[from] InvalidTiming),
    /// A number is outside its range.
    #[error("{setting} is {value}; it must be {bounds}")]
    OutOfRange {
        /// The setting's name.
        setting: &'static str,
        /// The value given.
        value: u64,
        /// The range allowed.
        bounds: &'static str,
    },
    /// The parts that are given, and what the others need at least, are more than the budget.
    #[error(
        "memory_bytes is {memory_bytes}, and the parts of it need {least} at least: give it more, or the parts that are set \
         themselves less"
    )]
    TooLittleMemory {
        /// The budget.
        memory_bytes: u64,
        /// What it must be.
        least: u64,
    },
}
