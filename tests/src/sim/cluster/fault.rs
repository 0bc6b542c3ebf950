//! The faults that a plan may hold, as data.
//!
//! Always: a fault says all that its execution needs; whom it meets may depend on the run ("the leader"), and
//! a fault that finds nobody to meet does nothing.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::phase::Phase;
use super::plan::micros;
use crate::sim::PowerLoss;

/// One fault, and when it comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultEvent {
    /// Not before this long after the run's beginning.
    #[serde(rename = "at_micros", with = "micros")]
    pub at: Duration,
    /// And not before the cluster is in this phase, for which at most [`FaultEvent::PATIENCE`] is waited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<Phase>,
    /// What happens.
    #[serde(flatten)]
    pub fault: Fault,
}

impl FaultEvent {
    /// How long a fault waits for its phase; afterwards it comes all the same.
    pub const PATIENCE: Duration = Duration::from_secs(3);
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fault {
    /// A process dies, and starts again.
    Kill {
        /// Whose.
        target: Target,
        /// How long it stays down.
        #[serde(rename = "down_micros", with = "micros")]
        down: Duration,
    },
    /// Hosts lose power.
    PowerLoss {
        /// One of them.
        target: Target,
        /// How many.
        reach: Reach,
        /// What becomes of what was not synced.
        loss: PowerLoss,
        /// How long they stay down.
        #[serde(rename = "down_micros", with = "micros")]
        down: Duration,
    },
    /// A host stands still (SIGSTOP).
    Pause {
        /// Which.
        target: Target,
        /// How long.
        #[serde(rename = "lasts_micros", with = "micros")]
        lasts: Duration,
    },
    /// A node is cut off from all other nodes; clients still reach it.
    Isolate {
        /// Which.
        target: Target,
        /// How long.
        #[serde(rename = "lasts_micros", with = "micros")]
        lasts: Duration,
    },
    /// The nodes fall apart into two groups.
    Partition {
        /// One of the smaller group.
        target: Target,
        /// How many more are in it.
        others: u32,
        /// How long.
        #[serde(rename = "lasts_micros", with = "micros")]
        lasts: Duration,
    },
    /// A node reaches one other alone, and is reached by it; clients still reach it.
    Bridge {
        /// Which.
        target: Target,
        /// How long.
        #[serde(rename = "lasts_micros", with = "micros")]
        lasts: Duration,
    },
    /// A node is told that the process of the one that it follows has ended, which is not so.
    FalseEnd {
        /// Who is told.
        target: Target,
    },
    /// Nothing that one node sends reaches another.
    CutOneWay {
        /// Who sends.
        from: Target,
        /// Who hears nothing.
        to: Target,
        /// How long.
        #[serde(rename = "lasts_micros", with = "micros")]
        lasts: Duration,
    },
    /// What one node sends another arrives, the answers do not, and no connection breaks.
    HalfOpen {
        /// Who hears no answer.
        from: Target,
        /// Whose answers are held.
        to: Target,
        /// How long.
        #[serde(rename = "lasts_micros", with = "micros")]
        lasts: Duration,
    },
    /// A node is cut off and comes back, again and again.
    Flap {
        /// Which.
        target: Target,
        /// How often.
        times: u32,
        /// How long each cut lasts, and each pause between two.
        #[serde(rename = "lasts_micros", with = "micros")]
        lasts: Duration,
    },
    /// Every link is slow and loses much.
    SlowNetwork {
        /// How long a message travels at most.
        #[serde(rename = "latency_micros", with = "micros")]
        latency: Duration,
        /// How many of a million messages are lost on each attempt.
        loss_per_million: u32,
        /// How long.
        #[serde(rename = "lasts_micros", with = "micros")]
        lasts: Duration,
    },
    /// A host loses power at a step that its node takes.
    CrashPoint {
        /// Whose.
        target: Target,
        /// Which step; `disk.*` is any that begins so.
        point: String,
        /// How often it is passed unharmed first.
        passes: u64,
        /// What becomes of what was not synced.
        loss: PowerLoss,
        /// How long it stays down.
        #[serde(rename = "down_micros", with = "micros")]
        down: Duration,
    },
    /// The disk answers a step with an error.
    DiskError {
        /// Whose.
        target: Target,
        /// Which step.
        point: String,
        /// How often it succeeds first.
        passes: u64,
    },
    /// The code of a node panics at a step that it takes.
    Panic {
        /// Whose.
        target: Target,
        /// Which step; `disk.*` is any that begins so.
        point: String,
        /// How often it is passed unharmed first.
        passes: u64,
    },
    /// The disk takes its time with a sync.
    DiskStall {
        /// Whose.
        target: Target,
        /// How many syncs come first.
        passes: u64,
        /// How long.
        #[serde(rename = "lasts_micros", with = "micros")]
        lasts: Duration,
    },
    /// No file can grow.
    DiskFull {
        /// Whose.
        target: Target,
        /// How long.
        #[serde(rename = "lasts_micros", with = "micros")]
        lasts: Duration,
    },
    /// A wall clock jumps.
    ClockJump {
        /// Whose.
        target: Target,
        /// How far.
        #[serde(rename = "by_micros", with = "micros")]
        by: Duration,
        /// Back, not forward.
        back: bool,
    },
    /// A wall clock is far ahead for a while, and then right again.
    ClockAhead {
        /// Whose.
        target: Target,
        /// How far.
        #[serde(rename = "by_micros", with = "micros")]
        by: Duration,
        /// How long.
        #[serde(rename = "lasts_micros", with = "micros")]
        lasts: Duration,
    },
    /// A node on a fresh host joins as a learner.
    AddLearner,
    /// A learner gets a vote.
    Promote,
    /// A learner is to get a vote; the leader loses power in the middle, and nobody asks again for a while.
    PromoteAndLeave {
        /// How long; at most until the faults end, and then for ever.
        #[serde(rename = "away_micros", with = "micros")]
        away: Duration,
    },
    /// A node is taken out of the cluster.
    Remove {
        /// Which; the first of all stays, so that clients find the cluster.
        target: Target,
    },
    /// A host's disk is lost; a node on a fresh host takes its place, under a new id.
    Replace {
        /// Which.
        target: Target,
    },
    /// A node stops as planned, and a bit flips in what it left on its disk. It must refuse that or not depend on it; one
    /// that refuses is replaced, under a new id.
    BitRot {
        /// Which.
        target: Target,
    },
    /// A bit flips in the state file of a node that runs. It must stop where it meets that, and never serve it; the host is
    /// replaced, with a node under a new id.
    RotUnderNode {
        /// Which.
        target: Target,
    },
    /// A host's whole disk is lost, and its node starts again under its old id. It must be refused and stop; then a node on
    /// a fresh host takes its place, under a new id.
    WipeWhole {
        /// Which.
        target: Target,
    },
    /// A node is taken out, and an empty one starts under its id, which nobody adds. It must take no part.
    ReuseId {
        /// Which.
        target: Target,
    },
    /// Leadership is handed on.
    MoveLeader,
}

/// Whom a fault meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Who leads then; without a leader, whoever comes first.
    Leader,
    /// A node that does not lead.
    Follower,
    /// The node of this place in the list of those there are, counted round.
    Nth(u32),
}

/// How many hosts a fault meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// One.
    One,
    /// As many as a quorum can spare, and at least one.
    Minority,
    /// A quorum.
    Majority,
    /// All.
    All,
}

/// The kinds of faults: the coverage table's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "each is a fault, described there")]
pub enum Kind {
    Kill,
    PowerLoss,
    Pause,
    Isolate,
    Partition,
    Bridge,
    FalseEnd,
    CutOneWay,
    HalfOpen,
    Flap,
    SlowNetwork,
    CrashPoint,
    DiskError,
    Panic,
    DiskStall,
    DiskFull,
    ClockJump,
    ClockAhead,
    AddLearner,
    Promote,
    PromoteAndLeave,
    Remove,
    Replace,
    BitRot,
    RotUnderNode,
    WipeWhole,
    ReuseId,
    MoveLeader,
}

impl Kind {
    /// All, in the order of the table.
    pub const ALL: [Kind; 28] = [
        Kind::Kill,
        Kind::PowerLoss,
        Kind::Pause,
        Kind::Isolate,
        Kind::Partition,
        Kind::Bridge,
        Kind::FalseEnd,
        Kind::CutOneWay,
        Kind::HalfOpen,
        Kind::Flap,
        Kind::SlowNetwork,
        Kind::CrashPoint,
        Kind::DiskError,
        Kind::Panic,
        Kind::DiskStall,
        Kind::DiskFull,
        Kind::ClockJump,
        Kind::ClockAhead,
        Kind::AddLearner,
        Kind::Promote,
        Kind::PromoteAndLeave,
        Kind::Remove,
        Kind::Replace,
        Kind::BitRot,
        Kind::RotUnderNode,
        Kind::WipeWhole,
        Kind::ReuseId,
        Kind::MoveLeader,
    ];

    /// As plans and the command line write it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Kill => "kill",
            Kind::PowerLoss => "power-loss",
            Kind::Pause => "pause",
            Kind::Isolate => "isolate",
            Kind::Partition => "partition",
            Kind::Bridge => "bridge",
            Kind::FalseEnd => "false-end",
            Kind::CutOneWay => "cut-one-way",
            Kind::HalfOpen => "half-open",
            Kind::Flap => "flap",
            Kind::SlowNetwork => "slow-network",
            Kind::CrashPoint => "crash-point",
            Kind::DiskError => "disk-error",
            Kind::Panic => "panic",
            Kind::DiskStall => "disk-stall",
            Kind::DiskFull => "disk-full",
            Kind::ClockJump => "clock-jump",
            Kind::ClockAhead => "clock-ahead",
            Kind::AddLearner => "add-learner",
            Kind::Promote => "promote",
            Kind::PromoteAndLeave => "promote-and-leave",
            Kind::Remove => "remove",
            Kind::Replace => "replace",
            Kind::BitRot => "bit-rot",
            Kind::RotUnderNode => "rot-under-node",
            Kind::WipeWhole => "wipe-whole",
            Kind::ReuseId => "reuse-id",
            Kind::MoveLeader => "move-leader",
        }
    }

    /// What it is, in a line.
    pub fn about(self) -> &'static str {
        match self {
            Kind::Kill => "a process dies, its disk keeps what was written",
            Kind::PowerLoss => "hosts lose power, and with it what was not synced",
            Kind::Pause => "a host stands still for a while",
            Kind::Isolate => "a node is cut off from all others, clients still reach it",
            Kind::Partition => "the nodes fall apart into two groups",
            Kind::Bridge => "a node reaches exactly one other, clients still reach it",
            Kind::FalseEnd => "a node is told that its leader's process has ended, which is not so",
            Kind::CutOneWay => "one direction between two nodes is cut",
            Kind::HalfOpen => "answers between two nodes are held, no connection breaks",
            Kind::Flap => "a node is cut off and comes back, again and again",
            Kind::SlowNetwork => "every link is slow and loses much",
            Kind::CrashPoint => "a host loses power at a step of its node's",
            Kind::DiskError => "a disk answers a step with an error",
            Kind::Panic => "the code of a node panics at a step",
            Kind::DiskStall => "a disk takes its time with a sync",
            Kind::DiskFull => "a disk is full for a while",
            Kind::ClockJump => "a wall clock jumps",
            Kind::ClockAhead => "a wall clock is hours ahead for a while",
            Kind::AddLearner => "a node on a fresh host joins as a learner",
            Kind::Promote => "a learner gets a vote",
            Kind::PromoteAndLeave => "a change of voters is left in the middle, its leader down",
            Kind::Remove => "a node is taken out of the cluster",
            Kind::Replace => "a disk is lost, a node under a new id takes the place",
            Kind::BitRot => "a bit flips on the disk of a node that has stopped, which notices it",
            Kind::RotUnderNode => "a bit flips in the state file of a node that runs, which stops",
            Kind::WipeWhole => "a node comes back without its directory, and is refused",
            Kind::ReuseId => "an empty node comes under the id of one that was taken out",
            Kind::MoveLeader => "leadership is handed on",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// There is no fault of that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no kind of fault called {name:?}; there are: {}", Kind::ALL.map(Kind::name).join(", "))]
pub struct UnknownKind {
    /// What was asked for.
    pub name: String,
}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<Self, UnknownKind> {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        kind.ok_or_else(|| UnknownKind {
            name: name.to_owned(),
        })
    }
}

impl Fault {
    /// Its row in the coverage table.
    pub fn kind(&self) -> Kind {
        match self {
            Fault::Kill { .. } => Kind::Kill,
            Fault::PowerLoss { .. } => Kind::PowerLoss,
            Fault::Pause { .. } => Kind::Pause,
            Fault::Isolate { .. } => Kind::Isolate,
            Fault::Partition { .. } => Kind::Partition,
            Fault::Bridge { .. } => Kind::Bridge,
            Fault::FalseEnd { .. } => Kind::FalseEnd,
            Fault::CutOneWay { .. } => Kind::CutOneWay,
            Fault::HalfOpen { .. } => Kind::HalfOpen,
            Fault::Flap { .. } => Kind::Flap,
            Fault::SlowNetwork { .. } => Kind::SlowNetwork,
            Fault::CrashPoint { .. } => Kind::CrashPoint,
            Fault::DiskError { .. } => Kind::DiskError,
            Fault::Panic { .. } => Kind::Panic,
            Fault::DiskStall { .. } => Kind::DiskStall,
            Fault::DiskFull { .. } => Kind::DiskFull,
            Fault::ClockJump { .. } => Kind::ClockJump,
            Fault::ClockAhead { .. } => Kind::ClockAhead,
            Fault::AddLearner => Kind::AddLearner,
            Fault::Promote => Kind::Promote,
            Fault::PromoteAndLeave { .. } => Kind::PromoteAndLeave,
            Fault::Remove { .. } => Kind::Remove,
            Fault::Replace { .. } => Kind::Replace,
            Fault::BitRot { .. } => Kind::BitRot,
            Fault::RotUnderNode { .. } => Kind::RotUnderNode,
            Fault::WipeWhole { .. } => Kind::WipeWhole,
            Fault::ReuseId { .. } => Kind::ReuseId,
            Fault::MoveLeader => Kind::MoveLeader,
        }
    }
}
