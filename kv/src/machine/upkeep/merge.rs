//! Merging runs, in steps: neighbours become one, so that a look-up has few to look into.
//!
//! A step reads on in all runs that are merged and writes the next keys' newest heads at the end of the new run. The
//! last one lists it in their place. Deleted keys of which no history is left go where there is no older run in which they
//! could be. What was merged is removed in steps too.
//!
//! Newer runs are merged while a merge of older ones is under way: it may take as long as a hundred checkpoints, each of which
//! makes a run. Most steps are those of the merge that has least left, so that the runs soon are few. The more there are, the
//! fewer are merged at once.
//!
//! Where nothing is written the runs become fewer than they need to be beside writers, for whom there is less to merge then.
//!
//! Always: what a read finds is the same before and after each step; a merge that a crash has cut short begins anew, and what it
//! had made is removed.

use std::ops::Bound;
use std::sync::atomic::Ordering;

use redb::WriteTransaction;

use crate::fault::Fault;
use crate::machine::file::blocks;
use crate::machine::file::database::OpenState;
use crate::machine::file::heads::Heads;
use crate::machine::file::runs::{self, Merging, Run, Runs, Writing};
use crate::machine::rows::error::storage;
use crate::machine::rows::head::Head;
use crate::machine::rows::wire::Malformed;
use crate::model::{Order, Revision};

/// Whether a head is that of a deleted key of which nothing is left.
pub(in crate::machine) fn is_forgotten(head: &[u8], since: Revision) -> Result<bool, Malformed> {
    let (revision, record) = Head::decode_newest(head)?;
    Ok(record.is_none() && revision <= since)
}

/// Whether somebody writes meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::machine) enum Load {
    Writers,
    None,
}

/// Whether there is something to merge, or to remove.
pub(in crate::machine) fn is_due(state: &OpenState, runs: &Runs, since: Revision, load: Load) -> bool {
    let merging = state.runs.merging();
    !merging.is_empty() || !runs.unlisted.is_empty() || due(state, runs, &merging, since, load).is_some()
}

/// How often there are twice as many runs as where none are many: 0 there, 2 at most.
fn crowding(state: &OpenState, runs: &Runs) -> u32 {
    let many = 2 * state.tuning.runs_merged;
    match runs.list.len() {
        len if len > 2 * many => 2,
        len if len > many => 1,
        _ => 0,
    }
}

/// From which on the runs are to be merged that no merge has under way.
fn due(state: &OpenState, runs: &Runs, merging: &[Merging], since: Revision, load: Load) -> Option<usize> {
    /// Fewer heads of deleted keys than so many times as a checkpoint writes anew are worth nothing.
    const DEAD_MIN: u64 = 4;
    let tuning = state.tuning;
    let is_merged = |run: &Run| merging.iter().any(|merging| merging.inputs.contains(&run.number));
    let merged = runs.list.iter().rposition(is_merged);
    let due = runs.due(
        merged.map_or(0, |last| last + 1),
        tuning.runs_merged >> crowding(state, runs),
        since,
        tuning.run_rows.saturating_mul(DEAD_MIN),
    );
    due.or_else(|| match (load, merged) {
        (Load::None, None) => runs.due_at_rest(tuning.rest_rows),
        _ => None,
    })
}

/// Goes on with merging, over so many rows, or begins it, or removes some of what was merged.
pub(in crate::machine) fn step(
    state: &OpenState,
    txn: &WriteTransaction,
    since: Revision,
    rows_wanted: usize,
    load: Load,
    goes_on: impl Fn() -> Result<(), Fault>,
) -> Result<(), Fault> {
    /// A block is removed in the time in which so many rows are merged.
    const ROWS_OF_A_BLOCK: usize = 8;
    let file = &state.file;
    let mut listed = Runs::read_within(file, txn)?;
    // Taken: after a failure nothing is written any more.
    let mut merging = std::mem::take(&mut *state.runs.merging());
    let is_made = |number: &u64| merging.iter().any(|merging| merging.output == *number);
    let mut rows_left = rows_wanted.max(1);
    while rows_left > 0
        && let Some(at) = listed.unlisted.iter().position(|number| !is_made(number))
    {
        goes_on()?;
        let blocks = (rows_left / ROWS_OF_A_BLOCK).max(1);
        rows_left = match runs::remove_some(file, txn, listed.unlisted[at], blocks)? {
            Some(removed) => {
                listed.unlisted.remove(at);
                rows_left.saturating_sub((removed + 1) * ROWS_OF_A_BLOCK)
            }
            None => 0,
        };
    }
    if rows_left > 0 {
        begin_what_is_due(state, &mut listed, &mut merging, since, load);
        merge(state, txn, &mut listed, &mut merging, since, rows_left, goes_on)?;
    }
    *state.runs.merging() = merging;
    listed.write(file, txn)
}

fn begin_what_is_due(
    state: &OpenState,
    listed: &mut Runs,
    merging: &mut Vec<Merging>,
    since: Revision,
    load: Load,
) {
    let Some(from) = due(state, listed, merging, since, load) else {
        return;
    };
    let output = listed.number();
    listed.unlisted.push(output);
    let inputs = &listed.list[from..];
    let rows = inputs.iter().map(|run| run.rows).fold(0, u64::saturating_add);
    merging.push(Merging {
        inputs: inputs.iter().map(|run| run.number).collect(),
        output,
        writing: Writing::of(rows, state.tuning.block_bytes),
        last: None,
        left: rows,
    });
}

/// Goes on with one of the merges under way.
fn merge(
    state: &OpenState,
    txn: &WriteTransaction,
    listed: &mut Runs,
    merging: &mut Vec<Merging>,
    since: Revision,
    rows_wanted: usize,
    goes_on: impl Fn() -> Result<(), Fault>,
) -> Result<(), Fault> {
    /// One step of so many is that of the oldest merge: it must end too, however much is written.
    const OF_THE_OLDEST: u64 = 4;
    let step = state.runs.steps.fetch_add(1, Ordering::Relaxed);
    let shortest = (0..merging.len()).min_by_key(|at| merging[*at].left);
    if let Some(shortest) = shortest {
        let at = if step.is_multiple_of(OF_THE_OLDEST) {
            0
        } else {
            shortest
        };
        let one = merging.remove(at);
        if let Some(one) = go_on(state, txn, listed, one, since, rows_wanted, goes_on)? {
            merging.insert(at, one);
        }
    }
    Ok(())
}

/// Goes on with one merge; answers it, unless it is done.
fn go_on(
    state: &OpenState,
    txn: &WriteTransaction,
    listed: &mut Runs,
    mut merging: Merging,
    since: Revision,
    rows_wanted: usize,
    goes_on: impl Fn() -> Result<(), Fault>,
) -> Result<Option<Merging>, Fault> {
    let file = &state.file;
    let first = listed
        .list
        .iter()
        .position(|run| Some(&run.number) == merging.inputs.first());
    let lost = || file.corrupt("a run that is being merged is listed no more");
    let first = first.ok_or_else(lost)?;
    let here = listed.list[first..].iter().map(|run| run.number);
    if !here.take(merging.inputs.len()).eq(merging.inputs.iter().copied()) {
        return Err(lost());
    }
    let since = (first == 0).then_some(since);
    if !some_rows(state, txn, &mut merging, since, rows_wanted, goes_on)? {
        return Ok(Some(merging));
    }
    let Merging {
        inputs,
        output,
        writing,
        ..
    } = merging;
    listed.unlisted.retain(|number| *number != output);
    listed.list.drain(first..first + inputs.len());
    listed.unlisted.extend(inputs);
    if let Some((run, filter)) = writing.finish(file, txn, output)? {
        listed.list.insert(first, run);
        state.runs.keep(output, filter);
    }
    Ok(None)
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
        if merging.last.as_ref().is_some_and(|last| row.key() <= &last[..]) {
            return Err(file.corrupt("the keys of a run are not in order"));
        }
        let goes = match since {
            Some(since) => is_forgotten(row.head(), since).map_err(|e| file.malformed(&e))?,
            None => false,
        };
        if !goes {
            merging.writing.put(file, &mut end, row.key(), row.head())?;
        }
        if count + 1 >= rows_wanted {
            merging.last = Some(row.key().to_vec());
            merging.left = merging.left.saturating_sub(rows_wanted as u64);
            break;
        }
    }
    merging.writing.close_block(file, &mut end)?;
    end.close().map_err(storage(file))?;
    Ok(is_done)
}
