//! What the commands of the metadata share: their client, how arguments are read, how rows are shown.

use std::collections::BTreeMap;

use quorate_kv::Client;
use quorate_meta::{Assignment, BrokerId, MetaClient, TopicName};

use crate::cli::Freshness;
use crate::failure::Failure;
use crate::kv::consistency;

/// A client of the metadata.
pub(super) type Meta = MetaClient<Client>;

/// A client that reads as fresh as is asked for.
pub(super) fn reading(client: Meta, freshness: &Freshness) -> Meta {
    client.reading(consistency(freshness))
}

pub(super) fn topic_name(name: &str) -> Result<TopicName, Failure> {
    TopicName::new(name).map_err(|error| Failure::refused(format!("topic {name:?}: {error}")))
}

pub(super) fn no_such_topic(name: &TopicName) -> Failure {
    Failure::not_found(format!("there is no topic {name}")).hint("quorate meta topic list shows the topics")
}

pub(super) fn uuid(flag: &str, text: &str) -> Result<uuid::Uuid, Failure> {
    text.parse()
        .map_err(|_| Failure::refused(format!("{flag}: {text:?} is no UUID")))
}

/// `NAME=VALUE` pairs, each name once.
pub(super) fn pairs(flag: &str, given: &[String]) -> Result<BTreeMap<String, String>, Failure> {
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
pub(super) fn assignments(text: &str) -> Result<Vec<Assignment>, Failure> {
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
pub(super) fn ids(brokers: &[BrokerId]) -> String {
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
pub(super) fn time(time: quorate_kv::model::LogTime) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(time.millis());
    humantime::format_rfc3339_millis(time).to_string()
}
