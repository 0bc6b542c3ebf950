//! Whether a peer's process has ended on a host that lives.
//!
//! Always: it takes two answers of the peer's system that its port is closed, the second one to new sockets, from every
//! address where the peer may be.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use super::{Shared, probe, resolve};
use crate::Peer;

/// Returns when the peer has ended; never once the transport is closed.
pub(super) async fn ended(shared: &Arc<Shared>, peer: &Peer) {
    let watch = shared.closing.run_until_cancelled(watch(shared, peer));
    if watch.await.is_none() {
        std::future::pending().await
    }
}

async fn watch(shared: &Arc<Shared>, peer: &Peer) {
    let every = shared.settings.probe_every;
    loop {
        let addresses = addresses(shared, peer).await;
        if addresses.is_empty() {
            sleep(shared.settings.backoff.max).await;
            continue;
        }
        let all_closed = || {
            join_all(
                addresses
                    .iter()
                    .map(|address| probe::port_closed(*address, every)),
            )
        };
        all_closed().await;
        if timeout(shared.settings.connect_timeout, all_closed())
            .await
            .is_ok()
        {
            return;
        }
    }
}

/// Where the peer was reached last; for one that never was, wherever its name leads: it may be at any of these, and at
/// the others nobody listens though it lives.
async fn addresses(shared: &Arc<Shared>, peer: &Peer) -> Vec<SocketAddr> {
    if let Some(address) = shared.links.reached(peer) {
        return vec![address];
    }
    // A name that is not known now may be known later.
    resolve::places(shared, &peer.address).await.unwrap_or_default()
}
