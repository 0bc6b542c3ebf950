//! A test of a service that is built on the crate: three nodes in memory, one of which crashes.
//!
//! The service sells seats. What it promises is that no seat is sold twice and none is lost, whatever happens to the cluster.
//!
//! ```sh
//! cargo run -p quorate-kv --example testkit --features testkit
//! ```
//!
//! In your crate the kit is a feature of the tests alone:
//! `quorate-kv = { path = "../quorate/kv", features = ["testkit"] }` under `[dev-dependencies]`.

use quorate_kv::Client;
use quorate_kv::client::Error;
use quorate_kv::testkit::{Cluster, KitError};

/// Sells the seat, unless somebody has it. Asked again by the same buyer it says the same: so it may be repeated, also after an
/// unknown outcome.
async fn buy(client: &Client, seat: &str, buyer: &str) -> Result<bool, Error> {
    client
        .transact(async |t| match t.get(seat).await? {
            Some(owner) => Ok(owner == buyer),
            None => t.put(seat, buyer).map(|()| true),
        })
        .await
}

/// `#[tokio::test] async fn no_seat_is_sold_twice_when_the_leader_crashes()` in a test.
#[tokio::main]
async fn main() -> Result<(), KitError> {
    let mut cluster = Cluster::start(3).await?;
    let client = cluster.client()?;
    assert!(buy(&client, "seats/1", "ann").await?);

    let leader = cluster.leader().await?;
    cluster.crash(leader).await?;
    println!("the leader crashed");
    assert!(!buy(&client, "seats/1", "bob").await?, "it was sold before");
    assert!(buy(&client, "seats/2", "bob").await?, "two of three nodes sell");
    println!("no seat was sold twice");

    cluster.restart(leader).await?;
    let newest = client.revision().await?;
    cluster.wait_for(newest).await?;
    let back = cluster.node(leader)?.client();
    let seat = back
        .get("seats/2")
        .stale()
        .await?
        .expect("the node has caught up");
    assert_eq!(seat.text(), Some("bob"));
    println!("the node that came back knows what was sold meanwhile");

    cluster.shutdown().await;
    Ok(())
}
