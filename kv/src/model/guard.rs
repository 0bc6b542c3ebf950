//! Guards: what must hold for a transaction's `then` to run.

use serde::{Deserialize, Serialize};

use super::codec;
use super::{IntoValue, Key, KeyRange, LeaseId, Revision, Value};

/// A tree of all / any / not over conditions, evaluated on the state before the transaction.
///
/// ```
/// use quorate_kv::model::{Compare, Guard, KeyRange, KeyTest, RangeTest, Revision};
///
/// let guard = Guard::all([
///     Guard::missing("jobs/7/owner"),
///     Guard::value("state", "open"),
///     Guard::unchanged("config", Revision::new(12)),
///     Guard::any([
///         Guard::empty(KeyRange::prefix("stops/")),
///         Guard::not(Guard::exists("paused")),
///     ]),
///     // At most nine workers; none of them new.
///     Guard::range(KeyRange::prefix("workers/"), RangeTest::Count(Compare::Less, 10)),
///     Guard::range(KeyRange::prefix("workers/"), RangeTest::All(KeyTest::Version(Compare::Greater, 1))),
/// ]);
/// assert_eq!(guard.conditions().count(), 7);
/// ```
///
/// Held flat, in preorder, so that reading one from the network needs no recursion and a hostile depth
/// costs nothing. The default guard has no node and always holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    #[serde(deserialize_with = "codec::steps")]
    nodes: Vec<GuardNode>,
}

/// One node of a guard in preorder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuardNode {
    /// Holds when each of the next `0` subtrees holds; so does one of none.
    All(u32),
    /// Holds when at least one of the next `0` subtrees holds; one of none does not.
    Any(u32),
    /// Holds when the next subtree does not.
    Not,
    /// A leaf.
    Condition(Condition),
}

/// A leaf of a guard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// About one key.
    Key {
        /// The key.
        key: Key,
        /// What must hold of it.
        test: KeyTest,
    },
    /// About the keys of a range.
    Range {
        /// The range.
        range: KeyRange,
        /// What must hold of them.
        test: RangeTest,
    },
}

/// A comparison: `found` OP `operand`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compare {
    /// =
    Equal,
    /// !=
    NotEqual,
    /// <
    Less,
    /// <=
    LessOrEqual,
    /// >
    Greater,
    /// >=
    GreaterOrEqual,
}

impl Compare {
    /// Whether `found` OP `operand` holds.
    pub fn holds<T: Ord + ?Sized>(self, found: &T, operand: &T) -> bool {
        match self {
            Compare::Equal => found == operand,
            Compare::NotEqual => found != operand,
            Compare::Less => found < operand,
            Compare::LessOrEqual => found <= operand,
            Compare::Greater => found > operand,
            Compare::GreaterOrEqual => found >= operand,
        }
    }
}

/// A test of one key. A key that does not exist has version 0, no revisions (`None`, less than any
/// revision), no lease, and no value: each comparison of its value fails, `NotEqual` alone holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyTest {
    /// Its value, bytewise.
    Value(Compare, Value),
    /// How often it was written since its creation.
    Version(Compare, u64),
    /// The revision that created it.
    CreateRevision(Compare, Option<Revision>),
    /// The revision that last wrote it.
    ModRevision(Compare, Option<Revision>),
    /// The lease that it is attached to.
    Lease(Compare, Option<LeaseId>),
    /// Whether it exists.
    Exists(bool),
}

/// A test of the keys that exist in a range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RangeTest {
    /// At least one key passes.
    Any(KeyTest),
    /// Each key passes; so does an empty range.
    All(KeyTest),
    /// How many keys there are. Counting stops where the answer is certain.
    Count(Compare, u64),
}

/// A condition that did not hold, and what was found instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedCondition {
    /// Which leaf: 0 is the first condition of the guard in preorder.
    pub index: u32,
    /// What was there.
    pub found: Found,
}

/// What a failed condition found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// No such key.
    Missing,
    /// The key, without its value unless the condition was about the value and it has at most 1 KiB.
    Record {
        /// The value, where it is told.
        value: Option<Value>,
        /// The revision that created the key.
        create_revision: Revision,
        /// The revision that last wrote it.
        mod_revision: Revision,
        /// How often it was written.
        version: u64,
        /// Its lease.
        lease: Option<LeaseId>,
    },
    /// How many keys were in the range (counted as far as was needed).
    Count(u64),
    /// A key of the range that spoiled an `All`.
    Key(Key),
    /// No key of the range passed an `Any`.
    None,
}

impl Guard {
    /// A guard that always holds.
    pub fn always() -> Self {
        Self::default()
    }

    /// One condition.
    pub fn condition(condition: Condition) -> Self {
        Self {
            nodes: vec![GuardNode::Condition(condition)],
        }
    }

    /// A test of one key.
    pub fn key(key: impl Into<Key>, test: KeyTest) -> Self {
        Self::condition(Condition::Key {
            key: key.into(),
            test,
        })
    }

    /// A test of a range.
    pub fn range(range: impl Into<KeyRange>, test: RangeTest) -> Self {
        Self::condition(Condition::Range {
            range: range.into(),
            test,
        })
    }

    /// Holds when the key exists.
    pub fn exists(key: impl Into<Key>) -> Self {
        Self::key(key, KeyTest::Exists(true))
    }

    /// Holds when the key does not exist.
    pub fn missing(key: impl Into<Key>) -> Self {
        Self::key(key, KeyTest::Exists(false))
    }

    /// Holds when the key has this value.
    pub fn value(key: impl Into<Key>, value: impl IntoValue) -> Self {
        Self::key(key, KeyTest::Value(Compare::Equal, value.into_value()))
    }

    /// Holds when the key was last written at this revision; with `None`, when it does not exist.
    pub fn unchanged(key: impl Into<Key>, mod_revision: impl Into<Option<Revision>>) -> Self {
        Self::key(key, KeyTest::ModRevision(Compare::Equal, mod_revision.into()))
    }

    /// Holds when no key of the range exists.
    pub fn empty(range: impl Into<KeyRange>) -> Self {
        Self::range(range, RangeTest::Count(Compare::Equal, 0))
    }

    /// Holds when all of them hold.
    pub fn all(guards: impl IntoIterator<Item = Guard>) -> Self {
        Self::join(GuardNode::All, guards)
    }

    /// Holds when at least one of them holds.
    pub fn any(guards: impl IntoIterator<Item = Guard>) -> Self {
        Self::join(GuardNode::Any, guards)
    }

    /// Holds when `guard` does not.
    #[allow(
        clippy::should_implement_trait,
        reason = "reads as the third of all, any, not"
    )]
    pub fn not(guard: Guard) -> Self {
        let mut nodes = vec![GuardNode::Not];
        nodes.extend(guard.subtree());
        Self { nodes }
    }

    fn join(node: fn(u32) -> GuardNode, guards: impl IntoIterator<Item = Guard>) -> Self {
        let mut nodes = vec![node(0)];
        let mut count: u32 = 0;
        for guard in guards {
            nodes.extend(guard.subtree());
            count = count.saturating_add(1);
        }
        nodes[0] = node(count);
        Self { nodes }
    }

    /// As a subtree of another guard: the empty guard becomes an `all` of none.
    fn subtree(self) -> Vec<GuardNode> {
        if self.nodes.is_empty() {
            vec![GuardNode::All(0)]
        } else {
            self.nodes
        }
    }

    /// The nodes in preorder; none for the guard that always holds.
    pub fn nodes(&self) -> &[GuardNode] {
        &self.nodes
    }

    /// The conditions, in the order in which [`FailedCondition::index`] counts them.
    pub fn conditions(&self) -> impl Iterator<Item = &Condition> {
        self.nodes.iter().filter_map(|node| match node {
            GuardNode::Condition(condition) => Some(condition),
            GuardNode::All(_) | GuardNode::Any(_) | GuardNode::Not => None,
        })
    }

    /// Whether the nodes form exactly one tree (or none at all).
    pub fn is_well_formed(&self) -> bool {
        let mut missing: u64 = u64::from(!self.nodes.is_empty());
        for node in &self.nodes {
            if missing == 0 {
                return false;
            }
            missing -= 1;
            missing += match node {
                GuardNode::All(n) | GuardNode::Any(n) => u64::from(*n),
                GuardNode::Not => 1,
                GuardNode::Condition(_) => 0,
            };
        }
        missing == 0
    }

    /// Evaluates the tree, asking `leaf` for each condition in order (every one, so that all that failed
    /// can be told). Requires [`is_well_formed`](Self::is_well_formed).
    pub fn evaluate<E>(&self, mut leaf: impl FnMut(u32, &Condition) -> Result<bool, E>) -> Result<bool, E> {
        // Leaves are asked in preorder; the tree is then folded from the back with a stack of results.
        let mut answers = Vec::with_capacity(self.nodes.len());
        for (index, condition) in self.conditions().enumerate() {
            answers.push(leaf(u32::try_from(index).unwrap_or(u32::MAX), condition)?);
        }
        let mut stack: Vec<bool> = Vec::new();
        for node in self.nodes.iter().rev() {
            let result = match node {
                GuardNode::Condition(_) => answers.pop().unwrap_or(false),
                GuardNode::Not => !stack.pop().unwrap_or(false),
                GuardNode::All(n) => {
                    let rest = stack.len().saturating_sub(*n as usize);
                    stack.drain(rest..).all(|one| one)
                }
                GuardNode::Any(n) => {
                    let rest = stack.len().saturating_sub(*n as usize);
                    stack.drain(rest..).any(|one| one)
                }
            };
            stack.push(result);
        }
        Ok(stack.pop().unwrap_or(true))
    }
}
