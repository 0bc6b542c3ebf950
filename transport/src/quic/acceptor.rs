//! Lets peers in, and brings the streams that they open to the inbox.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use quinn::{ConnectionError, RecvStream, SendStream, VarInt};
use tokio::time::timeout;

use super::connect::identity_of;
use super::{Shared, errors, stream};
use crate::frame::{self, HeaderError, STREAM_VERSION};
use crate::{Identity, Incoming};

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
        if endpoint.open_connections() > shared.settings.connections_max {
            tracing::warn!(peer = %incoming.remote_address(), max = shared.settings.connections_max,
                "refused a connection: there are too many");
            incoming.refuse();
            continue;
        }
        shared.tasks.spawn(serve(Arc::clone(&shared), incoming));
    }
}

/// One connection, from the handshake to its end.
async fn serve(shared: Arc<Shared>, incoming: quinn::Incoming) {
    let address = incoming.remote_address();
    let handshake = async { incoming.accept()?.await };
    let connection = match timeout(shared.settings.connect_timeout, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(ConnectionError::LocallyClosed)) => return,
        Ok(Err(error)) => {
            shared.meters.tls_failures.increment(1);
            tracing::warn!(peer = %address, %error, "refused a peer: the handshake failed");
            return;
        }
        // It went away or never was one.
        Err(_) => return,
    };
    let from = match check(&shared, &connection) {
        Ok(from) => from,
        Err(reason) => {
            shared.meters.identity_failures.increment(1);
            tracing::warn!(peer = %address, reason, "refused a peer");
            connection.close(errors::WRONG_IDENTITY, reason.as_bytes());
            return;
        }
    };
    shared.meters.incoming.increment(1.0);
    let ended = match welcome(&connection).await {
        Ok(()) => streams(&shared, &from, &connection).await,
        Err(error) => error,
    };
    shared.meters.incoming.decrement(1.0);
    match ended {
        ConnectionError::ApplicationClosed(close) if close.error_code == errors::WRONG_IDENTITY => {
            let reason = String::from_utf8_lossy(&close.reason);
            tracing::warn!(peer = %address, %from, %reason, "a peer refused this node");
        }
        error => tracing::debug!(%from, reason = errors::describe(&error), "a peer disconnected"),
    }
}

fn check(shared: &Shared, connection: &quinn::Connection) -> Result<Identity, String> {
    let theirs = identity_of(connection)?;
    if theirs.cluster != shared.identity.cluster {
        return Err(format!("{theirs} is of another cluster than {}", shared.identity));
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
async fn streams(shared: &Arc<Shared>, from: &Identity, connection: &quinn::Connection) -> ConnectionError {
    let address: Arc<str> = connection.remote_address().to_string().into();
    // Each waits for its header, then for room in the inbox of its class, while the others go on. They are
    // no more than the streams that the peer may open.
    let mut beginning = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = connection.accept_bi() => match accepted {
                Ok((send, receive)) => beginning.push(begin(shared, from, &address, send, receive)),
                Err(error) => return error,
            },
            Some(()) = beginning.next(), if !beginning.is_empty() => {}
        }
    }
}

async fn begin(
    shared: &Shared,
    from: &Identity,
    address: &Arc<str>,
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
            tracing::warn!(%from, %error, "refused a stream");
            let code = match error {
                HeaderError::Version { .. } => errors::UNKNOWN_VERSION,
                HeaderError::Class { .. } => errors::UNKNOWN_CLASS,
            };
            return end(&mut send, &mut receive, code);
        }
    };
    let stream = stream::accepted(shared, address, class, send, receive);
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
