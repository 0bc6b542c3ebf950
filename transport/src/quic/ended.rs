//! Whether a peer's process has ended on a host that lives.
//!
//! Always: it takes two answers of the peer's system that its port is closed, the second one to new sockets, from every
//! address where the peer may be; an address that the peer may have left counts for nothing.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use super::links::Reached;
use super::shared::Shared;
use super::{probe, resolve};
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
        let places = places(shared, peer).await;
        if places.is_empty() {
            sleep(shared.settings.backoff.max).await;
            continue;
        }
        let all_closed = || join_all(places.iter().map(|place| probe::port_closed(*place, every)));
        tokio::select! {
            _ = all_closed() => {}
            () = moved(shared, peer, &places) => continue,
        }
        let again = timeout(shared.settings.connect_timeout, all_closed()).await;
        // It may have moved while it was probed: then it has ended only where it was.
        if again.is_ok() && self::places(shared, peer).await == places {
            return;
        }
    }
}

/// Returns when the peer is to be looked for elsewhere than at these places. Looks as often as an attempt to connect would.
async fn moved(shared: &Arc<Shared>, peer: &Peer, from: &[SocketAddr]) {
    loop {
        sleep(shared.settings.backoff.max).await;
        let now = places(shared, peer).await;
        // A name that is not known now may be known later, and lead where it led.
        if !now.is_empty() && now != from {
            return;
        }
    }
}

/// Where the peer may be, in order; nowhere while its name is not known. While it is connected that is where it was
/// reached, and later too as long as its name leads there. Else it is wherever its name leads: it may be at any of these,
/// and at the others nobody listens though it lives.
async fn places(shared: &Arc<Shared>, peer: &Peer) -> Vec<SocketAddr> {
    let reached = shared.links.reached(peer);
    if let Reached::Connected(place) = reached {
        return vec![place];
    }
    let mut places = resolve::places(shared, &peer.address).await.unwrap_or_default();
    match reached {
        Reached::Before(place) if places.contains(&place) => vec![place],
        _ => {
            places.sort_unstable();
            places.dedup();
            places
        }
    }
}
