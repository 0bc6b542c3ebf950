//! Who leads after a leader, and when: as soon as its process has ended, after silence as promised, and never for one
//! witness's word; and a leader without its quorum, which leads no more.
//!
//! Scenes of the simulator ([`quorate_tests::sim::scene`]). Heartbeats come every 100 ms, and another leader is promised
//! within 1 to 2 s of the last sign of life. A status is looked at every 5 ms.

use std::time::Duration;

use quorate_kv::planted::Bug;
use quorate_tests::sim::PowerLoss;
use quorate_tests::sim::cluster::{self, Fault, FaultEvent, Plan, Reach, Report, Target};
use quorate_tests::sim::scene::{
    CLEAN_SEEDS, at, caught_when_on_and_held_when_off, held, isolate, marks, ms, plan, stall, with,
};

const HEARTBEAT: Duration = ms(100);
const PROMISED_MIN: Duration = ms(1_000);
const PROMISED_MAX: Duration = ms(2_000);
/// When the leader ends: long after it was elected.
const END: u64 = 4_000;

fn scene(seed: u64, nodes: u32, faulty: u64, schedule: Vec<FaultEvent>) -> Plan {
    let mut plan = plan(seed, nodes, schedule);
    plan.tuning.heartbeat = HEARTBEAT;
    plan.faulty = ms(faulty);
    plan
}

/// Who led while faults happened: the term, the node, and since when. Behind them the power fails everywhere.
fn leaders(report: &Report, faulty: u64) -> Vec<(u64, u32, Duration)> {
    let led = report.leaders.iter().filter(|(.., since)| *since < ms(faulty));
    led.copied().collect()
}

/// How long after the first leader's end another one led.
#[track_caller]
fn succeeded_after(report: &Report) -> Duration {
    let [first, second, ..] = report.leaders[..] else {
        panic!("nobody led in the place of who ended: {:?}", report.leaders);
    };
    assert!(
        first.2 < ms(END) && first.1 != second.1,
        "the first leader did not last until its end: {:?}",
        report.leaders
    );
    second.2.saturating_sub(ms(END))
}

/// The story: a killed leader was succeeded after its lease and an election timeout, 7.0 to 8.6 s in the development profile.
#[test]
fn the_end_of_a_leaders_process_is_followed_by_an_election_before_its_lease_is_over() {
    let killed = |seed| {
        let kill = Fault::Kill {
            target: Target::Leader,
            down: ms(3_000),
        };
        scene(seed, 3, END + 2_500, vec![at(END, kill)])
    };
    let reports = held(5, killed);
    for report in &reports {
        let after = succeeded_after(report);
        assert!(after < ms(500), "seed {}: {after:?}", report.seed);
        let led = leaders(report, END + 2_500);
        assert_eq!(led.len(), 2, "seed {}: {led:?}", report.seed);
    }
    assert!(marks(&reports, "raft.succeeds_ended") >= 5);
}

/// The story: a leader whose disk hung for ever led on, took writes until its queue was full, and then nobody could write, while
/// two of three disks were well and everything looked so.
#[test]
fn a_leader_whose_disk_hangs_hands_leadership_on() {
    let hangs = |seed| scene(seed, 3, END + 5_000, vec![at(END, stall(Target::Leader, 8_000))]);
    let reports = held(8, hangs);
    // Where the sync that hangs is that of a segment which is being made for later, the leader writes on, and leads on.
    let hung = |report: &&Report| report.marks.contains_key("leader.disk_hangs");
    assert!(reports.iter().filter(hung).count() >= 5);
    for report in reports.iter().filter(hung) {
        let after = succeeded_after(report);
        let slack = PROMISED_MAX / 8;
        assert!(after > PROMISED_MAX, "seed {}: {after:?}", report.seed);
        assert!(
            after < PROMISED_MAX + 5 * HEARTBEAT + slack,
            "seed {}: {after:?}",
            report.seed
        );
    }
}

/// A host that lost its power says nothing of its processes: that is silence, and waited out.
#[test]
fn a_leader_whose_host_is_gone_is_succeeded_as_promised() {
    let gone = |seed| {
        let off = Fault::PowerLoss {
            target: Target::Leader,
            reach: Reach::One,
            loss: PowerLoss::Drawn,
            down: ms(4_000),
        };
        scene(seed, 3, END + 3_500, vec![at(END, off)])
    };
    let reports = held(5, gone);
    for report in &reports {
        let after = succeeded_after(report);
        let promised = PROMISED_MIN - HEARTBEAT..=PROMISED_MAX;
        assert!(promised.contains(&after), "seed {}: {after:?}", report.seed);
    }
    assert_eq!(marks(&reports, "raft.succeeds_ended"), 0);
}

#[test]
fn a_leader_that_pauses_for_less_than_is_promised_leads_on() {
    let paused = |seed| {
        let pause = Fault::Pause {
            target: Target::Leader,
            lasts: ms(750),
        };
        scene(seed, 3, END + 3_000, vec![at(END, pause)])
    };
    for report in held(CLEAN_SEEDS, paused) {
        let led = leaders(&report, END + 3_000);
        assert_eq!(led.len(), 1, "seed {}: {led:?}", report.seed);
    }
    let hasty = with(Bug::LeaseEndedBySilence, CLEAN_SEEDS, paused);
    assert!(
        hasty.iter().any(|report| leaders(report, END + 3_000).len() > 1),
        "silence was taken for an end, and nobody stood"
    );
}

#[test]
fn one_voter_that_takes_the_leader_for_dead_changes_nothing() {
    let misled = |seed| {
        let told = |millis| {
            let target = Target::Follower;
            at(millis, Fault::FalseEnd { target })
        };
        // Twice the same one.
        scene(seed, 3, END + 3_000, vec![told(END), told(END + 1_000)])
    };
    for report in held(CLEAN_SEEDS, misled) {
        let led = leaders(&report, END + 3_000);
        assert_eq!(led.len(), 1, "seed {}: {led:?}", report.seed);
    }
    let credulous = with(Bug::EndByOneWitness, CLEAN_SEEDS, misled);
    assert!(
        credulous
            .iter()
            .all(|report| leaders(report, END + 3_000).len() > 1),
        "one witness sufficed, and nobody stood"
    );
}

/// All are wrong at once: the leader lives, is deposed, and nothing is lost or read too old.
#[test]
fn a_majority_that_takes_a_living_leader_for_dead_costs_an_election_and_nothing_else() {
    let misled = |seed| {
        let everyone = |millis| {
            (0..3).map(move |node| {
                let target = Target::Nth(node);
                at(millis, Fault::FalseEnd { target })
            })
        };
        let mut plan = scene(
            seed,
            3,
            END + 3_000,
            everyone(END).chain(everyone(END + 1_000)).collect(),
        );
        plan.readers = 6;
        plan.keys = 2;
        plan
    };
    for report in held(5, misled) {
        // Its own log goes on while the others agree, so that it may be elected again.
        let led = leaders(&report, END + 3_000);
        let soon = |(.., since): &(u64, u32, Duration)| *since > ms(END) && *since < ms(END) + PROMISED_MAX;
        assert!(led.iter().any(soon), "seed {}: {led:?}", report.seed);
    }
}

/// The story: four nodes, the leader cut from all but one; its heartbeats kept that one from voting, and there was no leader
/// for the 90 s that the cut lasted.
#[test]
fn a_leader_that_reaches_one_node_alone_keeps_it_from_electing_nobody() {
    let bridge = |seed| {
        let bridge = Fault::Bridge {
            target: Target::Leader,
            lasts: ms(20_000),
        };
        let mut plan = scene(seed, 4, END + 15_000, vec![at(END, bridge)]);
        plan.pause_max = ms(200);
        plan
    };
    let rules = [("Failover", "nobody leads them")];
    for report in caught_when_on_and_held_when_off(Bug::NoStepDown, &rules, bridge) {
        let after = succeeded_after(&report);
        assert!(after <= PROMISED_MAX, "seed {}: {after:?}", report.seed);
        let led = leaders(&report, END + 15_000);
        assert_eq!(led.len(), 2, "seed {}: {led:?}", report.seed);
    }
}

#[test]
fn a_leader_that_is_cut_off_one_way_is_succeeded_as_promised() {
    let cut = |hears: bool| {
        move |seed| {
            let cuts = (0..3).map(|node| {
                let (leader, other) = (Target::Leader, Target::Nth(node));
                let (from, to) = if hears { (leader, other) } else { (other, leader) };
                let lasts = ms(6_000);
                at(END, Fault::CutOneWay { from, to, lasts })
            });
            scene(seed, 3, END + 5_000, cuts.collect())
        }
    };
    for hears in [true, false] {
        for report in held(5, cut(hears)) {
            let after = succeeded_after(&report);
            assert!(
                after <= PROMISED_MAX,
                "it hears the others: {hears}, seed {}: {after:?}",
                report.seed
            );
        }
    }
}

#[test]
fn a_leader_that_was_cut_off_has_stepped_down_and_disturbs_nobody_when_it_returns() {
    let cut = |seed| {
        scene(
            seed,
            5,
            END + 8_000,
            vec![at(END, isolate(Target::Leader, 4_000))],
        )
    };
    let reports = held(CLEAN_SEEDS, cut);
    for report in &reports {
        let after = succeeded_after(report);
        assert!(after <= PROMISED_MAX, "seed {}: {after:?}", report.seed);
        let led = leaders(report, END + 8_000);
        assert_eq!(led.len(), 2, "seed {}: {led:?}", report.seed);
        assert_eq!(led[1].0, led[0].0 + 1, "seed {}: {led:?}", report.seed);
    }
    assert!(marks(&reports, "raft.stepped_down") >= CLEAN_SEEDS);
}

/// The story: a leader that did not hear the others stepped down and asked whether it could be elected again. What one had
/// answered before another was elected came when it heard again: it stood, and unseated the other.
#[test]
fn a_leader_that_did_not_hear_comes_back_without_another_election() {
    const FAULTY: u64 = END + 6_000;
    // It hears its successor last.
    let deaf = |seed, lasts: Duration, successor: u32| {
        let cuts = (0..3).map(|node| {
            let late = if node + 1 == successor {
                HEARTBEAT * 3 / 2
            } else {
                ms(0)
            };
            let (from, to, lasts) = (Target::Nth(node), Target::Leader, lasts + late);
            at(END, Fault::CutOneWay { from, to, lasts })
        });
        scene(seed, 3, FAULTY, cuts.collect())
    };
    let mut asked_anew = 0;
    for (seed, report) in (0..).zip(held(6, |seed| deaf(seed, ms(4_000), 0))) {
        // Up to here both runs are the same.
        let (elected, successor) = (succeeded_after(&report), report.leaders[1].1);
        // Later than an answer may be that counts as one of now (half a heartbeat): before that another election is no mistake.
        for later in [60, 120] {
            let report = cluster::run_plan(&deaf(seed, elected + ms(later), successor));
            assert!(report.failure.is_none(), "seed {seed}: {:?}", report.failure);
            let led = leaders(&report, FAULTY);
            assert_eq!(led.len(), 2, "seed {seed}, {later} ms later: {led:?}");
            assert_eq!(led[1].0, led[0].0 + 1, "seed {seed}, {later} ms later: {led:?}");
            asked_anew += marks(&[report], "raft.pre_vote_anew");
        }
    }
    assert!(asked_anew > 0, "no answer came late");
}

/// The story: connections lived for three seconds without an answer, and the leases of the slowest profile are longer. A leader
/// that did not hear had no way left to tell the others that it leads no more, and they waited for a lease of their own:
/// 12.4 s, of 12 promised.
#[test]
fn a_leader_that_does_not_hear_tells_the_others_also_where_leases_are_long() {
    const SLOW: Duration = ms(500);
    const CUT: u64 = 20_000;
    let deaf = |seed| {
        let cuts = (0..3).map(|node| {
            let (from, to, lasts) = (Target::Nth(node), Target::Leader, ms(12_000));
            at(CUT, Fault::CutOneWay { from, to, lasts })
        });
        let mut plan = scene(seed, 3, CUT + 12_000, cuts.collect());
        plan.tuning.heartbeat = SLOW;
        plan
    };
    for report in held(CLEAN_SEEDS, deaf) {
        let [.., before, after] = leaders(&report, CUT + 12_000)[..] else {
            panic!("seed {}: nobody followed: {:?}", report.seed, report.leaders);
        };
        assert!(before.2 < ms(CUT), "seed {}: {:?}", report.seed, report.leaders);
        // A lease of seven heartbeats is over, and then nobody waits longer than for seven more.
        let took = after.2.saturating_sub(ms(CUT));
        assert!(took < 15 * SLOW, "seed {}: {took:?}", report.seed);
    }
}

/// The story: openraft waits for a heartbeat's answer no longer than until the next one. A leader on a network that is slower
/// than that heard of no majority, and stepped down; so did the next one, and the next. Later it led on, and heard nobody:
/// no read was confirmed, and no write accepted, for as long as there was no write on its way.
#[test]
fn a_leader_whose_answers_take_longer_than_a_heartbeat_leads_on_and_serves() {
    const IDLE: u64 = 8_000;
    let slow = |seed| {
        let mut plan = scene(seed, 3, IDLE, Vec::new());
        plan.links.latency_min = ms(70);
        plan.links.latency_max = ms(75);
        // Answers to entries would be signs of life too.
        (plan.clients, plan.pause_max) = (1, ms(60_000));
        plan
    };
    let reports = held(3, slow);
    for report in &reports {
        let led = leaders(report, IDLE);
        assert_eq!(led.len(), 1, "seed {}: {led:?}", report.seed);
    }
    assert_eq!(marks(&reports, "raft.stepped_down"), 0);
    assert_eq!(marks(&reports, "raft.only_greetings_are_answered"), 0);
}
