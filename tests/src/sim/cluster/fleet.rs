//! Which hosts there are, which nodes belong to the cluster, and whose turn it is to start again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::fault::Target;

/// How long a node stays down that nobody gave a time.
const DOWN: Duration = Duration::from_millis(300);

/// The hosts of a run.
#[derive(Debug)]
pub(super) struct Fleet {
    /// Hosts whose nodes are members: at the end they must be equal.
    pub(super) members: BTreeSet<u32>,
    /// Members with a vote.
    pub(super) voters: BTreeSet<u32>,
    /// Hosts whose nodes wait to become members.
    pub(super) joining: BTreeSet<u32>,
    /// Hosts that never come back: their disks are lost, or their nodes were taken out.
    pub(super) gone: BTreeSet<u32>,
    /// Hosts of those that formed the cluster whose nodes run with an empty directory, under ids that are not theirs any more.
    pub(super) emptied: BTreeSet<u32>,
    /// The number of the next fresh host. Numbers are never used again.
    next: u32,
    /// Hosts whose start is on its way.
    pub(super) starting: BTreeSet<u32>,
    /// How long hosts stay down once they are.
    down: BTreeMap<u32, Duration>,
}

impl Fleet {
    pub(super) fn of(nodes: u32) -> Self {
        Fleet {
            members: (1..=nodes).collect(),
            voters: (1..=nodes).collect(),
            joining: BTreeSet::new(),
            gone: BTreeSet::new(),
            emptied: BTreeSet::new(),
            next: nodes + 1,
            starting: BTreeSet::new(),
            down: BTreeMap::new(),
        }
    }

    /// All hosts that run, or should.
    pub(super) fn running(&self) -> Vec<u32> {
        let all = self.members.union(&self.joining);
        all.filter(|n| !self.gone.contains(n)).copied().collect()
    }

    /// A host that was never there.
    pub(super) fn fresh(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    /// All hosts that ever were.
    pub(super) fn all(&self) -> std::ops::Range<u32> {
        1..self.next
    }

    pub(super) fn set_down(&mut self, host: u32, down: Duration) {
        self.down.insert(host, down);
    }

    pub(super) fn take_down(&mut self, host: u32) -> Duration {
        self.down.remove(&host).unwrap_or(DOWN)
    }

    /// Whom a target means among the hosts that run.
    pub(super) fn find(&self, target: Target, leader: Option<u32>) -> Option<u32> {
        let running = self.running();
        let first = running.first().copied();
        match target {
            Target::Leader => leader.filter(|n| running.contains(n)).or(first),
            Target::Follower => running
                .iter()
                .rev()
                .find(|n| Some(**n) != leader)
                .copied()
                .or(first),
            Target::Nth(n) => running.get(n as usize % running.len().max(1)).copied(),
        }
    }
}
