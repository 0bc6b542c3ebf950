//! QUIC on this machine as a world. Nodes may be named before they start: their ports are taken once and
//! kept; before each stands a relay, which the test can cut.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use quorate_transport::certs::Authority;
use quorate_transport::quic::{QuicSettings, QuicTransport};
use quorate_transport::{Address, BackoffSettings, ClusterId, Identity, Role, Transport};

use crate::relay::Relay;
use crate::world::{CLUSTER, IDLE_TIMEOUT, Impairment, LIMIT, PROBE_EVERY, World, cluster};

pub struct QuicWorld {
    authorities: BTreeMap<String, Authority>,
    places: BTreeMap<u64, SocketAddr>,
    relays: BTreeMap<u64, Relay>,
    settings: QuicSettings,
}

pub fn settings() -> QuicSettings {
    QuicSettings {
        message_bytes_max: LIMIT,
        idle_timeout: IDLE_TIMEOUT,
        keep_alive: Duration::from_millis(150),
        connect_timeout: Duration::from_millis(500),
        probe_every: PROBE_EVERY,
        backoff: BackoffSettings {
            first: Duration::from_millis(20),
            max: Duration::from_millis(100),
        },
        stream_window: 256 << 10,
        ..QuicSettings::default()
    }
}

impl QuicWorld {
    pub fn new() -> Self {
        let authority = Authority::create(cluster()).unwrap();
        Self {
            authorities: BTreeMap::from([(CLUSTER.to_owned(), authority)]),
            places: BTreeMap::new(),
            relays: BTreeMap::new(),
            settings: settings(),
        }
    }

    /// Where the runtime's one thread looks for datagrams.
    pub fn busy_polling() -> Self {
        let mut world = Self::new();
        world.settings.busy_poll = Duration::from_millis(1);
        world
    }

    fn authority(&mut self, cluster: &ClusterId) -> &Authority {
        let make = || Authority::create(cluster.clone()).unwrap();
        self.authorities.entry(cluster.to_string()).or_insert_with(make)
    }

    /// The place of a node: chosen by the system the first time, kept for its next lives.
    fn place(&mut self, id: u64) -> SocketAddr {
        let free = || {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.local_addr().unwrap()
        };
        *self.places.entry(id).or_insert_with(free)
    }
}

#[async_trait]
impl World for QuicWorld {
    async fn start(&mut self, identity: Identity) -> Arc<dyn Transport> {
        let credentials = self.authority(&identity.cluster).credentials(&identity).unwrap();
        let Role::Node(id) = identity.role else {
            return QuicTransport::bind(None, &credentials, self.settings.clone()).unwrap();
        };
        let place = self.place(id);
        if let Entry::Vacant(entry) = self.relays.entry(id) {
            entry.insert(Relay::start(place).await);
        }
        self.relays[&id].set_deserted(false);
        // The earlier life's socket is closed by its tasks, which may take a moment.
        loop {
            match QuicTransport::bind(Some(place), &credentials, self.settings.clone()) {
                Ok(transport) => return transport,
                Err(quorate_transport::quic::BindError::AddressInUse { .. }) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(other) => panic!("{other}"),
            }
        }
    }

    fn address(&self, id: u64) -> Address {
        match self.relays.get(&id) {
            Some(relay) => relay.address.try_into().unwrap(),
            // Never started: nobody listens on the port.
            None => {
                let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
                socket.local_addr().unwrap().try_into().unwrap()
            }
        }
    }

    async fn kill(&mut self, id: u64, transport: Arc<dyn Transport>) {
        // Its leave does not get through.
        self.relays[&id].set_deserted(true);
        drop(transport);
    }

    fn impair(&self, id: u64, impairment: Option<Impairment>) {
        self.relays[&id].impair(impairment);
    }
}
