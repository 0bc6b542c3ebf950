//! `quorate meta broker`.

use std::collections::BTreeMap;

use comfy_table::Cell;
use quorate_meta::{Broker, BrokerId, Endpoint, Incarnation, RegisterBroker, Registration};
use serde::Serialize;

use super::{Meta, pairs, time, uuid};
use crate::cli::BrokerCommand;
use crate::failure::Failure;
use crate::output::{Line, Output, Report, number, table};

pub(super) async fn run(
    command: BrokerCommand,
    client: impl FnOnce() -> Result<Meta, Failure>,
    output: Output,
) -> Result<(), Failure> {
    match command {
        BrokerCommand::Register {
            id,
            listeners,
            rack,
            labels,
            incarnation,
        } => {
            let register = registration(id, &listeners, rack, &labels, incarnation)?;
            let registered = client()?.register_broker(register).await?;
            let what = match registration_name(registered.registration) {
                "unchanged" => "was registered already".to_owned(),
                name => format!("{name}, its epoch is {}", registered.broker.epoch),
            };
            let line = format!("broker {id}: {what}");
            let row = BrokerRow::of(&registered.broker);
            output.show(&Line::new(
                RegisteredRow {
                    registration: registration_name(registered.registration),
                    broker: row,
                },
                line,
            ))
        }
        BrokerCommand::List => {
            let brokers = client()?.brokers().await?;
            output.show(&Brokers {
                brokers: brokers.iter().map(BrokerRow::of).collect(),
            })
        }
        BrokerCommand::Describe { id } => {
            let image = client()?.image().await?;
            let id = BrokerId::new(id);
            let broker = image.brokers.get(&id).ok_or_else(|| {
                Failure::not_found(format!("there is no broker {id}"))
                    .hint("quorate meta broker list shows the brokers")
            })?;
            let mut holds = Vec::new();
            for topic in image.topics.values() {
                for partition in image.partitions_of(topic.id).filter(|p| p.replicas.contains(&id)) {
                    holds.push(Holds {
                        topic: topic.name.to_string(),
                        partition: partition.index.number(),
                        leads: partition.leader == Some(id),
                        in_sync: partition.isr.contains(&id),
                        preferred: partition.replicas.first() == Some(&id),
                    });
                }
            }
            output.show(&Described {
                broker: BrokerRow::of(broker),
                partitions: holds,
            })
        }
    }
}

fn registration(
    id: u64,
    endpoints: &[String],
    rack: Option<String>,
    labels: &[String],
    incarnation: Option<String>,
) -> Result<RegisterBroker, Failure> {
    let incarnation = match incarnation {
        Some(text) => Incarnation::from_uuid(uuid("--incarnation", &text)?),
        None => Incarnation::random(),
    };
    let endpoints: Result<Vec<Endpoint>, Failure> = endpoints
        .iter()
        .map(|text| text.parse().map_err(refused))
        .collect();
    let mut endpoints = endpoints?.into_iter();
    let first = endpoints
        .next()
        .ok_or_else(|| Failure::refused("a broker has at least one endpoint"))?;
    let mut register = RegisterBroker::new(BrokerId::new(id), incarnation, first);
    register.endpoints.extend(endpoints);
    register.rack = rack;
    register.labels = pairs("--label", labels)?;
    Ok(register)
}

fn refused(error: impl std::fmt::Display) -> Failure {
    Failure::refused(error.to_string())
}

fn registration_name(registration: Registration) -> &'static str {
    match registration {
        Registration::New => "registered",
        Registration::Restarted => "restarted",
        Registration::Amended => "amended",
        Registration::Unchanged => "unchanged",
    }
}

#[derive(Debug, Serialize)]
struct RegisteredRow {
    registration: &'static str,
    #[serde(flatten)]
    broker: BrokerRow,
}

#[derive(Debug, Serialize)]
struct BrokerRow {
    id: u64,
    epoch: u64,
    incarnation: String,
    endpoints: Vec<String>,
    rack: Option<String>,
    labels: BTreeMap<String, String>,
    fenced: bool,
    shutting_down: bool,
    cordoned: bool,
    draining: bool,
    registered_at: String,
    modified_at: String,
    revision: u64,
}

impl BrokerRow {
    fn of(broker: &Broker) -> Self {
        Self {
            id: broker.id.number(),
            epoch: broker.epoch.revision().number(),
            incarnation: broker.incarnation.to_string(),
            endpoints: broker.endpoints.iter().map(ToString::to_string).collect(),
            rack: broker.rack.clone(),
            labels: broker.labels.clone(),
            fenced: broker.fenced,
            shutting_down: broker.shutting_down,
            cordoned: broker.cordoned,
            draining: broker.draining,
            registered_at: time(broker.registered_at),
            modified_at: time(broker.modified_at),
            revision: broker.revision.number(),
        }
    }

    fn flags(&self) -> String {
        let flags = [
            (self.fenced, "fenced"),
            (self.shutting_down, "shutting down"),
            (self.cordoned, "cordoned"),
            (self.draining, "draining"),
        ];
        let up: Vec<&str> = flags
            .into_iter()
            .filter_map(|(up, name)| up.then_some(name))
            .collect();
        if up.is_empty() {
            "active".to_owned()
        } else {
            up.join(", ")
        }
    }
}

#[derive(Debug, Serialize)]
struct Brokers {
    brokers: Vec<BrokerRow>,
}

impl Report for Brokers {
    fn text(&self) -> String {
        if self.brokers.is_empty() {
            return "no broker is registered".to_owned();
        }
        let mut table = table(["broker", "endpoints", "rack", "state", "epoch", "registered"]);
        for broker in &self.brokers {
            table.add_row(vec![
                number(broker.id),
                Cell::new(broker.endpoints.join("\n")),
                Cell::new(broker.rack.as_deref().unwrap_or("-")),
                Cell::new(broker.flags()),
                number(broker.epoch),
                Cell::new(&broker.registered_at),
            ]);
        }
        table.to_string()
    }
}

#[derive(Debug, Serialize)]
struct Described {
    #[serde(flatten)]
    broker: BrokerRow,
    partitions: Vec<Holds>,
}

#[derive(Debug, Serialize)]
struct Holds {
    topic: String,
    partition: u32,
    leads: bool,
    in_sync: bool,
    preferred: bool,
}

impl Report for Described {
    fn text(&self) -> String {
        let broker = &self.broker;
        let labels: Vec<String> = broker
            .labels
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let labels = if labels.is_empty() {
            "-".to_owned()
        } else {
            labels.join(", ")
        };
        let mut text = format!(
            "broker {}: {}\n  endpoints    {}\n  rack         {}\n  labels       {labels}\n  epoch        {}\n  \
             incarnation  {}\n  registered   {}\n  modified     {}",
            broker.id,
            broker.flags(),
            broker.endpoints.join(", "),
            broker.rack.as_deref().unwrap_or("-"),
            broker.epoch,
            broker.incarnation,
            broker.registered_at,
            broker.modified_at,
        );
        if self.partitions.is_empty() {
            text.push_str("\n  it holds no partition");
            return text;
        }
        let mut table = table(["topic", "partition", "leads", "in sync", "preferred leader"]);
        let yes = |yes: bool| Cell::new(if yes { "yes" } else { "" });
        for held in &self.partitions {
            let index = number(held.partition);
            table.add_row(vec![
                Cell::new(&held.topic),
                index,
                yes(held.leads),
                yes(held.in_sync),
                yes(held.preferred),
            ]);
        }
        format!("{text}\n{table}")
    }
}
