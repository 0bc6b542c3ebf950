//! Snapshots on slow ways (findings B10): what follows them stays in the log.

use quorate_tests::sim::cluster::{Fault, Phase, Plan, Target};
use quorate_tests::sim::scene::{at, held, isolate, marks, ms, plan, when};

/// Followers fall behind the log whenever they are cut off, and a snapshot has many chunks.
fn behind(seed: u64, schedule: Vec<quorate_tests::sim::cluster::FaultEvent>) -> Plan {
    let mut plan = plan(seed, 3, schedule);
    plan.pause_max = ms(2);
    plan.tuning.snapshot_entries = 10;
    plan.tuning.log_entries_kept = 0;
    plan.tuning.small.snapshot_chunk_bytes = 64;
    plan
}

/// The story: the log was purged while a snapshot was on its way, so that where sending took longer than the log kept, the
/// next snapshot followed the first, and the follower never caught up.
#[test]
fn the_log_behind_a_snapshot_on_its_way_stays_until_it_has_arrived() {
    let slow = |seed| {
        let held_up = Fault::HalfOpen {
            from: Target::Follower,
            to: Target::Leader,
            lasts: ms(700),
        };
        behind(
            seed,
            vec![
                at(800, isolate(Target::Follower, 900)),
                when(1_650, Phase::Snapshot, held_up),
            ],
        )
    };
    let reports = held(6, slow);
    assert!(marks(&reports, "snapshot.installed") > 0, "none was installed");
    // A follower that was behind needs one, however long it took to come.
    for report in &reports {
        let installed = report
            .marks
            .get("snapshot.installed")
            .copied()
            .unwrap_or_default();
        assert!(
            installed <= 1,
            "seed {}: {installed} snapshots, one after the other",
            report.seed
        );
    }
}
