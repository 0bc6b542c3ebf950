//! What a disk keeps when the power fails.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{DiskStats, Entry, FileOp, FileState, Pending, SECTOR, SimDisk, State};
use crate::sim::rng::Rng;
use crate::sim::world::lock;

/// How a host stops, for its disk: what becomes of the writes that no completed sync covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerLoss {
    /// The power stays on, the process alone dies: everything issued stays written, and not durable.
    ProcessOnly,
    /// All of them are kept.
    KeepAll,
    /// None of them is kept.
    LoseAll,
    /// The first so many are kept, and of the next one its first sectors, but not all; the others are lost.
    Prefix,
    /// Each sector of each is kept or lost by itself, as each length and each name.
    Sectors {
        /// How likely each is kept, in thousandths.
        kept_permille: u64,
    },
    /// Kept are those alone that lie in the first 4,096 bytes of their file, and names.
    HeaderOnly,
    /// All but one are kept.
    AllButOne,
    /// One of the above but the first, drawn from the seed.
    Drawn,
}

/// What becomes of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Keep,
    Lose,
    /// Each sector is kept with this likelihood, in thousandths.
    Sectors(u64),
    /// So many sectors from the front are kept.
    Front(usize),
}

impl SimDisk {
    /// The host stops; this view of its disk, and every other, is dead from here on. Answers how many bytes,
    /// lengths and names were lost.
    pub fn crash(&self, power: PowerLoss) -> u64 {
        let time = self.shared.world.now_charged();
        let mut state = lock(&self.shared.state);
        state.settle(time);
        state.forget_what_was_not_issued(time);
        state.generation += 1;
        state.locks.clear();
        if power == PowerLoss::ProcessOnly {
            return 0;
        }
        let power = match power {
            PowerLoss::Drawn => draw(&mut state.random),
            other => other,
        };
        let fates = state.fates(power);
        state.stats.power_losses += 1;
        state.stats.power_losses_with_pending += u64::from(!fates.is_empty());
        let before = state.stats;
        state.power_loss(&fates);
        let bytes = state.stats.bytes_lost - before.bytes_lost;
        let others =
            state.stats.lengths_lost + state.stats.names_lost - before.lengths_lost - before.names_lost;
        state.stats.power_losses_with_lost_bytes += u64::from(bytes > 0);
        drop(state);
        self.mark(format!(
            "power lost, {power:?}: {} operations pending, {bytes} bytes lost",
            fates.len()
        ));
        bytes + others
    }
}

fn draw(random: &mut Rng) -> PowerLoss {
    match random.below(8) {
        0 => PowerLoss::KeepAll,
        1 | 2 => PowerLoss::LoseAll,
        3 => PowerLoss::Prefix,
        4 => PowerLoss::HeaderOnly,
        5 => PowerLoss::AllButOne,
        _ => PowerLoss::Sectors {
            kept_permille: *random.pick(&[100, 500, 500, 900]),
        },
    }
}

impl State {
    /// Drops what the owners would have issued after `time`, and shows the files without it.
    fn forget_what_was_not_issued(&mut self, time: u64) {
        self.pending_names.retain(|p| p.at <= time);
        self.names = self.durable_names.clone();
        for pending in &self.pending_names {
            pending.op.apply(&mut self.names);
        }
        for file in self.files.values_mut() {
            if file.pending.iter().any(|p| p.at > time) {
                file.pending.retain(|p| p.at <= time);
                file.reread();
            }
        }
    }

    /// The numbers of the operations that are not durable, in the order of their issue, with what they are.
    pub(super) fn pending(&self) -> BTreeMap<u64, Option<&FileOp>> {
        let files = self.files.values().flat_map(|f| &f.pending);
        let files = files.map(|p| (p.number, Some(&p.op)));
        let names = self.pending_names.iter().map(|p| (p.number, None));
        files.chain(names).collect()
    }

    pub(super) fn fates(&mut self, power: PowerLoss) -> BTreeMap<u64, Fate> {
        let mut random = self.random.clone();
        let pending = self.pending();
        let chosen = random.index(pending.len() + usize::from(power == PowerLoss::Prefix));
        let fates = pending.iter().enumerate().map(|(i, (number, op))| {
            let keep = match power {
                PowerLoss::ProcessOnly | PowerLoss::Drawn | PowerLoss::KeepAll => true,
                PowerLoss::LoseAll => false,
                PowerLoss::Prefix if i == chosen => {
                    let sectors = match op {
                        Some(FileOp::Write { offset, bytes }) => sectors(*offset, bytes.len()),
                        Some(FileOp::SetLen(_)) | None => 0,
                    };
                    // What can be torn is.
                    let kept = match sectors {
                        0 | 1 => random.index(sectors + 1),
                        more => 1 + random.index(more - 1),
                    };
                    return (*number, Fate::Front(kept));
                }
                PowerLoss::Prefix => i < chosen,
                PowerLoss::AllButOne => i != chosen,
                PowerLoss::HeaderOnly => match op {
                    Some(FileOp::Write { offset, .. }) => *offset < 4096,
                    Some(FileOp::SetLen(_)) => random.permille(500),
                    None => true,
                },
                PowerLoss::Sectors { kept_permille } => return (*number, Fate::Sectors(kept_permille)),
            };
            (*number, if keep { Fate::Keep } else { Fate::Lose })
        });
        let fates = fates.collect();
        self.random = random;
        fates
    }

    /// What is durable afterwards is what the fates kept, and reads see nothing else.
    pub(super) fn power_loss(&mut self, fates: &BTreeMap<u64, Fate>) {
        let fate = |number: u64| fates.get(&number).copied().unwrap_or(Fate::Lose);
        for pending in std::mem::take(&mut self.pending_names) {
            let kept = match fate(pending.number) {
                Fate::Keep => true,
                Fate::Lose | Fate::Front(_) => false,
                Fate::Sectors(permille) => self.random.permille(permille),
            };
            if kept {
                pending.op.apply(&mut self.durable_names);
            } else {
                self.stats.names_lost += 1;
            }
        }
        // What stands in a directory that was lost is lost with it.
        let all = std::mem::take(&mut self.durable_names);
        let found = |path: &std::path::Path| {
            path.ancestors()
                .skip(1)
                .filter(|p| !super::is_root(p))
                .all(|p| all.get(p) == Some(&Entry::Dir))
        };
        self.durable_names = all
            .iter()
            .filter(|(p, _)| found(p))
            .map(|(p, e)| (p.clone(), *e))
            .collect();
        self.names = self.durable_names.clone();

        let ids: Vec<u64> = self.files.keys().copied().collect();
        for id in ids {
            self.resolve(id, &fate);
        }
        let linked: std::collections::BTreeSet<u64> = self
            .names
            .values()
            .filter_map(|e| match e {
                Entry::File(id) => Some(*id),
                Entry::Dir => None,
            })
            .collect();
        self.files.retain(|id, _| linked.contains(id));
        for (path, entry) in &self.names {
            if let Entry::File(id) = entry
                && let Some(file) = self.files.get_mut(id)
            {
                file.path.clone_from(path);
                file.live.clone_from(&file.durable);
            }
        }
    }

    /// A sync of this file that was issued at `issued` failed at `failed`: of what no sync before it covers, some
    /// reached the disk, and the others never will by themselves.
    pub(super) fn lose_pending_of(&mut self, id: u64, issued: u64, failed: u64) {
        self.covered(failed);
        let Some(file) = self.files.get_mut(&id) else {
            return;
        };
        let garbage = is_in(file, &self.profile.garbage_in);
        let mut durable = file.durable.clone();
        for pending in std::mem::take(&mut file.pending) {
            // An owner does all its work at once, so that its earlier syncs may be waiting for their time too.
            if pending.durable_at.is_some_and(|at| at <= issued) {
                pending.op.apply(&mut durable);
                file.pending.push(pending);
                continue;
            }
            let fate = Fate::Sectors(500);
            for op in remains(
                &pending.op,
                fate,
                &durable,
                garbage,
                &mut self.random,
                &mut self.stats,
            ) {
                op.apply(&mut durable);
                file.pending.push(Pending {
                    number: pending.number,
                    at: pending.at,
                    durable_at: Some(failed.max(pending.at)),
                    op,
                });
            }
        }
    }

    fn resolve(&mut self, id: u64, fate: &dyn Fn(u64) -> Fate) {
        let Some(file) = self.files.get_mut(&id) else {
            return;
        };
        let garbage = is_in(file, &self.profile.garbage_in);
        for pending in std::mem::take(&mut file.pending) {
            let fate = fate(pending.number);
            let (random, stats) = (&mut self.random, &mut self.stats);
            for op in remains(&pending.op, fate, &file.durable, garbage, random, stats) {
                op.apply(&mut file.durable);
            }
        }
    }
}

fn is_in(file: &FileState, parts: &[&str]) -> bool {
    parts
        .iter()
        .any(|part| file.path.to_string_lossy().contains(part))
}

/// What is left of an operation on a file that held `durable` before it. What lies beyond its end is lost with the
/// growth.
fn remains(
    op: &FileOp,
    fate: Fate,
    durable: &[u8],
    garbage: bool,
    random: &mut Rng,
    stats: &mut DiskStats,
) -> Vec<FileOp> {
    let left = match (op, fate) {
        (op, Fate::Keep) => vec![op.clone()],
        (FileOp::SetLen(_), Fate::Sectors(permille)) if random.permille(permille) => vec![op.clone()],
        (FileOp::SetLen(_), _) => {
            stats.lengths_lost += 1;
            Vec::new()
        }
        (FileOp::Write { bytes, .. }, Fate::Lose) => {
            stats.bytes_lost += bytes.len() as u64;
            Vec::new()
        }
        (FileOp::Write { offset, bytes }, Fate::Sectors(_) | Fate::Front(_)) => {
            let (kept, lost) = keep_sectors(durable, *offset, bytes, fate, garbage, random);
            stats.bytes_lost += lost;
            stats.writes_torn += u64::from(lost > 0 && lost < bytes.len() as u64);
            kept
        }
    };
    let within = |op: FileOp| op.within(durable.len());
    left.into_iter().filter_map(within).collect()
}

/// How many sectors a write touches.
fn sectors(offset: u64, bytes: usize) -> usize {
    let end = offset + bytes as u64;
    (end.div_ceil(SECTOR) - offset / SECTOR) as usize
}

/// Keeps each sector of a write by itself; answers what is left of it, and how many bytes were lost.
fn keep_sectors(
    durable: &[u8],
    offset: u64,
    bytes: &[u8],
    fate: Fate,
    garbage: bool,
    random: &mut Rng,
) -> (Vec<FileOp>, u64) {
    let mut kept = Vec::new();
    let mut lost = 0;
    let mut done = 0;
    for number in 0..sectors(offset, bytes.len()) {
        let at = offset + done as u64;
        let until_sector_ends = (SECTOR - at % SECTOR) as usize;
        let part = &bytes[done..bytes.len().min(done + until_sector_ends)];
        done += part.len();
        let mut leave = |bytes: Arc<[u8]>| kept.push(FileOp::Write { offset: at, bytes });
        let is_kept = match fate {
            Fate::Keep => true,
            Fate::Lose => false,
            Fate::Sectors(permille) => random.permille(permille),
            Fate::Front(sectors) => number < sectors,
        };
        if is_kept {
            leave(part.into());
            continue;
        }
        lost += part.len() as u64;
        // Sectors are written whole: one that is overwritten by what it holds keeps it.
        let from = usize::try_from(at).unwrap_or(usize::MAX);
        if durable.get(from..from.saturating_add(part.len())) == Some(part) {
            continue;
        }
        // Mostly what was there before; now and then nothing, or anything.
        match garbage.then(|| random.below(8)) {
            Some(0) => leave(vec![0; part.len()].into()),
            Some(1) => leave(part.iter().map(|_| random.next_u64() as u8).collect()),
            _ => {}
        }
    }
    (kept, lost)
}

impl<T> Pending<T> {
    /// Whether no sync covers it yet.
    pub(super) fn is_uncovered(&self) -> bool {
        self.durable_at.is_none()
    }
}
