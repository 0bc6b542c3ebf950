//! What each node applied, and that no two nodes differ; what its log promised, and that it is kept.
//!
//! [`Agreement`] takes events one by one and keeps the cluster's one log, the first account of each entry, against
//! which every later one is held. [`Taps`] is how nodes feed it while they run.
//!
//! Always: an entry once in the record never changes; the first rule broken stays the first that is told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_kv::machine::{Applied, Entry, EntryOutcome};
use quorate_kv::model::{LogIndex, LogPosition, LogTime, Revision, StateHash};
use quorate_kv::node::{LogEvent, Tap};

use super::ledger::Ledger;
use super::{Rule, Violation};

/// Something that a node did with its state.
#[derive(Debug, Clone)]
pub struct TapEvent {
    /// The node.
    pub node: u64,
    /// When, on the checker's clock.
    pub at: Duration,
    /// What.
    pub what: TapWhat,
}

/// What a node did.
#[derive(Debug, Clone)]
pub enum TapWhat {
    /// Its process started; it goes on from a state that was durable.
    Started,
    /// It applied entries together.
    Applied {
        /// The entries.
        entries: Vec<Entry>,
        /// One outcome for each.
        outcomes: Vec<EntryOutcome>,
        /// Where it stands behind the last.
        after: Standing,
    },
    /// A snapshot is about to take its state's place.
    Installing {
        /// The last entry that the snapshot holds.
        last: Option<LogIndex>,
    },
    /// A snapshot took its state's place.
    Installed {
        /// Where it stands now.
        after: Standing,
    },
    /// Something happened between its Raft and its log.
    Log(LogEvent),
    /// It said that its log begins behind this entry.
    Purged {
        /// The last entry that is gone.
        index: LogIndex,
    },
}

/// Where a state stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The last entry applied.
    pub index: Option<LogIndex>,
    /// The revision.
    pub revision: Revision,
    /// The log's time.
    pub log_time: LogTime,
    /// The hash of everything.
    pub hash: StateHash,
}

impl From<&Applied> for Standing {
    fn from(applied: &Applied) -> Self {
        Self {
            index: applied.position.map(|position| position.index),
            revision: applied.revision,
            log_time: applied.log_time,
            hash: applied.state_hash,
        }
    }
}

/// An entry of the one log.
#[derive(Debug, Clone)]
pub struct Agreed {
    /// The entry.
    pub entry: Entry,
    /// What it answered.
    pub outcome: EntryOutcome,
    /// When the first node applied it.
    pub at: Duration,
    /// Which node that was.
    pub by: u64,
}

/// One node's way through the log.
#[derive(Debug, Clone, Default)]
struct Way {
    /// The last entry of this process; `None` until its first event, which tells where it goes on from.
    last: Option<LogIndex>,
    /// The highest entry that it ever stood behind.
    highest: Option<LogIndex>,
    /// The snapshots beyond that whose installation began: the process may have ended with the new state durable and
    /// nobody told, so a life may begin exactly there.
    installing: BTreeSet<LogIndex>,
    purged: Option<LogIndex>,
    starts: u64,
}

impl Way {
    /// The node stood behind this entry.
    fn reached(&mut self, index: Option<LogIndex>) {
        self.highest = self.highest.max(index);
        let highest = self.highest;
        self.installing.retain(|last| Some(*last) > highest);
    }
}

/// The one log and all nodes' ways through it.
#[derive(Debug, Clone, Default)]
pub struct Agreement {
    entries: BTreeMap<LogIndex, Agreed>,
    states: BTreeMap<LogIndex, (Standing, u64)>,
    ways: BTreeMap<u64, Way>,
    ledgers: BTreeMap<u64, Ledger>,
    violations: Vec<Violation>,
}

/// More violations than this are not kept: the first ones tell the story.
const KEPT: usize = 100;

impl Agreement {
    /// The one log.
    pub fn entries(&self) -> &BTreeMap<LogIndex, Agreed> {
        &self.entries
    }

    /// Where the nodes stood behind an entry, where any was seen to stand.
    pub fn states(&self) -> impl Iterator<Item = &Standing> {
        self.states.values().map(|(standing, _)| standing)
    }

    /// The rules that were broken, in the order in which it was seen.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Takes in what a node did.
    pub fn take(&mut self, event: &TapEvent) {
        let (node, at) = (event.node, event.at);
        match &event.what {
            TapWhat::Started => {
                let way = self.ways.entry(node).or_default();
                way.last = None;
                way.starts += 1;
            }
            TapWhat::Log(event) => {
                let ledger = self.ledgers.entry(node).or_default();
                if let Err(what) = ledger.take(event) {
                    self.broken(Rule::DurableLog, format!("node {node}: {what}"));
                }
            }
            TapWhat::Purged { index } => {
                let way = self.ways.entry(node).or_default();
                way.purged = way.purged.max(Some(*index));
            }
            TapWhat::Installing { last } => {
                let way = self.ways.entry(node).or_default();
                way.installing.extend(last);
            }
            TapWhat::Installed { after } => {
                let way = self.ways.entry(node).or_default();
                let before = way.last;
                way.last = after.index;
                way.reached(after.index);
                if before.is_some() && after.index < before {
                    let what =
                        format!("node {node} stood behind {before:?} and installed a snapshot at {after:?}");
                    self.broken(Rule::NoGap, what);
                }
                self.stands(node, *after);
            }
            TapWhat::Applied {
                entries,
                outcomes,
                after,
            } => {
                if entries.len() != outcomes.len() {
                    let (entries, outcomes) = (entries.len(), outcomes.len());
                    let what = format!("node {node} answered {entries} entries with {outcomes} outcomes");
                    self.broken(Rule::NoGap, what);
                }
                for (entry, outcome) in entries.iter().zip(outcomes) {
                    self.passes(node, entry);
                    self.agrees(node, at, entry, outcome);
                }
                if let Some(last) = entries.last() {
                    let index = Some(last.position.index);
                    if after.index != index {
                        let what = format!("node {node} applied up to {index:?} and stands at {after:?}");
                        self.broken(Rule::NoGap, what);
                    }
                }
                self.stands(node, *after);
            }
        }
    }

    /// The entry follows the one before, or begins where a process may.
    fn passes(&mut self, node: u64, entry: &Entry) {
        let index = entry.position.index;
        let way = self.ways.entry(node).or_default();
        let Way {
            last,
            highest,
            purged,
            starts,
            ..
        } = *way;
        // The process's first entry tells which state it found.
        let found = index.number().checked_sub(1).map(LogIndex::new);
        let may_be_found = found <= highest || found.is_some_and(|found| way.installing.contains(&found));
        way.last = Some(index);
        way.reached(Some(index));
        match last {
            Some(last) if index == last.next() => {}
            Some(last) => {
                let what = format!("node {node} applied {index} behind {last}");
                self.broken(Rule::NoGap, what);
            }
            None => {
                if found < purged {
                    let what = format!(
                        "node {node} began its life number {starts} behind {found:?}, though its log was purged up to \
                         {purged:?}"
                    );
                    self.broken(Rule::DurableStart, what);
                }
                if !may_be_found && highest.is_some() {
                    let what = format!(
                        "node {node} began its life number {starts} behind {found:?}, and never was further than \
                         {highest:?}"
                    );
                    self.broken(Rule::DurableStart, what);
                }
            }
        }
    }

    fn agrees(&mut self, node: u64, at: Duration, entry: &Entry, outcome: &EntryOutcome) {
        let index = entry.position.index;
        let Some(first) = self.entries.get(&index) else {
            let (entry, outcome) = (entry.clone(), outcome.clone());
            self.entries.insert(
                index,
                Agreed {
                    entry,
                    outcome,
                    at,
                    by: node,
                },
            );
            return;
        };
        let by = first.by;
        if first.entry != *entry {
            let what = format!(
                "at {index} node {by} applied {}, node {node} applied {}",
                told(&first.entry),
                told(entry)
            );
            self.broken(Rule::SameEntries, what);
        } else if first.outcome != *outcome {
            let what = format!(
                "entry {index} was answered with {:?} by node {by}, with {outcome:?} by node {node}",
                first.outcome
            );
            self.broken(Rule::SameOutcomes, what);
        }
    }

    fn stands(&mut self, node: u64, standing: Standing) {
        let Some(index) = standing.index else {
            return;
        };
        let (first, by) = *self.states.entry(index).or_insert((standing, node));
        if first != standing {
            let what = format!("behind entry {index} node {by} is at {first:?}, node {node} at {standing:?}");
            self.broken(Rule::SameState, what);
        }
    }

    fn broken(&mut self, rule: Rule, what: String) {
        if self.violations.len() < KEPT {
            self.violations.push(Violation::new(rule, what));
        }
    }
}

/// An entry for people: what it is, not every byte of it.
fn told(entry: &Entry) -> String {
    use quorate_kv::machine::Payload as P;
    let (kind, bytes) = match &entry.payload {
        P::Blank => ("blank", &[][..]),
        P::Proposal(bytes) => ("proposal", &bytes[..]),
        P::Membership(bytes) => ("membership", &bytes[..]),
    };
    let hash = xxhash_rust::xxh3::xxh3_64(bytes);
    format!(
        "{} ({kind} of {} bytes, hash {hash:016x})",
        entry.position,
        bytes.len()
    )
}

/// The checker's clock.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The taps of a cluster. Cheap to clone; clones share the record.
#[derive(Clone)]
pub struct Taps {
    clock: Clock,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    agreement: Agreement,
    /// Every event as it came, where they are kept.
    events: Option<Vec<TapEvent>>,
}

impl fmt::Debug for Taps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Taps").finish_non_exhaustive()
    }
}

impl Taps {
    /// A record that begins now.
    pub fn new(clock: Clock) -> Self {
        let shared = Arc::default();
        Self { clock, shared }
    }

    /// Keeps every event from now on, for tests that spoil them.
    pub fn keep_events(&self) {
        self.shared().events = Some(Vec::new());
    }

    /// The events kept.
    pub fn events(&self) -> Vec<TapEvent> {
        self.shared().events.clone().unwrap_or_default()
    }

    /// The tap for one life of a node's process, which starts now.
    pub fn start(&self, node: u64) -> Arc<dyn Tap> {
        let tap = NodeTap {
            node,
            taps: self.clone(),
        };
        tap.tell(TapWhat::Started);
        Arc::new(tap)
    }

    /// A node said that its log begins behind this entry.
    pub fn purged(&self, node: u64, index: LogIndex) {
        let taps = self.clone();
        NodeTap { node, taps }.tell(TapWhat::Purged { index });
    }

    /// The first rule that was seen broken.
    pub fn broken(&self) -> Option<Violation> {
        self.shared().agreement.violations.first().cloned()
    }

    /// Looks at the record so far, which takes in nothing meanwhile.
    pub fn look<T>(&self, at: impl FnOnce(&Agreement) -> T) -> T {
        at(&self.shared().agreement)
    }

    /// The record so far.
    pub fn agreement(&self) -> Agreement {
        self.shared().agreement.clone()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct NodeTap {
    node: u64,
    taps: Taps,
}

impl NodeTap {
    fn tell(&self, what: TapWhat) {
        let at = (self.taps.clock)();
        let event = TapEvent {
            node: self.node,
            at,
            what,
        };
        let mut shared = self.taps.shared();
        shared.agreement.take(&event);
        if let Some(events) = &mut shared.events {
            events.push(event);
        }
    }
}

impl Tap for NodeTap {
    fn applied(&self, entries: &[Entry], outcomes: &[EntryOutcome], after: &Applied) {
        self.tell(TapWhat::Applied {
            entries: entries.to_vec(),
            outcomes: outcomes.to_vec(),
            after: after.into(),
        });
    }

    fn installing(&self, position: Option<LogPosition>) {
        let last = position.map(|position| position.index);
        self.tell(TapWhat::Installing { last });
    }

    fn installed(&self, after: &Applied) {
        self.tell(TapWhat::Installed { after: after.into() });
    }

    fn log(&self, event: LogEvent) {
        self.tell(TapWhat::Log(event));
    }
}
