//! Clusters in the simulator: a few seeds, each a whole life with faults and a judgement.
//!
//! The program `simulate` runs them by the thousand.

use quorate_tests::sim::Simulation;
use quorate_tests::sim::cluster::{self, Plan, Report};

fn run(seed: u64) -> Report {
    let report = cluster::run(&Simulation::new(seed), &Plan::of_seed(seed));
    assert_eq!(report.failure, None, "repeat: simulate --seed {seed} --trace");
    report
}

#[test]
fn clusters_keep_what_they_acknowledged_through_the_faults_of_a_dozen_seeds() {
    let reports: Vec<Report> = (0..12).map(run).collect();
    let written: u64 = reports.iter().map(|r| r.operations.written).sum();
    let read: u64 = reports.iter().map(|r| r.operations.read).sum();
    assert!(written > 500 && read > 500, "{written} written, {read} read");
    // What did not happen was not tested.
    let lost: u64 = reports.iter().map(|r| r.disks.bytes_lost).sum();
    let faults = |f: fn(&Report) -> u64| reports.iter().map(f).sum::<u64>();
    assert!(lost > 0, "no power loss took a byte");
    assert!(faults(|r| r.faults.kills) > 0, "nobody was killed");
    assert!(faults(|r| r.faults.cuts) > 0, "no link was cut");
    assert!(faults(|r| r.faults.pauses) > 0, "nobody was paused");
}

#[test]
fn a_cluster_lives_the_same_life_twice() {
    for seed in [3, 4] {
        let (first, second) = (run(seed), run(seed));
        assert_eq!(
            (first.events, first.hash),
            (second.events, second.hash),
            "seed {seed}"
        );
    }
}
