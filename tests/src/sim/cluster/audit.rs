//! The judgement: the cluster serves again, its nodes are equal, and what clients were told is true.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_kv::Client;
use quorate_kv::env;
use quorate_kv::model::{Consistency, Key, Op, ReadOp, ReadResult, Record, Revision, Txn};

use super::Cluster;
use super::workload::{Answer, Operation, Request, key};
use crate::sim::world::lock;

/// How long after the faults' end the cluster must serve, and its nodes be equal.
const RECOVERY_MAX: Duration = Duration::from_secs(60);

/// Waits until the cluster serves writes again and every node has applied the same.
pub(super) async fn wait_until_healthy(cluster: &Cluster) -> Result<(), String> {
    let client = cluster.client("auditor").with_deadline(RECOVERY_MAX);
    let txn = Txn::new([Op::put(key("audit"), "served again")]);
    let served = client.txn(txn).await;
    if let Some(broken) = cluster.broken() {
        return Err(broken);
    }
    served.map(drop).map_err(|error| {
        let standing = standing(cluster);
        format!("liveness: no write {RECOVERY_MAX:?} after the last fault: {error}; {standing}")
    })
}

/// Waits until all nodes stand at one entry.
async fn wait_until_equal(cluster: &Cluster) -> Result<(), String> {
    let end = cluster.sim.now() + RECOVERY_MAX;
    loop {
        if let Some(broken) = cluster.broken() {
            return Err(broken);
        }
        let equal = {
            let seen = lock(&cluster.seen);
            let applied = |number| seen.latest.get(&number).and_then(|s| s.applied);
            let standing: BTreeSet<_> = cluster.numbers().map(applied).collect();
            standing.len() == 1 && !standing.contains(&None)
        };
        if equal {
            return Ok(());
        }
        if cluster.sim.now() > end {
            return Err(format!(
                "liveness: the nodes are not equal: {}",
                standing(cluster)
            ));
        }
        env::sleep(Duration::from_millis(20)).await;
    }
}

fn standing(cluster: &Cluster) -> String {
    let seen = lock(&cluster.seen);
    let tell = |number| match (seen.stopped.get(&number), seen.latest.get(&number)) {
        (Some(fault), _) => format!("node {number} stopped: {fault}"),
        (None, None) => format!("node {number} was never heard"),
        (None, Some(s)) => format!(
            "node {number} is {} in term {}, leader {:?}, log {:?}, committed {:?}, applied {:?}, purged {:?}",
            s.role, s.term, s.leader, s.last_log, s.committed, s.applied, s.purged
        ),
    };
    cluster.numbers().map(tell).collect::<Vec<_>>().join("; ")
}

/// Judges every operation.
pub(super) async fn judge(cluster: &Cluster) -> Result<(), String> {
    wait_until_equal(cluster).await?;
    let mut operations = cluster.history.borrow().operations.clone();
    operations.sort_by_key(|o| o.call);
    real_time(&operations)?;
    one_write_a_revision(&operations)?;
    let client = cluster.client("judge").with_deadline(Duration::from_secs(20));
    Judge { client }.judge(&operations).await
}

/// Each write has a revision of its own; what two were told of one revision would be two histories.
fn one_write_a_revision(operations: &[Operation]) -> Result<(), String> {
    let mut written = BTreeMap::new();
    for operation in operations {
        if let Answer::Written { revision, .. } = operation.answer
            && let Some(other) = written.insert(revision, operation)
        {
            return Err(format!(
                "two writes were told revision {revision}: {operation:?} and {other:?}"
            ));
        }
    }
    Ok(())
}

/// What began after another was answered comes after it.
fn real_time(operations: &[Operation]) -> Result<(), String> {
    let revision = |o: &Operation| match o.answer {
        Answer::Written { revision, .. } | Answer::Read { revision, .. } => Some(revision),
        Answer::Unknown | Answer::Failed(_) => None,
    };
    let mut by_ret: Vec<(Duration, Revision, &Operation)> = operations
        .iter()
        .filter_map(|o| revision(o).map(|r| (o.ret, r, o)))
        .collect();
    by_ret.sort_by_key(|(ret, ..)| *ret);
    let mut answered = by_ret.iter().peekable();
    let mut newest: Option<(Revision, &Operation)> = None;
    for operation in operations {
        while let Some((_, revision, other)) = answered.next_if(|(ret, ..)| *ret < operation.call) {
            if newest.is_none_or(|(r, _)| *revision > r) {
                newest = Some((*revision, other));
            }
        }
        let (Some(own), Some((before, other))) = (revision(operation), newest) else {
            continue;
        };
        let late_enough = match operation.answer {
            Answer::Written { .. } => own > before,
            _ => own >= before,
        };
        if !late_enough {
            return Err(format!(
                "stale: {operation:?} has revision {own}, though {other:?} had been answered with {before}"
            ));
        }
    }
    Ok(())
}

/// Asks the cluster itself, at every revision that a client was told of.
struct Judge {
    client: Client,
}

impl Judge {
    async fn judge(&self, operations: &[Operation]) -> Result<(), String> {
        let mut counters: BTreeMap<&Key, (i64, i64)> = BTreeMap::new();
        let mut numbers = BTreeSet::new();
        for operation in operations {
            match (&operation.request, &operation.answer) {
                (
                    Request::Put { key, value } | Request::Create { key, value },
                    Answer::Written { revision, .. },
                ) => {
                    self.is_there(operation, key, value, *revision).await?;
                }
                (Request::Add { counter, key, value }, Answer::Written { revision, number }) => {
                    self.is_there(operation, key, value, *revision).await?;
                    let number = number.ok_or_else(|| format!("{operation:?} was told no number"))?;
                    if !numbers.insert((counter, number)) {
                        return Err(format!("two additions made the same number: {operation:?}"));
                    }
                    counters.entry(counter).or_default().0 += 1;
                }
                (Request::Add { counter, .. }, Answer::Unknown) => {
                    counters.entry(counter).or_default().1 += 1
                }
                (Request::Get { key }, Answer::Read { revision, record }) => {
                    let found = self.at(key, *revision).await?;
                    if found != *record {
                        return Err(format!(
                            "{operation:?} was told {record:?}, but at revision {revision} it was {found:?}"
                        ));
                    }
                }
                (Request::Create { key, .. }, Answer::Failed(why)) => {
                    if let Some(record) = self.now(key).await? {
                        return Err(format!(
                            "{operation:?} failed ({why}), and yet it happened: {record:?}"
                        ));
                    }
                }
                (_, Answer::Failed(why)) if why.starts_with("refused") => {
                    return Err(format!("refused without a reason to: {operation:?}"));
                }
                (_, Answer::Unknown | Answer::Failed(_)) => {}
                (_, answer) => return Err(format!("{operation:?} was answered with {answer:?}")),
            }
        }
        for (counter, (acknowledged, unknown)) in counters {
            let number = match self.now(counter).await? {
                None => 0,
                Some(record) => <[u8; 8]>::try_from(&record.value[..]).map_or(-1, i64::from_be_bytes),
            };
            if !(acknowledged..=acknowledged + unknown).contains(&number) {
                return Err(format!(
                    "{acknowledged} additions to {counter} were acknowledged and {unknown} are unknown, but it is {number}"
                ));
            }
        }
        Ok(())
    }

    /// An acknowledged write is in the history, at its revision.
    async fn is_there(
        &self,
        operation: &Operation,
        key: &Key,
        value: &[u8],
        revision: Revision,
    ) -> Result<(), String> {
        match self.at(key, revision).await? {
            Some(record) if record.value[..] == *value && record.mod_revision == revision => Ok(()),
            found => Err(format!(
                "lost: {operation:?} was acknowledged, but at revision {revision} there is {}",
                found.map_or("nothing".to_owned(), |r| format!(
                    "{:?} of revision {}",
                    r.value, r.mod_revision
                ))
            )),
        }
    }

    async fn at(&self, key: &Key, revision: Revision) -> Result<Option<Record>, String> {
        self.read(key, Consistency::At(revision)).await
    }

    async fn now(&self, key: &Key) -> Result<Option<Record>, String> {
        self.read(key, Consistency::Linearizable).await
    }

    async fn read(&self, key: &Key, consistency: Consistency) -> Result<Option<Record>, String> {
        let read = self
            .client
            .read(vec![ReadOp::Get(key.clone())], consistency)
            .await;
        match read
            .map_err(|error| format!("the judge could not read {key}: {error}"))?
            .results
            .pop()
        {
            Some(ReadResult::Get(record)) => Ok(record),
            other => Err(format!("a get was answered with {other:?}")),
        }
    }
}
