//! Reads: one state pinned, from any thread, while the machine goes on applying.
//!
//! A batch of reads is answered in steps ([`View::begin`], [`Scan::step`]): a step ends when its budget is spent, and the
//! next goes on behind the last key that was looked at, at the same revision. Between two steps nothing is pinned: the
//! next one may be made on a newer view, which then reads the history.
//!
//! Always: everything that one [`View`] answers comes from one state, that after some whole `apply`; all that one batch of
//! reads answers is of one revision, however it was cut into steps; a view stays readable after its file was replaced
//! by a snapshot.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::published::{LastPublished, Published};
use super::range::{Gathered, answer_bytes};
use crate::env;
use crate::fault::Fault;
use crate::machine::file::sight::Sight;
use crate::machine::layers::layered::Layered;
use crate::machine::rows::system::Standing;
use crate::machine::snapshot::SnapshotSource;
use crate::machine::upkeep::verify;
use crate::model::{
    KeyRange, LogPosition, LogTime, RangeRead, ReadOp, ReadResult, ReplicatedLimits, Revision, StateHash,
};

/// Reads the machine's state. Cheap to clone; usable from any thread, also while entries are applied and
/// after a snapshot was installed.
#[derive(Clone, Debug)]
pub struct Reader {
    pub(in crate::machine) shared: LastPublished,
}

/// Where a pinned state stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// The last entry applied.
    pub position: Option<LogPosition>,
    /// The store's revision.
    pub revision: Revision,
    /// The oldest revision that can be read.
    pub oldest: Revision,
    /// The log's time.
    pub log_time: LogTime,
    /// The hash of the replicated state.
    pub state_hash: StateHash,
}

/// How much a state holds, where each version of a key counts its key twice, its value and 64 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Holds {
    /// Keys that exist.
    pub records: u64,
    /// What they count.
    pub live_bytes: u64,
    /// What the versions before, and deletions, count that this node still has.
    pub history_bytes: u64,
}

/// One state, pinned until dropped. A view that lives long keeps memory and old pages of the file alive.
#[derive(Debug)]
pub struct View {
    pinned: Pinned,
    published: Arc<Published>,
}

/// A read that this state cannot answer. Nothing is wrong with the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadRefused {
    /// The revision's records are gone.
    #[error("revision {asked} was compacted, the oldest that can be read is {oldest}")]
    Compacted {
        /// The revision asked for.
        asked: Revision,
        /// The oldest revision that can be read.
        oldest: Revision,
    },
    /// The revision is not there yet.
    #[error("revision {asked} is not there yet, this state is at {current}")]
    FutureRevision {
        /// The revision asked for.
        asked: Revision,
        /// The revision of the state.
        current: Revision,
    },
    /// The batch of reads would answer too much at once.
    #[error("read {index}: the batch of reads exceeds {limit} bytes")]
    TooLarge {
        /// The read at which the limit was passed.
        index: usize,
        /// The limit in bytes.
        limit: u64,
    },
}

impl Reader {
    pub(in crate::machine) fn new(shared: LastPublished) -> Self {
        Self { shared }
    }

    /// Pins the state as it is after the entries applied last.
    pub fn view(&self) -> Result<View, Fault> {
        let published = self.shared.get();
        let Standing {
            position,
            revision,
            oldest,
            log_time,
            ..
        } = published.standing;
        let state_hash = published.state_hash;
        Ok(View {
            pinned: Pinned {
                position,
                revision,
                oldest,
                log_time,
                state_hash,
            },
            published,
        })
    }

    /// Pins the state of the last checkpoint, to stream it: what is durable, so that a log that is purged up to
    /// there goes on where the snapshot ends.
    pub fn snapshot(&self) -> Result<SnapshotSource, Fault> {
        let state = Arc::clone(&self.shared.get().state.base.state);
        let txn = state.begin_read()?;
        SnapshotSource::new(state, txn)
    }
}

impl View {
    /// Where the state stands.
    pub fn applied(&self) -> &Pinned {
        &self.pinned
    }

    /// Whether nobody else, near enough, holds what this view does: dropping it then takes long.
    pub fn is_last_of_much(&self) -> bool {
        let Layered { base, frozen, active } = &self.published.state;
        let layers = frozen.iter().chain([active]);
        Arc::strong_count(&self.published) == 1
            && (Arc::strong_count(base) == 1 || layers.into_iter().any(|layer| Arc::strong_count(layer) == 1))
    }

    /// The limits that decide answers, and how often they were set: 0 before the first time.
    pub fn limits(&self) -> (u64, &ReplicatedLimits) {
        let Published { standing, limits, .. } = &*self.published;
        (standing.limits_version, limits)
    }

    /// The state's hash behind the agreed entries applied last, the oldest first: what two nodes compare. A node that has
    /// started of late knows few or none.
    pub fn hashes(&self) -> Vec<(LogPosition, StateHash)> {
        self.published.hashes.iter().collect()
    }

    /// The length of the state file after the last checkpoint, in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.published.file_bytes
    }

    /// How much the state holds.
    pub fn holds(&self) -> Holds {
        let counters = self.published.standing.counters;
        Holds {
            records: counters.records,
            live_bytes: counters.live_bytes,
            history_bytes: counters.version_bytes.saturating_sub(counters.live_bytes),
        }
    }

    /// Whether what was given up of the history has gone from the state file.
    pub fn history_has_gone(&self) -> bool {
        let standing = &self.published.standing;
        standing.history.since >= standing.oldest
    }

    /// The revision that stood at a time of the log, or, where several were made within a second, an earlier one of them: none
    /// that is older was made later. `None` where history does not go back so far.
    pub fn revision_at(&self, time: LogTime) -> Result<Option<Revision>, Fault> {
        let stood = self.published.state.stood(time)?;
        Ok(stood.map(|(_, revision)| revision.max(self.pinned.oldest)))
    }

    /// Answers a batch of reads in one go, on the state as it is or as it was at a revision: [`begin`](Self::begin) and
    /// one step without a bound. A count takes as long as there are keys in its range: who must not be held up takes steps.
    pub fn read(
        &self,
        ops: &[ReadOp],
        at: Option<Revision>,
    ) -> Result<Result<Vec<ReadResult>, ReadRefused>, Fault> {
        let scan = match self.begin(ops.to_vec(), at) {
            Ok(scan) => scan,
            Err(refused) => return Ok(Err(refused)),
        };
        match scan.step(self, ReadBudget::UNLIMITED)? {
            Step::Done(Answered { results, .. }) => Ok(Ok(results)),
            Step::Refused(refused) => Ok(Err(refused)),
            Step::More(_) => Err(Fault::invariant(
                "a step without a bound answers all of a batch",
                "there is more",
            )),
        }
    }

    /// Begins to answer a batch of reads, on the state as it is or as it was at a revision. Nothing is read yet.
    ///
    /// A revision that was compacted or is not there yet is refused.
    pub fn begin(&self, reads: Vec<ReadOp>, at: Option<Revision>) -> Result<Scan, ReadRefused> {
        let is_of_the_present = at.is_none();
        let at = at.unwrap_or(self.pinned.revision);
        self.serves(at)?;
        Ok(Scan {
            results: Vec::with_capacity(reads.len()),
            reads,
            at,
            is_of_the_present,
            under_way: None,
            bytes: 0,
        })
    }

    /// Answers gets at once, on the state as it is or as it was at a revision: from memory alone, and without waiting for
    /// anybody. `None` where that does not do: for a key of which memory tells nothing, a range, more keys or bytes of answer
    /// than the budget has, and whatever [`begin`](Self::begin) or a step would refuse. What it answers is what they would.
    pub fn recall(
        &self,
        reads: &[ReadOp],
        at: Option<Revision>,
        budget: ReadBudget,
    ) -> Option<(Revision, Vec<ReadResult>)> {
        let at = at.unwrap_or(self.pinned.revision);
        if reads.len() as u64 > budget.keys || self.serves(at).is_err() {
            return None;
        }
        let state = &self.published.state;
        let mut left = budget.bytes.min(state.base.state.read_bytes_max);
        let mut results = Vec::with_capacity(reads.len());
        for read in reads {
            let ReadOp::Get(key) = read else { return None };
            let record = state.recall(key.as_bytes(), at, usize::try_from(left).unwrap_or(usize::MAX))?;
            if let Some(record) = &record {
                left = left.checked_sub(answer_bytes(key.len(), record.value.len()))?;
            }
            results.push(ReadResult::Get(record));
        }
        Some((at, results))
    }

    /// Whether the state can be read as it was at a revision.
    fn serves(&self, asked: Revision) -> Result<(), ReadRefused> {
        let Pinned {
            oldest,
            revision: current,
            ..
        } = self.pinned;
        if asked < oldest {
            return Err(ReadRefused::Compacted { asked, oldest });
        }
        if asked > current {
            return Err(ReadRefused::FutureRevision { asked, current });
        }
        Ok(())
    }

    /// Reads the whole state of the last checkpoint, on which this view stands, and computes its hash anew:
    /// corruption if it is not the one that was kept.
    pub fn verify_hash(&self) -> Result<StateHash, Fault> {
        let base = &self.published.state.base;
        verify::base(base)?;
        Ok(base.standing.state_hash(&self.published.limits))
    }
}

/// How much a step of a batch of reads does at most, but for the key at which a bound is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadBudget {
    /// Rows and versions that are looked at: keys that exist, keys deleted of late that are gone by, and for an older
    /// revision all keys that ever were and each step back in their history. One takes some 0.2 to 1 µs in memory, and
    /// a page of the disk where it is not.
    pub keys: u64,
    /// Bytes of values that are read.
    pub bytes: u64,
}

impl ReadBudget {
    /// No bound.
    pub const UNLIMITED: ReadBudget = ReadBudget {
        keys: u64::MAX,
        bytes: u64::MAX,
    };

    /// Whether it is spent, `keys` and `bytes` having been used of it.
    fn is_spent(&self, keys: u64, bytes: u64) -> bool {
        keys >= self.keys || bytes >= self.bytes
    }
}

/// What a step of a batch of reads came to.
#[derive(Debug)]
pub enum Step {
    /// The budget is spent, and there is more to do.
    More(Scan),
    /// All is answered.
    Done(Answered),
    /// The batch cannot be answered.
    Refused(ReadRefused),
}

/// A batch of reads that was answered.
#[derive(Debug)]
pub struct Answered {
    /// The revision that all of the answer is of.
    pub revision: Revision,
    /// What was read: for who has no room for the answer yet.
    pub reads: Vec<ReadOp>,
    /// One for each read, in order.
    pub results: Vec<ReadResult>,
}

/// A batch of reads, answered in part. It pins nothing, and holds in memory what was gathered so far: at most
/// [`MachineSettings::read_bytes_max`](crate::machine::MachineSettings::read_bytes_max) and a page.
#[derive(Debug)]
#[must_use = "it answers nothing unless steps are taken"]
pub struct Scan {
    reads: Vec<ReadOp>,
    at: Revision,
    /// No revision was asked for.
    is_of_the_present: bool,
    /// Of the first reads.
    results: Vec<ReadResult>,
    /// The range that is being read.
    under_way: Option<UnderWay>,
    /// Of all results.
    bytes: u64,
}

#[derive(Debug)]
struct UnderWay {
    gathered: Gathered,
    /// What is left of the range.
    rest: KeyRange,
}

/// What a step has used.
#[derive(Debug, Default)]
struct Used {
    keys: u64,
    bytes: u64,
}

impl Scan {
    /// What was gathered so far, in bytes, near enough.
    pub fn gathered_bytes(&self) -> u64 {
        let page = self.under_way.as_ref().map_or(0, |range| range.gathered.bytes);
        self.bytes.saturating_add(page)
    }

    /// What is read.
    pub fn reads(&self) -> &[ReadOp] {
        &self.reads
    }

    /// The reads, whatever was gathered for them being given up.
    pub fn into_reads(self) -> Vec<ReadOp> {
        self.reads
    }

    /// Goes on with the reads until they are answered or the budget is spent; at least one key further.
    ///
    /// `view` is that of the beginning or a later one. Going on with the same one is faster, the longer ago the beginning
    /// was the more so: a newer one may have to look the old revision up in the history. One that is kept for long holds
    /// memory and old pages of the file: a second or two do no harm.
    ///
    /// Refused when the revision that was asked for was compacted meanwhile, and when the answer exceeds
    /// [`MachineSettings::read_bytes_max`](crate::machine::MachineSettings::read_bytes_max). Blocks on the disk.
    pub fn step(mut self, view: &View, budget: ReadBudget) -> Result<Step, Fault> {
        match view.serves(self.at) {
            Ok(()) => {}
            // Its revision was the present when it began. It begins anew with what is the present now.
            Err(ReadRefused::Compacted { .. }) if self.is_of_the_present => {
                env::mark("read.begun_anew");
                self.at = view.pinned.revision;
                self.results.clear();
                (self.under_way, self.bytes) = (None, 0);
            }
            Err(refused) => return Ok(Step::Refused(refused)),
        }
        let state = &view.published.state;
        let limit = state.base.state.read_bytes_max;
        let mut used = Used::default();
        while let Some(read) = self.reads.get(self.results.len()) {
            let (result, bytes) = match read {
                ReadOp::Get(key) => {
                    let record = state.record(key.as_bytes(), self.at, &mut used.keys)?;
                    let value = record.as_ref().map_or(0, |record| record.value.len());
                    used.bytes += value as u64;
                    let bytes = record.as_ref().map_or(0, |_| answer_bytes(key.len(), value));
                    (ReadResult::Get(record), bytes)
                }
                ReadOp::Range(read) => {
                    let mut range = self.under_way.take().unwrap_or_else(|| UnderWay {
                        gathered: Gathered::new(read, state.base.state.tuning.page_bytes_max),
                        rest: read.range.clone(),
                    });
                    if !range.go_on(read, state, self.at, &budget, &mut used)? {
                        self.under_way = Some(range);
                        return Ok(Step::More(self));
                    }
                    let Gathered {
                        records,
                        count,
                        more,
                        bytes,
                        ..
                    } = range.gathered;
                    (ReadResult::Range { records, count, more }, bytes)
                }
            };
            self.bytes = self.bytes.saturating_add(bytes);
            if self.bytes > limit {
                let index = self.results.len();
                return Ok(Step::Refused(ReadRefused::TooLarge { index, limit }));
            }
            self.results.push(result);
            if budget.is_spent(used.keys, used.bytes) && self.results.len() < self.reads.len() {
                return Ok(Step::More(self));
            }
        }
        Ok(Step::Done(Answered {
            revision: self.at,
            reads: self.reads,
            results: self.results,
        }))
    }
}

impl UnderWay {
    /// Reads on; whether the range is answered.
    fn go_on(
        &mut self,
        read: &RangeRead,
        state: &Layered,
        at: Revision,
        budget: &ReadBudget,
        used: &mut Used,
    ) -> Result<bool, Fault> {
        let gathered = &mut self.gathered;
        let mut stopped_at: Option<Bytes> = None;
        let visit = |sight: Sight<'_>| {
            used.keys += sight.steps;
            if let Some(record) = sight.record {
                used.bytes += record.value.len() as u64;
                if gathered.visit(sight.key, record).is_break() {
                    return ControlFlow::Break(());
                }
            }
            if budget.is_spent(used.keys, used.bytes) {
                stopped_at = Some(Bytes::copy_from_slice(sight.key));
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        state.scan(&self.rest, read.order, at, Gathered::values(read), None, visit)?;
        let Some(last) = stopped_at else {
            return Ok(true);
        };
        self.rest = self.rest.behind(&last, read.order);
        Ok(false)
    }
}

/// What a batch of reads costs, as far as can be told from the reads alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadClass {
    /// A few keys: it takes microseconds, whatever the state holds, but for pages that are on the disk.
    Point,
    /// More keys, or as many as there are.
    Scan,
}

impl ReadClass {
    /// Of a batch of reads. A batch that is a [`Point`](Self::Point) looks at no more than 64 keys in all, but for those that
    /// were deleted of late in the middle of a range: a step with a budget bounds these too.
    pub fn of(reads: &[ReadOp]) -> Self {
        const POINT_KEYS_MAX: u64 = 64;
        let keys = reads
            .iter()
            .fold(0u64, |keys, read| keys.saturating_add(read.keys_max()));
        match keys <= POINT_KEYS_MAX {
            true => ReadClass::Point,
            false => ReadClass::Scan,
        }
    }
}
