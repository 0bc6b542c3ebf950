//! The lines of an export: a key and its value on each, as JSON, and a last one that says that none is missing.
//!
//! ```text
//! {"key":"greeting","value":"hello"}
//! {"key_hex":"00ff","value_hex":"c0de"}
//! {"end":{"keys":2,"revision":42}}
//! ```
//!
//! Always: what is written reads back as the same bytes; input is whole where its last line is an end that counts the lines
//! before it, back to the end before.

use std::borrow::Cow;
use std::io::{self, BufRead, Read as _};

use bytes::Bytes;
use quorate_kv::model::Limits;
use serde::{Deserialize, Serialize};

use crate::text::{hex, unhex};

/// A line, as JSON has it. Bytes that are text stand under the short name, others under the long one.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Json<'l> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    key: Option<Cow<'l, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_hex: Option<String>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    value: Option<Cow<'l, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_hex: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end: Option<End>,
}

/// That all is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    /// How many lines with keys there are.
    keys: u64,
    /// Which revision they are of; of another program's lines there may be none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
}

/// Writes the line of a key and its value.
pub fn write(to: &mut Vec<u8>, key: &[u8], value: &[u8]) -> serde_json::Result<()> {
    let (key, key_hex) = text_or_hex(key);
    let (value, value_hex) = text_or_hex(value);
    let line = Json {
        key,
        key_hex,
        value,
        value_hex,
        end: None,
    };
    serde_json::to_writer(&mut *to, &line)?;
    to.push(b'\n');
    Ok(())
}

/// Writes the last line, after so many.
pub fn write_end(to: &mut Vec<u8>, keys: u64, revision: u64) -> serde_json::Result<()> {
    let line = Json {
        end: Some(End {
            keys,
            revision: Some(revision),
        }),
        ..Json::default()
    };
    serde_json::to_writer(&mut *to, &line)?;
    to.push(b'\n');
    Ok(())
}

fn text_or_hex(bytes: &[u8]) -> (Option<Cow<'_, str>>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(Cow::Borrowed(text)), None),
        Err(_) => (None, Some(hex(bytes))),
    }
}

/// A key and its value, and where they stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub line: u64,
    pub key: Bytes,
    pub value: Bytes,
}

/// What keeps lines from being imported.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// A line is not of the form, or its key or value is none.
    #[error("line {line}: {reason}")]
    Line { line: u64, reason: Reason },
    /// The last line is missing.
    #[error("the last line is missing, {{\"end\": ...}}: after line {last} something may be cut off")]
    NoEnd { last: u64 },
    /// It cannot be read.
    #[error("{name}: {error}")]
    Io { name: String, error: io::Error },
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    #[error("it is not of the form of an export: {0}")]
    Form(String),
    #[error("it has more than {limit} bytes")]
    TooLong { limit: usize },
    #[error("it has no {0}, nor {0}_hex")]
    Missing(&'static str),
    #[error("it has {0} and {0}_hex")]
    Twice(&'static str),
    #[error("{0}_hex is not hexadecimal: an even number of the digits 0-9 and a-f is needed")]
    NotHex(&'static str),
    #[error("an end has no key and no value")]
    EndWithMore,
    #[error("the end says {said} keys, and {found} lines have one: something is missing, or was changed")]
    Count { said: u64, found: u64 },
    #[error("the key is empty")]
    EmptyKey,
    #[error("the {what} has {size} bytes, the limit is {limit}")]
    TooLarge {
        what: &'static str,
        size: usize,
        limit: usize,
    },
}

/// Reads lines one after the other.
pub struct Lines<R> {
    from: R,
    /// What it is called in a failure.
    name: String,
    limits: Limits,
    /// It needs no end, and the counts of ends do not matter.
    partial: bool,
    /// The last line that was read.
    line: u64,
    /// Lines with keys since the last end, or since the beginning.
    since_end: u64,
    has_end: bool,
    buffer: Vec<u8>,
    bytes: u64,
}

impl<R: BufRead> Lines<R> {
    pub fn new(from: R, name: impl Into<String>, limits: Limits, partial: bool) -> Self {
        Self {
            from,
            name: name.into(),
            limits,
            partial,
            line: 0,
            since_end: 0,
            has_end: false,
            buffer: Vec::new(),
            bytes: 0,
        }
    }

    /// How many bytes were read so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next key and value; `None` at an end behind which nothing stands.
    pub fn next(&mut self) -> Result<Option<Record>, Invalid> {
        loop {
            if !self.read_line()? {
                let is_whole = self.partial || (self.has_end && self.since_end == 0);
                return match is_whole {
                    true => Ok(None),
                    false => Err(Invalid::NoEnd { last: self.line }),
                };
            }
            self.line += 1;
            let line = self.line;
            if self.buffer.trim_ascii().is_empty() {
                continue;
            }
            let invalid = |reason| Invalid::Line { line, reason };
            match parse(&self.buffer, &self.limits).map_err(invalid)? {
                Entry::Record { key, value } => {
                    self.since_end += 1;
                    return Ok(Some(Record { line, key, value }));
                }
                Entry::End(End { keys, .. }) => {
                    if keys != self.since_end && !self.partial {
                        return Err(invalid(Reason::Count {
                            said: keys,
                            found: self.since_end,
                        }));
                    }
                    (self.since_end, self.has_end) = (0, true);
                }
            }
        }
    }

    /// Reads a line into the buffer; false at the end of the input.
    fn read_line(&mut self) -> Result<bool, Invalid> {
        let limit = line_bytes_max(&self.limits);
        self.buffer.clear();
        let mut bounded = (&mut self.from).take(limit as u64 + 1);
        let read = bounded.read_until(b'\n', &mut self.buffer);
        let read = read.map_err(|error| Invalid::Io {
            name: self.name.clone(),
            error,
        })?;
        if read > limit {
            return Err(Invalid::Line {
                line: self.line + 1,
                reason: Reason::TooLong { limit },
            });
        }
        self.bytes += read as u64;
        Ok(read > 0)
    }
}

/// The longest line of a key and a value within the limits: each byte is escaped as `\u0000`. So much memory a line may take
/// that has no end.
fn line_bytes_max(limits: &Limits) -> usize {
    const PER_BYTE: usize = 6;
    const BESIDE: usize = 1024;
    (limits.key_bytes_max + limits.value_bytes_max) * PER_BYTE + BESIDE
}

enum Entry {
    Record { key: Bytes, value: Bytes },
    End(End),
}

fn parse(line: &[u8], limits: &Limits) -> Result<Entry, Reason> {
    let json: Json<'_> = serde_json::from_slice(line).map_err(|error| {
        // The line that it tells is that of the document, which is one line.
        let place = format!(" at line {} column {}", error.line(), error.column());
        let told = error.to_string();
        Reason::Form(match told.strip_suffix(&place) {
            Some(told) => format!("column {}: {told}", error.column()),
            None => told,
        })
    })?;
    let Json {
        key,
        key_hex,
        value,
        value_hex,
        end,
    } = json;
    if let Some(end) = end {
        let is_alone = key.is_none() && key_hex.is_none() && value.is_none() && value_hex.is_none();
        return match is_alone {
            true => Ok(Entry::End(end)),
            false => Err(Reason::EndWithMore),
        };
    }
    let key = bytes("key", key, key_hex)?;
    let value = bytes("value", value, value_hex)?;
    let is_within = |what, size, limit| match size <= limit {
        true => Ok(()),
        false => Err(Reason::TooLarge { what, size, limit }),
    };
    if key.is_empty() {
        return Err(Reason::EmptyKey);
    }
    is_within("key", key.len(), limits.key_bytes_max)?;
    is_within("value", value.len(), limits.value_bytes_max)?;
    Ok(Entry::Record { key, value })
}

fn bytes(what: &'static str, text: Option<Cow<'_, str>>, digits: Option<String>) -> Result<Bytes, Reason> {
    match (text, digits) {
        (Some(text), None) => Ok(text.into_owned().into()),
        (None, Some(digits)) => unhex(&digits).map(Bytes::from).ok_or(Reason::NotHex(what)),
        (None, None) => Err(Reason::Missing(what)),
        (Some(_), Some(_)) => Err(Reason::Twice(what)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(text: &[u8], partial: bool) -> Result<Vec<(u64, Bytes, Bytes)>, String> {
        let mut lines = Lines::new(text, "a test", Limits::default(), partial);
        let mut all = Vec::new();
        while let Some(Record { line, key, value }) = lines.next().map_err(|error| error.to_string())? {
            all.push((line, key, value));
        }
        assert_eq!(lines.bytes(), text.len() as u64);
        Ok(all)
    }

    fn export(records: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let mut text = Vec::new();
        for (key, value) in records {
            write(&mut text, key, value).expect("a line");
        }
        write_end(&mut text, records.len() as u64, 7).expect("a line");
        text
    }

    #[test]
    fn a_line_has_this_form() {
        let records = [
            (b"a".to_vec(), b"gr\xc3\xbc\xc3\x9fe \"x\"\n".to_vec()),
            (b"\x00\xff".to_vec(), b"\xc0\xde".to_vec()),
            (b"b".to_vec(), Vec::new()),
        ];
        let expected = "{\"key\":\"a\",\"value\":\"grüße \\\"x\\\"\\n\"}\n\
                        {\"key_hex\":\"00ff\",\"value_hex\":\"c0de\"}\n\
                        {\"key\":\"b\",\"value\":\"\"}\n\
                        {\"end\":{\"keys\":3,\"revision\":7}}\n";
        assert_eq!(String::from_utf8(export(&records)).expect("text"), expected);
    }

    #[test]
    fn several_exports_and_empty_lines_are_read_one_after_the_other() {
        let text = b"{\"key\":\"a\",\"value\":\"1\"}\n{\"end\":{\"keys\":1}}\n\n {\"value\": \"2\", \"key_hex\": \"62\"} \r\n\
                     {\"end\":{\"keys\":1}}";
        let pair = |line, key: &'static [u8], value: &'static [u8]| {
            (line, Bytes::from_static(key), Bytes::from_static(value))
        };
        assert_eq!(
            all(text, false),
            Ok(vec![pair(1, b"a", b"1"), pair(4, b"b", b"2")])
        );
        assert_eq!(
            all(b"{\"end\":{\"keys\":0}}\n", false),
            Ok(Vec::new()),
            "an empty store"
        );
    }

    #[test]
    fn what_is_cut_off_is_refused_unless_it_may_be_a_part() {
        let whole = export(&[(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), b"2".to_vec())]);
        let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
        assert_eq!(
            all(&lines[..2].concat(), false).unwrap_err(),
            "the last line is missing, {\"end\": ...}: after line 2 something may be cut off"
        );
        assert_eq!(all(&lines[..2].concat(), true).unwrap().len(), 2);
        assert_eq!(
            all(&[lines[0], lines[2]].concat(), false).unwrap_err(),
            "line 2: the end says 2 keys, and 1 lines have one: something is missing, or was changed"
        );
        assert_eq!(all(&[lines[0], lines[2]].concat(), true).unwrap().len(), 1);
        assert!(all(b"", false).is_err());
        assert_eq!(all(b"", true), Ok(Vec::new()));
        // In the middle of a line, also a part is none.
        assert!(
            all(&whole[..whole.len() - 5], true)
                .unwrap_err()
                .starts_with("line 3: ")
        );
        let behind = [whole.as_slice(), lines[0]].concat();
        assert!(all(&behind, false).unwrap_err().contains("after line 4"));
    }

    #[test]
    fn what_is_wrong_with_a_line_is_told_with_its_number() {
        for (line, expected) in [
            (
                "nonsense",
                "line 2: it is not of the form of an export: column 2: expected ident",
            ),
            ("[1]", "line 2: it is not of the form"),
            ("{\"key\":\"a\"}", "line 2: it has no value, nor value_hex"),
            ("{\"value\":\"a\"}", "line 2: it has no key, nor key_hex"),
            (
                "{\"key\":\"a\",\"key_hex\":\"61\",\"value\":\"\"}",
                "line 2: it has key and key_hex",
            ),
            (
                "{\"key\":\"a\",\"value_hex\":\"0\"}",
                "line 2: value_hex is not hexadecimal",
            ),
            ("{\"key\":\"a\",\"value\":1}", "line 2: it is not of the form"),
            ("{\"key\":\"a\",\"value\":\"\",\"ttl\":1}", "unknown field `ttl`"),
            (
                "{\"key\":\"a\",\"key\":\"b\",\"value\":\"\"}",
                "duplicate field `key`",
            ),
            ("{\"key\":\"\",\"value\":\"a\"}", "line 2: the key is empty"),
            (
                "{\"end\":{\"keys\":1},\"key\":\"a\"}",
                "line 2: an end has no key and no value",
            ),
        ] {
            let text = format!("{{\"key\":\"a\",\"value\":\"1\"}}\n{line}\n");
            let error = all(text.as_bytes(), true).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }

    #[test]
    fn keys_values_and_lines_beyond_the_limits_are_refused() {
        let mut limits = Limits::default();
        (limits.key_bytes_max, limits.value_bytes_max) = (2, 3);
        let read = |text: &str| {
            let mut lines = Lines::new(text.as_bytes(), "a test", limits, true);
            lines.next().map_err(|error| error.to_string())
        };
        assert!(read("{\"key\":\"ab\",\"value\":\"abc\"}").unwrap().is_some());
        assert_eq!(
            read("{\"key\":\"abc\",\"value\":\"\"}").unwrap_err(),
            "line 1: the key has 3 bytes, the limit is 2"
        );
        assert_eq!(
            read("{\"key\":\"a\",\"value\":\"abcd\"}").unwrap_err(),
            "line 1: the value has 4 bytes, the limit is 3"
        );
        let escaped = "{\"key\":\"\\u0000\\u0000\",\"value\":\"\\u0000\\u0000\\u0000\"}";
        assert!(
            read(escaped).unwrap().is_some(),
            "the longest form is within the bound of a line"
        );
        let long = " ".repeat(line_bytes_max(&limits) + 1);
        assert_eq!(read(&long).unwrap_err(), "line 1: it has more than 1054 bytes");
    }

    proptest! {
        #[test]
        fn any_records_read_back(
            records in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 1..20), prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..40),
                    any::<String>().prop_map(String::into_bytes),
                ]),
                0..10,
            )
        ) {
            let read = all(&export(&records), false).expect("it is whole");
            let read: Vec<(Vec<u8>, Vec<u8>)> =
                read.into_iter().map(|(_, key, value)| (key.to_vec(), value.to_vec())).collect();
            prop_assert_eq!(read, records);
        }

        #[test]
        fn any_input_is_read_or_refused(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut lines = Lines::new(text.as_slice(), "a test", Limits::default(), true);
            while let Ok(Some(record)) = lines.next() {
                prop_assert!(!record.key.is_empty());
            }
        }
    }
}
