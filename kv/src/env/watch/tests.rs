use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;

use super::*;

#[test]
fn the_first_value_counts_as_seen() {
    let (_tx, mut rx) = channel(1);
    assert_eq!(rx.changed().now_or_never(), None);
    assert_eq!(rx.has_changed(), Ok(false));
    assert_eq!(*rx.borrow(), 1);
}

#[test]
fn only_the_newest_of_several_values_is_seen() {
    let (tx, mut rx) = channel(0);
    tx.send(1).unwrap();
    tx.send(2).unwrap();
    assert_eq!(rx.changed().now_or_never(), Some(Ok(())));
    assert_eq!(*rx.borrow(), 2);
    assert_eq!(rx.changed().now_or_never(), None);
}

#[test]
fn the_last_value_is_seen_before_the_senders_end() {
    let (tx, mut rx) = channel(0);
    tx.send(1).unwrap();
    drop(tx);
    assert_eq!(rx.changed().now_or_never(), Some(Ok(())));
    assert_eq!(*rx.borrow(), 1);
    assert_eq!(rx.changed().now_or_never(), Some(Err(RecvError)));
}

#[test]
fn a_waiting_receiver_hears_of_the_senders_end() {
    let (tx, mut rx) = channel(0);
    let second = tx.clone();
    let mut waiting = Box::pin(rx.changed());
    assert_eq!(waiting.as_mut().now_or_never(), None);
    drop(tx);
    assert_eq!(waiting.as_mut().now_or_never(), None, "a sender is left");
    drop(second);
    assert_eq!(waiting.now_or_never(), Some(Err(RecvError)));
}

#[test]
fn a_send_without_receivers_gives_the_value_back_and_a_replace_keeps_it() {
    let (tx, rx) = channel(0);
    drop(rx);
    assert_eq!(tx.send(1), Err(SendError(1)));
    assert_eq!(tx.send_replace(2), 0);
    assert_eq!(*tx.subscribe().borrow(), 2);
}

#[test]
fn an_unmodified_value_wakes_nobody() {
    let (tx, mut rx) = channel(5);
    assert!(!tx.send_if_modified(|_| false));
    assert_eq!(rx.changed().now_or_never(), None);
    assert!(tx.send_if_modified(|v| {
        *v += 1;
        true
    }));
    assert_eq!(rx.changed().now_or_never(), Some(Ok(())));
    assert_eq!(*rx.borrow(), 6);
}

#[test]
fn a_sender_hears_when_the_last_receiver_has_gone() {
    let (tx, rx) = channel(0);
    let other = rx.clone();
    let mut closed = Box::pin(tx.closed());
    assert_eq!(closed.as_mut().now_or_never(), None);
    drop(rx);
    assert_eq!(closed.as_mut().now_or_never(), None);
    drop(other);
    assert_eq!(closed.now_or_never(), Some(()));
}

#[test]
fn waiting_for_a_condition_looks_at_the_present_value_first() {
    let (tx, mut rx) = channel(3);
    assert_eq!(
        rx.wait_for(|v| *v >= 3).now_or_never().map(|r| r.map(|v| *v)),
        Some(Ok(3))
    );
    tx.send(7).unwrap();
    assert_eq!(
        rx.wait_for(|v| *v == 7).now_or_never().map(|r| r.map(|v| *v)),
        Some(Ok(7))
    );
    assert_eq!(rx.has_changed(), Ok(false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wake_up_is_lost_between_threads() {
    const LAST: u64 = 20_000;
    let (tx, rx) = channel(0_u64);
    let slowest = Arc::new(AtomicU64::new(0));
    let watchers: Vec<_> = (0..4)
        .map(|_| {
            let (mut rx, slowest) = (rx.clone(), Arc::clone(&slowest));
            crate::env::spawn("watcher", async move {
                let mut before = 0;
                while before < LAST {
                    rx.changed().await.unwrap();
                    let now = *rx.borrow_and_update();
                    assert!(now >= before, "went back from {before} to {now}");
                    before = now;
                }
                slowest.fetch_add(1, Ordering::SeqCst);
            })
        })
        .collect();
    let sender = crate::env::spawn_blocking(move || {
        for value in 1..=LAST {
            tx.send(value).unwrap();
        }
        tx
    });
    let _tx = sender.await.unwrap();
    for watcher in watchers {
        crate::env::timeout(Duration::from_secs(20), watcher)
            .await
            .expect("a watcher waits for a value that was sent")
            .unwrap();
    }
    assert_eq!(slowest.load(Ordering::SeqCst), 4);
}
