//! The transport in memory: the same contract as over QUIC, with a script for what the network does.
//!
//! For tests, for the test kit of the crates above, and for a deterministic simulator: the core knows no
//! runtime, only a [`Clock`].
//!
//! What can be scripted, for each direction between two addresses: latency, loss, bandwidth
//! ([`LinkSettings`]), cuts, pauses, half-open connections; and crashes. Streams are reliable, as over
//! QUIC: a lost message comes late instead of never, nothing is duplicated, and messages are reordered
//! between streams only. What is cut for longer than the idle timeout breaks, for both ends.
//!
//! ```
//! use std::sync::Arc;
//! use quorate_transport::memory::{MemoryNetwork, TokioClock};
//! use quorate_transport::{Class, ClusterId, Identity, Peer, Transport};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let network = MemoryNetwork::new(Arc::new(TokioClock::new(7)));
//! let cluster = ClusterId::new("demo")?;
//! let one = network.transport(Identity::node(cluster.clone(), 1), "one:7000");
//! let two = network.transport(Identity::node(cluster, 2), "two:7000");
//!
//! let peer = Peer { node_id: Some(2), address: "two:7000".parse()? };
//! let mut stream = one.open(&peer, Class::Control).await?;
//! stream.sender.send("a vote, please".into()).await?;
//!
//! let mut incoming = two.accept().await.ok_or("shut down")?;
//! assert_eq!(incoming.stream.receiver.receive().await?, Some("a vote, please".into()));
//!
//! network.cut("one:7000", "two:7000"); // and nothing arrives any more
//! # Ok(())
//! # }
//! ```
//!
//! Always: the same calls at the same times with the same random numbers do the same; no task of its own
//! runs; what was sent to one life of a place never reaches the next.

mod clock;
mod link;
mod settings;
mod state;

mod shared;
mod stream;
mod transport;

mod network;

#[cfg(test)]
mod tests;

pub use clock::{Clock, TokioClock};
pub use link::LinkSettings;
pub use network::MemoryNetwork;
pub use settings::NetworkSettings;
pub use transport::MemoryTransport;
