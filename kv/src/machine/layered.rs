//! The state: the base, under the layers that no checkpoint has written yet.
//!
//! What a newer layer says of a key hides what an older one or the base says. A range is a merge of sorted
//! streams, the newest first.
//!
//! Always: every revision in a layer is greater than the base's and than those of older layers; so a revision
//! that is older than the base's is answered by the base alone.

use std::collections::VecDeque;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;

use super::base::Base;
use super::head::Head;
use super::keys::Hashed;
use super::layer::{Found, Held, Layer};
use super::version::RecordRef;
use crate::fault::Fault;
use crate::model::{KeyRange, Order, Record, Revision, Sequence, SessionId};

/// A revision behind all others: everything in the layers is seen.
pub(super) const NOW: Revision = Revision::new(u64::MAX);

/// Keys that a scan takes at a time of what is in memory.
const CHUNK_KEYS: usize = 256;

/// See the module. Cheap to clone; a clone stays as it is but for what is added to its newest layer, whose
/// revisions are greater than any that was there.
#[derive(Clone, Debug)]
pub(super) struct Layered {
    pub(super) base: Arc<Base>,
    /// The layer that a checkpoint is writing.
    pub(super) frozen: Option<Arc<Layer>>,
    /// The layer to which `apply` adds.
    pub(super) active: Arc<Layer>,
}

/// What a stream of a scan finds of a key.
#[derive(Clone, Debug)]
pub(super) enum Item {
    /// In memory, the deletion of a key included.
    Here(Found),
    /// In the base: it exists, and its value is in the file.
    Stored(Head),
}

/// A sorted stream of keys.
pub(super) type Stream<'a> = Box<dyn Iterator<Item = Result<(Bytes, Item), Fault>> + 'a>;

/// Whether a scan brings values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Values {
    /// They are read.
    Read,
    /// They are left out: what is visited has empty ones.
    Skip,
}

impl Layered {
    pub(super) fn of(base: Arc<Base>) -> Self {
        Self {
            base,
            frozen: None,
            active: Arc::default(),
        }
    }

    /// The layers, the newest first.
    pub(super) fn layers(&self) -> impl Iterator<Item = &Arc<Layer>> {
        std::iter::once(&self.active).chain(&self.frozen)
    }

    /// The newest version of a key at or before `at` among the layers.
    pub(super) fn held(&self, key: &[u8], at: Revision) -> Option<Held> {
        let key = Hashed::new(key);
        self.layers().find_map(|layer| layer.get(key, at))
    }

    /// The head of a key now; `None` where it never was.
    pub(super) fn head(&self, key: Hashed<'_>) -> Result<Option<Head>, Fault> {
        match self.layers().find_map(|layer| layer.head(key, NOW)) {
            Some(head) => Ok(Some(head)),
            None => self.base.head(key.key),
        }
    }

    /// The value that a revision wrote to a key, which still has it.
    pub(super) fn value(&self, revision: Revision, key: &[u8]) -> Result<Bytes, Fault> {
        match self.held(key, revision) {
            Some(held) => Ok(held.value),
            None => self.base.value(revision, key),
        }
    }

    /// The record of a key at a revision, the base's or a later one.
    pub(super) fn record(&self, key: &[u8], at: Revision) -> Result<Option<Record>, Fault> {
        if let Some(held) = self.held(key, at) {
            let found = held.found();
            return Ok(record(&found).map(|record| record.to_record(true)));
        }
        self.base.record_at(key, at)
    }

    /// Visits the records of a range at a revision, the base's or a later one, until `visit` breaks. `over`
    /// hides what the state says of its keys.
    pub(super) fn scan<'a>(
        &'a self,
        range: &'a KeyRange,
        order: Order,
        at: Revision,
        values: Values,
        over: Option<Stream<'a>>,
        mut visit: impl FnMut(&[u8], RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        if range.is_empty() {
            return Ok(());
        }
        let mut streams: Vec<Stream<'a>> = over.into_iter().collect();
        for layer in self.layers() {
            let keys = in_chunks(range, order, move |bounds, count| {
                layer.next_keys(bounds, order, at, count)
            });
            streams.push(Box::new(
                keys.map(|(key, held)| Ok((key, Item::Here(held.found())))),
            ));
        }
        let stored = self.base.heads(range, order)?;
        streams.push(Box::new(
            stored.map(|row| row.map(|(key, head)| (key, Item::Stored(head)))),
        ));
        let mut merge = Merge::new(streams, order)?;
        while let Some((key, item)) = merge.next()? {
            let flow = match item {
                Item::Here(found) => match record(&found) {
                    Some(mut record) => {
                        if values == Values::Skip {
                            record.value = &[];
                        }
                        visit(&key, record)
                    }
                    None => ControlFlow::Continue(()),
                },
                Item::Stored(head) => {
                    let Some(meta) = head.meta else {
                        return Err(self.base.file().corrupt("a deleted key has its head in current"));
                    };
                    let mod_revision = head.revision;
                    let mut visit = |value: &[u8]| {
                        visit(
                            &key,
                            RecordRef {
                                meta,
                                mod_revision,
                                value,
                            },
                        )
                    };
                    match values {
                        Values::Skip => visit(&[]),
                        Values::Read => self
                            .base
                            .version(mod_revision, &key, |version| visit(version.value))?,
                    }
                }
            };
            if flow.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// A remembered answer.
    pub(super) fn answer(&self, id: SessionId, sequence: Sequence) -> Result<Option<Bytes>, Fault> {
        match self.layers().find_map(|layer| layer.answer(id, sequence)) {
            Some(answer) => Ok(answer),
            None => self.base.answer(id, sequence),
        }
    }

    /// The last number of a sequence; 0 for one that gave none.
    pub(super) fn sequence(&self, prefix: &[u8]) -> Result<u64, Fault> {
        match self.layers().find_map(|layer| layer.sequence(prefix)) {
            Some(last) => Ok(last),
            None => self.base.sequence(prefix),
        }
    }
}

/// The keys of a range, which `next` brings a chunk at a time, so that no lock is held while others do I/O: so many
/// at most from the bounds on, and fewer only at the range's end.
pub(super) fn in_chunks<'a, T: 'a>(
    range: &'a KeyRange,
    order: Order,
    next: impl Fn((Bound<&[u8]>, Bound<&[u8]>), usize) -> Vec<(Bytes, T)> + 'a,
) -> impl Iterator<Item = (Bytes, T)> + 'a {
    let mut chunk: VecDeque<(Bytes, T)> = VecDeque::new();
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
            chunk = next(bounds, CHUNK_KEYS).into();
            ended = chunk.len() < CHUNK_KEYS;
            place = chunk.back().map(|(key, _)| key.clone());
        }
        chunk.pop_front()
    })
}

fn record(found: &Found) -> Option<RecordRef<'_>> {
    Some(RecordRef {
        meta: found.meta?,
        mod_revision: found.revision,
        value: &found.value,
    })
}

/// Merges sorted streams; of those that have a key, the first wins.
struct Merge<'a> {
    streams: Vec<(Option<(Bytes, Item)>, Stream<'a>)>,
    order: Order,
}

impl<'a> Merge<'a> {
    fn new(streams: Vec<Stream<'a>>, order: Order) -> Result<Self, Fault> {
        let streams = streams
            .into_iter()
            .map(|mut stream| Ok((stream.next().transpose()?, stream)))
            .collect::<Result<_, Fault>>()?;
        Ok(Self { streams, order })
    }

    fn next(&mut self) -> Result<Option<(Bytes, Item)>, Fault> {
        let mut first: Option<&Bytes> = None;
        for (head, _) in &self.streams {
            if let Some((key, _)) = head
                && first.is_none_or(|first| match self.order {
                    Order::Ascending => key < first,
                    Order::Descending => key > first,
                })
            {
                first = Some(key);
            }
        }
        let Some(first) = first.cloned() else {
            return Ok(None);
        };
        let mut found = None;
        for (head, stream) in &mut self.streams {
            if head.as_ref().is_some_and(|(key, _)| *key == first) {
                let item = std::mem::replace(head, stream.next().transpose()?);
                found = found.or(item);
            }
        }
        Ok(found)
    }
}
