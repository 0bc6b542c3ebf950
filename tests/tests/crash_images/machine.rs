//! The state file: entries applied, made durable, and replaced by a snapshot.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use quorate_kv::env::Disk as _;
use quorate_kv::fault::Fault;
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
    // Each checkpoint leaves a run, and every two are merged, in steps.
    settings.tuning.run_rows = 0;
    settings.tuning.runs_merged = 2;
    settings.tuning.merge_rows = 3;
    settings.tuning.block_bytes = 150;
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
        full_at: None,
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
    let (machine, _reader) = open(disk, OpenMode::Create).ok()?;
    Some(go(disk, machine, steps, states))
}

/// The same on a machine that is open.
fn go(disk: &SimDisk, mut machine: Machine, steps: &[Step], states: &mut States) -> Option<LogPosition> {
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
            Step::MakeDurable => make_durable(&mut machine).map_err(|e| e.to_string()),
            Step::Install { chunks, .. } => install(disk, &mut machine, chunks),
        };
        if done.is_err() {
            break;
        }
        note(&machine);
    }
    machine.durable()
}

/// And merges what is to be merged.
fn make_durable(machine: &mut Machine) -> Result<(), Fault> {
    machine.make_durable()?;
    while let Some(step) = machine.begin_merging_at_rest() {
        machine.end_checkpoint(step.write())?;
    }
    Ok(())
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

    // A scrub takes nothing that the crash left for rot.
    let mut scrubber = reader.scrubber();
    while scrubber.step().unwrap_or_else(|e| panic!("{story}: {e}")).left > 0 {}

    // The log replays the rest, and the end is the same.
    let all = steps.iter().flat_map(Step::entries);
    let rest: Vec<Entry> = all
        .filter(|e| Some(e.position) > applied.position)
        .cloned()
        .collect();
    machine.apply(rest).unwrap_or_else(|e| panic!("{story}: {e}"));
    make_durable(&mut machine).unwrap_or_else(|e| panic!("{story}: {e}"));
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

/// What is left of a workload behind an entry.
fn rest(steps: &[Step], applied: Option<LogPosition>) -> Vec<Step> {
    let left = |step: &Step| match step {
        Step::Apply(entries) => {
            let left = entries.iter().filter(|e| Some(e.position) > applied);
            Step::Apply(left.cloned().collect())
        }
        Step::Install { entries, .. } if entries.last().map(|e| e.position) <= applied => {
            Step::Apply(Vec::new())
        }
        other => other.clone(),
    };
    steps.iter().map(left).collect()
}

/// A process that runs the workload on a new disk until something ends it. Answers the disk as the next process
/// sees it, and what the first knew to be durable; `None` where it did not come to be, and is begun anew.
fn ended(disk: &SimDisk, steps: &[Step], states: &mut States) -> Option<(SimDisk, Option<LogPosition>)> {
    let durable = run(disk, steps, states)?;
    Some((disk.restarted(), durable))
}

/// The next process opens what the one before left, all of which counts as durable then, and goes on with the workload
/// until the disk fails. Answers what it knew to be durable, and how many calls of the disk its opening made.
fn restart(disk: &SimDisk, steps: &[Step], states: &mut States, story: &str) -> (Option<LogPosition>, u64) {
    let before = disk.calls();
    let (machine, _reader) = open(disk, OpenMode::Existing).unwrap_or_else(|e| panic!("{story}: {e}"));
    let opened = disk.calls() - before;
    let applied = machine.applied().position;
    let durable = go(disk, machine, &rest(steps, applied), states);
    (durable.max(applied), opened)
}

/// A process ends, another starts on what it left, and the power fails: before each call of the opening, and
/// before some of those that follow.
fn every_power_loss_after_a_restart(
    end: impl Fn(&mut States) -> (SimDisk, Option<LogPosition>),
    steps: &[Step],
    states: &mut States,
    story: &str,
) -> u64 {
    let (disk, _) = end(states);
    let (_, opening) = restart(&disk, steps, states, story);
    let mut images = 0;
    for calls in (0..=opening).chain((opening + 3..opening + 24).step_by(3)) {
        let (disk, mut durable) = end(states);
        let story = format!("{story}; then power is lost before call {calls}, {opening} open the file");
        let before = disk.calls();
        disk.stop_after(calls);
        if calls < opening {
            let interrupted = open(&disk, OpenMode::Existing);
            assert!(interrupted.is_err(), "{story}");
        } else {
            (durable, _) = restart(&disk, steps, states, &story);
        }
        if disk.calls() < before + calls {
            break;
        }
        for power in [
            PowerLoss::LoseAll,
            PowerLoss::KeepAll,
            PowerLoss::AllButOne,
            PowerLoss::HeaderOnly,
        ] {
            images += 1;
            let story = format!("{story}, {power:?}");
            check(
                &disk.after_drawn_power_loss(power, images),
                steps,
                states,
                durable,
                &story,
            );
        }
    }
    images
}

/// A sync of the state file fails and the process starts again at once. It reads pages that stand in the operating
/// system's memory only, takes the state for durable, has the log purged behind it, and goes on writing. Then the power
/// fails. That redb needs no help against it is what this shows: `docs/upstream.md`.
#[test]
fn what_a_failed_sync_left_is_durable_once_the_state_file_was_opened_again() {
    let steps = with_snapshot(workload(1, 6));
    let (mut states, mut images) = (States::new(), 0);
    run(&new_disk(0), &steps, &mut states).unwrap();
    for failing in 0.. {
        for seed in 0..3 {
            let disk = new_disk(seed);
            disk.fail_sync_after(failing);
            let begun = ended(&disk, &steps, &mut states).is_some();
            if !disk.has_failed_sync() {
                assert!(images > 1000, "{images} images of {failing} syncs");
                return;
            }
            let end = |states: &mut States| {
                let disk = new_disk(seed);
                disk.fail_sync_after(failing);
                ended(&disk, &steps, states).expect("it began before")
            };
            if begun {
                let story = format!("sync {failing} of disk {seed} fails");
                images += every_power_loss_after_a_restart(end, &steps, &mut states, &story);
            }
        }
    }
}

/// The story: a snapshot had taken the state's name, and the process died before that was durable. The next one took
/// it for durable, had the log purged behind it, and the power failed: the old state was there again, and the log began
/// behind its end.
#[test]
fn what_the_death_of_a_process_left_is_durable_once_the_state_file_was_opened_again() {
    let steps = with_snapshot(workload(1, 6));
    let (mut states, mut images) = (States::new(), 0);
    run(&new_disk(0), &steps, &mut states).unwrap();
    for dying in 0.. {
        let disk = new_disk(0);
        let before = disk.calls();
        disk.stop_after(dying);
        let begun = ended(&disk, &steps, &mut states).is_some();
        if disk.calls() < before + dying {
            assert!(images > 1000, "{images} images of {dying} calls");
            return;
        }
        let end = |states: &mut States| {
            let disk = new_disk(0);
            disk.stop_after(dying);
            ended(&disk, &steps, states).expect("it began before")
        };
        if begun {
            let story = format!("the process dies before call {dying}");
            images += every_power_loss_after_a_restart(end, &steps, &mut states, &story);
        }
    }
}
