//! Records, ranges, writes and transactions' answers, for people, programs and pipes.

use std::borrow::Cow;

use bytes::Bytes;
use comfy_table::Cell;
use quorate_kv::model::{FailedCondition, Found, Key, KeyValue, OpResult, Record, Revision, TxnResponse};
use serde::Serialize;
use serde::ser::Serializer;

use super::form::Stated;
use crate::output::{self, Report, maybe, number, table};
use crate::raw;
use crate::text::{Form, Forms, JsonKey, JsonValue, shorten};

/// A value's width in a table: in a terminal so that a row with a key of some length stays on a line; `kv get --raw` gives
/// it whole.
fn width() -> usize {
    const MOST: usize = 80;
    // Beside it: borders, three numbers with their headings, and a key.
    const BESIDE: usize = 52;
    const LEAST: usize = 30;
    output::columns().map_or(MOST, |columns| columns.saturating_sub(BESIDE).clamp(LEAST, MOST))
}

/// How much of a condition is shown to people, in characters.
const STATED: usize = 200;

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

impl Row {
    /// The key, and the value where there is one, for a line of the raw form.
    fn fields(&self, forms: Forms) -> impl Iterator<Item = Cow<'_, [u8]>> {
        let value = self.value.as_ref().map(|value| forms.values.pipe(&value.0));
        [forms.keys.pipe(&self.key.0)].into_iter().chain(value)
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

    /// The value alone, without a line's end behind it.
    fn raw(&self) -> Option<Vec<u8>> {
        let JsonValue(value) = self.row.value.as_ref()?;
        Some(self.forms.values.pipe(value).into_owned())
    }
}

/// What a write of one key, or a deletion, answers.
#[derive(Debug, Serialize)]
pub struct Written {
    /// Nothing for a deletion in steps, which has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    /// Of a put: whether there was such a key.
    #[serde(skip_serializing_if = "Option::is_none")]
    existed: Option<bool>,
    /// Of a deletion: how many keys went.
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<u64>,
    /// What the key was before, where that was asked for; null where there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: Option<Option<Value>>,
    /// For people.
    #[serde(skip)]
    line: String,
    #[serde(skip)]
    forms: Forms,
}

impl Written {
    /// Of a put, or of a compare and swap.
    pub fn put(key: &Key, revision: Revision, existed: bool, forms: Forms) -> Self {
        let verb = if existed { "overwritten" } else { "created" };
        Self {
            revision: Some(revision.number()),
            existed: Some(existed),
            deleted: None,
            previous: None,
            line: format!("{} {verb} at revision {revision}", forms.key(key.as_bytes())),
            forms,
        }
    }

    /// Of a deletion; without a revision where it took several.
    pub fn deleted(revision: Option<Revision>, deleted: u64, forms: Forms) -> Self {
        let keys = if deleted == 1 { "key" } else { "keys" };
        let at = match revision {
            Some(revision) => format!(" at revision {revision}"),
            None => String::new(),
        };
        Self {
            revision: revision.map(Revision::number),
            existed: None,
            deleted: Some(deleted),
            previous: None,
            line: format!("{deleted} {keys} deleted{at}"),
            forms,
        }
    }

    /// The same with what the key was before.
    #[must_use]
    pub fn with_previous(mut self, previous: Option<Record>) -> Self {
        self.previous = Some(previous.map(Value::of));
        self
    }
}

impl Report for Written {
    fn text(&self) -> String {
        let Some(previous) = &self.previous else {
            return self.line.clone();
        };
        let previous = match previous {
            Some(previous) => {
                let JsonValue(value) = &previous.value;
                let shown = shorten(self.forms.value(value), value.len(), width());
                let Value {
                    version,
                    create_revision,
                    mod_revision,
                    ..
                } = previous;
                format!(
                    "it was {shown}, version {version}, created at {create_revision}, modified at {mod_revision}"
                )
            }
            None => "there was no such key".to_owned(),
        };
        format!("{}\n{previous}", self.line)
    }

    fn raw(&self) -> Option<Vec<u8>> {
        let shown = [
            self.revision.map(|revision| revision.to_string()),
            self.existed.map(|existed| existed.to_string()),
            self.deleted.map(|deleted| deleted.to_string()),
        ];
        let mut fields: Vec<Vec<u8>> = shown.into_iter().flatten().map(String::into_bytes).collect();
        if let Some(Some(Value { value, .. })) = &self.previous {
            fields.push(self.forms.values.pipe(&value.0).into_owned());
        }
        let mut line = Vec::new();
        raw::line(&mut line, fields);
        Some(line)
    }
}

/// Which part of its records a range has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Only {
    /// Keys and values.
    All,
    /// No values.
    Keys,
    /// How many there are.
    Count,
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
    /// What was asked for.
    #[serde(skip)]
    pub only: Only,
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

    /// A key on each line, with its value where it has one; or how many there are.
    fn raw(&self) -> Option<Vec<u8>> {
        let mut lines = Vec::new();
        if self.only == Only::Count {
            raw::line(&mut lines, [self.count.to_string()]);
        }
        for row in &self.records {
            raw::line(&mut lines, row.fields(self.forms));
        }
        Some(lines)
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
    /// Where it was written: `line 2`, or `if[0]` in JSON.
    place: Option<String>,
    /// As it was written.
    text: Option<String>,
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
        /// Counting stopped there: there may be more.
        at_least: bool,
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

impl Value {
    fn of(record: Record) -> Self {
        Self {
            version: record.version,
            create_revision: record.create_revision.number(),
            mod_revision: record.mod_revision.number(),
            lease: record.lease.map(|lease| lease.number()),
            value: JsonValue(record.value),
        }
    }
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
    /// Of a response to a transaction with these conditions, or without any.
    pub fn new(response: TxnResponse, guarded: bool, conditions: &[Stated], forms: Forms) -> Self {
        let failed = |failed: FailedCondition| {
            let stated = usize::try_from(failed.index)
                .ok()
                .and_then(|index| conditions.get(index));
            self::failed(failed, stated)
        };
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

fn failed(failed: FailedCondition, stated: Option<&Stated>) -> Failed {
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
        Found::Count(count) => FoundAnswer::Count {
            count,
            at_least: stated.is_some_and(|stated| stated.may_be_more_than(count)),
        },
        Found::Key(key) => FoundAnswer::Key {
            key: JsonKey(key.into_bytes()),
        },
        Found::None => FoundAnswer::None,
    };
    Failed {
        condition: failed.index,
        place: stated.map(Stated::place),
        text: stated.map(|stated| stated.text().to_owned()),
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
            record: record.map(Value::of),
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
        for Failed {
            condition,
            place,
            text,
            found,
        } in &self.failed
        {
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
                FoundAnswer::Count { count, at_least } => {
                    let keys = if *count == 1 { "key" } else { "keys" };
                    let at_least = if *at_least { "at least " } else { "" };
                    format!("{at_least}{count} {keys}")
                }
                FoundAnswer::Key { key } => format!("the key {}", forms.key(&key.0)),
                FoundAnswer::None => "no key that passes".to_owned(),
            };
            let stated = match (place, text) {
                (Some(place), Some(text)) => {
                    format!(
                        "{place}: {}",
                        shorten(Form::Text.show(text.as_bytes()), text.len(), STATED)
                    )
                }
                _ => format!("condition {condition}"),
            };
            lines.push(format!("  {stated}\n    found: {found}"));
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

    /// The branch and the revision, then a line for each operation, or for each key of a range.
    fn raw(&self) -> Option<Vec<u8>> {
        let pipe = |text: String| Cow::<[u8]>::Owned(text.into_bytes());
        let branch = if self.succeeded { "then" } else { "else" };
        let mut lines = Vec::new();
        raw::line(&mut lines, [branch.to_owned(), self.revision.to_string()]);
        for (index, result) in self.results.iter().enumerate() {
            let mut line = |op: &str, fields: Vec<Cow<'_, [u8]>>| {
                let first = [pipe(index.to_string()), pipe(op.to_owned())];
                raw::line(&mut lines, first.into_iter().chain(fields));
            };
            match result {
                OpAnswer::Put { existed } => line("put", vec![pipe(existed.to_string())]),
                OpAnswer::Deleted { count } => line("deleted", vec![pipe(count.to_string())]),
                OpAnswer::Get { record } => {
                    let value = record
                        .as_ref()
                        .map(|record| self.forms.values.pipe(&record.value.0));
                    line("get", value.into_iter().collect());
                }
                OpAnswer::Range { records, .. } => {
                    for row in records {
                        line("range", row.fields(self.forms).collect());
                    }
                }
                OpAnswer::Number { number } => line("number", vec![pipe(number.to_string())]),
                OpAnswer::Sequenced { key } => line("sequenced", vec![self.forms.keys.pipe(&key.0)]),
            }
        }
        Some(lines)
    }
}
