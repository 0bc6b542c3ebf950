//! Where an answer goes: to a caller in this process, or onto a client's stream.

use std::time::Duration;

use super::given_up::OpenRead;
use super::room::Held;
use crate::env::{mpsc, oneshot};
use crate::protocol::{Failure, Reply, Response};

/// What is said where nobody answered: the node stopped, or whoever was to answer did.
pub(super) const NO_ANSWER: &str = "the node gave no answer";

/// How often those who wait are told that they are not forgotten: several times before they look elsewhere.
pub(super) const SIGN_INTERVAL: Duration = Duration::from_millis(500);

/// Takes one answer. Dropped without one, it says that the outcome is unknown.
#[derive(Debug)]
pub(super) struct ReplyTo {
    destination: Option<Destination>,
    /// Given back when the answer has left.
    held: Vec<Held>,
}

#[derive(Debug)]
enum Destination {
    Local(oneshot::Sender<Response>),
    Stream(OnStream),
}

#[derive(Debug)]
struct OnStream {
    id: u64,
    replies: mpsc::Sender<Outgoing>,
    /// Where the call is a read that the client may give up.
    read: Option<OpenRead>,
}

/// A reply on its way to a client, and its room until it has left.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) reply: Reply,
    pub(super) held: Vec<Held>,
}

impl ReplyTo {
    /// Whether it goes to a caller in this process.
    pub(super) fn is_here(&self) -> bool {
        matches!(self.destination, Some(Destination::Local(_)))
    }

    pub(super) fn local() -> (Self, oneshot::Receiver<Response>) {
        let (tx, rx) = oneshot::channel();
        (Self::to(Destination::Local(tx)), rx)
    }

    /// For a call on a stream. `replies` must have room for every call that the stream may have open, and twice as much again
    /// for signs of life.
    pub(super) fn stream(id: u64, replies: mpsc::Sender<Outgoing>, read: Option<OpenRead>) -> Self {
        Self::to(Destination::Stream(OnStream { id, replies, read }))
    }

    fn to(destination: Destination) -> Self {
        Self {
            destination: Some(destination),
            held: Vec::new(),
        }
    }

    /// Keeps this room until the answer has left.
    pub(super) fn hold(&mut self, held: Held) {
        self.held.push(held);
    }

    /// Whether somebody still waits for the answer.
    pub(super) fn is_wanted(&self) -> bool {
        match &self.destination {
            None => false,
            Some(Destination::Local(tx)) => !tx.is_closed(),
            Some(Destination::Stream(to)) => {
                let given_up = to.read.as_ref().is_some_and(OpenRead::is_given_up);
                !given_up && !to.replies.is_closed()
            }
        }
    }

    /// Says that the answer is being worked on, to whom that matters: over a network silence may mean that a node has
    /// gone. Never waits; a sign more or less does not matter.
    pub(super) fn is_worked_on(&self) {
        if let Some(Destination::Stream(to)) = &self.destination {
            give_sign(&to.replies, to.id, Response::Working);
        }
    }

    /// Answers. Never waits.
    pub(super) fn send(mut self, response: Response) {
        self.deliver(response);
    }

    fn deliver(&mut self, response: Response) {
        let held = std::mem::take(&mut self.held);
        match self.destination.take() {
            None => {}
            // A caller that is gone needs no answer.
            Some(Destination::Local(tx)) => drop(tx.send(response)),
            Some(Destination::Stream(OnStream { id, replies, .. })) => {
                let reply = Reply { id, response };
                drop(replies.try_send(Outgoing { reply, held }));
            }
        }
    }
}

/// Says that there is no answer yet to a call of a stream. Never waits; a sign more or less does not matter.
pub(super) fn give_sign(replies: &mpsc::Sender<Outgoing>, id: u64, sign: Response) {
    debug_assert!(sign.is_sign(), "{sign:?}");
    // The other half is for answers, and for signs of other threads that looked at the same moment.
    if replies.capacity() > replies.max_capacity() / 2 {
        let (reply, held) = (Reply { id, response: sign }, Vec::new());
        drop(replies.try_send(Outgoing { reply, held }));
    }
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        self.deliver(Response::Failed(Failure::unknown(NO_ANSWER)));
    }
}
