//! Records, ranges and transactions' answers, for people and programs.

use bytes::Bytes;
use comfy_table::Cell;
use quorate_kv::model::{FailedCondition, Found, KeyValue, OpResult, Record, Revision, TxnResponse};
use serde::Serialize;
use serde::ser::Serializer;

use crate::output::{self, Report, maybe, number, table};
use crate::text::{Forms, JsonKey, JsonValue, shorten};

/// A value's width in a table: in a terminal so that a row with a key of some length stays on a line; `kv get --raw` gives
/// it whole.
fn width() -> usize {
    const MOST: usize = 80;
    // Beside it: borders, three numbers with their headings, and a key.
    const BESIDE: usize = 52;
    const LEAST: usize = 30;
    output::columns().map_or(MOST, |columns| columns.saturating_sub(BESIDE).clamp(LEAST, MOST))
}

/// A key with its record.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    key: JsonKey,
    /// Left out where only keys were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<JsonValue>,
    version: u64,
    create_revision: u64,
    mod_revision: u64,
    lease: Option<u64>,
}

impl Row {
    /// Of a key and its record; without the value for a read of keys alone.
    pub fn new(key: Bytes, record: &Record, with_value: bool) -> Self {
        Self {
            key: JsonKey(key),
            value: with_value.then(|| JsonValue(record.value.clone())),
            version: record.version,
            create_revision: record.create_revision.number(),
            mod_revision: record.mod_revision.number(),
            lease: record.lease.map(|lease| lease.number()),
        }
    }
}

fn rows(rows: &[Row], forms: Forms) -> String {
    let with_value = rows.first().is_none_or(|row| row.value.is_some());
    let mut headings = vec!["key"];
    headings.extend(with_value.then_some("value"));
    headings.extend(["version", "created", "modified"]);
    let with_lease = rows.iter().any(|row| row.lease.is_some());
    headings.extend(with_lease.then_some("lease"));
    let mut table = table::<0>([]);
    table.set_header(headings);
    for row in rows {
        let mut cells = vec![Cell::new(forms.key(&row.key.0))];
        if let Some(JsonValue(value)) = &row.value {
            cells.push(Cell::new(shorten(forms.value(value), value.len(), width())));
        }
        cells.extend([
            number(row.version),
            number(row.create_revision),
            number(row.mod_revision),
        ]);
        if with_lease {
            cells.push(maybe(row.lease));
        }
        table.add_row(cells);
    }
    table.to_string()
}

/// One key.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct OneKey {
    /// The key and its record.
    pub row: Row,
    /// How bytes are shown.
    #[serde(skip)]
    pub forms: Forms,
}

impl Report for OneKey {
    fn text(&self) -> String {
        rows(std::slice::from_ref(&self.row), self.forms)
    }
}

/// A range.
#[derive(Debug, Serialize)]
pub struct Range {
    /// The revision that was read.
    pub revision: u64,
    /// How many keys were found.
    pub count: u64,
    /// There are more keys than the limit let through.
    pub more: bool,
    /// The keys; none for a count.
    pub records: Vec<Row>,
    /// How bytes are shown.
    #[serde(skip)]
    pub forms: Forms,
}

impl Report for Range {
    fn text(&self) -> String {
        let keys = if self.count == 1 { "key" } else { "keys" };
        let more = if self.more {
            ", and there are more (see --limit)"
        } else {
            ""
        };
        let summary = format!("{} {keys} at revision {}{more}", self.count, self.revision);
        match self.records.is_empty() {
            true => summary,
            false => format!("{}\n{summary}", rows(&self.records, self.forms)),
        }
    }
}

/// What a transaction answered.
#[derive(Debug, Serialize)]
pub struct Answer {
    succeeded: bool,
    revision: u64,
    log_index: u64,
    failed: Vec<Failed>,
    results: Vec<OpAnswer>,
    /// Whether there were conditions.
    #[serde(skip)]
    guarded: bool,
    #[serde(skip)]
    forms: Forms,
}

#[derive(Debug, Serialize)]
struct Failed {
    condition: u32,
    found: FoundAnswer,
}

/// `{"kind": "count", ...}`: always an object that names what was found.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum FoundAnswer {
    Missing,
    Record {
        /// Null where the condition was not about the value, or it is long.
        value: Option<JsonValue>,
        version: u64,
        create_revision: u64,
        mod_revision: u64,
        lease: Option<u64>,
    },
    Count {
        count: u64,
    },
    Key {
        key: JsonKey,
    },
    None,
}

#[derive(Debug)]
enum OpAnswer {
    Put {
        existed: bool,
    },
    Deleted {
        count: u64,
    },
    Get {
        record: Option<Value>,
    },
    Range {
        records: Vec<Row>,
        count: u64,
        more: bool,
    },
    Number {
        number: i64,
    },
    Sequenced {
        key: JsonKey,
    },
}

#[derive(Debug, Clone, Serialize)]
struct Value {
    value: JsonValue,
    version: u64,
    create_revision: u64,
    mod_revision: u64,
    lease: Option<u64>,
}

impl Serialize for OpAnswer {
    /// `{"op": "put", ...}`: the fields stand beside the word, as in the rest of the output.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        let mut map = serializer.serialize_map(None)?;
        match self {
            OpAnswer::Put { existed } => {
                map.serialize_entry("op", "put")?;
                map.serialize_entry("existed", existed)?;
            }
            OpAnswer::Deleted { count } => {
                map.serialize_entry("op", "deleted")?;
                map.serialize_entry("count", count)?;
            }
            OpAnswer::Get { record } => {
                map.serialize_entry("op", "get")?;
                map.serialize_entry("record", record)?;
            }
            OpAnswer::Range { records, count, more } => {
                map.serialize_entry("op", "range")?;
                map.serialize_entry("records", records)?;
                map.serialize_entry("count", count)?;
                map.serialize_entry("more", more)?;
            }
            OpAnswer::Number { number } => {
                map.serialize_entry("op", "number")?;
                map.serialize_entry("number", number)?;
            }
            OpAnswer::Sequenced { key } => {
                map.serialize_entry("op", "sequenced")?;
                map.serialize_entry("key", key)?;
            }
        }
        map.end()
    }
}

impl Answer {
    /// Of a response to a transaction with conditions, or without.
    pub fn new(response: TxnResponse, guarded: bool, forms: Forms) -> Self {
        Self {
            succeeded: response.succeeded,
            revision: response.revision.number(),
            log_index: response.log_index.number(),
            failed: response.failed.into_iter().map(failed).collect(),
            results: response.results.into_iter().map(result).collect(),
            guarded,
            forms,
        }
    }
}

fn failed(failed: FailedCondition) -> Failed {
    let number = Revision::number;
    let found = match failed.found {
        Found::Missing => FoundAnswer::Missing,
        Found::Record {
            value,
            create_revision,
            mod_revision,
            version,
            lease,
        } => FoundAnswer::Record {
            value: value.map(JsonValue),
            version,
            create_revision: number(create_revision),
            mod_revision: number(mod_revision),
            lease: lease.map(|lease| lease.number()),
        },
        Found::Count(count) => FoundAnswer::Count { count },
        Found::Key(key) => FoundAnswer::Key {
            key: JsonKey(key.into_bytes()),
        },
        Found::None => FoundAnswer::None,
    };
    Failed {
        condition: failed.index,
        found,
    }
}

/// The rows of a page of records.
pub fn page(records: Vec<KeyValue>, with_values: bool) -> Vec<Row> {
    records
        .into_iter()
        .map(|kv| Row::new(kv.key.into_bytes(), &kv.record, with_values))
        .collect()
}

fn result(result: OpResult) -> OpAnswer {
    match result {
        OpResult::Put { existed } => OpAnswer::Put { existed },
        OpResult::Deleted { count, .. } => OpAnswer::Deleted { count },
        OpResult::Get(record) => OpAnswer::Get {
            record: record.map(|record| Value {
                version: record.version,
                create_revision: record.create_revision.number(),
                mod_revision: record.mod_revision.number(),
                lease: record.lease.map(|lease| lease.number()),
                value: JsonValue(record.value),
            }),
        },
        OpResult::Range { records, count, more } => OpAnswer::Range {
            records: page(records, true),
            count,
            more,
        },
        OpResult::Number(number) => OpAnswer::Number { number },
        OpResult::Sequenced { key } => OpAnswer::Sequenced {
            key: JsonKey(key.into_bytes()),
        },
    }
}

impl Report for Answer {
    fn text(&self) -> String {
        let forms = self.forms;
        let what = match (self.guarded, self.succeeded) {
            (false, _) => "done",
            (true, true) => "the conditions held, \"then\" ran",
            (true, false) => "the conditions did not hold, \"else\" ran",
        };
        let mut lines = vec![format!("{what}; revision {}", self.revision)];
        for Failed { condition, found } in &self.failed {
            let found = match found {
                FoundAnswer::Missing => "there is no such key".to_owned(),
                FoundAnswer::Record {
                    value,
                    version,
                    create_revision,
                    mod_revision,
                    lease: _,
                } => {
                    let value = value
                        .as_ref()
                        .map(|v| format!("{}, ", forms.value(&v.0)))
                        .unwrap_or_default();
                    format!(
                        "{value}version {version}, created at {create_revision}, modified at {mod_revision}"
                    )
                }
                FoundAnswer::Count { count } => format!("{count} keys"),
                FoundAnswer::Key { key } => format!("the key {}", forms.key(&key.0)),
                FoundAnswer::None => "no key that passes".to_owned(),
            };
            lines.push(format!("  condition {condition} found: {found}"));
        }
        for (index, result) in self.results.iter().enumerate() {
            let answer = match result {
                OpAnswer::Put { existed: true } => "overwritten".to_owned(),
                OpAnswer::Put { existed: false } => "created".to_owned(),
                OpAnswer::Deleted { count } => format!("{count} deleted"),
                OpAnswer::Get { record: None } => "no such key".to_owned(),
                OpAnswer::Get { record: Some(record) } => {
                    format!("{} (version {})", forms.value(&record.value.0), record.version)
                }
                OpAnswer::Range { records, count, more } => {
                    let more = if *more { ", and there are more" } else { "" };
                    let keys = if *count == 1 { "key" } else { "keys" };
                    let count = format!("{count} {keys}{more}");
                    match records.is_empty() {
                        true => count,
                        false => format!("{count}\n{}", rows(records, forms)),
                    }
                }
                OpAnswer::Number { number } => number.to_string(),
                OpAnswer::Sequenced { key } => format!("wrote {}", forms.key(&key.0)),
            };
            lines.push(format!("  operation {index}: {answer}"));
        }
        lines.join("\n")
    }
}
