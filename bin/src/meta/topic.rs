//! `quorate meta topic`.

use std::collections::BTreeMap;

use comfy_table::Cell;
use quorate_meta::{CreateTopic, Creation, DeleteTopic, Topic, TopicId};
use serde::Serialize;

use super::arguments::{Meta, assignments, no_such_topic, pairs, reading, time, topic_name, uuid};
use super::partition::{PartitionRow, partitions_table};
use crate::cli::TopicCommand;
use crate::failure::Failure;
use crate::output::{Line, Output, Report, number, table};

pub(super) async fn run(
    command: TopicCommand,
    client: impl FnOnce() -> Result<Meta, Failure>,
    output: Output,
) -> Result<(), Failure> {
    match command {
        TopicCommand::Create {
            name,
            partitions,
            replication_factor,
            assignment,
            config,
            id,
        } => {
            let name = topic_name(&name)?;
            let mut create = match assignment {
                Some(text) => CreateTopic::manual(name, assignments(&text)?)?,
                None => CreateTopic::new(name, partitions, replication_factor)?,
            };
            create.config = pairs("--config", &config)?;
            if let Some(id) = id {
                create = create.id(TopicId::from_uuid(uuid("--id", &id)?));
            }
            let created = client()?.create_topic(create).await?;
            output.show(&Described {
                created: Some(created.creation == Creation::Created),
                topic: TopicRow::of(&created.topic),
                partitions: created.partitions.iter().map(PartitionRow::of).collect(),
            })
        }
        TopicCommand::List { freshness } => {
            let topics = reading(client()?, &freshness).topics().await?;
            output.show(&Topics {
                topics: topics.iter().map(TopicRow::of).collect(),
            })
        }
        TopicCommand::Describe { name, freshness } => {
            let name = topic_name(&name)?;
            let (topic, partitions) = reading(client()?, &freshness)
                .describe(&name)
                .await?
                .ok_or_else(|| no_such_topic(&name))?;
            output.show(&Described {
                created: None,
                topic: TopicRow::of(&topic),
                partitions: partitions.iter().map(PartitionRow::of).collect(),
            })
        }
        TopicCommand::Delete { name, id } => {
            let name = topic_name(&name)?;
            let id = id
                .map(|id| uuid("--id", &id))
                .transpose()?
                .map(TopicId::from_uuid);
            let client = client()?;
            let topic = client.topic(&name).await?.ok_or_else(|| no_such_topic(&name))?;
            // The life that was seen, so that a topic created meanwhile under the name is not taken for it.
            let topic = client
                .delete_topic(DeleteTopic::new(name)?.id(id.unwrap_or(topic.id)))
                .await?;
            let line = format!(
                "topic {} with {} partitions is deleted",
                topic.name, topic.partitions
            );
            output.show(&Line::new(TopicRow::of(&topic), line))
        }
    }
}

#[derive(Debug, Serialize)]
struct TopicRow {
    name: String,
    id: String,
    partition_count: u32,
    replication_factor: u16,
    config: BTreeMap<String, String>,
    created_at: String,
    modified_at: String,
    deleting: bool,
    revision: u64,
}

impl TopicRow {
    fn of(topic: &Topic) -> Self {
        Self {
            name: topic.name.to_string(),
            id: topic.id.to_string(),
            partition_count: topic.partitions,
            replication_factor: topic.replication_factor,
            config: topic.config.clone(),
            created_at: time(topic.created_at),
            modified_at: time(topic.modified_at),
            deleting: topic.deleting,
            revision: topic.revision.number(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Topics {
    topics: Vec<TopicRow>,
}

impl Report for Topics {
    fn text(&self) -> String {
        if self.topics.is_empty() {
            return "there is no topic".to_owned();
        }
        let mut table = table(["topic", "partitions", "replication", "id", "created"]);
        for topic in &self.topics {
            let name = if topic.deleting {
                format!("{} (being deleted)", topic.name)
            } else {
                topic.name.clone()
            };
            table.add_row(vec![
                Cell::new(name),
                number(topic.partition_count),
                number(topic.replication_factor),
                Cell::new(&topic.id),
                Cell::new(&topic.created_at),
            ]);
        }
        table.to_string()
    }

    fn list(&self) -> Option<&'static str> {
        Some("topics")
    }
}

#[derive(Debug, Serialize)]
struct Described {
    /// Of a create: whether this call created it.
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<bool>,
    #[serde(flatten)]
    topic: TopicRow,
    partitions: Vec<PartitionRow>,
}

impl Report for Described {
    fn text(&self) -> String {
        let topic = &self.topic;
        let what = match self.created {
            Some(true) => format!("is created at revision {}", topic.revision),
            Some(false) => "existed already".to_owned(),
            None => format!("was created {}", topic.created_at),
        };
        let mut text = format!("topic {} ({}) {what}", topic.name, topic.id);
        for (name, value) in &topic.config {
            text.push_str(&format!("\n  {name} = {value}"));
        }
        format!("{text}\n{}", partitions_table(&self.partitions))
    }

    fn list(&self) -> Option<&'static str> {
        Some("partitions")
    }
}
