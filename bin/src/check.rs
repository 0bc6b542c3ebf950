//! `quorate check`: the files of a node that does not run, verified whole. What is verified, and how, is `quorate_kv::check`'s.

use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use quorate_kv::check::{CheckError, Expected, LogReport, Report, StateReport, check};

use crate::cli::CheckArgs;
use crate::failure::{Failure, Kind};
use crate::output::{self, Output, table};
use crate::text::{size, thousands};

/// Runs the command.
pub fn run(args: &CheckArgs, output: Output) -> Result<(), Failure> {
    let report = examine(&args.dir)?;
    // Whole files of another node are no damage: a name or an id was mistyped, and nobody is to throw that node away.
    let another = another(args, &report);
    match another {
        Some(another) if report.whole => return Err(Failure::refused(another)),
        _ => output.show(&report)?,
    }
    if report.whole {
        return Ok(());
    }
    let many = report.damages.len() as u64 + report.further_damages;
    let what = match many {
        1 => "one thing is wrong".to_owned(),
        many => format!("{} things are wrong", thousands(many)),
    };
    Err(
        Failure::new(Kind::Damaged, format!("{what} with the files in {}", report.dir.display())).details(another).hint(
            "nothing was changed; leave the files as they are, look at the disk, and replace the node by an empty one under a \
             new id: docs/operations.md",
        ),
    )
}

/// Verifies the files. A panic over damaged ones is caught where it is told as damage, and standard error is left alone by it.
fn examine(dir: &Path) -> Result<Report, Failure> {
    let last = Arc::new(Mutex::new(None));
    let told = Arc::clone(&last);
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |panicked| {
        *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(panicked.to_string());
    }));
    let examined = panic::catch_unwind(AssertUnwindSafe(|| check(dir, Expected::default())));
    panic::set_hook(before);
    match examined {
        Ok(report) => report.map_err(failure),
        // Nobody below has told of this one.
        Err(_) => {
            let last = last.lock().unwrap_or_else(PoisonError::into_inner).take();
            Err(Failure::failed(last.unwrap_or_else(|| "a panic".to_owned())))
        }
    }
}

/// Whose the directory is, where it is not that of the node that was asked for.
fn another(args: &CheckArgs, report: &Report) -> Option<String> {
    let found = report.identity.as_ref()?;
    let cluster = args.cluster.as_ref().filter(|cluster| **cluster != found.cluster);
    let node = args.node_id.filter(|node| *node != found.node.number());
    let said = [
        cluster.map(|cluster| format!("--cluster says {cluster}")),
        node.map(|node| format!("--node-id says {node}")),
    ];
    let said: Vec<String> = said.into_iter().flatten().collect();
    (!said.is_empty()).then(|| {
        format!(
            "this directory is of node {} of cluster {}; {}",
            found.node,
            found.cluster,
            said.join(", ")
        )
    })
}

fn failure(error: CheckError) -> Failure {
    let message = error.to_string();
    match error {
        CheckError::NoNode { .. } => Failure::not_found(message),
        error if error.is_retryable() => Failure::unavailable(message),
        _ => Failure::failed(message),
    }
}

impl output::Report for Report {
    fn text(&self) -> String {
        let mut parts = table(["part", "what it holds"]);
        let unreadable = || "cannot be read".to_owned();
        let identity = self.identity.as_ref().map_or_else(unreadable, |identity| {
            format!(
                "node {} of cluster {}, directory {}",
                identity.node, identity.cluster, identity.uuid
            )
        });
        parts.add_row(["identity".to_owned(), identity]);
        parts.add_row(["log".to_owned(), log_text(&self.log)]);
        parts.add_row(["state".to_owned(), state_text(&self.state)]);
        let mut text = parts.to_string();
        if !self.damages.is_empty() {
            let mut damages = table(["part", "file", "byte", "key", "what is wrong"]);
            for damage in &self.damages {
                let within = damage.file.strip_prefix(&self.dir).unwrap_or(&damage.file);
                damages.add_row([
                    damage.part.to_string(),
                    within.display().to_string(),
                    damage.offset.map(|at| at.to_string()).unwrap_or_default(),
                    damage.key.clone().unwrap_or_default(),
                    damage.detail.clone(),
                ]);
            }
            text.push('\n');
            text.push_str(&damages.to_string());
            if self.further_damages > 0 {
                text.push_str(&format!("\nand {} more", thousands(self.further_damages)));
            }
        }
        for note in &self.notes {
            text.push_str(&format!("\nnote: {note}"));
        }
        if self.whole {
            text.push_str(&format!("\nthe files in {} are whole", self.dir.display()));
        }
        text
    }

    fn list(&self) -> Option<&'static str> {
        Some("damages")
    }
}

fn log_text(log: &LogReport) -> String {
    let files = format!("{} files, {}", thousands(log.files), size(log.bytes));
    let Some(entries) = log.entries else {
        return files;
    };
    let last = log.last.map_or("none".to_owned(), |last| last.to_string());
    let vote = log.vote.as_ref().map_or("no vote".to_owned(), |vote| {
        format!("vote: node {} in term {}", vote.node, vote.term)
    });
    format!(
        "{files}; {} entries, the last is {last}; {vote}",
        thousands(entries)
    )
}

fn state_text(state: &StateReport) -> String {
    let file = format!("{}, {} pages in use", size(state.bytes), thousands(state.pages));
    let Some(rows) = &state.rows else {
        return file;
    };
    let applied = rows.applied.map_or("nothing".to_owned(), |at| at.to_string());
    format!(
        "{file}; {} keys, {} versions, {} sessions; revision {}, applied up to {applied}, hash {:032x}",
        thousands(rows.keys),
        thousands(rows.versions),
        thousands(rows.sessions),
        rows.revision,
        rows.state_hash.0
    )
}
