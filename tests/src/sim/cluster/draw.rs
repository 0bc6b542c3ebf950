//! Draws a plan from a seed: each run its own mix of faults, sizes and timings.

use std::time::Duration;

use quorate_kv::log::CRASH_POINTS;

use super::fault::{Fault, FaultEvent, Kind, Reach, Target};
use super::phase::Phase;
use super::plan::{Disks, LOG_SEGMENT_BYTES, Links, Plan, Small, Tuning};
use crate::sim::{PowerLoss, Rng};

/// Where a node may crash or suffer an error: the disk's calls, and the steps that the code has named.
const POINTS: [&str; 9] = [
    "disk.write",
    "disk.sync",
    "disk.sync",
    "disk.sync_dir",
    "disk.rename",
    "disk.set_len",
    "disk.open",
    "log.*",
    TEARING,
];

/// Where more than a sector is written and not synced: one batch in ten.
const TEARING: &str = "log.batch.long_written";

/// Rare steps at which a node may crash, but which have no error of their own.
const SPANS: [&str; 5] = [
    "raft.truncate",
    "raft.purge",
    "snapshot.send",
    "snapshot.receive",
    "raft.truncate",
];

/// The plan of a seed, with faults of one kind or of a mix of its own.
pub(super) fn plan(seed: u64, only: Option<Kind>) -> Plan {
    let mut random = Rng::new(seed).fork("plan");
    let nodes = *random.pick(&[1, 2, 3, 3, 3, 3, 4, 5]);
    let tuning = Tuning {
        heartbeat: Duration::from_millis(*random.pick(&[20, 50, 100, 200])),
        snapshot_entries: *random.pick(&[10, 50, 500, 50_000]),
        log_entries_kept: *random.pick(&[0, 5, 100, 1000]),
        log_bytes_kept: LOG_SEGMENT_BYTES * *random.pick(&[2, 2, 4, 1 << 14]),
        log_cache_bytes: *random.pick(&[0, 4_096, 1 << 20]),
        durable_interval: micros(&mut random, 50_000, 5_000_000),
        promote_lag_max: *random.pick(&[1_000, 50]),
        proposals_in_flight: *random.pick(&[1, 4, 64]),
        small: small_of_all(&mut random),
        state_cache_bytes: *random.pick(&[0, 1 << 14, 1 << 20, 1 << 20]),
        scrub_interval: Duration::from_secs(*random.pick(&[0, 1, 4, 86_400])),
    };
    let kinds = kinds(&mut random, only);
    let latency_min = Duration::from_micros(*random.pick(&[50, 500, 5_000]));
    let links = Links {
        latency_min,
        latency_max: latency_min * *random.pick(&[1, 2, 20]),
        loss_per_million: *random.pick(&[0, 0, 1_000, 20_000]),
    };
    let disks = Disks {
        sync_max: Duration::from_micros(*random.pick(&[300, 3_000, 20_000])),
        stall_permille: *random.pick(&[0, 0, 2]),
        garbage_in_log: random.one_in(2),
    };
    let clock_rates = (0..nodes)
        .map(|_| match random.one_in(2) {
            true => 1_000_000,
            false => random.between(950_000, 1_050_000),
        })
        .collect();
    let Density {
        pause_max,
        share,
        work,
    } = density(&mut random);
    let busy_max = Duration::from_millis(*random.pick(&[500, 2_000, 5_000]));
    let mut plan = Plan {
        version: Plan::VERSION,
        note: String::new(),
        seed,
        nodes,
        clients: *random.pick(&[2, 4, 8]),
        sharing: *random.pick(&[1, 1, 2, 4]),
        readers: *random.pick(&[0, nodes, 2 * nodes]),
        keys: *random.pick(&[1, 5, 100]),
        pause_max,
        busy_max,
        rest_max: busy_max * (share - 1),
        faulty: work * share,
        clock_rates,
        tuning,
        links,
        disks,
        schedule: Vec::new(),
    };
    if plan.pause_max < Duration::from_millis(50) {
        // Under so many writes a node that receives them all is some hundred entries behind at any moment.
        plan.tuning.promote_lag_max = 1_000;
        // Who writes as fast as the slowest disks of a majority take it leaves no node the time to catch up: a snapshot in tiny
        // chunks takes seconds, in which more passes than a new voter may lack, and logs in small segments have syncs for each.
        let chunk = &mut plan.tuning.small.snapshot_chunk_bytes;
        *chunk = (*chunk).max(20_000);
        plan.disks.sync_max = plan.disks.sync_max.min(Duration::from_millis(3));
    }
    plan.schedule = schedule(&mut random, &plan, &kinds, share);
    if !plan.is_calm() {
        // Whoever writes keeps a session. Where calls come slowly a caller's second and third client are idle long enough to
        // make room; else there must be room for all, and for those that look at the end.
        let callers = u64::from(plan.clients);
        let sessions = match plan.pause_max < Duration::from_millis(200) {
            true => 3 * callers + 4,
            false => 2 * callers + 4,
        };
        small_of_the_faulty(&mut random, sessions, &mut plan.tuning.small);
    }
    plan
}

/// What is cut smaller than usual in any run.
fn small_of_all(random: &mut Rng) -> Small {
    let usual = Small::default();
    let mut small = Small {
        chunk_keys: *random.pick(&[1, 3, 16, usual.chunk_keys]),
        gap_keys: *random.pick(&[1, 2, usual.gap_keys]),
        apply_keys: *random.pick(&[1, 20, 500, usual.apply_keys]),
        page_bytes_max: *random.pick(&[100, 400, 2_000, usual.page_bytes_max]),
        snapshot_chunk_bytes: *random.pick(&[64, 1_000, 20_000, usual.snapshot_chunk_bytes]),
        forget_rows: *random.pick(&[1, 7, 100, usual.forget_rows]),
        history_kept: Duration::from_secs(*random.pick(&[0, 1, 3, 20])),
        history_revisions_kept: *random.pick(&[0, 5, 50, usual.history_revisions_kept]),
        hash_entries: *random.pick(&[1, 5, 50, usual.hash_entries]),
        time_spacing_millis: *random.pick(&[1, 100, usual.time_spacing_millis]),
        compare_interval: Duration::from_secs(*random.pick(&[1, 4])),
        shrink_every: Duration::from_millis(*random.pick(&[0, 0, 700, 4_000])),
        recall_elsewhere: random.one_in(2),
        run_rows: *random.pick(&[0, 10, usual.run_rows]),
        runs_merged: *random.pick(&[2, 4, usual.runs_merged]),
        merge_rows: *random.pick(&[1, 10, usual.merge_rows]),
        ..usual
    };
    // One head each, a few, or a page of them: what merges in small steps has small blocks.
    small.block_bytes = match small.merge_rows {
        1 => 1,
        10 => 200,
        _ => usual.block_bytes,
    };
    small
}

/// What fails calls that would succeed: only where faults do that too.
fn small_of_the_faulty(random: &mut Rng, sessions: u64, small: &mut Small) {
    let usual = Small::default();
    small.sessions_max = *random.pick(&[sessions, sessions + 6, usual.sessions_max]);
    small.session_ttl = *random.pick(&[Duration::from_secs(1), Duration::from_secs(8), usual.session_ttl]);
    small.session_idle = Duration::from_secs(1);
    small.session_idle_entries = *random.pick(&[10, 100, usual.session_idle_entries]);
    small.unanswered_max = *random.pick(&[2, 8, usual.unanswered_max]);
    small.keys_looked_at_max = *random.pick(&[1_000, usual.keys_looked_at_max]);
    small.response_bytes_max = *random.pick(&[1_024, usual.response_bytes_max]);
    small.calls_bytes_max = *random.pick(&[64 << 10, usual.calls_bytes_max]);
    small.answers_bytes_max = *random.pick(&[64 << 10, 256 << 10, usual.answers_bytes_max]);
    let usual_bytes = usual.store_bytes_max;
    small.store_bytes_max = *random.pick(&[40_000, usual_bytes, usual_bytes, usual_bytes, usual_bytes]);
    small.state_layer_bytes = *random.pick(&[4_096, 64 << 10, usual.state_layer_bytes]);
    small.apply_queue_bytes = *random.pick(&[1, 4_096, usual.apply_queue_bytes]);
}

/// How densely clients work.
struct Density {
    /// See [`Plan::pause_max`].
    pause_max: Duration,
    /// Of so many moments a client works in one.
    share: u32,
    /// How long it works, its rests left out.
    work: Duration,
}

/// The faster clients work, the more they rest, so that the runs have work of about the same size in them: a run of the
/// densest kind without rests would take the time of twenty others.
fn density(random: &mut Rng) -> Density {
    let (pause_max, shares, work) = *random.pick(&[
        (5, [6, 12, 24], (2_000_000, 5_000_000)),
        (50, [3, 6, 12], (4_000_000, 12_000_000)),
        (200, [1, 2, 6], (10_000_000, 25_000_000)),
    ]);
    Density {
        pause_max: Duration::from_millis(pause_max),
        share: *random.pick(&shares),
        work: micros(random, work.0, work.1),
    }
}

/// One run in ten has no faults at all, one in ten a single kind, the others about half of all.
fn kinds(random: &mut Rng, only: Option<Kind>) -> Vec<Kind> {
    if let Some(kind) = only {
        return vec![kind];
    }
    match random.below(10) {
        0 => Vec::new(),
        1 => vec![*random.pick(&Kind::ALL)],
        _ => Kind::ALL.into_iter().filter(|_| random.one_in(2)).collect(),
    }
}

fn schedule(random: &mut Rng, plan: &Plan, kinds: &[Kind], share: u32) -> Vec<FaultEvent> {
    let mut schedule = Vec::new();
    if kinds.is_empty() {
        return schedule;
    }
    // Not stretched as far as the rests: more faults happen to a run that is long.
    let every = *random.pick(&[300_000, 700_000, 2_000_000]) * (2 + u64::from(share)) / 3;
    let mut at = Duration::ZERO;
    loop {
        at += micros(random, every / 10, every * 2);
        if at >= plan.faulty {
            schedule.sort_by_key(|event| event.at);
            return schedule;
        }
        let kind = *random.pick(kinds);
        let fault = fault(random, plan, kind);
        let when = random.one_in(3).then(|| *random.pick(&Phase::WORTH_WAITING_FOR));
        if let Fault::DiskError { target, .. } = fault
            && kinds.contains(&Kind::PowerLoss)
            && random.one_in(2)
        {
            schedule.push(power_loss_soon(random, plan, at, target));
        }
        if let Fault::MoveLeader = fault
            && random.one_in(2)
        {
            // By the one to whom it has just been handed.
            schedule.push(FaultEvent {
                at: at + micros(random, 1_000, 200_000),
                when: None,
                fault: Fault::MoveLeader,
            });
        }
        schedule.push(FaultEvent { at, when, fault });
    }
}

/// What an error of the disk left in memory alone shows only when the power goes before all is written anew.
fn power_loss_soon(random: &mut Rng, plan: &Plan, at: Duration, target: Target) -> FaultEvent {
    FaultEvent {
        at: at + micros(random, 1_000, 1_000_000),
        when: None,
        fault: Fault::PowerLoss {
            target,
            reach: Reach::One,
            loss: *random.pick(&[PowerLoss::Drawn, PowerLoss::LoseAll]),
            down: down(random, plan),
        },
    }
}

fn fault(random: &mut Rng, plan: &Plan, kind: Kind) -> Fault {
    let target = target(random);
    let election = plan.tuning.heartbeat * 20;
    match kind {
        Kind::Kill => Fault::Kill {
            target,
            down: down(random, plan),
        },
        Kind::PowerLoss => Fault::PowerLoss {
            target,
            reach: *random.pick(&[
                Reach::One,
                Reach::One,
                Reach::Minority,
                Reach::Majority,
                Reach::All,
            ]),
            loss: *random.pick(&[PowerLoss::Drawn, PowerLoss::LoseAll]),
            down: down(random, plan),
        },
        Kind::Pause => Fault::Pause {
            target,
            lasts: micros(random, 1_000, election.as_micros() as u64 * 3),
        },
        Kind::Isolate => Fault::Isolate {
            target,
            lasts: cut(random),
        },
        Kind::Partition => Fault::Partition {
            target,
            others: random.below(3) as u32,
            lasts: cut(random),
        },
        Kind::Bridge => Fault::Bridge {
            target,
            lasts: cut(random),
        },
        Kind::FalseEnd => Fault::FalseEnd { target },
        Kind::CutOneWay => Fault::CutOneWay {
            from: target,
            to: nth(random),
            lasts: cut(random),
        },
        Kind::HalfOpen => Fault::HalfOpen {
            from: nth(random),
            to: target,
            lasts: cut(random),
        },
        Kind::Flap => Fault::Flap {
            target,
            times: random.between(2, 8) as u32,
            lasts: micros(random, 10_000, 600_000),
        },
        Kind::SlowNetwork => Fault::SlowNetwork {
            latency: Duration::from_millis(*random.pick(&[10, 50, 200])),
            loss_per_million: *random.pick(&[0, 50_000, 300_000]),
            lasts: cut(random),
        },
        Kind::CrashPoint => {
            let point = match random.below(4) {
                0 => *random.pick(&SPANS),
                1 => *random.pick(CRASH_POINTS),
                2 => *random.pick(&POINTS),
                _ => TEARING,
            };
            let (passes, loss) = match point {
                // What is torn there shows how a log recovers; all or nothing would show what the other points do.
                TEARING => {
                    let sectors = PowerLoss::Sectors { kept_permille: 500 };
                    let torn = [PowerLoss::Prefix, sectors, PowerLoss::Drawn];
                    (random.below(4), *random.pick(&torn))
                }
                point => {
                    let passes = if SPANS.contains(&point) {
                        0
                    } else {
                        random.below(20)
                    };
                    (passes, *random.pick(&[PowerLoss::Drawn, PowerLoss::LoseAll]))
                }
            };
            Fault::CrashPoint {
                target,
                point: point.to_owned(),
                passes,
                loss,
                down: down(random, plan),
            }
        }
        Kind::DiskError => Fault::DiskError {
            target,
            point: (*random.pick(&POINTS)).to_owned(),
            passes: random.below(20),
        },
        Kind::Panic => Fault::Panic {
            target,
            point: match random.below(3) {
                0 => *random.pick(&SPANS),
                1 => *random.pick(CRASH_POINTS),
                _ => *random.pick(&POINTS),
            }
            .to_owned(),
            passes: random.below(20),
        },
        Kind::DiskStall => Fault::DiskStall {
            target,
            passes: random.below(20),
            lasts: micros(random, 1_000, 2_000_000),
        },
        Kind::DiskFull => Fault::DiskFull {
            target,
            lasts: micros(random, 100_000, 3_000_000),
        },
        Kind::ClockJump => Fault::ClockJump {
            target,
            by: Duration::from_millis(*random.pick(&[1, 1_000, 3_600_000])),
            back: random.one_in(2),
        },
        Kind::ClockAhead => Fault::ClockAhead {
            target,
            by: Duration::from_secs(3_600) * random.between(1, 12) as u32,
            lasts: cut(random),
        },
        Kind::AddLearner => Fault::AddLearner,
        Kind::Promote => Fault::Promote,
        Kind::PromoteAndLeave => Fault::PromoteAndLeave {
            away: Duration::from_secs(*random.pick(&[2, 3_600])),
        },
        Kind::Remove => Fault::Remove { target },
        Kind::Replace => Fault::Replace { target },
        Kind::BitRot => Fault::BitRot { target },
        Kind::RotUnderNode => Fault::RotUnderNode { target },
        Kind::WipeWhole => Fault::WipeWhole { target },
        Kind::ReuseId => Fault::ReuseId { target },
        Kind::MoveLeader => Fault::MoveLeader,
    }
}

fn target(random: &mut Rng) -> Target {
    match random.below(4) {
        0 | 1 => Target::Leader,
        2 => Target::Follower,
        _ => nth(random),
    }
}

fn nth(random: &mut Rng) -> Target {
    Target::Nth(random.below(9) as u32)
}

/// Not at all, within an election timeout, or long.
fn down(random: &mut Rng, plan: &Plan) -> Duration {
    match random.below(3) {
        0 => Duration::ZERO,
        1 => micros(random, 0, plan.tuning.heartbeat.as_micros() as u64 * 10),
        _ => micros(random, 1_000_000, 5_000_000),
    }
}

fn cut(random: &mut Rng) -> Duration {
    micros(random, 1_000, 5_000_000)
}

fn micros(random: &mut Rng, low: u64, high: u64) -> Duration {
    Duration::from_micros(random.between(low, high))
}
