//! Peers that speak QUIC and TLS as they should, and then something else; and lives that end without a word.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use quinn::{ReadError, VarInt};
use tokio::runtime::Runtime;
use tokio::time::{Instant, timeout};

use super::{BindError, QuicSettings, QuicTransport, busy_poll, endpoint, errors, tls};
use crate::certs::{Authority, Credentials};
use crate::{Class, ClusterId, Identity, Peer, Stream, Transport as _, TransportError};

const DEADLINE: Duration = Duration::from_secs(30);

fn node(id: u64) -> Identity {
    Identity::node(ClusterId::new("tested").unwrap(), id)
}

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Messages of at most a thousand bytes.
fn short_messages() -> QuicSettings {
    QuicSettings {
        message_bytes_max: 1_000,
        ..QuicSettings::default()
    }
}

/// A node, and a connection to it by hand, of another node.
async fn by_hand(settings: QuicSettings) -> (Arc<QuicTransport>, quinn::Endpoint, quinn::Connection) {
    by_hand_of(&node(1), settings).await
}

/// The same of somebody else.
async fn by_hand_of(
    opener: &Identity,
    settings: QuicSettings,
) -> (Arc<QuicTransport>, quinn::Endpoint, quinn::Connection) {
    let authority = Authority::create(node(1).cluster).unwrap();
    let served = authority.credentials(&node(2)).unwrap();
    let transport = QuicTransport::bind(Some(local()), &served, settings.clone()).unwrap();
    let (runtime, _) = busy_poll::runtime(Duration::ZERO);
    let endpoint = endpoint::outgoing(&settings, &runtime).unwrap();
    let config = tls::client(&authority.credentials(opener).unwrap(), &settings).unwrap();
    let address = transport.local_address().unwrap();
    let connecting = endpoint.connect_with(config, address, tls::SERVER_NAME).unwrap();
    (transport, endpoint, connecting.await.unwrap())
}

/// The codes with which both halves of a stream that begins so end.
async fn refusal_of(connection: &quinn::Connection, beginning: &[u8]) -> (Option<VarInt>, VarInt) {
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(beginning).await.unwrap();
    let stopped = send.stopped().await.unwrap();
    match receive.read(&mut [0]).await {
        Err(ReadError::Reset(code)) => (stopped, code),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_stream_of_an_unknown_version_or_class_is_refused_with_its_code_alone() {
    let (transport, _endpoint, connection) = by_hand(short_messages()).await;
    let version = refusal_of(&connection, &[2, 0]).await;
    assert_eq!(version, (Some(errors::UNKNOWN_VERSION), errors::UNKNOWN_VERSION));
    let class = refusal_of(&connection, &[1, 4]).await;
    assert_eq!(class, (Some(errors::UNKNOWN_CLASS), errors::UNKNOWN_CLASS));
    // The connection lives on, and a stream as it should be is accepted.
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    send.write_all(&[1, 0, 0, 0, 0, 2, b'h', b'i']).await.unwrap();
    let mut incoming = transport.accept().await.unwrap();
    assert_eq!(incoming.class, Class::Control);
    assert_eq!(
        incoming.stream.receiver.receive().await.unwrap(),
        Some("hi".into())
    );
}

#[tokio::test]
async fn a_stream_that_ends_inside_a_message_is_broken_after_the_whole_ones() {
    let (transport, _endpoint, connection) = by_hand(short_messages()).await;
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    send.write_all(&[1, 0, 0, 0, 0, 1, b'a', 0, 0, 0, 2, b'b'])
        .await
        .unwrap();
    send.finish().unwrap();
    let mut incoming = transport.accept().await.unwrap();
    assert_eq!(
        incoming.stream.receiver.receive().await.unwrap(),
        Some("a".into())
    );
    let broken = incoming.stream.receiver.receive().await;
    assert!(matches!(broken, Err(TransportError::Broken { .. })), "{broken:?}");
}

#[tokio::test]
async fn what_has_come_of_a_message_is_counted_before_it_is_whole() {
    let (transport, _endpoint, connection) = by_hand(short_messages()).await;
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    send.write_all(&[1, 0, 0, 0, 0, 2, b'b']).await.unwrap();
    let mut receiver = transport.accept().await.unwrap().stream.receiver;
    let arrived = receiver.arrived().clone();
    let receiving = tokio::spawn(async move { receiver.receive().await });
    let counted = async {
        while arrived.bytes() < 5 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, counted).await.expect("a half is counted");
    assert!(!receiving.is_finished());
    send.write_all(b"c").await.unwrap();
    assert_eq!(receiving.await.unwrap().unwrap(), Some("bc".into()));
    assert_eq!(arrived.bytes(), 6);
}

#[tokio::test]
async fn an_announced_length_over_the_limit_stops_the_stream_with_its_code() {
    let (transport, _endpoint, connection) = by_hand(short_messages()).await;
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    send.write_all(&[1, 0, 0xFF, 0xFF, 0xFF, 0xFF]).await.unwrap();
    let mut incoming = transport.accept().await.unwrap();
    let broken = incoming.stream.receiver.receive().await.unwrap_err();
    assert!(broken.to_string().contains("4294967295"), "{broken}");
    assert_eq!(send.stopped().await.unwrap(), Some(errors::OVERSIZED));
}

#[tokio::test]
async fn an_acceptor_that_speaks_a_later_version_of_streams_is_refused() {
    let authority = Authority::create(node(1).cluster).unwrap();
    let settings = QuicSettings::default();
    let (runtime, _) = busy_poll::runtime(Duration::ZERO);
    let (later, _socket) = endpoint::listening(
        local(),
        &authority.credentials(&node(2)).unwrap(),
        &settings,
        &runtime,
    )
    .unwrap();
    let address = later.local_addr().unwrap().try_into().unwrap();
    let served = tokio::spawn(async move {
        let connection = later.accept().await.unwrap().await.unwrap();
        let mut welcome = connection.open_uni().await.unwrap();
        welcome.write_all(&[2]).await.unwrap();
        welcome.finish().unwrap();
        connection.closed().await
    });
    let one = QuicTransport::bind(None, &authority.credentials(&node(1)).unwrap(), settings).unwrap();
    let peer = Peer {
        node_id: Some(2),
        address,
    };
    let refused = one.open(&peer, Class::Control).await.unwrap_err();
    let TransportError::Refused { reason, .. } = &refused else {
        panic!("{refused:?}");
    };
    assert!(
        reason.contains("version 2") && reason.contains("speak 1"),
        "{reason}"
    );
    let told = served.await.unwrap();
    assert!(errors::describe(&told).contains("version 2"), "{told}");
}

#[tokio::test]
async fn a_stream_to_an_acceptor_that_does_not_know_its_version_is_refused_by_name() {
    let refused = errors::not_written(
        &errors::Way::to("there:1".to_owned()),
        quinn::WriteError::Stopped(errors::UNKNOWN_VERSION),
    );
    let TransportError::Refused { address, reason, .. } = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(address, "there:1");
    assert!(reason.contains("version"), "{reason}");
}

const LONG: usize = 1 << 20;

/// Room for four long messages of a connection.
fn long_messages() -> QuicSettings {
    QuicSettings {
        message_bytes_max: LONG,
        ..QuicSettings::default()
    }
}

/// A stream on which a long message has begun, and the transport that waits for its end.
async fn begun(
    transport: &QuicTransport,
    connection: &quinn::Connection,
) -> (
    quinn::SendStream,
    tokio::task::JoinHandle<Result<usize, TransportError>>,
) {
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    let mut beginning = vec![1, 2];
    beginning.extend((LONG as u32).to_be_bytes());
    beginning.extend([0; 20 << 10]);
    send.write_all(&beginning).await.unwrap();
    let mut stream = transport.accept().await.unwrap().stream;
    let receiving = tokio::spawn(async move { stream.receiver.receive_many(&mut Vec::new()).await });
    (send, receiving)
}

async fn ends(mut send: quinn::SendStream) {
    send.write_all(&vec![0; LONG - (20 << 10)]).await.unwrap();
    send.finish().unwrap();
}

#[tokio::test]
async fn a_client_that_begins_many_long_messages_gets_no_more_memory_than_its_share() {
    let client = Identity::client(node(1).cluster, "eager").unwrap();
    let (transport, _endpoint, connection) = by_hand_of(&client, long_messages()).await;
    let mut within = Vec::new();
    for _ in 0..4 {
        within.push(begun(&transport, &connection).await);
        // Its room is taken when its beginning was read.
        let taken = within.len() * LONG;
        while transport.shared.door.reserved() < taken {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let (beyond, receiving) = begun(&transport, &connection).await;
    let refused = receiving.await.unwrap().unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("no room for a message of 1048576 bytes"),
        "{refused}"
    );
    assert_eq!(beyond.stopped().await.unwrap(), Some(errors::NO_ROOM));
    // The others go on, and give their room back.
    for (send, receiving) in within {
        ends(send).await;
        assert_eq!(receiving.await.unwrap(), Ok(1));
    }
    let (send, receiving) = begun(&transport, &connection).await;
    ends(send).await;
    assert_eq!(receiving.await.unwrap(), Ok(1));
}

#[tokio::test]
async fn a_client_that_does_not_end_its_message_is_not_waited_for_for_ever() {
    let client = Identity::client(node(1).cluster, "slow").unwrap();
    let hasty = QuicSettings {
        // And four seconds for the bytes of a message: less than the connection lives.
        client_message_patience: Duration::from_millis(1),
        ..long_messages()
    };
    let (transport, _endpoint, connection) = by_hand_of(&client, hasty).await;
    let (send, receiving) = begun(&transport, &connection).await;
    let refused = receiving.await.unwrap().unwrap_err();
    assert!(
        refused.to_string().contains("its end came too slowly"),
        "{refused}"
    );
    assert_eq!(send.stopped().await.unwrap(), Some(errors::NO_ROOM));
    assert_eq!(transport.shared.door.reserved(), 0);
}

/// A message has so much time in all, and not anew with each of its pieces: a client that sends one now and then would hold
/// its room for as long as it likes.
#[tokio::test]
async fn a_client_that_trickles_its_message_has_no_more_time_than_one_that_is_silent() {
    const PATIENCE: Duration = Duration::from_millis(600);
    // Above what needs no room, and so short that its bytes give it no second more.
    const LENGTH: usize = 200 << 10;
    let client = Identity::client(node(1).cluster, "trickling").unwrap();
    let settings = QuicSettings {
        client_message_patience: PATIENCE,
        ..long_messages()
    };
    let (transport, _endpoint, connection) = by_hand_of(&client, settings).await;
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    let mut beginning = vec![1, 2];
    beginning.extend((LENGTH as u32).to_be_bytes());
    beginning.extend([0; 20 << 10]);
    send.write_all(&beginning).await.unwrap();
    let mut stream = transport.accept().await.unwrap().stream;
    let since = Instant::now();
    let receiving = tokio::spawn(async move { stream.receiver.receive_many(&mut Vec::new()).await });

    let stopped = send.stopped();
    let mut stopped = pin!(stopped);
    let mut pieces = 0;
    let code = loop {
        // A piece comes well within the patience.
        match timeout(PATIENCE / 6, &mut stopped).await {
            Ok(code) => break code.unwrap(),
            Err(_) if since.elapsed() > DEADLINE => {
                panic!("{pieces} pieces have come, and it is waited for the next")
            }
            Err(_) => {
                pieces += 1;
                // It may have been stopped meanwhile, which the next look tells.
                let _stopped = send.write_all(&[0]).await;
            }
        }
    };
    assert_eq!(code, Some(errors::NO_ROOM));
    assert!(pieces >= 3, "{pieces} pieces came");
    assert!(since.elapsed() >= PATIENCE / 2, "{:?}", since.elapsed());
    let refused = receiving.await.unwrap().unwrap_err();
    assert!(
        refused.to_string().contains("its end came too slowly"),
        "{refused}"
    );
    assert_eq!(transport.shared.door.reserved(), 0);
}

#[tokio::test]
async fn a_node_has_room_for_as_many_long_messages_as_it_sends() {
    let (transport, _endpoint, connection) = by_hand(long_messages()).await;
    let mut begun_all = Vec::new();
    for _ in 0..8 {
        begun_all.push(begun(&transport, &connection).await);
    }
    for (send, receiving) in begun_all {
        ends(send).await;
        assert_eq!(receiving.await.unwrap(), Ok(1));
    }
}

/// A node whose process can be killed, and its peer, which lives on.
struct Mortal {
    /// The process: its tasks, and its transport.
    life: Option<(Runtime, Arc<QuicTransport>)>,
    credentials: Credentials,
    settings: QuicSettings,
    address: SocketAddr,
    /// Who speaks to it, and how it is found.
    one: Arc<QuicTransport>,
    peer: Peer,
}

impl Mortal {
    fn born(settings: QuicSettings) -> Self {
        let authority = Authority::create(node(1).cluster).unwrap();
        let [first, second] = [1, 2].map(|id| authority.credentials(&node(id)).unwrap());
        let one = QuicTransport::bind(None, &first, settings.clone()).unwrap();
        let process = Runtime::new().unwrap();
        let transport = {
            let _inside = process.enter();
            QuicTransport::bind(Some(local()), &second, settings.clone()).unwrap()
        };
        let address = transport.local_address().unwrap();
        Self {
            life: Some((process, transport)),
            credentials: second,
            settings,
            address,
            one,
            peer: Peer {
                node_id: Some(2),
                address: address.try_into().unwrap(),
            },
        }
    }

    /// All its tasks end where they are; then its socket closes, and nothing is sent.
    async fn kill(&mut self) {
        let life = self.life.take();
        tokio::task::spawn_blocking(move || {
            if let Some((process, transport)) = life {
                drop(process);
                drop(transport);
            }
        })
        .await
        .unwrap();
    }

    fn successor(&self) -> Arc<QuicTransport> {
        QuicTransport::bind(Some(self.address), &self.credentials, self.settings.clone()).unwrap()
    }

    /// A stream to the successor, once it is reached.
    async fn reach(&self, class: Class) -> Stream {
        let reached = tokio::time::timeout(DEADLINE, async {
            loop {
                if let Ok(stream) = self.one.open(&self.peer, class).await {
                    return stream;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        reached.await.expect("the successor is reached")
    }
}

/// A process that is killed says nothing, and its successor at the same port does not know the connection. It
/// says so at the first packet, instead of leaving the peer to the idle timeout.
#[tokio::test(flavor = "multi_thread")]
async fn the_successor_of_a_killed_process_ends_its_connections_at_once() {
    let mut mortal = Mortal::born(QuicSettings {
        // Far beyond the deadline: it is not what ends the connection here.
        idle_timeout: Duration::from_secs(600),
        keep_alive: Duration::from_millis(50),
        ..QuicSettings::default()
    });
    let mut opened = mortal.one.open(&mortal.peer, Class::Append).await.unwrap();
    opened.sender.send("hello".into()).await.unwrap();
    mortal.kill().await;
    let _successor = mortal.successor();
    let broken = tokio::time::timeout(DEADLINE, opened.receiver.receive()).await;
    let broken = broken.expect("the successor ends it").unwrap_err();
    assert!(broken.to_string().contains("restarted"), "{broken}");
    mortal.reach(Class::Append).await;
}

/// Every connection has keys of its own, which its process takes with it: the packets of an earlier life are nothing to
/// the next one, whenever they come. (What the killed process itself had sent may still arrive at its peers.)
#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_sent_to_a_killed_process_reaches_its_successor() {
    let mut mortal = Mortal::born(QuicSettings {
        keep_alive: Duration::from_millis(50),
        ..QuicSettings::default()
    });
    let mut opened = mortal.one.open(&mortal.peer, Class::Append).await.unwrap();
    opened.sender.send("to the first life".into()).await.unwrap();
    let mut waiting = mortal.one.open(&mortal.peer, Class::Control).await.unwrap();
    mortal.kill().await;
    // Nobody is there: it is sent again and again, to the successor too.
    opened.sender.send("late".into()).await.unwrap();
    waiting.sender.send("late".into()).await.unwrap();
    let successor = mortal.successor();
    let broken = tokio::time::timeout(DEADLINE, opened.receiver.receive()).await;
    assert!(
        matches!(broken, Ok(Err(TransportError::Broken { .. }))),
        "{broken:?}"
    );
    let mut fresh = mortal.reach(Class::Bulk).await;
    fresh.sender.send("to the second life".into()).await.unwrap();
    // Bulk is what is accepted last, and it is all that there is.
    let accepted = tokio::time::timeout(DEADLINE, successor.accept()).await;
    let mut accepted = accepted
        .expect("the new stream comes")
        .expect("the successor lives");
    assert_eq!(accepted.class, Class::Bulk);
    let message = accepted.stream.receiver.receive().await.unwrap();
    assert_eq!(message, Some("to the second life".into()));
}

/// Whoever still holds the transport or a stream of it, and though nobody has answered its leave: what starts again in
/// this process finds its address free.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_free_once_its_transport_is_shut_down() {
    for shutdown_timeout in [Duration::from_millis(500), Duration::from_millis(1)] {
        let mut mortal = Mortal::born(QuicSettings {
            shutdown_timeout,
            ..QuicSettings::default()
        });
        let mut opened = mortal.one.open(&mortal.peer, Class::Append).await.unwrap();
        opened.sender.send("hello".into()).await.unwrap();
        let transport = mortal.life.as_ref().map(|(_, transport)| Arc::clone(transport));
        let transport = transport.unwrap();
        let accepted = transport.accept().await.unwrap();
        transport.shutdown().await;
        let successor = mortal.successor();
        let taken = QuicTransport::bind(Some(mortal.address), &mortal.credentials, mortal.settings.clone());
        assert!(matches!(taken, Err(BindError::AddressInUse { .. })), "{taken:?}");
        let mut fresh = mortal.reach(Class::Append).await;
        fresh.sender.send("again".into()).await.unwrap();
        let mut served = successor.accept().await.unwrap();
        assert_eq!(
            served.stream.receiver.receive().await.unwrap(),
            Some("again".into())
        );
        drop((opened, accepted));
        mortal.kill().await;
    }
}

#[tokio::test]
async fn no_system_call_is_asked_to_carry_more_datagrams_than_fit_into_it() {
    for datagram_bytes_max in [6_500, 6_551, 65_527] {
        let settings = QuicSettings {
            datagram_bytes_max,
            ..QuicSettings::default()
        };
        let (transport, _endpoint, connection) = by_hand(settings).await;
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        let burst = vec![7; 256 << 10];
        let mut message = vec![1, 3];
        message.extend(u32::try_from(burst.len()).unwrap().to_be_bytes());
        message.extend(&burst);
        send.write_all(&message).await.unwrap();
        let mut incoming = transport.accept().await.unwrap();
        assert_eq!(
            incoming.stream.receiver.receive().await.unwrap(),
            Some(burst.into())
        );
        let sent = connection.stats().udp_tx;
        let together = sent.datagrams > sent.ios;
        assert!(
            !together || datagram_bytes_max <= 6_550,
            "{datagram_bytes_max}: {sent:?}"
        );
    }
}

/// Every name is this machine.
#[derive(Debug)]
struct Here;

#[async_trait::async_trait]
impl super::Resolver for Here {
    async fn addresses(&self, _: &crate::HostName) -> std::io::Result<Vec<std::net::IpAddr>> {
        Ok(vec![local().ip()])
    }
}

/// The story: a connection that had ended counted as one, so that ever new addresses were remembered for ever.
#[tokio::test(flavor = "multi_thread")]
async fn links_whose_connection_has_ended_are_forgotten_for_new_ones() {
    let authority = Authority::create(node(1).cluster).unwrap();
    let [first, second] = [1, 2].map(|id| authority.credentials(&node(id)).unwrap());
    let settings = QuicSettings::default();
    let one = QuicTransport::bind_with(None, &first, settings.clone(), Arc::new(Here)).unwrap();
    let two = QuicTransport::bind(Some(local()), &second, settings).unwrap();
    let port = two.local_address().unwrap().port();
    let peer = |name: usize| Peer {
        node_id: Some(2),
        address: format!("n{name}.test:{port}").parse().unwrap(),
    };
    for name in 0..super::links::LINKS_MAX {
        one.open(&peer(name), Class::Control).await.unwrap();
    }
    assert_eq!(one.shared.links.count(), super::links::LINKS_MAX);
    two.shutdown().await;
    let ended = async {
        while !one.shared.links.nodes().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(DEADLINE, ended)
        .await
        .expect("all connections end");
    let _nobody = one.open(&peer(super::links::LINKS_MAX), Class::Control).await;
    assert_eq!(one.shared.links.count(), 1);
}
