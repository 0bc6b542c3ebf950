//! The simulator's own promises: tasks, time, clocks, kills, and the replay of a seed.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quorate_kv::env::{self, JoinError, Owner, OwnerHandle, mpsc, oneshot};
use quorate_tests::sim::{CrashAction, Halt, PowerLoss, Schedule, Simulation, selftest};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn in_the_simulator_the_runtime_passes_openrafts_conformance_suite() {
    for (seed, schedule) in [
        (1, Schedule::Fifo),
        (2, Schedule::Random),
        (3, Schedule::Priority),
    ] {
        let sim = Simulation::new(seed);
        sim.set_schedule(schedule);
        let _entered = sim.enter();
        openraft_rt::testing::Suite::<env::Runtime>::test_all();
        assert_eq!(sim.violations(), [], "{schedule:?}");
    }
}

#[test]
fn time_passes_at_once_when_nothing_can_run() {
    let sim = Simulation::new(0);
    sim.block_on(async {
        let start = env::now();
        env::sleep(Duration::from_secs(365 * 24 * 3600)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(365 * 24 * 3600));
    })
    .unwrap();
    assert!(sim.polls() < 10, "{} polls", sim.polls());
}

#[test]
fn a_seed_replays_exactly_in_this_process() {
    for seed in 0..20 {
        let run = || {
            let sim = Simulation::new(seed);
            selftest::run(&sim).unwrap();
            (sim.world().events(), sim.hash())
        };
        let first = run();
        assert!(first.0 > 1000, "{first:?}");
        assert_eq!(first, run(), "seed {seed}");
    }
}

#[test]
fn different_seeds_run_differently() {
    let hash = |seed| {
        let sim = Simulation::new(seed);
        selftest::run(&sim).unwrap();
        sim.hash()
    };
    assert_ne!(hash(1), hash(2));
}

#[test]
fn a_random_schedule_finds_orders_that_fifo_never_shows() {
    let orders = |schedule| {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let sim = Simulation::new(seed);
            sim.set_schedule(schedule);
            let order = Rc::new(RefCell::new(Vec::new()));
            for name in ["a", "b", "c"] {
                let order = Rc::clone(&order);
                sim.spawn_local(name, async move { order.borrow_mut().push(name) });
            }
            sim.block_on(async { env::sleep(SECOND).await }).unwrap();
            seen.insert(order.borrow().clone());
        }
        seen.len()
    };
    assert_eq!(orders(Schedule::Fifo), 1);
    assert_eq!(orders(Schedule::Random), 6);
    assert_eq!(orders(Schedule::Priority), 6);
}

#[test]
fn a_killed_host_runs_no_further_step_and_its_destructors_run() {
    struct SetOnDrop(Arc<AtomicBool>);
    impl Drop for SetOnDrop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
            // The last words of a dying task are heard by nobody.
            env::spawn("too late", async { panic!("a task of a dead host ran") });
        }
    }
    let sim = Simulation::new(0);
    let host = sim.host(1);
    let (steps, dropped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let guard = SetOnDrop(Arc::clone(&dropped));
    let counter = Arc::clone(&steps);
    let task = host.spawn("counts", async move {
        let _guard = guard;
        loop {
            env::sleep(SECOND).await;
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    let joined: Result<(), JoinError> = sim
        .block_on(async {
            env::sleep(SECOND * 5 + SECOND / 2).await;
            host.kill();
            assert!(dropped.load(Ordering::SeqCst));
            env::sleep(SECOND * 5).await;
            task.await
        })
        .unwrap();
    assert_eq!(joined, Err(JoinError::Cancelled));
    assert_eq!(steps.load(Ordering::SeqCst), 5);
    assert_eq!(sim.violations(), []);
}

#[test]
fn a_paused_host_stands_still_and_its_timers_fire_when_it_goes_on() {
    let sim = Simulation::new(0);
    let host = sim.host(1);
    let (tx, rx) = oneshot::channel();
    host.spawn("sleeper", async move {
        env::sleep(SECOND).await;
        let _ = tx.send(env::now());
    });
    sim.block_on(async {
        let start = env::now();
        host.pause();
        env::sleep(SECOND * 10).await;
        host.resume();
        assert_eq!(
            rx.await.unwrap().since(start),
            SECOND * 10,
            "its clock went on meanwhile"
        );
    })
    .unwrap();
}

#[test]
fn a_fast_clock_wakes_early_and_a_slow_one_late() {
    let sim = Simulation::new(0);
    let woken = |number: u32, rate: u64| {
        let host = sim.host(number);
        host.set_clock_rate(rate);
        let start = sim.now();
        sim.block_on(async { host.spawn("sleeper", async { env::sleep(SECOND).await }).await })
            .unwrap()
            .unwrap();
        sim.now() - start
    };
    assert_eq!(woken(1, 1_250_000), Duration::from_millis(800));
    assert_eq!(woken(2, 800_000), Duration::from_millis(1250));
}

#[test]
fn a_change_of_clock_rate_moves_the_timers_that_are_set() {
    let sim = Simulation::new(0);
    let host = sim.host(1);
    let sleeper = host.spawn("sleeper", async { env::sleep(SECOND * 10).await });
    sim.block_on(async {
        env::sleep(SECOND * 5).await;
        host.set_clock_rate(2_000_000);
        sleeper.await.unwrap();
    })
    .unwrap();
    assert_eq!(sim.now(), Duration::from_millis(7500));
}

#[test]
fn a_wall_clock_is_wrong_where_it_was_shifted() {
    let sim = Simulation::new(0);
    let host = sim.host(1);
    host.shift_wall_clock(Duration::from_secs(3600), true);
    let theirs = sim
        .block_on(async { host.spawn("asks", async { env::wall_clock() }).await })
        .unwrap()
        .unwrap();
    let ours = sim.block_on(async { env::wall_clock() }).unwrap();
    assert_eq!(ours.millis() - theirs.millis(), 3_600_000);
}

#[test]
fn a_panic_in_a_task_is_a_violation_that_names_task_host_and_message() {
    let sim = Simulation::new(0);
    let host = sim.host(2);
    host.spawn("careless", async { panic!("the reason") });
    let halt = sim.block_on(async { env::sleep(SECOND).await }).unwrap_err();
    let text = halt.to_string();
    assert!(matches!(halt, Halt::Violation(_)));
    for part in ["careless", "host 2", "the reason"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_deadlock_is_reported_with_the_tasks_that_wait() {
    let sim = Simulation::new(0);
    sim.host(1).spawn("waits for ever", std::future::pending::<()>());
    let halt = sim.block_on(std::future::pending::<()>()).unwrap_err();
    assert!(
        matches!(&halt, Halt::Deadlock { waiting } if waiting.contains("waits for ever on host 1")),
        "{halt}"
    );
}

#[test]
fn a_livelock_is_reported_with_the_task_that_spins() {
    let sim = Simulation::new(0);
    sim.host(1).spawn("spins", async {
        loop {
            // Ready again at once, without time moving.
            let mut polled = false;
            std::future::poll_fn(|cx| {
                cx.waker().wake_by_ref();
                if std::mem::replace(&mut polled, true) {
                    std::task::Poll::Ready(())
                } else {
                    std::task::Poll::Pending
                }
            })
            .await;
        }
    });
    let halt = sim.block_on(async { env::sleep(SECOND).await }).unwrap_err();
    assert!(
        matches!(&halt, Halt::Livelock { last, .. } if last.contains("spins on host 1")),
        "{halt}"
    );
}

/// Writes each job to the disk, and answers it when that is durable.
struct Writer {
    file: Arc<dyn env::File>,
    end: u64,
}

struct Job(u8, oneshot::Sender<()>);

impl Owner for Writer {
    type Job = Job;
    type Effects = Vec<oneshot::Sender<()>>;

    fn work(&mut self, batch: &mut Vec<Job>) -> Self::Effects {
        let (bytes, answers): (Vec<u8>, Vec<_>) = batch.drain(..).map(|Job(byte, tx)| (byte, tx)).unzip();
        let written = env::crash_point("writer.before_write")
            .and_then(|()| self.file.write_all_at(&bytes, self.end))
            .and_then(|()| self.file.sync_data())
            .and_then(|()| env::crash_point("writer.after_sync"));
        self.end += bytes.len() as u64;
        // Whose write failed is never answered.
        if written.is_ok() { answers } else { Vec::new() }
    }

    fn publish(&mut self, effects: Self::Effects) {
        for answer in effects {
            let _ = answer.send(());
        }
    }
}

fn start_writer(disk: &dyn env::Disk) -> OwnerHandle<Job> {
    let path = std::path::Path::new("/file");
    let file = disk.open(path, true).unwrap();
    disk.sync_dir(std::path::Path::new("/")).unwrap();
    env::spawn_owner("writer", 16, 4, Writer { file, end: 0 }, |message| {
        panic!("{message}")
    })
}

/// Sends bytes 1, 2, 3... until the host dies; answers how many were acknowledged.
async fn acknowledged(sim: &Simulation, faults: impl FnOnce(), die: impl Future<Output = ()>) -> u64 {
    let host = sim.host(1);
    let (tx, mut rx) = mpsc::channel(64);
    let disk = host.disk();
    host.spawn("client", async move {
        let writer = start_writer(&disk);
        for byte in 1..=200 {
            let (ack, acked) = oneshot::channel();
            if writer.send(Job(byte, ack)).await.is_err() {
                return;
            }
            let tx = tx.clone();
            env::spawn("hears", async move {
                if acked.await.is_ok() {
                    let _ = tx.send(byte).await;
                }
            });
        }
        std::future::pending().await
    });
    faults();
    die.await;
    let mut acked = 0;
    while rx.recv().await.is_some() {
        acked += 1;
    }
    acked
}

#[test]
fn a_sync_counts_only_once_its_time_has_passed_and_an_answer_only_after_it() {
    let (mut some_lost, mut some_kept) = (false, false);
    for seed in 0..60 {
        let sim = Simulation::new(seed);
        let mut random = sim.rng("kill");
        sim.block_on(async {
            let when = random.duration(Duration::ZERO, Duration::from_millis(30));
            let die = async {
                env::sleep(when).await;
                sim.host(1).power_off(PowerLoss::LoseAll);
            };
            let acked = acknowledged(&sim, || {}, die).await;
            let bytes = sim
                .host(1)
                .disk()
                .bytes(std::path::Path::new("/file"))
                .unwrap_or_default();
            assert!(
                bytes.len() as u64 >= acked,
                "seed {seed}: {acked} acknowledged, {} kept",
                bytes.len()
            );
            assert!(
                bytes.iter().zip(1..).all(|(a, b)| *a == b),
                "seed {seed}: {bytes:?}"
            );
            some_kept |= !bytes.is_empty();
            some_lost |= sim.host(1).disk().stats().bytes_lost > 0;
        })
        .unwrap();
    }
    assert!(some_lost && some_kept);
}

/// The log's opening starts the owner that prepares segments. It began at the opening's beginning once: a process that
/// was killed in the middle left a prepared segment of a log that it had not made yet.
#[test]
fn what_is_started_in_the_middle_of_blocking_work_begins_when_the_work_has_come_so_far() {
    for seed in 0..20 {
        let sim = Simulation::new(seed);
        sim.block_on(async {
            let host = sim.host(1);
            let disk = host.disk();
            let (tx, mut rx) = mpsc::channel(1);
            let opening = host.spawn("opens", async move {
                let began = env::now();
                let work = env::spawn_blocking(move || {
                    let writer = start_writer(&disk);
                    env::spawn("started", async move {
                        let _ = tx.send(env::now()).await;
                        drop(writer);
                    });
                });
                work.await.unwrap();
                (began, env::now())
            });
            let (began, ended) = opening.await.unwrap();
            let started = rx.recv().await.unwrap();
            assert!(ended > began, "seed {seed}: the disk took no time");
            // A host's clock is rounded to the nanosecond.
            let started = started + Duration::from_nanos(1);
            assert!(started >= ended, "seed {seed}: {started:?}, before {ended:?}");
        })
        .unwrap();
    }
}

#[test]
fn an_armed_crash_point_switches_the_host_off_there_and_then() {
    for (point, kept) in [
        ("writer.before_write", 12),
        ("disk.sync", 12),
        ("writer.after_sync", 16),
    ] {
        let sim = Simulation::new(0);
        sim.set_schedule(Schedule::Fifo);
        sim.block_on(async {
            let host = sim.host(1);
            let arm = || host.arm(point, 3, CrashAction::SwitchOff(PowerLoss::LoseAll));
            let acked = acknowledged(&sim, arm, env::sleep(SECOND)).await;
            assert!(!host.is_alive(), "{point}");
            // Three batches of four were written; the answers to the third died on their way.
            assert_eq!(acked, 8, "{point}");
            let bytes = host.disk().bytes(std::path::Path::new("/file")).unwrap();
            assert_eq!(bytes.len(), kept, "{point}");
        })
        .unwrap();
    }
}

#[test]
fn an_injected_error_reaches_the_code_once() {
    let sim = Simulation::new(0);
    let host = sim.host(1);
    host.arm("step", 1, CrashAction::Error);
    let results = sim
        .block_on(async {
            host.spawn("steps", async {
                [(); 4].map(|()| env::crash_point("step").is_ok())
            })
            .await
        })
        .unwrap();
    assert_eq!(results, Ok([true, false, true, true]));
    assert_eq!(sim.crash_points().get("step"), Some(&4));
}

#[test]
fn an_aborted_task_is_dropped_and_its_handle_says_so() {
    let sim = Simulation::new(0);
    sim.block_on(async {
        let task = env::spawn("waits", std::future::pending::<()>());
        assert!(!task.is_finished());
        task.abort();
        assert!(task.is_finished());
        assert_eq!(task.await, Err(JoinError::Cancelled));
    })
    .unwrap();
}

#[test]
fn a_timer_that_is_no_longer_wanted_does_not_hold_time_up() {
    let sim = Simulation::new(0);
    let wakes = Rc::new(Cell::new(0));
    sim.block_on(async {
        for _ in 0..100 {
            let _ = env::timeout(Duration::from_secs(1_000_000), async {
                wakes.set(wakes.get() + 1)
            })
            .await;
        }
        env::sleep(SECOND).await;
    })
    .unwrap();
    assert_eq!((wakes.get(), sim.now()), (100, SECOND));
}

#[test]
fn a_sleep_of_the_world_ignores_the_clock_of_the_host_that_waits() {
    let sim = Simulation::new(0);
    let host = sim.host(1);
    host.set_clock_rate(2_000_000);
    let sleep = sim.world().sleep(SECOND);
    sim.block_on(async { host.spawn("message", sleep).await })
        .unwrap()
        .unwrap();
    assert_eq!(sim.now(), SECOND);
}
