//! A real cluster: it forms in any order, survives its leader, moves leadership, changes its members.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::Result;
use quorate_kv::Client;
use quorate_kv::client::Error;
use quorate_kv::model::{Consistency, Key, NodeId, Op, ReadOp, Txn};
use quorate_kv::node::{NodeRole, StartError, Status, StorageError};
use quorate_tests::cluster::{Cluster, fast_settings};
use quorate_tests::ports::free_address;

async fn put_range(client: &Client, range: std::ops::Range<u32>) -> Result<()> {
    for i in range {
        client.put(format!("k{i}"), format!("v{i}")).await?;
    }
    Ok(())
}

async fn expect_range(client: &Client, range: std::ops::Range<u32>) -> Result<()> {
    for i in range {
        let record = client.get(format!("k{i}")).await?;
        let record = record.ok_or_else(|| anyhow::anyhow!("k{i} is lost"))?;
        anyhow::ensure!(record.value == format!("v{i}"), "k{i} is {:?}", record.value);
        anyhow::ensure!(record.version == 1, "k{i} was written {} times", record.version);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_of_one_three_and_five_form_in_any_order_and_agree() -> Result<()> {
    for order in [vec![1], vec![3, 1, 2], vec![5, 3, 1, 4, 2]] {
        let mut cluster = Cluster::prepare(order.len() as u64, fast_settings())?;
        for id in order {
            cluster.start_node(id).await?;
        }
        let client = cluster.client()?;
        put_range(&client, 0..20).await?;
        expect_range(&client, 0..20).await?;
        cluster.agreement().await?;
        cluster.shutdown().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_leader_is_replaced_and_nothing_acknowledged_is_lost() -> Result<()> {
    let mut cluster = Cluster::start(3, fast_settings()).await?;
    let client = cluster.client()?;
    put_range(&client, 0..20).await?;
    let leader = cluster.leader().await?;
    cluster.abort(leader).await?;
    put_range(&client, 20..40).await?;
    expect_range(&client, 0..40).await?;
    assert_ne!(cluster.leader().await?, leader);
    cluster.start_node(leader).await?;
    cluster.agreement().await?;
    cluster.shutdown().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_was_killed_whole_comes_back_with_everything() -> Result<()> {
    let mut cluster = Cluster::start(3, fast_settings()).await?;
    put_range(&cluster.client()?, 0..20).await?;
    for id in 1..=3 {
        cluster.abort(id).await?;
    }
    for id in [2, 3, 1] {
        cluster.start_node(id).await?;
    }
    let client = cluster.client()?.with_deadline(Duration::from_secs(30));
    expect_range(&client, 0..20).await?;
    put_range(&client, 20..30).await?;
    cluster.agreement().await?;
    cluster.shutdown().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_stop_hands_leadership_on_first() -> Result<()> {
    let mut cluster = Cluster::start(3, fast_settings()).await?;
    let client = cluster.client()?;
    put_range(&client, 0..5).await?;
    let leader = cluster.leader().await?;
    let term = cluster.node(leader)?.status().term;
    let report = cluster.stop(leader).await?;
    assert_eq!(report.leadership_moved, Some(true));
    assert!(report.drained);
    let next = cluster.leader().await?;
    // One election, and no second one: nobody waited for a timeout and stood again.
    assert_eq!(cluster.node(next)?.status().term.number(), term.number() + 1);
    put_range(&client, 5..10).await?;
    cluster.shutdown().await
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_moves_to_the_node_that_is_named() -> Result<()> {
    let cluster = Cluster::start(3, fast_settings()).await?;
    let client = cluster.client()?;
    put_range(&client, 0..5).await?;
    let leader = cluster.leader().await?;
    let target = (1..=3).find(|id| *id != leader).expect("two others");
    client.move_leader(Some(NodeId::new(target))).await?;
    assert_eq!(cluster.leader().await?, target);
    put_range(&client, 5..10).await?;
    expect_range(&client, 0..10).await?;
    cluster.shutdown().await
}

/// The story: whether a store that was four fifths full took writes depended on who had led when it was fuller.
#[tokio::test(flavor = "multi_thread")]
async fn whether_a_store_is_full_does_not_depend_on_who_leads() -> Result<()> {
    let mut settings = fast_settings();
    settings.store_bytes_max = 200_000;
    // Else history would go by itself.
    settings.history_kept = std::time::Duration::ZERO;
    let cluster = Cluster::start(3, settings).await?;
    let client = cluster.client()?;
    let key = |number: usize| Key::new(format!("fill/{number}"));
    let mut count = 0;
    while client.put(key(count)?, vec![1; 1_000]).await.is_ok() {
        count += 1;
    }
    for number in 0..count / 10 {
        client.delete(key(number)?).await?;
    }
    client.compact(client.status().await?.revision).await?;
    cluster
        .wait(
            "nodes that have given the history up, and are between four fifths and all",
            |statuses| {
                let is_between = |status: &Status| {
                    let used = status.holds.live_bytes + status.holds.history_bytes;
                    status.is_full && (160_000..190_000).contains(&used)
                };
                statuses.iter().all(is_between).then_some(())
            },
        )
        .await?;
    let first = cluster.leader().await?;
    let second = (1..=3).find(|id| *id != first).expect("two others");
    for leader in [first, second, first] {
        client.move_leader(Some(NodeId::new(leader))).await?;
        assert_eq!(cluster.leader().await?, leader);
        let put = client.put("more", "1").await;
        assert!(
            matches!(put, Err(Error::NoSpace { .. })),
            "node {leader}: {put:?}"
        );
    }
    cluster.shutdown().await
}

/// The others would go on looking for it where it was: it must not sit there as if nothing were wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_would_come_back_at_another_address_says_so_and_does_not_start() -> Result<()> {
    let mut cluster = Cluster::start(3, fast_settings()).await?;
    let leader = cluster.leader().await?;
    let moved = (1..=3).find(|id| *id != leader).expect("two others");
    // Started again only after it has heard who belongs to the cluster.
    cluster.agreement().await?;
    cluster.stop(moved).await?;
    let refused = cluster.start_elsewhere(moved, free_address()?).await;
    let Err(StartError::AddressChanged { id, recorded, given }) = refused else {
        panic!("node {moved} started elsewhere: {refused:?}");
    };
    assert_eq!(id, NodeId::new(moved));
    assert_ne!(recorded, given);
    // Nothing was changed by the refusal, and nothing is left of the attempt.
    cluster.start_node(moved).await?;
    put_range(&cluster.client()?, 0..5).await?;
    cluster.agreement().await?;
    cluster.shutdown().await
}

/// Who supervises a node may try again at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_start_leaves_its_address_free() -> Result<()> {
    let mut cluster = Cluster::start(1, fast_settings()).await?;
    let address = free_address()?;
    let refused = cluster.start_elsewhere(1, address).await;
    let Err(StartError::Storage(StorageError::InUse { .. })) = refused else {
        panic!("two nodes use the same files: {refused:?}");
    };
    UdpSocket::bind(address)?;
    cluster.shutdown().await
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_added_promoted_and_removed() -> Result<()> {
    let mut cluster = Cluster::start(3, fast_settings()).await?;
    let client = cluster.client()?;
    put_range(&client, 0..50).await?;
    let address = cluster.start_joining(4).await?;
    client.add_learner(NodeId::new(4), address).await?;
    cluster
        .wait("a learner that has caught up", |statuses| {
            let leader = statuses.iter().find(|s| s.role == NodeRole::Leader)?;
            let learner = statuses.iter().find(|s| s.node == NodeId::new(4))?;
            (learner.applied == leader.applied && learner.role == NodeRole::Learner).then_some(())
        })
        .await?;
    client.promote(NodeId::new(4)).await?;
    cluster
        .wait("a fourth voter", |statuses| {
            let leader = statuses.iter().find(|s| s.role == NodeRole::Leader)?;
            leader
                .members
                .iter()
                .any(|m| m.id == NodeId::new(4) && m.voter)
                .then_some(())
        })
        .await?;
    let leader = cluster.leader().await?;
    let removed = (1..=3).find(|id| *id != leader).expect("two others");
    client.remove(NodeId::new(removed)).await?;
    cluster.stop(removed).await?;
    put_range(&client, 50..60).await?;
    expect_range(&client, 0..60).await?;
    let status = cluster.agreement().await?;
    assert_eq!(status.members.len(), 3);
    cluster.shutdown().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_far_behind_gets_a_snapshot_and_agrees() -> Result<()> {
    let mut settings = fast_settings();
    settings.snapshot_entries = 50;
    settings.log_entries_kept = 10;
    settings.log_segment_bytes = 64 * 1024;
    let mut cluster = Cluster::start(3, settings).await?;
    let client = cluster.client()?;
    put_range(&client, 0..10).await?;
    let leader = cluster.leader().await?;
    let behind = (1..=3).find(|id| *id != leader).expect("two others");
    cluster.abort(behind).await?;
    put_range(&client, 10..400).await?;
    cluster
        .wait("a purged log", |statuses| {
            let missed = 100;
            statuses
                .iter()
                .all(|s| s.purged.is_some_and(|p| p.number() > missed))
                .then_some(())
        })
        .await?;
    cluster.start_node(behind).await?;
    put_range(&client, 400..410).await?;
    cluster.agreement().await?;
    expect_range(&cluster.node(behind)?.client(), 0..410).await?;
    cluster.shutdown().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_takes_no_more_of_the_disk_than_it_may_however_few_its_entries_are() -> Result<()> {
    let mut settings = fast_settings();
    settings.log_segment_bytes = 64 * 1024;
    settings.log_bytes_kept = Some(4 * 64 * 1024);
    settings.durable_interval = Duration::from_millis(50);
    let mut cluster = Cluster::start(3, settings).await?;
    let client = cluster.client()?;
    let leader = cluster.leader().await?;
    let behind = (1..=3).find(|id| *id != leader).expect("two others");
    cluster.abort(behind).await?;
    // Each takes a fifth of a segment; by entries alone all would be kept.
    for i in 0..60 {
        client.put(format!("large/{i:02}"), vec![b'x'; 12 * 1024]).await?;
    }
    cluster
        .wait("a log within its bytes", |statuses| {
            let within = |s: &Status| {
                // Openraft keeps what it is about to send to the node that is away, up to twice what the log may take.
                let most = if s.role == NodeRole::Leader { 8 * 5 } else { 4 * 5 };
                let held = s.last_log.zip(s.purged);
                held.is_some_and(|(last, purged)| last.number() - purged.number() <= most)
            };
            (statuses.len() == 2 && statuses.iter().all(within)).then_some(())
        })
        .await?;
    // Who was away finds what is left of the log useless, and gets the state.
    cluster.start_node(behind).await?;
    cluster.agreement().await?;
    cluster.shutdown().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_serves_linearizable_reads() -> Result<()> {
    let cluster = Cluster::start(3, fast_settings()).await?;
    let client = cluster.client()?;
    for i in 0..30u32 {
        let revision = client.put("k", i.to_string()).await?;
        for node in cluster.nodes().values() {
            let read = node
                .client()
                .read(vec![ReadOp::Get("k".into())])
                .consistency(Consistency::Linearizable)
                .await?;
            assert!(read.revision >= revision, "node {} read the past", node.id());
        }
    }
    cluster.shutdown().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_more_steps_than_a_node_takes_is_answered_and_ends_nothing() -> Result<()> {
    let cluster = Cluster::start(1, fast_settings()).await?;
    let limit = cluster.limits().txn_ops_max;
    let mut limits = cluster.limits();
    limits.txn_ops_max = usize::MAX;
    let client = cluster.client_with(limits)?;
    client.put("a", "1").await?;
    let get = |_| ReadOp::Get(Key::from("a"));
    let reads: Vec<_> = (0..=limit).map(get).collect();
    let steps = (0..=limit).map(|_| Op::get(Key::from("a")));
    for error in [
        client
            .read(reads)
            .consistency(Consistency::Linearizable)
            .await
            .unwrap_err(),
        client.commit(Txn::new(steps)).await.unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(text.contains(&format!("than the limit of {limit}")), "{text}");
        assert!(!error.is_retryable() && !error.may_have_committed(), "{text}");
    }
    // What is within, on the same stream.
    let reads = (0..limit).map(get);
    let read = client.read(reads).consistency(Consistency::Linearizable).await?;
    assert_eq!(read.results.len(), limit);
    cluster.shutdown().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_read_waits_for_its_revision_and_keeps_its_bound() -> Result<()> {
    let cluster = Cluster::start(3, fast_settings()).await?;
    let client = cluster.client()?;
    let revision = client.put("k", "1").await?;
    for node in cluster.nodes().values() {
        let stale = Consistency::Stale {
            min_revision: Some(revision),
            max_lag: Some(Duration::from_secs(30)),
        };
        let record = node.client().get("k").consistency(stale).await?;
        assert!(record.is_some(), "node {}", node.id());
    }
    cluster.shutdown().await
}

/// The story: a node alone refused every stale read with a bound, since its lag grew for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_bounded_stale_read_is_answered_alone_and_on_every_node_with_no_bound_too_tight() -> Result<()> {
    for count in [1, 3] {
        let cluster = Cluster::start(count, fast_settings()).await?;
        cluster.client()?.put("k", "1").await?;
        for node in cluster.nodes().values() {
            for max_lag in [Duration::ZERO, Duration::from_millis(1), Duration::from_secs(30)] {
                let stale = Consistency::Stale {
                    min_revision: None,
                    max_lag: Some(max_lag),
                };
                let record = node.client().get("k").consistency(stale).await?;
                // It was acknowledged before, and so is in every bound that is asked for within 30 seconds of it.
                assert!(
                    record.is_some() || max_lag > Duration::from_millis(1),
                    "node {} of {count}, {max_lag:?}",
                    node.id()
                );
            }
        }
        // Heartbeats tell followers how fresh they are, though nobody reads.
        cluster
            .wait("fresh statuses", |statuses| {
                let is_fresh = |s: &Status| s.quorum && s.lag.is_some_and(|lag| lag < Duration::from_secs(1));
                statuses.iter().all(is_fresh).then_some(())
            })
            .await?;
        cluster.shutdown().await?;
    }
    Ok(())
}

/// The story: `member add 2 <dead port>; member promote 2` on a single node answered that nothing was changed, made it a
/// cluster of two voters, and it was lost for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_never_answered_gets_no_vote_and_the_cluster_stays() -> Result<()> {
    let mut cluster = Cluster::start(1, fast_settings()).await?;
    let client = cluster.client()?;
    let nobody = free_address()?.to_string();
    let added = client.add_learner(NodeId::new(2), nobody.clone()).await;
    let refused = added.expect_err("nobody is there");
    assert!(!refused.may_have_committed(), "{refused}");
    let text = refused.to_string();
    assert!(text.contains("--join") && text.contains(&nobody), "{text}");
    let address = cluster.start_joining(2).await?;
    client.add_learner(NodeId::new(2), address).await?;
    cluster.agreement().await?;
    cluster.abort(2).await?;
    cluster.stop(1).await?;
    cluster.start_node(1).await?;
    cluster.leader().await?;
    let refused = client.promote(NodeId::new(2)).await.expect_err("nobody is there");
    assert!(!refused.may_have_committed(), "{refused}");
    assert!(refused.to_string().contains("never answered"), "{refused}");
    put_range(&client, 0..5).await?;
    let members = client.status().await?.members;
    let voters: Vec<_> = members.iter().map(|m| (m.id.number(), m.voter)).collect();
    assert_eq!(voters, [(1, true), (2, false)]);
    client.remove(NodeId::new(2)).await?;
    put_range(&client, 5..10).await?;
    cluster.shutdown().await
}

/// The story: adding an existing id with another address said that it was done, and changed nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_added_again_where_it_is_and_refused_elsewhere() -> Result<()> {
    let mut cluster = Cluster::start(1, fast_settings()).await?;
    let client = cluster.client()?;
    let address = cluster.start_joining(2).await?;
    let id = NodeId::new(2);
    client.add_learner(id, address.clone()).await?;
    client.add_learner(id, address.clone()).await?;
    let elsewhere = free_address()?.to_string();
    let refused = client
        .add_learner(id, elsewhere.clone())
        .await
        .expect_err("it is elsewhere");
    assert!(
        !refused.may_have_committed() && !refused.is_retryable(),
        "{refused}"
    );
    let text = refused.to_string();
    assert!(text.contains(&address) && text.contains(&elsewhere), "{text}");
    let members = client.status().await?.members;
    assert_eq!(
        members.iter().find(|m| m.id == id).map(|m| &m.address),
        Some(&address)
    );
    cluster.shutdown().await
}

/// The story: a change of members that waited for a majority and was given up was told to have changed nothing; when the
/// others came back it happened.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_members_that_reached_no_majority_may_happen_yet_and_says_so() -> Result<()> {
    let mut cluster = Cluster::start(3, fast_settings()).await?;
    let client = cluster.client()?;
    put_range(&client, 0..5).await?;
    let leader = cluster.leader().await?;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let address = cluster.start_joining(4).await?;
    for other in &others {
        cluster.abort(*other).await?;
    }
    // Of the leader's process: whoever cannot be reached is asked no more.
    let at_leader = cluster.node(leader)?.client();
    let error = at_leader
        .with_deadline(Duration::from_millis(700))
        .add_learner(NodeId::new(4), address)
        .await
        .expect_err("there is no majority");
    assert!(error.may_have_committed(), "{error}");
    for other in others {
        cluster.start_node(other).await?;
    }
    put_range(&client.with_deadline(Duration::from_secs(30)), 5..10).await?;
    cluster.stop(4).await?;
    cluster.agreement().await?;
    cluster.shutdown().await
}

/// A leader that reaches nobody says that it has lost its quorum, and so do those whom nobody leads.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_its_quorum_says_so() -> Result<()> {
    let mut cluster = Cluster::start(3, fast_settings()).await?;
    put_range(&cluster.client()?, 0..5).await?;
    let leader = cluster.leader().await?;
    let everyone = |statuses: &[Status]| statuses.iter().all(|s| s.quorum).then_some(());
    cluster.wait("a quorum that all know of", everyone).await?;
    for other in (1..=3).filter(|id| *id != leader) {
        cluster.abort(other).await?;
    }
    let alone = |statuses: &[Status]| statuses.iter().all(|s| !s.quorum).then(|| statuses.to_vec());
    let statuses = cluster
        .wait("a leader that knows that it is alone", alone)
        .await?;
    assert!(
        statuses.iter().all(|s| s.confirmed.is_some() && s.lag.is_some()),
        "{statuses:?}"
    );
    cluster.shutdown().await
}
