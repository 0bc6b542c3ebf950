//! The transport in memory as a world.

use std::sync::Arc;

use async_trait::async_trait;
use quorate_transport::memory::{LinkSettings, MemoryNetwork, NetworkSettings, TokioClock};
use quorate_transport::{Address, BackoffSettings, Identity, Role, Transport};
use std::time::Duration;

use crate::world::{IDLE_TIMEOUT, Impairment, LIMIT, PROBE_EVERY, World};

pub struct MemoryWorld {
    network: MemoryNetwork,
}

impl MemoryWorld {
    pub fn new() -> Self {
        let settings = NetworkSettings {
            idle_timeout: IDLE_TIMEOUT,
            connect_timeout: Duration::from_millis(500),
            backoff: BackoffSettings {
                first: Duration::from_millis(20),
                max: Duration::from_millis(100),
            },
            probe_every: PROBE_EVERY,
            message_bytes_max: LIMIT,
            stream_bytes_max: 256 << 10,
            ..NetworkSettings::default()
        };
        let network = MemoryNetwork::with_settings(Arc::new(TokioClock::new(1)), settings);
        network.set_links(links());
        Self { network }
    }
}

fn links() -> LinkSettings {
    LinkSettings::latency(Duration::from_micros(20), Duration::from_micros(200))
}

#[async_trait]
impl World for MemoryWorld {
    async fn start(&mut self, identity: Identity) -> Arc<dyn Transport> {
        let address = match &identity.role {
            Role::Node(id) => self.address(*id).to_string(),
            Role::Client(name) => name.clone(),
        };
        self.network.transport(identity, &address)
    }

    fn address(&self, id: u64) -> Address {
        format!("10.0.0.{id}:7000").parse().unwrap()
    }

    async fn kill(&mut self, id: u64, transport: Arc<dyn Transport>) {
        self.network.crash(self.address(id).as_str());
        drop(transport);
    }

    fn impair(&self, id: u64, impairment: Option<Impairment>) {
        let (one, other) = (self.address(1), self.address(id));
        let (one, other) = (one.as_str(), other.as_str());
        self.network.heal(one, other);
        self.network.set_links(links());
        match impairment {
            Some(Impairment::Stalling) => panic!("there are no handshakes in memory"),
            None => {}
            Some(Impairment::Cut) => self.network.cut(one, other),
            Some(Impairment::Deaf) => self.network.cut_one_way(one, other),
            Some(Impairment::Mute) => self.network.cut_one_way(other, one),
            Some(Impairment::Paused) => {
                self.network.pause(one, other);
                self.network.pause(other, one);
            }
            Some(Impairment::Lossy) => self.network.set_links(LinkSettings {
                loss_per_million: 300_000,
                ..links()
            }),
        }
    }
}
