//! Promises that hang on an overlap which few seeds meet, each in a scenario that goes through it; and the planted bugs that
//! break them ([`quorate_tests::sim::scene`]).

use quorate_kv::planted::Bug;
use quorate_tests::sim::PowerLoss;
use quorate_tests::sim::cluster::{self, Fault, Kind, Plan, Report, Target};
use quorate_tests::sim::scene::{at, caught_when_on_and_held_when_off, held, isolate, marks, ms, plan};

/// Callers that read of one node each, whatever that is, while others write: what is old shows.
fn watched(plan: Plan) -> Plan {
    Plan {
        keys: 2,
        readers: 2 * plan.nodes,
        pause_max: ms(20),
        ..plan
    }
}

/// The story: any message of a leader marked a node as level with it, before its term was looked at and without its
/// quorum; a leader and a follower that were cut off from three others served stale reads "at most 200 ms old" for as
/// long as the cut lasted.
#[test]
fn a_stale_read_is_no_older_than_its_bound_however_the_cluster_is_cut() {
    let cut = |seed| {
        let cut = Fault::Partition {
            target: Target::Leader,
            others: 1,
            lasts: ms(3_000),
        };
        // It would step down before another is elected; in a pause it does not count.
        let pause = Fault::Pause {
            target: Target::Leader,
            lasts: ms(1_200),
        };
        let twice = [700, 4_200].map(|millis| [at(millis, cut.clone()), at(millis + 10, pause.clone())]);
        let mut plan = watched(plan(seed, 5, twice.concat()));
        plan.faulty = ms(7_500);
        plan
    };
    let rules = [("KeepsTheBound", "")];
    let clean = caught_when_on_and_held_when_off(Bug::LagByAnyMessage, &rules, cut);
    for report in clean {
        assert!(
            report.counts.elections > 1,
            "nobody led in the place of who was cut off"
        );
    }
}

/// A heartbeat's answer says that this node has accepted no later leader. One that says so all the same lets a leader
/// that was deposed, and does not know it yet, confirm reads of an old state.
#[test]
fn a_leader_that_was_deposed_confirms_no_read_once_it_is_heard_again() {
    let returns = |seed| {
        let mut schedule = Vec::new();
        for start in [700, 4_700, 8_700] {
            schedule.push(at(start, isolate(Target::Leader, 2_500)));
            // It stands still meanwhile: else it would step down by itself.
            let still = Fault::Pause {
                target: Target::Leader,
                lasts: ms(2_400),
            };
            schedule.push(at(start, still));
            // Who leads since is not heard for a moment, neither by who led before nor by who follows.
            schedule.extend((0..3).map(|node| {
                let unheard = Fault::CutOneWay {
                    from: Target::Leader,
                    to: Target::Nth(node),
                    lasts: ms(300),
                };
                at(start + 2_400, unheard)
            }));
        }
        let mut plan = watched(plan(seed, 3, schedule));
        plan.pause_max = ms(4);
        plan.faulty = ms(12_500);
        plan
    };
    let rules = [("RealTime", ""), ("KeepsTheBound", "")];
    let clean = caught_when_on_and_held_when_off(Bug::HeartbeatOkWithHigherVote, &rules, returns);
    for report in clean {
        assert!(
            report.counts.elections > 1,
            "nobody led in the place of who was cut off"
        );
    }
}

/// The story: while a follower's question to a dead leader waited for an election timeout, all its readers waited, also
/// once it led itself.
#[test]
fn a_question_to_a_leader_that_fell_is_asked_anew_as_soon_as_another_leads() {
    let falls = |seed| {
        let kill = |round: u64| {
            let fall = Fault::Kill {
                target: Target::Leader,
                down: ms(2_000),
            };
            at(700 + round * 2_500, fall)
        };
        watched(plan(seed, 3, (0..3).map(kill).collect()))
    };
    let clean = held(3, falls);
    assert!(marks(&clean, "raft.read_round_anew") > 0, "nobody asked who fell");
}

/// The story: a learner that had never answered counted as near while the log was short, and got a vote.
#[test]
fn a_node_that_is_not_heard_gets_no_vote() {
    let unheard = |seed| {
        let schedule = vec![
            at(900, Fault::AddLearner),
            // The fourth, as soon as it may be there.
            at(905, isolate(Target::Nth(3), 3_000)),
            at(2_500, Fault::Promote),
        ];
        let mut plan = plan(seed, 3, schedule);
        plan.clients = 8;
        plan.pause_max = ms(2);
        plan.faulty = ms(4_500);
        plan
    };
    let rules = [("PromotedNear", "")];
    let clean = caught_when_on_and_held_when_off(Bug::PromoteUnheard, &rules, unheard);
    for report in clean {
        assert!(
            report.coverage.total(Kind::Promote) > 0,
            "it got none when it was heard again"
        );
    }
}

/// The story: redb verifies pages when it opens a file and not when it reads one, so that a bit that flipped under a running
/// node was served as it was.
#[test]
fn a_node_whose_state_rots_under_it_stops_and_serves_nothing_of_it() {
    let rots = |seed| {
        let rot = |round: u64| {
            let target = Target::Nth(round as u32 % 3 + 1);
            at(600 + round * 1_500, Fault::RotUnderNode { target })
        };
        let mut plan = watched(plan(seed, 4, (0..4).map(rot).collect()));
        plan.keys = 40;
        plan.tuning.durable_interval = ms(100);
        plan.tuning.state_cache_bytes = 0;
        plan.faulty = ms(12_000);
        plan
    };
    // A bit that flips is mostly in a page that nobody reads.
    assert!(found(&held(14, rots)) > 0, "no read met what rotted");
    let scrubbed = |seed| {
        let mut plan = rots(seed);
        plan.readers = 0;
        plan.tuning.state_cache_bytes = 1 << 20;
        plan.tuning.scrub_interval = ms(1_000);
        plan
    };
    assert!(
        found(&held(2, scrubbed)) > 0,
        "the scrubber met nothing of what rotted"
    );
}

fn found(reports: &[Report]) -> u64 {
    let rot = |report: &Report| report.coverage.total(Kind::RotUnderNode);
    reports.iter().map(rot).sum()
}

/// The story: a reader that joined a round which had begun before it came went unseen in 200 seeds. On a follower it shows
/// where the leader's word is quicker than its entries.
#[test]
fn a_reader_joins_no_round_that_began_before_it_came() {
    let slow = |seed| {
        let mut plan = watched(plan(seed, 3, Vec::new()));
        plan.links.latency_max = ms(40);
        plan.tuning.heartbeat = ms(100);
        plan.clients = 6;
        plan.readers = 12;
        plan.pause_max = ms(5);
        plan.faulty = ms(6_000);
        plan
    };
    let rules = [("RealTime", ""), ("KeepsTheBound", "")];
    caught_when_on_and_held_when_off(Bug::RoundJoinedLate, &rules, slow);
}

/// The story: a first start that broke off. Node 1 had begun to form the cluster, and fell before anybody heard of it; the two
/// others formed theirs without it, and never took it in: it was no new directory any more.
#[test]
fn a_first_start_that_breaks_off_leaves_no_member_out() {
    let (target, down) = (Target::Nth(0), ms(9_000));
    let broken_off = |seed, fault| {
        let mut plan = plan(seed, 3, vec![fault]);
        plan.faulty = ms(12_000);
        plan
    };
    let killed = (1..80).map(|millis| broken_off(1, at(millis, Fault::Kill { target, down })));
    // It has written the entry that forms, and asks for its first vote next.
    let point = || Fault::CrashPoint {
        target,
        point: "raft.vote.saved".to_owned(),
        passes: 0,
        loss: PowerLoss::LoseAll,
        down,
    };
    let between = (0..4).map(|seed| broken_off(seed, at(1, point())));
    let reports: Vec<Report> = killed
        .chain(between)
        .map(|plan| {
            let report = cluster::run_plan(&plan);
            assert!(
                report.failure.is_none(),
                "{:?}: {:?}",
                plan.schedule,
                report.failure
            );
            report
        })
        .collect();
    assert!(
        marks(&reports, "raft.introduced_forming") > 0,
        "it never fell in between"
    );
}
