//! The test kit, as a test of a service uses it.

use std::time::Duration;

use quorate_kv::client::Error;
use quorate_kv::testkit::{Cluster, KitError};

/// What `quorate_kv::testkit` promises to take: three nodes in one line, and a test in ten.
#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_serve_through_the_crash_of_their_leader() -> Result<(), KitError> {
    let mut cluster = Cluster::start(3).await?;
    let client = cluster.client()?;
    client.put("k", "before").await?;
    let leader = cluster.leader().await?;
    cluster.crash(leader).await?;
    let written = client.put("k", "after").await?;
    cluster.restart(leader).await?;
    cluster.wait_for(written).await?;
    let found = cluster.node(leader)?.client().get("k").stale().await?;
    assert_eq!(found.unwrap().text(), Some("after"));
    cluster.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_is_succeeded_and_catches_up_when_the_network_heals() -> Result<(), KitError>
{
    let cluster = Cluster::start(3).await?;
    let client = cluster.client()?;
    client.put("k", "before").await?;
    let old = cluster.leader().await?;
    cluster.isolate(old);
    let alone = cluster.node(old)?.client().with_deadline(Duration::from_secs(2));
    let refused = alone.put("k", "lost").await.unwrap_err();
    assert!(refused.is_retryable(), "{refused}");
    let written = client.put("k", "after").await?;
    let new = cluster.leader().await?;
    assert_ne!(new, old);
    cluster.heal();
    cluster.wait_for(written).await?;
    let text = cluster.node(old)?.client().get("k").await?.unwrap();
    assert_eq!(text.text(), Some("after"));
    cluster.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_moves_and_a_node_that_was_stopped_comes_back_with_its_files() -> Result<(), KitError> {
    let mut cluster = Cluster::start(3).await?;
    let client = cluster.client()?;
    let leader = cluster.leader().await?;
    let next = leader % 3 + 1;
    cluster.move_leader(next).await?;
    assert_eq!(cluster.leader().await?, next);

    let kept = client.put("k", "kept").await?;
    cluster.wait_for(kept).await?;
    for id in 1..=3 {
        cluster.stop(id).await?;
    }
    assert!(matches!(cluster.stop(1).await, Err(KitError::Node { id: 1, .. })));
    for id in 1..=3 {
        cluster.restart(id).await?;
    }
    assert!(matches!(
        cluster.restart(2).await,
        Err(KitError::Node { id: 2, .. })
    ));
    assert!(matches!(
        cluster.restart(4).await,
        Err(KitError::Node { id: 4, .. })
    ));
    assert_eq!(client.get("k").await?.unwrap().text(), Some("kept"));
    cluster.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_written_and_with_one_again_it_is() -> Result<(), KitError> {
    let cluster = Cluster::start(3).await?;
    let client = cluster.client()?;
    client.put("k", "1").await?;
    for (one, other) in [(1, 2), (1, 3), (2, 3)] {
        cluster.cut(one, other);
    }
    let refused = client
        .put("k", "2")
        .deadline(Duration::from_secs(3))
        .await
        .unwrap_err();
    assert!(
        matches!(refused, Error::Unavailable { .. } | Error::OutcomeUnknown(_)),
        "{refused}"
    );
    cluster.heal();
    client.put("k", "3").await?;
    // A node that is paused misses what the others write, and gets it afterwards.
    let leader = cluster.leader().await?;
    let other = leader % 3 + 1;
    cluster.pause(other);
    let written = client.put("k", "4").await?;
    cluster.heal();
    cluster.wait_for(written).await?;
    cluster.shutdown().await;
    Ok(())
}
