//! The two orders in which a range can be read.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

/// Which end of a range comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Lowest key first.
    #[default]
    Ascending,
    /// Highest key first.
    Descending,
}

impl Order {
    /// Which of two keys comes first.
    pub(crate) fn compare(self, a: &[u8], b: &[u8]) -> Ordering {
        match self {
            Order::Ascending => a.cmp(b),
            Order::Descending => b.cmp(a),
        }
    }
}
