//! A bad network between processes: a UDP relay before each node, whose weather differs by direction and pair.
//!
//! Nodes and clients reach a node at its relay. Who sends is told by the process that has the socket that a packet
//! comes from; who is no node is a client. Always: a packet arrives late, twice, or not at all, but never changed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::processes::Pids;
use crate::sim::Rng;

/// Who is not a node.
pub const CLIENT: u64 = 0;
/// The largest packet that UDP carries.
const PACKET_BYTES_MAX: usize = 65_535;

/// What befalls the packets from one node to another. The default is fair.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weather {
    /// Nothing passes.
    pub cut: bool,
    /// So many of a thousand packets are lost.
    pub loss_permille: u64,
    /// Every packet is late by this,
    pub delay: Duration,
    /// and by a random time up to this in addition, which also changes their order.
    pub jitter: Duration,
    /// So many of a thousand packets arrive twice.
    pub twice_permille: u64,
}

#[derive(Debug)]
struct Sky {
    /// By sender and receiver; fair where nothing is said.
    weather: BTreeMap<(u64, u64), Weather>,
    rng: Rng,
}

/// What is to become of a packet: one delay for each copy that arrives.
type Fate = Vec<Duration>;

impl Sky {
    fn fate(&mut self, from: u64, to: u64) -> Fate {
        let weather = self.weather.get(&(from, to)).copied().unwrap_or_default();
        if weather.cut || self.rng.permille(weather.loss_permille) {
            return Vec::new();
        }
        let copies = if self.rng.permille(weather.twice_permille) {
            2
        } else {
            1
        };
        (0..copies)
            .map(|_| weather.delay + self.rng.duration(Duration::ZERO, weather.jitter))
            .collect()
    }
}

/// The relays of a cluster. Dropped, nothing passes any more.
#[derive(Debug)]
pub struct Relays {
    reached: BTreeMap<u64, SocketAddr>,
    sky: Arc<Mutex<Sky>>,
    _tasks: JoinSet<()>,
}

impl Relays {
    /// Sets a relay before each node that listens at these addresses.
    pub async fn start(listening: &BTreeMap<u64, SocketAddr>, pids: &Pids, seed: u64) -> Result<Self> {
        let sky = Sky {
            weather: BTreeMap::new(),
            rng: Rng::new(seed).fork("network"),
        };
        let sky = Arc::new(Mutex::new(sky));
        let mut reached = BTreeMap::new();
        let mut tasks = JoinSet::new();
        for (id, address) in listening {
            let front = UdpSocket::bind("127.0.0.1:0").await?;
            reached.insert(*id, front.local_addr()?);
            let relay = Relay {
                node: *id,
                address: *address,
                front: Arc::new(front),
                pids: pids.clone(),
                sky: Arc::clone(&sky),
            };
            tasks.spawn(relay.run());
        }
        Ok(Self {
            reached,
            sky,
            _tasks: tasks,
        })
    }

    /// Where each node is to be reached.
    pub fn reached(&self) -> &BTreeMap<u64, SocketAddr> {
        &self.reached
    }

    /// The weather from one node to another from now on. [`CLIENT`] stands for all clients.
    pub fn set(&self, from: u64, to: u64, weather: Weather) {
        lock(&self.sky).weather.insert((from, to), weather);
    }

    /// Fair weather everywhere.
    pub fn heal(&self) {
        lock(&self.sky).weather.clear();
    }
}

fn lock(sky: &Mutex<Sky>) -> MutexGuard<'_, Sky> {
    sky.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Relay {
    node: u64,
    address: SocketAddr,
    front: Arc<UdpSocket>,
    pids: Pids,
    sky: Arc<Mutex<Sky>>,
}

impl Relay {
    async fn run(self) {
        // A socket of its own for each sender, so that the node's answers find the way back.
        let mut behind: BTreeMap<SocketAddr, (u64, Arc<UdpSocket>)> = BTreeMap::new();
        let mut tasks = JoinSet::new();
        let mut packet = vec![0; PACKET_BYTES_MAX];
        loop {
            // A node that is down answers with ICMP, which shows as an error here: the next packet may pass.
            let Ok((size, sender)) = self.front.recv_from(&mut packet).await else {
                continue;
            };
            let (from, socket) = match behind.get(&sender) {
                Some((from, socket)) => (*from, Arc::clone(socket)),
                None => {
                    let from = self.pids.owner_of(sender.port()).unwrap_or(CLIENT);
                    let Ok(socket) = self.open().await else { continue };
                    behind.insert(sender, (from, Arc::clone(&socket)));
                    tasks.spawn(self.answer(Arc::clone(&socket), sender, from));
                    (from, socket)
                }
            };
            let fate = lock(&self.sky).fate(from, self.node);
            for delay in fate {
                let (socket, packet) = (Arc::clone(&socket), packet[..size].to_vec());
                deliver(delay, async move {
                    let _lost = socket.send(&packet).await;
                });
            }
        }
    }

    async fn open(&self) -> Result<Arc<UdpSocket>> {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        socket.connect(self.address).await?;
        Ok(Arc::new(socket))
    }

    /// Carries what the node answers to one sender.
    fn answer(
        &self,
        socket: Arc<UdpSocket>,
        sender: SocketAddr,
        from: u64,
    ) -> impl Future<Output = ()> + use<> {
        let (front, sky, node) = (Arc::clone(&self.front), Arc::clone(&self.sky), self.node);
        async move {
            let mut packet = vec![0; PACKET_BYTES_MAX];
            loop {
                let Ok(size) = socket.recv(&mut packet).await else {
                    continue;
                };
                let fate = lock(&sky).fate(node, from);
                for delay in fate {
                    let (front, packet) = (Arc::clone(&front), packet[..size].to_vec());
                    deliver(delay, async move {
                        let _lost = front.send_to(&packet, sender).await;
                    });
                }
            }
        }
    }
}

/// Runs a delivery after its delay. Not awaited: a packet under way belongs to nobody, as on a real network.
fn deliver(delay: Duration, delivery: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(async move {
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        delivery.await;
    });
}
