//! The limits of a cluster: part of the replicated state, the same on every node.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What the number of a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Bytes.
    Bytes,
    /// Milliseconds.
    Millis,
}

macro_rules! limits {
    ($(
        $field:ident: $name:literal, $variant:ident = $tag:literal, $unit:ident,
        default $default:expr, works $works:expr, sets $sets:expr,
        $(#[doc = $doc:literal])*
    )*) => {
        /// The limits of a cluster.
        ///
        /// They are part of the replicated state: an empty state has the [`Default`], the first leader sets those of its
        /// settings with [`Command::SetLimits`](super::Command::SetLimits), whoever operates the cluster changes them
        /// ([`Client::set_limits`](crate::client::Client::set_limits)), snapshots carry them and the state hash covers
        /// them. Were they read from each node's settings, two nodes that were configured differently would answer the same
        /// entry differently.
        ///
        /// **What a transaction costs.** It is counted in keys, over the logical state, so that every node counts the same. A
        /// condition or an operation on one key looks at one key. A condition or an operation on a range looks at
        /// [`RANGE_KEYS`](Self::RANGE_KEYS) keys, and at each key that it visits, which counts once more for each whole KiB that it
        /// has: a count up to the operand and one more, "any" up to the first key that passes, "all" up to the first that does not, a
        /// range read up to its limit and one more, a range delete the same. Where a value is looked at, that counts as
        /// [`VALUE_KEYS`](Self::VALUE_KEYS) keys more, and another for each whole KiB. A transaction changes each key that it writes or
        /// deletes once.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct ReplicatedLimits {
            $($(#[doc = $doc])* pub $field: u64,)*
        }

        /// One of the [`ReplicatedLimits`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Limit {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Default for ReplicatedLimits {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl ReplicatedLimits {
            /// One of them.
            pub fn get(&self, limit: Limit) -> u64 {
                match limit {
                    $(Limit::$variant => self.$field,)*
                }
            }

            fn get_mut(&mut self, limit: Limit) -> &mut u64 {
                match limit {
                    $(Limit::$variant => &mut self.$field,)*
                }
            }
        }

        impl Limit {
            /// All of them, in the order of their tags.
            pub const ALL: [Limit; [$($tag),*].len()] = [$(Limit::$variant),*];

            /// Its name for people and in files of settings.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Limit::$variant => $name,)*
                }
            }

            /// What stands for it in bytes. Never given to another.
            pub const fn tag(self) -> u8 {
                match self {
                    $(Limit::$variant => $tag,)*
                }
            }

            /// What it counts.
            pub const fn unit(self) -> Unit {
                match self {
                    $(Limit::$variant => Unit::$unit,)*
                }
            }

            /// What it means, in a few sentences.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Limit::$variant => concat!($($doc, "\n"),*).trim_ascii(),)*
                }
            }

            /// What a store works with: what a node accepts in an entry.
            const fn works(self) -> Bounds {
                match self {
                    $(Limit::$variant => $works,)*
                }
            }

            /// What people may set.
            pub const fn bounds(self) -> Bounds {
                match self {
                    $(Limit::$variant => $sets,)*
                }
            }
        }
    };
}

/// What a limit may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The least.
    pub min: u64,
    /// The most.
    pub max: u64,
    /// Whether it may be 0 besides: there is no such limit then.
    pub or_none: bool,
}

const fn from_to(min: u64, max: u64) -> Bounds {
    Bounds {
        min,
        max,
        or_none: false,
    }
}

const fn none_or(min: u64, max: u64) -> Bounds {
    Bounds {
        min,
        max,
        or_none: true,
    }
}

impl Bounds {
    /// Whether a limit may be this.
    pub const fn allow(self, value: u64) -> bool {
        self.min <= value && value <= self.max || self.or_none && value == 0
    }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SECOND: u64 = 1_000;
const DAY: u64 = 86_400 * SECOND;
const ANY: Bounds = from_to(0, u64::MAX);
const ONE_OR_MORE: Bounds = from_to(1, u64::MAX);

limits! {
    sessions_max: "sessions_max", SessionsMax = 1, Count,
    default 10_000, works from_to(1, 1_000_000), sets from_to(1, 1_000_000),
    /// The most sessions of clients at once.

    session_ttl_millis_max: "session_ttl", SessionTtl = 2, Millis,
    default 3_600 * SECOND, works ONE_OR_MORE, sets from_to(SECOND, 30 * DAY),
    /// How long a client's session outlives its last write at most, by the log's time. Who asks for longer gets this.

    session_idle_millis: "session_idle", SessionIdle = 3, Millis,
    default 60 * SECOND, works ANY, sets from_to(SECOND, 30 * DAY),
    /// How long a session must not have written to make room for another when there are as many as may be, by the log's time.
    /// A client whose session made room and that then sends a write again does not hear its outcome, so it must be longer
    /// than clients wait for an answer.

    session_idle_entries: "session_idle_entries", SessionIdleEntries = 4, Count,
    default 10_000, works ANY, sets ONE_OR_MORE,
    /// While the log's time stands still (a leader's clock was ahead for a while), a session is idle after so many entries
    /// without a command of its own instead.

    unanswered_max: "unanswered_max", UnansweredMax = 5, Count,
    default 4_096, works ONE_OR_MORE, sets from_to(4_096, 65_536),
    /// The most writes of one session whose answers are remembered: those that the client has not said it has.

    unanswered_bytes_max: "unanswered_bytes_max", UnansweredBytesMax = 6, Bytes,
    default 8 * MIB, works ONE_OR_MORE, sets from_to(64 * KIB, GIB),
    /// The most bytes that the remembered answers of one session have in all. The disk holds up to so many for each session.

    response_bytes_max: "response_bytes_max", ResponseBytesMax = 7, Bytes,
    default 4 * MIB, works ONE_OR_MORE, sets from_to(KIB, 16 * MIB),
    /// The most bytes that the reads of one transaction return, where a record counts its key, its value and 64 bytes.

    keys_looked_at_max: "keys_looked_at_max", KeysLookedAtMax = 8, Count,
    default 200_000, works ONE_OR_MORE, sets from_to(1_000, 1 << 24),
    /// The most keys that one transaction may look at. It bounds how long one transaction holds up all others.

    keys_changed_max: "keys_changed_max", KeysChangedMax = 9, Count,
    default 131_072, works ONE_OR_MORE, sets from_to(1_000, 1 << 24),
    /// The most keys that one transaction may change.

    entry_budget: "entry_budget", EntryBudget = 10, Count,
    default 2, works from_to(1, 1_000), sets from_to(1, 1_000),
    /// An entry carries many transactions. Their ranges together may visit, delete and return as much as so many
    /// transactions may. What exceeds that is refused and may be tried again. Keys that are named are bounded by the
    /// entry's size.

    history_kept_millis: "history_kept", HistoryKept = 11, Millis,
    default 600 * SECOND, works ANY, sets none_or(SECOND, 365 * DAY),
    /// For how long history is kept: the leader gives up by itself what is older; 0 is for ever. A read at a revision
    /// before that is refused with the oldest that there is.

    history_revisions_kept: "history_revisions_kept", HistoryRevisionsKept = 12, Count,
    default 10_000, works ANY, sets ANY,
    /// So many of the newest revisions are kept all the same, however old they are.

    store_bytes_max: "store_bytes_max", StoreBytesMax = 13, Bytes,
    default 8 * GIB, works ANY, sets none_or(4 * KIB, 1 << 50),
    /// The most bytes that keys and values may have, history included, where each version of a key counts its key
    /// twice, its value and 64 bytes; 0 is no limit. At 95 % of it what would grow is refused, until less than 80 % is used.
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Limit {
    type Err = UnknownLimit;

    fn from_str(name: &str) -> Result<Self, UnknownLimit> {
        let found = Limit::ALL.into_iter().find(|limit| limit.name() == name);
        found.ok_or_else(|| UnknownLimit {
            name: name.to_owned(),
        })
    }
}

/// No limit has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no limit {name:?}")]
pub struct UnknownLimit {
    /// The name given.
    pub name: String,
}

/// A limit with which a store would not work, or that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidLimit {
    /// It is not what it may be.
    #[error("the limit {limit} is {value}; it must be {}{min} to {max}", if *or_none { "0 for none, or " } else { "" })]
    OutOfRange {
        /// The limit.
        limit: Limit,
        /// The value given.
        value: u64,
        /// The least that it may be.
        min: u64,
        /// The most that it may be.
        max: u64,
        /// Whether it may be 0 besides.
        or_none: bool,
    },
    /// It is one of another release.
    #[error("no limit has the tag {tag}: it is of another release")]
    Unknown {
        /// Its tag.
        tag: u8,
    },
}

impl Limit {
    /// The limit of a tag.
    pub fn of_tag(tag: u8) -> Result<Self, InvalidLimit> {
        let found = Limit::ALL.into_iter().find(|limit| limit.tag() == tag);
        found.ok_or(InvalidLimit::Unknown { tag })
    }

    /// Checks that people may set it to a value.
    pub fn check(self, value: u64) -> Result<(), InvalidLimit> {
        self.within(value, self.bounds())
    }

    fn within(self, value: u64, bounds: Bounds) -> Result<(), InvalidLimit> {
        match bounds.allow(value) {
            true => Ok(()),
            false => Err(InvalidLimit::OutOfRange {
                limit: self,
                value,
                min: bounds.min,
                max: bounds.max,
                or_none: bounds.or_none,
            }),
        }
    }
}

/// A limit that is to be another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitChange {
    /// [`Limit::tag`]: one of another release can be written down, and is refused by who does not know it.
    pub tag: u8,
    /// What it is to be.
    pub value: u64,
}

impl LimitChange {
    /// A limit and its new value.
    pub fn new(limit: Limit, value: u64) -> Self {
        Self {
            tag: limit.tag(),
            value,
        }
    }
}

impl ReplicatedLimits {
    /// What a condition or an operation on a range costs beside the keys that it visits, in keys looked at.
    pub const RANGE_KEYS: u64 = 8;
    /// What it costs to look at a value, or for one, in keys looked at.
    pub const VALUE_KEYS: u64 = 4;
    /// A value, and a key that a range visits, cost one key more for each so many whole bytes.
    pub const BYTES_PER_KEY: u64 = 1024;

    /// Checks that a store works with these limits.
    pub fn check(&self) -> Result<(), InvalidLimit> {
        for limit in Limit::ALL {
            limit.within(self.get(limit), limit.works())?;
        }
        Ok(())
    }

    /// These limits with some of them changed, in order. Refused where a store would not work with them.
    pub fn with(mut self, changes: &[LimitChange]) -> Result<Self, InvalidLimit> {
        for change in changes {
            *self.get_mut(Limit::of_tag(change.tag)?) = change.value;
        }
        self.check()?;
        Ok(self)
    }

    /// All of them.
    pub fn to_changes(&self) -> Vec<LimitChange> {
        let change = |limit| LimitChange::new(limit, self.get(limit));
        Limit::ALL.into_iter().map(change).collect()
    }

    /// What [`to_changes`](Self::to_changes) says: all of them, each once, in the order of the tags. `None` for anything else,
    /// which is of another release.
    pub fn of_changes(changes: &[LimitChange]) -> Option<Self> {
        let mut limits = Self::default();
        if changes.len() != Limit::ALL.len() {
            return None;
        }
        for (limit, change) in Limit::ALL.into_iter().zip(changes) {
            if limit.tag() != change.tag {
                return None;
            }
            *limits.get_mut(limit) = change.value;
        }
        Some(limits)
    }
}

impl Serialize for ReplicatedLimits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_changes().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ReplicatedLimits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let changes = Vec::<LimitChange>::deserialize(deserializer)?;
        Self::of_changes(&changes)
            .ok_or_else(|| D::Error::custom("a limit is missing, or there is one that is not known"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_names_stand_for_one_limit_each_and_defaults_may_be_set() {
        let defaults = ReplicatedLimits::default();
        assert_eq!(defaults.check(), Ok(()));
        for (place, limit) in Limit::ALL.into_iter().enumerate() {
            assert_eq!(
                usize::from(limit.tag()),
                place + 1,
                "{limit}: in order, none left out"
            );
            assert_eq!(Limit::of_tag(limit.tag()), Ok(limit));
            assert_eq!(limit.name().parse(), Ok(limit));
            assert_eq!(limit.check(defaults.get(limit)), Ok(()));
            assert!(limit.meaning().ends_with('.'), "{limit}");
            let (may, works) = (limit.bounds(), limit.works());
            assert!(
                works.allow(may.min) && works.allow(may.max),
                "{limit}: what may be set works"
            );
        }
        assert_eq!(Limit::of_tag(99), Err(InvalidLimit::Unknown { tag: 99 }));
        assert!("session".parse::<Limit>().is_err());
    }

    #[test]
    fn a_change_changes_what_it_names_and_is_refused_whole() {
        let stand = ReplicatedLimits::default();
        let both = [
            LimitChange::new(Limit::SessionsMax, 7),
            LimitChange::new(Limit::StoreBytesMax, 0),
        ];
        let mut expected = stand;
        (expected.sessions_max, expected.store_bytes_max) = (7, 0);
        assert_eq!(stand.with(&both), Ok(expected));
        let bad = [both[0], LimitChange::new(Limit::SessionsMax, 0)];
        let refused = stand.with(&bad).expect_err("none is too few");
        assert_eq!(
            refused.to_string(),
            "the limit sessions_max is 0; it must be 1 to 1000000"
        );
        let unknown = [LimitChange { tag: 200, value: 1 }];
        assert_eq!(stand.with(&unknown), Err(InvalidLimit::Unknown { tag: 200 }));
        let told = Limit::HistoryKept.check(7).expect_err("less than a second");
        assert_eq!(
            told.to_string(),
            "the limit history_kept is 7; it must be 0 for none, or 1000 to 31536000000"
        );
    }
}
