//! Every image of a disk that a power loss could leave, for tests that try them all.

use std::collections::{BTreeMap, BTreeSet};

use super::power::{Fate, PowerLoss};
use super::{SimDisk, State};
use crate::sim::rng::Rng;
use crate::sim::world::lock;

/// One way in which a power loss could treat the operations that are not durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survivors {
    /// For the message of a failing test.
    pub name: String,
    kept: BTreeSet<u64>,
}

/// What a disk holds after a power loss.
#[derive(Debug, Clone)]
pub struct DiskImage(State);

impl DiskImage {
    fn new(mut state: State, fates: &BTreeMap<u64, Fate>) -> Self {
        state.power_loss(fates);
        state.locks.clear();
        state.calls = 0;
        state.calls_left = None;
        state.syncs_left = None;
        DiskImage(state)
    }
}

impl SimDisk {
    /// The survivors to try after a crash at this moment: none, all, each operation alone, each prefix, each
    /// prefix's complement, and all but each one. An image that two of them share comes once.
    pub fn survivors(&self) -> Vec<Survivors> {
        let state = lock(&self.shared.state);
        let pending: Vec<u64> = state.pending().into_keys().collect();
        drop(state);
        let mut seen = BTreeSet::new();
        let mut all = Vec::new();
        let mut add = |name: String, kept: BTreeSet<u64>| {
            if seen.insert(kept.clone()) {
                all.push(Survivors { name, kept });
            }
        };
        let n = pending.len();
        add("none".to_owned(), BTreeSet::new());
        add(format!("all {n}"), pending.iter().copied().collect());
        for (i, number) in pending.iter().enumerate() {
            add(format!("only operation {i} of {n}"), BTreeSet::from([*number]));
            add(
                format!("the first {i} of {n}"),
                pending[..i].iter().copied().collect(),
            );
            add(
                format!("all from {i} of {n}"),
                pending[i..].iter().copied().collect(),
            );
            let others = pending.iter().copied().filter(|other| other != number);
            add(format!("all but operation {i} of {n}"), others.collect());
        }
        all
    }

    /// What a power loss at this moment leaves when just these survive. The disk itself stays as it is.
    pub fn after_power_loss(&self, survivors: &Survivors) -> DiskImage {
        let fates = survivors.kept.iter().map(|n| (*n, Fate::Keep)).collect();
        DiskImage::new(lock(&self.shared.state).clone(), &fates)
    }

    /// What a power loss at this moment leaves that draws its losses from a seed.
    pub fn after_drawn_power_loss(&self, power: PowerLoss, seed: u64) -> DiskImage {
        let mut state = lock(&self.shared.state).clone();
        state.random = Rng::new(seed);
        let fates = state.fates(power);
        DiskImage::new(state, &fates)
    }

    /// Puts what an image holds in the place of what this disk holds.
    pub fn load(&self, image: &DiskImage) {
        let mut state = lock(&self.shared.state);
        let generation = state.generation + 1;
        *state = image.0.clone();
        state.generation = generation;
    }

    /// An image as a disk of its own, outside of any simulation.
    pub fn of_image(image: &DiskImage) -> SimDisk {
        let disk = SimDisk::standalone(0);
        disk.load(image);
        disk.reopened()
    }

    /// After so many more calls that change something or make it durable, the power is gone: the disk answers
    /// nothing but errors, and stays as it was for images to be taken of it.
    pub fn stop_after(&self, calls: u64) {
        lock(&self.shared.state).calls_left = Some(calls);
    }

    /// The sync of a file after so many more fails, and no other.
    pub fn fail_sync_after(&self, syncs: u64) {
        lock(&self.shared.state).syncs_left = Some(syncs);
    }

    /// The process alone dies; what ended it is over. Answers the disk as the next process sees it.
    pub fn restarted(&self) -> SimDisk {
        self.crash(PowerLoss::ProcessOnly);
        let mut state = lock(&self.shared.state);
        state.calls_left = None;
        drop(state);
        self.reopened()
    }

    /// Whether the sync that was to fail has come.
    pub fn has_failed_sync(&self) -> bool {
        lock(&self.shared.state).syncs_left.is_none()
    }

    /// How many calls changed something or made it durable.
    pub fn calls(&self) -> u64 {
        lock(&self.shared.state).calls
    }

    /// How many operations no sync covers yet.
    pub fn pending_operations(&self) -> usize {
        let state = lock(&self.shared.state);
        let files = state
            .files
            .values()
            .flat_map(|f| &f.pending)
            .filter(|p| p.is_uncovered());
        files.count() + state.pending_names.iter().filter(|p| p.is_uncovered()).count()
    }
}
