//! The transport over QUIC, with mutual TLS 1.3.
//!
//! A [`QuicTransport`] keeps one connection to each peer that it opens streams to, made when it is first
//! needed and made anew after it broke. A peer's certificate must come from the cluster's authority, and
//! the identity in it must be of our cluster and, where the caller named a node, that node's.
//!
//! Classes of traffic are priorities of QUIC streams on one connection: each packet is filled from the most
//! urgent stream that has data, so a vote waits for one packet at most, not for the snapshot that is under
//! way. Flow control is per stream; the connection's own window is so large that a stream nobody reads does
//! not stop the others.
//!
//! A connection ends with the certificate of either side that ends first.
//!
//! Always: no message passes before both sides know who the other is; an attempt to connect is shared by
//! all who wait for it; a failure is answered to whoever caused or waited for it, and the next call tries
//! again within the backoff.
//!
//! Metrics, through the `metrics` facade:
//!
//! | name | labels | meaning |
//! |---|---|---|
//! | `quorate_transport_messages_sent_total`, `..._received_total` | `class` | messages handed over to, or taken from, streams |
//! | `quorate_transport_bytes_sent_total`, `..._received_total` | `class` | their bytes, without framing |
//! | `quorate_transport_streams_opened_total`, `..._accepted_total` | `class` | streams |
//! | `quorate_transport_connections` | `direction` (`outgoing`, `incoming`) | connections that are up |
//! | `quorate_transport_connects_failed_total` | `reason` (`unreachable`, `refused`) | attempts of ours that failed |
//! | `quorate_transport_handshakes` | | handshakes of peers that are under way |
//! | `quorate_transport_validations_total` | | peers whose address was validated before their handshake |
//! | `quorate_transport_refusals_total` | `reason`, as below | peers that were not let in, and streams that were not taken |
//! | `quorate_transport_messages_refused_total` | `class` | messages of clients for which there was no room, or that came too slowly |
//! | `quorate_certificate_expiry_seconds` | `kind` (`own`, `authority`) | when the certificate ends, in seconds of Unix time |
//! | `quorate_transport_round_trip_seconds` | `node` | smoothed round trip to a node, set every five seconds |
//!
//! Reasons of refusals: `untrusted` (a certificate of another authority, or it takes ours for one), `expired` (a
//! certificate that is not valid now), `tls` (the handshake failed otherwise), `identity` (a certificate of the authority's
//! that has no business here), `timeout` (the handshake did not go on), `displaced` (another one needed its place),
//! `handshakes`, `nodes`, `clients`, `client_share` (a bound of [`QuicSettings`]: `handshakes_max`,
//! `node_connections_max`, `client_connections_max`, `client_share_max`), `stream` (a stream that is not as it should be).
//! The log has one line for each reason within ten seconds at most, which says how many it stands for.

mod bind_error;
mod said;
mod seldom;
mod settings;

mod errors;
mod expiry;
mod meters;

mod budget;
mod handshakes;
mod places;
mod refusals;

mod door;
mod links;
mod names;
mod socket;

mod shared;

mod busy_poll;
mod endpoint;
mod probe;
mod race;
mod tls;

mod stream;

mod acceptor;
mod connect;
mod ended;
mod foretold;
mod resolve;
mod round_trips;

mod transport;

#[cfg(test)]
mod tests;

pub use bind_error::BindError;
pub use names::{Resolver, SystemResolver};
pub use settings::{BUSY_POLL_MAX, InvalidSettings, QuicSettings};
pub use transport::QuicTransport;
