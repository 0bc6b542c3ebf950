//! TLS for QUIC: who is believed, and what is offered.
//!
//! The chain of a peer's certificate is checked here, inside the handshake; the identity in it is checked
//! after the handshake, where the refusal can say why.
//!
//! Always: TLS 1.3 alone, both sides with certificates, no early data and no resumption: each connection is
//! checked in full, so that one whose certificate is over or replaced does not live on in a ticket.

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::bind_error::BindError;
use super::settings::QuicSettings;
use crate::certs::{Credentials, crypto_provider};

/// The protocol and its version, in the handshake. A peer that offers another is refused there.
const ALPN: &[u8] = b"quorate/1";

/// The name sent in the handshake. It says nothing: a peer is known by its identity alone.
pub(super) const SERVER_NAME: &str = "quorate";

/// For opening connections.
pub(super) fn client(
    credentials: &Credentials,
    settings: &QuicSettings,
) -> Result<quinn::ClientConfig, BindError> {
    let provider = crypto_provider();
    let verifier = AnyNodeOfTheCluster {
        roots: Arc::clone(&credentials.roots),
        provider: Arc::clone(&provider),
    };
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(credentials.chain.clone(), credentials.key.clone_key())
        .map_err(unusable)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.enable_early_data = false;
    tls.resumption = Resumption::disabled();
    let crypto = QuicClientConfig::try_from(tls).map_err(unusable)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport(settings, settings.connection_window, 0)));
    Ok(config)
}

/// For accepting connections.
pub(super) fn server(
    credentials: &Credentials,
    settings: &QuicSettings,
) -> Result<quinn::ServerConfig, BindError> {
    let provider = crypto_provider();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&credentials.roots), Arc::clone(&provider))
            .build()
            .map_err(unusable)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(credentials.chain.clone(), credentials.key.clone_key())
        .map_err(unusable)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.max_early_data_size = 0;
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    let crypto = QuicServerConfig::try_from(tls).map_err(unusable)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    // A peer that moves has a new address, and a new connection.
    config.migration(false);
    // Whoever comes is a stranger at first; it gets more once it has proved who it is.
    config.transport_config(Arc::new(transport(
        settings,
        settings.client_window,
        STRANGERS_STREAMS,
    )));
    // The acceptor takes each as it comes: what it has not taken is a burst, of a few packets each.
    config.max_incoming(settings.handshakes_max);
    config.incoming_buffer_size(WAITING_BYTES);
    config.incoming_buffer_size_total(WAITING_BYTES * settings.handshakes_max as u64);
    Ok(config)
}

fn unusable(error: impl std::fmt::Display) -> BindError {
    BindError::Credentials {
        reason: error.to_string(),
    }
}

/// How the connection behaves, for both sides. `streams` is how many the peer may open: each takes memory from the start.
fn transport(settings: &QuicSettings, window: u32, streams: u32) -> TransportConfig {
    let mut config = TransportConfig::default();
    let idle = u32::try_from(settings.idle_timeout.as_millis()).unwrap_or(u32::MAX);
    config.max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle))));
    config.keep_alive_interval(Some(settings.keep_alive));
    config.max_concurrent_bidi_streams(VarInt::from_u32(streams));
    // The acceptor's welcome, and nothing else.
    config.max_concurrent_uni_streams(VarInt::from_u32(1));
    config.datagram_receive_buffer_size(None);
    config.stream_receive_window(VarInt::from_u32(settings.stream_window));
    config.receive_window(VarInt::from_u32(window));
    config.send_window(u64::from(window));

    // Between servers: a packet that is lost early in a connection is missed after 100 ms, not 333.
    config.initial_rtt(Duration::from_millis(100));
    let mut congestion = quinn::congestion::CubicConfig::default();
    congestion.initial_window(INITIAL_WINDOW);
    config.congestion_controller_factory(Arc::new(congestion));
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(settings.datagram_bytes_max);
    config.mtu_discovery_config(Some(discovery));
    let burst = usize::from(settings.datagram_bytes_max) * DATAGRAMS_A_CALL;
    config.enable_segmentation_offload(burst <= CALL_BYTES_MAX);
    let mut acknowledgements = AckFrequencyConfig::default();
    acknowledgements.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY));
    config.ack_frequency_config(Some(acknowledgements));
    config
}

/// The streams that a peer may have until it has proved who it is.
const STRANGERS_STREAMS: u32 = 16;

/// What a peer may send before the acceptor has looked at it.
const WAITING_BYTES: u64 = 16 << 10;

/// The bytes that leave before the first acknowledgement: half of Linux's default socket buffer.
const INITIAL_WINDOW: u64 = 96 << 10;

/// How many datagrams quinn hands to the system in one call, for it to cut.
const DATAGRAMS_A_CALL: usize = 10;

/// What such a call carries: a UDP payload over IPv4. quinn takes the refusal of a larger one for a lost packet, and
/// would lose it again each time.
const CALL_BYTES_MAX: usize = 65_507;

/// How many packets may arrive without an acknowledgement being sent at once.
const ACK_EVERY: u32 = 9;

/// What an opener says of an acceptor's certificate, for tests.
#[cfg(test)]
pub(super) fn verify(ours: &Credentials, theirs: &Credentials, now: UnixTime) -> Result<(), rustls::Error> {
    let verifier = AnyNodeOfTheCluster {
        roots: Arc::clone(&ours.roots),
        provider: crypto_provider(),
    };
    let name = ServerName::try_from(SERVER_NAME).expect("a name");
    let (own, more) = theirs.chain.split_first().expect("a certificate");
    verifier.verify_server_cert(own, more, &name, &[], now).map(drop)
}

/// Believes a certificate that the cluster's authority issued to a node, wherever it answers.
#[derive(Debug)]
struct AnyNodeOfTheCluster {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyNodeOfTheCluster {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // Issuer, validity and that it is one for servers; the name is the identity, checked later.
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
