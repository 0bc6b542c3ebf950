//! A replicated, transactional key-value store that a Rust program links in.
//!
//! Raft (openraft) over a log of its own, the state on redb, messages between nodes over a transport that is
//! handed in. It is not a server (the `quorate` binary is) and knows nothing of brokers or topics (`meta` does).
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use quorate_kv::Node;
//!
//! let node = Node::builder().data_dir("data").start().await?;
//! let client = node.client();
//! client.put("greeting", "hello").await?;
//! let record = client.get("greeting").await?.expect("it was just written");
//! assert_eq!(&record.value[..], b"hello");
//! node.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! # What a program's logging must not do
//!
//! A node says what it does through `tracing`, from the threads and tasks that replicate, vote and write. So the program's
//! subscriber is part of a node's way: one that **waits** (for a pipe that nobody reads, a full disk, a lock) holds up
//! heartbeats and elections for as long; one that **panics** ends the node by a fault. `tracing_subscriber::fmt` does both
//! over a plain `std::io::stderr`, and prints what it could not write unless told otherwise. Give it a writer that drops
//! lines where it cannot keep up, such as `tracing_appender::non_blocking`, and turn `log_internal_errors(false)`. The
//! `quorate` program has one of its own.
//!
//! The public modules: what is said ([`model`]), and what users hold ([`node`], [`client`], [`table`], and `testkit` with the
//! feature of that name). The others that a program can name (`env`, `fault`, `scrub`, `identity`, `log`, `machine`, `check`) are open
//! to the server, the tests and the tools of this repository. They are not in the documentation, and change without notice.

// A library that prints panics where its program has no standard output.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod model;

#[doc(hidden)]
pub mod env;
#[doc(hidden)]
pub mod fault;
#[doc(hidden)]
pub mod planted;
#[doc(hidden)]
pub mod scrub;

mod damage;

#[cfg(any(test, feature = "fuzzing"))]
mod decoder;

#[doc(hidden)]
pub mod identity;
#[doc(hidden)]
pub mod log;
#[doc(hidden)]
pub mod machine;

mod status;
mod tasks;
mod timing;

mod protocol;
mod raft;
mod room;

#[doc(hidden)]
pub mod check;

pub mod client;
pub mod node;
pub mod table;
#[cfg(feature = "testkit")]
pub mod testkit;

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;

pub use client::Client;
pub use node::Node;
