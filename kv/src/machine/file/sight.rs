//! What a scan comes by, and what it is asked to bring.

use crate::machine::rows::version::RecordRef;

/// What a scan comes by.
#[derive(Clone, Copy, Debug)]
pub(in crate::machine) struct Sight<'a> {
    pub(in crate::machine) key: &'a [u8],
    /// `None`: the key does not exist at the revision asked for, and was only gone by.
    pub(in crate::machine) record: Option<RecordRef<'a>>,
    /// How many rows and versions were looked at on the way here since the last one, at least 1: work that
    /// depends on layers and history, and not on the logical state.
    pub(in crate::machine) steps: u64,
}

/// Whether a scan brings values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::machine) enum Values {
    /// They are read.
    Read,
    /// They are left out: what is visited has empty ones.
    Skip,
}
