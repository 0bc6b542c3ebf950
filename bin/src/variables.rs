//! The variables of the environment that are read, and those that only look so.
//!
//! Always: a variable that begins with `QUORATE_` is one that counts, or the command is refused. A misspelt
//! `QUORATE_PEERS` would else start a cluster of one.

use std::collections::BTreeSet;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory as _};

use crate::cli::{Cli, Command};
use crate::failure::Failure;
use crate::output::Format;
use crate::text::distance;

/// What all of them begin with.
const PREFIX: &str = "QUORATE_";

/// Read elsewhere than by a flag: where nodes leave their notes.
const RUN_DIR: &str = "QUORATE_RUN_DIR";

impl Command {
    /// Whether a variable that is not understood could change what it does.
    pub(crate) fn is_configured_by_variables(&self) -> bool {
        match self {
            Command::Serve(_)
            | Command::Status(_)
            | Command::Kv(_)
            | Command::Meta(_)
            | Command::Member(_)
            | Command::Config(_)
            | Command::Shrink(_)
            | Command::Bench(_) => true,
            Command::Certs(_) | Command::Check(_) | Command::Demo(_) | Command::Completions { .. } => false,
        }
    }
}

/// The flags of a command whose value came from a variable: their ids.
pub(crate) fn given_to(matches: &ArgMatches, command: &str) -> BTreeSet<String> {
    let Some(matches) = matches.subcommand_matches(command) else {
        return BTreeSet::new();
    };
    let variables = matches
        .ids()
        .filter(|id| matches.value_source(id.as_str()) == Some(ValueSource::EnvVariable));
    variables.map(|id| id.to_string()).collect()
}

/// Whether a flag of a command has a value that was given, by an argument or a variable, and is not its default.
pub(crate) fn is_given(matches: &ArgMatches, command: &str, id: &str) -> bool {
    let source = matches
        .subcommand_matches(command)
        .and_then(|matches| matches.value_source(id));
    matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
}

/// The form in which results are shown. A flag beats a variable; two that contradict each other are refused.
pub(crate) fn format(cli: &Cli, matches: &ArgMatches) -> Result<Format, Failure> {
    for source in [ValueSource::CommandLine, ValueSource::EnvVariable] {
        let is_from = |id: &str| matches.value_source(id) == Some(source);
        let json = cli.json && is_from("json");
        let format = cli.format.filter(|_| is_from("format"));
        match (json, format) {
            (true, Some(other)) if other != Format::Json => {
                let other = other.name();
                return Err(Failure::refused(match source {
                    ValueSource::EnvVariable => {
                        format!("QUORATE_JSON says json, and QUORATE_FORMAT says {other}")
                    }
                    _ => format!("--json is --format json, and --format {other} is given too"),
                }));
            }
            (true, _) => return Ok(Format::Json),
            (false, Some(format)) => return Ok(format),
            (false, None) => {}
        }
    }
    Ok(Format::default())
}

/// Refuses variables that nobody reads.
pub(crate) fn refuse_unknown() -> Result<(), Failure> {
    let set = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let set = set.map(|(name, value)| (name, value.to_string_lossy().into_owned()));
    let unknown = unknown(set, &known());
    if unknown.is_empty() {
        return Ok(());
    }
    let message = match unknown.len() {
        1 => "a variable of the environment is not known".to_owned(),
        many => format!("{many} variables of the environment are not known"),
    };
    Err(Failure::refused(message)
        .details(unknown)
        .hint("unset what is not meant for this program; docs/configuration.md lists the variables that are"))
}

/// Refuses variables that are set and have nothing in them, whichever command reads them: `QUORATE_ENDPOINTS=` in a script
/// is a value that was forgotten, and must not send a command elsewhere.
pub(crate) fn refuse_empty() -> Result<(), Failure> {
    let is_empty = |name: &String| std::env::var_os(name).is_some_and(|value| value.is_empty());
    let empty: Vec<String> = known().into_iter().filter(is_empty).collect();
    let message = match empty.as_slice() {
        [] => return Ok(()),
        [_] => "a variable of the environment is empty".to_owned(),
        many => format!("{} variables of the environment are empty", many.len()),
    };
    let details = empty.into_iter().map(|name| format!("{name}: it is empty"));
    Err(Failure::refused(message)
        .details(details)
        .hint("give it a value, or unset it"))
}

/// What is wrong with each variable that nobody reads.
fn unknown(set: impl Iterator<Item = (String, String)>, known: &BTreeSet<String>) -> Vec<String> {
    let mut unknown: Vec<String> = set
        .filter(|(name, _)| name.starts_with(PREFIX) && !known.contains(name))
        .filter(|(name, value)| !is_of_an_orchestrator(name, value))
        .map(|(name, _)| {
            let near = known.iter().map(|other| (distance(&name, other), other)).min();
            match near.filter(|(distance, _)| *distance <= 2) {
                Some((_, near)) => format!("{name}: there is no such variable; did you mean {near}?"),
                None => format!("{name}: there is no such variable"),
            }
        })
        .collect();
    unknown.sort();
    unknown
}

/// Every variable that is read.
fn known() -> BTreeSet<String> {
    fn collect(command: &clap::Command, known: &mut BTreeSet<String>) {
        let variables = command.get_arguments().filter_map(clap::Arg::get_env);
        known.extend(variables.map(|name| name.to_string_lossy().into_owned()));
        command
            .get_subcommands()
            .for_each(|command| collect(command, known));
    }
    let mut known = BTreeSet::from([RUN_DIR.to_owned()]);
    collect(&Cli::command(), &mut known);
    known
}

/// Kubernetes and Docker tell each container where the service `quorate` is, by variables that it did not ask for:
/// `QUORATE_SERVICE_HOST`, `QUORATE_PORT_7001_UDP_ADDR` and their like, with more of the service's name before the end.
fn is_of_an_orchestrator(name: &str, value: &str) -> bool {
    let parts: Vec<&str> = name.split('_').collect();
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let protocol = |part: &str| ["TCP", "UDP", "SCTP"].contains(&part);
    match parts.as_slice() {
        [.., "SERVICE", "HOST" | "PORT"] => true,
        [.., "PORT", port, kind] if number(port) && protocol(kind) => true,
        [.., "PORT", port, kind, "PROTO" | "PORT" | "ADDR"] if number(port) && protocol(kind) => true,
        // A person would write a number here, and be told that it counts for nothing.
        [.., "PORT"] => value.contains("://"),
        parts => parts.windows(2).any(|pair| pair == ["SERVICE", "PORT"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(set: &[&str]) -> Vec<String> {
        let set = set.iter().map(|set| set.split_once('=').unwrap_or((set, "")));
        unknown(
            set.map(|(name, value)| (name.to_owned(), value.to_owned())),
            &known(),
        )
    }

    #[test]
    fn a_default_is_not_taken_for_what_was_given() {
        let given = |line: &str| {
            let matches = Cli::command().try_get_matches_from(line.split(' ')).unwrap();
            is_given(&matches, "shrink", "deadline")
        };
        assert!(given("quorate shrink --deadline 15s"));
        assert!(!given("quorate shrink"));
    }

    #[test]
    fn the_form_of_results_is_said_once() {
        let format = |line: &str| {
            let matches = Cli::command().try_get_matches_from(line.split(' ')).unwrap();
            let cli = <Cli as clap::FromArgMatches>::from_arg_matches(&matches).unwrap();
            super::format(&cli, &matches).map_err(|failure| failure.to_string())
        };
        for (line, expected) in [
            ("quorate status", Format::Table),
            ("quorate --json status", Format::Json),
            ("quorate status --json", Format::Json),
            ("quorate --format raw kv get a", Format::Raw),
            ("quorate kv get a --format=json --json", Format::Json),
            ("quorate kv get a --format table", Format::Table),
        ] {
            assert_eq!(format(line), Ok(expected), "{line}");
        }
        assert_eq!(
            format("quorate --json kv get a --format raw"),
            Err("--json is --format json, and --format raw is given too".to_owned())
        );
    }

    #[test]
    fn a_misspelt_variable_is_told_with_the_one_that_was_meant() {
        assert_eq!(
            found(&[
                "QUORATE_PEER=1=a:1",
                "PATH=/",
                "QUORATE_NODE_ID=1",
                "QUORATE_RUN_DIR=/",
                "QUORATE_PORT=7001"
            ]),
            [
                "QUORATE_PEER: there is no such variable; did you mean QUORATE_PEERS?",
                "QUORATE_PORT: there is no such variable"
            ]
        );
    }

    #[test]
    fn what_an_orchestrator_says_of_a_service_is_passed_over() {
        assert_eq!(
            found(&[
                "QUORATE_SERVICE_HOST",
                "QUORATE_SERVICE_PORT",
                "QUORATE_SERVICE_PORT_QUIC",
                "QUORATE_PORT=udp://10.0.0.1:7001",
                "QUORATE_PORT_7001_UDP",
                "QUORATE_PORT_7001_UDP_PROTO",
                "QUORATE_PORT_7001_UDP_PORT",
                "QUORATE_PORT_7001_UDP_ADDR",
                "QUORATE_BLUE_SERVICE_HOST",
                "QUORATE_BLUE_PORT_9464_TCP_ADDR",
            ]),
            [""; 0]
        );
        assert!(known().iter().all(|name| !is_of_an_orchestrator(name, "a://b")));
    }
}
