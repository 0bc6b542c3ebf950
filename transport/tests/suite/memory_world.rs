//! The transport in memory as a world.

use std::sync::Arc;

use async_trait::async_trait;
use quorate_transport::memory::{LinkSettings, MemoryNetwork, NetworkSettings, TokioClock};
use quorate_transport::{BackoffSettings, Identity, Role, Transport};
use std::time::Duration;

use crate::world::{IDLE_TIMEOUT, LIMIT, World};

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
            message_bytes_max: LIMIT,
            stream_bytes_max: 256 << 10,
            ..NetworkSettings::default()
        };
        let network = MemoryNetwork::with_settings(Arc::new(TokioClock::new(1)), settings);
        network.set_links(LinkSettings::latency(
            Duration::from_micros(20),
            Duration::from_micros(200),
        ));
        Self { network }
    }
}

#[async_trait]
impl World for MemoryWorld {
    async fn start(&mut self, identity: Identity) -> Arc<dyn Transport> {
        let address = match &identity.role {
            Role::Node(id) => self.address(*id),
            Role::Client(name) => name.clone(),
        };
        self.network.transport(identity, &address)
    }

    fn address(&self, id: u64) -> String {
        format!("10.0.0.{id}:7000")
    }

    fn cut(&self, id: u64) {
        self.network.cut(&self.address(1), &self.address(id));
    }

    fn heal(&self, id: u64) {
        self.network.heal(&self.address(1), &self.address(id));
    }
}
