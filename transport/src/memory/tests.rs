//! The script of the network in memory, on a clock and an executor of a few lines: no tokio runtime is there,
//! as there is none under a simulator. Time moves only when nothing else can.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, Either, poll_fn, select};

use super::{Clock, LinkSettings, MemoryNetwork, MemoryTransport};
use crate::{Class, ClusterId, Identity, Peer, Stream, Transport as _, TransportError};

const ONE: &str = "one:1";
const TWO: &str = "two:1";

/// Who is to be woken when; the number tells timers of one moment apart.
type Timers = BTreeMap<(Duration, u64), Waker>;

/// Time that a test moves.
#[derive(Debug, Default)]
struct VirtualClock {
    state: Mutex<(Duration, Timers)>,
    timers: AtomicU64,
    random: AtomicU64,
}

/// The handle to it.
#[derive(Debug, Clone, Default)]
struct Time(Arc<VirtualClock>);

impl Clock for Time {
    fn now(&self) -> Duration {
        self.0.state.lock().unwrap().0
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let clock = Arc::clone(&self.0);
        let until = self.now() + duration;
        let timer = clock.timers.fetch_add(1, Ordering::Relaxed);
        Box::pin(poll_fn(move |context| {
            let mut state = clock.state.lock().unwrap();
            if state.0 >= until {
                return Poll::Ready(());
            }
            state.1.insert((until, timer), context.waker().clone());
            Poll::Pending
        }))
    }

    fn random(&self) -> u64 {
        let step = self.0.random.fetch_add(1, Ordering::Relaxed) + 1;
        let mixed = step.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        mixed.wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 7
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Time {
    /// Runs a test to its end.
    fn run<T>(&self, test: impl Future<Output = T>) -> T {
        let woken = Arc::new(Flag(AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        let mut test = pin!(test);
        loop {
            if let Poll::Ready(outcome) = test.as_mut().poll(&mut context) {
                return outcome;
            }
            while !woken.0.swap(false, Ordering::Relaxed) {
                let mut state = self.0.state.lock().unwrap();
                let ((until, _), waker) = state.1.pop_first().expect("all wait and no timer runs");
                state.0 = state.0.max(until);
                drop(state);
                waker.wake();
            }
        }
    }

    /// The outcome, unless it takes longer.
    async fn within<T>(&self, duration: Duration, future: impl Future<Output = T>) -> Option<T> {
        match select(pin!(future), self.sleep(duration)).await {
            Either::Left((outcome, _)) => Some(outcome),
            Either::Right(_) => None,
        }
    }
}

struct Pair {
    time: Time,
    network: MemoryNetwork,
    one: Arc<MemoryTransport>,
    two: Arc<MemoryTransport>,
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn node(id: u64) -> Identity {
    Identity::node(ClusterId::new("tested").unwrap(), id)
}

fn pair(latency: Duration) -> Pair {
    let time = Time::default();
    let network = MemoryNetwork::new(Arc::new(time.clone()));
    network.set_links(LinkSettings::latency(latency, latency));
    let one = network.transport(node(1), ONE);
    let two = network.transport(node(2), TWO);
    Pair {
        time,
        network,
        one,
        two,
    }
}

/// Runs a test over two nodes.
fn over(latency: Duration, test: impl AsyncFnOnce(&Pair)) {
    let pair = pair(latency);
    pair.time.run(test(&pair));
}

fn to_two() -> Peer {
    Peer {
        node_id: Some(2),
        address: TWO.parse().unwrap(),
    }
}

async fn stream(pair: &Pair, class: Class) -> (Stream, Stream) {
    let opened = pair.one.open(&to_two(), class).await.unwrap();
    (opened, pair.two.accept().await.unwrap().stream)
}

/// Whether nothing comes for so long.
async fn is_silent(pair: &Pair, stream: &mut Stream, duration: Duration) -> bool {
    pair.time
        .within(duration, stream.receiver.receive())
        .await
        .is_none()
}

#[test]
fn a_message_takes_the_latency_of_its_link() {
    over(millis(30), async |pair| {
        let (mut opened, mut accepted) = stream(pair, Class::Append).await;
        let sent = pair.time.now();
        opened.sender.send("hello".into()).await.unwrap();
        accepted.receiver.receive().await.unwrap();
        assert!(
            (pair.time.now() - sent) == millis(30),
            "{:?}",
            (pair.time.now() - sent)
        );
        assert_eq!(pair.one.round_trip(2), Some(millis(60)));
    });
}

#[test]
fn a_cut_that_heals_in_time_delays_and_loses_nothing() {
    over(millis(1), async |pair| {
        let (mut opened, mut accepted) = stream(pair, Class::Append).await;
        pair.network.cut(ONE, TWO);
        opened.sender.send("held".into()).await.unwrap();
        assert!(is_silent(pair, &mut accepted, millis(2_000)).await);
        pair.network.heal(ONE, TWO);
        assert_eq!(accepted.receiver.receive().await.unwrap(), Some("held".into()));
    });
}

#[test]
fn a_cut_one_way_breaks_both_ends_after_the_idle_timeout() {
    over(millis(1), async |pair| {
        let (mut opened, mut accepted) = stream(pair, Class::Append).await;
        pair.network.cut_one_way(ONE, TWO);
        let cut = pair.time.now();
        for end in [&mut opened, &mut accepted] {
            let broke = end.receiver.receive().await;
            assert!(matches!(broke, Err(TransportError::Broken { .. })), "{broke:?}");
            assert!(
                (pair.time.now() - cut) >= millis(3_000) && (pair.time.now() - cut) <= millis(3_010),
                "{:?}",
                (pair.time.now() - cut)
            );
        }
    });
}

#[test]
fn a_cut_that_lasted_too_long_breaks_even_what_nobody_looked_at_meanwhile() {
    over(millis(1), async |pair| {
        let (mut opened, mut accepted) = stream(pair, Class::Append).await;
        pair.network.cut(ONE, TWO);
        pair.time.sleep(millis(3_500)).await;
        pair.network.heal_all();
        assert!(opened.sender.send("late".into()).await.is_err());
        assert!(accepted.receiver.receive().await.is_err());
        // And a new stream works at once.
        stream(pair, Class::Append).await;
    });
}

#[test]
fn a_half_open_link_carries_requests_and_swallows_replies_for_as_long_as_it_lasts() {
    over(millis(1), async |pair| {
        let (mut opened, mut accepted) = stream(pair, Class::Append).await;
        pair.network.half_open(ONE, TWO);
        opened.sender.send("request".into()).await.unwrap();
        assert_eq!(accepted.receiver.receive().await.unwrap(), Some("request".into()));
        accepted.sender.send("reply".into()).await.unwrap();
        assert!(is_silent(pair, &mut opened, millis(60_000)).await);
        pair.network.heal(ONE, TWO);
        assert_eq!(opened.receiver.receive().await.unwrap(), Some("reply".into()));
    });
}

#[test]
fn streams_that_are_made_to_fail_fail_on_both_ends_and_new_ones_work() {
    over(millis(1), async |pair| {
        let (mut opened, mut accepted) = stream(pair, Class::Control).await;
        pair.network.fail_streams(ONE, TWO);
        assert!(opened.sender.send("a".into()).await.is_err());
        assert!(accepted.sender.send("b".into()).await.is_err());
        stream(pair, Class::Control).await;
    });
}

#[test]
fn a_partition_separates_its_groups_alone() {
    over(millis(1), async |pair| {
        let third = pair.network.transport(node(3), "three:1");
        pair.network.partition(&[&[ONE, "three:1"], &[TWO]]);
        let unreachable = pair.one.open(&to_two(), Class::Control).await;
        assert!(
            matches!(unreachable, Err(TransportError::Unreachable { .. })),
            "{unreachable:?}"
        );
        let to_three = Peer {
            node_id: Some(3),
            address: "three:1".parse().unwrap(),
        };
        let _opened = pair.one.open(&to_three, Class::Control).await.unwrap();
        third.accept().await.unwrap();
    });
}

#[test]
fn nothing_of_an_earlier_life_reaches_the_next() {
    over(millis(10), async |pair| {
        let (mut opened, accepted) = stream(pair, Class::Append).await;
        opened.sender.send("to the first".into()).await.unwrap();
        let _waiting = pair.one.open(&to_two(), Class::Client).await.unwrap();
        let second = pair.network.transport(node(2), TWO);
        // The first life's own handles are dead at once.
        let mut accepted = accepted;
        assert_eq!(accepted.receiver.receive().await, Err(TransportError::Closed));
        assert!(pair.two.accept().await.is_none());
        // The peer learns it as soon as the second life has answered.
        let broke = opened.receiver.receive().await;
        assert!(matches!(broke, Err(TransportError::Broken { .. })), "{broke:?}");
        let nothing = pair.time.within(millis(10_000), second.accept()).await;
        assert!(nothing.is_none(), "a stream of the earlier life was accepted");
        let _opened = pair.one.open(&to_two(), Class::Append).await.unwrap();
        second.accept().await.unwrap();
    });
}

/// As over QUIC: what a process sent before it was killed is under way, and who receives it knows of no death yet.
#[test]
fn what_a_killed_process_had_sent_arrives_with_its_successor_there_already() {
    over(millis(20), async |pair| {
        let (mut opened, mut accepted) = stream(pair, Class::Append).await;
        opened.sender.send("of the first life".into()).await.unwrap();
        let _successor = pair.network.transport(node(1), ONE);
        assert_eq!(
            accepted.receiver.receive().await,
            Ok(Some("of the first life".into()))
        );
        assert_eq!(pair.network.late_messages(), 1);
        let ended = accepted.receiver.receive().await;
        assert!(matches!(ended, Err(TransportError::Broken { .. })), "{ended:?}");
    });
}

#[test]
fn a_crash_is_noticed_by_silence() {
    over(millis(1), async |pair| {
        let (mut opened, _accepted) = stream(pair, Class::Append).await;
        let crashed = pair.time.now();
        pair.network.crash(TWO);
        opened.receiver.receive().await.unwrap_err();
        assert!(
            (pair.time.now() - crashed) >= millis(3_000),
            "{:?}",
            (pair.time.now() - crashed)
        );
        let failed = pair.one.open(&to_two(), Class::Append).await;
        assert!(
            matches!(failed, Err(TransportError::Unreachable { .. })),
            "{failed:?}"
        );
    });
}

#[test]
fn control_overtakes_bulk_on_a_slow_link() {
    over(millis(1), async |pair| {
        let slow = LinkSettings {
            bytes_per_second: Some(1_000_000),
            ..LinkSettings::latency(millis(1), millis(1))
        };
        pair.network.set_links(slow);
        let (mut bulk, mut bulk_end) = stream(pair, Class::Bulk).await;
        let (mut control, mut control_end) = stream(pair, Class::Control).await;
        let begun = pair.time.now();
        bulk.sender.send(Bytes::from(vec![0; 2_000_000])).await.unwrap();
        control.sender.send("vote".into()).await.unwrap();
        control_end.receiver.receive().await.unwrap();
        assert!(
            (pair.time.now() - begun) < millis(10),
            "{:?}",
            (pair.time.now() - begun)
        );
        bulk_end.receiver.receive().await.unwrap();
        assert!(
            (pair.time.now() - begun) >= millis(2_000),
            "{:?}",
            (pair.time.now() - begun)
        );
    });
}

#[test]
fn lost_messages_come_late_and_in_order() {
    over(millis(1), async |pair| {
        let lossy = LinkSettings {
            loss_per_million: 300_000,
            ..LinkSettings::latency(millis(1), millis(3))
        };
        pair.network.set_links(lossy);
        let (mut opened, mut accepted) = stream(pair, Class::Append).await;
        let begun = pair.time.now();
        for n in 0..200_u32 {
            opened
                .sender
                .send(Bytes::copy_from_slice(&n.to_be_bytes()))
                .await
                .unwrap();
        }
        for n in 0..200_u32 {
            let received = accepted.receiver.receive().await.unwrap().unwrap();
            assert_eq!(received[..], n.to_be_bytes());
        }
        assert!(
            (pair.time.now() - begun) >= millis(50),
            "no loss was felt: {:?}",
            (pair.time.now() - begun)
        );
    });
}

/// The same seed twice, and every arrival at the same time.
#[test]
fn the_same_calls_with_the_same_seed_have_the_same_outcome() {
    let run = || {
        let mut trace = Vec::new();
        over(millis(1), async |pair| {
            let lossy = LinkSettings {
                loss_per_million: 100_000,
                ..LinkSettings::latency(millis(1), millis(40))
            };
            pair.network.set_links(lossy);
            let (mut opened, mut accepted) = stream(pair, Class::Append).await;
            for n in 0..100_u8 {
                opened.sender.send(Bytes::copy_from_slice(&[n])).await.unwrap();
                let mut messages = Vec::new();
                accepted.receiver.receive_many(&mut messages).await.unwrap();
                trace.push((pair.time.now(), messages));
            }
        });
        trace
    };
    assert_eq!(run(), run());
}

#[test]
fn streams_that_are_over_are_forgotten() {
    over(millis(1), async |pair| {
        for _ in 0..20 {
            let (opened, accepted) = stream(pair, Class::Client).await;
            opened.sender.finish().await.unwrap();
            drop(accepted);
        }
        assert_eq!(pair.network.pipe_count(), 0);
    });
}

#[test]
fn the_end_of_a_process_is_known_after_a_probe_and_two_round_trips() {
    over(millis(10), async |pair| {
        let peer = to_two();
        let dies = async {
            pair.time.sleep(millis(1_234)).await;
            pair.network.crash(TWO);
            pair.time.now()
        };
        let (died, noticed) = futures_util::future::join(dies, async {
            pair.one.ended(&peer).await;
            pair.time.now()
        })
        .await;
        let took = noticed - died;
        assert!(took >= millis(40) && took <= millis(140), "{took:?}");
    });
}

#[test]
fn a_host_without_power_says_nothing_of_its_process() {
    over(millis(1), async |pair| {
        let peer = to_two();
        for after_a_crash in [false, true] {
            if after_a_crash {
                pair.network.crash(TWO);
            }
            pair.network.vanish(TWO);
            let noticed = pair.time.within(millis(60_000), pair.one.ended(&peer)).await;
            assert!(noticed.is_none());
            // It is up again with its process, and without.
            let again = pair.network.transport(node(2), TWO);
            let noticed = pair.time.within(millis(60_000), pair.one.ended(&peer)).await;
            assert!(noticed.is_none());
            again.shutdown().await;
            pair.one.ended(&peer).await;
        }
    });
}
