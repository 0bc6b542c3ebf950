//! Arguments that are no command: told as every other failure where that is asked for.

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, ValueEnum as _};

use crate::cli::Cli;
use crate::failure::{Failure, Kind};
use crate::output::{Format, Output};

/// Shows what is wrong with the arguments, or the help that was asked for, and says how the process ends.
pub fn end(error: clap::Error) -> ExitCode {
    let error = with_whole_usage(error, std::env::args_os().skip(1));
    let help = error.exit_code() == 0;
    if help || format() != Format::Json {
        // A reader that is gone has seen enough.
        let _ = error.print();
        return if help {
            ExitCode::SUCCESS
        } else {
            Kind::Refused.exit_code()
        };
    }
    Output::new(Format::Json).fail(&failure(&error));
    Kind::Refused.exit_code()
}

/// Whether a value is refused that has nothing in it, which a variable may have given.
pub fn is_of_empty_value(error: &clap::Error) -> bool {
    match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(value)) => value.is_empty(),
        _ => false,
    }
}

/// The usage of the command that was meant. clap tells the flags that were given, or that a variable gives, as if the
/// command needed them.
fn with_whole_usage(
    mut error: clap::Error,
    arguments: impl Iterator<Item = std::ffi::OsString>,
) -> clap::Error {
    if error.get(ContextKind::Usage).is_none() {
        return error;
    }
    let mut cli = Cli::command();
    cli.build();
    let mut command = cli;
    for argument in arguments.filter_map(|argument| argument.into_string().ok()) {
        if let Some(meant) = command.find_subcommand(&argument).cloned() {
            command = meant;
        }
    }
    let usage = command.render_usage();
    error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
    error
}

/// The form that is asked for by arguments that are not understood, so that they are looked through for those that count here.
pub fn format() -> Format {
    // One that is not UTF-8 is none of these.
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .take_while(|argument| argument != "--")
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let named = |name: &str| {
        let format = Format::value_variants().iter();
        format.copied().find(|format| format.name() == name)
    };
    let by_flag = arguments.iter().enumerate().find_map(|(place, argument)| {
        match argument.strip_prefix("--format")? {
            "" => named(arguments.get(place + 1)?),
            value => named(value.strip_prefix('=')?),
        }
    });
    let by_variable = || {
        let is_set = |value: String| ["1", "true", "yes", "on"].contains(&value.as_str());
        match std::env::var("QUORATE_JSON").is_ok_and(is_set) {
            true => Some(Format::Json),
            false => named(&std::env::var("QUORATE_FORMAT").ok()?),
        }
    };
    match arguments.iter().any(|argument| argument == "--json") {
        true => Format::Json,
        false => by_flag.or_else(by_variable).unwrap_or_default(),
    }
}

fn failure(error: &clap::Error) -> Failure {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Failure::refused("a command is missing").hint("--help lists them");
    }
    let text = error.to_string();
    let mut paragraphs = text.split("\n\n").map(one_line);
    let message = paragraphs.next().unwrap_or_default();
    let message = message.strip_prefix("error: ").unwrap_or(&message).to_owned();
    let hints: Vec<String> = paragraphs
        .filter(|paragraph| !paragraph.is_empty() && !paragraph.starts_with("For more information"))
        .map(|paragraph| {
            paragraph
                .strip_prefix("tip: ")
                .map_or(paragraph.clone(), str::to_owned)
        })
        .collect();
    let failure = Failure::refused(message);
    match hints.is_empty() {
        true => failure,
        false => failure.hint(hints.join("; ")),
    }
}

fn one_line(paragraph: &str) -> String {
    paragraph.split_whitespace().collect::<Vec<_>>().join(" ")
}
