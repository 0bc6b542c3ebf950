//! Whether there is room for what grows: the quota of a store.
//!
//! What keys and values count, history included, is known without a scan. Where it comes near the limit the leader refuses what
//! would grow before it is proposed, and takes whatever frees room; it takes all again once there is plenty. Between the
//! two lies a distance, so that a store at its limit does not go back and forth with each write.
//!
//! Always: a command that writes nothing, and whatever belongs to the cluster itself, is never refused here. What is on its
//! way when the limit is met comes on top: at most what the queue of proposals holds.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::env;
use crate::machine::{Holds, View};
use crate::model::{Command, Op};
use crate::protocol::Failure;

/// From so many percent of the limit on what grows is refused, until less than so many are used.
const FULL_PERCENT: u64 = 95;
const ROOM_PERCENT: u64 = 80;
/// From so many on the leader gives history up, however young it is.
const PRESSING_PERCENT: u64 = 75;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Space {
    is_full: AtomicBool,
}

/// What a store uses of its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) bytes: u64,
    /// Of these, history.
    pub(super) history: u64,
    /// `None`: there is no limit.
    pub(super) max: Option<u64>,
}

impl Used {
    pub(super) fn of(view: &View) -> Self {
        let Holds {
            live_bytes,
            history_bytes,
            ..
        } = view.holds();
        let max = view.limits().1.store_bytes_max;
        Self {
            bytes: live_bytes.saturating_add(history_bytes),
            history: history_bytes,
            max: (max > 0).then_some(max),
        }
    }

    /// Whether history is to go, whatever is kept of it otherwise: before anything is refused.
    pub(super) fn presses(self) -> bool {
        // What is left of it when nearly all is live helps nobody.
        let is_much = |max: u64| self.history > max / 20;
        self.is_at(PRESSING_PERCENT) && self.max.is_some_and(is_much)
    }

    /// Whether at least so many percent of the limit are used.
    fn is_at(self, percent: u64) -> bool {
        let at = |max: u64| u128::from(self.bytes) * 100 >= u128::from(max) * u128::from(percent);
        self.max.is_some_and(at)
    }
}

impl Space {
    /// Takes a look, and says whether what grows is refused.
    pub(super) fn is_full(&self, used: Used) -> bool {
        let was_full = self.is_full.load(Ordering::Relaxed);
        let is_full = used.is_at(if was_full { ROOM_PERCENT } else { FULL_PERCENT });
        if is_full != was_full && self.is_full.swap(is_full, Ordering::Relaxed) != is_full {
            match is_full {
                true => tracing::warn!(
                    used = used.bytes,
                    store_bytes_max = used.max,
                    "the store is nearly full: what grows is refused until less than 80 % is used; delete keys and give up \
                     history, or raise store_bytes_max"
                ),
                false => {
                    env::mark("space.has_room_again");
                    tracing::info!(
                        used = used.bytes,
                        store_bytes_max = used.max,
                        "the store has room again"
                    );
                }
            }
        }
        is_full
    }

    /// Why a command is refused, if it is.
    pub(super) fn refusal(&self, command: &Command, used: impl FnOnce() -> Option<Used>) -> Option<Failure> {
        if !grows(command) {
            return None;
        }
        let used = used()?;
        let limit = used.max?;
        if !self.is_full(used) {
            return None;
        }
        env::mark("space.refused");
        Some(Failure::NoSpace {
            used: used.bytes,
            limit,
        })
    }
}

/// Whether a command may add to what is stored.
fn grows(command: &Command) -> bool {
    let Command::Txn { txn, .. } = command else {
        return false;
    };
    let mut ops = txn.then.iter().chain(&txn.otherwise);
    ops.any(|op| match op {
        Op::Put { .. } | Op::Add { .. } | Op::Max { .. } | Op::PutSequence { .. } => true,
        Op::Delete { .. } | Op::DeleteRange { .. } | Op::Get { .. } | Op::Range(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Key, Txn};

    fn used(bytes: u64) -> Used {
        Used {
            bytes,
            history: 100,
            max: Some(1_000),
        }
    }

    #[test]
    fn what_grows_is_refused_from_95_percent_until_less_than_80_are_used() {
        let space = Space::default();
        let steps = [
            (0, false),
            (949, false),
            (950, true),
            (1_200, true),
            (800, true),
            (799, false),
            (949, false),
            (950, true),
        ];
        for (bytes, is_full) in steps {
            assert_eq!(space.is_full(used(bytes)), is_full, "at {bytes}");
        }
        let boundless = Used {
            bytes: u64::MAX,
            history: u64::MAX,
            max: None,
        };
        assert!(!space.is_full(boundless), "the limit was taken away");
    }

    /// The story: the newest 10,000 revisions alone had filled a store, and none of them ever went, as nothing was written.
    #[test]
    fn history_is_pressed_before_anything_is_refused_where_there_is_much_of_it() {
        assert!(!used(749).presses());
        assert!(used(750).presses());
        let nearly_all_lives = Used {
            history: 50,
            ..used(900)
        };
        assert!(!nearly_all_lives.presses());
    }

    #[test]
    fn what_frees_room_is_never_refused() {
        let key = |name: &str| Key::try_from(name).expect("a legal key");
        let txn = |then: Vec<Op>, otherwise: Vec<Op>| Command::Txn {
            session: None,
            txn: Txn {
                otherwise,
                ..Txn::new(then)
            },
        };
        let delete = || Op::delete(key("a"));
        let put = || Op::put(key("a"), "1");
        let space = Space::default();
        let is_refused = |command: &Command| space.refusal(command, || Some(used(990))).is_some();
        assert!(is_refused(&txn(vec![put()], vec![])));
        assert!(is_refused(&txn(vec![delete()], vec![put()])), "it may put");
        assert!(!is_refused(&txn(vec![delete()], vec![Op::get(key("b"))])));
        let revision = crate::model::Revision::new(7);
        assert!(!is_refused(&Command::Compact { revision }));
        assert!(!is_refused(&Command::open_session(1_000)));
    }
}
