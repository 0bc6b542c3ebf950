//! `quorate meta`: brokers, topics and partitions.
//!
//! Always: what the library's client offers has a command, or a reason why not (`every_method_has_a_command`).

mod broker;
mod check;
mod partition;
#[cfg(test)]
mod tests;
mod topic;

use std::cell::OnceCell;
use std::collections::BTreeMap;

use quorate_kv::Client;
use quorate_meta::{
    Assignment, BrokerId, Error, InvalidEndpoint, InvalidTopicName, Keys, MetaClient, ReadError, TopicName,
};

use crate::cli::{Freshness, MetaArgs, MetaCommand};
use crate::failure::{Failure, Kind};
use crate::kv::consistency;
use crate::output::Output;
use crate::reach::{self, Reached, limits};

/// A client of the metadata.
type Meta = MetaClient<Client>;

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

/// A client that reads as fresh as is asked for.
fn reading(client: Meta, freshness: &Freshness) -> Meta {
    client.reading(consistency(freshness))
}

fn topic_name(name: &str) -> Result<TopicName, Failure> {
    TopicName::new(name).map_err(|error| Failure::refused(format!("topic {name:?}: {error}")))
}

fn no_such_topic(name: &TopicName) -> Failure {
    Failure::not_found(format!("there is no topic {name}")).hint("quorate meta topic list shows the topics")
}

fn uuid(flag: &str, text: &str) -> Result<uuid::Uuid, Failure> {
    text.parse()
        .map_err(|_| Failure::refused(format!("{flag}: {text:?} is no UUID")))
}

/// `NAME=VALUE` pairs, each name once.
fn pairs(flag: &str, given: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut pairs = BTreeMap::new();
    for text in given {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => (name, value),
            _ => {
                return Err(Failure::refused(format!(
                    "{flag}: {text:?} is not of the form NAME=VALUE"
                )));
            }
        };
        if let Some(other) = pairs.insert(name.to_owned(), value.to_owned()) {
            return Err(Failure::refused(format!(
                "{flag}: {name:?} is given twice, as {other:?} and as {value:?}"
            )));
        }
    }
    Ok(pairs)
}

/// `1,2,3;2,3,1`: the replicas of one partition after the other.
fn assignments(text: &str) -> Result<Vec<Assignment>, Failure> {
    let broker = |id: &str| {
        id.trim().parse::<BrokerId>().map_err(|_| {
            Failure::refused(format!(
                "--assignment: {:?} is no broker's id; expected such as 1,2,3;2,3,1",
                id.trim()
            ))
        })
    };
    let partition = |replicas: &str| {
        let replicas: Result<Vec<_>, _> = replicas.split(',').map(broker).collect();
        Ok(Assignment::new(replicas?))
    };
    text.split(';').map(partition).collect()
}

/// Brokers' ids on one line.
fn ids(brokers: &[BrokerId]) -> String {
    match brokers {
        [] => "-".to_owned(),
        brokers => brokers
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// A time that a row carries, for people.
fn time(time: quorate_kv::model::LogTime) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(time.millis());
    humantime::format_rfc3339_millis(time).to_string()
}

impl From<InvalidTopicName> for Failure {
    fn from(error: InvalidTopicName) -> Self {
        Failure::refused(error.to_string())
    }
}

impl From<InvalidEndpoint> for Failure {
    fn from(error: InvalidEndpoint) -> Self {
        Failure::refused(error.to_string())
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        let kind = if error.is_retryable() {
            Kind::Unavailable
        } else {
            Kind::Failed
        };
        Failure::new(kind, error.to_string())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        // A refusal says no for a reason that the caller can read, also where the same may be accepted later.
        let kind = match &error {
            Error::Refused(_) | Error::Name(_) | Error::Endpoint(_) | Error::TooLarge(_) => Kind::Refused,
            Error::Corrupt(_) => Kind::Failed,
            other if other.may_have_committed() => Kind::UnknownOutcome,
            other if other.is_retryable() => Kind::Unavailable,
            _ => Kind::Refused,
        };
        let failure = match error.refusals() {
            refusals @ [_, _, ..] => Failure::new(kind, "refused, nothing was changed")
                .details(refusals.iter().map(ToString::to_string)),
            _ => Failure::new(kind, error.to_string()),
        };
        match error {
            Error::TooLarge(_) => failure.hint(
                "create fewer partitions, and let the topic grow: quorate meta partition create TOPIC --total N",
            ),
            Error::Corrupt(_) => failure.hint("quorate meta check names every key that is no row"),
            Error::Conflict(_) => failure.hint("ask again"),
            _ => failure,
        }
    }
}
