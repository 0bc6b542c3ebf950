//! What the store holds for a key.

use serde::{Deserialize, Serialize};

use super::{LeaseId, Revision, Value};

/// The state of one key at one revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The value.
    pub value: Value,
    /// The revision that created the key (anew, after a delete).
    pub create_revision: Revision,
    /// The revision that last wrote it.
    pub mod_revision: Revision,
    /// 1 on creation, then one more with each revision that writes the key.
    pub version: u64,
    /// The lease that it is attached to.
    pub lease: Option<LeaseId>,
}

impl Record {
    /// The value as text, where it is UTF-8.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.value).ok()
    }

    /// The value as a number, where it is one: 8 bytes, as [`Op::Add`](super::Op::Add) keeps it.
    pub fn number(&self) -> Option<i64> {
        super::value::number(&self.value)
    }
}
