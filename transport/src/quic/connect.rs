//! Connections to peers: the one that is up, or an attempt to make one, shared by all who wait for it.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

use tokio::time::Instant;

use super::errors::Way;
use super::expiry::{self, End};
use super::links::{Known, Live, Outcome};
use super::shared::Shared;
use super::{errors, probe, race, resolve, tls};
use crate::certs::{Validity, identity_in};
use crate::frame::STREAM_VERSION;
use crate::{Identity, Peer, RefusedBecause, Role, TransportError};

/// The connection to a peer: the one that is up, or a new one.
pub(super) async fn live(shared: &Arc<Shared>, peer: &Peer) -> Outcome {
    if shared.closing.is_cancelled() {
        return Err(TransportError::Closed);
    }
    let mut attempt = match shared.links.look(peer, &shared.settings.backoff)? {
        Known::Live(live) => return Ok(live),
        Known::Attempt(attempt) => attempt,
        Known::Due { key, done, attempt } => {
            let (shared, peer) = (Arc::clone(shared), peer.clone());
            shared.tasks.clone().spawn(async move {
                let outcome = connect(&shared, &peer).await;
                shared.links.settle(key, &outcome, &shared.settings.backoff);
                // Nobody may be waiting any more.
                let _ = done.send(Some(outcome));
            });
            attempt
        }
    };
    // The sender is dropped without an outcome only when the transport ends under the attempt.
    let outcome = attempt.wait_for(Option::is_some).await;
    let outcome = outcome.map_err(|_| TransportError::Closed)?.clone();
    outcome.unwrap_or(Err(TransportError::Closed))
}

/// Connects, or says why not: within the time for its name, then within the time for the handshake. Ends early when the
/// transport closes.
async fn connect(shared: &Arc<Shared>, peer: &Peer) -> Result<Live, TransportError> {
    let attempt = shared.closing.run_until_cancelled(any_place(shared, peer));
    let Some(outcome) = attempt.await else {
        return Err(TransportError::Closed);
    };
    match &outcome {
        Ok((live, end)) => {
            tracing::debug!(peer = live.node_id, address = %peer.address, "connected");
            shared.meters.outgoing.increment(1.0);
            let (shared, live, end) = (Arc::clone(shared), live.clone(), end.clone());
            let address = peer.address.clone();
            shared.tasks.clone().spawn(async move {
                let reason = tokio::select! {
                    reason = live.connection.closed() => reason,
                    reason = end.comes() => {
                        expiry::close(&live.connection, &live.way, &reason);
                        tracing::warn!(peer = live.node_id, %address, reason, "closed a connection");
                        live.connection.closed().await
                    }
                };
                shared.meters.outgoing.decrement(1.0);
                tracing::debug!(peer = live.node_id, %address, reason = errors::describe(&reason), "disconnected");
            });
        }
        Err(TransportError::Refused { .. }) => shared.meters.refused.increment(1),
        Err(_) => shared.meters.unreachable.increment(1),
    }
    outcome.map(|(live, _)| live)
}

/// Tries the places that the address stands for.
async fn any_place(shared: &Arc<Shared>, peer: &Peer) -> Result<(Live, End), TransportError> {
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

async fn handshake(shared: &Shared, peer: &Peer, address: SocketAddr) -> Result<(Live, End), TransportError> {
    let (config, ours) = {
        let own = shared.own.read().unwrap_or_else(PoisonError::into_inner);
        (own.client.clone(), own.times.own)
    };
    let connecting = shared
        .outgoing
        .connect_with(config, address, tls::SERVER_NAME)
        .map_err(|error| match error {
            quinn::ConnectError::EndpointStopping => TransportError::Closed,
            other => unreachable(peer, other.to_string()),
        })?;
    let failed = |error: quinn::ConnectionError| errors::not_connected(peer.address.as_str(), ours, &error);
    let connection = connecting.await.map_err(failed)?;
    let (node_id, end) = match check(shared, peer, &connection) {
        Ok((node_id, theirs)) => (
            node_id,
            End::of((&shared.identity, ours), (&theirs.identity, theirs.validity)),
        ),
        Err((because, reason)) => {
            connection.close(errors::WRONG_IDENTITY, reason.as_bytes());
            return Err(refused(peer, because, reason));
        }
    };
    // In TLS 1.3 we are done before the peer has seen our certificate: its welcome says that it took us.
    let mut welcome = connection.accept_uni().await.map_err(failed)?;
    let mut version = [0];
    if welcome.read_exact(&mut version).await.is_err() {
        return Err(match connection.close_reason() {
            Some(error) => failed(error),
            None => refused(peer, RefusedBecause::Handshake, "it welcomes nobody".to_owned()),
        });
    }
    if version != [STREAM_VERSION] {
        let reason = format!(
            "it speaks version {} of streams, we speak {STREAM_VERSION}",
            version[0]
        );
        connection.close(errors::WRONG_VERSION, reason.as_bytes());
        return Err(refused(peer, RefusedBecause::Version, reason));
    }
    let live = Live {
        connection,
        node_id,
        since: Instant::now(),
        way: Arc::new(Way::to(peer.address.to_string())),
    };
    Ok((live, end))
}

/// The node's number, if it is the one that was meant.
fn check(
    shared: &Shared,
    peer: &Peer,
    connection: &quinn::Connection,
) -> Result<(u64, Proven), (RefusedBecause, String)> {
    let theirs = proven(connection).map_err(|reason| (RefusedBecause::NoIdentity, reason))?;
    let identity = &theirs.identity;
    if identity.cluster != shared.identity.cluster {
        let reason = format!("{identity} is of another cluster than {}", shared.identity);
        return Err((RefusedBecause::WrongCluster, reason));
    }
    match (&identity.role, peer.node_id) {
        (Role::Client(name), _) => Err((RefusedBecause::WrongNode, format!("client {name} is no node"))),
        (Role::Node(id), Some(expected)) if *id != expected => {
            let reason = format!("node {id} is there, not node {expected}");
            Err((RefusedBecause::WrongNode, reason))
        }
        (Role::Node(id), _) => Ok((*id, theirs)),
    }
}

/// What a peer's certificates prove.
pub(super) struct Proven {
    pub(super) identity: Identity,
    pub(super) validity: Validity,
}

/// Who the peer's certificate says it is, and for how long.
pub(super) fn proven(connection: &quinn::Connection) -> Result<Proven, String> {
    let chain = connection.peer_identity();
    let chain = chain.and_then(|chain| {
        chain
            .downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>()
            .ok()
    });
    let chain = chain.ok_or("the peer showed no certificate")?;
    let certificate = chain.first().ok_or("the peer showed no certificate")?;
    let names = |reason| format!("the peer's certificate names no identity: {reason}");
    Ok(Proven {
        identity: identity_in(certificate).map_err(names)?,
        validity: Validity::of_all(&chain)?,
    })
}

fn unreachable(peer: &Peer, reason: String) -> TransportError {
    TransportError::Unreachable {
        address: peer.address.to_string(),
        reason,
    }
}

fn refused(peer: &Peer, because: RefusedBecause, reason: String) -> TransportError {
    TransportError::Refused {
        address: peer.address.to_string(),
        because,
        reason,
    }
}
