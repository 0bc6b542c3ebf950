//! The store in your own process: one node, no port, no certificate.
//!
//! Shows the calls that most programs need: put, get, a range, a transaction with a guard, a counter, and a loop that
//! changes a value without losing what others write.
//!
//! ```sh
//! cargo run -p quorate-kv --example embedded
//! ```

use quorate_kv::Node;
use quorate_kv::client::Swap;
use quorate_kv::model::Guard;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // A real program names a directory that stays.
    let dir = tempfile::tempdir()?;
    let node = Node::builder().data_dir(dir.path()).start().await?;
    let client = node.client();

    client.put("users/ann", "reader").await?;
    client.put("users/bob", "writer").await?;
    let ann = client.get("users/ann").await?.expect("it was just written");
    println!("ann: {:?}, version {}", ann.text(), ann.version);
    for user in client.prefix("users/").await? {
        println!("{}: {:?}", user.key, user.record.text());
    }

    // Both writes happen, or none: only while nobody owns the name.
    let named = client
        .txn()
        .when(Guard::missing("names/cid"))
        .put("names/cid", "users/cid")
        .put("users/cid", "reader")
        .await?;
    println!("the name was free: {}", named.succeeded);

    println!("visits: {}", client.add("visits", 1).await?);

    // Read, then write unless somebody else has written in between; if so, try again with their value.
    let mut seen = client.get("tags").await?;
    loop {
        let tags = seen.as_ref().and_then(|record| record.text()).unwrap_or("");
        let longer = format!("{tags}#new");
        match client.compare_and_swap("tags", seen.as_ref(), longer).await? {
            Swap::Written(revision) => break println!("tags: written at revision {revision}"),
            Swap::Differs(current) => seen = current,
        }
    }

    node.shutdown().await;
    Ok(())
}
