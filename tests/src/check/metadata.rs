//! The metadata's rows along the whole order: sound at every revision, and every step between two by the rules.
//!
//! The rules are stated here anew, from the words of the design; the crate's own statement of them
//! (`quorate_meta::check`) is asked as well.

use std::collections::BTreeSet;

use quorate_kv::model::{Key, Record, Revision};
use quorate_meta::check::{Sweeps, check, check_step};
use quorate_meta::keys::{Keys, RowKey};
use quorate_meta::{Epochs, Image, LeaderEpoch, Partition, PartitionEpoch};

use super::ground::{Ground, Run};
use super::history::{Call, CallId, MetaCall, MetaRequest};
use super::model::{How, Model};
use super::{Rule, Violation};

/// The rows of the metadata that callers work on.
fn keys() -> Keys {
    Keys::default()
}

/// Everything that is wrong with the rows at any revision, and with what callers of the metadata were told.
pub fn judge(ground: &Ground, calls: &[Call], meta: &[MetaCall]) -> Vec<Violation> {
    let mut violations = rows(&ground.model);
    let children = Children::of(calls);
    for call in meta {
        Told {
            ground,
            call,
            committed: children.committed(ground, call.id),
        }
        .judge(&mut violations);
    }
    violations
}

/// The calls of the store that each call of the metadata made.
struct Children(Vec<(CallId, CallId)>);

impl Children {
    fn of(calls: &[Call]) -> Self {
        let mut pairs: Vec<_> = calls
            .iter()
            .filter_map(|call| Some((call.parent?, call.id)))
            .collect();
        pairs.sort_unstable();
        Self(pairs)
    }

    /// The transactions of a call that changed something.
    fn committed<'g>(&self, ground: &'g Ground, parent: CallId) -> Vec<&'g Run> {
        let from = self.0.partition_point(|(of, _)| *of < parent);
        let own = self.0[from..].iter().take_while(|(of, _)| *of == parent);
        own.flat_map(|(_, child)| ground.of_call(*child))
            .map(|(_, run)| run)
            .filter(|run| run.how == How::Ran && run.changed)
            .collect()
    }
}

/// Walks through all revisions that changed a row.
fn rows(model: &Model) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut image = Image::new(Revision::FIRST);
    let mut revision = Revision::FIRST;
    while revision < model.revision() {
        revision = revision.next();
        let changed: Vec<(&Key, RowKey)> = model
            .changed_by(revision)
            .iter()
            .filter_map(|key| Some((key, keys().parse(key)?)))
            .collect();
        if changed.is_empty() {
            continue;
        }
        let before = image.clone();
        image.revision = revision;
        for (key, row) in &changed {
            match model.at(key, revision) {
                Some(record) => {
                    if let Err(corrupt) = image.insert(key, record) {
                        let what = format!("at {revision}: {corrupt}");
                        violations.push(Violation::new(Rule::SoundRows, what));
                    }
                }
                None => remove(&mut image, row),
            }
        }
        let from = violations.len();
        for (_, row) in &changed {
            step(&before, &image, row, &mut violations);
        }
        counts(&image, &changed, &before, &mut violations);
        if violations.len() == from {
            // The crate's own book, where ours has nothing to say.
            let sound = check(&image, Sweeps::MayBePending);
            violations.extend(
                sound
                    .iter()
                    .map(|v| Violation::new(Rule::SoundRows, v.to_string())),
            );
            let steps = check_step(&before, &image);
            violations.extend(steps.iter().map(|v| Violation::new(Rule::Epochs, v.to_string())));
        }
        for violation in &mut violations[from..] {
            violation.what.push_str(&format!(" (at revision {revision})"));
        }
        if violations.len() > 20 {
            break;
        }
    }
    violations
}

fn remove(image: &mut Image, row: &RowKey) {
    match row {
        RowKey::Broker(id) => drop(image.brokers.remove(id)),
        RowKey::Topic(name) => drop(image.topics.remove(name)),
        RowKey::Name(form) => drop(image.names.remove(form)),
        RowKey::Partition(topic, index) => drop(image.partitions.remove(&(*topic, *index))),
    }
}

/// One row that changed.
fn step(before: &Image, after: &Image, row: &RowKey, violations: &mut Vec<Violation>) {
    match row {
        RowKey::Partition(topic, index) => {
            let id = (*topic, *index);
            let Some(new) = after.partitions.get(&id) else {
                return;
            };
            sound(new, violations);
            match before.partitions.get(&id) {
                None => {
                    if (new.leader_epoch, new.partition_epoch) != (LeaderEpoch::FIRST, PartitionEpoch::FIRST)
                    {
                        broken(
                            violations,
                            Rule::Epochs,
                            format!("a new partition begins with its epochs: {new:?}"),
                        );
                    }
                }
                Some(old) => epochs(before, after, old, new, violations),
            }
        }
        RowKey::Broker(id) => {
            if let (Some(old), Some(new)) = (before.brokers.get(id), after.brokers.get(id)) {
                let same_life = old.incarnation == new.incarnation;
                if new.epoch < old.epoch || same_life != (old.epoch == new.epoch) {
                    broken(violations, Rule::Epochs, format!("from {old:?} to {new:?}"));
                }
            }
        }
        RowKey::Topic(name) => {
            if let (Some(old), Some(new)) = (before.topics.get(name), after.topics.get(name))
                && old.id == new.id
                && new.partitions < old.partitions
            {
                broken(
                    violations,
                    Rule::Counts,
                    format!("a topic shrank from {old:?} to {new:?}"),
                );
            }
        }
        RowKey::Name(_) => {}
    }
}

fn sound(row: &Partition, violations: &mut Vec<Violation>) {
    let replicas: BTreeSet<_> = row.replicas.iter().collect();
    let isr: BTreeSet<_> = row.isr.iter().collect();
    let wrong = if row.replicas.is_empty() || replicas.len() != row.replicas.len() {
        "its replicas are none, or one twice"
    } else if !isr.is_subset(&replicas) || isr.len() != row.isr.len() {
        "its ISR is not within its replicas"
    } else if row.leader.is_some_and(|leader| !isr.contains(&leader)) {
        "its leader is not in its ISR"
    } else if row.modified_at < row.created_at {
        "it was modified before it was created"
    } else {
        return;
    };
    broken(violations, Rule::SoundRows, format!("{wrong}: {row:?}"));
}

fn epochs(before: &Image, after: &Image, old: &Partition, new: &Partition, violations: &mut Vec<Violation>) {
    if new.partition_epoch != old.partition_epoch.next() {
        let what = format!("the partition epoch rises by one with a change: from {old:?} to {new:?}");
        broken(violations, Rule::Epochs, what);
    }
    let moved = old.leader != new.leader;
    let lost = old.replicas.iter().any(|replica| !new.replicas.contains(replica));
    // The same broker, in another life since the row was last written.
    let life = |image: &Image| {
        new.leader
            .and_then(|id| image.brokers.get(&id))
            .map(|broker| broker.epoch)
    };
    let reborn = !moved && life(before) != life(after);
    let expected = if moved || lost || reborn {
        old.leader_epoch.next()
    } else {
        old.leader_epoch
    };
    if new.leader_epoch != expected {
        let what = format!("the leader epoch should be {expected}: from {old:?} to {new:?}");
        broken(violations, Rule::Epochs, what);
    }
}

/// The topics and partitions that a revision touched, counted.
fn counts(image: &Image, changed: &[(&Key, RowKey)], before: &Image, violations: &mut Vec<Violation>) {
    let mut topics = BTreeSet::new();
    for (_, row) in changed {
        match row {
            RowKey::Partition(topic, _) => drop(topics.insert(*topic)),
            RowKey::Topic(name) => {
                topics.extend(image.topics.get(name).map(|topic| topic.id));
                topics.extend(before.topics.get(name).map(|topic| topic.id));
            }
            RowKey::Broker(_) | RowKey::Name(_) => {}
        }
    }
    for id in topics {
        let rows: Vec<u32> = image
            .partitions_of(id)
            .map(|partition| partition.index.number())
            .collect();
        let topic = image.topics.values().find(|topic| topic.id == id);
        let counted = topic.map_or(0, |topic| topic.partitions);
        if !rows.iter().copied().eq(0..counted) {
            let what = format!("topic {id} counts {counted} partitions ({topic:?}), its rows are {rows:?}");
            broken(violations, Rule::Counts, what);
        }
    }
}

fn broken(violations: &mut Vec<Violation>, rule: Rule, what: String) {
    violations.push(Violation::new(rule, what));
}

/// A call, and what it committed.
struct Told<'g> {
    ground: &'g Ground,
    call: &'g MetaCall,
    committed: Vec<&'g Run>,
}

impl Told<'_> {
    fn judge(&self, violations: &mut Vec<Violation>) {
        let one_transaction = !matches!(self.call.request, MetaRequest::Other(_));
        match &self.call.answer {
            Err(failure) => {
                // The workload writes no damaged row, and a key that is none holds nobody up.
                if failure.corrupt {
                    broken(violations, Rule::SoundRows, self.told());
                }
                if one_transaction && !failure.may_have_committed && !self.committed.is_empty() {
                    let what = format!("{} and yet committed {:?}", self.told(), self.revisions());
                    broken(violations, Rule::NeverRan, what);
                }
            }
            Ok(rows) => {
                let model = &self.ground.model;
                for row in &rows.brokers {
                    let there = decode(model, &keys().broker(row.id), row.revision);
                    if there.as_ref().and_then(|image| image.brokers.get(&row.id)) != Some(row) {
                        broken(
                            violations,
                            Rule::ToldRows,
                            format!("{}: there is {there:?}", self.told()),
                        );
                    }
                }
                for row in &rows.topics {
                    let there = decode(model, &keys().topic(&row.name), row.revision);
                    if there.as_ref().and_then(|image| image.topics.get(&row.name)) != Some(row) {
                        broken(
                            violations,
                            Rule::ToldRows,
                            format!("{}: there is {there:?}", self.told()),
                        );
                    }
                }
                for row in &rows.partitions {
                    let there = decode(model, &keys().partition(row.topic, row.index), row.revision);
                    let found = there
                        .as_ref()
                        .and_then(|image| image.partitions.get(&(row.topic, row.index)));
                    if found != Some(row) {
                        broken(
                            violations,
                            Rule::ToldRows,
                            format!("{}: there is {there:?}", self.told()),
                        );
                    }
                }
            }
        }
        if one_transaction && self.committed.len() > 1 {
            let what = format!("{} committed {:?}", self.told(), self.revisions());
            broken(violations, Rule::Once, what);
        }
        for run in &self.committed {
            if let Ok(response) = &run.outcome {
                self.whole(response.revision, violations);
                self.fenced(response.revision, violations);
            }
        }
        if self.committed.is_empty() && self.call.answer.is_ok() {
            self.fenced_without_change(violations);
        }
    }

    /// A batch that committed at a revision made all of its rows there.
    fn whole(&self, revision: Revision, violations: &mut Vec<Violation>) {
        let model = &self.ground.model;
        let made = |key: &Key| {
            model
                .at(key, revision)
                .is_some_and(|record| record.create_revision == revision)
        };
        let mut missing = Vec::new();
        match &self.call.request {
            MetaRequest::CreateTopics(topics) => {
                for create in topics {
                    let topic = keys().topic(&create.name);
                    // What an earlier call with the same id made is left as it is.
                    if model.at(&topic, previous(revision)).is_some() {
                        continue;
                    }
                    let partitions = model.range_at(&keys().partitions_of(create.id), revision);
                    let asked = match &create.layout {
                        quorate_meta::Layout::Automatic { partitions, .. } => *partitions as usize,
                        quorate_meta::Layout::Manual(assignments) => assignments.len(),
                    };
                    let fresh = partitions
                        .iter()
                        .filter(|row| row.record.create_revision == revision)
                        .count();
                    if !made(&topic) || fresh != asked {
                        missing.push(format!(
                            "topic {} with {fresh} of {asked} partitions",
                            create.name
                        ));
                    }
                }
            }
            MetaRequest::CreatePartitions(partitions) => {
                for new in partitions {
                    let topic = decode(model, &keys().topic(&new.topic), revision);
                    let id = topic.and_then(|image| image.topics.get(&new.topic).map(|topic| topic.id));
                    if !id.is_some_and(|id| made(&keys().partition(id, new.index))) {
                        missing.push(format!("partition {}/{}", new.topic, new.index));
                    }
                }
            }
            MetaRequest::Grow(topics) => {
                for grow in topics {
                    let topic = decode(model, &keys().topic(&grow.topic), revision);
                    let count =
                        topic.and_then(|image| image.topics.get(&grow.topic).map(|topic| topic.partitions));
                    if count != Some(grow.partitions) {
                        missing.push(format!(
                            "topic {} with {count:?} of {} partitions",
                            grow.topic, grow.partitions
                        ));
                    }
                }
            }
            MetaRequest::UpdateLeaders(updates) => {
                for update in updates {
                    let row = partition(model, update.topic, update.partition, revision);
                    if row.as_ref().and_then(|row| row.leader) != Some(update.leader) {
                        missing.push(format!("leader {} of {row:?}", update.leader));
                    }
                }
            }
            MetaRequest::UpdateIsrs(updates) => {
                for update in updates {
                    let row = partition(model, update.topic, update.partition, revision);
                    let asked: BTreeSet<_> = update.isr.iter().map(|member| member.broker).collect();
                    let found: BTreeSet<_> = row.iter().flat_map(|row| row.isr.iter().copied()).collect();
                    if asked != found {
                        missing.push(format!("ISR {asked:?} of {row:?}"));
                    }
                }
            }
            MetaRequest::DeleteTopics(topics) => {
                for id in topics {
                    let left = model.range_at(&keys().partitions_of(*id), revision).len();
                    if left > 0 {
                        missing.push(format!("{left} partitions of topic {id} are still there"));
                    }
                }
            }
            MetaRequest::Other(_) => {}
        }
        if !missing.is_empty() {
            let what = format!(
                "{} committed at {revision} without {}",
                self.told(),
                missing.join(", ")
            );
            broken(violations, Rule::WholeBatches, what);
        }
    }

    /// An update that committed had seen the present epochs.
    fn fenced(&self, revision: Revision, violations: &mut Vec<Violation>) {
        for ((topic, index), expected) in self.expectations() {
            let before = partition(&self.ground.model, topic, index, previous(revision));
            if before.as_ref().map(Epochs::of) != Some(expected) {
                let what = format!("{} committed at {revision} over {before:?}", self.told());
                broken(violations, Rule::Fencing, what);
            }
        }
    }

    /// So had one that was accepted and found nothing to change.
    fn fenced_without_change(&self, violations: &mut Vec<Violation>) {
        let Ok(rows) = &self.call.answer else {
            return;
        };
        for ((topic, index), expected) in self.expectations() {
            let told = rows
                .partitions
                .iter()
                .find(|row| (row.topic, row.index) == (topic, index));
            if told.map(Epochs::of) != Some(expected) {
                broken(violations, Rule::Fencing, format!("{} was accepted", self.told()));
            }
        }
    }

    fn expectations(&self) -> Vec<((quorate_meta::TopicId, quorate_meta::PartitionIndex), Epochs)> {
        match &self.call.request {
            MetaRequest::UpdateLeaders(updates) => updates
                .iter()
                .map(|u| ((u.topic, u.partition), u.expected))
                .collect(),
            MetaRequest::UpdateIsrs(updates) => updates
                .iter()
                .map(|u| ((u.topic, u.partition), u.expected))
                .collect(),
            MetaRequest::CreateTopics(_)
            | MetaRequest::CreatePartitions(_)
            | MetaRequest::Grow(_)
            | MetaRequest::DeleteTopics(_)
            | MetaRequest::Other(_) => Vec::new(),
        }
    }

    fn revisions(&self) -> Vec<Revision> {
        let revision = |run: &&Run| run.outcome.as_ref().ok().map(|response| response.revision);
        self.committed.iter().filter_map(revision).collect()
    }

    fn told(&self) -> String {
        let MetaCall {
            id, request, answer, ..
        } = self.call;
        format!("metadata call {id} ({request:?}, answered {answer:?})")
    }
}

fn decode(model: &Model, key: &Key, revision: Revision) -> Option<Image> {
    let record: &Record = model.at(key, revision)?;
    let mut image = Image::new(revision);
    image.insert(key, record).ok()?;
    Some(image)
}

fn partition(
    model: &Model,
    topic: quorate_meta::TopicId,
    index: quorate_meta::PartitionIndex,
    revision: Revision,
) -> Option<Partition> {
    decode(model, &keys().partition(topic, index), revision)?
        .partitions
        .remove(&(topic, index))
}

fn previous(revision: Revision) -> Revision {
    Revision::new(revision.number().saturating_sub(1))
}
