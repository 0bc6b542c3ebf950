//! The UDP sockets, and what QUIC needs to know about them.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use quinn::{Endpoint, EndpointConfig, Runtime};
use ring::hmac;
use socket2::{Domain, Protocol, Socket, Type};

use super::bind_error::BindError;
use super::settings::QuicSettings;
use super::socket::Closable;
use super::tls;
use crate::certs::Credentials;

/// What is asked of the system for each socket, in bytes; it may give less (`net.core.rmem_max`). A burst of
/// bulk must fit, or it is lost and sent again.
const SOCKET_BUFFER: usize = 4 << 20;

/// An endpoint that accepts, at an address, and its socket.
pub(super) fn listening(
    address: SocketAddr,
    credentials: &Credentials,
    settings: &QuicSettings,
    runtime: &Arc<dyn Runtime>,
) -> Result<(Endpoint, Arc<Closable>), BindError> {
    let server = tls::server(credentials, settings)?;
    let bound = bind(address).and_then(|socket| {
        let config = recognisable(credentials, settings);
        let socket = Arc::new(Closable::new(runtime.wrap_udp_socket(socket)?));
        let shared = Arc::clone(&socket);
        Endpoint::new_with_abstract_socket(config, Some(server), shared, Arc::clone(runtime))
            .map(|endpoint| (endpoint, socket))
    });
    bound.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => BindError::AddressInUse { address },
        _ => BindError::Address { address, error },
    })
}

/// An endpoint that only opens, from any address: for both families where the system has both.
pub(super) fn outgoing(settings: &QuicSettings, runtime: &Arc<dyn Runtime>) -> Result<Endpoint, BindError> {
    let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let socket = bind(both).or_else(|_| bind(v4));
    let bound = socket.and_then(|socket| {
        let mut config = EndpointConfig::default();
        payloads(&mut config, settings);
        Endpoint::new(config, None, socket, Arc::clone(runtime))
    });
    bound.map_err(|error| BindError::Address { address: v4, error })
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Less is slower, not wrong.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// A configuration whose successor after a restart recognises its connections. Peers that still speak on a
/// connection of the earlier process get a stateless reset (RFC 9000, 10.3) and connect anew at once,
/// instead of speaking into the void until the idle timeout. The keys for that must survive the process:
/// they derive from the node's private key.
fn recognisable(credentials: &Credentials, settings: &QuicSettings) -> EndpointConfig {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, credentials.key.secret_der());
    let derive = |label: &[u8]| hmac::sign(&secret, label);
    let reset = hmac::Key::new(hmac::HMAC_SHA256, derive(b"quorate/1 stateless reset").as_ref());
    let mut config = EndpointConfig::new(Arc::new(reset));
    let mut seed = [0; 8];
    seed.copy_from_slice(&derive(b"quorate/1 connection ids").as_ref()[..8]);
    let seed = u64::from_be_bytes(seed);
    config.cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(seed)));
    payloads(&mut config, settings);
    config
}

fn payloads(config: &mut EndpointConfig, settings: &QuicSettings) {
    // Within its bounds: the settings were checked.
    let _ = config.max_udp_payload_size(settings.datagram_bytes_max.max(1_472));
}
