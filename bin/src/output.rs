//! What a command shows: a table for people, or one JSON document for programs.

use std::io::{self, Write as _};
use std::sync::mpsc;
use std::time::Duration;

use comfy_table::modifiers::UTF8_ROUND_CORNERS;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};
use serde::Serialize;

use crate::failure::Failure;

/// A result in both its forms.
pub trait Report: Serialize {
    /// For people: lines of text, usually with a table.
    fn text(&self) -> String;
}

/// How long [`Output::fail`] waits where it does not wait for its reader.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where results go, and in which form.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
    json_failures: bool,
    waits: bool,
}

impl Output {
    /// To standard output; as JSON, if so.
    pub fn new(json: bool) -> Self {
        Self {
            json,
            json_failures: json,
            waits: true,
        }
    }

    /// The same for a process whose end must not wait for who reads its standard error.
    #[must_use]
    pub fn without_waiting(mut self) -> Self {
        self.waits = false;
        self
    }

    /// The same with failures as JSON, whatever results are.
    #[must_use]
    pub fn failing_in_json(mut self) -> Self {
        self.json_failures = true;
        self
    }

    /// Whether results are shown as JSON.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// Shows a result.
    pub fn show(self, report: &impl Report) -> Result<(), Failure> {
        let mut text = if self.json {
            serde_json::to_string_pretty(report)
                .map_err(|error| Failure::failed(format!("the result has no JSON form: {error}")))?
        } else {
            report.text()
        };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        self.raw(text.as_bytes())
    }

    /// Writes bytes as they are.
    pub fn raw(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        match out.write_all(bytes).and_then(|()| out.flush()) {
            Ok(()) => Ok(()),
            // The reader has seen enough, as in `quorate kv range | head`.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(Failure::failed(format!("standard output: {error}"))),
        }
    }

    /// Shows a failure, on standard error.
    pub fn fail(self, failure: &Failure) {
        let text = if self.json_failures {
            serde_json::json!({ "error": failure }).to_string()
        } else {
            format!("error: {failure}")
        };
        self.warn(text);
    }

    /// Writes a line to standard error.
    pub fn warn(self, text: String) {
        // With standard error gone there is nobody left to tell.
        let write = move || drop(writeln!(io::stderr().lock(), "{text}"));
        if self.waits {
            return write();
        }
        let (written, is_written) = mpsc::channel();
        let thread = std::thread::Builder::new().name("quorate-stderr".to_owned());
        let thread = thread.spawn(move || {
            write();
            let _ = written.send(());
        });
        if thread.is_ok() {
            // A thread that still waits for a reader ends with the process.
            let _ = is_written.recv_timeout(PATIENCE);
        }
    }
}

/// A short answer: one line for people, one object for programs.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Line<T: Serialize> {
    value: T,
    #[serde(skip)]
    line: String,
}

impl<T: Serialize> Line<T> {
    /// The value for programs and the line for people.
    pub fn new(value: T, line: impl Into<String>) -> Self {
        Self {
            value,
            line: line.into(),
        }
    }
}

impl<T: Serialize> Report for Line<T> {
    fn text(&self) -> String {
        self.line.clone()
    }
}

/// A table with these headings, as wide as its contents and no wider than the terminal.
pub fn table<const N: usize>(headings: [&str; N]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(UTF8_FULL_CONDENSED)
        .apply_modifier(UTF8_ROUND_CORNERS)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(headings);
    table
}

/// How wide the terminal is; `None` where there is none, and lines may be as long as they are.
pub fn columns() -> Option<usize> {
    Table::new().width().map(usize::from)
}

/// A number's cell: to the right.
pub fn number(value: impl std::fmt::Display) -> Cell {
    Cell::new(value).set_alignment(CellAlignment::Right)
}

/// A cell of what may be missing: then a dash.
pub fn maybe(value: Option<impl std::fmt::Display>) -> Cell {
    value.map_or_else(|| number("-"), number)
}
