//! The messages of the streams.
//!
//! Always: a parcel is visible from its arrival on, unless the connection broke before or the sender gave the
//! stream up; a pipe holds its limit and one message at most.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::world::{Moment, Offered, Parcel, PipeId, PlaceId, Received, State, broken};
use crate::TransportError;
use crate::memory::link::Passage;

impl State {
    /// Up to when arrivals from one place are visible at another.
    fn horizon(&self, from: PlaceId, to: PlaceId, now: Duration) -> (Duration, bool) {
        match self.links.get(&(from, to)) {
            Some(link) => (link.horizon(now), link.passage == Passage::Open),
            None => (now, true),
        }
    }

    /// Takes all messages that arrived.
    pub(in crate::memory) fn receive(
        &mut self,
        id: PipeId,
        messages: &mut Vec<Bytes>,
        now: Duration,
    ) -> Result<Received, TransportError> {
        let Some(pipe) = self.pipes.get(&id) else {
            return Err(broken("it is gone"));
        };
        let Some(connection) = self.connections.get(&pipe.connection) else {
            return Err(broken("it is gone"));
        };
        let receiving = 1 - pipe.sending;
        if !self.lives(connection.ends[receiving]) {
            return Err(TransportError::Closed);
        }
        let (sender, receiver) = (
            connection.ends[pipe.sending].place,
            connection.ends[receiving].place,
        );
        let (mut horizon, open) = self.horizon(sender, receiver, now);
        let breaks = self.breaks_at(connection, receiving);
        let is_late = self.has_successor(connection.ends[pipe.sending]);
        if let Some((at, _)) = breaks {
            horizon = horizon.min(at);
        }
        let Some(pipe) = self.pipes.get_mut(&id) else {
            return Err(broken("it is gone"));
        };
        if pipe.reset.is_some_and(|due| due <= horizon) {
            return Err(broken("the peer gave the stream up"));
        }
        let mut count = 0;
        while let Some(parcel) = pipe.parcels.pop_front_if(|parcel| parcel.due <= horizon) {
            pipe.bytes -= parcel.message.len();
            messages.push(parcel.message);
            count += 1;
        }
        if count > 0 {
            pipe.writable.notify_waiters();
            if is_late {
                self.late_messages += count as u64;
            }
            return Ok(Received::Messages(count));
        }
        if pipe.parcels.is_empty() && pipe.finished.is_some_and(|due| due <= horizon) {
            return Ok(Received::Finished);
        }
        if let Some((at, reason)) = breaks
            && at <= now
        {
            return Err(broken(reason));
        }
        let mut next = breaks.map(|(at, _)| at);
        if open {
            let arrivals = [
                pipe.parcels.front().map(|parcel| parcel.due),
                pipe.finished,
                pipe.reset,
            ];
            next = arrivals.into_iter().chain([next]).flatten().min();
        }
        Ok(Received::Nothing(next))
    }

    /// Sends a message, if there is room for it.
    pub(in crate::memory) fn offer(
        &mut self,
        id: PipeId,
        message: &Bytes,
        moment: &mut Moment<'_>,
    ) -> Result<Offered, TransportError> {
        let (sender, receiver, next) = self.may_send(id, moment.now)?;
        let Some(pipe) = self.pipes.get(&id) else {
            return Err(broken("it is gone"));
        };
        if pipe.bytes >= self.settings.stream_bytes_max {
            return Ok(Offered::Full(next));
        }
        let class = pipe.class;
        let link = self.link(sender, receiver);
        let due = link.arrival(class, message.len() + 4, moment.now, moment.random);
        if let Some(pipe) = self.pipes.get_mut(&id)
            // Nobody reads over there, and the word of it is still under way.
            && !pipe.receiver_gone
        {
            pipe.last_due = pipe.last_due.max(due);
            pipe.bytes += message.len();
            pipe.parcels.push_back(Parcel {
                due: pipe.last_due,
                message: message.clone(),
            });
            pipe.readable.notify_waiters();
        }
        Ok(Offered::Taken)
    }

    /// Says that no message follows.
    pub(in crate::memory) fn finish(
        &mut self,
        id: PipeId,
        moment: &mut Moment<'_>,
    ) -> Result<(), TransportError> {
        let (sender, receiver, _) = self.may_send(id, moment.now)?;
        let due = self.link(sender, receiver).word(moment.now, moment.random);
        if let Some(pipe) = self.pipes.get_mut(&id) {
            pipe.finished = Some(pipe.last_due.max(due));
            pipe.readable.notify_waiters();
        }
        Ok(())
    }

    /// The way of a pipe, and the next moment at which it may turn out to be broken.
    fn may_send(
        &self,
        id: PipeId,
        now: Duration,
    ) -> Result<(PlaceId, PlaceId, Option<Duration>), TransportError> {
        let Some(pipe) = self.pipes.get(&id) else {
            return Err(broken("it is gone"));
        };
        if let Some(failure) = self.broken(pipe.connection, pipe.sending, now) {
            return Err(failure);
        }
        let Some(connection) = self.connections.get(&pipe.connection) else {
            return Err(broken("it is gone"));
        };
        let sender = connection.ends[pipe.sending].place;
        let receiver = connection.ends[1 - pipe.sending].place;
        let (horizon, open) = self.horizon(receiver, sender, now);
        if pipe.stopped.is_some_and(|due| due <= horizon) {
            return Err(broken("the peer stopped receiving"));
        }
        let mut next = self.breaks_at(connection, pipe.sending).map(|(at, _)| at);
        if open {
            next = [next, pipe.stopped].into_iter().flatten().min();
        }
        Ok((sender, receiver, next))
    }

    pub(in crate::memory) fn readable(&self, id: PipeId) -> Option<Arc<Notify>> {
        self.pipes.get(&id).map(|pipe| Arc::clone(&pipe.readable))
    }

    pub(in crate::memory) fn writable(&self, id: PipeId) -> Option<Arc<Notify>> {
        self.pipes.get(&id).map(|pipe| Arc::clone(&pipe.writable))
    }

    /// The sending half is gone; without [`finish`](Self::finish) that resets the stream.
    pub(in crate::memory) fn drop_sender(&mut self, id: PipeId, moment: &mut Moment<'_>) {
        let arrives = self.travel(id, true, moment);
        let Some(pipe) = self.pipes.get_mut(&id) else {
            return;
        };
        pipe.sender_gone = true;
        if pipe.finished.is_none() {
            pipe.reset = arrives;
        }
        pipe.readable.notify_waiters();
        self.forget_pipe(id);
    }

    /// The receiving half is gone: the sender will be told.
    pub(in crate::memory) fn drop_receiver(&mut self, id: PipeId, moment: &mut Moment<'_>) {
        let arrives = self.travel(id, false, moment);
        let Some(pipe) = self.pipes.get_mut(&id) else {
            return;
        };
        pipe.receiver_gone = true;
        pipe.stopped = arrives;
        pipe.parcels.clear();
        pipe.bytes = 0;
        pipe.writable.notify_waiters();
        self.forget_pipe(id);
    }

    /// When a word of one end of the pipe, sent now, reaches the other; `None` where the end is dead and
    /// says nothing.
    fn travel(&mut self, id: PipeId, by_sender: bool, moment: &mut Moment<'_>) -> Option<Duration> {
        let pipe = self.pipes.get(&id)?;
        let connection = self.connections.get(&pipe.connection)?;
        let from = if by_sender { pipe.sending } else { 1 - pipe.sending };
        let (from, to) = (connection.ends[from], connection.ends[1 - from]);
        if !self.lives(from) {
            return None;
        }
        Some(self.link(from.place, to.place).word(moment.now, moment.random))
    }

    fn forget_pipe(&mut self, id: PipeId) {
        let Some(pipe) = self.pipes.get(&id) else {
            return;
        };
        if !(pipe.sender_gone && pipe.receiver_gone) {
            return;
        }
        let connection = pipe.connection;
        self.pipes.remove(&id);
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.pipes.remove(&id);
        }
        self.forget_unused(connection);
    }

    #[cfg(test)]
    pub(in crate::memory) fn pipe_count(&self) -> usize {
        self.pipes.len()
    }
}
