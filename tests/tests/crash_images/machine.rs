//! The state file: entries applied, made durable, and replaced by a snapshot.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use quorate_kv::env::Disk as _;
use quorate_kv::machine::{Entry, Machine, MachineSettings, OpenMode, Payload, Reader};
use quorate_kv::model::{
    self, Command, Key, LogIndex, LogPosition, LogTime, NodeId, Op, Proposal, StateHash, Term, Txn,
};
use quorate_tests::sim::disk::DiskImage;
use quorate_tests::sim::{PowerLoss, Rng, SimDisk};

const DIR: &str = "/state";

fn settings() -> MachineSettings {
    let mut settings = MachineSettings::default();
    settings.cache_bytes = 1 << 20;
    settings
}

fn open(disk: &SimDisk, mode: OpenMode) -> Result<(Machine, Reader), String> {
    Machine::open(Arc::new(disk.clone()), Path::new(DIR), mode, settings()).map_err(|e| e.to_string())
}

/// A step of the workload.
#[derive(Debug, Clone)]
enum Step {
    Apply(Vec<Entry>),
    MakeDurable,
    /// A snapshot comes from another node that has applied these entries besides.
    Install {
        entries: Vec<Entry>,
        chunks: Vec<Bytes>,
    },
}

impl Step {
    fn entries(&self) -> &[Entry] {
        match self {
            Step::Apply(entries) | Step::Install { entries, .. } => entries,
            Step::MakeDurable => &[],
        }
    }
}

/// The same workload, with one of its calls of `apply` replaced by a snapshot from a node that made it.
fn with_snapshot(mut steps: Vec<Step>) -> Vec<Step> {
    let applies = steps
        .iter()
        .enumerate()
        .filter(|(_, s)| matches!(s, Step::Apply(_)));
    let replaced = applies
        .map(|(i, _)| i)
        .nth(2)
        .expect("three calls of apply at least");
    let disk = new_disk(99);
    let (mut machine, reader) = open(&disk, OpenMode::Create).unwrap();
    for step in &steps[..=replaced] {
        machine.apply(step.entries().to_vec()).unwrap();
    }
    machine.make_durable().unwrap();
    let mut source = reader.snapshot().unwrap();
    let chunks = std::iter::from_fn(|| source.next_chunk().unwrap()).collect();
    let entries = steps[replaced].entries().to_vec();
    steps[replaced] = Step::Install { entries, chunks };
    steps
}

fn install(disk: &SimDisk, machine: &mut Machine, chunks: &[Bytes]) -> Result<(), String> {
    let disk = Arc::new(disk.clone());
    let mut sink = Machine::snapshot_sink(disk, Path::new(DIR)).map_err(|e| e.to_string())?;
    for chunk in chunks {
        sink.write(chunk).map_err(|e| e.to_string())?;
    }
    let received = sink.finish().map_err(|e| e.to_string())?;
    machine.install(received).map_err(|e| e.to_string())
}

fn workload(seed: u64, steps: usize) -> Vec<Step> {
    let mut random = Rng::new(seed).fork("workload");
    let mut index = 0;
    let step = |_| {
        if random.one_in(3) {
            return Step::MakeDurable;
        }
        let entries = (0..random.between(1, 3)).map(|_| {
            index += 1;
            entry(index, &mut random)
        });
        Step::Apply(entries.collect())
    };
    (0..steps).map(step).collect()
}

fn entry(index: u64, random: &mut Rng) -> Entry {
    let commands = (0..random.between(1, 3)).map(|_| {
        let key = Key::new(format!("key {}", random.below(8))).unwrap();
        let len = *random.pick(&[0, 10, 100, 5000]);
        let op = if random.one_in(4) {
            Op::delete(key)
        } else {
            Op::put(key, Bytes::from(vec![random.next_u64() as u8; len]))
        };
        Command::Txn {
            session: None,
            txn: Txn::new([op]),
        }
    });
    let proposal = Proposal {
        stamp: LogTime::from_millis(index * 1000),
        commands: commands.collect(),
    };
    Entry {
        position: LogPosition {
            term: Term::new(1),
            leader: NodeId::new(1),
            index: LogIndex::new(index),
        },
        payload: Payload::Proposal(model::encode(&proposal).into()),
    }
}

/// Where a machine stands after its making, and after each call of `apply`.
type States = BTreeMap<Option<LogPosition>, StateHash>;

/// Runs a workload until its end, or until the disk fails; answers up to which entry it was made durable.
fn run(disk: &SimDisk, steps: &[Step], states: &mut States) -> Option<Option<LogPosition>> {
    let (mut machine, _reader) = open(disk, OpenMode::Create).ok()?;
    let mut note = |machine: &Machine| {
        let applied = machine.applied();
        let before = states.insert(applied.position, applied.state_hash);
        assert!(
            before.is_none_or(|hash| hash == applied.state_hash),
            "two states at {:?}",
            applied.position
        );
    };
    note(&machine);
    for step in steps {
        let done = match step {
            Step::Apply(entries) => machine
                .apply(entries.clone())
                .map(drop)
                .map_err(|e| e.to_string()),
            Step::MakeDurable => machine.make_durable().map_err(|e| e.to_string()),
            Step::Install { chunks, .. } => install(disk, &mut machine, chunks),
        };
        if done.is_err() {
            break;
        }
        note(&machine);
    }
    Some(machine.durable())
}

/// An image must open with a state that was, whole, and none from before `durable`.
fn check(image: &DiskImage, steps: &[Step], states: &States, durable: Option<LogPosition>, story: &str) {
    let disk = SimDisk::of_image(image);
    let (mut machine, reader) = open(&disk, OpenMode::Existing).unwrap_or_else(|e| panic!("{story}: {e}"));
    let applied = machine.applied().clone();
    assert!(
        applied.position >= durable,
        "{story}: back at {:?}, durable was {durable:?}",
        applied.position
    );
    let hash = states.get(&applied.position);
    assert_eq!(
        hash,
        Some(&applied.state_hash),
        "{story}: not a state that ever was: {applied:?}"
    );
    let verified = reader.view().and_then(|view| view.verify_hash());
    assert_eq!(
        verified.ok(),
        Some(applied.state_hash),
        "{story}: the rows are not those of the state"
    );

    // The log replays the rest, and the end is the same.
    let all = steps.iter().flat_map(Step::entries);
    let rest: Vec<Entry> = all
        .filter(|e| Some(e.position) > applied.position)
        .cloned()
        .collect();
    machine.apply(rest).unwrap_or_else(|e| panic!("{story}: {e}"));
    machine.make_durable().unwrap_or_else(|e| panic!("{story}: {e}"));
    let end = machine.applied();
    assert_eq!(
        states.last_key_value(),
        Some((&end.position, &end.state_hash)),
        "{story}: after the replay"
    );
}

/// A state file whose making was interrupted can be made again.
fn check_making(image: &DiskImage, story: &str) {
    let disk = SimDisk::of_image(image);
    let (machine, _reader) = open(&disk, OpenMode::Create).unwrap_or_else(|e| panic!("{story}: {e}"));
    assert_eq!(machine.applied().position, None, "{story}");
}

/// A disk on which the node has made the state's directory.
fn new_disk(seed: u64) -> SimDisk {
    let disk = SimDisk::standalone(seed);
    disk.create_dir_all(Path::new(DIR)).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk
}

fn every_crash(seed: u64, steps: Vec<Step>) -> u64 {
    let mut states = States::new();
    run(&new_disk(seed), &steps, &mut states).unwrap();
    let mut images = 0;
    for calls in 0.. {
        let disk = new_disk(seed);
        let before = disk.calls();
        disk.stop_after(calls);
        let durable = run(&disk, &steps, &mut states);
        if disk.calls() < before + calls {
            break;
        }
        let survivors = disk.survivors();
        let enumerated = survivors
            .iter()
            .map(|s| (s.name.clone(), disk.after_power_loss(s)));
        let torn = (0..6).map(|n| {
            let power = PowerLoss::Sectors { kept_permille: 500 };
            (format!("torn {n}"), disk.after_drawn_power_loss(power, n))
        });
        for (name, image) in enumerated.chain(torn) {
            images += 1;
            let story = format!("seed {seed}, power lost before call {calls}, survivors: {name}");
            match durable {
                Some(durable) => check(&image, &steps, &states, durable, &story),
                None => check_making(&image, &story),
            }
        }
    }
    images
}

#[test]
fn a_state_file_is_found_whole_and_never_without_what_was_durable() {
    let images = every_crash(0, workload(0, 8));
    assert!(images > 800, "{images} images");
}

#[test]
fn a_state_file_that_a_snapshot_replaces_is_found_as_the_old_one_or_the_new_one() {
    let images = every_crash(1, with_snapshot(workload(1, 6)));
    assert!(images > 800, "{images} images");
}
