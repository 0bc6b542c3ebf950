//! The runs: where the heads of all keys stand.
//!
//! A checkpoint would have to change as many scattered rows of one table as keys were written, and with them as many
//! pages, read, copied and written whole. Instead it writes a *run*: a table of its own, of the heads of the keys that
//! were written since the last one, in the order of the keys, whose pages are full and lie side by side. Of the heads
//! that a key has in several runs the newest run's counts. Now and then some neighbours are merged into one (`merge`). This
//! is O'Neil's log-structured merge-tree (1996), with the layers in memory as its smallest part and redb's transactions in
//! the place of a manifest.
//!
//! The row `runs` of the table `system` lists them: the number of the next run (8); how many runs there are that count for
//! nothing (8), since merges are making them, or they were merged and are being removed, and the number of each (8); then for
//! each run that counts, the oldest first, its number (8), how many heads it has (8), how many of these are of deleted keys
//! (8), and the newest revision that deleted one (8). A run's table is called `heads-` and its number in 16 hexadecimal digits. Its heads, those that `head` specifies, of keys that exist
//! and of deleted ones, stand in [blocks](super::blocks). The table `filters` has for each run a
//! [`Filter`] in parts. Key: the run's number (8), the part's (4). Value: words, big-endian.
//!
//! Always: a run that is listed never changes; numbers are never given twice; a run's filter is written with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{
    CursorMut, OwnedRange, ReadOnlyTable, ReadTransaction, ReadableTable, TableDefinition, TableError,
    WriteTransaction,
};

use super::blocks::{BlockBound, Filling, RunRows};
use super::filter::{Filter, FilterHash};
use super::heads::Heads;
use crate::fault::Fault;
use crate::machine::rows::error::{StateFile, step, storage};
use crate::machine::rows::head::Head;
use crate::machine::rows::tables::{FILTERS, SYSTEM};
use crate::machine::rows::wire::{Malformed, Row, put_u64};
use crate::model::{Order, Revision};

/// The table of a run.
type Definition<'n> = TableDefinition<'n, BlockBound, &'static [u8]>;

/// A table of a run that is being read.
pub(in crate::machine) type Blocks = ReadOnlyTable<BlockBound, &'static [u8]>;

/// All blocks of a run.
pub(in crate::machine) type AllBlocks = OwnedRange<BlockBound, &'static [u8]>;

/// The row's key in the table `system`.
const RUNS: &[u8] = b"runs";

/// A part of a filter, in bytes.
const FILTER_PART_BYTES: usize = 64 * 1024;

/// A run, as it is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::machine) struct Run {
    pub(in crate::machine) number: u64,
    /// How many heads it has.
    pub(in crate::machine) rows: u64,
    pub(in crate::machine) dead: Dead,
}

/// The heads of deleted keys in a run: every scan of the present goes by them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::machine) struct Dead {
    pub(in crate::machine) rows: u64,
    /// The newest revision that deleted one of them; 0 where there is none.
    pub(in crate::machine) newest: u64,
}

impl Dead {
    /// Takes note of a head.
    pub(in crate::machine) fn note(&mut self, head: &[u8]) -> Result<(), Malformed> {
        if let (revision, None) = Head::decode_newest(head)? {
            self.rows += 1;
            self.newest = self.newest.max(revision.number());
        }
        Ok(())
    }
}

/// The runs of a state file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::machine) struct Runs {
    /// The oldest first.
    pub(in crate::machine) list: Vec<Run>,
    /// Those that count for nothing: what merges are making, or were when the node ended, and what is being removed.
    pub(in crate::machine) unlisted: Vec<u64>,
    next: u64,
}

impl Runs {
    /// Of the empty store.
    pub(in crate::machine) const NONE: Runs = Runs {
        list: Vec::new(),
        unlisted: Vec::new(),
        next: 1,
    };

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + 8 * self.unlisted.len() + 32 * self.list.len());
        put_u64(&mut out, self.next);
        put_u64(&mut out, self.unlisted.len() as u64);
        for number in &self.unlisted {
            put_u64(&mut out, *number);
        }
        for run in &self.list {
            put_u64(&mut out, run.number);
            put_u64(&mut out, run.rows);
            put_u64(&mut out, run.dead.rows);
            put_u64(&mut out, run.dead.newest);
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut row = Row::new(bytes);
        let next = row.u64()?;
        let mut known = BTreeSet::new();
        let mut number = |row: &mut Row<'_>| {
            let number = row.u64()?;
            match number != 0 && known.insert(number) {
                true => Ok(number),
                false => Err(Malformed("a run is listed twice, or has no number")),
            }
        };
        let mut unlisted = Vec::new();
        for _ in 0..row.u64()? {
            unlisted.push(number(&mut row)?);
        }
        let mut list = Vec::with_capacity(row.rest().len() / 32);
        while !row.rest().is_empty() {
            let (number, rows) = (number(&mut row)?, row.u64()?);
            let dead = Dead {
                rows: row.u64()?,
                newest: row.u64()?,
            };
            list.push(Run { number, rows, dead });
        }
        if known.last().is_some_and(|last| *last >= next) || next == 0 {
            return Err(Malformed("a run's number was not given yet"));
        }
        Ok(Self { list, unlisted, next })
    }

    /// Reads the row of the table `system`.
    pub(in crate::machine) fn read(
        file: &StateFile,
        system: &impl ReadableTable<&'static [u8], &'static [u8]>,
    ) -> Result<Self, Fault> {
        let row = system.get(RUNS).map_err(storage(file))?;
        let row = row.ok_or_else(|| file.corrupt("the system table lacks its runs"))?;
        Self::decode(row.value()).map_err(|e| file.malformed(&e))
    }

    pub(in crate::machine) fn read_within(file: &StateFile, txn: &WriteTransaction) -> Result<Self, Fault> {
        let system = txn
            .open_table(SYSTEM)
            .map_err(step(file, "opening the system table of"))?;
        Self::read(file, &system)
    }

    pub(in crate::machine) fn write(&self, file: &StateFile, txn: &WriteTransaction) -> Result<(), Fault> {
        let mut system = txn
            .open_table(SYSTEM)
            .map_err(step(file, "opening the system table of"))?;
        system
            .insert(RUNS, &self.encode()[..])
            .map(drop)
            .map_err(storage(file))
    }

    /// Gives a number to a run that is about to be made.
    pub(in crate::machine) fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// From which on the runs are to be merged into one, of those from the `free`th on, which no merge has under way. `since`
    /// is the revision up to which history was forgotten: all of them where all are free, and as many heads of deleted keys as a
    /// quarter of all, and `dead_min`, would go by that; else as many as their sizes say.
    pub(in crate::machine) fn due(
        &self,
        free: usize,
        at_least: usize,
        since: Revision,
        dead_min: u64,
    ) -> Option<usize> {
        let forgotten = self.list.iter().filter(|run| run.dead.newest <= since.number());
        let forgotten = forgotten.fold(0u64, |sum, run| sum.saturating_add(run.dead.rows));
        let all = self
            .list
            .iter()
            .fold(0u64, |sum, run| sum.saturating_add(run.rows));
        if free == 0 && forgotten > 0 && forgotten >= dead_min.max(all / 4) {
            return Some(0);
        }
        Some(free + due_by_size(self.list.get(free..)?, at_least)?)
    }

    /// The same where nothing is written, for runs of which the newer ones have so many rows together at least: what is left is few
    /// runs, each of which is larger than four times all newer ones.
    pub(in crate::machine) fn due_at_rest(&self, rows_min: u64) -> Option<usize> {
        oldest_due(&self.list, |count, newer, run| {
            count >= 2 && newer >= rows_min && newer.saturating_mul(4) >= run.rows
        })
    }
}

/// By size: at least so many, of which the oldest is at most twice as large as all newer ones. So each head is written anew a
/// few times, each time into a run that is larger by half at least, and the runs are fewer than so many and some whose sizes are
/// a geometric row.
fn due_by_size(runs: &[Run], at_least: usize) -> Option<usize> {
    oldest_due(runs, |count, newer, run| {
        count >= at_least.max(2) && newer.saturating_mul(2) >= run.rows
    })
}

/// The oldest run that is to be merged with all newer ones, by how many these are with it, and how many rows they have without.
fn oldest_due(runs: &[Run], is_due: impl Fn(usize, u64, &Run) -> bool) -> Option<usize> {
    let (mut newer, mut from) = (0u64, None);
    for (at, run) in runs.iter().enumerate().rev() {
        if is_due(runs.len() - at, newer, run) {
            from = Some(at);
        }
        newer = newer.saturating_add(run.rows);
    }
    from
}

const TABLE_PREFIX: &str = "heads-";

/// Makes something of the table of a run.
pub(in crate::machine) fn with_table<T>(number: u64, make: impl FnOnce(Definition<'_>) -> T) -> T {
    make(TableDefinition::new(&format!("{TABLE_PREFIX}{number:016x}")))
}

/// The number of the run that a table is of, by its name; `None` for one that is no run's, and in it for one whose name says no
/// number.
pub(in crate::machine) fn run_of_table(name: &str) -> Option<Option<u64>> {
    let number = name.strip_prefix(TABLE_PREFIX)?;
    Some(u64::from_str_radix(number, 16).ok())
}

/// Opens the table of a run for reading.
pub(in crate::machine) fn open(
    file: &StateFile,
    txn: &ReadTransaction,
    number: u64,
) -> Result<Blocks, Fault> {
    with_table(number, |table| txn.open_table(table)).map_err(step(file, "opening a run of"))
}

/// The newest heads of all keys, in the order of the keys.
pub(in crate::machine) fn heads(
    file: &StateFile,
    txn: &ReadTransaction,
    runs: &Runs,
) -> Result<Heads<AllBlocks, Arc<StateFile>>, Fault> {
    let newest_first = runs.list.iter().rev().map(|run| {
        let rows = open(file, txn, run.number)?;
        let rows = rows.range_owned::<&[u8]>(..).map_err(storage(file))?;
        Ok(RunRows::all(rows, Order::Ascending))
    });
    let newest_first = newest_first.collect::<Result<Vec<_>, Fault>>()?;
    Heads::new(Arc::new(file.clone()), Order::Ascending, newest_first)
}

/// Opens the table of a run, and makes it where there is none.
pub(in crate::machine) fn open_within<'t>(
    file: &StateFile,
    txn: &'t WriteTransaction,
    number: u64,
) -> Result<redb::Table<'t, BlockBound, &'static [u8]>, Fault> {
    with_table(number, |table| txn.open_table(table)).map_err(step(file, "opening a run of"))
}

/// Takes so many blocks, one or more, of a run that counts for nothing away, and behind the last of them the run. How many blocks
/// it still had, where it is gone now: fewer than so many.
pub(in crate::machine) fn remove_some(
    file: &StateFile,
    txn: &WriteTransaction,
    number: u64,
    blocks: usize,
) -> Result<Option<usize>, Fault> {
    let mut count = 0;
    {
        let mut table = open_within(file, txn, number)?;
        let mut last = None;
        for row in table.range::<&[u8]>(..).map_err(storage(file))?.take(blocks) {
            last = Some(row.map_err(storage(file))?.0.value().to_vec());
            count += 1;
        }
        if let Some(last) = last.filter(|_| count == blocks) {
            let none = table.retain_in::<&[u8], _>(..=&last[..], |_, _| false);
            return none.map(|()| None).map_err(storage(file));
        }
    }
    remove(file, txn, number)?;
    Ok(Some(count))
}

/// Removes a run, or what was made of it: for one that is small.
pub(in crate::machine) fn remove(file: &StateFile, txn: &WriteTransaction, number: u64) -> Result<(), Fault> {
    match with_table(number, |table| txn.delete_table(table)) {
        Ok(_) | Err(TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(step(file, "removing a run of")(error)),
    }
    let mut filters = txn
        .open_table(FILTERS)
        .map_err(step(file, "opening the filters of"))?;
    for part in 0u32.. {
        let row = filters.remove(&filter_key(number, part)[..]);
        if row.map_err(storage(file))?.is_none() {
            break;
        }
    }
    Ok(())
}

fn filter_key(number: u64, part: u32) -> Vec<u8> {
    let mut key = number.to_be_bytes().to_vec();
    key.extend_from_slice(&part.to_be_bytes());
    key
}

/// The number of the run that a part of a filter is of.
pub(in crate::machine) fn run_of_filter(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*key.first_chunk()?))
}

/// Writes a run's filter.
pub(in crate::machine) fn write_filter(
    file: &StateFile,
    txn: &WriteTransaction,
    number: u64,
    filter: &Filter,
) -> Result<(), Fault> {
    let mut filters = txn
        .open_table(FILTERS)
        .map_err(step(file, "opening the filters of"))?;
    for (part, bytes) in (0..).zip(filter.parts(FILTER_PART_BYTES)) {
        let key = filter_key(number, part);
        drop(filters.insert(&key[..], &bytes[..]).map_err(storage(file))?);
    }
    Ok(())
}

/// Reads a run's filter.
pub(in crate::machine) fn read_filter(
    file: &StateFile,
    txn: &ReadTransaction,
    number: u64,
) -> Result<Filter, Fault> {
    let filters = txn
        .open_table(FILTERS)
        .map_err(step(file, "opening the filters of"))?;
    let (first, behind) = (filter_key(number, 0), filter_key(number.saturating_add(1), 0));
    let mut bytes = Vec::new();
    for row in filters
        .range::<&[u8]>(&first[..]..&behind[..])
        .map_err(storage(file))?
    {
        bytes.extend_from_slice(row.map_err(storage(file))?.1.value());
    }
    Filter::of_bytes(&bytes).map_err(|e| file.malformed(&e))
}

/// What an open state file has in memory of its runs.
#[derive(Debug, Default)]
pub(in crate::machine) struct RunsKept {
    filters: Mutex<BTreeMap<u64, Arc<Filter>>>,
    /// The merges under way: of older runs, then of newer ones. Taken by whoever writes to the file, who is one at a time.
    pub(in crate::machine) merging: Mutex<Vec<Merging>>,
    /// Steps of merging so far.
    pub(in crate::machine) steps: AtomicU64,
}

/// A merge under way.
#[derive(Debug)]
pub(in crate::machine) struct Merging {
    /// What is merged: neighbours, the oldest first.
    pub(in crate::machine) inputs: Vec<u64>,
    /// What it becomes.
    pub(in crate::machine) output: u64,
    pub(in crate::machine) writing: Writing,
    /// The key that was looked at last.
    pub(in crate::machine) last: Option<Vec<u8>>,
    /// How many heads of the inputs were not looked at, or more.
    pub(in crate::machine) left: u64,
}

impl RunsKept {
    fn filters(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Filter>>> {
        // A panic leaves a map with one filter more or less.
        self.filters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::machine) fn merging(&self) -> MutexGuard<'_, Vec<Merging>> {
        // Whoever panicked here had failed to write, and nothing is written after that.
        self.merging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the filter of a run that is being written.
    pub(in crate::machine) fn keep(&self, number: u64, filter: Filter) {
        self.filters().insert(number, Arc::new(filter));
    }

    /// The filters of these runs, from memory or from the file; those of others are not needed any more.
    pub(in crate::machine) fn filters_of(
        &self,
        file: &StateFile,
        txn: &ReadTransaction,
        runs: &Runs,
    ) -> Result<Vec<Arc<Filter>>, Fault> {
        let mut found = Vec::with_capacity(runs.list.len());
        for run in &runs.list {
            let kept = self.filters().get(&run.number).cloned();
            found.push(match kept {
                Some(filter) => filter,
                None => Arc::new(read_filter(file, txn, run.number)?),
            });
        }
        *self.filters() = runs
            .list
            .iter()
            .map(|run| run.number)
            .zip(found.iter().cloned())
            .collect();
        Ok(found)
    }
}

/// A run that is being written, in the order of its keys.
#[derive(Debug)]
pub(in crate::machine) struct Writing {
    filter: Filter,
    pub(in crate::machine) rows: u64,
    dead: Dead,
    filling: Filling,
}

impl Writing {
    /// Of so many heads at most, in blocks of so many bytes.
    pub(in crate::machine) fn of(rows: u64, block_bytes: usize) -> Self {
        Self {
            filter: Filter::for_keys(rows),
            rows: 0,
            dead: Dead::default(),
            filling: Filling::blocks_of(block_bytes),
        }
    }

    /// Whether a key comes behind all that were put.
    pub(in crate::machine) fn is_next(&self, key: &[u8]) -> bool {
        self.filling.is_next(key)
    }

    /// Writes a head at the end of the run's table, or gathers it for that: what is gathered goes with
    /// [`close_block`](Self::close_block), before the cursor does.
    pub(in crate::machine) fn put(
        &mut self,
        file: &StateFile,
        end: &mut CursorMut<'_, BlockBound, &'static [u8]>,
        key: &[u8],
        head: &[u8],
    ) -> Result<(), Fault> {
        self.filling.put(file, end, key, head)?;
        self.filter.add(FilterHash::of(key));
        self.rows += 1;
        self.dead.note(head).map_err(|e| file.malformed(&e))
    }

    /// Writes what is gathered.
    pub(in crate::machine) fn close_block(
        &mut self,
        file: &StateFile,
        end: &mut CursorMut<'_, BlockBound, &'static [u8]>,
    ) -> Result<(), Fault> {
        self.filling.close(file, end)
    }

    /// Writes the filter of the run, which has this number, and tells how it is listed; `None` for one without heads, which goes.
    pub(in crate::machine) fn finish(
        mut self,
        file: &StateFile,
        txn: &WriteTransaction,
        number: u64,
    ) -> Result<Option<(Run, Filter)>, Fault> {
        if !self.filling.is_closed() {
            return Err(file.corrupt("the last block of a run was not written"));
        }
        let (rows, dead) = (self.rows, self.dead);
        if rows == 0 {
            remove(file, txn, number)?;
            return Ok(None);
        }
        self.filter.fit(rows);
        write_filter(file, txn, number, &self.filter)?;
        Ok(Some((Run { number, rows, dead }, self.filter)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of_sizes(sizes: &[u64]) -> Runs {
        let mut runs = Runs::NONE;
        for rows in sizes {
            let number = runs.number();
            runs.list.push(Run {
                number,
                rows: *rows,
                dead: Dead::default(),
            });
        }
        runs
    }

    proptest! {
        #[test]
        fn a_list_reads_back_and_garbage_is_refused_or_has_one_form(
            sizes in prop::collection::vec(any::<u64>(), 0..9), unlisted in 0usize..3, garbage in prop::collection::vec(0u64..6, 0..7),
        ) {
            let mut runs = of_sizes(&sizes);
            runs.unlisted = (0..unlisted).map(|_| runs.number()).collect();
            prop_assert_eq!(Runs::decode(&runs.encode()), Ok(runs));
            let garbage: Vec<u8> = garbage.iter().flat_map(|number| number.to_be_bytes()).collect();
            if let Ok(runs) = Runs::decode(&garbage) {
                prop_assert_eq!(runs.encode(), garbage);
            }
        }

        /// Runs of equal size come, and what is due is merged: they stay few, and no head is written often.
        #[test]
        fn runs_stay_few_and_heads_are_seldom_written_anew(count in 1u64..3000, at_least in 2usize..10) {
            let (mut runs, mut written) = (of_sizes(&[]), 0u64);
            for _ in 0..count {
                let number = runs.number();
                runs.list.push(Run { number, rows: 1, dead: Dead::default() });
                while let Some(from) = due_by_size(&runs.list, at_least) {
                    let merged: u64 = runs.list.drain(from..).map(|run| run.rows).sum();
                    written += merged;
                    let number = runs.number();
                    runs.list.push(Run { number, rows: merged, dead: Dead::default() });
                }
            }
            let bits = u64::from(64 - count.leading_zeros());
            prop_assert!(runs.list.len() as u64 <= at_least as u64 + bits, "{:?}", runs);
            prop_assert!(written <= 3 * count * bits, "{} rows written for {}", written, count);
        }
    }

    #[test]
    fn all_is_merged_where_a_quarter_is_of_deleted_keys_whose_history_is_forgotten() {
        let run = |number, rows, dead, newest| Run {
            number,
            rows,
            dead: Dead { rows: dead, newest },
        };
        let due_from = |free, list: &[Run], since| {
            let runs = Runs {
                list: list.to_vec(),
                unlisted: Vec::new(),
                next: 9,
            };
            runs.due(free, 8, Revision::new(since), 10)
        };
        let due = |list: &[Run], since| due_from(0, list, since);
        let two = [run(1, 100, 0, 0), run(2, 40, 40, 7)];
        assert_eq!(due(&two, 6), None, "it has its history yet");
        assert_eq!(due(&two, 7), Some(0));
        assert_eq!(due_from(1, &two, 7), None, "a merge has the first under way");
        assert_eq!(
            due(&[run(1, 100, 0, 0), run(2, 30, 30, 7)], 7),
            None,
            "less than a quarter"
        );
        assert_eq!(due(&[run(1, 9, 9, 7)], 7), None, "too few to be worth it");
        assert_eq!(due(&[run(1, 100, 0, 0)], 7), None);
    }

    /// The story: what writers had left after a load was merged, ten million heads of it, beside those who wrote next.
    #[test]
    fn where_nothing_is_written_runs_become_few_of_which_each_is_far_larger_than_all_newer_ones() {
        for (sizes, from) in [
            (&[][..], None),
            (&[100], None),
            (&[100, 24], None),
            (&[100, 25], Some(0)),
            (&[100, 10, 15], Some(0)),
            (&[100, 12, 2], None),
            (&[100, 12, 3], Some(1)),
            (&[100, 1, 1], None),
            (&[1_000, 100, 12, 3, 2], Some(2)),
            (&[100, 2, 2], Some(1)),
        ] {
            assert_eq!(of_sizes(sizes).due_at_rest(2), from, "{sizes:?}");
        }
    }

    #[test]
    fn what_is_merged_is_not_dwarfed_by_the_oldest_of_it() {
        for (sizes, at_least, from) in [
            (&[][..], 4, None),
            (&[100, 1, 1], 4, None),
            (&[100, 1, 1, 1], 4, None),
            (&[100, 1, 1, 1, 1], 4, Some(1)),
            (&[100, 20, 20, 11], 4, Some(0)),
            (&[100, 20, 20, 9], 4, None),
            (&[1, 1], 2, Some(0)),
        ] {
            assert_eq!(due_by_size(&of_sizes(sizes).list, at_least), from, "{sizes:?}");
        }
    }
}
