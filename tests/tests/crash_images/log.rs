//! The log: entries, votes, truncations and purges.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use quorate_kv::env::oneshot;
use quorate_kv::fault::Fault;
use quorate_kv::log::{Completion, Log, LogEntry, LogSettings};
use quorate_kv::model::{LogIndex, LogPosition, NodeId, Term};
use quorate_tests::sim::disk::DiskImage;
use quorate_tests::sim::{CrashAction, PowerLoss, Rng, SimDisk, Simulation};

const DIR: &str = "/log";

fn settings() -> LogSettings {
    LogSettings {
        segment_bytes: 16 << 10,
        cache_bytes_max: 0,
        ..LogSettings::default()
    }
}

/// One call of the log.
#[derive(Debug, Clone)]
enum Step {
    Append(Vec<LogEntry>),
    Vote(Bytes),
    TruncateAfter(LogIndex),
    Purge(LogPosition),
}

/// What a log holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    entries: BTreeMap<LogIndex, LogEntry>,
    purged: Option<LogPosition>,
    vote: Option<Bytes>,
}

impl Model {
    fn last(&self) -> u64 {
        let last = self.entries.keys().next_back().copied();
        last.or(self.purged.map(|p| p.index)).map_or(0, LogIndex::number)
    }

    /// Does one step, and hands in the model after each part of it that may be found without the rest.
    fn step(&mut self, step: &Step, mut after: impl FnMut(&Model)) {
        match step {
            Step::Append(entries) => {
                for entry in entries {
                    self.entries.insert(entry.position.index, entry.clone());
                    after(self);
                }
            }
            Step::Vote(vote) => self.vote = Some(vote.clone()),
            Step::TruncateAfter(last) => self.entries.retain(|index, _| index <= last),
            Step::Purge(upto) => {
                self.entries.retain(|index, _| *index > upto.index);
                self.purged = Some(*upto);
            }
        }
        after(self);
    }
}

/// A workload that fills some segments, of so many steps.
fn workload(seed: u64, steps: usize) -> Vec<Step> {
    let mut random = Rng::new(seed).fork("workload");
    let mut model = Model::default();
    let mut term = 1;
    let mut all = Vec::new();
    while all.len() < steps {
        let first = model.last() + 1;
        let step = match random.below(10) {
            0 | 1 => Step::Vote(format!("vote {}", random.next_u64()).into()),
            2 if !model.entries.is_empty() => {
                let oldest = model.entries.keys().next().map_or(0, |i| i.number());
                term += 1;
                Step::TruncateAfter(LogIndex::new(random.between(oldest - 1, first - 1)))
            }
            3 if model.entries.len() > 2 => {
                let upto = random.index(model.entries.len() - 1);
                match model.entries.values().nth(upto) {
                    Some(entry) => Step::Purge(entry.position),
                    None => continue,
                }
            }
            _ => Step::Append(
                (first..first + random.between(1, 4))
                    .map(|index| LogEntry {
                        position: LogPosition {
                            term: Term::new(term),
                            leader: NodeId::new(1),
                            index: LogIndex::new(index),
                        },
                        payload: payload(&mut random),
                    })
                    .collect(),
            ),
        };
        model.step(&step, |_| {});
        all.push(step);
    }
    all
}

fn payload(random: &mut Rng) -> Bytes {
    let len = *random.pick(&[0, 1, 40, 500, 512, 3000]);
    (0..len).map(|_| random.next_u64() as u8).collect()
}

/// The log's states that a workload goes through, and after each step the number of the last of them.
fn states(steps: &[Step]) -> (Vec<Model>, Vec<usize>) {
    let mut model = Model::default();
    let mut all = vec![model.clone()];
    let mut ends = Vec::new();
    for step in steps {
        model.step(step, |part| all.push(part.clone()));
        ends.push(all.len() - 1);
    }
    (all, ends)
}

/// Runs a workload on the host's disk until its end, or until the disk fails; answers how many steps were
/// acknowledged. `None` when not even the log's making was. With `overlap` the next step does not wait until
/// this one is durable, unless it is a vote.
async fn run(sim: &Simulation, steps: Vec<Step>, overlap: bool) -> Option<usize> {
    let host = sim.host(1);
    let disk = Arc::new(host.disk());
    let acknowledged = Arc::new(Mutex::new(None));
    let acked = Arc::clone(&acknowledged);
    let ack = move |steps: usize| {
        let mut acked = acked.lock().unwrap();
        *acked = (*acked).max(Some(steps));
    };
    let task = host.spawn("workload", async move {
        let Ok(log) = Log::open(disk, Path::new(DIR), settings().create()) else {
            return;
        };
        ack(0);
        for (before, step) in steps.into_iter().enumerate() {
            let ack = ack.clone();
            let ack = move || ack(before + 1);
            let done = match step {
                Step::Append(entries) => durable(ack, overlap, |told| log.append(entries, told)).await,
                Step::Vote(vote) => log.save_vote(vote).await.map(|()| ack()),
                Step::TruncateAfter(last) => {
                    durable(ack, overlap, |told| log.truncate_after(Some(last), told)).await
                }
                Step::Purge(upto) => durable(ack, overlap, |told| log.purge(upto, told)).await,
            };
            if done.is_err() {
                return;
            }
        }
        let _ = log.close().await;
    });
    // Cancelled when the host dies: what was acknowledged by then counts.
    let _ = task.await;
    *acknowledged.lock().unwrap()
}

/// Asks the log for something that calls `ack` when durable, and waits until it is, but for an overlap.
async fn durable(
    ack: impl FnOnce() + Send + 'static,
    overlap: bool,
    ask: impl FnOnce(Completion) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let (tx, rx) = oneshot::channel();
    let completion = move |durable: Result<(), Fault>| {
        if durable.is_ok() {
            ack();
        }
        let _ = tx.send(());
    };
    ask(Box::new(completion))?;
    if !overlap {
        let _ = rx.await;
    }
    Ok(())
}

/// Opens the log of an image in a world of its own, and answers what it holds; then writes to it, closes it
/// and opens it once more.
fn open(image: &DiskImage) -> Result<Model, String> {
    let sim = Simulation::new(0);
    let host = sim.host(1);
    host.disk().load(image);
    let disk = Arc::new(host.disk());
    let task = host.spawn("open", async move {
        let log = open_existing(&disk)?;
        let found = read_all(&log).await?;
        log.close().await.map_err(|fault| fault.to_string())?;
        // A log that was recovered must go on.
        let log = open_again(&disk, &found)
            .await
            .map_err(|e| format!("opened once more: {e}"))?;
        let next = LogPosition {
            term: Term::new(1_000_000),
            leader: NodeId::new(2),
            index: LogIndex::new(found.last() + 1),
        };
        let payload = Bytes::from_static(b"after the crash");
        let entry = LogEntry {
            position: next,
            payload,
        };
        let fault = |fault: Fault| fault.to_string();
        durable(|| (), false, |told| log.append(vec![entry.clone()], told))
            .await
            .map_err(fault)?;
        log.save_vote(Bytes::from_static(b"again")).await.map_err(fault)?;
        let mut expected = found.clone();
        expected.step(&Step::Append(vec![entry]), |_| {});
        expected.vote = Some(Bytes::from_static(b"again"));
        log.close().await.map_err(fault)?;
        drop(log);
        open_again(&disk, &expected)
            .await
            .map_err(|e| format!("opened after more was written: {e}"))?;
        Ok(found)
    });
    let found = sim.block_on(task).map_err(|halt| halt.to_string())?;
    sim.end();
    found.map_err(|e| e.to_string())?
}

fn open_existing(disk: &Arc<SimDisk>) -> Result<Log, String> {
    Log::open(Arc::clone(disk) as _, Path::new(DIR), settings()).map_err(|e| e.to_string())
}

async fn open_again(disk: &Arc<SimDisk>, expected: &Model) -> Result<Log, String> {
    let log = open_existing(disk)?;
    let found = read_all(&log).await?;
    if found != *expected {
        return Err(format!(
            "opened once more: {}, not {}",
            tell(&found),
            tell(expected)
        ));
    }
    Ok(log)
}

async fn read_all(log: &Log) -> Result<Model, String> {
    let mut entries = BTreeMap::new();
    let last = log.last().map_or(0, |last| last.index.number());
    let mut next = log.purged().map_or(0, |purged| purged.index.number()) + 1;
    while next <= last {
        let range = LogIndex::new(next)..LogIndex::new(last + 1);
        let read = log.read(range, 5000).await.map_err(|fault| fault.to_string())?;
        if read.is_empty() {
            return Err(format!("nothing to read at {next}, though the last is {last}"));
        }
        for entry in read {
            if entry.position.index.number() != next {
                return Err(format!("{} comes where {next} should", entry.position));
            }
            next += 1;
            entries.insert(entry.position.index, entry);
        }
    }
    Ok(Model {
        entries,
        purged: log.purged(),
        vote: log.vote(),
    })
}

fn tell(model: &Model) -> String {
    let positions = model.entries.values().map(|e| e.position.to_string());
    format!(
        "entries {:?}, purged {:?}, vote {:?}",
        positions.collect::<Vec<_>>(),
        model.purged.map(|p| p.to_string()),
        model.vote
    )
}

/// What `open` finds in an image must be a state of the workload, and none from before `least`.
fn check(image: &DiskImage, states: &[Model], least: usize, story: &str) {
    let found = open(image).unwrap_or_else(|error| panic!("{story}: {error}"));
    let at = states.iter().rposition(|state| *state == found);
    match at {
        Some(at) if at >= least => {}
        Some(at) => panic!(
            "{story}: the log went back to state {at}, {least} was acknowledged: {}",
            tell(&found)
        ),
        None => panic!(
            "{story}: not a state that ever was: {}; acknowledged was {}",
            tell(&found),
            tell(&states[least])
        ),
    }
}

/// Runs the workload of a seed once for every call of the disk, with the power failing before it.
fn every_crash(seed: u64, steps: usize, overlap: bool) -> u64 {
    let steps = workload(seed, steps);
    let (states, ends) = states(&steps);
    let mut images = 0;
    for calls in 0.. {
        let sim = Simulation::new(seed);
        let host = sim.host(1);
        // The pending operations stay as they are, for the images.
        host.arm("disk.*", calls, CrashAction::SwitchOff(PowerLoss::ProcessOnly));
        let acknowledged = sim.block_on(run(&sim, steps.clone(), overlap)).unwrap();
        let (finished, disk) = (host.is_alive(), host.disk());
        sim.end();
        if finished {
            assert_eq!(
                acknowledged,
                Some(steps.len()),
                "without a crash everything is acknowledged"
            );
            return images;
        }
        let Some(acknowledged) = acknowledged else {
            images += check_making(&disk, &format!("seed {seed}, power lost before call {calls}"));
            continue;
        };
        let least = acknowledged.checked_sub(1).map_or(0, |step| ends[step]);
        let mut all: Vec<(String, DiskImage)> = disk
            .survivors()
            .iter()
            .map(|survivors| (survivors.name.clone(), disk.after_power_loss(survivors)))
            .collect();
        for torn in 0..4 {
            let power = PowerLoss::Sectors { kept_permille: 500 };
            all.push((format!("torn {torn}"), disk.after_drawn_power_loss(power, torn)));
        }
        for (name, image) in all {
            images += 1;
            let story = format!("seed {seed}, power lost before call {calls}, survivors: {name}");
            check(&image, &states, least, &story);
            // Recovery itself may be cut short, which must not make things worse.
            if images % 16 == 0 {
                images += every_crash_of_recovery(&image, &states, least, &story);
            }
        }
    }
    images
}

/// A log whose making was interrupted can be made again, and is empty.
fn check_making(disk: &SimDisk, story: &str) -> u64 {
    let mut images = 0;
    for survivors in disk.survivors() {
        images += 1;
        let sim = Simulation::new(0);
        let host = sim.host(1);
        host.disk().load(&disk.after_power_loss(&survivors));
        let disk = Arc::new(host.disk());
        let task = host.spawn("make", async move {
            let log = Log::open(disk, Path::new(DIR), settings().create()).map_err(|e| e.to_string())?;
            read_all(&log).await
        });
        let found = sim.block_on(task).unwrap().unwrap();
        sim.end();
        assert_eq!(
            found,
            Ok(Model::default()),
            "{story}, survivors: {}",
            survivors.name
        );
    }
    images
}

fn every_crash_of_recovery(image: &DiskImage, states: &[Model], least: usize, story: &str) -> u64 {
    let mut images = 0;
    for calls in 0.. {
        let sim = Simulation::new(0);
        let host = sim.host(1);
        host.disk().load(image);
        host.arm("disk.*", calls, CrashAction::SwitchOff(PowerLoss::ProcessOnly));
        let opening = Arc::new(host.disk());
        let task = host.spawn("recover", async move { open_existing(&opening).map(drop) });
        let _ = sim.block_on(task).unwrap();
        let (finished, disk) = (host.is_alive(), host.disk());
        sim.end();
        for survivors in disk.survivors() {
            images += 1;
            let story = format!(
                "{story}; then before call {calls} of recovery, survivors: {}",
                survivors.name
            );
            check(&disk.after_power_loss(&survivors), states, least, &story);
        }
        if finished {
            break;
        }
    }
    images
}

#[test]
fn a_log_is_found_as_a_prefix_of_its_calls_and_never_without_what_was_acknowledged() {
    let images: u64 = (0..3).map(|seed| every_crash(seed, 14, false)).sum();
    assert!(images > 1000, "{images} images");
}

#[test]
fn a_log_with_calls_under_way_is_found_as_a_prefix_of_them() {
    let images: u64 = (10..13).map(|seed| every_crash(seed, 14, true)).sum();
    assert!(images > 1000, "{images} images");
}
