//! What only QUIC promises: certificates, the priority of votes on a full link, and what it does with peers
//! that do not speak as they should.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use quorate_transport::certs::{Authority, Credentials, Validity};
use quorate_transport::quic::{BindError, QuicSettings, QuicTransport};
use quorate_transport::{Class, ClusterId, Identity, Peer, RefusedBecause, Transport, TransportError};

use crate::meters::Meters;
use crate::quic_world::settings;
use crate::world::{PROBE_EVERY, cluster, echo, node, open};

const DEADLINE: Duration = Duration::from_secs(60);

fn listen() -> Option<SocketAddr> {
    Some(SocketAddr::from(([127, 0, 0, 1], 0)))
}

fn start(authority: &Authority, identity: &Identity, settings: QuicSettings) -> Arc<QuicTransport> {
    let credentials = authority.credentials(identity).unwrap();
    QuicTransport::bind(listen(), &credentials, settings).unwrap()
}

fn peer(transport: &QuicTransport, node_id: Option<u64>) -> Peer {
    Peer {
        node_id,
        address: transport.local_address().unwrap().try_into().unwrap(),
    }
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let credentials = Credentials::ephemeral(&node(1)).unwrap();
    let first = QuicTransport::bind(listen(), &credentials, settings()).unwrap();
    let taken = first.local_address().unwrap();
    let refused = QuicTransport::bind(Some(taken), &credentials, settings()).unwrap_err();
    assert!(
        matches!(refused, BindError::AddressInUse { address } if address == taken),
        "{refused:?}"
    );
    assert!(refused.to_string().contains(&taken.to_string()), "{refused}");
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused() {
    let credentials = Credentials::ephemeral(&node(1)).unwrap();
    let impossible = QuicSettings {
        keep_alive: Duration::from_secs(10),
        ..QuicSettings::default()
    };
    let refused = QuicTransport::bind(listen(), &credentials, impossible).unwrap_err();
    assert!(matches!(refused, BindError::Settings(_)), "{refused:?}");
}

#[tokio::test]
async fn certificates_of_another_authority_are_refused_in_both_roles() {
    let ours = Authority::create(cluster()).unwrap();
    // The same cluster's name, forged.
    let theirs = Authority::create(cluster()).unwrap();
    let one = start(&ours, &node(1), settings());
    let forged = start(&theirs, &node(2), settings());
    for (from, to) in [(&one, peer(&forged, Some(2))), (&forged, peer(&one, Some(1)))] {
        let refused = from.open(&to, Class::Control).await.unwrap_err();
        assert_eq!(because(&refused), RefusedBecause::UntrustedAuthority, "{refused}");
    }
}

fn because(refused: &TransportError) -> RefusedBecause {
    match refused {
        TransportError::Refused { because, .. } => *because,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused_as_such_though_its_authority_is_known() {
    let ours = Authority::create(cluster()).unwrap();
    let other = ClusterId::new("another").unwrap();
    let theirs = Authority::create(other.clone()).unwrap();
    let both = format!("{}{}", ours.certificate_pem(), theirs.certificate_pem());
    let start = |authority: &Authority, identity: &Identity| {
        let issued = authority
            .issue(identity, &[], Duration::from_secs(3_600))
            .unwrap();
        let credentials = Credentials::from_pem(&both, issued.certificate_pem(), issued.key_pem()).unwrap();
        QuicTransport::bind(listen(), &credentials, settings()).unwrap()
    };
    let one = start(&ours, &node(1));
    let two = start(&theirs, &Identity::node(other, 2));
    let refused = one.open(&peer(&two, Some(2)), Class::Control).await.unwrap_err();
    assert_eq!(because(&refused), RefusedBecause::WrongCluster, "{refused}");
    assert!(
        refused.to_string().contains("quorate://another/node/2"),
        "{refused}"
    );
}

/// A certificate whose time is over within two seconds at the latest.
fn short_lived(authority: &Authority, identity: &Identity) -> Credentials {
    let issued = authority.issue(identity, &[], Duration::from_secs(1)).unwrap();
    issued.credentials(authority).unwrap()
}

/// An expiry is seen at once, and not when a connection breaks for another reason some day.
#[tokio::test]
async fn a_connection_ends_with_the_certificate_of_either_side_and_says_whose_it_was() {
    let authority = Authority::create(cluster()).unwrap();
    for ends in [1, 2] {
        let [one, two] = [1, 2].map(|id| {
            let credentials = match id == ends {
                true => short_lived(&authority, &node(id)),
                false => authority.credentials(&node(id)).unwrap(),
            };
            QuicTransport::bind(listen(), &credentials, settings()).unwrap()
        });
        let peer = peer(&two, Some(2));
        let mut opened = open(&*one, &peer, Class::Append).await;
        let mut accepted = two.accept().await.unwrap().stream;
        let (at_opener, at_acceptor) = tokio::join!(opened.receiver.receive(), accepted.receiver.receive());
        for ended in [at_opener, at_acceptor] {
            let told = ended.unwrap_err();
            let whose = format!("the certificate of quorate://tested/node/{ends} ended at 20");
            assert!(matches!(told, TransportError::Broken { .. }), "{told:?}");
            assert!(told.to_string().contains(&whose), "{told}");
        }
        let refused = loop {
            match one.open(&peer, Class::Append).await {
                Err(refused @ TransportError::Refused { .. }) => break refused,
                // The failure of before, until the backoff is over.
                Err(TransportError::Unreachable { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(because(&refused), RefusedBecause::Expired, "{refused}");
    }
}

#[tokio::test]
async fn the_end_of_the_certificates_is_a_metric_that_a_reload_renews() {
    let authority = Authority::create(cluster()).unwrap();
    let meters = Meters::default();
    let (one, before) = meters.recording(|| {
        let one = QuicTransport::bind(None, &short_lived(&authority, &node(1)), settings()).unwrap();
        (one, meters.level("quorate_certificate_expiry_seconds{own}"))
    });
    let renewed = authority.credentials(&node(1)).unwrap();
    meters.recording(|| one.reload(&renewed).unwrap());
    let unix = |moment: SystemTime| {
        moment
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs_f64()
    };
    let end = |validity: Validity| unix(validity.not_after) + 1.0;
    assert!(before <= unix(SystemTime::now()) + 2.0, "{before}");
    assert_eq!(
        meters.level("quorate_certificate_expiry_seconds{own}"),
        end(renewed.validity())
    );
    let of_authority = meters.level("quorate_certificate_expiry_seconds{authority}");
    assert_eq!(of_authority, end(renewed.authority_validity()));
    assert!(of_authority > end(renewed.validity()));
}

#[tokio::test]
async fn an_opener_whom_the_acceptor_alone_does_not_believe_is_told_so() {
    let authority = Authority::create(cluster()).unwrap();
    let forger = Authority::create(cluster()).unwrap();
    let two = start(&authority, &node(2), settings());
    // It trusts the real authority and shows a certificate of its own.
    let issued = forger.issue(&node(1), &[], Duration::from_secs(3_600)).unwrap();
    let both = format!("{}{}", forger.certificate_pem(), authority.certificate_pem());
    let credentials = Credentials::from_pem(&both, issued.certificate_pem(), issued.key_pem()).unwrap();
    let one = QuicTransport::bind(None, &credentials, settings()).unwrap();
    let refused = one.open(&peer(&two, Some(2)), Class::Control).await.unwrap_err();
    assert_eq!(because(&refused), RefusedBecause::UntrustedAuthority, "{refused}");
}

#[tokio::test]
async fn a_client_cannot_pass_as_a_node() {
    let authority = Authority::create(cluster()).unwrap();
    let one = start(&authority, &node(1), settings());
    let client = start(
        &authority,
        &Identity::client(cluster(), "mallory").unwrap(),
        settings(),
    );
    let refused = one.open(&peer(&client, None), Class::Control).await.unwrap_err();
    assert!(matches!(refused, TransportError::Refused { .. }), "{refused:?}");
}

#[tokio::test]
async fn reloaded_credentials_serve_new_connections_and_those_of_others_are_refused() {
    let authority = Authority::create(cluster()).unwrap();
    let one = start(&authority, &node(1), settings());
    let two = start(&authority, &node(2), settings());
    two.reload(&authority.credentials(&node(2)).unwrap()).unwrap();
    one.reload(&authority.credentials(&node(1)).unwrap()).unwrap();
    let _stream = open(&*one, &peer(&two, Some(2)), Class::Control).await;
    two.accept().await.unwrap();
    let refused = two.reload(&authority.credentials(&node(3)).unwrap());
    assert!(
        matches!(refused, Err(BindError::Credentials { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn concurrent_opens_share_one_connection() {
    let authority = Authority::create(cluster()).unwrap();
    let one = start(&authority, &node(1), settings());
    // No room for a second connection: a second attempt would be refused.
    let single = QuicSettings {
        node_connections_max: 1,
        ..settings()
    };
    let two = start(&authority, &node(2), single);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (one, peer) = (Arc::clone(&one), peer(&two, Some(2)));
        tasks.spawn(async move { one.open(&peer, Class::Client).await.map(drop) });
    }
    while let Some(opened) = tasks.join_next().await {
        opened.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_message_over_the_receivers_limit_breaks_the_stream_and_not_the_connection() {
    let authority = Authority::create(cluster()).unwrap();
    let one = start(&authority, &node(1), settings());
    let strict = QuicSettings {
        message_bytes_max: 1_000,
        ..settings()
    };
    let two = start(&authority, &node(2), strict);
    let peer = peer(&two, Some(2));
    let mut refused = open(&*one, &peer, Class::Append).await;
    let mut lives = open(&*one, &peer, Class::Append).await;
    let [mut first, mut second] = [two.accept().await.unwrap(), two.accept().await.unwrap()];
    refused.sender.send(Bytes::from(vec![0; 1_001])).await.unwrap();
    lives.sender.send("short".into()).await.unwrap();
    // Either may have been accepted first.
    let outcomes = [
        first.stream.receiver.receive().await,
        second.stream.receiver.receive().await,
    ];
    assert!(outcomes.contains(&Ok(Some("short".into()))), "{outcomes:?}");
    let broken = outcomes
        .iter()
        .find_map(|outcome| outcome.as_ref().err())
        .expect("one breaks");
    assert!(
        broken.to_string().contains("1001") && broken.to_string().contains("1000"),
        "{broken}"
    );
    let told = loop {
        if let Err(error) = refused.sender.send("more".into()).await {
            break error;
        }
        tokio::task::yield_now().await;
    };
    assert!(told.to_string().contains("limit"), "{told}");
}

/// A snapshot fills the link, and heartbeats keep their pace. Measured in bytes of bulk that arrive while a beat
/// is under way, not in time: a busy machine slows both down together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_messages_keep_their_pace_while_bulk_fills_the_link() {
    const CHUNK: usize = 64 << 10;
    const BEATS: usize = 300;
    let test = async {
        let authority = Authority::create(cluster()).unwrap();
        let patient = QuicSettings {
            // A loaded machine may stall for long: that is not what is measured here.
            idle_timeout: Duration::from_secs(30),
            ..QuicSettings::default()
        };
        let window = u64::from(patient.stream_window);
        let one = start(&authority, &node(1), patient.clone());
        let two = start(&authority, &node(2), patient);
        let peer = peer(&two, Some(2));
        let mut filling = Vec::new();
        for _ in 0..3 {
            let mut stream = open(&*one, &peer, Class::Bulk).await;
            filling.push(tokio::spawn(async move {
                let mut chunks = vec![Bytes::from(vec![0; CHUNK]); 16];
                while stream.sender.send_all(&mut chunks).await.is_ok() {
                    chunks.resize(16, Bytes::from(vec![0; CHUNK]));
                }
            }));
        }
        // Two that nobody reads stand full in the way all the time; the third flows as fast as it can.
        let _stalled = [two.accept().await.unwrap(), two.accept().await.unwrap()];
        let mut flowing = two.accept().await.unwrap().stream.receiver;
        let arrived = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&arrived);
        let counting = tokio::spawn(async move {
            let mut messages = Vec::new();
            while let Ok(count @ 1..) = flowing.receive_many(&mut messages).await {
                messages.clear();
                counter.fetch_add((count * CHUNK) as u64, Ordering::Relaxed);
            }
        });
        echo(Arc::clone(&two) as Arc<dyn Transport>);
        let mut control = open(&*one, &peer, Class::Control).await;
        let bulk = || arrived.load(Ordering::Relaxed);
        while bulk() < 2 * window {
            tokio::task::yield_now().await;
        }
        let mut passed = Vec::with_capacity(BEATS);
        for _ in 0..BEATS {
            let before = bulk();
            control.sender.send("beat".into()).await.unwrap();
            assert_eq!(control.receiver.receive().await.unwrap(), Some("beat".into()));
            passed.push(bulk() - before);
            // The next beat finds bulk flowing again.
            while bulk() == before {
                tokio::task::yield_now().await;
            }
        }
        one.shutdown().await;
        counting.await.unwrap();
        for task in filling {
            task.await.unwrap();
        }
        // What a beat may find before it is what is under way: one window. Behind the streams that nobody reads
        // it would wait for ever, and behind all that bulk still has to send for as long as that lasts.
        passed.sort_unstable();
        let (median, p90) = (passed[BEATS / 2], passed[BEATS * 9 / 10]);
        assert!(
            median < 2 * window && p90 < 8 * window,
            "half the beats let {median} bytes pass, a tenth {p90}"
        );
    };
    tokio::time::timeout(DEADLINE, test)
        .await
        .expect("the beats do not get through");
}

/// As the system holds the port of a process that is stopped, whose queue of datagrams is full after a while.
#[tokio::test]
async fn a_port_that_nobody_reads_is_no_end_of_its_process() {
    let authority = Authority::create(cluster()).unwrap();
    let one = start(&authority, &node(1), settings());
    let stopped = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = stopped.local_addr().unwrap();
    let filling = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..1_000 {
        filling.send_to(&[0; 1_200], address).unwrap();
    }
    let peer = Peer {
        node_id: Some(2),
        address: address.try_into().unwrap(),
    };
    let noticed = tokio::time::timeout(30 * PROBE_EVERY, one.ended(&peer)).await;
    assert!(noticed.is_err(), "it is there, and only slow");
    drop(stopped);
    one.ended(&peer).await;
}
