//! Peers that are found by name: names of several addresses, and resolvers that are slow.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use quorate_transport::certs::Authority;
use quorate_transport::quic::{QuicSettings, QuicTransport, Resolver};
use quorate_transport::{Address, Class, HostName, Peer, Transport, TransportError};
use tokio::sync::watch;

use crate::quic_world::settings;
use crate::world::{PROBE_EVERY, cluster, node, open};

/// Two addresses of this machine.
const FIRST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));

/// What a test says that names stand for.
#[derive(Debug)]
struct Script {
    names: Mutex<BTreeMap<&'static str, Vec<IpAddr>>>,
    /// No name beginning with "slow" is answered before.
    answers_slow: watch::Receiver<bool>,
    asked: AtomicUsize,
}

#[async_trait]
impl Resolver for Script {
    async fn addresses(&self, name: &HostName) -> io::Result<Vec<IpAddr>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if name.as_str().starts_with("slow") {
            let mut answers = self.answers_slow.clone();
            drop(answers.wait_for(|answers| *answers).await);
        }
        let found = self.names.lock().unwrap().get(name.as_str()).cloned();
        found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such name"))
    }
}

/// A node that opens by name, and another that listens at the second address.
struct World {
    one: Arc<QuicTransport>,
    two: Arc<QuicTransport>,
    authority: Authority,
    script: Arc<Script>,
    slow: watch::Sender<bool>,
}

impl World {
    fn new(settings: QuicSettings) -> Self {
        let authority = Authority::create(cluster()).unwrap();
        let credentials = [1, 2].map(|id| authority.credentials(&node(id)).unwrap());
        let (slow, answers_slow) = watch::channel(false);
        let script = Arc::new(Script {
            names: Mutex::new(BTreeMap::from([
                ("both.test", vec![FIRST, SECOND]),
                ("slow.test", vec![SECOND]),
                ("none.test", Vec::new()),
            ])),
            answers_slow,
            asked: AtomicUsize::new(0),
        });
        let resolver = Arc::clone(&script) as Arc<dyn Resolver>;
        let one = QuicTransport::bind_with(None, &credentials[0], settings.clone(), resolver).unwrap();
        let listen = SocketAddr::new(SECOND, 0);
        let two = QuicTransport::bind(Some(listen), &credentials[1], settings).unwrap();
        Self {
            one,
            two,
            authority,
            script,
            slow,
        }
    }

    fn port(&self) -> u16 {
        self.two.local_address().unwrap().port()
    }

    fn leads(&self, name: &'static str, to: IpAddr) {
        self.script.names.lock().unwrap().insert(name, vec![to]);
    }

    fn named(&self, name: &str) -> Peer {
        let address: Address = format!("{name}:{}", self.port()).parse().unwrap();
        Peer {
            node_id: Some(2),
            address,
        }
    }
}

fn patient() -> QuicSettings {
    QuicSettings {
        connect_timeout: Duration::from_secs(30),
        resolve_timeout: Duration::from_secs(30),
        ..settings()
    }
}

#[tokio::test]
async fn a_name_whose_first_address_is_a_black_hole_is_reached_at_its_second() {
    let world = World::new(patient());
    let _black_hole = UdpSocket::bind((FIRST, world.port())).unwrap();
    let begun = Instant::now();
    world
        .one
        .open(&world.named("both.test"), Class::Control)
        .await
        .unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_name_whose_first_address_is_another_nodes_is_reached_at_its_second() {
    let world = World::new(patient());
    let other = world.authority.credentials(&node(3)).unwrap();
    let place = SocketAddr::new(FIRST, world.port());
    let _other = QuicTransport::bind(Some(place), &other, patient()).unwrap();
    world
        .one
        .open(&world.named("both.test"), Class::Control)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_name_that_leads_nowhere_is_told() {
    let world = World::new(settings());
    for (name, said) in [
        ("none.test", "the name none.test has no address"),
        ("unknown.test", "the name unknown.test is not known: no such name"),
    ] {
        let failed = world
            .one
            .open(&world.named(name), Class::Control)
            .await
            .unwrap_err();
        let TransportError::Unreachable { address, reason } = failed else {
            panic!("{failed:?}");
        };
        assert!(
            address.starts_with(name) && reason.contains(said),
            "{address}: {reason}"
        );
    }
}

#[tokio::test]
async fn a_resolver_that_is_slow_for_one_name_delays_no_other() {
    let world = World::new(patient());
    let slow = world.named("slow.test");
    let waiting = {
        let (one, slow) = (Arc::clone(&world.one), slow.clone());
        tokio::spawn(async move { one.open(&slow, Class::Control).await })
    };
    while world.script.asked.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    world
        .one
        .open(&world.named("both.test"), Class::Control)
        .await
        .unwrap();
    assert!(!waiting.is_finished());
    world.slow.send_replace(true);
    waiting.await.unwrap().unwrap();
}

/// The times are apart: a name that takes longer than a handshake may is still reached.
#[tokio::test]
async fn resolving_takes_nothing_from_the_handshakes_time() {
    let hasty = QuicSettings {
        connect_timeout: Duration::from_millis(400),
        ..patient()
    };
    let world = World::new(hasty.clone());
    let slow = world.named("slow.test");
    let answers = async {
        tokio::time::sleep(2 * hasty.connect_timeout).await;
        world.slow.send_replace(true);
    };
    let (opened, ()) = tokio::join!(world.one.open(&slow, Class::Control), answers);
    opened.unwrap();
}

#[tokio::test]
async fn an_answer_that_comes_too_late_serves_the_next_attempt() {
    let hasty = QuicSettings {
        resolve_timeout: Duration::from_millis(50),
        ..settings()
    };
    let world = World::new(hasty);
    let slow = world.named("slow.test");
    let failed = world.one.open(&slow, Class::Control).await.unwrap_err();
    assert!(
        failed.to_string().contains("no answer about the name slow.test"),
        "{failed}"
    );
    world.slow.send_replace(true);
    open(&*world.one, &slow, Class::Control).await;
    assert_eq!(world.script.asked.load(Ordering::Relaxed), 1);
}

const DEADLINE: Duration = Duration::from_secs(60);

/// The story: a leader that had moved was held for dead, since nobody listened where it had been reached before.
#[tokio::test]
async fn a_peer_that_has_moved_has_not_ended_where_it_was() {
    let world = World::new(settings());
    world.leads("moves.test", SECOND);
    let peer = world.named("moves.test");
    let mut opened = open(&*world.one, &peer, Class::Control).await;
    world.two.shutdown().await;
    let left = tokio::time::timeout(DEADLINE, opened.receiver.receive()).await;
    left.expect("it took its leave").unwrap_err();
    let place = SocketAddr::new(FIRST, world.port());
    let credentials = world.authority.credentials(&node(2)).unwrap();
    let moved = QuicTransport::bind(Some(place), &credentials, settings()).unwrap();
    world.leads("moves.test", FIRST);
    let ended = tokio::time::timeout(30 * PROBE_EVERY, world.one.ended(&peer)).await;
    assert!(ended.is_err(), "it lives at its new address");
    moved.shutdown().await;
    let ended = tokio::time::timeout(DEADLINE, world.one.ended(&peer)).await;
    ended.expect("its end at the new address is noticed");
}

#[tokio::test]
async fn a_watch_that_runs_follows_a_peer_that_moves() {
    let world = World::new(settings());
    // Silence: nothing is said of this port.
    let _silent = UdpSocket::bind((FIRST, world.port())).unwrap();
    world.leads("moves.test", FIRST);
    let peer = world.named("moves.test");
    let watching = {
        let (one, peer) = (Arc::clone(&world.one), peer.clone());
        tokio::spawn(async move { one.ended(&peer).await })
    };
    while world.script.asked.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    world.two.shutdown().await;
    world.leads("moves.test", SECOND);
    let ended = tokio::time::timeout(DEADLINE, watching).await;
    ended.expect("its end at the new address is noticed").unwrap();
}

#[tokio::test]
async fn a_peer_that_leaves_its_place_for_another_while_it_is_watched_has_not_ended() {
    let world = World::new(settings());
    world.leads("moves.test", SECOND);
    let peer = world.named("moves.test");
    let mut opened = open(&*world.one, &peer, Class::Control).await;
    let mut watching = {
        let (one, peer) = (Arc::clone(&world.one), peer.clone());
        tokio::spawn(async move { one.ended(&peer).await })
    };
    // It is watched where it is, by now or soon: the outcome is the same.
    tokio::time::sleep(3 * PROBE_EVERY).await;
    // It listens at the new place, its name leads there, and then it leaves the old one.
    let place = SocketAddr::new(FIRST, world.port());
    let credentials = world.authority.credentials(&node(2)).unwrap();
    let moved = QuicTransport::bind(Some(place), &credentials, settings()).unwrap();
    world.leads("moves.test", FIRST);
    world.two.shutdown().await;
    opened.receiver.receive().await.unwrap_err();
    let ended = tokio::time::timeout(30 * PROBE_EVERY, &mut watching).await;
    assert!(ended.is_err(), "it lives at its new address");
    moved.shutdown().await;
    let ended = tokio::time::timeout(DEADLINE, watching).await;
    ended.expect("its end at the new address is noticed").unwrap();
}
