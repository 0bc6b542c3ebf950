//! What is applied: entries, and what they answer.

use bytes::Bytes;

use crate::model::{LogPosition, Outcome};

/// An entry to apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the log.
    pub position: LogPosition,
    /// What it carries.
    pub payload: Payload,
}

/// What an entry carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Nothing: a new leader's first entry.
    Blank,
    /// A [`Proposal`](crate::model::Proposal), encoded by [`model::encode`](crate::model::encode).
    Proposal(Bytes),
    /// A membership; the machine stores the bytes and does not read them.
    Membership(Bytes),
}

/// What an entry answered.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum EntryOutcome {
    /// Of [`Payload::Blank`].
    Blank,
    /// Of [`Payload::Proposal`]: one outcome for each command.
    Proposal(Vec<Outcome>),
    /// Of [`Payload::Membership`].
    Membership,
}
