//! The tables of the state file. Their rows are specified in `docs/formats/state.md`.

use redb::TableDefinition;

pub(in crate::machine) type Definition<'n> = TableDefinition<'n, &'static [u8], &'static [u8]>;

/// A table that a snapshot carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::machine) enum Table {
    Current,
    Leases,
    Sessions,
    Answers,
    Sequences,
    Versions,
    Deleted,
    Times,
}

/// Where this node stands: format, applied position, membership, revision, time, hash. Not a replicated
/// table: a snapshot carries its content in its head, and the hash covers the replicated part of it.
pub(in crate::machine) const SYSTEM: Definition<'static> = TableDefinition::new("system");

/// The filters of the runs: see `runs`.
pub(in crate::machine) const FILTERS: Definition<'static> = TableDefinition::new("filters");

impl Table {
    /// All of them, in the order in which a snapshot carries them.
    pub(in crate::machine) const ALL: [Table; 8] = [
        Table::Current,
        Table::Leases,
        Table::Sessions,
        Table::Answers,
        Table::Sequences,
        Table::Versions,
        Table::Deleted,
        Table::Times,
    ];

    /// Whether its rows are the replicated state. The others lead to the past: each node has of that what it still has.
    pub(in crate::machine) const fn is_logical(self) -> bool {
        !matches!(self, Table::Versions | Table::Deleted | Table::Times)
    }

    /// Whether its rows are heads. Those stand in runs, and in no table of its name.
    pub(in crate::machine) const fn is_of_heads(self) -> bool {
        matches!(self, Table::Current | Table::Deleted)
    }

    /// The byte that stands for the table in hashes and snapshots. Never reused for another: 2 and 3 were tables
    /// of format version 1.
    pub(in crate::machine) const fn tag(self) -> u8 {
        match self {
            Table::Current => 1,
            Table::Leases => 4,
            Table::Sessions => 5,
            Table::Answers => 6,
            Table::Sequences => 7,
            Table::Versions => 8,
            Table::Deleted => 9,
            Table::Times => 10,
        }
    }

    pub(in crate::machine) fn of_tag(tag: u8) -> Option<Table> {
        Table::ALL.into_iter().find(|table| table.tag() == tag)
    }

    pub(in crate::machine) const fn name(self) -> &'static str {
        match self {
            Table::Current => "current",
            Table::Leases => "leases",
            Table::Sessions => "sessions",
            Table::Answers => "answers",
            Table::Sequences => "sequences",
            Table::Versions => "versions",
            Table::Deleted => "deleted",
            Table::Times => "times",
        }
    }

    /// For one whose rows are no heads.
    pub(in crate::machine) const fn definition(self) -> Definition<'static> {
        TableDefinition::new(self.name())
    }
}
