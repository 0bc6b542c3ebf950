//! One attempt to connect to a peer.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

use tokio::time::Instant;

use super::links::Live;
use super::{Shared, errors, probe, race, resolve, tls};
use crate::certs::identity_in;
use crate::frame::STREAM_VERSION;
use crate::{Identity, Peer, Role, TransportError};

/// Connects, or says why not: within the time for its name, then within the time for the handshake. Ends early when the
/// transport closes.
pub(super) async fn connect(shared: &Arc<Shared>, peer: &Peer) -> Result<Live, TransportError> {
    let attempt = shared.closing.run_until_cancelled(any_place(shared, peer));
    let Some(outcome) = attempt.await else {
        return Err(TransportError::Closed);
    };
    match &outcome {
        Ok(live) => {
            tracing::debug!(peer = live.node_id, address = %peer.address, "connected");
            shared.meters.outgoing.increment(1.0);
            let (shared, live, address) = (Arc::clone(shared), live.clone(), peer.address.clone());
            shared.tasks.clone().spawn(async move {
                let reason = live.connection.closed().await;
                shared.meters.outgoing.decrement(1.0);
                tracing::debug!(peer = live.node_id, %address, reason = errors::describe(&reason), "disconnected");
            });
        }
        Err(TransportError::Refused { .. }) => shared.meters.refused.increment(1),
        Err(_) => shared.meters.unreachable.increment(1),
    }
    outcome
}

/// Tries the places that the address stands for.
async fn any_place(shared: &Arc<Shared>, peer: &Peer) -> Result<Live, TransportError> {
    let places = resolve::places(shared, &peer.address).await;
    let places = places.map_err(|reason| unreachable(peer, reason))?;
    let within = shared.settings.connect_timeout;
    let silence = unreachable(peer, format!("no answer within {within:?}"));
    let attempt = async |place| {
        tokio::select! {
            attempt = handshake(shared, peer, place) => attempt,
            reason = probe::unreachable(place) => Err(unreachable(peer, reason)),
        }
    };
    race::first(race::in_turn(places), within, attempt, silence).await
}

async fn handshake(shared: &Shared, peer: &Peer, address: SocketAddr) -> Result<Live, TransportError> {
    let config = shared
        .client
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let connecting = shared
        .outgoing
        .connect_with(config, address, tls::SERVER_NAME)
        .map_err(|error| match error {
            quinn::ConnectError::EndpointStopping => TransportError::Closed,
            other => unreachable(peer, other.to_string()),
        })?;
    let failed = |error: quinn::ConnectionError| errors::not_connected(peer.address.as_str(), &error);
    let connection = connecting.await.map_err(failed)?;
    let node_id = match check(shared, peer, &connection) {
        Ok(node_id) => node_id,
        Err(reason) => {
            connection.close(errors::WRONG_IDENTITY, reason.as_bytes());
            return Err(refused(peer, reason));
        }
    };
    // In TLS 1.3 we are done before the peer has seen our certificate: its welcome says that it took us.
    let mut welcome = connection.accept_uni().await.map_err(failed)?;
    let mut version = [0];
    if welcome.read_exact(&mut version).await.is_err() {
        return Err(match connection.close_reason() {
            Some(error) => failed(error),
            None => refused(peer, "it welcomes nobody".to_owned()),
        });
    }
    if version != [STREAM_VERSION] {
        let reason = format!(
            "it speaks version {} of streams, we speak {STREAM_VERSION}",
            version[0]
        );
        connection.close(errors::WRONG_VERSION, reason.as_bytes());
        return Err(refused(peer, reason));
    }
    Ok(Live {
        connection,
        node_id,
        since: Instant::now(),
    })
}

/// The node's number, if it is the one that was meant.
fn check(shared: &Shared, peer: &Peer, connection: &quinn::Connection) -> Result<u64, String> {
    let theirs = identity_of(connection)?;
    if theirs.cluster != shared.identity.cluster {
        return Err(format!("{theirs} is of another cluster than {}", shared.identity));
    }
    match (theirs.role, peer.node_id) {
        (Role::Client(name), _) => Err(format!("client {name} is no node")),
        (Role::Node(id), Some(expected)) if id != expected => {
            Err(format!("node {id} is there, not node {expected}"))
        }
        (Role::Node(id), _) => Ok(id),
    }
}

/// Who the peer's certificate says it is.
pub(super) fn identity_of(connection: &quinn::Connection) -> Result<Identity, String> {
    let chain = connection.peer_identity();
    let chain = chain.and_then(|chain| {
        chain
            .downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>()
            .ok()
    });
    let chain = chain.ok_or("the peer showed no certificate")?;
    let certificate = chain.first().ok_or("the peer showed no certificate")?;
    identity_in(certificate).map_err(|reason| format!("the peer's certificate names no identity: {reason}"))
}

fn unreachable(peer: &Peer, reason: String) -> TransportError {
    TransportError::Unreachable {
        address: peer.address.to_string(),
        reason,
    }
}

fn refused(peer: &Peer, reason: String) -> TransportError {
    TransportError::Refused {
        address: peer.address.to_string(),
        reason,
    }
}
