//! The invariants of the metadata, as code: what must hold of every image, and of every step between two.
//!
//! For tests and the simulator, and for an operator who doubts. Slow and obvious on purpose.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use quorate_kv::model::Key;

use crate::ids::{BrokerId, LeaderEpoch, PartitionEpoch, PartitionIndex, TopicId};
use crate::image::{Image, Ineligible};
use crate::name::TopicName;
use crate::rows::{Partition, Recovery};

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A partition without a topic.
    #[error("partition {topic}/{partition} belongs to no topic")]
    Orphan {
        /// The topic's id.
        topic: TopicId,
        /// The partition.
        partition: PartitionIndex,
    },
    /// A topic's count and its partition rows disagree: a batch was done in part.
    #[error("topic {topic} counts {count} partitions, its rows have the indexes {found:?}")]
    Count {
        /// The topic.
        topic: TopicName,
        /// Its count.
        count: u32,
        /// The indexes of its rows.
        found: Vec<PartitionIndex>,
    },
    /// Two topics have one id.
    #[error("topics {first} and {second} have one id")]
    SharedId {
        /// One.
        first: TopicName,
        /// The other.
        second: TopicName,
    },
    /// Names collide, or the row that keeps them apart is missing, wrong, or left over.
    #[error("the collision form {form} has topics {topics:?}, its row says {row:?}")]
    Name {
        /// The form.
        form: String,
        /// The topics with this form.
        topics: Vec<TopicName>,
        /// What the row says.
        row: Option<TopicName>,
    },
    /// Something about one partition.
    #[error("partition {topic}/{partition}: {what}")]
    Partition {
        /// The topic's id.
        topic: TopicId,
        /// The partition.
        partition: PartitionIndex,
        /// What is wrong.
        what: Wrong,
    },
    /// A key among the rows that is none: somebody else wrote it.
    #[error("the key {key} is no row: another application writes below the metadata's prefix")]
    Foreign {
        /// The key.
        key: Key,
    },
    /// A broker's epoch is later than its row, or fell.
    #[error("broker {broker}: its epoch is wrong")]
    BrokerEpoch {
        /// The broker.
        broker: BrokerId,
    },
}

/// What is wrong with a partition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Wrong {
    /// No replicas, too many, or one twice.
    #[error("its replicas are {replicas:?}")]
    Replicas {
        /// The replicas.
        replicas: Vec<BrokerId>,
    },
    /// Its topic plans another number of replicas, and no reassignment explains it.
    #[error("it has {found} replicas, its topic plans {planned}")]
    ReplicationFactor {
        /// How many it has.
        found: usize,
        /// How many the topic plans.
        planned: u16,
    },
    /// A set is not within the replicas, or has a member twice.
    #[error("its {set} {members:?} is no subset of its replicas")]
    NotSubset {
        /// Which.
        set: &'static str,
        /// Its members.
        members: Vec<BrokerId>,
    },
    /// Two sets have a member in common.
    #[error("its {first} and its {second} have a member in common")]
    NotDisjoint {
        /// One.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// The leader is not in the ISR.
    #[error("its leader {leader} is not in its ISR")]
    LeaderNotInIsr {
        /// The leader.
        leader: BrokerId,
    },
    /// Nobody is in sync and nobody is eligible.
    #[error("its ISR is empty")]
    EmptyIsr,
    /// A broker is in the ISR that must not be, and not as its last member without a leader.
    #[error("broker {broker} is in its ISR: {why}")]
    IneligibleMember {
        /// The broker.
        broker: BrokerId,
        /// Why it must not be.
        why: Ineligible,
    },
    /// A recovering leader is not alone.
    #[error("it is recovering with more than one member in its ISR")]
    RecoveringIsr,
    /// An epoch fell, rose by more than one, or did not rise with a change.
    #[error("its partition epoch went from {from} to {to}, and it {}", if *.changed { "changed" } else { "did not change" })]
    PartitionEpoch {
        /// Before.
        from: PartitionEpoch,
        /// After.
        to: PartitionEpoch,
        /// Whether anything changed.
        changed: bool,
    },
    /// The leader epoch fell, rose by more than one, rose for nothing, or did not rise when the leader was set.
    #[error("its leader epoch went from {from} to {to}, and its leader {}", if *.set { "was set" } else { "was not set" })]
    LeaderEpoch {
        /// Before.
        from: LeaderEpoch,
        /// After.
        to: LeaderEpoch,
        /// Whether the leader was set.
        set: bool,
    },
    /// A new partition does not begin with epochs of 1.
    #[error("it is new, and its epochs are {leader} and {partition}")]
    FirstEpochs {
        /// The leader epoch.
        leader: LeaderEpoch,
        /// The partition epoch.
        partition: PartitionEpoch,
    },
}

/// Whether a fence or a restart that is still being swept excuses members of ISRs that must not be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sweeps {
    /// All are complete: nobody ineligible leads or is in sync.
    Complete,
    /// A fenced broker may not have been swept yet.
    MayBePending,
}

/// Everything that is wrong with an image of the whole metadata.
pub fn check(image: &Image, sweeps: Sweeps) -> Vec<Violation> {
    let foreign = image
        .foreign
        .iter()
        .map(|key| Violation::Foreign { key: key.clone() });
    let mut violations: Vec<Violation> = foreign.collect();
    check_topics(image, &mut violations);
    let planned: BTreeMap<TopicId, u16> = image
        .topics
        .values()
        .map(|topic| (topic.id, topic.replication_factor))
        .collect();
    for partition in image.partitions.values() {
        let (topic, index) = (partition.topic, partition.index);
        let mut wrong = Vec::new();
        check_partition(image, partition, sweeps, &mut wrong);
        match planned.get(&topic) {
            None => violations.push(Violation::Orphan {
                topic,
                partition: index,
            }),
            Some(planned) => {
                let found = partition.replicas.len();
                if partition.adding.is_empty() && found != usize::from(*planned) {
                    wrong.push(Wrong::ReplicationFactor {
                        found,
                        planned: *planned,
                    });
                }
            }
        }
        let violation = |what| Violation::Partition {
            topic,
            partition: index,
            what,
        };
        violations.extend(wrong.into_iter().map(violation));
    }
    for broker in image.brokers.values() {
        if broker.epoch.revision() > broker.revision {
            violations.push(Violation::BrokerEpoch { broker: broker.id });
        }
    }
    violations
}

fn check_topics(image: &Image, violations: &mut Vec<Violation>) {
    let mut ids: BTreeMap<TopicId, &TopicName> = BTreeMap::new();
    let mut forms: BTreeMap<String, Vec<TopicName>> = BTreeMap::new();
    for form in image.names.keys() {
        forms.entry(form.clone()).or_default();
    }
    for topic in image.topics.values() {
        if let Some(first) = ids.insert(topic.id, &topic.name) {
            let (first, second) = (first.clone(), topic.name.clone());
            violations.push(Violation::SharedId { first, second });
        }
        if let Some(form) = topic.name.collision() {
            forms.entry(form).or_default().push(topic.name.clone());
        }
        let found: Vec<_> = image
            .partitions_of(topic.id)
            .map(|partition| partition.index)
            .collect();
        let expected = (0..topic.partitions).map(PartitionIndex::new);
        if topic.partitions == 0 || !found.iter().copied().eq(expected) {
            let (topic, count) = (topic.name.clone(), topic.partitions);
            violations.push(Violation::Count { topic, count, found });
        }
    }
    for (form, topics) in forms {
        let row = image.names.get(&form).cloned();
        if topics.len() != 1 || topics.first() != row.as_ref() {
            violations.push(Violation::Name { form, topics, row });
        }
    }
}

fn check_partition(image: &Image, partition: &Partition, sweeps: Sweeps, wrong: &mut Vec<Wrong>) {
    let Partition {
        replicas,
        isr,
        leader,
        ..
    } = partition;
    let distinct: BTreeSet<_> = replicas.iter().collect();
    if replicas.is_empty() || replicas.len() > Partition::REPLICAS_MAX || distinct.len() != replicas.len() {
        wrong.push(Wrong::Replicas {
            replicas: replicas.clone(),
        });
    }
    let sets = [
        ("ISR", isr),
        ("eligible leaders", &partition.eligible_leaders),
        ("last known leaders", &partition.last_known_leaders),
        ("adding", &partition.adding),
        ("removing", &partition.removing),
    ];
    for (set, members) in sets {
        let unique: BTreeSet<_> = members.iter().collect();
        if unique.len() != members.len() || !unique.is_subset(&distinct) {
            wrong.push(Wrong::NotSubset {
                set,
                members: members.clone(),
            });
        }
    }
    let pairs = [
        (("ISR", isr), ("eligible leaders", &partition.eligible_leaders)),
        (("adding", &partition.adding), ("removing", &partition.removing)),
    ];
    for ((first, a), (second, b)) in pairs {
        if a.iter().any(|member| b.contains(member)) {
            wrong.push(Wrong::NotDisjoint { first, second });
        }
    }
    if let Some(leader) = leader.filter(|leader| !isr.contains(leader)) {
        wrong.push(Wrong::LeaderNotInIsr { leader });
    }
    if isr.is_empty() && partition.eligible_leaders.is_empty() {
        wrong.push(Wrong::EmptyIsr);
    }
    if partition.recovery == Recovery::Recovering && isr.len() > 1 {
        wrong.push(Wrong::RecoveringIsr);
    }
    let last_one_waits = isr.len() == 1 && leader.is_none();
    for broker in isr.iter().filter(|_| !last_one_waits) {
        match image.ineligible(*broker) {
            Some(Ineligible::Fenced) if sweeps == Sweeps::MayBePending => {}
            Some(why) => wrong.push(Wrong::IneligibleMember { broker: *broker, why }),
            None => {}
        }
    }
}

/// Everything that is wrong with the step from one image of the whole metadata to that of the next commit.
pub fn check_step(before: &Image, after: &Image) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (key, new) in &after.partitions {
        let mut wrong = Vec::new();
        match before.partitions.get(key) {
            Some(old) => check_epochs(before, after, (old, new), &mut wrong),
            None if (new.leader_epoch, new.partition_epoch)
                != (LeaderEpoch::FIRST, PartitionEpoch::FIRST) =>
            {
                let (leader, partition) = (new.leader_epoch, new.partition_epoch);
                wrong.push(Wrong::FirstEpochs { leader, partition });
            }
            None => {}
        }
        let violation = |what| Violation::Partition {
            topic: key.0,
            partition: key.1,
            what,
        };
        violations.extend(wrong.into_iter().map(violation));
    }
    for (id, new) in &after.brokers {
        let fell = before.brokers.get(id).is_some_and(|old| new.epoch < old.epoch);
        let kept = before
            .brokers
            .get(id)
            .is_some_and(|old| (old.incarnation == new.incarnation) != (old.epoch == new.epoch));
        if fell || kept {
            violations.push(Violation::BrokerEpoch { broker: *id });
        }
    }
    violations
}

fn check_epochs(before: &Image, after: &Image, (old, new): (&Partition, &Partition), wrong: &mut Vec<Wrong>) {
    let content = |partition: &Partition| Partition {
        leader_epoch: LeaderEpoch::FIRST,
        partition_epoch: PartitionEpoch::FIRST,
        modified_at: partition.created_at,
        revision: old.revision,
        ..partition.clone()
    };
    // The same broker leads in another life.
    let life = |image: &Image| {
        new.leader
            .and_then(|id| image.brokers.get(&id))
            .map(|broker| broker.epoch)
    };
    let reborn = old.leader == new.leader && life(before) != life(after) && old.revision != new.revision;
    let lost = old.replicas.iter().any(|replica| !new.replicas.contains(replica));
    let set = old.leader != new.leader || reborn || lost;
    let changed = content(old) != content(new) || set;
    let (from, to) = (old.partition_epoch, new.partition_epoch);
    if to != if changed { from.next() } else { from } {
        wrong.push(Wrong::PartitionEpoch { from, to, changed });
    }
    let (from, to) = (old.leader_epoch, new.leader_epoch);
    if to != if set { from.next() } else { from } {
        wrong.push(Wrong::LeaderEpoch { from, to, set });
    }
}
