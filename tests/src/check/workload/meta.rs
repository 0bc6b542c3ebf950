//! Calls of the metadata's client: brokers that come, go and are fenced, topics, batches of partitions, leaders
//! and ISRs; often by somebody who saw an older state, or a newer one than there is.

use quorate_kv::Client;
use quorate_kv::model::{Key, Op, Txn};
use quorate_meta::{
    Assignment, Broker, BrokerId, CreateTopic, DeleteTopic, Epochs, Error, GrowTopic, Image, Incarnation,
    IsrUpdate, LeaderEpoch, LeaderUpdate, MetaClient, NewPartition, Partition, PartitionEpoch,
    PartitionIndex, ReadError, RegisterBroker, Replicas, Store as _, Topic, TopicId, TopicName,
};
use uuid::Uuid;

use super::scribe::{Ended, Recorded, Scribe};
use crate::check::history::{CallId, MetaCall, MetaFailure, MetaRequest, Rows};
use crate::sim::Rng;

/// Brokers have the ids from 1 to this.
const BROKERS: u64 = 5;
const TOPICS: [&str; 4] = ["orders", "payments", "audit.log", "audit_log"];
/// A topic with more partitions than this is deleted rather than grown.
const PARTITIONS_MAX: u32 = 24;

/// One caller of the metadata.
pub(super) struct MetaWorker {
    scribe: Scribe,
    random: Rng,
    /// What was read lately; the first one is older than the last.
    seen: Vec<Image>,
}

/// The client of one call.
type Meta = MetaClient<Recorded>;

impl MetaWorker {
    pub(super) fn new(scribe: Scribe, random: Rng) -> Self {
        let seen = Vec::new();
        Self { scribe, random, seen }
    }

    /// Makes one call, and reads everything now and then.
    pub(super) async fn step(&mut self, client: &Client) -> Ended {
        if self.seen.is_empty() || self.random.one_in(3) {
            return self.image(client).await;
        }
        match self.random.below(21) {
            20 => self.foreign(client).await,
            0 => self.register_one(client).await,
            1 => self.register_some(client).await,
            2 => self.brokers(client).await,
            3 => self.fence(client).await,
            4 => self.unfence(client).await,
            5 => self.cordon_or_unregister(client).await,
            6..=7 => self.create_topics(client).await,
            8..=9 => self.create_partitions(client).await,
            10 => self.grow(client).await,
            11..=13 => self.update_leaders(client).await,
            14..=16 => self.update_isrs(client).await,
            17 => self.delete(client).await,
            _ => self.look(client).await,
        }
    }

    fn begin(&self, client: &Client) -> (Meta, CallId, std::time::Duration) {
        let parent = self.scribe.number();
        let recorded = Recorded {
            client: client.clone(),
            scribe: self.scribe.clone(),
            parent,
        };
        (MetaClient::new(recorded), parent, self.scribe.now())
    }

    fn end(
        &self,
        method: &'static str,
        (id, called): (CallId, std::time::Duration),
        request: MetaRequest,
        answer: Result<Rows, MetaFailure>,
    ) -> Ended {
        let ended = match &answer {
            Ok(_) => Ended::Done,
            Err(failure) if failure.may_have_committed => Ended::Unknown,
            Err(failure) if failure.refused => Ended::Refused,
            Err(_) => Ended::Failed,
        };
        self.scribe.tally(method, ended);
        let answered = self.scribe.now();
        self.scribe.note_meta(MetaCall {
            id,
            called,
            answered,
            request,
            answer,
        });
        ended
    }

    async fn image(&mut self, client: &Client) -> Ended {
        let (meta, id, called) = self.begin(client);
        let answer = match meta.image().await {
            Ok(image) => {
                let rows = Rows {
                    brokers: image.brokers.values().cloned().collect(),
                    topics: image.topics.values().cloned().collect(),
                    partitions: image.partitions.values().cloned().collect(),
                };
                const REMEMBERED: usize = 3;
                self.seen.push(image);
                if self.seen.len() > REMEMBERED {
                    self.seen.remove(0);
                }
                Ok(rows)
            }
            Err(error) => Err(unread(&error)),
        };
        self.end("image", (id, called), MetaRequest::Other("image"), answer)
    }

    /// Another application writes or removes a key below the metadata's prefix that is no row. Not among partitions, whose
    /// topic then could not be deleted.
    async fn foreign(&mut self, client: &Client) -> Ended {
        let (meta, ..) = self.begin(client);
        let kind = self
            .random
            .pick::<&str>(&["b/x", "t/no topic", "n/", "p/x", "q/"]);
        let key = [meta.keys().prefix(), kind.as_bytes()].concat();
        let key = Key::new(key).expect("some bytes");
        let op = match self.random.one_in(3) {
            true => Op::delete(key),
            false => Op::put(key, "not a row"),
        };
        match meta.store().txn(Txn::new([op])).await {
            Ok(_) => Ended::Done,
            Err(error) if error.may_have_committed() => Ended::Unknown,
            Err(_) => Ended::Failed,
        }
    }

    /// What was read last, or seldom the time before.
    fn seen(&mut self) -> Image {
        let old = self.random.one_in(5);
        let image = if old { self.seen.first() } else { self.seen.last() };
        image
            .cloned()
            .unwrap_or_else(|| Image::new(quorate_kv::model::Revision::FIRST))
    }

    fn broker(&mut self) -> BrokerId {
        BrokerId::new(self.random.between(1, BROKERS))
    }

    fn uuid(&mut self) -> Uuid {
        let high = u128::from(self.random.next_u64()) << 64;
        Uuid::from_u128(high | u128::from(self.random.next_u64()))
    }

    fn name(&mut self) -> TopicName {
        let name: &str = self.random.pick::<&str>(&TOPICS);
        TopicName::new(name).expect("a legal name")
    }

    fn registration(&mut self, broker: BrokerId, known: Option<&Broker>) -> RegisterBroker {
        let incarnation = match known {
            // The same life again, or another one.
            Some(known) if self.random.one_in(2) => known.incarnation,
            _ => Incarnation::from_uuid(self.uuid()),
        };
        let port = self.random.between(9_000, 9_003);
        let register = RegisterBroker::new(broker, format!("broker-{broker}:{port}"))
            .expect("an endpoint")
            .incarnation(incarnation)
            .rack(format!("rack-{}", broker.number() % 3));
        match self.random.below(4) {
            0 => register.fenced(),
            1 => register,
            _ => register.takeover(),
        }
    }

    async fn register_one(&mut self, client: &Client) -> Ended {
        let (image, broker) = (self.seen(), self.broker());
        let register = self.registration(broker, image.brokers.get(&broker));
        let (meta, id, called) = self.begin(client);
        let result = meta.register_broker(register).await;
        let answer = result
            .map(|registered| brokers(vec![registered.broker]))
            .map_err(|e| failed(&e));
        self.end(
            "register_broker",
            (id, called),
            MetaRequest::Other("register_broker"),
            answer,
        )
    }

    async fn register_some(&mut self, client: &Client) -> Ended {
        let image = self.seen();
        let some: Vec<BrokerId> = (1..=BROKERS)
            .filter(|_| self.random.one_in(2))
            .map(BrokerId::new)
            .collect();
        let batch = some
            .into_iter()
            .map(|broker| self.registration(broker, image.brokers.get(&broker)));
        let batch: Vec<_> = batch.collect();
        let (meta, id, called) = self.begin(client);
        let result = meta.register_brokers(batch).await;
        let answer = result
            .map(|registered| brokers(registered.into_iter().map(|one| one.broker).collect()))
            .map_err(|e| failed(&e));
        self.end(
            "register_brokers",
            (id, called),
            MetaRequest::Other("register_brokers"),
            answer,
        )
    }

    async fn fence(&mut self, client: &Client) -> Ended {
        let (broker, (meta, id, called)) = (self.broker(), self.begin(client));
        let answer = meta
            .fence_broker(broker)
            .await
            .map(|changed| brokers(vec![changed.broker]))
            .map_err(|e| failed(&e));
        self.end(
            "fence_broker",
            (id, called),
            MetaRequest::Other("fence_broker"),
            answer,
        )
    }

    async fn unfence(&mut self, client: &Client) -> Ended {
        let image = self.seen();
        let fenced = image
            .brokers
            .values()
            .find(|broker| broker.fenced)
            .map(|broker| broker.id);
        let broker = fenced.unwrap_or_else(|| self.broker());
        let (meta, id, called) = self.begin(client);
        let answer = meta
            .unfence_broker(broker)
            .await
            .map(|changed| brokers(vec![changed.broker]))
            .map_err(|e| failed(&e));
        self.end(
            "unfence_broker",
            (id, called),
            MetaRequest::Other("unfence_broker"),
            answer,
        )
    }

    async fn cordon_or_unregister(&mut self, client: &Client) -> Ended {
        let (broker, cordoned) = (self.broker(), self.random.one_in(3));
        let (meta, id, called) = self.begin(client);
        if self.random.one_in(3) {
            let replicas = if self.random.one_in(3) {
                Replicas::MayDangle
            } else {
                Replicas::MustBeGone
            };
            let answer = meta
                .unregister_broker(broker, replicas)
                .await
                .map(|_| Rows::default())
                .map_err(|e| failed(&e));
            return self.end(
                "unregister_broker",
                (id, called),
                MetaRequest::Other("unregister_broker"),
                answer,
            );
        }
        let answer = meta
            .cordon_broker(broker, cordoned)
            .await
            .map(|changed| brokers(vec![changed.broker]))
            .map_err(|e| failed(&e));
        self.end(
            "cordon_broker",
            (id, called),
            MetaRequest::Other("cordon_broker"),
            answer,
        )
    }

    /// Brokers to hold a partition: mostly such as were active when it was looked.
    fn replicas(&mut self, count: usize) -> Vec<BrokerId> {
        let image = self.seen();
        let active: Vec<BrokerId> = image
            .brokers
            .values()
            .filter(|b| b.is_active())
            .map(|b| b.id)
            .collect();
        let mut all: Vec<BrokerId> = (1..=BROKERS).map(BrokerId::new).collect();
        if active.len() >= count && !self.random.one_in(6) {
            all = active;
        }
        self.random.shuffle(&mut all);
        all.truncate(count);
        all
    }

    async fn create_topics(&mut self, client: &Client) -> Ended {
        let image = self.seen();
        let count = if self.random.one_in(3) { 2 } else { 1 };
        let topics: Vec<CreateTopic> = (0..count)
            .map(|_| {
                let (name, partitions) = (self.name(), self.random.between(1, 6) as u32);
                let id = TopicId::from_uuid(self.uuid());
                let known = image.topics.get(&name).map(|topic| topic.id);
                let create = if self.random.one_in(2) {
                    let factor = self.random.between(1, 3) as usize;
                    let assignments: Vec<_> = (0..partitions)
                        .map(|_| Assignment::new(self.replicas(factor)))
                        .collect();
                    CreateTopic::manual(name, assignments)
                } else {
                    CreateTopic::new(name, partitions, self.random.between(1, 3) as u16)
                };
                // As a create is repeated whose answer was lost.
                let id = known.filter(|_| self.random.one_in(3)).unwrap_or(id);
                create
                    .expect("a legal name")
                    .id(id)
                    .config("retention.ms", self.random.below(100_000).to_string())
            })
            .collect();
        let request = MetaRequest::CreateTopics(topics.clone());
        let (meta, id, called) = self.begin(client);
        if let [topic] = &topics[..] {
            let result = meta.create_topic(topic.clone()).await;
            let answer = result
                .map(|created| Rows {
                    topics: vec![created.topic],
                    partitions: created.partitions,
                    ..Rows::default()
                })
                .map_err(|e| failed(&e));
            return self.end("create_topic", (id, called), request, answer);
        }
        let answer = meta
            .create_topics(topics)
            .await
            .map_err(|e| failed(&e))
            .map(|created| {
                let (topics, partitions): (Vec<_>, Vec<_>) = created
                    .into_iter()
                    .map(|created| (created.topic, created.partitions))
                    .unzip();
                let partitions = partitions.concat();
                Rows {
                    topics,
                    partitions,
                    ..Rows::default()
                }
            });
        self.end("create_topics", (id, called), request, answer)
    }

    /// Some topic that there was.
    fn topic(&mut self) -> Option<Topic> {
        let image = self.seen();
        let topics: Vec<&Topic> = image.topics.values().collect();
        (!topics.is_empty()).then(|| (*self.random.pick(&topics)).clone())
    }

    async fn create_partitions(&mut self, client: &Client) -> Ended {
        let Some(topic) = self.topic().filter(|topic| topic.partitions < PARTITIONS_MAX) else {
            return self.create_topics(client).await;
        };
        let count = *self.random.pick(&[1, 2, 5]);
        // Seldom with a gap, which is refused as a whole.
        let skip = u32::from(self.random.one_in(8));
        let batch: Vec<NewPartition> = (0..count)
            .map(|offset| {
                let index = PartitionIndex::new(topic.partitions + offset + skip);
                let replicas = self.replicas(usize::from(topic.replication_factor));
                NewPartition::new(&topic.name, index, replicas).expect("a legal name")
            })
            .collect();
        let request = MetaRequest::CreatePartitions(batch.clone());
        let (meta, id, called) = self.begin(client);
        if let [one] = &batch[..] {
            let answer = meta.create_partition(one.clone()).await.map_err(|e| failed(&e));
            let answer = answer.map(|partition| Rows {
                partitions: vec![partition],
                ..Rows::default()
            });
            return self.end("create_partition", (id, called), request, answer);
        }
        let answer = meta
            .create_partitions(batch)
            .await
            .map_err(|e| failed(&e))
            .map(|created| Rows {
                topics: created.topics,
                partitions: created.partitions,
                ..Rows::default()
            });
        self.end("create_partitions", (id, called), request, answer)
    }

    async fn grow(&mut self, client: &Client) -> Ended {
        let Some(topic) = self.topic().filter(|topic| topic.partitions < PARTITIONS_MAX) else {
            return self.delete(client).await;
        };
        let count = topic.partitions + self.random.between(1, 4) as u32;
        let grow = vec![GrowTopic::new(topic.name, count).expect("a legal name")];
        let request = MetaRequest::Grow(grow.clone());
        let (meta, id, called) = self.begin(client);
        let answer = meta
            .grow_topics(grow)
            .await
            .map_err(|e| failed(&e))
            .map(|created| Rows {
                topics: created.topics,
                partitions: created.partitions,
                ..Rows::default()
            });
        self.end("grow_topics", (id, called), request, answer)
    }

    /// Some partitions that there were, each once, with the epochs that a caller gives: as seen, or seldom
    /// older or newer.
    fn partitions(&mut self) -> Vec<(Partition, Epochs)> {
        let image = self.seen();
        let mut rows: Vec<&Partition> = image.partitions.values().collect();
        self.random.shuffle(&mut rows);
        rows.truncate(*self.random.pick(&[1, 1, 2, 4]));
        rows.into_iter()
            .map(|row| {
                let mut epochs = Epochs::of(row);
                if self.random.one_in(8) {
                    let shift = |epoch: u64| epoch.saturating_sub(1);
                    match self.random.below(3) {
                        0 => epochs.leader = LeaderEpoch::new(shift(epochs.leader.number())),
                        1 => epochs.partition = PartitionEpoch::new(shift(epochs.partition.number())),
                        _ => epochs.partition = PartitionEpoch::new(epochs.partition.number() + 2),
                    }
                }
                (row.clone(), epochs)
            })
            .collect()
    }

    async fn update_leaders(&mut self, client: &Client) -> Ended {
        let updates: Vec<LeaderUpdate> = self
            .partitions()
            .into_iter()
            .map(|(row, epochs)| {
                let from = if self.random.one_in(6) {
                    &row.replicas
                } else {
                    &row.isr
                };
                let leader = if from.is_empty() {
                    BrokerId::new(1)
                } else {
                    *self.random.pick(from)
                };
                let update = LeaderUpdate::at((row.topic, row.index), leader, epochs);
                if self.random.one_in(8) {
                    update.unclean()
                } else {
                    update
                }
            })
            .collect();
        let request = MetaRequest::UpdateLeaders(updates.clone());
        let (meta, id, called) = self.begin(client);
        if let [one] = &updates[..] {
            let answer = meta.update_leader(one.clone()).await.map_err(|e| failed(&e));
            return self.end(
                "update_leader",
                (id, called),
                request,
                answer.map(|one| partitions(vec![one.partition])),
            );
        }
        let answer = meta.update_leaders(updates).await.map_err(|e| failed(&e));
        let answer = answer.map(|rows| partitions(rows.into_iter().map(|one| one.partition).collect()));
        self.end("update_leaders", (id, called), request, answer)
    }

    async fn update_isrs(&mut self, client: &Client) -> Ended {
        let image = self.seen();
        let updates: Vec<IsrUpdate> = self
            .partitions()
            .into_iter()
            .map(|(row, epochs)| {
                let mut isr: Vec<BrokerId> = row.replicas.clone();
                let leader = row.leader;
                isr.retain(|replica| Some(*replica) == leader || !self.random.one_in(3));
                if self.random.one_in(12) {
                    isr.push(self.broker());
                }
                let update = IsrUpdate::at((row.topic, row.index), isr, epochs);
                let caller = leader.and_then(|leader| image.brokers.get(&leader));
                match caller {
                    Some(caller) if self.random.one_in(2) => {
                        let update = update.asked_by(caller.id, caller.epoch);
                        if self.random.one_in(2) {
                            update.recovered()
                        } else {
                            update
                        }
                    }
                    _ => update,
                }
            })
            .collect();
        let request = MetaRequest::UpdateIsrs(updates.clone());
        let (meta, id, called) = self.begin(client);
        if let [one] = &updates[..] {
            let answer = meta.update_isr(one.clone()).await.map_err(|e| failed(&e));
            return self.end(
                "update_isr",
                (id, called),
                request,
                answer.map(|one| partitions(vec![one.partition])),
            );
        }
        let answer = meta.update_isrs(updates).await.map_err(|e| failed(&e));
        let answer = answer.map(|rows| partitions(rows.into_iter().map(|one| one.partition).collect()));
        self.end("update_isrs", (id, called), request, answer)
    }

    async fn delete(&mut self, client: &Client) -> Ended {
        let Some(topic) = self.topic() else {
            return self.create_topics(client).await;
        };
        let mut topics = vec![topic];
        if self.random.one_in(2) {
            let other = self.topic().filter(|other| other.name != topics[0].name);
            topics.extend(other);
        }
        let ids = topics.iter().map(|topic| topic.id).collect();
        let deletes: Vec<DeleteTopic> = topics.iter().map(DeleteTopic::from).collect();
        let request = MetaRequest::DeleteTopics(ids);
        let (meta, id, called) = self.begin(client);
        if let [one] = &deletes[..] {
            let answer = meta.delete_topic(one.clone()).await.map_err(|e| failed(&e));
            let answer = answer.map(|topic| Rows {
                topics: vec![topic],
                ..Rows::default()
            });
            return self.end("delete_topic", (id, called), request, answer);
        }
        let answer = meta.delete_topics(deletes).await.map_err(|e| failed(&e));
        let answer = answer.map(|topics| Rows {
            topics,
            ..Rows::default()
        });
        self.end("delete_topics", (id, called), request, answer)
    }

    async fn brokers(&mut self, client: &Client) -> Ended {
        let (meta, id, called) = self.begin(client);
        if self.random.one_in(2) {
            let answer = meta.broker(self.broker()).await.map_err(|e| unread(&e));
            let answer = answer.map(|broker| brokers(broker.into_iter().collect()));
            return self.end("broker", (id, called), MetaRequest::Other("broker"), answer);
        }
        let answer = meta.brokers().await.map_err(|e| unread(&e)).map(brokers);
        self.end("brokers", (id, called), MetaRequest::Other("brokers"), answer)
    }

    /// Reads of topics and partitions.
    async fn look(&mut self, client: &Client) -> Ended {
        let (name, topic) = (self.name(), self.topic());
        let (meta, id, called) = self.begin(client);
        let with = |topics: Vec<Topic>, partitions: Vec<Partition>| Rows {
            topics,
            partitions,
            ..Rows::default()
        };
        let (method, answer) = match (self.random.below(5), topic) {
            (0, Some(topic)) => (
                "partitions",
                meta.partitions(topic.id).await.map(|rows| with(Vec::new(), rows)),
            ),
            (1, Some(topic)) => {
                let index = PartitionIndex::new(self.random.below(u64::from(topic.partitions) + 1) as u32);
                let found = meta.partition(topic.id, index).await;
                (
                    "partition",
                    found.map(|row| with(Vec::new(), row.into_iter().collect())),
                )
            }
            (2, _) => {
                let found = meta.describe(&name).await;
                let rows = found
                    .map(|found| found.map_or_else(Rows::default, |(topic, rows)| with(vec![topic], rows)));
                ("describe", rows)
            }
            (3, _) => ("topics", meta.topics().await.map(|rows| with(rows, Vec::new()))),
            _ => {
                let found = meta.topic(&name).await;
                (
                    "topic",
                    found.map(|row| with(row.into_iter().collect(), Vec::new())),
                )
            }
        };
        self.end(
            method,
            (id, called),
            MetaRequest::Other(method),
            answer.map_err(|e| unread(&e)),
        )
    }
}

fn brokers(brokers: Vec<Broker>) -> Rows {
    Rows {
        brokers,
        ..Rows::default()
    }
}

fn partitions(partitions: Vec<Partition>) -> Rows {
    Rows {
        partitions,
        ..Rows::default()
    }
}

fn failed(error: &Error) -> MetaFailure {
    MetaFailure {
        may_have_committed: error.may_have_committed(),
        refused: matches!(error, Error::Refused(_) | Error::TooLarge(_) | Error::Conflict(_)),
        corrupt: matches!(error, Error::Corrupt(_)),
        why: error.to_string(),
    }
}

fn unread(error: &ReadError) -> MetaFailure {
    MetaFailure {
        may_have_committed: false,
        refused: false,
        corrupt: matches!(error, ReadError::Corrupt(_)),
        why: error.to_string(),
    }
}
