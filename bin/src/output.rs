//! What a command shows: a table for people, one JSON document for programs, or lines for pipes.

use std::io::{self, Write as _};
use std::sync::mpsc;
use std::time::Duration;

use comfy_table::modifiers::UTF8_ROUND_CORNERS;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};
use serde::Serialize;

use crate::failure::Failure;
use crate::raw;

/// The form in which results are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// One JSON document; failures too.
    Json,
    /// For pipes: bytes, or lines of fields with tabs between them.
    Raw,
}

impl Format {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Format::Table => "table",
            Format::Json => "json",
            Format::Raw => "raw",
        }
    }
}

/// A result in all its forms. Its JSON form is that of `Serialize`.
pub trait Report: Serialize {
    /// For people: lines of text, usually with a table.
    fn text(&self) -> String;

    /// The list in the JSON form whose elements are the lines of the raw form; `None`: the whole is one line.
    fn list(&self) -> Option<&'static str> {
        None
    }

    /// For pipes: what is written to standard output, to the byte. `None`: it has no such form, which is a fault of this
    /// program.
    fn raw(&self) -> Option<Vec<u8>> {
        raw::lines(self, self.list())
    }
}

/// How long [`Output::fail`] waits where it does not wait for its reader.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where results go, and in which form.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    format: Format,
    json_failures: bool,
    waits: bool,
}

impl Output {
    /// To standard output in this form. Failures are JSON where results are, and else text.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            json_failures: format == Format::Json,
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

    /// The same with results in the raw form; failures stay as they are.
    #[must_use]
    pub fn in_raw(mut self) -> Self {
        self.format = Format::Raw;
        self
    }

    /// The form of results.
    pub fn format(self) -> Format {
        self.format
    }

    /// Shows a result.
    pub fn show(self, report: &impl Report) -> Result<(), Failure> {
        let mut text = match self.format {
            Format::Table => report.text(),
            Format::Json => serde_json::to_string_pretty(report)
                .map_err(|error| Failure::failed(format!("the result has no JSON form: {error}")))?,
            Format::Raw => {
                let raw = report.raw();
                let raw = raw.ok_or_else(|| Failure::failed("the result has no raw form"))?;
                return self.raw(&raw);
            }
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
    #[serde(skip)]
    list: Option<&'static str>,
    #[serde(skip)]
    piped: Option<String>,
}

impl<T: Serialize> Line<T> {
    /// The value for programs and the line for people.
    pub fn new(value: T, line: impl Into<String>) -> Self {
        Self {
            value,
            line: line.into(),
            list: None,
            piped: None,
        }
    }

    /// The same with this line as its raw form.
    #[must_use]
    pub fn piped(mut self, field: impl std::fmt::Display) -> Self {
        self.piped = Some(field.to_string());
        self
    }

    /// The same with the lines of the raw form from a list of the value.
    #[must_use]
    pub fn listing(mut self, list: &'static str) -> Self {
        self.list = Some(list);
        self
    }
}

impl<T: Serialize> Report for Line<T> {
    fn text(&self) -> String {
        self.line.clone()
    }

    fn list(&self) -> Option<&'static str> {
        self.list
    }

    fn raw(&self) -> Option<Vec<u8>> {
        let Some(field) = &self.piped else {
            return raw::lines(self, self.list());
        };
        let mut line = Vec::new();
        raw::line(&mut line, [field]);
        Some(line)
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
