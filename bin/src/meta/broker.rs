//! `quorate meta broker`.

use std::collections::BTreeMap;

use comfy_table::Cell;
use quorate_kv::model::Revision;
use quorate_meta::{
    Broker, BrokerEpoch, BrokerId, ChangedBroker, Error, Incarnation, Reason, RegisterBroker, Registration,
    Replicas, Target,
};
use serde::Serialize;

use super::arguments::{Meta, pairs, reading, time, uuid};
use crate::cli::{BrokerArgs, BrokerCommand};
use crate::failure::Failure;
use crate::output::{Line, Output, Report, number, table};
use crate::text::parse_size;

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
            replicas_max,
            disk_bytes,
            incarnation,
            fenced,
            takeover,
        } => {
            let mut register = registration(id, &listeners, incarnation)?;
            register.rack = rack;
            register.labels = pairs("--label", &labels)?;
            register.capacity.replicas_max = replicas_max;
            register.capacity.disk_bytes = disk_bytes.as_deref().map(bytes).transpose()?;
            register.fenced = fenced;
            if takeover {
                register = register.takeover();
            }
            let registered = client()?.register_broker(register).await.map_err(refused)?;
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
        BrokerCommand::List { freshness } => {
            let brokers = reading(client()?, &freshness).brokers().await?;
            output.show(&Brokers {
                brokers: brokers.iter().map(BrokerRow::of).collect(),
            })
        }
        BrokerCommand::Describe { id, freshness } => {
            describe(&reading(client()?, &freshness), BrokerId::new(id), output).await
        }
        BrokerCommand::Fence(args) => {
            let changed = client()?.fence_broker(target(&args)).await.map_err(refused)?;
            let left = match changed.partitions_changed {
                0 => String::new(),
                1 => "; one partition left it".to_owned(),
                many => format!("; {many} partitions left it"),
            };
            flagged(&changed, &format!("fenced{left}"), "fenced", output)
        }
        BrokerCommand::Unfence(args) => {
            let changed = client()?.unfence_broker(target(&args)).await.map_err(refused)?;
            let led = match changed.partitions_changed {
                0 => String::new(),
                1 => "; one partition that nobody led is led again".to_owned(),
                many => format!("; {many} partitions that nobody led are led again"),
            };
            flagged(&changed, &format!("unfenced{led}"), "not fenced", output)
        }
        BrokerCommand::Cordon(args) => {
            let changed = client()?
                .cordon_broker(target(&args), true)
                .await
                .map_err(refused)?;
            flagged(&changed, "cordoned: it gets no new replicas", "cordoned", output)
        }
        BrokerCommand::Uncordon(args) => {
            let changed = client()?
                .cordon_broker(target(&args), false)
                .await
                .map_err(refused)?;
            flagged(
                &changed,
                "uncordoned: it may get new replicas",
                "not cordoned",
                output,
            )
        }
        BrokerCommand::Unregister { broker, dangling } => {
            let replicas = match dangling {
                true => Replicas::MayDangle,
                false => Replicas::MustBeGone,
            };
            let removed = client()?
                .unregister_broker(target(&broker), replicas)
                .await
                .map_err(refused)?;
            let line = format!("broker {} is unregistered", removed.id);
            output.show(&Line::new(BrokerRow::of(&removed), line))
        }
    }
}

fn target(args: &BrokerArgs) -> Target {
    Target {
        id: BrokerId::new(args.id),
        epoch: args.epoch.map(|epoch| BrokerEpoch::new(Revision::new(epoch))),
    }
}

/// A refusal, with what to do where something can be done.
fn refused(error: Error) -> Failure {
    let [refusal] = error.refusals() else {
        return error.into();
    };
    match (&refusal.reason, refusal.item.broker()) {
        (Reason::UnknownBroker { broker }, _) => no_such_broker(*broker),
        (Reason::DuplicateRegistration { .. }, Some(broker)) => Failure::from(error).hint(format!(
            "fence it (quorate meta broker fence {broker}), or say --takeover when you know that it is gone"
        )),
        (Reason::HasReplicas { .. }, _) => Failure::from(error).hint(
            "quorate meta broker describe shows them; move them first, or let them dangle with --dangling",
        ),
        (Reason::StaleBrokerEpoch { .. }, _) => {
            Failure::from(error).hint("it was registered anew; look at it before you decide again")
        }
        _ => error.into(),
    }
}

fn no_such_broker(id: BrokerId) -> Failure {
    Failure::not_found(format!("there is no broker {id}")).hint("quorate meta broker list shows the brokers")
}

#[derive(Debug, Serialize)]
struct FlaggedRow {
    changed: bool,
    partitions_changed: usize,
    #[serde(flatten)]
    broker: BrokerRow,
}

fn flagged(changed: &ChangedBroker, done: &str, state: &str, output: Output) -> Result<(), Failure> {
    let id = changed.broker.id;
    let line = match changed.changed || changed.partitions_changed > 0 {
        true => format!("broker {id} is {done}"),
        false => format!("broker {id} was {state} already"),
    };
    output.show(&Line::new(
        FlaggedRow {
            changed: changed.changed,
            partitions_changed: changed.partitions_changed,
            broker: BrokerRow::of(&changed.broker),
        },
        line,
    ))
}

async fn describe(client: &Meta, id: BrokerId, output: Output) -> Result<(), Failure> {
    if client.broker(id).await?.is_none() {
        return Err(no_such_broker(id));
    }
    let image = client.image().await?;
    let broker = image.brokers.get(&id).ok_or_else(|| no_such_broker(id))?;
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

fn bytes(text: &str) -> Result<u64, Failure> {
    parse_size(text).ok_or_else(|| {
        Failure::refused(format!(
            "--disk-bytes: {text:?} is no number of bytes, such as 500GiB (KiB, MiB, GiB, TiB, PiB)"
        ))
    })
}

fn registration(
    id: u64,
    endpoints: &[String],
    incarnation: Option<String>,
) -> Result<RegisterBroker, Failure> {
    let (first, more) = endpoints
        .split_first()
        .ok_or_else(|| Failure::refused("a broker has at least one endpoint"))?;
    let mut register = RegisterBroker::new(id, first)?;
    for endpoint in more {
        register = register.endpoint(endpoint)?;
    }
    if let Some(text) = incarnation {
        register = register.incarnation(Incarnation::from_uuid(uuid("--incarnation", &text)?));
    }
    Ok(register)
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
    replicas_max: Option<u32>,
    disk_bytes: Option<u64>,
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
            replicas_max: broker.capacity.replicas_max,
            disk_bytes: broker.capacity.disk_bytes,
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

    fn list(&self) -> Option<&'static str> {
        Some("brokers")
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

    fn list(&self) -> Option<&'static str> {
        Some("partitions")
    }
}
