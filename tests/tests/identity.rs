//! Who a node is, told by its directory and not by its id: a voter that lost its directory does not vote again, and nobody
//! follows a second history.

use std::time::Duration;

use anyhow::Result;
use quorate_kv::model::NodeId;
use quorate_kv::node::{NodeRole, Status};
use quorate_tests::cluster::{Cluster, fast_settings};

/// Writes until an attempt ends well.
async fn write(cluster: &Cluster, key: &str) -> Result<()> {
    let client = cluster.client()?.with_deadline(Duration::from_secs(30));
    client.put(key, "1").await?;
    Ok(())
}

/// Starts a node that the others refuse, be it while it starts or soon after, and answers what it says.
async fn refused(cluster: &mut Cluster, id: u64) -> Result<String> {
    match cluster.start_node(id).await {
        Ok(()) => cluster.fault_of(id).await,
        Err(error) => Ok(format!("{error:#}")),
    }
}

fn nobody_leads(statuses: &[Status]) -> bool {
    statuses.iter().all(|s| s.role != NodeRole::Leader || !s.quorum)
}

/// The story: of three nodes, node 3 was away for a write; node 2 lost its directory and came back empty under its id; node 1
/// stopped, node 3 came back. Nodes 2 and 3 elected a leader, and the write was gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_lost_its_directory_is_refused_and_says_what_to_do() -> Result<()> {
    let mut cluster = Cluster::start(3, fast_settings()).await?;
    write(&cluster, "before").await?;
    // So that node 3 knows who its members are: its word about them counts.
    cluster.agreement().await?;
    cluster.stop(3).await?;
    write(&cluster, "acknowledged").await?;
    cluster.stop(2).await?;
    cluster.lose_directory(2)?;
    let fault = refused(&mut cluster, 2).await?;
    for told in ["another directory", "remove node 2", "new node id", "--join"] {
        assert!(fault.contains(told), "{fault}");
    }
    cluster.stop(1).await?;
    cluster.start_node(3).await?;
    let fault = refused(&mut cluster, 2).await?;
    assert!(fault.contains("another directory"), "{fault}");
    assert!(nobody_leads(&[cluster.node(3)?.status()]));
    // With the others the write is there.
    cluster.start_node(1).await?;
    write(&cluster, "later").await?;
    let client = cluster.client()?;
    assert!(client.get("acknowledged").await?.is_some());
    // And as the fault says: removed, and an empty directory under a new id.
    client.remove(NodeId::new(2)).await?;
    let address = cluster.start_joining(4).await?;
    client.add_learner(NodeId::new(4), address).await?;
    cluster.agreement().await?;
    cluster.shutdown().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_majority_forms_nothing_while_the_third_is_reached_and_the_third_keeps_its_data() -> Result<()>
{
    let mut cluster = Cluster::start(3, fast_settings()).await?;
    write(&cluster, "acknowledged").await?;
    cluster.agreement().await?;
    for id in [2, 3] {
        cluster.stop(id).await?;
        cluster.lose_directory(id)?;
    }
    let before = cluster.node(1)?.status();
    for id in [2, 3] {
        let fault = refused(&mut cluster, id).await?;
        assert!(fault.contains("another directory"), "{fault}");
    }
    let now = cluster.node(1)?.status();
    assert_eq!(
        (now.cluster_uuid, now.revision, now.state_hash),
        (before.cluster_uuid, before.revision, before.state_hash)
    );
    assert!(nobody_leads(&[now]));
    cluster.shutdown().await
}

/// Two new directories cannot know that a third one, which is away, belongs to a cluster. They may form one; it is another.
#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_majority_forms_another_cluster_after_a_grace_and_neither_follows_the_other() -> Result<()> {
    let mut cluster = Cluster::start(3, fast_settings()).await?;
    write(&cluster, "acknowledged").await?;
    let first = cluster.agreement().await?;
    for id in [1, 2, 3] {
        cluster.stop(id).await?;
    }
    for id in [2, 3] {
        cluster.lose_directory(id)?;
        cluster.start_node(id).await?;
    }
    cluster.leader().await?;
    write(&cluster, "second").await?;
    let second = cluster.agreement().await?;
    assert_ne!(first.cluster_uuid, second.cluster_uuid);
    let fault = refused(&mut cluster, 1).await?;
    for told in [first.cluster_uuid, second.cluster_uuid] {
        let told = told.expect("it was formed").to_string();
        assert!(fault.contains(&told), "{fault}");
    }
    // Its data is as it was: alone with its like it goes on.
    let after = cluster.node(2)?.status();
    assert_eq!(after.cluster_uuid, second.cluster_uuid);
    for id in [2, 3] {
        cluster.stop(id).await?;
    }
    cluster.start_node(1).await?;
    let kept = cluster.node(1)?.status();
    assert_eq!(
        (kept.cluster_uuid, kept.revision),
        (first.cluster_uuid, first.revision)
    );
    cluster.shutdown().await
}

#[tokio::test(flavor = "multi_thread")]
async fn three_wiped_directories_are_a_new_cluster() -> Result<()> {
    let mut cluster = Cluster::start(3, fast_settings()).await?;
    let first = cluster.agreement().await?.cluster_uuid;
    for id in 1..=3 {
        cluster.stop(id).await?;
        cluster.lose_directory(id)?;
    }
    for id in 1..=3 {
        cluster.start_node(id).await?;
    }
    write(&cluster, "new").await?;
    let second = cluster.agreement().await?.cluster_uuid;
    assert!(first.is_some() && second.is_some() && first != second);
    cluster.shutdown().await
}

/// One that is away while the cluster forms is introduced when it appears, and has a vote then.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_away_when_the_cluster_formed_takes_part_once_it_appears() -> Result<()> {
    let mut cluster = Cluster::prepare(3, fast_settings())?;
    cluster.start_node(1).await?;
    cluster.start_node(2).await?;
    cluster.leader().await?;
    write(&cluster, "early").await?;
    let known = |statuses: &[Status]| {
        let all = statuses.iter().flat_map(|s| &s.members);
        all.filter(|m| m.uuid.is_some()).count()
    };
    assert_eq!(known(&[cluster.node(1)?.status()]), 2);
    cluster.start_node(3).await?;
    cluster
        .wait("an introduction", |statuses| (known(statuses) == 9).then_some(()))
        .await?;
    let leader = cluster.leader().await?;
    cluster.agreement().await?;
    cluster.abort(if leader == 1 { 1 } else { 2 }).await?;
    write(&cluster, "with the third").await?;
    cluster.shutdown().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_id_comes_back_only_as_a_directory_that_was_added() -> Result<()> {
    let mut cluster = Cluster::start(3, fast_settings()).await?;
    let client = cluster.client()?;
    write(&cluster, "before").await?;
    let address = cluster.start_joining(4).await?;
    client.add_learner(NodeId::new(4), address).await?;
    cluster.agreement().await?;
    client.remove(NodeId::new(4)).await?;
    let fault = cluster.fault_of(4).await?;
    assert!(fault.contains("node 4 was removed"), "{fault}");
    // An empty directory under the same id, which nobody added: it waits, and is told of.
    cluster.lose_directory(4)?;
    let address = cluster.start_joining(4).await?;
    let waiting = cluster.node(4)?.status();
    assert_eq!(waiting.cluster_uuid, None);
    // Added, it is a member.
    client.add_learner(NodeId::new(4), address).await?;
    cluster.agreement().await?;
    let status = cluster.node(4)?.status();
    let known = status.members.iter().find(|m| m.id == NodeId::new(4));
    assert_eq!(known.and_then(|m| m.uuid), Some(status.uuid));
    assert_ne!(status.uuid, waiting.cluster_uuid.unwrap_or_default());
    cluster.shutdown().await
}

/// A node that was stopped while it was removed hears of it from the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_when_it_was_removed_is_told_so_and_stops() -> Result<()> {
    let mut cluster = Cluster::start(3, fast_settings()).await?;
    write(&cluster, "before").await?;
    cluster.agreement().await?;
    cluster.stop(3).await?;
    cluster.client()?.remove(NodeId::new(3)).await?;
    write(&cluster, "after").await?;
    let fault = refused(&mut cluster, 3).await?;
    assert!(fault.contains("node 3 was removed"), "{fault}");
    cluster.shutdown().await
}
