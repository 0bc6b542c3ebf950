//! Ports for nodes that are killed and come back.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail};

/// Below those that the system gives to sockets that ask for any (from 32,768 on under Linux): a client's socket would
/// else take a node's port while the node is away.
const PORTS: std::ops::Range<u16> = 16_384..32_768;

/// Attempts before it is said that there is none.
const ATTEMPTS: usize = 1_000;

/// Those that this process was given.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// An address on loopback whose UDP port nobody has, and which nobody else in this process is given.
pub fn free_address() -> Result<SocketAddr> {
    for _ in 0..ATTEMPTS {
        let port = rand::random_range(PORTS);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        match UdpSocket::bind(address) {
            Ok(_) if GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port) => return Ok(address),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!(
        "no free UDP port was found from {} to {}",
        PORTS.start,
        PORTS.end - 1
    )
}
