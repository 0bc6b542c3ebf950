//! The state: the base, under the layers that no checkpoint has written yet.
//!
//! What a newer layer says of a key hides what an older one or the base says. A range is a merge of sorted
//! streams, the newest first.
//!
//! Always: every revision in a layer is greater than the base's and than those of older layers; so a revision
//! that is older than the base's is answered by the base alone.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;

use super::keys::Hashed;
use super::layer::{Layer, LayerVersion, Look, Seen};
use crate::fault::Fault;
use crate::machine::file::base::Base;
use crate::machine::file::in_order::{InOrder, Sorted};
use crate::machine::file::sight::{Sight, Values};
use crate::machine::rows::head::{Head, Meta, ValueDigest};
use crate::machine::rows::times::Stood;
use crate::machine::rows::version::RecordRef;
use crate::model::{KeyRange, LogTime, Order, Record, Revision, Sequence, SessionId};

/// A revision behind all others: everything in the layers is seen.
pub(in crate::machine) const NOW: Revision = Revision::new(u64::MAX);

/// See the module. Cheap to clone; a clone stays as it is but for what is added to its newest layer, whose
/// revisions are greater than any that was there.
#[derive(Clone, Debug)]
pub(in crate::machine) struct Layered {
    pub(in crate::machine) base: Arc<Base>,
    /// The layer that a checkpoint is writing.
    pub(in crate::machine) frozen: Option<Arc<Layer>>,
    /// The layer to which `apply` adds.
    pub(in crate::machine) active: Arc<Layer>,
}

/// A sorted stream of keys in memory, the deleted ones included, and those that are not there yet.
pub(in crate::machine) type Looks<'a> = Box<dyn Iterator<Item = (Bytes, Look)> + 'a>;

impl Layered {
    pub(in crate::machine) fn of(base: Arc<Base>) -> Self {
        Self {
            base,
            frozen: None,
            active: Arc::default(),
        }
    }

    /// The layers, the newest first.
    pub(in crate::machine) fn layers(&self) -> impl Iterator<Item = &Arc<Layer>> {
        std::iter::once(&self.active).chain(&self.frozen)
    }

    /// The newest version of a key at or before `at` among the layers.
    pub(in crate::machine) fn held(&self, key: &[u8], at: Revision) -> Option<LayerVersion> {
        let key = Hashed::new(key);
        self.layers().find_map(|layer| layer.get(key, at))
    }

    /// The head of a key now; `None` where it never was.
    pub(in crate::machine) fn head(&self, key: Hashed<'_>) -> Result<Option<Head>, Fault> {
        match self.layers().find_map(|layer| layer.head(key, NOW)) {
            Some(head) => Ok(Some(head)),
            None => self.base.head(key.key),
        }
    }

    /// The value that a revision wrote to a key, which still has it and whose head has this digest of it.
    pub(in crate::machine) fn value(
        &self,
        revision: Revision,
        key: &[u8],
        digest: ValueDigest,
    ) -> Result<Bytes, Fault> {
        match self.held(key, revision) {
            Some(held) => Ok(held.value),
            None => self.base.value(revision, key, digest),
        }
    }

    /// The record of a key at a revision; counts the rows and versions looked at.
    pub(in crate::machine) fn record(
        &self,
        key: &[u8],
        at: Revision,
        steps: &mut u64,
    ) -> Result<Option<Record>, Fault> {
        *steps += 1;
        if let Some(held) = self.held(key, at) {
            let found = held.found();
            return Ok(record(&found).map(|record| record.to_record(true)));
        }
        let (base, key) = (&self.base, Hashed::new(key));
        let newest = base.standing.revision;
        if at < newest {
            return base.record_at(key.key, at, steps);
        }
        if let Some(told) = base.state.recent.get(key, newest) {
            return Ok(told);
        }
        let record = base.record_at(key.key, at, steps)?;
        base.state.recent.keep(key, newest, record.as_ref());
        Ok(record)
    }

    /// The same where memory tells, and nobody is in the way, and the value has no more than so many bytes: `None` where not.
    pub(in crate::machine) fn recall(
        &self,
        key: &[u8],
        at: Revision,
        value_max: usize,
    ) -> Option<Option<Record>> {
        let (base, key) = (&self.base, Hashed::new(key));
        let newest = base.standing.revision;
        if at < newest {
            return None;
        }
        for layer in self.layers() {
            if let Some(found) = layer.look_now(key, at).ok()? {
                let record = record(&found);
                let fits = record.is_none_or(|record| record.value.len() <= value_max);
                return fits.then(|| record.map(|record| record.to_record(true)));
            }
        }
        let told = base.state.recent.get(key, newest)?;
        let fits = told.as_ref().is_none_or(|record| record.value.len() <= value_max);
        fits.then_some(told)
    }

    /// Visits the keys of a range at a revision, until `visit` breaks. `over` hides what the state says of its keys,
    /// at the base's revision or a later one.
    pub(in crate::machine) fn scan<'a>(
        &'a self,
        range: &'a KeyRange,
        order: Order,
        at: Revision,
        values: Values,
        over: Option<Looks<'a>>,
        mut visit: impl FnMut(Sight<'_>) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        if range.is_empty() {
            return Ok(());
        }
        if at < self.base.standing.revision {
            return self.base.scan_at(range, order, at, values, visit);
        }
        let chunk_max = self.base.state.tuning.chunk_keys;
        let mut streams: Vec<Looks<'a>> = over.into_iter().collect();
        for layer in self.layers() {
            streams.push(Box::new(in_chunks(
                range,
                order,
                chunk_max,
                move |bounds, count| layer.next_keys(bounds, order, at, count),
            )));
        }
        let mut memory = Memory(InOrder::new(&(), order, streams)?);
        let mut rows = self.base.heads(range, order)?;
        let (mut here, mut stored) = (memory.next()?, rows.next()?);
        loop {
            // What memory says nothing of costs no sight of its own where the file has a row.
            let mut steps = 0;
            // Which of the two comes next; a key in memory hides the row of the same.
            let in_memory = match (&here, &stored) {
                (None, None) => return Ok(()),
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some((key, look)), Some(row)) => match order.compare(key, row.key()) {
                    Ordering::Less => true,
                    Ordering::Greater => false,
                    Ordering::Equal if look.found.is_none() => {
                        steps = look.steps;
                        here = memory.next()?;
                        false
                    }
                    Ordering::Equal => {
                        stored = rows.next()?;
                        true
                    }
                },
            };
            let flow = if in_memory {
                let Some((key, look)) = std::mem::replace(&mut here, memory.next()?) else {
                    return Ok(());
                };
                let mut record = look.found.as_ref().and_then(record);
                if let Some(record) = &mut record
                    && values == Values::Skip
                {
                    record.value = &[];
                }
                visit(Sight {
                    key: &key,
                    record,
                    steps: look.steps,
                })
            } else {
                let Some(row) = std::mem::replace(&mut stored, rows.next()?) else {
                    return Ok(());
                };
                let (mod_revision, told) = self.base.newest(&row)?;
                let key = row.key();
                let steps = steps + 1;
                let mut seen = |found: Option<(Meta, &[u8])>| {
                    let record = found.map(|(meta, value)| RecordRef {
                        meta,
                        mod_revision,
                        value,
                    });
                    visit(Sight { key, record, steps })
                };
                match (told, values) {
                    (None, _) => seen(None),
                    (Some((meta, _)), Values::Skip) => seen(Some((meta, &[]))),
                    (Some((meta, digest)), Values::Read) => {
                        let base = &self.base;
                        base.newest_version(mod_revision, key, digest, |version| {
                            seen(Some((meta, version.value)))
                        })?
                    }
                }
            };
            if flow.is_break() {
                return Ok(());
            }
        }
    }

    /// A remembered answer.
    pub(in crate::machine) fn answer(
        &self,
        id: SessionId,
        sequence: Sequence,
    ) -> Result<Option<Bytes>, Fault> {
        match self.layers().find_map(|layer| layer.answer(id, sequence)) {
            Some(answer) => Ok(answer),
            None => self.base.answer(id, sequence),
        }
    }

    /// The last row of `times` that is not later than a time.
    pub(in crate::machine) fn stood(&self, time: LogTime) -> Result<Option<Stood>, Fault> {
        match self.layers().find_map(|layer| layer.stood(time)) {
            Some(stood) => Ok(Some(stood)),
            None => self.base.stood(time),
        }
    }

    /// The last number of a sequence; 0 for one that gave none.
    pub(in crate::machine) fn sequence(&self, prefix: &[u8]) -> Result<u64, Fault> {
        match self.layers().find_map(|layer| layer.sequence(prefix)) {
            Some(last) => Ok(last),
            None => self.base.sequence(prefix),
        }
    }
}

/// The keys of a range, which `next` brings a chunk at a time, so that no lock is held while others do I/O: so many
/// at most from the bounds on, and fewer only at the range's end. The first chunks are small: who wants one key does not
/// pay for many.
pub(in crate::machine) fn in_chunks<'a, T: 'a>(
    range: &'a KeyRange,
    order: Order,
    chunk_max: usize,
    next: impl Fn((Bound<&[u8]>, Bound<&[u8]>), usize) -> Vec<(Bytes, T)> + 'a,
) -> impl Iterator<Item = (Bytes, T)> + 'a {
    const CHUNK_FIRST: usize = 4;
    let mut chunk: VecDeque<(Bytes, T)> = VecDeque::new();
    let mut size = CHUNK_FIRST.min(chunk_max);
    let mut place: Option<Bytes> = None;
    let mut ended = false;
    std::iter::from_fn(move || {
        if chunk.is_empty() && !ended {
            let (start, end) = range.bounds();
            let bounds = match (&place, order) {
                (None, _) => (start, end),
                (Some(last), Order::Ascending) => (Bound::Excluded(&last[..]), end),
                (Some(last), Order::Descending) => (start, Bound::Excluded(&last[..])),
            };
            chunk = next(bounds, size).into();
            ended = chunk.len() < size;
            size = (size * 4).min(chunk_max);
            place = chunk.back().map(|(key, _)| key.clone());
        }
        chunk.pop_front()
    })
}

fn record(found: &Seen) -> Option<RecordRef<'_>> {
    Some(RecordRef {
        meta: found.meta?,
        mod_revision: found.revision,
        value: &found.value,
    })
}

/// What memory says of the keys of a range, in order; of the streams that say something of a key, the first wins.
struct Memory<'a>(InOrder<Looks<'a>>);

impl Sorted for Looks<'_> {
    type Of = ();
    type Item = (Bytes, Look);

    fn next(&mut self, (): &()) -> Result<Option<Self::Item>, Fault> {
        Ok(Iterator::next(self))
    }

    fn key((key, _): &Self::Item) -> &[u8] {
        key
    }
}

impl Memory<'_> {
    fn next(&mut self) -> Result<Option<(Bytes, Look)>, Fault> {
        let Some((key, mut look)) = self.0.next(&())? else {
            return Ok(None);
        };
        while let Some((_, older)) = self.0.next_of(&(), &key)? {
            look.found = look.found.or(older.found);
            look.steps += older.steps;
        }
        Ok(Some((key, look)))
    }
}
