//! The classes of traffic.

/// The classes of traffic, the most urgent first. A later class never delays an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Votes, heartbeats, leadership transfers: small, and never behind anything else.
    Control,
    /// Log entries on their way to followers.
    Append,
    /// Requests of clients and their answers.
    Client,
    /// Snapshots and backups.
    Bulk,
}

impl Class {
    /// All classes, the most urgent first.
    pub const ALL: [Class; 4] = [Class::Control, Class::Append, Class::Client, Class::Bulk];

    /// Its name in logs and in the labels of metrics.
    pub fn name(self) -> &'static str {
        match self {
            Class::Control => "control",
            Class::Append => "append",
            Class::Client => "client",
            Class::Bulk => "bulk",
        }
    }

    /// 0 for the most urgent, and so on.
    pub(crate) fn rank(self) -> usize {
        match self {
            Class::Control => 0,
            Class::Append => 1,
            Class::Client => 2,
            Class::Bulk => 3,
        }
    }
}
