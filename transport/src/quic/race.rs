//! Attempts at several addresses of one peer, as Happy Eyeballs has them (RFC 8305).
//!
//! Always: an address that does not answer delays the next one by [`STAGGER`] at most, and every address is tried before
//! the time is over; the first attempt that succeeds ends the others; a peer that refuses is told so, whatever the
//! other addresses did.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use crate::TransportError;

/// How long an attempt is alone before the next one begins (RFC 8305, 5).
const STAGGER: Duration = Duration::from_millis(250);

/// More addresses than that of one name are not tried.
const ADDRESSES_MAX: usize = 16;

/// The families in turn, beginning with the preferred one; the order inside each stays (RFC 8305, 4).
pub(super) fn in_turn(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(preferred) = addresses.first().map(SocketAddr::is_ipv6) else {
        return addresses;
    };
    let (mut some, mut others): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == preferred);
    let mut turns = Vec::with_capacity(some.len() + others.len());
    some.reverse();
    others.reverse();
    while let Some(address) = some.pop().or_else(|| others.pop()) {
        turns.push(address);
        turns.extend(others.pop());
    }
    turns.truncate(ADDRESSES_MAX);
    turns
}

/// The first success of attempts at these addresses, begun one after the other; else the failure that says most.
/// `silence` is the failure of a peer that did not answer in time.
pub(super) async fn first<T, A: Future<Output = Result<T, TransportError>>>(
    addresses: Vec<SocketAddr>,
    within: Duration,
    attempt: impl Fn(SocketAddr) -> A,
    silence: TransportError,
) -> Result<T, TransportError> {
    let begun = Instant::now();
    let deadline = begun + within;
    let stagger = STAGGER.min(within / u32::try_from(addresses.len() + 1).unwrap_or(u32::MAX));
    let mut waiting = addresses.into_iter();
    let mut under_way = FuturesUnordered::new();
    let mut failure: Option<TransportError> = None;
    loop {
        match waiting.next() {
            Some(address) => under_way.push(attempt(address)),
            None if under_way.is_empty() => return Err(failure.unwrap_or(silence)),
            None => {}
        }
        let next = match waiting.len() {
            0 => deadline,
            _ => deadline.min(Instant::now() + stagger),
        };
        tokio::select! {
            Some(outcome) = under_way.next() => match outcome {
                Ok(reached) => return Ok(reached),
                Err(error) if matches!(failure, Some(TransportError::Refused { .. })) => drop(error),
                Err(error) => failure = Some(error),
            },
            () = sleep_until(next) => {}
        }
        if Instant::now() >= deadline {
            let told = failure.filter(|failure| matches!(failure, TransportError::Refused { .. }));
            return Err(told.unwrap_or(silence));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn failed(reason: &str) -> TransportError {
        TransportError::Unreachable {
            address: "there:1".to_owned(),
            reason: reason.to_owned(),
        }
    }

    fn refused() -> TransportError {
        TransportError::Refused {
            address: "there:1".to_owned(),
            because: crate::RefusedBecause::WrongNode,
            reason: "no".to_owned(),
        }
    }

    /// What the race says when the n-th address behaves like the n-th of these: how long it takes, and how it ends.
    async fn race(
        of: Vec<(Duration, Result<&'static str, TransportError>)>,
    ) -> (Duration, Result<&'static str, TransportError>) {
        let places = (1..=of.len())
            .map(|n| SocketAddr::from(([10, 0, 0, n as u8], 7001)))
            .collect();
        let begun = Instant::now();
        let attempt = |address: SocketAddr| {
            let (takes, outcome) = match address.ip() {
                std::net::IpAddr::V4(ip) => of[usize::from(ip.octets()[3]) - 1].clone(),
                std::net::IpAddr::V6(_) => unreachable!("all are of IPv4"),
            };
            async move {
                tokio::time::sleep(takes).await;
                outcome
            }
        };
        let outcome = first(places, Duration::from_secs(2), attempt, failed("silence")).await;
        (begun.elapsed(), outcome)
    }

    const NEVER: Duration = Duration::from_secs(3_600);
    const SOON: Duration = Duration::from_millis(30);

    #[test]
    fn families_take_turns_and_their_order_stays() {
        let mixed = ["[::1]:1", "[::2]:1", "[::3]:1", "10.0.0.1:1", "10.0.0.2:1"];
        let turns = in_turn(addresses(&mixed));
        let expected = ["[::1]:1", "10.0.0.1:1", "[::2]:1", "10.0.0.2:1", "[::3]:1"];
        assert_eq!(turns, addresses(&expected));
        assert_eq!(in_turn(Vec::new()), Vec::new());
        let one_family = addresses(&["10.0.0.2:1", "10.0.0.1:1"]);
        assert_eq!(in_turn(one_family.clone()), one_family);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_does_not_answer_delays_the_next_by_a_quarter_of_a_second() {
        let (took, outcome) = race(vec![(NEVER, Ok("first")), (SOON, Ok("second"))]).await;
        assert_eq!(outcome, Ok("second"));
        assert_eq!(took, STAGGER + SOON);
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_address_is_tried_at_once_when_one_fails() {
        let (took, outcome) = race(vec![(SOON, Err(failed("closed"))), (SOON, Ok("second"))]).await;
        assert_eq!((took, outcome), (2 * SOON, Ok("second")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_address_may_win_though_the_next_one_was_begun() {
        let slow = STAGGER + SOON;
        let (took, outcome) = race(vec![(slow, Ok("first")), (NEVER, Ok("second"))]).await;
        assert_eq!((took, outcome), (slow, Ok("first")));
    }

    #[tokio::test(start_paused = true)]
    async fn many_addresses_share_the_time_so_that_the_last_has_its_part() {
        let mut all = vec![(NEVER, Ok("none")); ADDRESSES_MAX - 1];
        all.push((SOON, Ok("last")));
        let (took, outcome) = race(all).await;
        assert_eq!(outcome, Ok("last"));
        assert!(took < Duration::from_secs(2), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_told_whatever_the_others_do() {
        for other in [(NEVER, Ok("never")), (SOON, Err(failed("closed")))] {
            for refusing in [0, 1] {
                let mut both = vec![other.clone()];
                both.insert(refusing, (SOON, Err(refused())));
                assert_eq!(race(both).await.1, Err(refused()));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_of_all_lasts_for_the_time_that_was_given() {
        let (took, outcome) = race(vec![(NEVER, Ok("a")), (NEVER, Ok("b"))]).await;
        assert_eq!((took, outcome), (Duration::from_secs(2), Err(failed("silence"))));
        let (_, outcome) = race(vec![(SOON, Err(failed("a"))), (2 * SOON, Err(failed("b")))]).await;
        assert_eq!(outcome, Err(failed("b")));
    }
}
