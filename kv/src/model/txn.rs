//! Transactions.

use serde::{Deserialize, Serialize};

use super::codec;
use super::{FailedCondition, Guard, LogIndex, Op, OpResult, Revision};

/// If `guard` holds, `then`; else `otherwise`. All or nothing, strictly serializable, always.
///
/// [`Client::txn`](crate::Client::txn) puts one together and runs it; one that was put together before is for
/// [`Client::commit`](crate::Client::commit).
///
/// ```
/// use quorate_kv::model::{Guard, Op, Txn};
///
/// let take = Txn::new([Op::put("owner", "me")])
///     .when(Guard::missing("owner"))
///     .or_else([Op::get("owner")]);
/// assert_eq!((take.then.len(), take.otherwise.len()), (1, 1));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// Evaluated on the state before the transaction.
    pub guard: Guard,
    /// What runs when the guard holds.
    #[serde(deserialize_with = "codec::steps")]
    pub then: Vec<Op>,
    /// What runs when it does not.
    #[serde(deserialize_with = "codec::steps")]
    pub otherwise: Vec<Op>,
}

impl Txn {
    /// A transaction without a guard.
    pub fn new(then: impl IntoIterator<Item = Op>) -> Self {
        Self {
            guard: Guard::always(),
            then: then.into_iter().collect(),
            otherwise: Vec::new(),
        }
    }

    /// The same with this guard, in place of the one that it had. [`Guard::all`] joins several.
    #[must_use]
    pub fn when(mut self, guard: Guard) -> Self {
        self.guard = guard;
        self
    }

    /// The same with what runs when the guard does not hold, in place of what it had.
    #[must_use]
    pub fn or_else(mut self, otherwise: impl IntoIterator<Item = Op>) -> Self {
        self.otherwise = otherwise.into_iter().collect();
        self
    }
}

/// The answer to a transaction that ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnResponse {
    /// The store's revision after it; a transaction that changed something made this one.
    pub revision: Revision,
    /// The Raft entry that carried it.
    pub log_index: LogIndex,
    /// The guard held, and `then` ran.
    pub succeeded: bool,
    /// Where the guard did not hold: every condition that was false on its own, in order. At most
    /// [`TxnResponse::FAILED_MAX`] are told.
    pub failed: Vec<FailedCondition>,
    /// One result for each operation of the branch that ran.
    pub results: Vec<OpResult>,
}

impl TxnResponse {
    /// The most failed conditions that a response tells.
    pub const FAILED_MAX: usize = 1024;
}
