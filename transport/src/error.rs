//! Why a message was not sent, or not answered.

use crate::RefusedBecause;

/// A message was not sent, or not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// Nobody could be reached there; nothing was sent.
    #[error("{address} cannot be reached: {reason}")]
    Unreachable {
        /// The address tried.
        address: String,
        /// Why.
        reason: String,
    },
    /// The peer is not who it must be, or does not take us for one of its own; nothing was sent.
    #[error("{address} was refused: {reason}")]
    Refused {
        /// The address tried.
        address: String,
        /// Why, for programs.
        because: RefusedBecause,
        /// Why, in words.
        reason: String,
    },
    /// The stream or its connection broke; what was sent may or may not have arrived.
    #[error("the connection broke: {reason}")]
    Broken {
        /// Why.
        reason: String,
    },
    /// A message exceeds the limit; nothing of it was sent.
    #[error("the message has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The transport was shut down.
    #[error("the transport was shut down")]
    Closed,
}
