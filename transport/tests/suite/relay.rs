//! A relay of datagrams that can be impaired: the network between QUIC peers of a test, and the system of the host
//! that the server is on.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::world::Impairment;

/// Stands before a server: each client's datagrams go on from a socket of their own, and answers come back.
pub struct Relay {
    pub address: SocketAddr,
    state: watch::Sender<State>,
    task: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    impairment: Option<Impairment>,
    /// Nobody is behind it: its own port is as closed as the server's, where its clients can hear that.
    deserted: bool,
}

impl State {
    fn passes_to(self) -> bool {
        !matches!(
            self.impairment,
            Some(Impairment::Cut | Impairment::Deaf | Impairment::Paused)
        )
    }

    fn passes_back(self) -> bool {
        !matches!(
            self.impairment,
            Some(Impairment::Cut | Impairment::Mute | Impairment::Paused)
        )
    }

    fn is_closed(self) -> bool {
        self.deserted && self.passes_to() && self.passes_back()
    }

    /// Whether an answer of the server's would let a handshake go on: all but a Retry (RFC 9000, 17.2.5) do.
    fn stalls(self, answer: &[u8]) -> bool {
        let retry = answer.first().is_some_and(|first| first & 0xf0 == 0xf0);
        self.impairment == Some(Impairment::Stalling) && !retry
    }

    /// Whether the `number`-th datagram of its way is lost.
    fn loses(self, number: u64) -> bool {
        self.impairment == Some(Impairment::Lossy) && number % 10 < 3
    }
}

impl Relay {
    /// A relay on a port of its own, to a server on this machine.
    pub async fn start(server: SocketAddr) -> Self {
        Self::start_from(server, Ipv4Addr::LOCALHOST).await
    }

    /// The same, whose clients come from another address as the server sees it.
    pub async fn start_from(server: SocketAddr, from: Ipv4Addr) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = front.local_addr().unwrap();
        let (state, seen) = watch::channel(State::default());
        let task = tokio::spawn(run(front, server, from, seen));
        Self { address, state, task }
    }

    pub fn impair(&self, impairment: Option<Impairment>) {
        self.state.send_modify(|state| state.impairment = impairment);
    }

    /// Whether the server's process is there.
    pub fn set_deserted(&self, deserted: bool) {
        self.state.send_modify(|state| state.deserted = deserted);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(front: UdpSocket, server: SocketAddr, from: Ipv4Addr, mut state: watch::Receiver<State>) {
    let address = front.local_addr().unwrap();
    let mut front = Some(front);
    loop {
        if let Some(front) = front.take() {
            tokio::select! {
                () = forward(Arc::new(front), server, from, state.clone()) => {}
                closed = state.wait_for(|state| state.is_closed()) => drop(closed.unwrap()),
            }
        }
        drop(state.wait_for(|state| !state.is_closed()).await.unwrap());
        front = UdpSocket::bind(address).await.ok();
        tokio::task::yield_now().await;
    }
}

async fn forward(front: Arc<UdpSocket>, server: SocketAddr, from: Ipv4Addr, state: watch::Receiver<State>) {
    let mut clients: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; 65_536];
    for number in 0.. {
        // An error is an ICMP answer for an earlier datagram; the network loses those.
        let Ok((length, client)) = front.recv_from(&mut buffer).await else {
            continue;
        };
        let now = *state.borrow();
        if !now.passes_to() || now.loses(number) {
            continue;
        }
        let back = match clients.entry(client) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let back = Arc::new(UdpSocket::bind((from, 0)).await.unwrap());
                back.connect(server).await.unwrap();
                tasks.spawn(answer(
                    Arc::clone(&back),
                    Arc::clone(&front),
                    client,
                    state.clone(),
                ));
                entry.insert(back)
            }
        };
        let _ = back.send(&buffer[..length]).await;
    }
}

async fn answer(
    back: Arc<UdpSocket>,
    front: Arc<UdpSocket>,
    client: SocketAddr,
    state: watch::Receiver<State>,
) {
    let mut buffer = vec![0; 65_536];
    for number in 0.. {
        let Ok(length) = back.recv(&mut buffer).await else {
            continue;
        };
        let now = *state.borrow();
        if now.passes_back() && !now.loses(number) && !now.stalls(&buffer[..length]) {
            let _ = front.send_to(&buffer[..length], client).await;
        }
    }
}
