//! Peers that have no business here, or too many of them: what they cost, and whom they keep out.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_transport::certs::Authority;
use quorate_transport::quic::{QuicSettings, QuicTransport};
use quorate_transport::{Class, Identity, Peer, Stream, Transport, TransportError};

use crate::meters::Meters;
use crate::quic_world::settings;
use crate::relay::Relay;
use crate::world::{Impairment, cluster, node, open};

const HANDSHAKES: &str = "quorate_transport_handshakes";
const VALIDATIONS: &str = "quorate_transport_validations_total";

fn refused_for(reason: &str) -> String {
    format!("quorate_transport_refusals_total{{{reason}}}")
}

fn client(name: &str) -> Identity {
    Identity::client(cluster(), name).unwrap()
}

/// A node that counts who comes, and the authority of its cluster.
struct House {
    authority: Authority,
    meters: Meters,
    door: Arc<QuicTransport>,
}

impl House {
    fn new(settings: QuicSettings) -> Self {
        let authority = Authority::create(cluster()).unwrap();
        let credentials = authority.credentials(&node(2)).unwrap();
        let meters = Meters::default();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let door = meters.recording(|| QuicTransport::bind(Some(listen), &credentials, settings).unwrap());
        Self {
            authority,
            meters,
            door,
        }
    }

    fn place(&self) -> SocketAddr {
        self.door.local_address().unwrap()
    }

    fn peer(&self) -> Peer {
        Peer {
            node_id: Some(2),
            address: self.place().try_into().unwrap(),
        }
    }

    /// Somebody of the cluster.
    fn member(&self, identity: &Identity) -> Arc<QuicTransport> {
        let credentials = self.authority.credentials(identity).unwrap();
        QuicTransport::bind(None, &credentials, patient()).unwrap()
    }

    /// A stream of somebody of the cluster, who must live as long as it.
    async fn enters(&self, identity: &Identity) -> (Arc<QuicTransport>, Stream) {
        let member = self.member(identity);
        let peer = self.peer();
        let entering = open(&*member, &peer, Class::Client);
        let entered = tokio::time::timeout(Duration::from_secs(30), entering).await;
        let stream = entered.unwrap_or_else(|_| panic!("{identity} is kept out"));
        (member, stream)
    }
}

fn patient() -> QuicSettings {
    QuicSettings {
        connect_timeout: Duration::from_secs(20),
        // Strangers and all others are as patient.
        idle_timeout: Duration::from_secs(30),
        ..settings()
    }
}

/// Many who begin a handshake and do not go on with it.
struct Strangers {
    _relay: Relay,
    tasks: tokio::task::JoinSet<()>,
}

impl Strangers {
    /// As the house sees it they come from one address.
    async fn of(from: Ipv4Addr, count: u64, house: &House) -> Self {
        let relay = Relay::start_from(house.place(), from).await;
        relay.impair(Some(Impairment::Stalling));
        let theirs = Authority::create(cluster()).unwrap();
        let credentials = theirs.credentials(&node(1)).unwrap();
        let stranger = QuicTransport::bind(None, &credentials, patient()).unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..count {
            let peer = Peer {
                // So that each is a connection of its own.
                node_id: Some(100 + number),
                address: relay.address.try_into().unwrap(),
            };
            let stranger = Arc::clone(&stranger);
            tasks.spawn(async move { drop(stranger.open(&peer, Class::Control).await) });
        }
        Self { _relay: relay, tasks }
    }
}

fn few_places() -> QuicSettings {
    QuicSettings {
        handshakes_max: 6,
        handshakes_unvalidated_max: 2,
        ..patient()
    }
}

#[tokio::test]
async fn strangers_who_hold_every_place_for_handshakes_keep_nobody_out_who_comes_from_elsewhere() {
    let house = House::new(few_places());
    let _strangers = Strangers::of(Ipv4Addr::new(127, 0, 0, 2), 40, &house).await;
    let meters = &house.meters;
    meters
        .until("all places are held", |meters| meters.level(HANDSHAKES) >= 6.0)
        .await;
    let begun = Instant::now();
    let _node = house.enters(&node(1)).await;
    let _client = house.enters(&client("reader")).await;
    // Nothing had to time out for that.
    assert!(
        begun.elapsed() < patient().connect_timeout / 4,
        "{:?}",
        begun.elapsed()
    );
    assert!(meters.count(&refused_for("displaced")) > 0, "{meters:?}");
}

#[tokio::test]
async fn strangers_of_the_same_address_give_way_once_they_do_not_go_on() {
    let hasty = QuicSettings {
        connect_timeout: Duration::from_secs(4),
        ..few_places()
    };
    let house = House::new(hasty);
    let strangers = Strangers::of(Ipv4Addr::LOCALHOST, 40, &house).await;
    let meters = &house.meters;
    meters
        .until("all places are held", |meters| meters.level(HANDSHAKES) >= 6.0)
        .await;
    let _node = house.enters(&node(1)).await;
    let _client = house.enters(&client("reader")).await;
    drop(strangers.tasks);
}

#[tokio::test]
async fn a_handshake_that_does_not_go_on_ends_within_the_connect_timeout() {
    let hasty = QuicSettings {
        connect_timeout: Duration::from_millis(300),
        ..settings()
    };
    let house = House::new(hasty);
    let _strangers = Strangers::of(Ipv4Addr::LOCALHOST, 10, &house).await;
    house
        .meters
        .until("they came and went", |meters| {
            meters.count(&refused_for("timeout")) >= 10 && meters.level(HANDSHAKES) == 0.0
        })
        .await;
}

#[tokio::test]
async fn addresses_are_validated_only_while_many_handshakes_are_under_way() {
    let house = House::new(few_places());
    let _first = house.enters(&node(1)).await;
    assert_eq!(house.meters.count(VALIDATIONS), 0);
    let _strangers = Strangers::of(Ipv4Addr::new(127, 0, 0, 2), 2, &house).await;
    let held = |meters: &Meters| meters.level(HANDSHAKES) >= 2.0;
    house
        .meters
        .until("the places without a proof are held", held)
        .await;
    let before = house.meters.count(VALIDATIONS);
    let _second = house.enters(&node(3)).await;
    assert_eq!(house.meters.count(VALIDATIONS), before + 1);
}

#[tokio::test]
async fn clients_at_their_bound_keep_no_node_out_and_are_told() {
    let house = House::new(QuicSettings {
        client_connections_max: 3,
        client_share_max: 2,
        ..patient()
    });
    let mut inside = Vec::new();
    for name in ["a", "a", "b"] {
        inside.push(house.enters(&client(name)).await);
    }
    let refused = house
        .member(&client("c"))
        .open(&house.peer(), Class::Client)
        .await;
    let said = refused.unwrap_err();
    assert!(matches!(&said, TransportError::Unreachable { .. }), "{said:?}");
    assert!(
        said.to_string()
            .contains("3 clients are connected (client_connections_max)"),
        "{said}"
    );
    for id in 10..20 {
        inside.push(house.enters(&node(id)).await);
    }
    assert_eq!(house.meters.count(&refused_for("clients")), 1);
    // One goes, one may come, and no more of a name than its share.
    inside.remove(2);
    let back = house.enters(&client("c")).await;
    drop(back);
    let said = loop {
        match house
            .member(&client("a"))
            .open(&house.peer(), Class::Client)
            .await
        {
            Err(error) if error.to_string().contains("client_share_max") => break error,
            // The place of the one that left may still be held.
            Err(error) => assert!(error.to_string().contains("client_connections_max"), "{error}"),
            Ok(_) => panic!("a third connection of one name"),
        }
    };
    assert!(
        said.to_string()
            .contains("2 connections are quorate://tested/client/a's"),
        "{said}"
    );
}

/// Its earlier lives may have left some behind.
#[tokio::test]
async fn a_node_that_comes_again_and_again_displaces_its_own_connections_alone() {
    let house = House::new(patient());
    let (_other, mut others) = house.enters(&node(3)).await;
    let mut lives = Vec::new();
    for _ in 0..9 {
        lives.push(house.enters(&node(1)).await);
    }
    let ended = lives[0].1.receiver.receive().await.unwrap_err();
    assert!(
        ended
            .to_string()
            .contains("newer connections of quorate://tested/node/1"),
        "{ended}"
    );
    for stream in [&mut lives[1].1, &mut others] {
        stream.sender.send("still here".into()).await.unwrap();
    }
}

#[tokio::test]
async fn strangers_who_are_refused_by_the_hundred_are_counted_by_reason() {
    let house = House::new(settings());
    let theirs = Authority::create(cluster()).unwrap();
    let stranger = QuicTransport::bind(None, &theirs.credentials(&node(1)).unwrap(), patient()).unwrap();
    for number in 0..300 {
        let peer = Peer {
            node_id: Some(number),
            ..house.peer()
        };
        let refused = stranger.open(&peer, Class::Control).await.unwrap_err();
        assert!(matches!(refused, TransportError::Refused { .. }), "{refused:?}");
    }
    let untrusted = refused_for("untrusted");
    house
        .meters
        .until("each is counted", |meters| meters.count(&untrusted) == 300)
        .await;
}
