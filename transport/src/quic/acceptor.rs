//! Lets peers in, and brings the streams that they open to the inbox.
//!
//! Who comes is a stranger until the handshake is through, and may be anyone, or many: places for handshakes are apart
//! from places for those who proved who they are, and of these the nodes' are apart from the clients'. A stranger costs a
//! bounded time, a bounded memory, and now and then a line of the log.

use std::sync::{Arc, PoisonError};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use quinn::{ConnectionError, RecvStream, SendStream, VarInt};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::budget::Share;
use super::connect::{Proven, proven};
use super::errors::Way;
use super::expiry::{self, End};
use super::handshakes::{Answer, Source};
use super::places::{NODE_SHARE, NoPlace, Place};
use super::refusals::Why;
use super::settings::QuicSettings;
use super::shared::Shared;
use super::{errors, said, stream};
use crate::frame::{self, HeaderError, STREAM_VERSION};
use crate::{Identity, Incoming, Role};

/// Accepts connections until the transport closes; each has a task of its own.
pub(super) async fn run(shared: Arc<Shared>, endpoint: quinn::Endpoint) {
    loop {
        let incoming = tokio::select! {
            () = shared.closing.cancelled() => return,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else {
            return;
        };
        if let Some((incoming, handshake)) = admit(&shared, incoming) {
            shared
                .tasks
                .spawn(serve(Arc::clone(&shared), incoming, handshake));
        }
    }
}

/// A handshake that has a place, given back when it is dropped.
struct Handshake {
    shared: Arc<Shared>,
    id: u64,
    displaced: CancellationToken,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut handshakes = self.shared.door.handshakes();
        handshakes.over(self.id);
        self.shared.meters.handshakes.set(handshakes.count() as f64);
    }
}

/// Finds a place for a handshake, asks for a proof of its address, or refuses it.
fn admit(shared: &Arc<Shared>, incoming: quinn::Incoming) -> Option<(quinn::Incoming, Handshake)> {
    let (from, validated) = (incoming.remote_address(), incoming.remote_address_validated());
    let displaced = CancellationToken::new();
    let answer = {
        let mut handshakes = shared.door.handshakes();
        let answer = handshakes.begin(
            Source::from(from.ip()),
            validated,
            Instant::now(),
            displaced.clone(),
        );
        shared.meters.handshakes.set(handshakes.count() as f64);
        answer
    };
    match answer {
        Answer::Begun { id, displaced: other } => {
            if let Some(other) = other {
                other.cancel();
            }
            let shared = Arc::clone(shared);
            return Some((
                incoming,
                Handshake {
                    shared,
                    id,
                    displaced,
                },
            ));
        }
        Answer::Validate => {
            shared.meters.validations.increment(1);
            // An address that is not validated may always be asked to.
            let _ = incoming.retry();
        }
        Answer::Full => {
            let max = shared.settings.handshakes_max;
            let reason = format!("{max} handshakes are under way (handshakes_max)");
            shared.door.refusals.note(Why::Handshakes, from, reason);
            incoming.refuse();
        }
    }
    None
}

/// One connection, from the handshake to its end.
async fn serve(shared: Arc<Shared>, incoming: quinn::Incoming, handshake: Handshake) {
    let address = incoming.remote_address();
    let refused = |why, reason: &dyn std::fmt::Display| shared.door.refusals.note(why, address, reason);
    let within = shared.settings.connect_timeout;
    let shaking = timeout(within, async { incoming.accept()?.await });
    let connection = tokio::select! {
        shaken = shaking => match shaken {
            Ok(Ok(connection)) => connection,
            Ok(Err(ConnectionError::LocallyClosed)) => return,
            Ok(Err(error)) => return refused(why(&error), &format_args!("the handshake failed: {error}")),
            Err(_) => return refused(Why::Timeout, &format_args!("its handshake was not through within {within:?}")),
        },
        () = handshake.displaced.cancelled() => {
            return refused(Why::Displaced, &"its handshake did not go on, and others needed the place");
        }
    };
    let theirs = match check(&shared, &connection) {
        Ok(theirs) => theirs,
        Err((code, reason)) => {
            connection.close(code, reason.as_bytes());
            return refused(Why::Identity, &reason);
        }
    };
    let ours = shared
        .own
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .times
        .own;
    let end = End::of((&shared.identity, ours), (&theirs.identity, theirs.validity));
    let from = theirs.identity;
    let taken = shared.door.places().take(&from);
    // Only now: those who wait for a place are no strangers.
    drop(handshake);
    let place = match taken {
        Ok(place) => place,
        Err(none) => {
            let (why, reason) = full(&shared.settings, &from, none);
            connection.close(errors::FULL, reason.as_bytes());
            return refused(why, &reason);
        }
    };
    shared.meters.incoming.increment(1.0);
    let ended = welcomed(&shared, &from, &connection, &place, &end).await;
    shared.meters.incoming.decrement(1.0);
    shared.door.places().give_back(&from, &place);
    match ended {
        ConnectionError::ApplicationClosed(close) if close.error_code == errors::WRONG_IDENTITY => {
            let reason = said::text(&close.reason);
            refused(Why::Identity, &format_args!("{from} refused this node: {reason}"));
        }
        error => tracing::debug!(%from, reason = errors::describe(&error), "a peer disconnected"),
    }
}

/// Serves a peer until its connection ends.
async fn welcomed(
    shared: &Arc<Shared>,
    from: &Identity,
    connection: &quinn::Connection,
    place: &Place,
    end: &End,
) -> ConnectionError {
    let way = Arc::new(Way::to(connection.remote_address().to_string()));
    // It had a stranger's until now.
    let settings = &shared.settings;
    let (streams_max, share) = match from.role {
        Role::Node(_) => {
            connection.set_receive_window(VarInt::from_u32(settings.connection_window));
            connection.set_send_window(u64::from(settings.connection_window));
            (settings.streams_max, None)
        }
        Role::Client(_) => (settings.client_streams_max, Some(shared.door.budget.share())),
    };
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(streams_max));
    let serving = async {
        match welcome(connection).await {
            Ok(()) => streams(shared, from, &way, connection, share.as_ref()).await,
            Err(error) => error,
        }
    };
    tokio::select! {
        ended = serving => ended,
        () = place.displaced.cancelled() => {
            let reason = format!("{NODE_SHARE} newer connections of {from} took its place");
            way.closed_here(&reason);
            connection.close(errors::FULL, reason.as_bytes());
            connection.closed().await
        }
        reason = end.comes() => {
            expiry::close(connection, &way, &reason);
            shared.door.refusals.note(Why::Expired, from, reason);
            connection.closed().await
        }
    }
}

/// Why a handshake failed: the alert of TLS that ended it, ours or the peer's (RFC 9001, 4.8; RFC 8446, 6).
fn why(error: &ConnectionError) -> Why {
    let code = match error {
        ConnectionError::TransportError(error) => u64::from(error.code),
        ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
        _ => return Why::Tls,
    };
    match code.checked_sub(errors::CRYPTO_ERRORS.start) {
        Some(errors::ALERT_UNKNOWN_CA | errors::ALERT_DECRYPT_ERROR) => Why::Untrusted,
        Some(errors::ALERT_CERTIFICATE_EXPIRED) => Why::Expired,
        _ => Why::Tls,
    }
}

/// What is counted, and said to the peer, where there is no place for it.
fn full(settings: &QuicSettings, from: &Identity, none: NoPlace) -> (Why, String) {
    match none {
        NoPlace::Nodes => {
            let max = settings.node_connections_max;
            (
                Why::Nodes,
                format!("{max} connections of nodes are up (node_connections_max)"),
            )
        }
        NoPlace::Clients => {
            let max = settings.client_connections_max;
            (
                Why::Clients,
                format!("{max} clients are connected (client_connections_max)"),
            )
        }
        NoPlace::ClientShare => {
            let max = settings.client_share_max;
            (
                Why::ClientShare,
                format!("{max} connections are {from}'s (client_share_max)"),
            )
        }
    }
}

fn check(shared: &Shared, connection: &quinn::Connection) -> Result<Proven, (VarInt, String)> {
    let theirs = proven(connection).map_err(|reason| (errors::NO_IDENTITY, reason))?;
    let identity = &theirs.identity;
    if identity.cluster != shared.identity.cluster {
        let reason = format!("{identity} is of another cluster than {}", shared.identity);
        return Err((errors::WRONG_IDENTITY, reason));
    }
    Ok(theirs)
}

/// Says that the peer was taken, and which version of streams we speak.
async fn welcome(connection: &quinn::Connection) -> Result<(), ConnectionError> {
    let mut send = connection.open_uni().await?;
    // It fails only with the connection, which the caller sees next.
    let _ = send.write_all(&[STREAM_VERSION]).await;
    let _ = send.finish();
    Ok(())
}

/// Brings the peer's streams to the inbox until the connection ends.
async fn streams(
    shared: &Arc<Shared>,
    from: &Identity,
    way: &Arc<Way>,
    connection: &quinn::Connection,
    share: Option<&Share>,
) -> ConnectionError {
    // Each waits for its header, then for room in the inbox of its class, while the others go on. They are
    // no more than the streams that the peer may open.
    let mut beginning = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = connection.accept_bi() => match accepted {
                Ok((send, receive)) => beginning.push(begin(shared, from, way, share, send, receive)),
                Err(error) => return error,
            },
            Some(()) = beginning.next(), if !beginning.is_empty() => {}
        }
    }
}

async fn begin(
    shared: &Shared,
    from: &Identity,
    way: &Arc<Way>,
    share: Option<&Share>,
    mut send: SendStream,
    mut receive: RecvStream,
) {
    let mut header = [0; frame::HEADER_BYTES];
    // The header is sent with the opening: without it the stream is none.
    match timeout(shared.settings.connect_timeout, receive.read_exact(&mut header)).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) | Err(_) => return end(&mut send, &mut receive, errors::DROPPED),
    }
    let class = match frame::parse_header(header) {
        Ok(class) => class,
        Err(error) => {
            shared.door.refusals.note(Why::Stream, from, error);
            let code = match error {
                HeaderError::Version { .. } => errors::UNKNOWN_VERSION,
                HeaderError::Class { .. } => errors::UNKNOWN_CLASS,
            };
            return end(&mut send, &mut receive, code);
        }
    };
    let stream = stream::accepted(shared, way, share, class, send, receive);
    let incoming = Incoming {
        from: from.clone(),
        class,
        stream,
    };
    shared.inbox.push(incoming).await;
}

fn end(send: &mut SendStream, receive: &mut RecvStream, code: VarInt) {
    // Where they are closed already there is nobody to tell.
    let _ = send.reset(code);
    let _ = receive.stop(code);
}
