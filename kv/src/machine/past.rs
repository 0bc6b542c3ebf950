//! The state as it was at an older revision: what still stands in `current`, and what has ended since.
//!
//! Always: a key has at most one record at a revision, in one of the two tables; so a range is a merge of two
//! sorted streams that never hold the same key.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use super::current::RecordRef;
use super::error::{StateFile, storage};
use super::history;
use super::read::Rows;
use crate::fault::Fault;
use crate::model::{KeyRange, Order, Record, Revision};

/// The state at `revision`, which is older than the store's.
pub(super) struct Past<'v> {
    pub(super) file: &'v StateFile,
    pub(super) current: &'v Rows,
    pub(super) history: Rows,
    pub(super) revision: Revision,
}

/// A key and the row of its record.
type Found = (Vec<u8>, Vec<u8>);

/// A row of history: the key, the revision that ended the record, the record.
type HistoryRow = (Vec<u8>, Revision, Vec<u8>);

impl Past<'_> {
    /// The record of a key at the revision.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Record>, Fault> {
        if let Some(row) = self.current.get(key).map_err(storage(self.file))? {
            let record = self.decode(row.value())?;
            if record.mod_revision <= self.revision {
                return Ok(Some(record.to_record(true)));
            }
        }
        match self.ended(key)? {
            None => Ok(None),
            Some(row) => Ok(Some(self.decode(&row)?.to_record(true))),
        }
    }

    /// Visits the records of a range (not an empty one) at the revision, until `visit` breaks.
    pub(super) fn scan(
        &self,
        range: &KeyRange,
        order: Order,
        mut visit: impl FnMut(&[u8], RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        let mut standing = self
            .current
            .range::<&[u8]>(range.bounds())
            .map_err(storage(self.file))?;
        let mut next_standing = || -> Result<Option<Found>, Fault> {
            loop {
                let row = match order {
                    Order::Ascending => standing.next(),
                    Order::Descending => standing.next_back(),
                };
                let Some((key, row)) = row.transpose().map_err(storage(self.file))? else {
                    return Ok(None);
                };
                if self.decode(row.value())?.mod_revision <= self.revision {
                    return Ok(Some((key.value().to_vec(), row.value().to_vec())));
                }
            }
        };
        let mut ended = Ended::new(self, range, order);
        let (mut a, mut b) = (next_standing()?, ended.next()?);
        loop {
            let first = match (&a, &b) {
                (None, None) => return Ok(()),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((a, _)), Some((b, _))) => match order {
                    Order::Ascending => a.cmp(b),
                    Order::Descending => b.cmp(a),
                },
            };
            let next = if first.is_le() {
                let next = next_standing()?;
                std::mem::replace(&mut a, next)
            } else {
                let next = ended.next()?;
                std::mem::replace(&mut b, next)
            };
            if let Some((key, row)) = next
                && visit(&key, self.decode(&row)?).is_break()
            {
                return Ok(());
            }
        }
    }

    /// The record of a key at the revision, where it has ended since.
    fn ended(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        match self.first_from(&history::row_key(key, self.revision.next()))? {
            Some((found, _, row)) if found == key && self.decode(&row)?.mod_revision <= self.revision => {
                Ok(Some(row))
            }
            Some(_) | None => Ok(None),
        }
    }

    /// The first row of history at or behind a row key.
    fn first_from(&self, row_key: &[u8]) -> Result<Option<HistoryRow>, Fault> {
        let mut rows = self
            .history
            .range::<&[u8]>(row_key..)
            .map_err(storage(self.file))?;
        let Some((key, row)) = rows.next().transpose().map_err(storage(self.file))? else {
            return Ok(None);
        };
        let (key, end) = history::read_key(key.value()).map_err(|e| self.file.malformed(&e))?;
        Ok(Some((key, end, row.value().to_vec())))
    }

    fn decode<'a>(&self, row: &'a [u8]) -> Result<RecordRef<'a>, Fault> {
        RecordRef::decode(row).map_err(|e| self.file.malformed(&e))
    }
}

/// The records of a range that existed at the revision and have ended since, one seek or two for each key:
/// a key with a thousand versions costs no more than one with two.
struct Ended<'p, 'r> {
    past: &'p Past<'p>,
    range: &'r KeyRange,
    order: Order,
    /// Ascending: the row key to go on from. Descending: the row key to stay below, if any.
    place: Option<Vec<u8>>,
}

impl<'p, 'r> Ended<'p, 'r> {
    fn new(past: &'p Past<'p>, range: &'r KeyRange, order: Order) -> Self {
        let place = match order {
            Order::Ascending => Some(history::bound(range.start())),
            Order::Descending => range.end().map(history::bound),
        };
        Self {
            past,
            range,
            order,
            place,
        }
    }

    fn next(&mut self) -> Result<Option<Found>, Fault> {
        match self.order {
            Order::Ascending => self.next_above(),
            Order::Descending => self.next_below(),
        }
    }

    fn next_above(&mut self) -> Result<Option<Found>, Fault> {
        let revision = self.past.revision;
        while let Some(place) = &self.place {
            let Some((key, end, row)) = self.past.first_from(place)? else {
                self.place = None;
                break;
            };
            if !self.range.contains(&key) {
                self.place = None;
                break;
            }
            if end <= revision {
                self.place = Some(history::row_key(&key, revision.next()));
                continue;
            }
            self.place = Some(history::bound_after(&key));
            if self.past.decode(&row)?.mod_revision <= revision {
                return Ok(Some((key, row)));
            }
        }
        Ok(None)
    }

    fn next_below(&mut self) -> Result<Option<Found>, Fault> {
        let file = self.past.file;
        loop {
            let mut rows = match &self.place {
                Some(place) => self.past.history.range::<&[u8]>(..&place[..]),
                None => self.past.history.range::<&[u8]>(..),
            }
            .map_err(storage(file))?;
            let Some((row_key, _)) = rows.next_back().transpose().map_err(storage(file))? else {
                return Ok(None);
            };
            let (key, _) = history::read_key(row_key.value()).map_err(|e| file.malformed(&e))?;
            if !self.range.contains(&key) {
                return Ok(None);
            }
            self.place = Some(history::bound(&key));
            if let Some(row) = self.past.ended(&key)? {
                return Ok(Some((key, row)));
            }
        }
    }
}
