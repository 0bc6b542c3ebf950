//! Reading a configuration: every key typed, every fault collected, nothing silently ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use toml::{Table, Value};

use crate::text::{self, distance};

/// What is wrong with one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key, with the flag or file that it came from.
    pub key: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.reason)
    }
}

/// The keys of a file, overlaid with flags; taken out one by one, so that what is left is unknown.
#[derive(Debug)]
pub struct Keys {
    values: BTreeMap<String, Value>,
    /// Which keys came from a flag or a variable, and its name.
    flags: BTreeMap<String, String>,
    asked: BTreeSet<&'static str>,
    /// What was given for sizes and times, with its unit.
    given: BTreeMap<&'static str, String>,
    faults: Vec<Fault>,
}

impl Keys {
    /// The keys of a file's table; those of sections are named `section.key`.
    pub fn new(table: Table) -> Self {
        let mut values = BTreeMap::new();
        for (name, value) in table {
            match value {
                Value::Table(section) => {
                    values.extend(
                        section
                            .into_iter()
                            .map(|(key, value)| (format!("{name}.{key}"), value)),
                    );
                }
                value => {
                    values.insert(name, value);
                }
            }
        }
        Self {
            values,
            flags: BTreeMap::new(),
            asked: BTreeSet::new(),
            given: BTreeMap::new(),
            faults: Vec::new(),
        }
    }

    /// Lays a flag, or a variable, over the file's key.
    pub fn flag(&mut self, key: &'static str, flag: String, value: &str) {
        self.values
            .insert(key.to_owned(), Value::String(value.to_owned()));
        self.flags.insert(key.to_owned(), flag);
    }

    /// Replaces a whole section by a flag or a variable.
    pub fn replace_section(&mut self, section: &str, flag: &str, entries: Vec<(String, String)>) {
        self.values.retain(|key, _| !in_section(key, section));
        for (key, value) in entries {
            let key = format!("{section}.{key}");
            self.flags.insert(key.clone(), flag.to_owned());
            if self.values.insert(key.clone(), Value::String(value)).is_some() {
                self.fault(&key, "it stands in the list twice");
            }
        }
    }

    /// Notes a fault.
    pub fn fault(&mut self, key: &str, reason: impl fmt::Display) {
        let key = match self.flags.get(key) {
            Some(flag) => format!("{flag} ({key})"),
            None => key.to_owned(),
        };
        self.faults.push(Fault {
            key,
            reason: reason.to_string(),
        });
    }

    /// What was given for a size or a time, with its unit; none where it was left out.
    pub fn given(&self, key: &str) -> Option<&str> {
        self.given.get(key).map(String::as_str)
    }

    /// All that is wrong, unknown keys included.
    pub fn finish(mut self) -> Vec<Fault> {
        let unknown: Vec<String> = std::mem::take(&mut self.values).into_keys().collect();
        for key in unknown {
            let reason = match self.nearest(&key) {
                Some(near) => format!("there is no such key; did you mean {near}?"),
                None => "there is no such key; docs/configuration.md lists them all".to_owned(),
            };
            self.fault(&key, reason);
        }
        self.faults
    }

    fn nearest(&self, key: &str) -> Option<&'static str> {
        let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
        let near = self.asked.iter().map(|known| {
            // The right name in the wrong section is as near as one wrong letter.
            let distance = distance(key, known).min(if last(key) == last(known) { 1 } else { usize::MAX });
            (distance, *known)
        });
        near.filter(|(distance, _)| *distance <= 2)
            .min()
            .map(|(_, known)| known)
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.asked.insert(key);
        self.values.remove(key)
    }

    /// A text.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        match self.take(key)? {
            Value::String(text) if text.is_empty() => {
                self.fault(key, "it is empty");
                None
            }
            Value::String(text) => Some(text),
            other => {
                self.fault(key, format!("expected a text in quotes, found {}", kind(&other)));
                None
            }
        }
    }

    /// Yes or no.
    pub fn flag_value(&mut self, key: &'static str) -> Option<bool> {
        match self.take(key)? {
            Value::Boolean(value) => Some(value),
            Value::String(text) if text == "true" || text == "false" => Some(text == "true"),
            other => {
                self.fault(key, format!("expected true or false, found {}", kind(&other)));
                None
            }
        }
    }

    /// A whole number.
    pub fn number(&mut self, key: &'static str) -> Option<u64> {
        self.number_from(key, 0)
    }

    /// The same where the caller refuses what is below `first`: what is no number is told with that bound.
    pub fn number_from(&mut self, key: &'static str, first: u64) -> Option<u64> {
        let value = self.take(key)?;
        let number = match &value {
            Value::Integer(number) => u64::try_from(*number).ok(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        if number.is_none() {
            self.fault(
                key,
                format!("expected a whole number from {first} on, found {}", kind(&value)),
            );
        }
        number
    }

    /// A number of bytes, plain or with a unit.
    pub fn size(&mut self, key: &'static str) -> Option<u64> {
        let value = self.take(key)?;
        let size = match &value {
            Value::Integer(number) => u64::try_from(*number).ok(),
            Value::String(text) => text::parse_size(text),
            _ => None,
        };
        if let Some(size) = size {
            self.given.insert(key, text::exact_size(size));
        }
        if size.is_none() {
            let found = kind(&value);
            self.fault(
                key,
                format!(
                    "expected bytes, such as 65536 or \"64 KiB\" (KiB, MiB, GiB, TiB, PiB), found {found}"
                ),
            );
        }
        size
    }

    /// A time with its unit.
    pub fn duration(&mut self, key: &'static str) -> Option<Duration> {
        let value = self.take(key)?;
        let duration = match &value {
            Value::String(text) => humantime::parse_duration(text).ok(),
            _ => None,
        };
        if let Some(duration) = duration {
            self.given.insert(key, text::set_time(duration));
        }
        if duration.is_none() {
            self.fault(
                key,
                format!(
                    "expected a time with its unit, such as \"200ms\" or \"5s\", found {}",
                    kind(&value)
                ),
            );
        }
        duration
    }

    /// All keys of a section, whatever they are.
    pub fn section(&mut self, section: &str) -> Vec<(String, Value)> {
        let keys: Vec<String> = self
            .values
            .keys()
            .filter(|key| in_section(key, section))
            .cloned()
            .collect();
        let entry = |key: String| {
            let value = self.values.remove(&key)?;
            Some((key[section.len() + 1..].to_owned(), value))
        };
        keys.into_iter().filter_map(entry).collect()
    }
}

fn in_section(key: &str, section: &str) -> bool {
    key.strip_prefix(section)
        .is_some_and(|rest| rest.starts_with('.'))
}

/// A value as an error names it.
pub fn kind(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(value) => value.to_string(),
        Value::Datetime(_) => "a date".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Table(_) => "a section".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_is_told_with_the_one_that_was_meant() {
        let mut keys = Keys::new("lisen = 'x'\n[log]\nheartbeat = '1s'".parse().unwrap());
        let _ = (keys.text("listen"), keys.duration("timing.heartbeat"));
        let faults: Vec<String> = keys.finish().iter().map(ToString::to_string).collect();
        assert!(
            faults[0].contains("lisen") && faults[0].contains("did you mean listen?"),
            "{faults:?}"
        );
        assert!(faults[1].contains("timing.heartbeat?"), "{faults:?}");
    }
}
