//! What a node does with its callers: nobody holds up another, and everything that waits has a bound and an end.

mod full_store;
mod lanes;
mod members;
mod queues;
mod rot;
mod starts;
mod streams;

use std::sync::Arc;
use std::time::Duration;

use quorate_transport::memory::{MemoryNetwork, TokioClock};
use quorate_transport::{ClusterId, Identity};

use super::{Node, Settings};
use crate::Client;
use crate::env;
use crate::model::{Key, Limits, Op, Txn};

/// How long a condition may take to come true: far beyond what is expected, so that only a fault meets it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node on a network in memory, and whoever calls it.
struct World {
    node: Node,
    network: MemoryNetwork,
    cluster: ClusterId,
    _dir: tempfile::TempDir,
}

const NODE: &str = "node:1";

impl World {
    async fn start(change: impl FnOnce(&mut Settings)) -> Self {
        let network = MemoryNetwork::new(Arc::new(TokioClock::new(7)));
        let cluster = ClusterId::new("test").expect("a legal name");
        let dir = tempfile::tempdir().expect("a directory");
        let mut settings = Settings {
            log_segment_bytes: 8 * 1024 * 1024,
            // For whatever part a test makes larger.
            memory_bytes: 1 << 30,
            ..Settings::default()
        };
        change(&mut settings);
        let node = Node::builder()
            .cluster("test")
            .data_dir(dir.path())
            .settings(settings)
            .transport(network.transport(Identity::node(cluster.clone(), 1), NODE))
            .start()
            .await
            .expect("a node alone starts");
        Self {
            node,
            network,
            cluster,
            _dir: dir,
        }
    }

    /// A client of this name, which is its address too.
    fn client(&self, name: &str) -> Client {
        let identity = Identity::client(self.cluster.clone(), name).expect("a legal name");
        let transport = self.network.transport(identity, name);
        Client::connect([NODE], transport, Limits::default()).expect("an address")
    }

    /// Writes so many keys, `k00000000` and so on, with values of so many bytes.
    async fn fill(&self, keys: u64, value: usize) {
        let client = self.node.client();
        let numbers: Vec<u64> = (0..keys).collect();
        for some in numbers.chunks(10_000.min((8 << 20) / value.max(1)).max(1)) {
            let puts = some.iter().map(|number| Op::put(key(*number), vec![b'v'; value]));
            client.commit(Txn::new(puts)).await.expect("it is written");
        }
    }
}

fn key(number: u64) -> Key {
    Key::from(format!("k{number:08}"))
}

/// Waits until the condition holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = env::now() + PATIENCE;
    while !holds() {
        assert!(env::now() < end, "in vain was waited until {what}");
        env::sleep(Duration::from_millis(1)).await;
    }
}
