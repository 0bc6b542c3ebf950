//! What ends connections and streams, as numbers on the wire and as errors for callers.

use quinn::{ConnectionError, ReadError, VarInt, WriteError};

use crate::TransportError;

/// Closes a connection: its side was shut down.
pub(super) const SHUT_DOWN: VarInt = VarInt::from_u32(0);
/// Closes a connection: the peer is not who it must be. The reason says more.
pub(super) const WRONG_IDENTITY: VarInt = VarInt::from_u32(1);
/// Closes a connection: the acceptor's welcome was not understood.
pub(super) const WRONG_VERSION: VarInt = VarInt::from_u32(2);

/// Closes a connection: the acceptor has no place for it, or needs its place for another one of the same node. The reason
/// says which bound was met.
pub(super) const FULL: VarInt = VarInt::from_u32(3);

/// Ends a stream: its half was dropped.
pub(super) const DROPPED: VarInt = VarInt::from_u32(0);
/// Ends a stream: its version is not spoken.
pub(super) const UNKNOWN_VERSION: VarInt = VarInt::from_u32(1);
/// Ends a stream: its class does not exist.
pub(super) const UNKNOWN_CLASS: VarInt = VarInt::from_u32(2);
/// Ends a stream: a message exceeds the receiver's limit.
pub(super) const OVERSIZED: VarInt = VarInt::from_u32(3);

/// The first of the codes that TLS alerts have in QUIC (RFC 9001, 4.8).
pub(super) const CRYPTO_ERRORS: std::ops::Range<u64> = 0x100..0x200;

/// TLS's alert for a certificate whose time is over or has not begun (RFC 8446, 6).
pub(super) const ALERT_CERTIFICATE_EXPIRED: u64 = 45;
/// TLS's alert for a certificate that no known authority issued.
pub(super) const ALERT_UNKNOWN_CA: u64 = 48;
/// TLS's alert for a signature that is not as it should be: so of a certificate whose issuer has the name of the known
/// authority and another key.
pub(super) const ALERT_DECRYPT_ERROR: u64 = 51;

/// An attempt to connect failed.
pub(super) fn not_connected(address: &str, error: &ConnectionError) -> TransportError {
    let refused = |reason: String| TransportError::Refused {
        address: address.to_owned(),
        reason,
    };
    match error {
        ConnectionError::LocallyClosed => TransportError::Closed,
        ConnectionError::TransportError(inner) if CRYPTO_ERRORS.contains(&u64::from(inner.code)) => refused(
            format!("its certificate or protocol is not accepted here: {inner}"),
        ),
        ConnectionError::ConnectionClosed(inner) if CRYPTO_ERRORS.contains(&u64::from(inner.error_code)) => {
            refused(format!("it does not accept our certificate or protocol: {inner}"))
        }
        ConnectionError::ApplicationClosed(inner)
            if inner.error_code == WRONG_IDENTITY || inner.error_code == WRONG_VERSION =>
        {
            refused(String::from_utf8_lossy(&inner.reason).into_owned())
        }
        ConnectionError::VersionMismatch => refused("it speaks another version of QUIC".to_owned()),
        other => unreachable(address, other),
    }
}

/// A connection failed before anything was sent over it.
pub(super) fn unreachable(address: &str, error: &ConnectionError) -> TransportError {
    match error {
        ConnectionError::LocallyClosed => TransportError::Closed,
        other => TransportError::Unreachable {
            address: address.to_owned(),
            reason: describe(other),
        },
    }
}

/// A connection failed under a stream.
pub(super) fn lost(error: &ConnectionError) -> TransportError {
    match error {
        ConnectionError::LocallyClosed => TransportError::Closed,
        other => broken(describe(other)),
    }
}

/// What happened to a connection.
pub(super) fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TimedOut => "no answer within the idle timeout".to_owned(),
        ConnectionError::Reset => "the peer restarted".to_owned(),
        ConnectionError::ApplicationClosed(close) => {
            format!("the peer closed it: {}", String::from_utf8_lossy(&close.reason))
        }
        other => other.to_string(),
    }
}

/// Writing failed.
pub(super) fn not_written(address: &str, error: WriteError) -> TransportError {
    match error {
        WriteError::Stopped(code) => ended(address, code, "the peer stopped receiving"),
        WriteError::ConnectionLost(error) => lost(&error),
        WriteError::ClosedStream | WriteError::ZeroRttRejected => broken("the stream is finished".to_owned()),
    }
}

/// Reading failed.
pub(super) fn not_read(address: &str, error: ReadError) -> TransportError {
    match error {
        ReadError::Reset(code) => ended(address, code, "the peer gave the stream up"),
        ReadError::ConnectionLost(error) => lost(&error),
        ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
            broken("the stream is over".to_owned())
        }
    }
}

/// The peer ended a stream with a code.
fn ended(address: &str, code: VarInt, otherwise: &str) -> TransportError {
    let refused = |reason: &str| TransportError::Refused {
        address: address.to_owned(),
        reason: reason.to_owned(),
    };
    match code {
        UNKNOWN_VERSION => refused("it does not speak our version of streams"),
        UNKNOWN_CLASS => refused("it does not know this class of traffic"),
        OVERSIZED => broken("a message exceeds the peer's limit".to_owned()),
        _ => broken(otherwise.to_owned()),
    }
}

pub(super) fn broken(reason: String) -> TransportError {
    TransportError::Broken { reason }
}
