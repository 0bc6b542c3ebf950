//! A small world that uses every part of the simulator, to prove that a seed says all about a run.

use std::path::Path;
use std::time::Duration;

use quorate_kv::env::{self, Disk as _, watch};

use super::{DiskProfile, Halt, PowerLoss, Simulation};

/// Three hosts write and sync, talk through channels and are killed, paused and switched off, for a few
/// virtual seconds.
///
/// # Errors
///
/// When the simulation halts, which it must not.
pub fn run(sim: &Simulation) -> Result<(), Halt> {
    let main = {
        let sim = sim.clone();
        async move {
            let (tx, rx) = watch::channel(0_u64);
            let mut random = sim.rng("self-test");
            for number in 1..=3 {
                let host = sim.host(number);
                host.set_clock_rate(random.between(900_000, 1_100_000));
                host.disk().set_profile(DiskProfile {
                    stall_permille: 50,
                    ..DiskProfile::default()
                });
                start(&sim, number, rx.clone(), tx.clone());
            }
            for _ in 0..25 {
                env::sleep(random.duration(Duration::from_millis(1), Duration::from_millis(300))).await;
                let number = random.between(1, 3) as u32;
                let host = sim.host(number);
                match random.below(4) {
                    0 => {
                        host.pause();
                        env::sleep(Duration::from_millis(50)).await;
                        host.resume();
                    }
                    1 => host.kill(),
                    _ => host.power_off(PowerLoss::Drawn),
                }
                if !host.is_alive() {
                    env::sleep(random.duration(Duration::ZERO, Duration::from_millis(100))).await;
                    host.power_on();
                    start(&sim, number, rx.clone(), tx.clone());
                }
            }
        }
    };
    let ended = sim.block_on(main);
    sim.end();
    ended
}

fn start(sim: &Simulation, number: u32, mut rx: watch::Receiver<u64>, tx: watch::Sender<u64>) {
    let host = sim.host(number);
    let disk = host.disk();
    host.spawn("writer", async move {
        let dir = Path::new("/data");
        disk.create_dir_all(dir)?;
        disk.sync_dir(Path::new("/"))?;
        let file = disk.open(&dir.join("file"), true)?;
        disk.sync_dir(dir)?;
        loop {
            let jitter = Duration::from_micros(env::random_u64() % 5000);
            let _ = env::timeout(jitter, rx.changed()).await;
            let value = *rx.borrow();
            let file = std::sync::Arc::clone(&file);
            env::spawn_blocking(move || {
                file.write_all_at(&value.to_le_bytes(), value % 64 * 8)?;
                file.sync_data()
            })
            .await??;
            tx.send_modify(|v| *v += 1);
            if value.is_multiple_of(7) {
                let _ = env::spawn("helper", async { env::sleep(Duration::from_micros(10)).await }).await;
            }
        }
        #[allow(unreachable_code, reason = "it says what the loop's errors are")]
        Ok::<(), std::io::Error>(())
    });
}
