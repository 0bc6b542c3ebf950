//! Transactions as people and scripts write them: lines of words, or the same words in JSON.
//!
//! ```text
//! if
//!   version orders/1 = 3
//!   missing orders/2
//! then
//!   put orders/1 shipped
//! else
//!   get orders/1
//! ```

use std::fmt;

use quorate_kv::model::{
    Compare, Condition, Guard, InvalidKey, Key, KeyRange, KeyTest, LeaseChange, Op, Order, PutMode,
    RangeRead, RangeTest, Revision, Txn,
};
use serde::{Deserialize, Serialize};

use crate::text::{Form, Forms, NotOfForm};

/// The form, for `--help`.
pub const HELP: &str = r#"The transaction is lines of words, in sections. All conditions under "if" must
hold for "then" to run; if not, "else" runs. Without "if", "then" runs always
(and the word itself may be left out). Words are separated by spaces; "quotes"
take what has spaces in it, with \n \t \" \\ and \xNN; # begins a comment.

  if                          CMP is = != < <= > >=
    exists KEY
    missing KEY
    value KEY CMP VALUE       bytewise; with --number by = and != alone
    version KEY CMP N         how often it was written
    created KEY CMP REVISION
    modified KEY CMP REVISION
    count PREFIX CMP N        the keys that begin with PREFIX; "" is all
  then, else
    put KEY VALUE             create or overwrite
    create KEY VALUE          refuse the whole where KEY exists
    del KEY
    del-prefix PREFIX LIMIT   refuse the whole where there are more
    del-all LIMIT             the same with every key
    get KEY
    range START END [LIMIT]   from START up to END, which is left out
    prefix PREFIX [LIMIT]     the keys that begin with PREFIX; "" is all
    add KEY N                 numbers of 8 bytes
    max KEY N
    seq PREFIX VALUE          the next number under PREFIX

Example:
  quorate kv txn <<END
  if
    version orders/1 = 1
    missing orders/1/lock
  then
    put orders/1 "shipped today"
    add orders/shipped 1
  else
    get orders/1
  END

The same in JSON:
  {"if": [["version", "orders/1", "=", 1], ["missing", "orders/1/lock"]],
   "then": [["put", "orders/1", "shipped today"], ["add", "orders/shipped", 1]],
   "else": [["get", "orders/1"]]}

Exit code 0 says that the transaction ran; which branch, "succeeded" tells.
Conditions that did not hold are shown as they were written, with their lines
and what was found instead: in the table, and in JSON under "failed".

With --format raw the first line is then or else, and the revision. A line for
each operation follows, that of a range for each of its keys, with tabs between:
  0 put EXISTED          0 deleted COUNT      0 range KEY VALUE
  0 get VALUE            0 number N           0 sequenced KEY
and 0 get alone where there is no such key. 0 is the operation's number, from 0
on."#;

/// What is wrong with a transaction, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct InvalidForm {
    place: Place,
    reason: String,
}

/// Where in the form something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Line(usize),
    Entry(&'static str, usize),
    Whole,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(line) => write!(f, "line {line}"),
            Place::Entry(section, index) => write!(f, "{section}[{index}]"),
            Place::Whole => f.write_str("the transaction"),
        }
    }
}

impl InvalidForm {
    fn whole(reason: &str) -> Self {
        Self {
            place: Place::Whole,
            reason: reason.to_owned(),
        }
    }
}

/// A transaction, and its conditions as they were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// What is committed.
    pub txn: Txn,
    /// Its conditions, in the order of their numbers.
    pub conditions: Vec<Stated>,
}

/// A condition as somebody wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stated {
    place: Place,
    text: String,
    /// With what a number of keys was compared.
    count: Option<u64>,
}

impl Stated {
    /// Where it stands: `line 2`, or `if[0]` in JSON.
    pub fn place(&self) -> String {
        self.place.to_string()
    }

    /// Its words.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether so many keys were counted that counting stopped there.
    pub fn may_be_more_than(&self, counted: u64) -> bool {
        self.count.is_some_and(|operand| counted > operand)
    }
}

/// Reads a transaction in either form.
pub fn parse(text: &str, forms: Forms) -> Result<Written, InvalidForm> {
    let Read { sections, entries } = if text.trim_start().starts_with('{') {
        json(text)?
    } else {
        lines(text)?
    };
    let (mut conditions, mut guards) = (Vec::new(), Vec::new());
    let (mut then, mut otherwise) = (Vec::new(), Vec::new());
    for Entry {
        section,
        place,
        text,
        words,
    } in entries
    {
        let mut words = Words {
            words: words.into_iter(),
            forms,
        };
        let at = |reason| InvalidForm {
            place: place.clone(),
            reason,
        };
        match section {
            Section::If => {
                let condition = condition(&mut words).map_err(at)?;
                let count = match &condition {
                    Condition::Range {
                        test: RangeTest::Count(_, operand),
                        ..
                    } => Some(*operand),
                    Condition::Range { .. } | Condition::Key { .. } => None,
                };
                let place = place.clone();
                conditions.push(Stated { place, text, count });
                guards.push(Guard::condition(condition));
            }
            Section::Then => then.push(op(&mut words).map_err(at)?),
            Section::Else => otherwise.push(op(&mut words).map_err(at)?),
        }
        if let Some(extra) = words.words.next() {
            return Err(at(format!("{extra:?} is one word too many")));
        }
    }
    // What is written counts, or is refused: an "if" that came out empty would let "then" run always.
    if conditions.is_empty() && sections.contains(&Section::If) {
        return Err(InvalidForm::whole(
            "there is no condition under \"if\": write one, or leave \"if\" out",
        ));
    }
    if conditions.is_empty() && sections.contains(&Section::Else) {
        return Err(InvalidForm::whole(
            "\"else\" never runs: there is no \"if\" before it",
        ));
    }
    if then.is_empty() && otherwise.is_empty() {
        return Err(InvalidForm::whole("it does nothing: there is no operation"));
    }
    let guard = if guards.is_empty() {
        Guard::always()
    } else {
        Guard::all(guards)
    };
    let txn = Txn::new(then).when(guard).or_else(otherwise);
    Ok(Written { txn, conditions })
}

/// What was read, before its words are understood.
struct Read {
    /// The sections that were named, also those without entries.
    sections: Vec<Section>,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    If,
    Then,
    Else,
}

impl Section {
    const ALL: [Section; 3] = [Section::If, Section::Then, Section::Else];

    fn name(self) -> &'static str {
        match self {
            Section::If => "if",
            Section::Then => "then",
            Section::Else => "else",
        }
    }

    fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|section| section.name() == word)
    }
}

struct Entry {
    section: Section,
    place: Place,
    /// As it was written.
    text: String,
    words: Vec<String>,
}

fn lines(text: &str) -> Result<Read, InvalidForm> {
    let mut section = Section::Then;
    let mut sections = Vec::new();
    let mut entries = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let place = Place::Line(line);
        let at = |reason| InvalidForm {
            place: place.clone(),
            reason,
        };
        let words = split(text).map_err(at)?;
        let named = match words.as_slice() {
            [] => continue,
            [word] => Section::named(word),
            _ => None,
        };
        match named {
            Some(named) if sections.contains(&named) => {
                return Err(at(format!("\"{}\" stands here a second time", named.name())));
            }
            Some(Section::If) if !entries.is_empty() => {
                return Err(at("\"if\" comes first: operations stand before it".to_owned()));
            }
            Some(named) => {
                sections.push(named);
                section = named;
            }
            None => entries.push(Entry {
                section,
                place,
                text: text.trim().to_owned(),
                words,
            }),
        }
    }
    Ok(Read { sections, entries })
}

/// The words of a line, quotes and escapes undone.
fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut chars = line.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        match chars.peek() {
            None | Some('#') => return Ok(words),
            Some('"') => {
                chars.next();
                words.push(quoted(&mut chars)?);
                if chars.peek().is_some_and(|c| !c.is_whitespace()) {
                    return Err("a space is missing after a closing quote".to_owned());
                }
            }
            Some(_) => {
                let mut word = String::new();
                while let Some(c) = chars.next_if(|c| !c.is_whitespace()) {
                    word.push(c);
                }
                words.push(word);
            }
        }
    }
}

fn quoted(chars: &mut impl Iterator<Item = char>) -> Result<String, String> {
    let mut word = String::new();
    let unfinished = || "the closing quote is missing".to_owned();
    loop {
        match chars.next().ok_or_else(unfinished)? {
            '"' => return Ok(word),
            '\\' => match chars.next().ok_or_else(unfinished)? {
                'n' => word.push('\n'),
                't' => word.push('\t'),
                'r' => word.push('\r'),
                c @ ('"' | '\\') => word.push(c),
                'x' => {
                    let digits: String = chars.by_ref().take(2).collect();
                    let byte = u8::from_str_radix(&digits, 16).ok().filter(u8::is_ascii);
                    let byte = byte.ok_or_else(|| {
                        format!("\\x{digits} is no byte from 00 to 7f; use --hex for others")
                    })?;
                    word.push(char::from(byte));
                }
                other => return Err(format!("\\{other} is no escape")),
            },
            c => word.push(c),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    #[serde(default, rename = "if")]
    condition: Option<Vec<Vec<Word>>>,
    #[serde(default)]
    then: Option<Vec<Vec<Word>>>,
    #[serde(default, rename = "else")]
    otherwise: Option<Vec<Vec<Word>>>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "a text or a whole number")]
enum Word {
    Text(String),
    Number(i64),
}

fn json(text: &str) -> Result<Read, InvalidForm> {
    let json: Json = serde_json::from_str(text)
        .map_err(|error| InvalidForm::whole(&format!("no such JSON form: {error}")))?;
    let word = |word| match word {
        Word::Text(text) => text,
        Word::Number(number) => number.to_string(),
    };
    let (mut sections, mut entries) = (Vec::new(), Vec::new());
    let given = [json.condition, json.then, json.otherwise];
    for (section, given) in Section::ALL.into_iter().zip(given) {
        let Some(given) = given else { continue };
        sections.push(section);
        for (index, words) in given.into_iter().enumerate() {
            entries.push(Entry {
                section,
                place: Place::Entry(section.name(), index),
                text: serde_json::to_string(&words)
                    .map_err(|error| InvalidForm::whole(&format!("no such JSON form: {error}")))?,
                words: words.into_iter().map(word).collect(),
            });
        }
    }
    Ok(Read { sections, entries })
}

/// The words of one entry, taken from the front.
struct Words {
    words: std::vec::IntoIter<String>,
    forms: Forms,
}

impl Words {
    fn next(&mut self, what: &str) -> Result<String, String> {
        self.words.next().ok_or_else(|| format!("{what} is missing"))
    }

    fn bytes(&mut self, what: &str, form: Form) -> Result<bytes::Bytes, String> {
        let word = self.next(what)?;
        form.read(&word).map_err(|error: NotOfForm| error.to_string())
    }

    /// Bytes that belong to keys.
    fn part_of_key(&mut self, what: &str) -> Result<bytes::Bytes, String> {
        self.bytes(what, self.forms.keys)
    }

    fn value(&mut self) -> Result<bytes::Bytes, String> {
        self.bytes("a value", self.forms.values)
    }

    fn key(&mut self) -> Result<Key, String> {
        let bytes = self.part_of_key("a key")?;
        Key::new(bytes).map_err(|error: InvalidKey| error.to_string())
    }

    /// A range from its first key up to the one before which it ends.
    fn range(&mut self) -> Result<KeyRange, String> {
        let (start, end) = (self.part_of_key("a start")?, self.part_of_key("an end")?);
        if start >= end {
            let (start, end) = (self.forms.key(&start), self.forms.key(&end));
            return Err(format!(
                "no key is at {start:?} or after and before {end:?}: the range ends before it begins"
            ));
        }
        Ok(KeyRange::new(start, end))
    }

    fn number<T: std::str::FromStr>(&mut self, what: &str) -> Result<T, String> {
        let word = self.next(what)?;
        word.parse().map_err(|_| format!("{word:?} is no {what}"))
    }

    fn limit(&mut self) -> Result<u32, String> {
        if self.words.len() == 0 {
            Ok(1_000)
        } else {
            self.number("limit")
        }
    }

    fn compare(&mut self) -> Result<Compare, String> {
        let word = self.next("a comparison (= != < <= > >=)")?;
        Ok(match word.as_str() {
            "=" | "==" => Compare::Equal,
            "!=" => Compare::NotEqual,
            "<" => Compare::Less,
            "<=" => Compare::LessOrEqual,
            ">" => Compare::Greater,
            ">=" => Compare::GreaterOrEqual,
            other => return Err(format!("{other:?} is no comparison; those are = != < <= > >=")),
        })
    }

    /// 0 is the revision of what does not exist, as `kv get --json` shows it nowhere.
    fn revision(&mut self) -> Result<Option<Revision>, String> {
        let number: u64 = self.number("revision")?;
        Ok((number > 0).then(|| Revision::new(number)))
    }
}

fn condition(words: &mut Words) -> Result<Condition, String> {
    let kind = words.next("a condition")?;
    if kind == "count" {
        let prefix = words.part_of_key("a prefix")?;
        let test = RangeTest::Count(words.compare()?, words.number("number")?);
        return Ok(Condition::Range {
            range: KeyRange::prefix(prefix),
            test,
        });
    }
    const KINDS: &str = "exists, missing, value, version, created, modified, count";
    if !KINDS.split(", ").any(|known| known == kind) {
        return Err(format!("{kind:?} is no condition; those are {KINDS}"));
    }
    let key = words.key()?;
    let test = match kind.as_str() {
        "exists" => KeyTest::Exists(true),
        "missing" => KeyTest::Exists(false),
        "value" => {
            let compare = words.compare()?;
            let is_order = !matches!(compare, Compare::Equal | Compare::NotEqual);
            if words.forms.values == Form::Number && is_order {
                // Values are compared as bytes, in which -1 is above 1.
                return Err("with --number a value is compared by = and != alone".to_owned());
            }
            KeyTest::Value(compare, words.value()?)
        }
        "version" => KeyTest::Version(words.compare()?, words.number("version")?),
        "created" => KeyTest::CreateRevision(words.compare()?, words.revision()?),
        _ => KeyTest::ModRevision(words.compare()?, words.revision()?),
    };
    Ok(Condition::Key { key, test })
}

fn op(words: &mut Words) -> Result<Op, String> {
    let kind = words.next("an operation")?;
    let put = |key, value, mode| Op::Put {
        key,
        value,
        mode,
        lease: LeaseChange::Detach,
    };
    Ok(match kind.as_str() {
        "put" => put(words.key()?, words.value()?, PutMode::Upsert),
        "create" => put(words.key()?, words.value()?, PutMode::OnlyIfAbsent),
        "del" => Op::delete(words.key()?),
        "del-prefix" => {
            let prefix = words.part_of_key("a prefix")?;
            if prefix.is_empty() {
                return Err("every key begins with \"\": to delete all keys, say del-all LIMIT".to_owned());
            }
            Op::delete_range(KeyRange::prefix(prefix), words.number("limit")?)
        }
        "del-all" => Op::delete_range(KeyRange::all(), words.number("limit")?),
        "get" => Op::get(words.key()?),
        "range" => {
            let range = words.range()?;
            Op::Range(range_read(range, words.limit()?))
        }
        "prefix" => {
            let range = KeyRange::prefix(words.part_of_key("a prefix")?);
            Op::Range(range_read(range, words.limit()?))
        }
        "add" => Op::Add {
            key: words.key()?,
            delta: words.number("number")?,
        },
        "max" => Op::Max {
            key: words.key()?,
            operand: words.number("number")?,
        },
        "seq" => Op::PutSequence {
            prefix: words.key()?,
            value: words.value()?,
        },
        section @ ("if" | "then" | "else") => {
            return Err(format!(
                "{section:?} begins a section: it stands alone on its line, and what belongs to it below"
            ));
        }
        other => {
            return Err(format!(
                "{other:?} is no operation; those are put, create, del, del-prefix, del-all, get, range, prefix, \
                 add, max, seq"
            ));
        }
    })
}

fn range_read(range: KeyRange, limit: u32) -> RangeRead {
    RangeRead {
        order: Order::Ascending,
        ..RangeRead::new(range).limit(limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: Forms = Forms {
        keys: Form::Text,
        values: Form::Text,
    };

    fn key(text: &str) -> Key {
        Key::from(text)
    }

    #[test]
    fn both_forms_say_the_same() {
        let text = "if\n version orders/1 = 3 # the third\n missing lock\nthen\n put orders/1 \"on \\\"its\\\" way\"\n\
                    else\n get orders/1";
        let json = r#"{"if": [["version", "orders/1", "=", 3], ["missing", "lock"]],
                       "then": [["put", "orders/1", "on \"its\" way"]], "else": [["get", "orders/1"]]}"#;
        let expected = Txn::new([Op::put(key("orders/1"), "on \"its\" way")])
            .when(Guard::all([
                Guard::key(key("orders/1"), KeyTest::Version(Compare::Equal, 3)),
                Guard::missing(key("lock")),
            ]))
            .or_else([Op::get(key("orders/1"))]);
        assert_eq!(parse(text, TEXT).unwrap().txn, expected);
        assert_eq!(parse(json, TEXT).unwrap().txn, expected);
    }

    #[test]
    fn conditions_are_told_as_they_were_written() {
        let told = |text: &str| -> Vec<(String, String)> {
            let conditions = parse(text, TEXT).unwrap().conditions;
            let told = conditions.iter().map(|c| (c.place(), c.text().to_owned()));
            told.collect()
        };
        let pair = |place: &str, text: &str| (place.to_owned(), text.to_owned());
        assert_eq!(
            told("# mine\nif\n  version \"a b\"  = 3 # the third\n\n  missing lock\nthen\n get a"),
            [
                pair("line 3", "version \"a b\"  = 3 # the third"),
                pair("line 5", "missing lock")
            ]
        );
        assert_eq!(
            told(r#"{"if": [["version", "a", "=", 1], ["missing", "b"]], "then": [["get", "a"]]}"#),
            [
                pair("if[0]", r#"["version","a","=",1]"#),
                pair("if[1]", r#"["missing","b"]"#)
            ]
        );
    }

    #[test]
    fn a_count_that_passed_its_operand_may_be_of_more() {
        let written = parse("if\n count a < 3\n exists b\nthen\n get a", TEXT).unwrap();
        let [count, exists] = written.conditions.as_slice() else {
            panic!("{written:?}");
        };
        assert!(!count.may_be_more_than(3) && count.may_be_more_than(4));
        assert!(!exists.may_be_more_than(4));
    }

    #[test]
    fn operations_alone_need_no_section() {
        assert_eq!(
            parse("put a 1", TEXT).unwrap().txn,
            Txn::new([Op::put(key("a"), "1")])
        );
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let cases = [
            ("put a", "line 1: a value is missing"),
            ("\nput a 1 2", "line 2: \"2\" is one word too many"),
            ("if\n exits a\nthen\n get a", "line 2: \"exits\" is no condition"),
            ("if\n version a ~ 1", "\"~\" is no comparison"),
            ("if\n version a = x", "\"x\" is no version"),
            ("put \"\" 1", "line 1: the key is empty"),
            ("put a \"1", "the closing quote is missing"),
            ("put a \"\\q\"", "\\q is no escape"),
            ("put a \"\\xff\"", "use --hex"),
            ("", "the transaction: it does nothing"),
            ("{\"then\": [[\"add\", \"a\"]]}", "then[0]: number is missing"),
            ("{\"when\": []}", "unknown field `when`"),
            ("frob a", "\"frob\" is no operation"),
            ("if value a = b", "\"if\" begins a section"),
            // What is written and would not count.
            ("put a 1\nelse\n get a", "\"else\" never runs: there is no \"if\""),
            (
                "{\"then\": [[\"get\", \"a\"]], \"else\": []}",
                "\"else\" never runs",
            ),
            ("if\nthen\n put a 1", "there is no condition under \"if\""),
            (
                "{\"if\": [], \"then\": [[\"get\", \"a\"]]}",
                "there is no condition under \"if\"",
            ),
            ("put a 1\nif\n exists b", "line 2: \"if\" comes first"),
            (
                "if\n exists b\nthen\n put a 1\nthen\n put b 1",
                "line 5: \"then\" stands here a second time",
            ),
            (
                "{\"then\": [], \"then\": [[\"get\", \"a\"]]}",
                "duplicate field `then`",
            ),
            // What would be everything, or nothing, by accident.
            (
                "del-prefix \"\" 10",
                "line 1: every key begins with \"\": to delete all keys, say del-all LIMIT",
            ),
            ("del-prefix a", "limit is missing"),
            ("del-all", "limit is missing"),
            (
                "range b a",
                "line 1: no key is at \"b\" or after and before \"a\"",
            ),
            ("range a a", "the range ends before it begins"),
        ];
        for (text, expected) in cases {
            let error = parse(text, TEXT).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn hexadecimal_words_are_bytes() {
        assert_eq!(
            parse("put 00ff 61", Forms::new(true, false)).unwrap().txn,
            Txn::new([Op::put(Key::new(vec![0, 255]).unwrap(), "a")])
        );
        assert!(
            parse("put 0 61", Forms::new(true, false))
                .unwrap_err()
                .to_string()
                .contains("not hexadecimal")
        );
    }

    #[test]
    fn to_delete_all_keys_is_a_word_of_its_own() {
        assert_eq!(
            parse("del-all 10", TEXT).unwrap().txn,
            Txn::new([Op::delete_range(KeyRange::all(), 10)])
        );
    }

    #[test]
    fn values_are_numbers_where_asked_for() {
        let numbers = Forms::new(false, true);
        let seven = 7i64.to_be_bytes().to_vec();
        assert_eq!(
            parse("if\n value a = 7\nthen\n put a -1\n put 7 7", numbers)
                .unwrap()
                .txn,
            Txn::new([
                Op::put(key("a"), (-1i64).to_be_bytes().to_vec()),
                Op::put(key("7"), seven.clone())
            ])
            .when(Guard::all([Guard::key(
                key("a"),
                KeyTest::Value(Compare::Equal, seven.into())
            )]))
        );
        let error = |text| parse(text, numbers).unwrap_err().to_string();
        assert!(error("put a x").contains("\"x\" is not a number"));
        assert!(error("if\n value a < 7\nthen\n get a").contains("by = and != alone"));
    }
}
