//! Calls that must not compile. Each is a test of the documentation.
//!
//! A number that is not the one that `Op::Add` counts with is no value:
//!
//! ```compile_fail,E0277
//! async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
//!     client.put("k", 7u8).await?;
//!     Ok(())
//! }
//! ```
//!
//! Nor is a number a key:
//!
//! ```compile_fail,E0277
//! async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
//!     client.put(7, "v").await?;
//!     Ok(())
//! }
//! ```
//!
//! A value is not left out:
//!
//! ```compile_fail,E0277
//! async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
//!     client.put("k", None::<&str>).await?;
//!     Ok(())
//! }
//! ```
//!
//! A count has no pages, and a get no limit:
//!
//! ```compile_fail,E0599
//! async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
//!     client.count(..).limit(3).await?;
//!     Ok(())
//! }
//! ```
//!
//! A write is as fresh as can be:
//!
//! ```compile_fail,E0599
//! async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
//!     client.put("k", "v").stale().await?;
//!     Ok(())
//! }
//! ```
//!
//! A call that is not awaited does nothing, which the compiler says:
//!
//! ```compile_fail
//! #![deny(unused_must_use)]
//! async fn run(client: quorate_kv::Client) {
//!     client.put("k", "v");
//! }
//! ```
//!
//! A table's key is of its type, and its range of its keys:
//!
//! ```compile_fail,E0277
//! use quorate_kv::table::Table;
//! const USERS: Table<u64, String> = Table::new("users/");
//! async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
//!     client.table(USERS).get("ann").await?;
//!     Ok(())
//! }
//! ```
//!
//! ```compile_fail,E0277
//! use quorate_kv::table::Table;
//! const LOGINS: Table<(u64, String), String> = Table::new("logins/");
//! async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
//!     client.table(LOGINS).prefix(("ann",)).await?;
//!     Ok(())
//! }
//! ```
//!
//! And its value too:
//!
//! ```compile_fail,E0308
//! use quorate_kv::table::Table;
//! const USERS: Table<u64, String> = Table::new("users/");
//! async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
//!     client.table(USERS).put(7, &8).await?;
//!     Ok(())
//! }
//! ```
