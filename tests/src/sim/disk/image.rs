//! Every image of a disk that a power loss could leave, for tests that try them all.

use std::collections::{BTreeMap, BTreeSet};

use super::power::Fate;
use super::{SimDisk, World};
use crate::sim::world::{HostId, lock};

/// One way in which a power loss could treat the operations that are not durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survivors {
    /// For the message of a failing test.
    pub name: String,
    kept: BTreeSet<u64>,
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

    /// Another disk: this one, as a power loss at this moment leaves it when just these survive.
    pub fn after_power_loss(&self, survivors: &Survivors) -> SimDisk {
        let mut state = lock(&self.shared.state).clone();
        let fates: BTreeMap<u64, Fate> = survivors.kept.iter().map(|n| (*n, Fate::Keep)).collect();
        state.power_loss(&fates);
        state.generation += 1;
        state.locks.clear();
        SimDisk::with_state(HostId::OUTSIDE, World::new(), state)
    }

    /// How many operations were issued so far: writes, changes of length and of names.
    pub fn operations(&self) -> u64 {
        lock(&self.shared.state).next_op
    }

    /// How many of them no sync covers yet.
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
