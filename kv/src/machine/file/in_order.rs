//! Sorted streams as one: what several say of a key comes one after the other, the newest stream's first.
//!
//! Streams are few, and one of them often has many keys in a row. So the one whose key was taken is brought to its place among the
//! others, and the rest is not compared.

use std::cmp::Ordering;

use crate::fault::Fault;
use crate::model::Order;

/// A stream that is sorted by its keys, each of which it has once.
pub(in crate::machine) trait Sorted {
    /// What all streams are of.
    type Of: ?Sized;
    type Item;

    fn next(&mut self, of: &Self::Of) -> Result<Option<Self::Item>, Fault>;

    fn key(item: &Self::Item) -> &[u8];
}

/// See the module.
pub(in crate::machine) struct InOrder<S: Sorted> {
    order: Order,
    /// The newest first.
    streams: Vec<Fronted<S>>,
    /// Those that have an item, by which of them comes first; of those that have the same key the newest.
    turn: Vec<usize>,
}

struct Fronted<S: Sorted> {
    rest: S,
    front: Option<S::Item>,
}

impl<S: Sorted> InOrder<S> {
    /// Of these, the newest first, which have all this order.
    pub(in crate::machine) fn new(
        of: &S::Of,
        order: Order,
        streams: impl IntoIterator<Item = S>,
    ) -> Result<Self, Fault> {
        let streams = streams.into_iter().map(|rest| Fronted { rest, front: None });
        let mut all = Self {
            order,
            streams: streams.collect(),
            turn: Vec::new(),
        };
        for stream in (0..all.streams.len()).rev() {
            all.advance(of, stream)?;
            if all.streams[stream].front.is_some() {
                all.turn.insert(0, stream);
                all.settle();
            }
        }
        Ok(all)
    }

    /// The next item.
    pub(in crate::machine) fn next(&mut self, of: &S::Of) -> Result<Option<S::Item>, Fault> {
        let Some(&stream) = self.turn.first() else {
            return Ok(None);
        };
        let item = self.advance(of, stream)?;
        match self.streams[stream].front {
            Some(_) => self.settle(),
            None => drop(self.turn.remove(0)),
        }
        Ok(item)
    }

    /// The next item, if it is of this key: what an older stream says of it.
    pub(in crate::machine) fn next_of(&mut self, of: &S::Of, key: &[u8]) -> Result<Option<S::Item>, Fault> {
        let front = self
            .turn
            .first()
            .and_then(|first| self.streams[*first].front.as_ref());
        match front.is_some_and(|item| S::key(item) == key) {
            true => self.next(of),
            false => Ok(None),
        }
    }

    /// The next item of a stream becomes its front.
    fn advance(&mut self, of: &S::Of, stream: usize) -> Result<Option<S::Item>, Fault> {
        let stream = &mut self.streams[stream];
        let item = stream.rest.next(of)?;
        Ok(std::mem::replace(&mut stream.front, item))
    }

    /// Brings the first to its place among the others, which have theirs.
    fn settle(&mut self) {
        for place in 1..self.turn.len() {
            let (a, b) = (self.turn[place - 1], self.turn[place]);
            if self.compare(a, b).is_lt() {
                return;
            }
            self.turn.swap(place - 1, place);
        }
    }

    fn compare(&self, a: usize, b: usize) -> Ordering {
        match (&self.streams[a].front, &self.streams[b].front) {
            (Some(x), Some(y)) => self.order.compare(S::key(x), S::key(y)).then(a.cmp(&b)),
            (None, _) => Ordering::Greater,
            (_, None) => Ordering::Less,
        }
    }
}
