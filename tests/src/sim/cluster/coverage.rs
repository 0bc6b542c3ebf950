//! Which faults met the cluster in which phase, counted where they took effect.
//!
//! Always: a kill counts when a process died, a loss of power when something was lost, a cut when a message
//! was held up, an error when a call got it, a change of members when it was acknowledged, a flipped bit when
//! a node refused it, or stopped for it. A fault that was planned and met nobody counts nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use super::Seen;
use super::fault::Kind;
use super::phase::{self, Phase};
use crate::sim::world::lock;
use crate::sim::{Effect, HostId, World};

/// How often each fault took effect in each phase.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    cells: BTreeMap<(Kind, Phase), u64>,
    totals: BTreeMap<Kind, u64>,
}

impl Coverage {
    /// How often a fault took effect in a phase.
    pub fn cell(&self, kind: Kind, phase: Phase) -> u64 {
        self.cells.get(&(kind, phase)).copied().unwrap_or_default()
    }

    /// How often a fault took effect.
    pub fn total(&self, kind: Kind) -> u64 {
        self.totals.get(&kind).copied().unwrap_or_default()
    }

    /// Adds what another run met.
    pub fn add(&mut self, other: &Coverage) {
        for (cell, count) in &other.cells {
            *self.cells.entry(*cell).or_default() += count;
        }
        for (kind, count) in &other.totals {
            *self.totals.entry(*kind).or_default() += count;
        }
    }

    fn count(&mut self, kind: Kind, phases: &[Phase]) {
        *self.totals.entry(kind).or_default() += 1;
        for phase in phases {
            *self.cells.entry((kind, *phase)).or_default() += 1;
        }
    }

    /// The required cells that nothing has met.
    pub fn empty_cells(&self) -> Vec<(Kind, Phase)> {
        let required = REQUIRED
            .iter()
            .flat_map(|(kind, phases)| phases.iter().map(|phase| (*kind, *phase)));
        required
            .filter(|(kind, phase)| self.cell(*kind, *phase) == 0)
            .collect()
    }
}

/// From so many seeds on, a required cell that is empty means that the campaign misses something.
pub const REQUIRED_FROM_SEEDS: u64 = 200;

/// The cells that a campaign must fill.
///
/// Purging takes a few syncs, so that only faults which wait for it meet it; truncating is rare besides, with 30 of them in
/// 200 seeds, and no fault is sure to.
const REQUIRED: [(Kind, &[Phase]); 28] = {
    use Phase::{FreshLeader, Membership, NoLeader, Purging, Replay, Snapshot, Steady, Transfer};
    [
        (Kind::Kill, &[Steady, Membership, Purging]),
        (
            Kind::PowerLoss,
            &[NoLeader, Steady, Membership, Snapshot, Purging],
        ),
        (Kind::Pause, &[Steady]),
        (Kind::Isolate, &[Steady]),
        (Kind::Partition, &[Steady]),
        (Kind::Bridge, &[Steady]),
        (Kind::FalseEnd, &[Steady]),
        (Kind::CutOneWay, &[Steady, Membership]),
        (Kind::HalfOpen, &[Steady]),
        (Kind::Flap, &[Steady, Membership]),
        (Kind::SlowNetwork, &[NoLeader, Steady]),
        (Kind::CrashPoint, &[Steady, Membership]),
        (Kind::DiskError, &[Steady]),
        (Kind::Panic, &[Steady]),
        (Kind::DiskStall, &[Steady]),
        (Kind::DiskFull, &[Steady, Membership]),
        (Kind::ClockJump, &[Steady, Membership]),
        (Kind::ClockAhead, &[Steady]),
        (Kind::AddLearner, &[Steady, Membership, Replay]),
        (Kind::Promote, &[Steady, Membership]),
        (Kind::PromoteAndLeave, &[Steady]),
        (Kind::Remove, &[Steady, Membership]),
        (Kind::Replace, &[Steady]),
        (Kind::BitRot, &[Steady]),
        (Kind::RotUnderNode, &[Steady]),
        (Kind::WipeWhole, &[Steady]),
        (Kind::ReuseId, &[Steady]),
        (Kind::MoveLeader, &[FreshLeader, Steady, Transfer]),
    ]
};

/// Listens to the world, and counts.
#[derive(Clone)]
pub(super) struct Watch {
    world: Arc<World>,
    seen: Arc<Mutex<Seen>>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    coverage: Coverage,
    /// Faults that have ended, and what the operator does after them, are not counted.
    stopped: bool,
    /// Directed links that faults hold up.
    held: BTreeMap<(u32, u32), (Kind, u64)>,
    /// A fault that makes all links slow.
    slow: Option<u64>,
    /// Those of them that have met a message.
    met: BTreeSet<u64>,
}

impl Watch {
    pub(super) fn start(world: Arc<World>, seen: Arc<Mutex<Seen>>) -> Self {
        let watch = Watch {
            world: Arc::clone(&world),
            seen,
            state: Arc::default(),
        };
        let observer = watch.clone();
        world.observe(move |host, effect| observer.notice(host, effect));
        watch
    }

    /// Counts no more.
    pub(super) fn stop(&self) {
        lock(&self.state).stopped = true;
    }

    pub(super) fn coverage(&self) -> Coverage {
        lock(&self.state).coverage.clone()
    }

    pub(super) fn phases(&self) -> Vec<Phase> {
        phase::now(&lock(&self.seen), &self.world)
    }

    /// A fault takes effect now.
    pub(super) fn took_effect(&self, kind: Kind) {
        self.took_effect_in(kind, &self.phases());
    }

    /// A fault took effect that had begun in these phases.
    pub(super) fn took_effect_in(&self, kind: Kind, phases: &[Phase]) {
        let mut state = lock(&self.state);
        if !state.stopped {
            state.coverage.count(kind, phases);
        }
    }

    /// A fault holds up what `from` sends to `to`.
    pub(super) fn hold(&self, from: u32, to: u32, kind: Kind, fault: u64) {
        lock(&self.state).held.insert((from, to), (kind, fault));
    }

    /// The links that a fault still holds up; it holds none afterwards.
    pub(super) fn release(&self, fault: u64) -> Vec<(u32, u32)> {
        let mut state = lock(&self.state);
        let all: Vec<_> = state.held.iter().map(|(link, (_, by))| (*link, *by)).collect();
        let own: Vec<_> = all
            .into_iter()
            .filter(|(_, by)| *by == fault)
            .map(|(link, _)| link)
            .collect();
        for link in &own {
            state.held.remove(link);
        }
        own
    }

    /// The kind of the fault that holds up a link.
    pub(super) fn holder(&self, from: u32, to: u32) -> Option<Kind> {
        lock(&self.state).held.get(&(from, to)).map(|(kind, _)| *kind)
    }

    /// A fault makes all links slow, or none does any more.
    pub(super) fn slow(&self, fault: Option<u64>) {
        lock(&self.state).slow = fault;
    }

    fn notice(&self, host: HostId, effect: Effect) {
        let kind = match effect {
            Effect::Died => Kind::Kill,
            Effect::PowerLost { lost: 0 } => return,
            Effect::PowerLost { .. } => Kind::PowerLoss,
            Effect::Crashed(_) => Kind::CrashPoint,
            Effect::Failed(_) => Kind::DiskError,
            Effect::Panicked(_) => Kind::Panic,
            Effect::Stalled(_) => Kind::DiskStall,
            Effect::DiskFull => Kind::DiskFull,
            Effect::Sent { to } => return self.sent(host.0, to.0),
        };
        self.took_effect(kind);
    }

    /// A cut counts once, with the first message that it holds up.
    fn sent(&self, from: u32, to: u32) {
        let met = {
            let mut state = lock(&self.state);
            let held = state.held.get(&(from, to)).copied();
            let slow = state.slow.map(|fault| (Kind::SlowNetwork, fault));
            let new = |(_, fault): &(Kind, u64)| !state.met.contains(fault);
            let met: Vec<_> = held.into_iter().chain(slow).filter(new).collect();
            state.met.extend(met.iter().map(|(_, fault)| *fault));
            met
        };
        for (kind, _) in met {
            self.took_effect(kind);
        }
    }
}
