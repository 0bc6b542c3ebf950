//! A relay of datagrams that can be cut: the network between QUIC peers of a test.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// Stands before a server: each client's datagrams go on from a socket of their own, and answers come back.
pub struct Relay {
    pub address: SocketAddr,
    cut: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Relay {
    /// A relay on a port of its own, to a server on this machine.
    pub async fn start(server: SocketAddr) -> Self {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = front.local_addr().unwrap();
        let cut = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(forward(front, server, Arc::clone(&cut)));
        Self { address, cut, task }
    }

    /// Drops or passes all datagrams from now on.
    pub fn set_cut(&self, cut: bool) {
        // A switch that stands alone: nothing else is published with it.
        self.cut.store(cut, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(front: Arc<UdpSocket>, server: SocketAddr, cut: Arc<AtomicBool>) {
    let mut clients: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
    let mut tasks = tokio::task::JoinSet::new();
    let mut buffer = vec![0; 65_536];
    loop {
        // An error is an ICMP answer for an earlier datagram; the network loses those.
        let Ok((length, client)) = front.recv_from(&mut buffer).await else {
            continue;
        };
        if cut.load(Ordering::Relaxed) {
            continue;
        }
        let back = match clients.entry(client) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                back.connect(server).await.unwrap();
                tasks.spawn(answer(
                    Arc::clone(&back),
                    Arc::clone(&front),
                    client,
                    Arc::clone(&cut),
                ));
                entry.insert(back)
            }
        };
        let _ = back.send(&buffer[..length]).await;
    }
}

async fn answer(back: Arc<UdpSocket>, front: Arc<UdpSocket>, client: SocketAddr, cut: Arc<AtomicBool>) {
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok(length) = back.recv(&mut buffer).await else {
            continue;
        };
        if !cut.load(Ordering::Relaxed) {
            let _ = front.send_to(&buffer[..length], client).await;
        }
    }
}
