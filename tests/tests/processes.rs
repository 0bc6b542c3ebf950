//! Real processes, killed with SIGKILL over and over under load: every acknowledged write is found.

use std::time::Duration;

use anyhow::{Result, ensure};
use quorate_tests::chaos::workload::Workload;
use quorate_tests::processes::Processes;
use quorate_tests::sim::Rng;
use tokio::time::{Instant, sleep};

/// How long the killing goes on.
const KILLING: Duration = Duration::from_secs(10);
/// Each worker has its client, hence its session.
const WORKERS: usize = 4;

/// Kills a random node every 0.3 to 1 s and starts it again, while writers write; then checks everything.
async fn killed_over_and_over(nodes: u64, seed: u64) -> Result<()> {
    let mut rng = Rng::new(seed);
    let mut processes = Processes::start_all(nodes).await?;
    let clients: Result<Vec<_>> = (0..WORKERS).map(|_| processes.client()).collect();
    let workload = Workload::start(clients?, seed);
    let end = Instant::now() + KILLING;
    let mut kills = 0;
    while Instant::now() < end {
        sleep(rng.duration(Duration::from_millis(300), Duration::from_secs(1))).await;
        let id = *rng.pick(&processes.ids());
        ensure!(
            processes.ended(id)?.is_none(),
            "node {id} ended by itself:\n{}",
            processes.log(id)
        );
        processes.kill(id)?;
        kills += 1;
        // Now and then the others must go on without it for a while.
        if nodes > 1 && rng.one_in(3) {
            sleep(rng.duration(Duration::ZERO, Duration::from_millis(700))).await;
        }
        processes.start(id)?;
    }
    let notes = workload.stop().await?;
    let status = processes.agreement().await?;
    let verdict = notes.check(&processes.client()?, &|_, _, _| {}).await?;
    println!("{kills} kills, revision {}: {verdict:?}", status.revision);
    ensure!(kills >= 5, "{kills} kills are too few to mean something");
    ensure!(
        verdict.acknowledged > kills,
        "hardly anything was written: {verdict:?}"
    );
    for id in processes.ids() {
        processes.stop(id).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_node_recovers_from_kill_9_at_any_point_with_every_acknowledged_write() -> Result<()> {
    killed_over_and_over(1, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_recover_from_kill_9_at_any_point_with_every_acknowledged_write() -> Result<()> {
    killed_over_and_over(3, 3).await
}
