//! Bugs planted on purpose, to see whether the simulator finds them.
//!
//! Without the feature `planted`, which no release has, [`is`] is `false` when the code is compiled. With it a
//! bug is switched on for one thread at a time, by the simulator that runs there.

use std::fmt;
use std::str::FromStr;

/// A bug that can be planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Bug {
    /// An append is acknowledged before its sync.
    AckBeforeSync,
    /// A vote is answered 400 ms before it is saved.
    VoteVolatile,
    /// A vote is saved behind appends that were made after it.
    VoteAfterAppend,
    /// A truncation is made in memory and never on disk.
    TruncateNotDurable,
    /// openraft's leader restore is on, while appends return before their sync.
    LeaderRestore,
    /// A snapshot lacks the sessions' remembered answers.
    SessionsNotInSnapshot,
    /// A node forgets what a read at the oldest readable revision needs.
    ForgetsTooMuch,
    /// A retried write is applied again.
    RetryAppliedTwice,
    /// A follower serves linearizable reads from its own state.
    ReadWithoutIndex,
    /// A node's own randomness enters what it applies.
    RandomInApply,
    /// A torn tail of the log is left where it is.
    TornTailKept,
    /// An error of a sync is taken for success.
    SyncErrorIgnored,
    /// A node whose disk was lost comes back under its old id.
    WipedNodeRejoins,
    /// A refused transaction keeps what it had changed before the refusal.
    RefusedTxnInPart,
    /// The log is purged before the state behind it is durable.
    EarlyPurge,
    /// A change of voters that its leader did not end is left in its joint configuration.
    JointAbandoned,
    /// Reads that a transaction's closure makes at once choose a revision each.
    TransactReadsApart,
    /// A failure after an attempt whose outcome is unknown is told as one that changed nothing.
    FailureTakenForCertain,
    /// A client says of its writes under way that it has their answers.
    OpenAnswersForgotten,
    /// A key below the metadata's prefix that is no row fails every operation that reads its range.
    ForeignKeyStopsMetadata,
    /// A follower answers a heartbeat with yes, though it has voted for another since.
    HeartbeatOkWithHigherVote,
    /// Any message of a leader, also of one that was deposed, marks a node's state as fresh.
    LagByAnyMessage,
    /// A linearizable reader joins a round that began before it came.
    RoundJoinedLate,
    /// A vote is given to a node that never answered.
    PromoteUnheard,
    /// Conditions on ranges are not counted into what a transaction looks at.
    GuardsCostNothing,
    /// A session remembers answers of any size.
    AnswerBytesNotCounted,
    /// A session in use makes room for a new one.
    BusySessionEvicted,
    /// One voter that found the leader's process ended suffices for an election before the lease is over.
    EndByOneWitness,
    /// A leader's silence is taken for the end of its process.
    LeaseEndedBySilence,
    /// A leader without its quorum leads on.
    NoStepDown,
    /// What is read of the state file is not compared with what was written to it.
    PageSumNotChecked,
    FullStoreGrows,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 32] = [
        Bug::AckBeforeSync,
        Bug::VoteVolatile,
        Bug::VoteAfterAppend,
        Bug::TruncateNotDurable,
        Bug::LeaderRestore,
        Bug::ForgetsTooMuch,
        Bug::SessionsNotInSnapshot,
        Bug::RetryAppliedTwice,
        Bug::ReadWithoutIndex,
        Bug::RandomInApply,
        Bug::TornTailKept,
        Bug::SyncErrorIgnored,
        Bug::WipedNodeRejoins,
        Bug::RefusedTxnInPart,
        Bug::EarlyPurge,
        Bug::JointAbandoned,
        Bug::TransactReadsApart,
        Bug::FailureTakenForCertain,
        Bug::OpenAnswersForgotten,
        Bug::ForeignKeyStopsMetadata,
        Bug::HeartbeatOkWithHigherVote,
        Bug::LagByAnyMessage,
        Bug::RoundJoinedLate,
        Bug::PromoteUnheard,
        Bug::GuardsCostNothing,
        Bug::AnswerBytesNotCounted,
        Bug::BusySessionEvicted,
        Bug::EndByOneWitness,
        Bug::LeaseEndedBySilence,
        Bug::NoStepDown,
        Bug::PageSumNotChecked,
        Bug::FullStoreGrows,
    ];

    /// As the command line writes it.
    pub fn name(self) -> &'static str {
        match self {
            Bug::AckBeforeSync => "ack-before-sync",
            Bug::VoteVolatile => "vote-volatile",
            Bug::VoteAfterAppend => "vote-after-append",
            Bug::TruncateNotDurable => "truncate-not-durable",
            Bug::LeaderRestore => "leader-restore",
            Bug::ForgetsTooMuch => "forgets-too-much",
            Bug::SessionsNotInSnapshot => "sessions-not-in-snapshot",
            Bug::RetryAppliedTwice => "retry-applied-twice",
            Bug::ReadWithoutIndex => "read-without-index",
            Bug::RandomInApply => "random-in-apply",
            Bug::TornTailKept => "torn-tail-kept",
            Bug::SyncErrorIgnored => "sync-error-ignored",
            Bug::WipedNodeRejoins => "wiped-node-rejoins",
            Bug::RefusedTxnInPart => "refused-txn-in-part",
            Bug::EarlyPurge => "early-purge",
            Bug::JointAbandoned => "joint-abandoned",
            Bug::TransactReadsApart => "transact-reads-apart",
            Bug::FailureTakenForCertain => "failure-taken-for-certain",
            Bug::OpenAnswersForgotten => "open-answers-forgotten",
            Bug::ForeignKeyStopsMetadata => "foreign-key-stops-metadata",
            Bug::HeartbeatOkWithHigherVote => "heartbeat-ok-with-higher-vote",
            Bug::LagByAnyMessage => "lag-by-any-message",
            Bug::RoundJoinedLate => "round-joined-late",
            Bug::PromoteUnheard => "promote-unheard",
            Bug::GuardsCostNothing => "guards-cost-nothing",
            Bug::AnswerBytesNotCounted => "answer-bytes-not-counted",
            Bug::BusySessionEvicted => "busy-session-evicted",
            Bug::EndByOneWitness => "end-by-one-witness",
            Bug::LeaseEndedBySilence => "lease-ended-by-silence",
            Bug::NoStepDown => "no-step-down",
            Bug::PageSumNotChecked => "page-sum-not-checked",
            Bug::FullStoreGrows => "full-store-grows",
        }
    }
}

impl Bug {
    /// What it is, in a line.
    pub fn about(self) -> &'static str {
        match self {
            Bug::AckBeforeSync => "an append is acknowledged before its sync",
            Bug::VoteVolatile => "a vote is answered 400 ms before it is saved",
            Bug::VoteAfterAppend => "a vote is saved behind appends made after it",
            Bug::TruncateNotDurable => "a truncation is made in memory and never on disk",
            Bug::LeaderRestore => "openraft's leader restore is on",
            Bug::ForgetsTooMuch => "a node forgets what a read at the oldest readable revision needs",
            Bug::SessionsNotInSnapshot => "a snapshot lacks the sessions' remembered answers",
            Bug::RetryAppliedTwice => "a retried write is applied again",
            Bug::ReadWithoutIndex => "linearizable reads are served without a read index",
            Bug::RandomInApply => "a node's own randomness enters what it applies",
            Bug::TornTailKept => "a torn tail of the log is left where it is",
            Bug::SyncErrorIgnored => "an error of a sync is taken for success",
            Bug::WipedNodeRejoins => "a node whose disk was lost comes back under its old id",
            Bug::RefusedTxnInPart => "a refused transaction keeps what it had changed",
            Bug::EarlyPurge => "the log is purged before the state behind it is durable",
            Bug::JointAbandoned => "a change of voters left behind is never finished",
            Bug::TransactReadsApart => "reads that a closure makes at once choose a revision each",
            Bug::FailureTakenForCertain => "a failure after an unknown outcome is told as certain",
            Bug::OpenAnswersForgotten => "a client says that it has the answers of its writes under way",
            Bug::ForeignKeyStopsMetadata => "a key that is no row fails the metadata's operations",
            Bug::HeartbeatOkWithHigherVote => {
                "a heartbeat is answered with yes by who has voted for another since"
            }
            Bug::LagByAnyMessage => "any message of a leader, deposed ones too, marks a state as fresh",
            Bug::RoundJoinedLate => "a reader joins a round that began before it came",
            Bug::PromoteUnheard => "a vote is given to a node that never answered",
            Bug::GuardsCostNothing => "conditions on ranges are not counted into a transaction's budget",
            Bug::AnswerBytesNotCounted => "a session remembers answers of any size",
            Bug::BusySessionEvicted => "a session in use makes room for a new one",
            Bug::EndByOneWitness => {
                "one voter's word that the leader's process ended suffices for an election"
            }
            Bug::LeaseEndedBySilence => "a leader's silence is taken for the end of its process",
            Bug::NoStepDown => "a leader without its quorum leads on",
            Bug::PageSumNotChecked => {
                "what is read of the state file is not compared with what was written to it"
            }
            Bug::FullStoreGrows => "a store that is nearly full takes new keys",
        }
    }
}

impl fmt::Display for Bug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// There is no planted bug of that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no planted bug called {name:?}; there are: {}", Bug::ALL.map(Bug::name).join(", "))]
pub struct UnknownBug {
    /// What was asked for.
    pub name: String,
}

impl FromStr for Bug {
    type Err = UnknownBug;

    fn from_str(name: &str) -> Result<Self, UnknownBug> {
        let bug = Bug::ALL.into_iter().find(|bug| bug.name() == name);
        bug.ok_or_else(|| UnknownBug {
            name: name.to_owned(),
        })
    }
}

/// Whether this build can have bugs planted at all.
pub const AVAILABLE: bool = cfg!(feature = "planted");

#[cfg(feature = "planted")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Whether this bug is planted in this thread.
#[inline]
pub fn is(bug: Bug) -> bool {
    #[cfg(feature = "planted")]
    return PLANTED.get() == Some(bug);
    #[cfg(not(feature = "planted"))]
    {
        let _never = bug;
        false
    }
}

/// Plants a bug in this thread, in the place of the one before it; `None` for none.
///
/// Without the feature nothing is planted: see [`AVAILABLE`].
pub fn plant(bug: Option<Bug>) {
    #[cfg(feature = "planted")]
    PLANTED.set(bug);
    #[cfg(not(feature = "planted"))]
    let _never = bug;
}
