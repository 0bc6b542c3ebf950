//! Structured logs on standard error.
//!
//! Always: logging ends nothing and holds nothing up. A log that is slow, broken, full or unread costs lines of the log,
//! which are counted.

mod lines;

use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::json;
use tracing_subscriber::EnvFilter;

pub use lines::LOST;

/// How long the end of the process waits for lines that were not written yet.
const PATIENCE: Duration = Duration::from_secs(1);

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged, and how.
#[derive(Debug)]
pub struct Logging {
    filter: EnvFilter,
    format: Format,
}

/// Dropped at the end of the process, it lets the last lines arrive, for a second at most.
#[derive(Debug)]
#[must_use = "dropped at once, nothing is logged"]
pub struct Guard(#[expect(dead_code, reason = "what is dropped")] lines::Writing);

impl Logging {
    /// By a filter such as `info` or `info,quorate_kv=debug`; the reason where it is none.
    pub fn new(filter: &str, format: Format) -> Result<Self, String> {
        // A misspelt level would pass for the name of a module, and silence everything.
        for directive in filter.split(',').map(str::trim).filter(|d| !d.contains('=')) {
            if directive.parse::<tracing::Level>().is_err() && directive != "off" {
                return Err(format!("{directive:?} is no level"));
            }
        }
        // openraft tells at `info` what belongs to `debug` in a program's log; whoever names it gets it. The filter
        // may only become quieter by this.
        let quiet = ["error", "off"].contains(&filter);
        let quieter = match quiet || filter.contains("openraft") {
            true => filter.to_owned(),
            false => format!("openraft=error,openraft::raft::api=off,quinn=warn,quinn_proto=warn,{filter}"),
        };
        let filter = EnvFilter::builder()
            .parse(quieter)
            .map_err(|error| error.to_string())?;
        Ok(Self { filter, format })
    }

    /// How a line looks.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Logs from now on, until the guard is dropped. Panics are lines of the log too, with their backtrace where
    /// `RUST_BACKTRACE` asks for one: printed as usual, they would wait for a log that nobody reads.
    pub fn install(self) -> io::Result<Guard> {
        let stderr = io::stderr();
        // A descriptor of its own: a thread that is stuck in a write must not hold the lock of the standard one.
        let log = std::fs::File::from(stderr.as_fd().try_clone_to_owned()?);
        let format = self.format;
        let (lines, writing) = lines::write_to(log, move |lost| notice(format, lost), PATIENCE)?;
        let builder = tracing_subscriber::fmt()
            .with_env_filter(self.filter)
            .with_writer(lines)
            // It would print what it cannot write, and panic where it cannot print.
            .log_internal_errors(false);
        // Installing twice (two commands in one test process) leaves the first in place.
        let _ = match format {
            Format::Text => builder.with_ansi(io::IsTerminal::is_terminal(&stderr)).try_init(),
            Format::Json => builder.json().flatten_event(true).try_init(),
        };
        std::panic::set_hook(Box::new(log_panic));
        Ok(Guard(writing))
    }
}

fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let message = panic.payload_as_str().unwrap_or("no message");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let backtrace = std::backtrace::Backtrace::capture();
    match backtrace.status() {
        std::backtrace::BacktraceStatus::Captured => {
            tracing::error!(thread, place, %backtrace, "panicked: {message}");
        }
        _ => tracing::error!(thread, place, "panicked: {message}"),
    }
}

/// What the log says once it works again.
fn notice(format: Format, lines: u64) -> Vec<u8> {
    const MESSAGE: &str = "lines of the log were lost: it was not read in time, or could not be written";
    let time = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
    let target = module_path!();
    let line = match format {
        Format::Text => format!("{time}  WARN {target}: {MESSAGE} lines={lines}"),
        Format::Json => {
            json!({"timestamp": time, "level": "WARN", "message": MESSAGE, "lines": lines, "target": target})
                .to_string()
        }
    };
    format!("{line}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_or_a_filter_is_taken_and_a_misspelt_one_is_not() {
        for good in ["info", "off", "info,quorate_kv=debug", "quorate_kv::log=trace"] {
            assert!(Logging::new(good, Format::Text).is_ok(), "{good}");
        }
        for bad in ["inof", "info,verbose", "quorate_kv=loud", ""] {
            assert!(Logging::new(bad, Format::Text).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_was_lost_is_one_line_in_the_form_of_the_others() {
        let text = String::from_utf8(notice(Format::Text, 7)).unwrap();
        assert!(
            text.contains("WARN quorate::logging: lines of the log were lost")
                && text.ends_with(" lines=7\n")
        );
        let line: serde_json::Value = serde_json::from_slice(&notice(Format::Json, 7)).unwrap();
        assert_eq!((&line["level"], &line["lines"]), (&"WARN".into(), &7.into()));
    }
}
