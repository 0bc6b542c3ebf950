//! `quorate meta`: brokers, topics and partitions.
//!
//! Always: what the library's client offers has a command, or a reason why not (`every_method_has_a_command`).

mod arguments;
mod broker;
mod check;
mod failures;
mod partition;
#[cfg(test)]
mod tests;
mod topic;

use std::cell::OnceCell;

use quorate_meta::{Keys, MetaClient};

use crate::cli::{MetaArgs, MetaCommand};
use crate::failure::Failure;
use crate::output::Output;
use crate::reach::{self, Reached, limits};

/// Runs the command.
pub async fn run(args: MetaArgs, output: Output) -> Result<(), Failure> {
    // What is wrong with the request itself is told before a client is made.
    let prefix = args.meta_prefix.clone();
    let invalid = |error| Failure::refused(format!("--meta-prefix {prefix:?}: {error}"));
    Keys::under(&prefix).map_err(invalid)?;
    let made = OnceCell::new();
    let client = || {
        let client = made
            .get_or_init(|| Reached::find(&args.reach)?.client())
            .clone()?;
        let meta = MetaClient::new(client).with_limits(limits());
        meta.under(&prefix).map_err(invalid)
    };
    let answered = match args.command {
        MetaCommand::Broker(command) => broker::run(command, client, output).await,
        MetaCommand::Topic(command) => topic::run(command, client, output).await,
        MetaCommand::Partition(command) => partition::run(command, client, output).await,
        MetaCommand::Check { freshness } => check::run(&freshness, client, output).await,
    };
    if let Some(Ok(client)) = made.into_inner() {
        reach::close(client).await;
    }
    answered
}
