//! Forgetting: takes the rows of history away that no read can ask for any more, in steps.
//!
//! What may go is replicated: the oldest revision that can be read. When it goes is each node's own business, and nothing
//! that is hashed or answered depends on it.
//!
//! A step goes through the versions behind [`History::since`], in the order of the revisions. A version up to the
//! oldest readable revision takes the one before it away, which no read can see any more; a deletion takes itself away
//! as well. Its head counts for nothing from then on, and goes when its run is merged. So what stays of a key is the
//! version that a read at the oldest readable revision finds, and all later ones.
//!
//! Always: a step ends between two revisions, and carries the chain of its last one on; after a crash it is done or not.

use std::ops::Bound;

use redb::{ReadableTable, Table as Rows, WriteTransaction};

use crate::fault::Fault;
use crate::machine::rows::chain::Fold;
use crate::machine::rows::error::{StateFile, step as doing, storage};
use crate::machine::rows::system::{History, Standing};
use crate::machine::rows::tables::Table;
use crate::machine::rows::times;
use crate::machine::rows::version::{self, ChangeKind, Version};
use crate::model::Revision;
use crate::planted::{self, Bug};

/// So many rows are looked at before any is taken away: they are in memory meanwhile.
const LOOKED_AT_ONCE: usize = 1024;

/// A step ends with the revision in which it has read so many bytes of rows, however few rows those are.
const STEP_BYTES: usize = 4 * 1024 * 1024;

/// What a step has found in a stretch of rows.
struct Stretch {
    /// Rows that go.
    gone: Vec<Vec<u8>>,
    /// The last row looked at; `None` at the end.
    last: Option<Vec<u8>>,
}

/// Up to where a state can forget.
pub(in crate::machine) fn target(standing: &Standing) -> Revision {
    let oldest = match planted::is(Bug::ForgetsTooMuch) {
        true => Revision::new(standing.oldest.number() + 3),
        false => standing.oldest,
    };
    oldest.min(standing.revision)
}

/// Goes on with forgetting, over so many rows at least, if there are, and whole revisions.
pub(in crate::machine) fn step(
    file: &StateFile,
    txn: &WriteTransaction,
    standing: &mut Standing,
    rows_wanted: usize,
    goes_on: impl Fn() -> Result<(), Fault>,
) -> Result<(), Fault> {
    let history = standing.history;
    let target = target(standing);
    if history.since >= target {
        return Ok(());
    }
    let mut versions = txn
        .open_table(Table::Versions.definition())
        .map_err(doing(file, "opening a table of"))?;
    let mut walk = Walk {
        fold: Fold::after(history.since, history.chain),
        until: target,
        rows_wanted: rows_wanted.max(1),
        rows: 0,
        bytes: 0,
        revision: history.since,
    };
    let mut from = Bound::Included(version::row_key(Revision::new(history.since.number() + 1), &[]));
    loop {
        goes_on()?;
        let found = walk.look(file, &versions, from)?;
        for row in found.gone {
            let gone = versions.remove(&row[..]).map_err(storage(file))?;
            if let Some(gone) = gone {
                let malformed = |e| file.malformed(&e);
                let (_, key) = version::read_key(&row).map_err(malformed)?;
                let version = Version::decode(gone.value()).map_err(malformed)?;
                let size = version.value.len() as u64;
                standing.counters.version_goes(key.len(), size);
            }
        }
        match found.last {
            Some(last) => from = Bound::Excluded(last),
            None => break,
        }
    }
    let (since, chain) = walk.fold.end();
    if since == history.since {
        return Err(file.corrupt(format!(
            "the versions behind revision {since} are missing, up to {target}"
        )));
    }
    standing.history = History { since, chain };
    drop(versions);
    times::forget(file, txn, since)
}

struct Walk {
    fold: Fold,
    until: Revision,
    rows_wanted: usize,
    rows: usize,
    bytes: usize,
    /// The revision whose rows have begun.
    revision: Revision,
}

impl Walk {
    /// Looks at the next rows.
    fn look(
        &mut self,
        file: &StateFile,
        versions: &Rows<'_, &'static [u8], &'static [u8]>,
        from: Bound<Vec<u8>>,
    ) -> Result<Stretch, Fault> {
        let mut found = Stretch {
            gone: Vec::new(),
            last: None,
        };
        let before = self.rows;
        let from = from.as_ref().map(|row| &row[..]);
        let rows = versions
            .range::<&[u8]>((from, Bound::Unbounded))
            .map_err(storage(file))?;
        for row in rows {
            let (row_key, row) = row.map_err(storage(file))?;
            let (row_key, row) = (row_key.value(), row.value());
            let malformed = |e| file.malformed(&e);
            let (revision, key) = version::read_key(row_key).map_err(malformed)?;
            let is_new = revision != self.revision;
            let is_enough = self.rows >= self.rows_wanted || self.bytes >= STEP_BYTES;
            if revision > self.until || is_new && is_enough {
                return Ok(found);
            }
            self.revision = revision;
            self.fold.row(row_key, row).map_err(malformed)?;
            let version = Version::decode(row).map_err(malformed)?;
            if let Some(link) = version.link {
                found.gone.push(version::row_key(link.previous, key));
            }
            if version.kind == ChangeKind::Deleted {
                found.gone.push(row_key.to_vec());
            }
            self.bytes += row_key.len() + row.len();
            self.rows += 1;
            if self.rows - before >= LOOKED_AT_ONCE {
                found.last = Some(row_key.to_vec());
                return Ok(found);
            }
        }
        Ok(found)
    }
}
