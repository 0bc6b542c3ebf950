//! Where an answer goes: to a caller in this process, or onto a client's stream.

use crate::env::{mpsc, oneshot};
use crate::protocol::{Failure, Reply, Response};

/// What is said where nobody answered: the node stopped, or whoever was to answer did.
pub(crate) const NO_ANSWER: &str = "the node gave no answer";

/// Takes one answer. Dropped without one, it says that the outcome is unknown.
#[derive(Debug)]
pub(crate) struct ReplyTo(Option<Destination>);

#[derive(Debug)]
enum Destination {
    Local(oneshot::Sender<Response>),
    Stream { id: u64, replies: mpsc::Sender<Reply> },
}

impl ReplyTo {
    pub(crate) fn local() -> (Self, oneshot::Receiver<Response>) {
        let (tx, rx) = oneshot::channel();
        (Self(Some(Destination::Local(tx))), rx)
    }

    /// For a call on a stream. `replies` must have room for every call that the stream may have open.
    pub(crate) fn stream(id: u64, replies: mpsc::Sender<Reply>) -> Self {
        Self(Some(Destination::Stream { id, replies }))
    }

    /// Answers. Never waits.
    pub(crate) fn send(mut self, response: Response) {
        self.deliver(response);
    }

    fn deliver(&mut self, response: Response) {
        match self.0.take() {
            None => {}
            // A caller that is gone needs no answer.
            Some(Destination::Local(tx)) => drop(tx.send(response)),
            Some(Destination::Stream { id, replies }) => drop(replies.try_send(Reply { id, response })),
        }
    }
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        self.deliver(Response::Failed(Failure::unknown(NO_ANSWER)));
    }
}
