//! The server and the command line. Wires what the crates below offer and decides nothing for the store.
//!
//! A module for each command: [`serve`], [`status`], [`kv`], [`meta`], [`member`], [`certs`], [`check`],
//! [`demo`], [`mod@bench`].
//! They share how arguments and variables are read ([`cli`]), how a cluster is found ([`reach`], [`run_file`]), how results are shown ([`output`], [`raw`], [`text`]) and
//! how a run ends ([`failure`]).
//!
//! Always: what was asked for goes to standard output, everything else to standard error; the exit code says
//! what became of the request, as `quorate help` lists; nothing here prints by a macro that panics where it cannot.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod cli;
pub mod failure;
pub mod output;
pub mod raw;
mod runtime;
pub mod text;
mod usage;
mod variables;

pub mod reach;
pub mod run_file;

pub mod logging;
pub mod metrics;
pub mod serve;

pub mod bench;
pub mod certs;
pub mod check;
pub mod config;
pub mod demo;
pub mod kv;
pub mod member;
pub mod meta;
pub mod shrink;
pub mod status;

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

use cli::{Cli, Command};
use failure::Failure;
use output::Output;
use runtime::runtime;

/// Reads the arguments, runs the command, and says how it ended.
pub fn main() -> ExitCode {
    let (cli, matches) = match parsed() {
        Ok(parsed) => parsed,
        Err(error) => {
            if usage::is_of_empty_value(&error)
                && let Err(failure) = variables::refuse_empty()
            {
                Output::new(usage::format()).fail(&failure);
                return failure.kind().exit_code();
            }
            return usage::end(error);
        }
    };
    let mut output = Output::new(usage::format());
    let ran = variables::format(&cli, &matches).and_then(|format| {
        output = Output::new(format);
        run(cli.command, &matches, &mut output)
    });
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.fail(&failure);
            failure.kind().exit_code()
        }
    }
}

fn parsed() -> Result<(Cli, clap::ArgMatches), clap::Error> {
    let matches = Cli::command().try_get_matches()?;
    Ok((Cli::from_arg_matches(&matches)?, matches))
}

/// `failures` leaves as failures are to be shown, which the configuration of a node may say.
fn run(command: Command, matches: &clap::ArgMatches, failures: &mut Output) -> Result<(), Failure> {
    let output = *failures;
    if command.is_configured_by_variables() {
        variables::refuse_unknown()?;
        variables::refuse_empty()?;
    }
    // A command that asks a cluster needs one thread; what runs nodes or load chooses for itself.
    let ask = || runtime(Some(1));
    match command {
        Command::Serve(args) => {
            let variables = variables::given_to(matches, "serve");
            serve::run(&args, &variables, failures)
        }
        Command::Status(args) => ask()?.block_on(status::run(args, output)),
        Command::Kv(args) => ask()?.block_on(kv::run(args, output)),
        Command::Meta(args) => ask()?.block_on(meta::run(args, output)),
        Command::Member(args) => ask()?.block_on(member::run(args, output)),
        Command::Config(args) => ask()?.block_on(config::run(args, output)),
        Command::Shrink(args) => {
            let deadline = variables::is_given(matches, "shrink", "deadline").then_some(args.deadline);
            ask()?.block_on(shrink::run(args, deadline, output))
        }
        Command::Certs(args) => certs::run(args, output),
        Command::Check(args) => check::run(&args, output),
        Command::Demo(args) => runtime(None)?.block_on(demo::run(args, output)),
        Command::Bench(args) => {
            let variables = variables::given_to(matches, "bench");
            bench::run(args, &variables, output)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "quorate", &mut script);
            output.raw(&script)
        }
    }
}
