//! The contract of the transport, one promise for each test.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_transport::{Class, ClusterId, Identity, Peer, RefusedBecause, Transport, TransportError};

use crate::world::{
    CLUSTER, Impairment, LIMIT, PROBE_EVERY, Pair, UNREAD_MAX, World, cluster, echo, node, open, pair, peer,
    stream, streams,
};

fn numbered(number: u32, length: usize) -> Bytes {
    let mut message = number.to_be_bytes().to_vec();
    message.resize(length.max(4), number as u8);
    message.into()
}

pub async fn messages_arrive_whole_and_in_order(mut world: impl World) {
    let (mut opened, mut accepted, _nodes) = streams(&mut world).await;
    // Lengths around every border of the implementation: packets, copied and uncopied messages.
    let lengths = [4, 5, 1_199, 1_200, 1_452, 8_191, 8_192, 8_193, 70_000];
    let sent: Vec<Bytes> = (0..500)
        .map(|n| numbered(n, lengths[n as usize % lengths.len()]))
        .collect();
    let expected = sent.clone();
    let sending = tokio::spawn(async move {
        for batch in sent.chunks(7) {
            opened.sender.send_all(&mut batch.to_vec()).await.unwrap();
        }
        opened.sender.finish().await.unwrap();
        opened.receiver
    });
    let mut received = Vec::new();
    while accepted.receiver.receive_many(&mut received).await.unwrap() > 0 {}
    assert_eq!(received.len(), expected.len());
    for (received, expected) in received.iter().zip(&expected) {
        assert_eq!(received, expected);
    }
    sending.await.unwrap();
}

pub async fn both_directions_carry_messages_at_once(mut world: impl World) {
    let (opened, accepted, _nodes) = streams(&mut world).await;
    let mut tasks = Vec::new();
    for stream in [opened, accepted] {
        let (mut sender, mut receiver) = (stream.sender, stream.receiver);
        tasks.push(tokio::spawn(async move {
            for n in 0..300 {
                sender.send(numbered(n, 3_000)).await.unwrap();
            }
            sender.finish().await.unwrap();
        }));
        tasks.push(tokio::spawn(async move {
            for n in 0..300 {
                assert_eq!(receiver.receive().await.unwrap(), Some(numbered(n, 3_000)));
            }
            assert_eq!(receiver.receive().await.unwrap(), None);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

pub async fn a_large_message_arrives_whole(mut world: impl World) {
    let (mut opened, mut accepted, _nodes) = streams(&mut world).await;
    let large: Bytes = (0..LIMIT).map(|n| (n / 251) as u8).collect();
    let sent = large.clone();
    let sending = tokio::spawn(async move {
        opened.sender.send(sent).await.unwrap();
        opened
    });
    assert!(
        accepted.receiver.receive().await.unwrap() == Some(large),
        "the large message differs"
    );
    sending.await.unwrap();
}

pub async fn an_empty_message_is_a_message(mut world: impl World) {
    let (mut opened, mut accepted, _nodes) = streams(&mut world).await;
    opened.sender.send(Bytes::new()).await.unwrap();
    opened.sender.send("after".into()).await.unwrap();
    assert_eq!(accepted.receiver.receive().await.unwrap(), Some(Bytes::new()));
    assert_eq!(accepted.receiver.receive().await.unwrap(), Some("after".into()));
}

pub async fn a_message_over_the_limit_is_refused_and_the_stream_lives_on(mut world: impl World) {
    let (mut opened, mut accepted, _nodes) = streams(&mut world).await;
    let mut batch = vec!["before".into(), Bytes::from(vec![0; LIMIT + 1])];
    let refused = opened.sender.send_all(&mut batch).await.unwrap_err();
    let expected = TransportError::TooLarge {
        size: LIMIT + 1,
        limit: LIMIT,
    };
    assert_eq!(refused, expected);
    opened.sender.send("next".into()).await.unwrap();
    assert_eq!(
        accepted.receiver.receive().await.unwrap(),
        Some("next".into()),
        "nothing of the refused batch"
    );
}

pub async fn the_receiver_ends_after_the_last_message_of_a_finished_stream(mut world: impl World) {
    let (mut opened, mut accepted, _nodes) = streams(&mut world).await;
    opened.sender.send("last".into()).await.unwrap();
    opened.sender.finish().await.unwrap();
    assert_eq!(accepted.receiver.receive().await.unwrap(), Some("last".into()));
    for _ in 0..3 {
        assert_eq!(accepted.receiver.receive().await.unwrap(), None);
    }
}

pub async fn one_half_can_be_finished_while_the_other_goes_on(mut world: impl World) {
    let (mut opened, mut accepted, _nodes) = streams(&mut world).await;
    opened.sender.send("question".into()).await.unwrap();
    opened.sender.finish().await.unwrap();
    assert_eq!(
        accepted.receiver.receive().await.unwrap(),
        Some("question".into())
    );
    assert_eq!(accepted.receiver.receive().await.unwrap(), None);
    accepted.sender.send("answer".into()).await.unwrap();
    accepted.sender.finish().await.unwrap();
    assert_eq!(opened.receiver.receive().await.unwrap(), Some("answer".into()));
    assert_eq!(opened.receiver.receive().await.unwrap(), None);
}

pub async fn a_dropped_sender_resets_the_stream(mut world: impl World) {
    let (mut opened, mut accepted, _nodes) = streams(&mut world).await;
    opened.sender.send("half of it".into()).await.unwrap();
    assert_eq!(
        accepted.receiver.receive().await.unwrap(),
        Some("half of it".into())
    );
    drop(opened.sender);
    let ended = accepted.receiver.receive().await;
    assert!(matches!(ended, Err(TransportError::Broken { .. })), "{ended:?}");
}

pub async fn a_dropped_receiver_stops_the_sender(mut world: impl World) {
    let (mut opened, accepted, _nodes) = streams(&mut world).await;
    drop(accepted.receiver);
    let ended = loop {
        if let Err(error) = opened.sender.send(numbered(0, 10_000)).await {
            break error;
        }
        tokio::task::yield_now().await;
    };
    assert!(matches!(ended, TransportError::Broken { .. }), "{ended:?}");
}

pub async fn a_receiver_that_does_not_read_makes_the_sender_wait(mut world: impl World) {
    let (mut opened, mut accepted, _nodes) = streams(&mut world).await;
    const SIZE: usize = 64 << 10;
    let mut sent = 0_u32;
    loop {
        let sending = opened.sender.send(numbered(sent, SIZE));
        // No progress for that long means that it waits; a slow machine only makes the test weaker.
        match tokio::time::timeout(Duration::from_millis(300), sending).await {
            Ok(result) => result.unwrap(),
            Err(_) => break,
        }
        sent += 1;
        assert!(
            sent as usize * SIZE <= UNREAD_MAX,
            "{sent} messages are unread and the sender goes on"
        );
    }
    assert!(sent > 0);
    // The call that waited was dropped, and its stream with it: what it took before is still read.
    for n in 0..sent {
        assert_eq!(
            accepted.receiver.receive().await.unwrap(),
            Some(numbered(n, SIZE))
        );
    }
}

pub async fn a_cancelled_receive_loses_nothing(mut world: impl World) {
    let (mut opened, mut accepted, _nodes) = streams(&mut world).await;
    let sending = tokio::spawn(async move {
        for n in 0..2_000 {
            opened.sender.send(numbered(n, 700)).await.unwrap();
            if n % 50 == 0 {
                tokio::task::yield_now().await;
            }
        }
        opened.sender.finish().await.unwrap();
        opened.receiver
    });
    let mut received = Vec::new();
    loop {
        let receiving = accepted.receiver.receive_many(&mut received);
        // At once, and later: both ways of giving up.
        match tokio::time::timeout(Duration::from_micros(50), receiving).await {
            Ok(Ok(0)) => break,
            Ok(result) => drop(result.unwrap()),
            Err(_) => tokio::task::yield_now().await,
        }
    }
    let expected: Vec<Bytes> = (0..2_000).map(|n| numbered(n, 700)).collect();
    assert!(
        received == expected,
        "{} of {} messages",
        received.len(),
        expected.len()
    );
    sending.await.unwrap();
}

pub async fn a_cancelled_accept_loses_nothing(mut world: impl World) {
    let one = world.start(node(1)).await;
    let two = world.start(node(2)).await;
    let peer = peer(&world, 2);
    let mut opened = Vec::new();
    let opening = async {
        for _ in 0..50 {
            opened.push(open(&*one, &peer, Class::Client).await);
            tokio::task::yield_now().await;
        }
    };
    let accepting = async {
        let mut accepted = Vec::new();
        while accepted.len() < 50 {
            match tokio::time::timeout(Duration::from_micros(20), two.accept()).await {
                Ok(incoming) => accepted.push(incoming.unwrap()),
                Err(_) => tokio::task::yield_now().await,
            }
        }
        accepted
    };
    let ((), accepted) = tokio::join!(opening, accepting);
    assert_eq!(accepted.len(), 50);
}

pub async fn the_acceptor_learns_who_opened_and_for_what(mut world: impl World) {
    let one = world.start(node(1)).await;
    let two = world.start(node(2)).await;
    let peer = peer(&world, 2);
    for class in Class::ALL {
        let (_opened, incoming) = stream(&*one, &*two, &peer, class).await;
        assert_eq!(incoming.class, class);
        assert_eq!(incoming.from, node(1));
    }
}

pub async fn a_client_that_knows_only_an_address_is_served(mut world: impl World) {
    let identity = Identity::client(cluster(), "reader-1").unwrap();
    let client = world.start(identity.clone()).await;
    let two = world.start(node(2)).await;
    let peer = Peer {
        node_id: None,
        address: world.address(2),
    };
    let (mut opened, mut incoming) = stream(&*client, &*two, &peer, Class::Client).await;
    assert_eq!(incoming.from, identity);
    opened.sender.send("get".into()).await.unwrap();
    assert_eq!(
        incoming.stream.receiver.receive().await.unwrap(),
        Some("get".into())
    );
}

pub async fn a_node_with_another_id_is_refused(mut world: impl World) {
    let one = world.start(node(1)).await;
    let _two = world.start(node(2)).await;
    let wrong = Peer {
        node_id: Some(3),
        address: world.address(2),
    };
    let refused = one.open(&wrong, Class::Control).await.unwrap_err();
    let TransportError::Refused {
        address,
        because,
        reason,
    } = refused
    else {
        panic!("{refused:?}");
    };
    assert_eq!(because, RefusedBecause::WrongNode);
    assert_eq!(address, wrong.address.to_string());
    assert!(reason.contains("node 2") && reason.contains("node 3"), "{reason}");
    // And the right one is still reached.
    let right = peer(&world, 2);
    open(&*one, &right, Class::Control).await;
}

pub async fn a_node_of_another_cluster_is_refused(mut world: impl World) {
    let one = world.start(node(1)).await;
    let stranger = Identity::node(ClusterId::new("another").unwrap(), 2);
    let _two = world.start(stranger).await;
    assert_ne!(CLUSTER, "another");
    let refused = one.open(&peer(&world, 2), Class::Control).await.unwrap_err();
    assert!(matches!(refused, TransportError::Refused { .. }), "{refused:?}");
}

pub async fn nobody_at_the_address_is_told_fast_and_found_later(mut world: impl World) {
    let one = world.start(node(1)).await;
    let first_life = world.start(node(2)).await;
    let peer = peer(&world, 2);
    first_life.shutdown().await;
    drop(first_life);
    let begun = Instant::now();
    let failed = one.open(&peer, Class::Control).await.unwrap_err();
    assert!(matches!(failed, TransportError::Unreachable { .. }), "{failed:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let two = world.start(node(2)).await;
    stream(&*one, &*two, &peer, Class::Control).await;
}

pub async fn during_the_backoff_the_answer_comes_at_once(mut world: impl World) {
    let one = world.start(node(1)).await;
    let peer = Peer {
        node_id: Some(9),
        address: world.address(9),
    };
    // Many calls, few attempts: most fall into a backoff.
    let begun = Instant::now();
    for _ in 0..200 {
        let failed = one.open(&peer, Class::Control).await.unwrap_err();
        assert!(matches!(failed, TransportError::Unreachable { .. }), "{failed:?}");
        tokio::task::yield_now().await;
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

pub async fn a_peer_that_restarts_is_reached_again(mut world: impl World) {
    let Pair {
        one,
        two,
        peer,
        mut opened,
        mut accepted,
    } = pair(&mut world).await;
    opened.sender.send("to the first life".into()).await.unwrap();
    assert_eq!(
        accepted.receiver.receive().await.unwrap(),
        Some("to the first life".into())
    );
    drop((two, accepted));
    let two = world.start(node(2)).await;
    // The old stream says that it broke, sooner or later; nothing of it reaches the second life.
    let broke = loop {
        if let Err(error) = opened.sender.send("lost".into()).await {
            break error;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    assert!(matches!(broke, TransportError::Broken { .. }), "{broke:?}");
    let (mut opened, mut incoming) = stream(&*one, &*two, &peer, Class::Append).await;
    opened.sender.send("to the second life".into()).await.unwrap();
    assert_eq!(
        incoming.stream.receiver.receive().await.unwrap(),
        Some("to the second life".into())
    );
}

pub async fn a_peer_that_shuts_down_ends_its_streams(mut world: impl World) {
    let Pair {
        one: _one,
        two,
        mut opened,
        mut accepted,
        ..
    } = pair(&mut world).await;
    two.shutdown().await;
    let theirs = opened.receiver.receive().await;
    assert!(matches!(theirs, Err(TransportError::Broken { .. })), "{theirs:?}");
    let own = accepted.receiver.receive().await;
    assert_eq!(own, Err(TransportError::Closed));
}

/// In the ancestor one failed send ended the sender to that peer for ever, and elections followed.
pub async fn a_cut_link_breaks_its_streams_and_comes_back(mut world: impl World) {
    let Pair {
        one,
        two,
        peer,
        mut opened,
        mut accepted,
    } = pair(&mut world).await;
    opened.sender.send("before".into()).await.unwrap();
    assert_eq!(accepted.receiver.receive().await.unwrap(), Some("before".into()));
    world.impair(2, Some(Impairment::Cut));
    let mut sent = 0;
    let failed = loop {
        match opened.sender.send("into the void".into()).await {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 10_000, "the loss of the link is never reported");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(matches!(failed, TransportError::Broken { .. }), "{failed:?}");
    let failed = one.open(&peer, Class::Append).await.err();
    assert!(
        matches!(failed, Some(TransportError::Unreachable { .. })),
        "{failed:?}"
    );
    world.impair(2, None);
    let healed = Instant::now();
    let (mut opened, mut incoming) = stream(&*one, &*two, &peer, Class::Append).await;
    assert!(
        healed.elapsed() < Duration::from_secs(5),
        "{:?}",
        healed.elapsed()
    );
    opened.sender.send("after".into()).await.unwrap();
    assert_eq!(
        incoming.stream.receiver.receive().await.unwrap(),
        Some("after".into())
    );
}

pub async fn many_streams_at_once_do_not_mix(mut world: impl World) {
    let one = world.start(node(1)).await;
    let two = world.start(node(2)).await;
    let peer = peer(&world, 2);
    echo(Arc::clone(&two));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..300_u32 {
        let (one, peer) = (Arc::clone(&one), peer.clone());
        tasks.spawn(async move {
            let mut stream = open(&*one, &peer, Class::Client).await;
            for n in 0..10 {
                let message = numbered(task * 1_000 + n, 200);
                stream.sender.send(message.clone()).await.unwrap();
                assert_eq!(stream.receiver.receive().await.unwrap(), Some(message));
            }
            stream.sender.finish().await.unwrap();
            assert_eq!(stream.receiver.receive().await.unwrap(), None);
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
}

pub async fn the_most_urgent_stream_is_accepted_first(mut world: impl World) {
    let one = world.start(node(1)).await;
    let two = world.start(node(2)).await;
    let peer = peer(&world, 2);
    let mut opened = Vec::new();
    for class in [Class::Bulk, Class::Client, Class::Append, Class::Control] {
        opened.push(open(&*one, &peer, class).await);
    }
    // All four wait over there once a fifth, opened after them on the same way, was answered.
    tokio::time::sleep(Duration::from_millis(200)).await;
    for class in Class::ALL {
        assert_eq!(two.accept().await.unwrap().class, class);
    }
}

pub async fn after_shutdown_nothing_opens_and_accept_ends(mut world: impl World) {
    let Pair {
        one,
        two: _two,
        peer,
        mut opened,
        accepted: _accepted,
    } = pair(&mut world).await;
    let waiting = {
        let one = Arc::clone(&one);
        tokio::spawn(async move { one.accept().await })
    };
    tokio::task::yield_now().await;
    one.shutdown().await;
    assert!(waiting.await.unwrap().is_none(), "an accept that waited");
    assert!(one.accept().await.is_none(), "an accept that came later");
    assert_eq!(
        one.open(&peer, Class::Control).await.err(),
        Some(TransportError::Closed)
    );
    assert_eq!(
        opened.sender.send("late".into()).await,
        Err(TransportError::Closed)
    );
    one.shutdown().await;
}

pub async fn the_round_trip_to_a_connected_node_is_known(mut world: impl World) {
    let one = world.start(node(1)).await;
    let two = world.start(node(2)).await;
    assert_eq!(one.round_trip(2), None);
    let peer = peer(&world, 2);
    let _stream = stream(&*one, &*two, &peer, Class::Control).await;
    let round_trip = one.round_trip(2).expect("it was measured by the handshake");
    assert!(round_trip < Duration::from_secs(1), "{round_trip:?}");
    assert_eq!(one.round_trip(3), None);
}

/// Whether the peer's end is noticed within some thirty probes. One that is not noticed is waited for so long; a slow
/// machine only makes that weaker.
async fn is_noticed_soon(one: &dyn Transport, peer: &Peer) -> bool {
    tokio::time::timeout(30 * PROBE_EVERY, one.ended(peer))
        .await
        .is_ok()
}

pub async fn the_end_of_a_process_is_noticed(mut world: impl World) {
    let Pair {
        one,
        two,
        peer,
        opened: _opened,
        accepted: _accepted,
    } = pair(&mut world).await;
    // Who never spoke with it knows its address alone.
    let three = world.start(node(3)).await;
    let watching = [one, three].map(|from| {
        let peer = peer.clone();
        tokio::spawn(async move { from.ended(&peer).await })
    });
    tokio::task::yield_now().await;
    world.kill(2, two).await;
    for watching in watching {
        watching.await.unwrap();
    }
}

pub async fn nothing_but_the_end_of_a_process_is_taken_for_it(mut world: impl World) {
    let Pair {
        one,
        two,
        peer,
        opened: _opened,
        accepted: _accepted,
    } = pair(&mut world).await;
    assert!(!is_noticed_soon(&*one, &peer).await, "it lives and is well");
    use Impairment::*;
    for impairment in [Cut, Deaf, Mute, Paused, Lossy] {
        world.impair(2, Some(impairment));
        assert!(!is_noticed_soon(&*one, &peer).await, "{impairment:?}");
        world.impair(2, None);
    }
    world.kill(2, two).await;
    one.ended(&peer).await;
}

pub async fn an_end_behind_a_broken_link_is_noticed_once_it_is_whole(mut world: impl World) {
    use Impairment::*;
    for impairment in [Cut, Deaf, Mute] {
        let Pair { one, two, peer, .. } = pair(&mut world).await;
        world.impair(2, Some(impairment));
        world.kill(2, two).await;
        assert!(!is_noticed_soon(&*one, &peer).await, "{impairment:?}");
        world.impair(2, None);
        one.ended(&peer).await;
    }
}

pub async fn an_end_is_noticed_though_most_probes_are_lost(mut world: impl World) {
    let Pair { one, two, peer, .. } = pair(&mut world).await;
    world.impair(2, Some(Impairment::Lossy));
    world.kill(2, two).await;
    one.ended(&peer).await;
}

pub async fn a_process_with_a_successor_has_not_ended(mut world: impl World) {
    let Pair { one, two, peer, .. } = pair(&mut world).await;
    world.kill(2, two).await;
    let _successor = world.start(node(2)).await;
    assert!(!is_noticed_soon(&*one, &peer).await);
}

pub async fn after_shutdown_no_end_is_noticed(mut world: impl World) {
    let Pair { one, two, peer, .. } = pair(&mut world).await;
    one.shutdown().await;
    world.kill(2, two).await;
    assert!(!is_noticed_soon(&*one, &peer).await);
}
