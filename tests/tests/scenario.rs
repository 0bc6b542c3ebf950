//! The ancestor's scenario, briefly; `cargo run --release -p quorate-tests --bin scenario` runs it at length.

use anyhow::Result;
use quorate_kv::model::LogIndex;
use quorate_meta::{CreateTopic, MetaClient, NewPartition, RegisterBroker};
use quorate_tests::cluster::{Cluster, fast_settings};
use quorate_tests::scenario::{self, Options, Report};

fn expect_sound(report: &Report, runs: u64) {
    let failures: Vec<_> = report.operations.iter().map(|(o, t)| (o, &t.failures)).collect();
    assert_eq!(report.failures(), 0, "{failures:#?}");
    assert_eq!(report.visible_retries, 0, "errors reached the caller");
    assert_eq!(report.runs, runs);
    let calls: usize = report.operations.values().map(|tally| tally.took.len()).sum();
    assert_eq!(
        calls as u64,
        runs * 11,
        "three brokers, two topics, four creates, two updates"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_fails_while_leaders_die() -> Result<()> {
    let options = Options {
        runs: 10,
        fresh: false,
        kill_permille: 500,
        nodes: 3,
        seed: 1,
    };
    let report = scenario::run(&options, &mut |_| ()).await?;
    expect_sound(&report, 10);
    assert!(report.kills > 0, "the seed kills no leader");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_fails_on_new_clusters_whose_leaders_die() -> Result<()> {
    let options = Options {
        runs: 2,
        fresh: true,
        kill_permille: 1000,
        nodes: 3,
        seed: 2,
    };
    let report = scenario::run(&options, &mut |_| ()).await?;
    expect_sound(&report, 2);
    assert_eq!(report.kills, 2);
    Ok(())
}

/// The index that all nodes have committed and applied.
async fn committed(cluster: &Cluster) -> Result<LogIndex> {
    let status = cluster.agreement().await?;
    status
        .committed
        .ok_or_else(|| anyhow::anyhow!("nothing is committed"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_partitions_is_one_raft_entry_and_one_by_one_they_are_as_many() -> Result<()> {
    const PARTITIONS: u32 = 100;
    let cluster = Cluster::start(3, fast_settings()).await?;
    let meta = MetaClient::new(cluster.client()?);
    meta.register_broker(RegisterBroker::new(1, "broker:9092")?)
        .await?;
    for topic in ["singly", "batch"] {
        meta.create_topic(CreateTopic::manual(topic, [[1]])?).await?;
    }
    let new = |topic, index| NewPartition::new(topic, index, [1]);
    let batch: Vec<_> = (1..=PARTITIONS)
        .map(|index| new("batch", index))
        .collect::<Result<_, _>>()?;

    let before = committed(&cluster).await?;
    meta.create_partitions(batch).await?;
    let between = committed(&cluster).await?;
    for index in 1..=PARTITIONS {
        meta.create_partition(new("singly", index)?).await?;
    }
    let after = committed(&cluster).await?;

    assert_eq!(between.number() - before.number(), 1);
    assert_eq!(after.number() - between.number(), u64::from(PARTITIONS));
    cluster.shutdown().await
}
