//! `quorate meta partition`.

use comfy_table::{Cell, Color};
use quorate_meta::{
    BrokerId, Epochs, GrowTopic, IsrUpdate, LeaderEpoch, LeaderUpdate, NewPartition, Partition,
    PartitionEpoch, PartitionIndex, Recovery, TopicName,
};
use serde::Serialize;

use super::arguments::{Meta, assignments, ids, no_such_topic, reading, time, topic_name};
use crate::cli::PartitionCommand;
use crate::failure::Failure;
use crate::output::{Line, Output, Report, number, table};

pub(super) async fn run(
    command: PartitionCommand,
    client: impl FnOnce() -> Result<Meta, Failure>,
    output: Output,
) -> Result<(), Failure> {
    match command {
        PartitionCommand::Create {
            topic,
            total,
            assignment,
        } => {
            let name = topic_name(&topic)?;
            let created = match (total, assignment) {
                (_, Some(text)) => {
                    let assignments = assignments(&text)?;
                    let client = client()?;
                    let topic = client.topic(&name).await?.ok_or_else(|| no_such_topic(&name))?;
                    let indexes = (topic.partitions..).map(PartitionIndex::new);
                    let new = indexes.zip(assignments).map(|(index, assignment)| {
                        Ok(NewPartition::new(&name, index, assignment)?.topic_id(topic.id))
                    });
                    let new: Vec<_> = new.collect::<Result<_, Failure>>()?;
                    client.create_partitions(new).await?
                }
                (total, None) => {
                    let client = client()?;
                    client.topic(&name).await?.ok_or_else(|| no_such_topic(&name))?;
                    client
                        .grow_topics(vec![GrowTopic::new(name.clone(), total.unwrap_or(0))?])
                        .await?
                }
            };
            let partitions = created.partitions.iter().map(PartitionRow::of).collect();
            output.show(&Created {
                topic: name.to_string(),
                partitions,
            })
        }
        PartitionCommand::Describe { partition, freshness } => {
            let (name, index) = place(&partition)?;
            let seen = seen(&reading(client()?, &freshness), &name, index).await?;
            output.show(&Described {
                topic: name.to_string(),
                partition: PartitionRow::of(&seen),
            })
        }
        PartitionCommand::SetLeader {
            partition,
            leader,
            unclean,
            leader_epoch,
            partition_epoch,
        } => {
            let (name, index) = place(&partition)?;
            let client = client()?;
            let seen = seen(&client, &name, index).await?;
            let expected = expected(&seen, leader_epoch, partition_epoch);
            let mut update = LeaderUpdate::at((seen.topic, seen.index), BrokerId::new(leader), expected);
            if unclean {
                update = update.unclean();
            }
            let updated = client.update_leader(update).await?;
            let what = if updated.changed {
                "is led by"
            } else {
                "was led already by"
            };
            changed(
                &partition,
                updated.changed,
                &updated.partition,
                &format!("{what} broker {leader}"),
                output,
            )
        }
        PartitionCommand::SetIsr {
            partition,
            isr,
            recovered,
            leader_epoch,
            partition_epoch,
        } => {
            let (name, index) = place(&partition)?;
            let client = client()?;
            let seen = seen(&client, &name, index).await?;
            let expected = expected(&seen, leader_epoch, partition_epoch);
            let isr = isr.into_iter().map(BrokerId::new);
            let mut update = IsrUpdate::at((seen.topic, seen.index), isr, expected);
            if recovered {
                update = update.recovered();
            }
            let updated = client.update_isr(update).await?;
            let what = if updated.changed {
                "has the ISR"
            } else {
                "had already the ISR"
            };
            let line = format!("{what} {}", ids(&updated.partition.isr));
            changed(&partition, updated.changed, &updated.partition, &line, output)
        }
    }
}

/// `TOPIC/INDEX`.
fn place(text: &str) -> Result<(TopicName, PartitionIndex), Failure> {
    let (name, index) = text
        .rsplit_once('/')
        .and_then(|(name, index)| Some((name, index.parse().ok()?)))
        .ok_or_else(|| {
            Failure::refused(format!(
                "{text:?} is no partition; expected TOPIC/INDEX, such as orders/0"
            ))
        })?;
    Ok((topic_name(name)?, index))
}

async fn seen(client: &Meta, name: &TopicName, index: PartitionIndex) -> Result<Partition, Failure> {
    let topic = client.topic(name).await?.ok_or_else(|| no_such_topic(name))?;
    let partition = client.partition(topic.id, index).await?;
    partition.ok_or_else(|| {
        Failure::not_found(format!(
            "topic {name} has no partition {index}, it has {}",
            topic.partitions
        ))
    })
}

/// The epochs that the caller says; those that were just read where it says none.
fn expected(seen: &Partition, leader: Option<u64>, partition: Option<u64>) -> Epochs {
    Epochs {
        leader: leader.map_or(seen.leader_epoch, LeaderEpoch::new),
        partition: partition.map_or(seen.partition_epoch, PartitionEpoch::new),
    }
}

#[derive(Debug, Serialize)]
struct Changed {
    changed: bool,
    #[serde(flatten)]
    partition: PartitionRow,
}

fn changed(
    place: &str,
    changed: bool,
    partition: &Partition,
    what: &str,
    output: Output,
) -> Result<(), Failure> {
    let line = format!(
        "{place} {what} (leader epoch {}, partition epoch {})",
        partition.leader_epoch, partition.partition_epoch
    );
    output.show(&Line::new(
        Changed {
            changed,
            partition: PartitionRow::of(partition),
        },
        line,
    ))
}

/// A partition, for programs and for tables.
#[derive(Debug, Serialize)]
pub(super) struct PartitionRow {
    partition: u32,
    leader: Option<u64>,
    replicas: Vec<u64>,
    isr: Vec<u64>,
    leader_epoch: u64,
    partition_epoch: u64,
    recovering: bool,
    created_at: String,
    modified_at: String,
    revision: u64,
}

impl PartitionRow {
    pub(super) fn of(partition: &Partition) -> Self {
        let numbers = |brokers: &[BrokerId]| brokers.iter().map(|broker| broker.number()).collect();
        Self {
            partition: partition.index.number(),
            leader: partition.leader.map(BrokerId::number),
            replicas: numbers(&partition.replicas),
            isr: numbers(&partition.isr),
            leader_epoch: partition.leader_epoch.number(),
            partition_epoch: partition.partition_epoch.number(),
            recovering: partition.recovery == Recovery::Recovering,
            created_at: time(partition.created_at),
            modified_at: time(partition.modified_at),
            revision: partition.revision.number(),
        }
    }
}

pub(super) fn partitions_table(partitions: &[PartitionRow]) -> String {
    let mut table = table([
        "partition",
        "leader",
        "replicas",
        "ISR",
        "leader epoch",
        "partition epoch",
        "modified",
    ]);
    for partition in partitions {
        let brokers = |ids: &[u64]| ids.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let leader = match (partition.leader, partition.recovering) {
            (None, _) => Cell::new("none").fg(Color::Red),
            (Some(leader), true) => Cell::new(format!("{leader} (recovering)")).fg(Color::Yellow),
            (Some(leader), false) => number(leader),
        };
        let isr = Cell::new(brokers(&partition.isr));
        let all = partition.isr.len() == partition.replicas.len();
        table.add_row(vec![
            number(partition.partition),
            leader,
            Cell::new(brokers(&partition.replicas)),
            if all { isr } else { isr.fg(Color::Yellow) },
            number(partition.leader_epoch),
            number(partition.partition_epoch),
            Cell::new(&partition.modified_at),
        ]);
    }
    table.to_string()
}

#[derive(Debug, Serialize)]
struct Described {
    topic: String,
    #[serde(flatten)]
    partition: PartitionRow,
}

impl Report for Described {
    fn text(&self) -> String {
        let partitions = std::slice::from_ref(&self.partition);
        format!("topic {}\n{}", self.topic, partitions_table(partitions))
    }
}

#[derive(Debug, Serialize)]
struct Created {
    topic: String,
    partitions: Vec<PartitionRow>,
}

impl Report for Created {
    fn text(&self) -> String {
        let many = if self.partitions.len() == 1 {
            "partition is"
        } else {
            "partitions are"
        };
        format!(
            "topic {}: {} {many} created\n{}",
            self.topic,
            self.partitions.len(),
            partitions_table(&self.partitions)
        )
    }

    fn list(&self) -> Option<&'static str> {
        Some("partitions")
    }
}
