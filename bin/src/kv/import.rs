//! `quorate kv import`: writes the keys and values of [`lines`], in batches.
//!
//! Always: a batch is written whole or not at all, in the order of its lines, and no two of its lines have one key; what is told
//! of a failure names the last line up to which all is written.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal as _, Seek as _};

use indicatif::{ProgressBar, ProgressStyle};
use quorate_kv::Client;
use quorate_kv::client::Error;
use quorate_kv::model::{Guard, Limits, Op, OpResult, ReplicatedLimits, Revision, Txn, TxnResponse};
use serde::Serialize;

use super::lines::{Invalid, Lines, Record};
use super::request::{Import, Place};
use crate::cli::Reach;
use crate::failure::{Failure, Kind};
use crate::output::{Format, Line, Output};
use crate::reach::{self, Reached};
use crate::text::thousands;

/// What an import did.
#[derive(Debug, Default, Serialize)]
struct Imported {
    /// How many lines with a key there were.
    lines: u64,
    /// How many of them were written: `created` and `overwritten` together.
    written: u64,
    created: u64,
    overwritten: u64,
    /// How many were left as they were, for the key existed.
    kept: u64,
    /// Of the last batch; null where nothing was written.
    revision: Option<u64>,
    dry_run: bool,
}

/// Runs the command.
pub(super) async fn run(import: &Import, reach: &Reach, output: Output) -> Result<(), Failure> {
    let mut source = Source::open(&import.from)?;
    // A file is checked whole before anything is written.
    if import.dry_run || source.length.is_some() {
        let progress = source.progress("checking", output);
        let checked = check(source.lines(import.partial), &progress);
        progress.finish_and_clear();
        let lines = checked?;
        if import.dry_run {
            let keys = if lines == 1 { "key" } else { "keys" };
            let line = format!("{} {keys} can be imported; nothing was written", thousands(lines));
            let imported = Imported {
                lines,
                dry_run: true,
                ..Imported::default()
            };
            return output.show(&Line::new(imported, line).piped(lines));
        }
        source.rewind()?;
    }
    let client = Reached::find(reach)?.client()?;
    let progress = source.progress("importing", output);
    let lines = source.lines(import.partial);
    let imported = write_all(&client, lines, import.if_absent, &progress).await;
    progress.finish_and_clear();
    reach::close(client).await;
    let imported = imported?;
    let Imported {
        written,
        created,
        overwritten,
        kept,
        ..
    } = imported;
    let mut line = format!(
        "{} {} written: {} created, {} overwritten",
        thousands(written),
        if written == 1 { "key" } else { "keys" },
        thousands(created),
        thousands(overwritten)
    );
    if import.if_absent {
        line.push_str(&format!("; {} left as they were", thousands(kept)));
    }
    if let Some(revision) = imported.revision {
        line.push_str(&format!("; the last at revision {revision}"));
    }
    output.show(&Line::new(imported, line).piped(written))
}

/// Where lines come from.
struct Source {
    from: Input,
    name: String,
    /// Of what can be read again from the beginning.
    length: Option<u64>,
}

enum Input {
    Stdin,
    File(File),
}

impl Source {
    fn open(place: &Place) -> Result<Self, Failure> {
        let Place::File(path) = place else {
            return Ok(Self {
                from: Input::Stdin,
                name: "standard input".to_owned(),
                length: None,
            });
        };
        let name = path.display().to_string();
        let refused = |error: io::Error| Failure::refused(format!("{name}: {error}"));
        let file = File::open(path).map_err(refused)?;
        let metadata = file.metadata().map_err(refused)?;
        if metadata.is_dir() {
            return Err(Failure::refused(format!("{name} is a directory")));
        }
        Ok(Self {
            length: metadata.is_file().then_some(metadata.len()),
            from: Input::File(file),
            name,
        })
    }

    fn lines(&mut self, partial: bool) -> Lines<Box<dyn BufRead + '_>> {
        let from: Box<dyn BufRead> = match &self.from {
            Input::Stdin => Box::new(io::stdin().lock()),
            Input::File(file) => Box::new(BufReader::new(file)),
        };
        Lines::new(from, self.name.clone(), reach::limits(), partial)
    }

    fn rewind(&mut self) -> Result<(), Failure> {
        match &mut self.from {
            Input::Stdin => Ok(()),
            Input::File(file) => file
                .rewind()
                .map_err(|error| Failure::failed(format!("{}: {error}", self.name))),
        }
    }

    /// A bar on standard error, where somebody sees it: of the bytes, or without an end where it is not known.
    fn progress(&self, doing: &'static str, output: Output) -> ProgressBar {
        if output.format() == Format::Json || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let (bar, template) = match self.length {
            Some(length) => (
                ProgressBar::new(length),
                "{msg} {wide_bar} {bytes}/{total_bytes} {eta}",
            ),
            None => (ProgressBar::new_spinner(), "{msg} {spinner} {bytes}"),
        };
        let bar = bar.with_message(doing);
        match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        let message = invalid.to_string();
        match invalid {
            Invalid::Io { .. } => Failure::failed(message),
            Invalid::NoEnd { .. } => {
                Failure::refused(message).hint("--partial takes what is there, as the whole or a part of it")
            }
            Invalid::Line { .. } => Failure::refused(message),
        }
    }
}

/// Reads all lines, and says how many keys they have.
fn check<R: BufRead>(mut lines: Lines<R>, progress: &ProgressBar) -> Result<u64, Failure> {
    let mut count = 0;
    while lines.next()?.is_some() {
        count += 1;
        progress.set_position(lines.bytes());
    }
    Ok(count)
}

/// How much is written at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bounds {
    records: usize,
    bytes: usize,
}

impl Bounds {
    /// What a store with these limits takes in one transaction, in which each record may have a condition: of its bytes a quarter,
    /// so that others are not held up. A node with narrower limits refuses a batch, which is divided then.
    fn of(limits: &Limits, stand: &ReplicatedLimits) -> Self {
        let number = |limit: u64| usize::try_from(limit).unwrap_or(usize::MAX);
        let records = [
            // One more for the node that joins the conditions.
            limits.txn_ops_max.saturating_sub(1) / 2,
            number(stand.keys_changed_max),
            number(stand.keys_looked_at_max / 2),
            // So that all keys that exist are told at once.
            TxnResponse::FAILED_MAX,
        ];
        Self {
            records: records.into_iter().fold(usize::MAX, usize::min).max(1),
            bytes: limits.txn_bytes_max / 4,
        }
    }
}

/// Lines that are written at once.
#[derive(Debug, Default)]
struct Batch {
    records: Vec<Record>,
    keys: HashSet<bytes::Bytes>,
    bytes: usize,
}

impl Batch {
    /// What a record counts, with a condition: its key twice, its value, and what an operation and a condition cost beside.
    fn size_of(record: &Record) -> usize {
        const BESIDE: usize = 64;
        record.key.len() * 2 + record.value.len() + BESIDE
    }

    /// Whether it has room for one more: it always has for the first, and never for a second line of one key.
    fn has_room_for(&self, record: &Record, bounds: Bounds) -> bool {
        self.records.is_empty()
            || (self.records.len() < bounds.records
                && self.bytes + Self::size_of(record) <= bounds.bytes
                && !self.keys.contains(&record.key))
    }

    fn push(&mut self, record: Record) {
        self.bytes += Self::size_of(&record);
        self.keys.insert(record.key.clone());
        self.records.push(record);
    }
}

/// What one may do after an import that ended early.
const REPEAT: &str = "the same import can be given again";

/// What became of the lines so far.
struct Done<'c> {
    client: &'c Client,
    if_absent: bool,
    imported: Imported,
    /// The last line up to which all is written.
    last: Option<u64>,
}

async fn write_all<R: BufRead>(
    client: &Client,
    mut lines: Lines<R>,
    if_absent: bool,
    progress: &ProgressBar,
) -> Result<Imported, Failure> {
    let bounds = Bounds::of(&Limits::default(), &client.limits().await?);
    let mut done = Done {
        client,
        if_absent,
        imported: Imported::default(),
        last: None,
    };
    let mut batch = Batch::default();
    loop {
        let next = lines
            .next()
            .map_err(|invalid| ended_early(invalid.into(), done.last, None))?;
        let behind = match next {
            Some(record) if batch.has_room_for(&record, bounds) => {
                batch.push(record);
                continue;
            }
            behind => behind,
        };
        done.write(std::mem::take(&mut batch).records).await?;
        progress.set_position(lines.bytes());
        match behind {
            Some(record) => batch.push(record),
            None => return Ok(done.imported),
        }
    }
}

impl Done<'_> {
    /// Writes records, at once where the nodes take them all, and else in parts.
    async fn write(&mut self, records: Vec<Record>) -> Result<(), Failure> {
        let mut parts = vec![records];
        while let Some(mut part) = parts.pop() {
            let (Some(first), Some(last)) = (part.first(), part.last()) else {
                continue;
            };
            let (first, last) = (first.line, last.line);
            match self.commit(&part).await {
                Ok(()) => self.last = Some(last),
                Err(error) if part.len() > 1 && is_refusal(&error) => {
                    let rest = part.split_off(part.len() / 2);
                    parts.push(rest);
                    parts.push(part);
                }
                Err(error) => {
                    let is_unknown = error.may_have_committed();
                    let lines = match first == last {
                        true => format!("line {first}"),
                        false => format!("lines {first} to {last}"),
                    };
                    let failure = Failure::from(error).in_context(&lines);
                    let in_doubt = is_unknown.then_some(lines.as_str());
                    return Err(ended_early(failure, self.last, in_doubt));
                }
            }
        }
        Ok(())
    }

    async fn commit(&mut self, records: &[Record]) -> Result<(), Error> {
        let put = |record: &&Record| Op::put(&record.key, &record.value);
        let mut left: Vec<&Record> = records.iter().collect();
        while !left.is_empty() {
            let mut txn = Txn::new(left.iter().map(put));
            if self.if_absent {
                txn = txn.when(Guard::all(left.iter().map(|record| Guard::missing(&record.key))));
            }
            let response = self.client.commit(txn).await?;
            if response.succeeded {
                self.count(&response);
                break;
            }
            // These exist; the others are tried again without them.
            let exist: HashSet<usize> = response
                .failed
                .iter()
                .filter_map(|failed| usize::try_from(failed.index).ok())
                .collect();
            let before = left.len();
            let mut place = 0..;
            left.retain(|_| place.next().is_none_or(|place: usize| !exist.contains(&place)));
            if left.len() == before {
                return Err(Error::Rejected {
                    node: None,
                    reason: "the node does not say which keys exist".to_owned(),
                });
            }
            self.imported.kept += (before - left.len()) as u64;
        }
        self.imported.lines += records.len() as u64;
        Ok(())
    }

    fn count(&mut self, response: &TxnResponse) {
        let existed = |result: &&OpResult| matches!(result, OpResult::Put { existed: true });
        let overwritten = response.results.iter().filter(existed).count() as u64;
        let written = response.results.len() as u64;
        self.imported.written += written;
        self.imported.overwritten += overwritten;
        self.imported.created += written - overwritten;
        self.imported.revision = Some(Revision::number(response.revision));
    }
}

/// An import that ends early. `last`: the line up to which all is written; `in_doubt`: lines behind it of which nobody knows.
fn ended_early(failure: Failure, last: Option<u64>, in_doubt: Option<&str>) -> Failure {
    let failure = match last {
        // Something was changed, whatever ended it.
        Some(_) => failure.of_kind(Kind::UnknownOutcome),
        None => failure,
    };
    let told = match (last, in_doubt) {
        (None, None) => "nothing was written".to_owned(),
        (Some(last), None) => {
            format!("all lines up to line {last} are written, and none behind it; {REPEAT}")
        }
        (None, Some(lines)) => format!("{lines} may be written, and none behind; {REPEAT}"),
        (Some(last), Some(lines)) => {
            format!("all lines up to line {last} are written, {lines} may be, and none behind; {REPEAT}")
        }
    };
    failure.details([told])
}

/// Whether nodes refused a transaction for what it is: a smaller one may be taken, or shows which line it is.
fn is_refusal(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidTxn(_) | Error::Refused(_) | Error::Rejected { .. }
    ) && !error.may_have_committed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(line: u64, key: &'static str, value: &'static str) -> Record {
        Record {
            line,
            key: key.into(),
            value: value.into(),
        }
    }

    #[test]
    fn a_batch_is_bounded_by_what_the_store_takes() {
        let mut limits = Limits::default();
        let mut stand = ReplicatedLimits::default();
        let of_defaults = Bounds::of(&limits, &stand);
        assert_eq!(of_defaults.records, TxnResponse::FAILED_MAX);
        assert_eq!(of_defaults.bytes * 4, limits.txn_bytes_max);

        limits.txn_ops_max = 9;
        assert_eq!(
            Bounds::of(&limits, &stand).records,
            4,
            "four puts, four conditions, their joint"
        );
        limits.txn_ops_max = 1;
        assert_eq!(
            Bounds::of(&limits, &stand).records,
            1,
            "what is refused names its line"
        );
        limits.txn_ops_max = 1 << 20;
        stand.keys_changed_max = 1_000;
        assert_eq!(Bounds::of(&limits, &stand).records, 1_000);
        stand.keys_looked_at_max = 1_000;
        assert_eq!(Bounds::of(&limits, &stand).records, 500);
    }

    #[test]
    fn what_ended_early_is_told_by_its_lines() {
        let told = |kind, last, in_doubt| {
            let failure = ended_early(Failure::new(kind, "no answer"), last, in_doubt);
            (failure.kind(), failure.to_string())
        };
        for (kind, last, in_doubt, expected, says) in [
            (Kind::Refused, None, None, Kind::Refused, "nothing was written"),
            (
                Kind::Unavailable,
                Some(7),
                None,
                Kind::UnknownOutcome,
                "all lines up to line 7 are written, and none behind it; the same import",
            ),
            (
                Kind::UnknownOutcome,
                None,
                Some("lines 1 to 7"),
                Kind::UnknownOutcome,
                "lines 1 to 7 may be written, and none behind; the same import",
            ),
            (
                Kind::UnknownOutcome,
                Some(7),
                Some("line 8"),
                Kind::UnknownOutcome,
                "all lines up to line 7 are written, line 8 may be, and none behind; the same import",
            ),
        ] {
            let (kind, text) = told(kind, last, in_doubt);
            assert_eq!(kind, expected, "{says}");
            assert!(text.starts_with(&format!("no answer:\n  {says}")), "{text}");
        }
    }

    #[test]
    fn a_batch_has_room_up_to_its_bounds_and_for_each_key_once() {
        let bounds = Bounds {
            records: 3,
            bytes: 200,
        };
        let mut batch = Batch::default();
        let large = Record {
            value: "v".repeat(300).into(),
            ..record(1, "large", "")
        };
        assert!(batch.has_room_for(&large, bounds), "the first always");
        batch.push(record(1, "a", "1"));
        assert!(!batch.has_room_for(&large, bounds));
        assert!(!batch.has_room_for(&record(2, "a", "2"), bounds), "the same key");
        assert!(batch.has_room_for(&record(2, "b", "2"), bounds));
        batch.push(record(2, "b", "2"));
        assert!(
            !batch.has_room_for(&record(3, "c", "a value"), bounds),
            "more than 200 bytes"
        );
    }
}
