//! What a scan comes by, and what it is asked to bring.

use super::version::RecordRef;

/// What a scan comes by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight<'a> {
    pub(super) key: &'a [u8],
    /// `None`: the key does not exist at the revision asked for, and was only gone by.
    pub(super) record: Option<RecordRef<'a>>,
    /// How many rows and versions were looked at on the way here since the last one, at least 1: work that
    /// depends on layers and history, and not on the logical state.
    pub(super) steps: u64,
}

/// Whether a scan brings values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Values {
    /// They are read.
    Read,
    /// They are left out: what is visited has empty ones.
    Skip,
}
