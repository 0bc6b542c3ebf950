//! What only QUIC promises: certificates, the priority of votes on a full link, and what it does with peers
//! that do not speak as they should.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_transport::certs::{Authority, Credentials};
use quorate_transport::quic::{BindError, QuicSettings, QuicTransport};
use quorate_transport::{Class, Identity, Peer, Transport, TransportError};

use crate::quic_world::settings;
use crate::world::{cluster, echo, node, open};

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
        address: transport.local_address().unwrap().to_string(),
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
        assert!(matches!(refused, TransportError::Refused { .. }), "{refused:?}");
    }
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
    assert!(matches!(refused, TransportError::Refused { .. }), "{refused:?}");
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
        connections_max: 1,
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

/// A snapshot fills the link, and heartbeats keep their pace: none waits until bulk is through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_messages_keep_their_pace_while_bulk_fills_the_link() {
    let test = async {
        let authority = Authority::create(cluster()).unwrap();
        let patient = QuicSettings {
            // A loaded machine may stall for long: that is not what is measured here.
            idle_timeout: Duration::from_secs(30),
            ..QuicSettings::default()
        };
        let one = start(&authority, &node(1), patient.clone());
        let two = start(&authority, &node(2), patient);
        let peer = peer(&two, Some(2));
        // Bulk is read by nobody until its streams are full, so that it stands in the way all the time.
        const CHUNK: usize = 1 << 20;
        let mut bulk = Vec::new();
        for _ in 0..3 {
            let mut stream = open(&*one, &peer, Class::Bulk).await;
            bulk.push(tokio::spawn(async move {
                let mut sent = 0_usize;
                while stream.sender.send(Bytes::from(vec![0; CHUNK])).await.is_ok() {
                    sent += 1;
                }
                sent
            }));
        }
        let mut stalled = Vec::new();
        for _ in 0..3 {
            stalled.push(two.accept().await.unwrap());
        }
        let reading = stalled.pop().unwrap();
        let drained = tokio::spawn(async move {
            let (mut reading, mut messages, mut count) = (reading.stream, Vec::new(), 0_usize);
            while let Ok(1..) = reading.receiver.receive_many(&mut messages).await {
                count += messages.drain(..).count();
            }
            count
        });
        echo(Arc::clone(&two) as Arc<dyn Transport>);
        let mut control = open(&*one, &peer, Class::Control).await;
        const BEATS: usize = 300;
        let mut times = Vec::with_capacity(BEATS);
        for _ in 0..BEATS {
            let begun = Instant::now();
            control.sender.send("beat".into()).await.unwrap();
            assert_eq!(control.receiver.receive().await.unwrap(), Some("beat".into()));
            times.push(begun.elapsed());
        }
        one.shutdown().await;
        let drained = drained.await.unwrap();
        for task in bulk {
            task.await.unwrap();
        }
        times.sort_unstable();
        let p90 = times[BEATS * 9 / 10];
        // Behind 4 MiB of a stream's window on a busy machine a beat would take tens of milliseconds at least,
        // behind a stream that nobody reads for ever.
        assert!(drained > 0, "bulk made no progress beside the beats");
        assert!(
            p90 < Duration::from_millis(100),
            "p90 {p90:?}, worst {:?}",
            times[BEATS - 1]
        );
    };
    tokio::time::timeout(DEADLINE, test)
        .await
        .expect("the beats do not get through");
}
