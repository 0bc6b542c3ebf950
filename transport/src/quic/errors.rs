//! What ends connections and streams, as numbers on the wire and as errors for callers.
//!
//! Always: a peer's words stand in an error as [`Said`] shows them.

use std::sync::OnceLock;

use quinn::{ConnectionError, ReadError, VarInt, WriteError};

use super::said::{self, Said};
use crate::certs::Validity;
use crate::{RefusedBecause, TransportError};

/// What errors of a connection tell: where it leads, and why this side closed it, where it was for another reason than the
/// transport's end.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) address: String,
    closed_here: OnceLock<String>,
}

impl Way {
    pub(super) fn to(address: String) -> Self {
        Self {
            address,
            closed_here: OnceLock::new(),
        }
    }

    /// Notes why this side closes it; the first reason stands.
    pub(super) fn closed_here(&self, reason: &str) {
        let _ = self.closed_here.set(reason.to_owned());
    }
}

/// Closes a connection: its side was shut down.
pub(super) const SHUT_DOWN: VarInt = VarInt::from_u32(0);
/// Closes a connection: the peer is not who it must be. The reason says more.
pub(super) const WRONG_IDENTITY: VarInt = VarInt::from_u32(1);
/// Closes a connection: the acceptor's welcome was not understood.
pub(super) const WRONG_VERSION: VarInt = VarInt::from_u32(2);

/// Closes a connection: the acceptor has no place for it, or needs its place for another one of the same node. The reason
/// says which bound was met.
pub(super) const FULL: VarInt = VarInt::from_u32(3);

/// Closes a connection: a certificate of one of the two has ended. The reason says whose.
pub(super) const EXPIRED: VarInt = VarInt::from_u32(4);
/// Closes a connection: the peer's certificate names no member of a cluster.
pub(super) const NO_IDENTITY: VarInt = VarInt::from_u32(5);

/// Ends a stream: its half was dropped.
pub(super) const DROPPED: VarInt = VarInt::from_u32(0);
/// Ends a stream: its version is not spoken.
pub(super) const UNKNOWN_VERSION: VarInt = VarInt::from_u32(1);
/// Ends a stream: its class does not exist.
pub(super) const UNKNOWN_CLASS: VarInt = VarInt::from_u32(2);
/// Ends a stream: a message exceeds the receiver's limit.
pub(super) const OVERSIZED: VarInt = VarInt::from_u32(3);

/// Ends a stream: the receiver has no room for a message that has begun, or waited too long for its end.
pub(super) const NO_ROOM: VarInt = VarInt::from_u32(4);

/// The first of the codes that TLS alerts have in QUIC (RFC 9001, 4.8).
pub(super) const CRYPTO_ERRORS: std::ops::Range<u64> = 0x100..0x200;

/// TLS's alert for a certificate whose time is over or has not begun (RFC 8446, 6).
pub(super) const ALERT_CERTIFICATE_EXPIRED: u64 = 45;
/// TLS's alert for a certificate that no known authority issued.
pub(super) const ALERT_UNKNOWN_CA: u64 = 48;
/// TLS's alert for a signature that is not as it should be: so of a certificate whose issuer has the name of the known
/// authority and another key.
pub(super) const ALERT_DECRYPT_ERROR: u64 = 51;
/// TLS's alert for an ALPN that is not spoken.
const ALERT_NO_PROTOCOL: u64 = 120;

/// An attempt to connect failed. `ours` is when our certificate is valid.
pub(super) fn not_connected(address: &str, ours: Validity, error: &ConnectionError) -> TransportError {
    use RefusedBecause as B;
    let refused = |because, reason: String| TransportError::Refused {
        address: address.to_owned(),
        because,
        reason,
    };
    let alert = |code: u64| code - CRYPTO_ERRORS.start;
    match error {
        ConnectionError::LocallyClosed => TransportError::Closed,
        ConnectionError::TransportError(inner) if CRYPTO_ERRORS.contains(&u64::from(inner.code)) => {
            let said = Said(&inner.reason);
            match alert(u64::from(inner.code)) {
                ALERT_UNKNOWN_CA | ALERT_DECRYPT_ERROR => refused(
                    B::UntrustedAuthority,
                    format!("its certificate is not of the authority in our ca.crt: {said}"),
                ),
                // One alert for both, and rustls's words for which.
                ALERT_CERTIFICATE_EXPIRED if inner.reason.contains("not valid yet") => refused(
                    B::NotYetValid,
                    format!("its certificate is not valid yet, by our clock: {said}"),
                ),
                ALERT_CERTIFICATE_EXPIRED => {
                    refused(B::Expired, format!("its certificate has ended: {said}"))
                }
                ALERT_NO_PROTOCOL => {
                    refused(B::Version, "it speaks another version of the protocol".to_owned())
                }
                _ => refused(
                    B::Handshake,
                    format!(
                        "its certificate or protocol is not accepted here: {}",
                        Said(inner)
                    ),
                ),
            }
        }
        ConnectionError::ConnectionClosed(inner) if CRYPTO_ERRORS.contains(&u64::from(inner.error_code)) => {
            match alert(u64::from(inner.error_code)) {
                ALERT_UNKNOWN_CA | ALERT_DECRYPT_ERROR => refused(
                    B::UntrustedAuthority,
                    "our certificate is not of the authority that it knows".to_owned(),
                ),
                ALERT_CERTIFICATE_EXPIRED => refused(
                    B::Expired,
                    format!(
                        "it says that our certificate, valid {ours}, is not valid now: compare the clocks"
                    ),
                ),
                ALERT_NO_PROTOCOL => refused(
                    B::Version,
                    "it does not speak our version of the protocol".to_owned(),
                ),
                _ => refused(
                    B::Handshake,
                    format!("it does not accept our certificate or protocol: {}", Said(inner)),
                ),
            }
        }
        ConnectionError::ApplicationClosed(inner)
            if [WRONG_IDENTITY, WRONG_VERSION, NO_IDENTITY].contains(&inner.error_code) =>
        {
            let because = match inner.error_code {
                WRONG_VERSION => B::Version,
                NO_IDENTITY => B::NoIdentity,
                // The acceptor takes every member of its cluster.
                _ => B::WrongCluster,
            };
            refused(because, said::text(&inner.reason))
        }
        ConnectionError::VersionMismatch => {
            refused(B::Version, "it speaks another version of QUIC".to_owned())
        }
        other => TransportError::Unreachable {
            address: address.to_owned(),
            reason: describe(other),
        },
    }
}

/// A connection failed before anything was sent over it.
pub(super) fn unreachable(way: &Way, error: &ConnectionError) -> TransportError {
    let unreachable = |reason| TransportError::Unreachable {
        address: way.address.clone(),
        reason,
    };
    match error {
        ConnectionError::LocallyClosed => match way.closed_here.get() {
            Some(reason) => unreachable(reason.clone()),
            None => TransportError::Closed,
        },
        other => unreachable(describe(other)),
    }
}

/// A connection failed under a stream.
fn lost(way: &Way, error: &ConnectionError) -> TransportError {
    match error {
        ConnectionError::LocallyClosed => match way.closed_here.get() {
            Some(reason) => broken(reason.clone()),
            None => TransportError::Closed,
        },
        other => broken(describe(other)),
    }
}

/// What happened to a connection.
pub(super) fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TimedOut => "no answer within the idle timeout".to_owned(),
        ConnectionError::Reset => "the peer restarted".to_owned(),
        ConnectionError::ApplicationClosed(close) => {
            format!("the peer closed it: {}", said::text(&close.reason))
        }
        other => Said(other).to_string(),
    }
}

/// Writing failed.
pub(super) fn not_written(way: &Way, error: WriteError) -> TransportError {
    match error {
        WriteError::Stopped(code) => ended(&way.address, code, "the peer stopped receiving"),
        WriteError::ConnectionLost(error) => lost(way, &error),
        WriteError::ClosedStream | WriteError::ZeroRttRejected => broken("the stream is finished".to_owned()),
    }
}

/// Reading failed.
pub(super) fn not_read(way: &Way, error: ReadError) -> TransportError {
    match error {
        ReadError::Reset(code) => ended(&way.address, code, "the peer gave the stream up"),
        ReadError::ConnectionLost(error) => lost(way, &error),
        ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
            broken("the stream is over".to_owned())
        }
    }
}

/// The peer ended a stream with a code.
fn ended(address: &str, code: VarInt, otherwise: &str) -> TransportError {
    let refused = |reason: &str| TransportError::Refused {
        address: address.to_owned(),
        because: RefusedBecause::Version,
        reason: reason.to_owned(),
    };
    match code {
        UNKNOWN_VERSION => refused("it does not speak our version of streams"),
        UNKNOWN_CLASS => refused("it does not know this class of traffic"),
        OVERSIZED => broken("a message exceeds the peer's limit".to_owned()),
        NO_ROOM => {
            broken("the peer has no room for a message of this length now, or it came too slowly".to_owned())
        }
        _ => broken(otherwise.to_owned()),
    }
}

pub(super) fn broken(reason: String) -> TransportError {
    TransportError::Broken { reason }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use rustls::pki_types::UnixTime;

    use super::*;
    use crate::certs::{Authority, Credentials};
    use crate::quic::tls;
    use crate::{ClusterId, Identity};

    fn credentials(authority: &Authority) -> Credentials {
        let node = Identity::node(ClusterId::new("tested").unwrap(), 2);
        authority.credentials(&node).unwrap()
    }

    /// What an opener says of an acceptor whose certificate it sees at this time.
    fn told(ours: &Credentials, theirs: &Credentials, now: SystemTime) -> TransportError {
        let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap());
        let refused = tls::verify(ours, theirs, now).unwrap_err();
        let code = match &refused {
            rustls::Error::InvalidCertificate(error) => rustls::AlertDescription::from(error.clone()),
            other => panic!("{other:?}"),
        };
        let error = quinn_proto::TransportError {
            code: quinn_proto::TransportErrorCode::crypto(code.into()),
            frame: None,
            reason: refused.to_string(),
        };
        not_connected(
            "there:1",
            ours.validity(),
            &ConnectionError::TransportError(error),
        )
    }

    #[test]
    fn an_error_is_one_line_whatever_the_peer_says() {
        const WORDS: &str = "x\nWARN y\u{1b}[2J";
        let authority = Authority::create(ClusterId::new("tested").unwrap()).unwrap();
        let ours = credentials(&authority).validity();
        let alert = quinn_proto::TransportErrorCode::crypto(1);
        let ends = [
            ConnectionError::ApplicationClosed(quinn_proto::ApplicationClose {
                error_code: WRONG_IDENTITY,
                reason: WORDS.into(),
            }),
            ConnectionError::ApplicationClosed(quinn_proto::ApplicationClose {
                error_code: FULL,
                reason: WORDS.into(),
            }),
            ConnectionError::ConnectionClosed(quinn_proto::ConnectionClose {
                error_code: alert,
                frame_type: None,
                reason: WORDS.into(),
            }),
            ConnectionError::ConnectionClosed(quinn_proto::ConnectionClose {
                error_code: quinn_proto::TransportErrorCode::NO_ERROR,
                frame_type: None,
                reason: WORDS.into(),
            }),
            ConnectionError::TransportError(quinn_proto::TransportError {
                code: alert,
                frame: None,
                reason: WORDS.to_owned(),
            }),
        ];
        let way = Way::to("there:1".to_owned());
        for end in &ends {
            for error in [
                not_connected("there:1", ours, end),
                unreachable(&way, end),
                lost(&way, end),
            ] {
                let told = error.to_string();
                assert!(told.contains("x\\nWARN y\\u{1b}[2J"), "{told:?}");
                assert!(!told.contains(char::is_control), "{told:?}");
            }
        }
    }

    #[test]
    fn a_certificate_that_is_not_taken_is_told_by_what_is_wrong_with_it() {
        let [known, unknown] =
            [(), ()].map(|()| Authority::create(ClusterId::new("tested").unwrap()).unwrap());
        let (ours, forged) = (credentials(&known), credentials(&unknown));
        let valid = ours.validity();
        let hour = Duration::from_secs(3_600);
        use RefusedBecause as B;
        for (because, theirs, now) in [
            (B::Expired, &ours, valid.end() + hour),
            (B::NotYetValid, &ours, valid.not_before - hour),
            (B::UntrustedAuthority, &forged, SystemTime::now()),
        ] {
            match told(&ours, theirs, now) {
                TransportError::Refused {
                    because: told,
                    reason,
                    ..
                } => assert_eq!(told, because, "{reason}"),
                other => panic!("{because:?}: {other:?}"),
            }
        }
    }
}
