//! What a peer's system says of its port, which QUIC itself does not hear.
//!
//! A datagram to a port where nobody listens is answered by the host's system (ICMP, port unreachable), and the answer
//! reaches the sender's socket as an error, where the socket is connected. So each probe has a socket of its own.
//!
//! Always: what is sent is nothing to QUIC, which drops it at the first look; silence says nothing.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// The first bit that every QUIC packet has set is not.
const PROBE: &[u8] = &[0];

/// Waits for the network to say that nobody can be reached there: a dead process is then known after one round trip
/// instead of the connect timeout. Never ends where nothing is said.
pub(super) async fn unreachable(address: SocketAddr) -> String {
    if let Err(error) = ask(address).await
        && is_unreachable(&error)
    {
        return format!("nobody listens there: {error}");
    }
    std::future::pending().await
}

/// Probes until the host's system says that nobody listens at the port. Whatever else comes, or does not come, it goes
/// on: a network without a way to the host says nothing of the process.
pub(super) async fn port_closed(address: SocketAddr, every: Duration) {
    loop {
        match knock(address, every).await {
            Err(error) if is_port_closed(&error) => return,
            // No way there now, or no socket: that may change.
            Err(_) => sleep(every).await,
            Ok(never) => match never {},
        }
    }
}

fn is_port_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

fn is_unreachable(error: &io::Error) -> bool {
    is_port_closed(error)
        || matches!(
            error.kind(),
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
        )
}

/// One probe, and its answer. An answer from the port itself is none.
async fn ask(address: SocketAddr) -> io::Result<()> {
    let socket = socket(address).await?;
    socket.send(PROBE).await?;
    socket.recv(&mut [0]).await.map(drop)
}

/// Probes until there is an error. Kept open in between, so that an answer which is later than the next probe is heard.
async fn knock(address: SocketAddr, every: Duration) -> io::Result<Infallible> {
    let socket = socket(address).await?;
    loop {
        let next = Instant::now() + every;
        socket.send(PROBE).await?;
        if let Ok(answer) = timeout_at(next, socket.recv(&mut [0])).await {
            // Somebody is there.
            answer?;
            sleep_until(next).await;
        }
    }
}

async fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let any = match address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_or_a_network_that_cannot_be_reached_is_no_closed_port() {
        for kind in [
            io::ErrorKind::HostUnreachable,
            io::ErrorKind::NetworkUnreachable,
            io::ErrorKind::NetworkDown,
            io::ErrorKind::TimedOut,
            io::ErrorKind::PermissionDenied,
        ] {
            assert!(!is_port_closed(&kind.into()), "{kind:?}");
        }
        assert!(is_port_closed(&io::ErrorKind::ConnectionRefused.into()));
    }
}
