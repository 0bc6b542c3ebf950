//! Typed tables: keys and values of Rust types, each table under a prefix of its own.
//!
//! Users by number, and an index that finds them by name. Both change in one transaction, so that the index is never wrong.
//!
//! ```sh
//! cargo run -p quorate-kv --example typed_table
//! ```

use quorate_kv::client::Error;
use quorate_kv::table::Table;
use quorate_kv::{Client, Node};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct User {
    name: String,
    /// Added later: rows that were written before have no such field.
    #[serde(default)]
    admin: bool,
}

const USERS: Table<u64, User> = Table::new("users/");
/// By name and number, since two may have one name.
const BY_NAME: Table<(String, u64), ()> = Table::new("users-by-name/");

/// Writes a user, and brings the index along.
async fn write(client: &Client, number: u64, user: &User) -> Result<(), Error> {
    client
        .transact(async |t| {
            let (users, by_name) = (t.table(USERS), t.table(BY_NAME));
            if let Some(before) = users.get(number).await? {
                by_name.delete((before.name, number))?;
            }
            by_name.put((&user.name, number), &())?;
            users.put(number, user)
        })
        .await
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::builder().data_dir(dir.path()).start().await?;
    let client = node.client();

    for (number, name) in [(7, "Ann"), (12, "Bob"), (300, "Ann")] {
        let (name, admin) = (name.to_owned(), number == 7);
        write(&client, number, &User { name, admin }).await?;
    }

    // Keys are in the order of their type: 7, 12, 300.
    for entry in client.table(USERS).range(..100).await? {
        println!(
            "{}: {}, admin: {}",
            entry.key, entry.value.name, entry.value.admin
        );
    }
    // Of a tuple the first fields alone.
    for entry in client.table(BY_NAME).prefix(("Ann",)).await? {
        println!("Ann is number {}", entry.key.1);
    }

    let name = "Cid".to_owned();
    write(&client, 300, &User { name, admin: false }).await?;
    println!(
        "called Ann: {}",
        client.table(BY_NAME).prefix(("Ann",)).await?.len()
    );

    // Values are JSON, so that other programs read them too.
    let stored = client.get(USERS.key(7)).await?.expect("it was written");
    println!("in the store: {}", stored.text().unwrap_or_default());

    node.shutdown().await;
    Ok(())
}
