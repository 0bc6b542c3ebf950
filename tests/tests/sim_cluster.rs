//! Clusters in the simulator: whole lives with faults and a judgement.
//!
//! The program `simulate` runs them by the thousand, and shrinks what fails into a plan under `tests/plans`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use quorate_tests::sim::campaign::Campaign;
use quorate_tests::sim::cluster::{self, Kind, Plan, PlanError};

/// As many seeds as a change can wait for; nightly runs take fresh ones.
const SEEDS: u64 = 200;

#[test]
fn clusters_keep_what_they_acknowledged_through_the_faults_of_200_seeds() {
    let campaign = Campaign::of(0..SEEDS);
    let summary = campaign.run(|report| {
        if let Some(failure) = &report.failure {
            let seed = report.seed;
            eprintln!("seed {seed}: {failure}\n  repeat: simulate --seed {seed} --trace");
        }
    });
    let failed: Vec<_> = summary.failed.iter().map(|f| (f.seed, &f.failure.rule)).collect();
    assert!(failed.is_empty(), "{failed:?}");
    // What did not happen was not tested.
    let empty = summary.empty_cells(&campaign);
    assert_eq!(empty, Some(Vec::new()), "required cells are empty");
    assert!(summary.written > 5_000 && summary.read > 5_000, "{summary:?}");
    assert!(
        summary.power_losses_with_lost_bytes > 0,
        "no power loss took a byte"
    );
    assert!(
        summary.mark("snapshot.installed") > 0,
        "no snapshot was installed"
    );
    assert!(summary.mark("raft.truncate") > 0, "no log was truncated");
    assert!(
        summary.mark("space.nothing_grows") > 0 && summary.mark("space.refused") > 0,
        "no store was full"
    );
    assert!(
        summary.mark("log.purged_by_bytes") > 0,
        "no log took more of its disk than it may"
    );
    assert!(
        summary.mark("network.late_message") > 0,
        "no message of a process that was killed came after its successor had started"
    );
}

#[test]
fn every_plan_that_was_kept_holds_now() {
    for path in kept_plans() {
        let plan = Plan::read(&path).unwrap_or_else(|error| panic!("{error}"));
        let report = cluster::run_plan(&plan);
        let name = path.display();
        assert_eq!(report.failure, None, "repeat: simulate --plan {name} --trace");
    }
}

fn kept_plans() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("plans");
    let entries = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("a readable directory").path())
        .collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "toml"));
    paths.sort();
    paths
}

#[test]
fn a_plan_read_back_from_its_file_is_the_same_plan_and_the_same_run() {
    let dir = tempfile::tempdir().expect("a directory");
    for seed in 0..100 {
        let plan = Plan::of_seed(seed);
        let path = dir.path().join("plan.toml");
        plan.write(&path)
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let read = Plan::read(&path).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(read, plan, "seed {seed}");
    }
}

#[test]
fn a_plan_of_another_version_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("plan.toml");
    let text = Plan::of_seed(1).to_text().expect("a plan that can be written");
    let other = format!("version = {}", Plan::VERSION + 1);
    let changed = text.replace(&format!("version = {}", Plan::VERSION), &other);
    fs::write(&path, changed).expect("a file");
    let refused = Plan::read(&path);
    assert!(
        matches!(&refused, Err(PlanError::Version { found, .. }) if *found == i64::from(Plan::VERSION) + 1),
        "{refused:?}"
    );
}

#[test]
fn a_plan_with_one_kind_of_fault_has_no_other() {
    for kind in Kind::ALL {
        let plan = Plan::of_seed_with_only(7, kind);
        assert!(!plan.schedule.is_empty(), "{kind}");
        assert!(
            plan.schedule.iter().all(|event| event.fault.kind() == kind),
            "{kind}"
        );
    }
}

/// A process that prints every event of a seed.
fn events_of(seed: u64) -> Child {
    Command::new(env!("CARGO_BIN_EXE_simulate"))
        .args(["--seed", &seed.to_string(), "--trace", "--events"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the simulator starts")
}

#[test]
fn a_seed_is_the_same_life_in_two_processes_event_for_event() {
    for seed in [3, 4, 5] {
        let mut processes = [events_of(seed), events_of(seed)];
        let outputs = processes
            .each_mut()
            .map(|p| p.stdout.take().expect("it was piped"));
        let [mut first, mut second] = outputs.map(|output| BufReader::new(output).lines());
        let mut events = 0;
        let mut before = String::new();
        loop {
            let next = [first.next(), second.next()].map(|line| line.map(|l| l.expect("text")));
            match next {
                [None, None] => break,
                [one, other] if one != other => {
                    panic!(
                        "seed {seed}: the first difference is event {events}: {one:?} here, {other:?} there, after {before}"
                    )
                }
                [one, _] => before = one.unwrap_or_default(),
            }
            events += 1;
        }
        assert!(events > 1_000, "seed {seed} had {events} events only");
        for mut process in processes {
            assert!(process.wait().expect("it ended").success(), "seed {seed} failed");
        }
    }
}
