//! A registry of services: each instance writes where it is, and whoever needs the service lists them.
//!
//! There are no leases yet, so nobody removes an instance that died. Each instance writes until when its entry counts, and renews
//! it while it lives; readers skip entries that have ended. The times are of the programs' own clocks, which must agree to a few
//! seconds.
//!
//! ```sh
//! cargo run -p quorate-kv --example service_registry
//! ```

use quorate_kv::client::Error;
use quorate_kv::model::Revision;
use quorate_kv::table::Table;
use quorate_kv::{Client, Node};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Instance {
    address: String,
    /// In seconds since 1970.
    alive_until: u64,
}

/// By the service and the instance.
const INSTANCES: Table<(String, String), Instance> = Table::new("services/");

/// At the start of an instance, and again every ten seconds.
async fn register(client: &Client, service: &str, name: &str, at: &str, now: u64) -> Result<Revision, Error> {
    let (address, alive_until) = (at.to_owned(), now + 30);
    let instance = Instance { address, alive_until };
    client.table(INSTANCES).put((service, name), &instance).await
}

/// Where a service is. A stale read: it asks one node alone, and a list of addresses may be a moment old.
async fn addresses(client: &Client, service: &str, now: u64) -> Result<Vec<String>, Error> {
    let instances = client.table(INSTANCES).prefix((service,));
    let mut all = instances.with(|range| range.stale()).await?;
    all.retain(|entry| entry.value.alive_until > now);
    Ok(all.into_iter().map(|entry| entry.value.address).collect())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::builder().data_dir(dir.path()).start().await?;
    let client = node.client();
    let now = std::time::UNIX_EPOCH.elapsed()?.as_secs();

    register(&client, "mail", "a", "10.0.0.1:25", now).await?;
    register(&client, "mail", "b", "10.0.0.2:25", now).await?;
    register(&client, "web", "a", "10.0.0.1:80", now).await?;
    println!("mail: {:?}", addresses(&client, "mail", now).await?);

    // One that stops removes its entry. The entry of one that dies ends.
    client.table(INSTANCES).delete(("mail", "b")).await?;
    println!("b stopped: {:?}", addresses(&client, "mail", now).await?);
    println!(
        "a died, 31 s later: {:?}",
        addresses(&client, "mail", now + 31).await?
    );

    node.shutdown().await;
    Ok(())
}
