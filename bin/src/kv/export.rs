//! `quorate kv export`: all keys and values of one revision, as [`lines`].
//!
//! Always: no more than a page is in memory; a file appears, or is replaced, when all of it is written and durable. Standard
//! output has the last line where all was written, and else has not.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use quorate_kv::Client;
use quorate_kv::client::Error;
use quorate_kv::model::Revision;
use serde::Serialize;
use tempfile::NamedTempFile;

use super::lines;
use super::request::{Export, Place};
use crate::failure::{Failure, Kind};
use crate::output::{Format, Line, Output};
use crate::text::{size, thousands};

/// What was exported.
#[derive(Debug, Serialize)]
struct Exported {
    file: PathBuf,
    revision: u64,
    keys: u64,
    bytes: u64,
}

/// Runs the command. It writes on the thread that waits for it, which no request needs to be answered.
pub(super) async fn run(client: &Client, export: Export, output: Output) -> Result<(), Failure> {
    let mut target = Target::open(&export.to)?;
    let revision = match export.revision {
        Some(revision) => revision,
        None => client.revision().await?,
    };
    let progress = progress(client, &export, revision, output).await;
    let written = write(client, &export, revision, &mut target, &progress).await;
    progress.finish_and_clear();
    let Some(Written { keys, bytes }) = written? else {
        return Ok(());
    };
    let Some(file) = target.finish()? else {
        return Ok(());
    };
    let line = format!(
        "{} {} of revision {revision} exported to {} ({})",
        thousands(keys),
        if keys == 1 { "key" } else { "keys" },
        file.display(),
        size(bytes)
    );
    let exported = Exported {
        file,
        revision: revision.number(),
        keys,
        bytes,
    };
    output.show(&Line::new(exported, line))
}

/// A bar on standard error, where somebody sees it.
async fn progress(client: &Client, export: &Export, revision: Revision, output: Output) -> ProgressBar {
    let is_in_between = export.to == Place::Stream && io::stdout().is_terminal();
    if output.format() == Format::Json || is_in_between || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    // Where they cannot be counted, the export itself says why, or needs no count.
    let (bar, template) = match client.count(export.range.clone()).at(revision).await {
        Ok(keys) => (
            ProgressBar::new(keys),
            "exporting {wide_bar} {human_pos}/{human_len} keys {eta}",
        ),
        Err(_) => (ProgressBar::new_spinner(), "exporting {spinner} {human_pos} keys"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// What was written, to its last line.
struct Written {
    keys: u64,
    bytes: u64,
}

/// Writes all lines; nothing is answered where the reader has seen enough.
async fn write(
    client: &Client,
    export: &Export,
    revision: Revision,
    target: &mut Target,
    progress: &ProgressBar,
) -> Result<Option<Written>, Failure> {
    let mut records = client.range(export.range.clone()).at(revision).stream();
    let (mut keys, mut bytes) = (0, 0);
    let mut line = Vec::new();
    loop {
        let record = records.next().await.transpose();
        let record = record.map_err(|error| broken_off(error, keys))?;
        line.clear();
        let formed = match &record {
            Some(found) => lines::write(&mut line, found.key.as_bytes(), &found.record.value),
            None => lines::write_end(&mut line, keys, revision.number()),
        };
        formed.map_err(|error| Failure::failed(format!("a line has no JSON form: {error}")))?;
        if !target.write(&line)? {
            return Ok(None);
        }
        bytes += line.len() as u64;
        if record.is_none() {
            return match target.flush()? {
                true => Ok(Some(Written { keys, bytes })),
                false => Ok(None),
            };
        }
        keys += 1;
        progress.inc(1);
    }
}

fn broken_off(error: Error, keys: u64) -> Failure {
    let is_compacted = matches!(error, Error::Compacted { .. });
    let failure = Failure::from(error);
    let failure = match keys {
        0 => failure,
        keys => failure.in_context(&format!(
            "the export broke off after {} keys and has no last line",
            thousands(keys)
        )),
    };
    match is_compacted {
        true => failure.hint(
            "history is kept as long as history_kept and history_revisions_kept say: quorate config set history_kept 1h",
        ),
        false => failure,
    }
}

/// Where lines go.
enum Target {
    /// To a stream, or to a file that is none on a disk.
    Stream { name: String, to: Box<dyn Write> },
    /// To a file beside the one that is meant, which is put in its place at the end.
    File {
        path: PathBuf,
        to: BufWriter<NamedTempFile>,
    },
}

impl Target {
    fn open(place: &Place) -> Result<Self, Failure> {
        let Place::File(path) = place else {
            return Ok(Target::Stream {
                name: "standard output".to_owned(),
                to: Box::new(BufWriter::new(io::stdout())),
            });
        };
        let refused = |error: io::Error| Failure::refused(format!("{}: {error}", path.display()));
        let path = match path.canonicalize() {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.clone(),
            Err(error) => return Err(refused(error)),
        };
        match path.metadata() {
            // A pipe, or a device: nothing can be put in its place.
            Ok(metadata) if !metadata.is_file() => {
                let file = File::options().write(true).open(&path).map_err(refused)?;
                Ok(Target::Stream {
                    name: path.display().to_string(),
                    to: Box::new(BufWriter::new(file)),
                })
            }
            _ => {
                let dir = dir_of(&path);
                // Else the failure would name the file that is made beside.
                dir.metadata()
                    .map_err(|error| Failure::refused(format!("{}: {error}", dir.display())))?;
                let mut beside = tempfile::Builder::new();
                let file = beside.prefix(".quorate-export-").tempfile_in(dir);
                Ok(Target::File {
                    to: BufWriter::new(file.map_err(refused)?),
                    path,
                })
            }
        }
    }

    /// False where the reader is gone.
    fn write(&mut self, line: &[u8]) -> Result<bool, Failure> {
        let written = match self {
            Target::Stream { to, .. } => to.write_all(line),
            Target::File { to, .. } => to.write_all(line),
        };
        self.is_taken(written)
    }

    fn flush(&mut self) -> Result<bool, Failure> {
        let flushed = match self {
            Target::Stream { to, .. } => to.flush(),
            Target::File { to, .. } => to.flush(),
        };
        self.is_taken(flushed)
    }

    fn is_taken(&self, written: io::Result<()>) -> Result<bool, Failure> {
        match (written, self) {
            (Ok(()), _) => Ok(true),
            (Err(error), Target::Stream { .. }) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            (Err(error), Target::Stream { name, .. }) => Err(Failure::failed(format!("{name}: {error}"))),
            (Err(error), Target::File { path, .. }) => Err(not_written(path, &error)),
        }
    }

    /// Makes what was written durable and puts it in its place. The file, where there is one.
    fn finish(self) -> Result<Option<PathBuf>, Failure> {
        let Target::File { path, to } = self else {
            return Ok(None);
        };
        let failed = |error: io::Error| not_written(&path, &error);
        let file = to.into_inner().map_err(|error| failed(error.into_error()))?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        File::open(dir_of(&path))
            .and_then(|dir| dir.sync_all())
            .map_err(|error| {
                let message = format!("{} is written, but not durably: {error}", path.display());
                Failure::new(Kind::UnknownOutcome, message)
            })?;
        Ok(Some(path))
    }
}

fn not_written(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    Failure::failed(format!(
        "{path}: {error}; what stood there before stands there yet"
    ))
}

fn dir_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}
