//! Structured logs on standard error.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
            false => format!("openraft=warn,quinn=warn,quinn_proto=warn,{filter}"),
        };
        let filter = EnvFilter::builder()
            .parse(quieter)
            .map_err(|error| error.to_string())?;
        Ok(Self { filter, format })
    }

    /// Logs from now on, for the rest of the process.
    pub fn install(self) {
        let builder = tracing_subscriber::fmt()
            .with_env_filter(self.filter)
            .with_writer(std::io::stderr)
            .with_timer(SystemTime);
        // Installing twice (two commands in one test process) leaves the first in place.
        let _ = match self.format {
            Format::Text => builder
                .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
                .try_init(),
            Format::Json => builder.json().flatten_event(true).try_init(),
        };
    }
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
}
