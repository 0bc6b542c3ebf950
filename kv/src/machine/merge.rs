//! Merging runs, in steps: some of the newest become one, so that a look-up has few to look into.
//!
//! A step reads on in all runs that are merged and writes the next keys' newest heads at the end of the new run. The
//! last one lists it in their place and removes them. Deleted keys of which no history is left go where there is no
//! older run in which they could be.
//!
//! Always: what a read finds is the same before and after each step; a merge that a crash has cut short begins anew.

use std::ops::Bound;

use redb::WriteTransaction;

use super::blocks;
use super::database::OpenState;
use super::error::storage;
use super::head::Head;
use super::heads::Heads;
use super::runs::{self, Merging, Runs, Writing};
use super::wire::Malformed;
use crate::fault::Fault;
use crate::model::{Order, Revision};

/// Whether a head is that of a deleted key of which nothing is left.
pub(super) fn is_forgotten(head: &[u8], since: Revision) -> Result<bool, Malformed> {
    let (revision, record) = Head::decode_newest(head)?;
    Ok(record.is_none() && revision <= since)
}

/// Whether there is something to merge.
pub(super) fn is_due(state: &OpenState, runs: &Runs, since: Revision) -> bool {
    state.runs.merging().is_some() || runs.unfinished.is_some() || due(state, runs, since).is_some()
}

fn due(state: &OpenState, runs: &Runs, since: Revision) -> Option<usize> {
    /// Fewer heads of deleted keys than so many times as a checkpoint writes anew are worth nothing.
    const DEAD_MIN: u64 = 4;
    let tuning = state.tuning;
    runs.due(
        tuning.runs_merged,
        since,
        tuning.run_rows.saturating_mul(DEAD_MIN),
    )
}

/// Goes on with merging, over so many rows, or begins it.
pub(super) fn step(
    state: &OpenState,
    txn: &WriteTransaction,
    since: Revision,
    rows_wanted: usize,
    goes_on: impl Fn() -> Result<(), Fault>,
) -> Result<(), Fault> {
    let file = &state.file;
    let mut listed = Runs::read_within(file, txn)?;
    // Taken: after a failure nothing is written any more.
    let merging = state.runs.merging().take();
    let mut merging = match merging {
        Some(merging) => merging,
        None => {
            if let Some(left) = listed.unfinished.take() {
                runs::remove(file, txn, left)?;
            }
            let Some(from) = due(state, &listed, since) else {
                return listed.write(file, txn);
            };
            let rows = listed.list[from..].iter().map(|run| run.rows);
            let rows = rows.fold(0, u64::saturating_add);
            let output = listed.number();
            listed.unfinished = Some(output);
            Merging {
                inputs: listed.list[from..].iter().map(|run| run.number).collect(),
                output,
                writing: Writing::of(rows, state.tuning.block_bytes),
                last: None,
            }
        }
    };
    let first = listed
        .list
        .iter()
        .position(|run| Some(&run.number) == merging.inputs.first());
    let first = first.ok_or_else(|| file.corrupt("a run that is being merged is listed no more"))?;
    let is_done = some_rows(
        state,
        txn,
        &mut merging,
        (first == 0).then_some(since),
        rows_wanted,
        goes_on,
    )?;
    if !is_done {
        *state.runs.merging() = Some(merging);
        return listed.write(file, txn);
    }
    let Merging {
        inputs,
        output,
        writing,
        ..
    } = merging;
    for input in &inputs {
        runs::remove(file, txn, *input)?;
    }
    listed.unfinished = None;
    listed.list.drain(first..first + inputs.len());
    if let Some((run, filter)) = writing.finish(file, txn, output)? {
        listed.list.insert(first, run);
        state.runs.keep(output, filter);
    }
    listed.write(file, txn)
}

/// Writes the next rows; whether there are no more. `since` where deleted keys of up to that revision go.
fn some_rows(
    state: &OpenState,
    txn: &WriteTransaction,
    merging: &mut Merging,
    since: Option<Revision>,
    rows_wanted: usize,
    goes_on: impl Fn() -> Result<(), Fault>,
) -> Result<bool, Fault> {
    /// It is asked so often whether to go on.
    const ASKED_EVERY: usize = 1024;
    let file = &state.file;
    let inputs = merging.inputs.iter().rev();
    let inputs = inputs.map(|input| runs::open_within(file, txn, *input));
    let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
    let from = match &merging.last {
        Some(last) => Bound::Excluded(&last[..]),
        None => Bound::Unbounded,
    };
    let ranges = inputs
        .iter()
        .map(|input| blocks::rows(file, input, (from, Bound::Unbounded), Order::Ascending));
    let ranges = ranges.collect::<Result<Vec<_>, _>>()?;
    let mut heads = Heads::new(file, Order::Ascending, ranges)?;
    let mut output = runs::open_within(file, txn, merging.output)?;
    let mut end = output
        .upper_bound_mut(Bound::<&[u8]>::Unbounded)
        .map_err(storage(file))?;
    let mut is_done = false;
    for count in 0.. {
        if count % ASKED_EVERY == 0 {
            goes_on()?;
        }
        let Some(row) = heads.next()? else {
            is_done = true;
            break;
        };
        let goes = match since {
            Some(since) => is_forgotten(row.head(), since).map_err(|e| file.malformed(&e))?,
            None => false,
        };
        if !goes {
            merging.writing.put(file, &mut end, row.key(), row.head())?;
        }
        if count + 1 >= rows_wanted.max(1) {
            merging.last = Some(row.key().to_vec());
            break;
        }
    }
    merging.writing.close_block(file, &mut end)?;
    end.close().map_err(storage(file))?;
    Ok(is_done)
}
