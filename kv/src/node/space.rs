//! Whether there is room for what grows: the quota of a store, and the disk of a node.
//!
//! What keys and values count, history included, is known without a scan. Where it comes near the limit the leader proposes what
//! may write with a note, so that the state machine refuses what lets what lives grow: keys that are there can be written over, as
//! a broker is fenced. What would go beyond the limit, history included, is refused before it is proposed. All is taken again
//! once there is plenty. Between the two lies a distance, so that a store at its limit does not go back and forth with
//! each write. Where the disk of the node that leads is nearly full, and what its files take of it, which
//! [`disk_use`](super::disk_use) looks at, whatever may write is refused before it is proposed.
//!
//! Always: a command that writes nothing, and whatever belongs to the cluster itself, is never refused here. What is on its
//! way when the limit is met comes on top: at most what the queue of proposals holds.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::env;
use crate::machine::{self, Holds, ROOM_PERCENT, View};
use crate::model::{Command, Key, Op, SEQUENCE_DIGITS};
use crate::protocol::Failure;

/// From so many percent of the limit on what grows is refused, until less than [`ROOM_PERCENT`] are used.
const FULL_PERCENT: u64 = 95;
/// From so many on whatever history there is goes.
const PACKED_PERCENT: u64 = 98;
/// From so many on the leader gives history up, however young it is.
const PRESSING_PERCENT: u64 = 75;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Space {
    store: Level,
    disk: Level,
    disk_used: Mutex<Option<Used>>,
}

/// Whether something is full: it is from one bound on, and until another that is lower.
#[derive(Debug, Default)]
struct Level {
    is_full: AtomicBool,
}

/// What a store uses of its limit, or a node of its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) bytes: u64,
    /// Of these, history that may go.
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
        let limits = view.limits().1;
        let max = limits.store_bytes_max;
        let is_kept_for_ever = limits.history_kept_millis == 0;
        Self {
            bytes: live_bytes.saturating_add(history_bytes),
            history: if is_kept_for_ever { 0 } else { history_bytes },
            max: (max > 0).then_some(max),
        }
    }

    /// Whether history is to go, whatever is kept of it otherwise: before anything is refused.
    pub(super) fn presses(self) -> bool {
        // What is left of it when nearly all is live helps nobody but who writes over keys of a store that is full.
        let left = |max: u64| {
            if self.is_at(PACKED_PERCENT) {
                0
            } else if self.is_at(FULL_PERCENT) {
                max / 100
            } else {
                max / 20
            }
        };
        self.is_at(PRESSING_PERCENT) && self.max.is_some_and(|max| self.history > left(max))
    }

    /// Whether a smaller state file is worth more than usual.
    pub(super) fn is_tight(self) -> bool {
        self.is_at(PRESSING_PERCENT)
    }

    /// Whether at least so many percent of the limit are used.
    fn is_at(self, percent: u64) -> bool {
        self.max
            .is_some_and(|max| machine::is_used(self.bytes, max, percent))
    }
}

impl Level {
    /// Takes a look, and says whether what grows is refused; tells of a change.
    fn is_full(&self, used: Used, tell: impl FnOnce(bool)) -> bool {
        let was_full = self.is_full.load(Ordering::Relaxed);
        let is_full = used.is_at(if was_full { ROOM_PERCENT } else { FULL_PERCENT });
        if is_full != was_full && self.is_full.swap(is_full, Ordering::Relaxed) != is_full {
            tell(is_full);
        }
        is_full
    }
}

impl Space {
    /// Takes a look at the store, and says whether what grows is refused.
    pub(super) fn is_full(&self, used: Used) -> bool {
        self.store.is_full(used, |is_full| match is_full {
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
        })
    }

    /// Takes note of what this node uses of its disk.
    pub(super) fn note_disk(&self, used: Used) {
        *self.disk_used.lock().unwrap_or_else(PoisonError::into_inner) = Some(used);
        self.disk.is_full(used, |is_full| match is_full {
            true => tracing::warn!(
                used = used.bytes,
                limit = used.max,
                "the disk of this node is nearly full: where it leads, what may write is refused until less than 80 % is used; \
                 delete keys and shrink the state, make room on the disk, or raise disk_bytes_max"
            ),
            false => tracing::info!(
                used = used.bytes,
                limit = used.max,
                "the disk of this node has room again"
            ),
        });
    }

    /// What this node uses of its disk, as it was looked at last.
    pub(super) fn disk_used(&self) -> Option<Used> {
        *self.disk_used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what grows is refused since the disk is nearly full.
    pub(super) fn disk_is_full(&self) -> bool {
        self.disk.is_full.load(Ordering::Relaxed)
    }

    /// What becomes of a command on a leader; `used` is `None` on a node that does not lead.
    pub(super) fn admits(
        &self,
        command: &Command,
        attempt: Attempt,
        used: impl FnOnce() -> Option<Used>,
    ) -> Admits {
        let Some(wanted) = may_add(command) else {
            return Admits::Now { full_at: None };
        };
        let Some(used) = used() else {
            return Admits::Now { full_at: None };
        };
        let is_full = self.is_full(used);
        let beyond = used
            .max
            .filter(|limit| used.bytes.saturating_add(wanted) > *limit);
        match attempt {
            // It may have been carried out, and has its first answer then, however full the store is by now. Else the state machine
            // refuses it.
            Attempt::Again if is_full || beyond.is_some() => {
                return Admits::Now {
                    full_at: Some(used.bytes),
                };
            }
            Attempt::Again => return Admits::Now { full_at: None },
            Attempt::First if (is_full || beyond.is_some()) && used.presses() => {
                return Admits::OnceHistoryIsGone;
            }
            Attempt::First | Attempt::FirstOutOfTime => {}
        }
        if let Some(limit) = beyond {
            env::mark("space.refused");
            return Admits::Never(Failure::NoSpace {
                used: used.bytes,
                limit,
                wanted,
            });
        }
        if let Some(disk) = self.disk_is_full().then(|| self.disk_used()).flatten() {
            return Admits::Never(Failure::DiskFull {
                used: disk.bytes,
                limit: disk.max.unwrap_or_default(),
            });
        }
        if is_full {
            env::mark("space.nothing_grows");
        }
        Admits::Now {
            full_at: is_full.then_some(used.bytes),
        }
    }
}

/// Which attempt of a write it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// The first, which can wait.
    First,
    /// The first, which has waited for as long as it may.
    FirstOutOfTime,
    /// A later one within a session: an earlier one may have been carried out.
    Again,
}

/// Whether a leader takes a command.
#[derive(Debug, PartialEq)]
pub(super) enum Admits {
    /// Where the store is nearly full so much is used, and the state machine refuses it if it lets what lives grow.
    Now {
        full_at: Option<u64>,
    },
    /// The store is full of history that goes by itself.
    OnceHistoryIsGone,
    Never(Failure),
}

/// Whether a command may add anything to what is stored.
pub(super) fn may_grow(command: &Command) -> bool {
    may_add(command).is_some()
}

/// How many bytes a command may add to what is stored, as the store counts them; `None` for one that adds none.
fn may_add(command: &Command) -> Option<u64> {
    let Command::Txn { txn, .. } = command else {
        return None;
    };
    let bytes_of = |key: &Key, more: usize, value: usize| {
        machine::version_bytes(key.as_bytes().len().saturating_add(more), value as u64)
    };
    let of = |ops: &[Op]| {
        let added = ops.iter().filter_map(|op| match op {
            Op::Put { key, value, .. } => Some(bytes_of(key, 0, value.len())),
            Op::Add { key, .. } | Op::Max { key, .. } => Some(bytes_of(key, 0, size_of::<i64>())),
            // The key that it makes, and the sequence.
            Op::PutSequence { prefix, value } => Some(
                bytes_of(prefix, SEQUENCE_DIGITS, value.len()).saturating_add(bytes_of(
                    prefix,
                    0,
                    size_of::<u64>(),
                )),
            ),
            Op::Delete { .. } | Op::DeleteRange { .. } | Op::Get { .. } | Op::Range(_) => None,
        });
        added.reduce(u64::saturating_add)
    };
    // It takes one way or the other.
    [of(&txn.then), of(&txn.otherwise)].into_iter().flatten().max()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::env::RealDisk;
    use crate::machine::{Entry, Machine, MachineSettings, OpenMode, Payload};
    use crate::model::{
        KeyRange, LogIndex, LogPosition, LogTime, NodeId, Proposal, RangeRead, Term, Txn, encode,
    };

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

    fn put(bytes: usize) -> Command {
        let key = Key::from("a");
        Command::Txn {
            session: None,
            txn: Txn::new([Op::put(key, vec![0; bytes])]),
        }
    }

    #[test]
    fn what_grows_is_refused_on_a_leader_whose_disk_is_nearly_full_and_nothing_else() {
        let delete = Command::Txn {
            session: None,
            txn: Txn::new([Op::delete(Key::from("a"))]),
        };
        let space = Space::default();
        let boundless = || {
            Some(Used {
                max: None,
                ..used(10)
            })
        };
        assert_eq!(
            space.admits(&put(1), Attempt::First, boundless),
            Admits::Now { full_at: None },
            "nobody looked at the disk yet"
        );
        for (bytes, is_full) in [(949, false), (950, true), (800, true), (799, false), (960, true)] {
            space.note_disk(used(bytes));
            let expected = || match is_full {
                true => Admits::Never(Failure::DiskFull {
                    used: bytes,
                    limit: 1_000,
                }),
                false => Admits::Now { full_at: None },
            };
            for of_store in [boundless(), Some(used(10))] {
                assert_eq!(
                    space.admits(&put(1), Attempt::First, || of_store),
                    expected(),
                    "at {bytes}"
                );
            }
            assert_eq!(
                space.admits(&put(1), Attempt::First, || None),
                Admits::Now { full_at: None },
                "it does not lead"
            );
            assert_eq!(
                space.admits(&delete, Attempt::First, boundless),
                Admits::Now { full_at: None }
            );
            assert_eq!(space.disk_is_full(), is_full);
        }
        let both = space.admits(&put(1), Attempt::First, || Some(used_by_the_living(990)));
        assert!(
            matches!(both, Admits::Never(Failure::NoSpace { .. })),
            "the store's limit is told first"
        );
    }

    fn used_by_the_living(bytes: u64) -> Used {
        Used {
            history: 0,
            ..used(bytes)
        }
    }

    #[test]
    fn what_is_used_of_a_store_is_what_lives_and_its_history() {
        let dir = tempfile::tempdir().unwrap();
        let (mut machine, reader) = Machine::open(
            Arc::new(RealDisk),
            dir.path(),
            OpenMode::Create,
            MachineSettings::default(),
        )
        .unwrap();
        let mut apply = |index, command| {
            let proposal = Proposal {
                stamp: LogTime::from_millis(0),
                full_at: None,
                commands: vec![command],
            };
            let entry = Entry {
                position: LogPosition {
                    term: Term::new(1),
                    leader: NodeId::new(1),
                    index: LogIndex::new(index),
                },
                payload: Payload::Proposal(encode(&proposal).into()),
            };
            machine.apply(vec![entry]).unwrap();
        };
        apply(1, put(100));
        apply(2, put(10));
        let used = Used::of(&reader.view().unwrap());
        assert_eq!((used.bytes, used.history), (66 + 100 + 66 + 10, 66 + 100));
        assert_eq!(used.max, Some(8 << 30));
        let kept_for_ever = crate::model::LimitChange::new(crate::model::Limit::HistoryKept, 0);
        let changes = vec![kept_for_ever];
        apply(
            3,
            Command::SetLimits {
                expected: None,
                changes,
            },
        );
        let used = Used::of(&reader.view().unwrap());
        assert_eq!((used.bytes, used.history), (242, 0), "none of it goes by itself");
    }

    /// The story: one transaction of 14 MB was taken by a store of 1 MiB of which 34 kB were used.
    #[test]
    fn one_transaction_that_is_larger_than_what_is_left_is_refused_and_says_how_large() {
        let space = Space::default();
        // A key of one byte, which counts twice, and 64 for each version.
        let left = |bytes: usize| 1_000 - (bytes as u64 + 66);
        assert_eq!(
            space.admits(&put(500), Attempt::First, || Some(used_by_the_living(left(500)))),
            Admits::Now { full_at: None }
        );
        assert_eq!(
            space.admits(&put(500), Attempt::First, || Some(used_by_the_living(
                left(500) + 1
            ))),
            Admits::Never(Failure::NoSpace {
                used: 435,
                limit: 1_000,
                wanted: 566
            })
        );
        assert!(!space.is_full(used_by_the_living(435)), "a smaller one is taken");
    }

    /// The story: a store of which a tenth lived refused writes for a minute, while its history went, half of the revisions
    /// every five seconds.
    #[test]
    fn who_writes_to_a_store_full_of_history_that_goes_by_itself_waits_for_that() {
        let space = Space::default();
        let waits = space.admits(&put(1), Attempt::First, || Some(used(960)));
        assert!(waits == Admits::OnceHistoryIsGone, "{waits:?}");
        let refused = space.admits(&put(1), Attempt::First, || Some(used_by_the_living(960)));
        assert!(
            matches!(refused, Admits::Never(_)),
            "nothing would go: {refused:?}"
        );
    }

    /// The story: a store was full, and no broker could be fenced any more, which writes over a key.
    #[test]
    fn a_store_that_is_nearly_full_takes_what_does_not_grow_as_long_as_its_history_has_room() {
        let space = Space::default();
        let used = |bytes, history| Used {
            bytes,
            history,
            max: Some(10_000),
        };
        let admits = |bytes, history, attempt| space.admits(&put(1), attempt, || Some(used(bytes, history)));
        assert_eq!(admits(9_499, 0, Attempt::First), Admits::Now { full_at: None });
        assert_eq!(
            admits(9_500, 0, Attempt::First),
            Admits::Now { full_at: Some(9_500) }
        );
        // A key of one byte, which counts twice, a value of one byte, and 64.
        assert_eq!(
            admits(9_933, 0, Attempt::First),
            Admits::Now { full_at: Some(9_933) }
        );
        assert!(matches!(admits(9_934, 0, Attempt::First), Admits::Never(_)));
        assert_eq!(admits(9_933, 101, Attempt::First), Admits::OnceHistoryIsGone);
        assert_eq!(
            admits(9_933, 101, Attempt::FirstOutOfTime),
            Admits::Now { full_at: Some(9_933) }
        );
        assert!(matches!(
            admits(9_934, 101, Attempt::FirstOutOfTime),
            Admits::Never(_)
        ));
        let again = |bytes| admits(bytes, 101, Attempt::Again);
        assert_eq!(again(7_999), Admits::Now { full_at: None });
        for bytes in [9_500, 9_934, 20_000] {
            assert_eq!(
                again(bytes),
                Admits::Now { full_at: Some(bytes) },
                "it never waits"
            );
        }
        space.note_disk(used(9_600, 0));
        assert!(matches!(
            admits(9_600, 0, Attempt::First),
            Admits::Never(Failure::DiskFull { .. })
        ));
        assert_eq!(
            again(9_600),
            Admits::Now { full_at: Some(9_600) },
            "not everything"
        );
        // What is larger than what is left waits for history too, in a store that is not full.
        let waits = space.admits(&put(2_000), Attempt::First, || Some(used(9_000, 600)));
        assert_eq!(waits, Admits::OnceHistoryIsGone);
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
        // Who writes over the keys of a full store makes history of what was there.
        let full = |history| Used { history, ..used(950) };
        assert!(full(11).presses());
        assert!(!full(10).presses());
        let packed = |history| Used { history, ..used(980) };
        assert!(packed(1).presses());
        assert!(!packed(0).presses());
    }

    #[test]
    fn what_frees_room_is_never_refused() {
        let key = |name: &str| Key::from(name);
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
        let is_refused = |command: &Command| {
            matches!(
                space.admits(command, Attempt::First, || Some(used_by_the_living(990))),
                Admits::Never(_)
            )
        };
        assert!(is_refused(&txn(vec![put()], vec![])));
        let one = |op| txn(vec![op], vec![]);
        assert!(is_refused(&one(Op::Add {
            key: key("n"),
            delta: 1
        })));
        assert!(is_refused(&one(Op::Max {
            key: key("n"),
            operand: 1
        })));
        let value = Bytes::new();
        assert!(is_refused(&one(Op::PutSequence {
            prefix: key("q"),
            value
        })));
        let all = KeyRange::all();
        assert!(!is_refused(&one(Op::delete_range(all.clone(), 1))));
        assert!(!is_refused(&one(Op::Range(RangeRead::new(all)))));
        assert!(is_refused(&txn(vec![delete()], vec![put()])), "it may put");
        assert!(!is_refused(&txn(vec![delete()], vec![Op::get(key("b"))])));
        let revision = crate::model::Revision::new(7);
        assert!(!is_refused(&Command::Compact { revision }));
        assert!(!is_refused(&Command::open_session(1_000)));
    }
}
