//! Nobody holds up another for ever: what waits on one caller, or on one disk, ends by itself. In simulated time, since it
//! is the deadlines that are looked at.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use quorate_kv::client::Error;
use quorate_kv::env;
use quorate_kv::model::{KeyRange, Limits, RangeRead, ReadOp, ReadResult};
use quorate_kv::node::{Settings, ShutdownReport, StartError, StorageError};
use quorate_kv::{Client, Node};
use quorate_tests::sim::net::SimClock;
use quorate_tests::sim::{DiskProfile, Host, SimDisk, Simulation};
use quorate_transport::memory::MemoryNetwork;
use quorate_transport::{ClusterId, Identity};

const NODE: &str = "node:1";

fn cluster() -> ClusterId {
    ClusterId::new("quorate").expect("a legal name")
}

/// A node alone in its cluster on the network, and clients beside it.
struct World {
    sim: Simulation,
    network: MemoryNetwork,
    host: Host,
}

impl World {
    fn new(seed: u64) -> Self {
        let sim = Simulation::new(seed);
        let clock = SimClock::new(sim.world(), sim.rng("network"));
        Self {
            network: MemoryNetwork::new(Arc::new(clock)),
            host: sim.host(1),
            sim,
        }
    }

    /// Starts the node, and runs `test` beside it.
    fn run<F: Future>(&self, settings: Settings, test: impl FnOnce(Node) -> F) -> F::Output {
        let transport = self.network.transport(Identity::node(cluster(), 1), NODE);
        let builder = Node::builder()
            .cluster("quorate")
            .data_dir("/node")
            .disk(Arc::new(self.host.disk()))
            .settings(settings)
            .transport(transport);
        let started = self.host.spawn("node", builder.start());
        let output = self.sim.block_on(async {
            let node = started.await.expect("no panic").expect("a node alone starts");
            test(node).await
        });
        self.sim.end();
        output.expect("the simulation goes on")
    }

    fn client(&self, name: &str) -> Client {
        let identity = Identity::client(cluster(), name).expect("a legal name");
        let transport = self.network.transport(identity, name);
        Client::connect([NODE], transport, Limits::default()).expect("an address")
    }
}

async fn start_again(disk: SimDisk) -> Result<Node, StartError> {
    let node = Node::builder().cluster("quorate").data_dir("/node");
    node.disk(Arc::new(disk)).start().await
}

/// The story: a stop waited for a disk that hung for as long as it did, and the manual's service manager killed it.
#[test]
fn a_stop_returns_though_the_disk_hangs_and_the_directory_stays_locked_until_it_does_not() {
    let world = World::new(1);
    let disk = world.host.disk();
    world.run(Settings::default(), |node| async move {
        node.client().put("k", "v").await.expect("it is written");
        let good = disk.profile();
        let hangs = Duration::from_secs(600);
        disk.set_profile(DiskProfile {
            sync_min: hangs,
            sync_max: hangs,
            ..good.clone()
        });
        let began = env::now();
        let report: ShutdownReport = node.shutdown().await;
        let took = began.elapsed();
        assert!(took < Duration::from_secs(25), "{took:?}");
        assert!(!report.durable && !report.closed, "{report:?}");

        disk.set_profile(good);
        let refused = start_again(disk.reopened()).await;
        assert!(
            matches!(refused, Err(StartError::Storage(StorageError::InUse { .. }))),
            "its files may still be written to: {refused:?}"
        );
        let again = loop {
            match start_again(disk.reopened()).await {
                Ok(node) => break node,
                Err(StartError::Storage(StorageError::InUse { .. })) => {
                    assert!(began.elapsed() < hangs * 100, "it is never given free");
                    env::sleep(Duration::from_secs(1)).await;
                }
                Err(error) => panic!("{error}"),
            }
        };
        assert!(again.client().get("k").await.expect("it serves").is_some());
        assert!(again.shutdown().await.closed);
    });
}

/// The story: the answers of a client that reads none stayed in memory for as long as its connection.
#[test]
fn a_client_that_takes_no_answer_in_is_cut_and_what_it_held_is_given_back() {
    let world = World::new(2);
    let mut settings = Settings::default();
    settings.answers_bytes_max = Some(4 << 20);
    let (network, deaf, other) = (world.network.clone(), world.client("deaf"), world.client("other"));
    // Of the same name, and so of the same share, as the one that takes nothing in.
    let twin = {
        let identity = Identity::client(cluster(), "deaf").expect("a legal name");
        Client::connect([NODE], network.transport(identity, "twin"), Limits::default()).expect("an address")
    };
    world.run(settings, |node| async move {
        let client = node.client();
        for number in 0..48 {
            let value = vec![b'v'; 64 * 1024];
            client
                .put(format!("k{number}"), value)
                .await
                .expect("it is written");
        }
        let largest = || vec![ReadOp::Range(RangeRead::new(KeyRange::all()))];
        let read = async |client: &Client| client.read(largest()).await;
        read(&deaf).await.expect("it is read");
        network.pause(NODE, "deaf");
        let deaf = deaf.with_deadline(Duration::from_secs(3600));
        let asks = env::spawn("deaf", async move {
            join_all((0..50).map(|_| deaf.read(largest()))).await
        });
        // They have filled what the client may hold.
        env::sleep(Duration::from_secs(1)).await;
        let held_up = read(&twin.with_deadline(Duration::from_millis(500))).await;
        assert!(matches!(held_up, Err(Error::Unavailable { .. })), "{held_up:?}");
        // The others have room all the time,
        let response = read(&other).await.expect("it is read");
        assert!(matches!(&response.results[0], ReadResult::Range { records, .. } if !records.is_empty()));
        // and whoever shares the deaf one's once it is cut.
        let began = env::now();
        let response = read(&twin.with_deadline(Duration::from_secs(60))).await;
        response.expect("what it held is given back");
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        asks.abort();
        node.shutdown().await;
    });
}
