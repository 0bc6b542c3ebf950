//! What a scrub says of each of its steps: of the state file ([`machine::Scrubber`](crate::machine::Scrubber)), or of the log
//! ([`log::LogScrubber`](crate::log::LogScrubber)).

/// What one step of a scrub did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Bytes that were gone through, and found to be right.
    pub bytes: u64,
    /// Bytes that the pass still has before it; 0 when it is complete.
    pub left: u64,
}
