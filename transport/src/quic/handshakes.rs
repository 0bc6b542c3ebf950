//! The handshakes under way: how many, and whose.
//!
//! Whoever sends a first packet is a stranger until the handshake is through. It costs the acceptor memory and time, and
//! costs the stranger next to nothing; where addresses are not validated, not even an address of its own.
//!
//! Pure: the owner brings the time.
//!
//! Always: no more than the bound are under way; from the number on at which addresses are validated, no handshake is
//! begun with an address that may be forged; a source that holds more than another never keeps it out; nobody is
//! displaced by one of the same source before its time.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use tokio::time::Instant;

/// Where a handshake comes from, as far as one stranger may choose it: an address of IPv4, or a network of IPv6, of which
/// a host has 64 bits to itself (RFC 4291, 2.5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self(ip.into()),
            IpAddr::V6(ip) => {
                let [a, b, c, d, ..] = ip.segments();
                Self(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
            }
        }
    }
}

/// What is done with a handshake that begins.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<T> {
    /// It goes on, in place of another one, if any. The number ends it.
    Begun { id: u64, displaced: Option<T> },
    /// Its address has to be validated first.
    Validate,
    /// There is no place.
    Full,
}

/// The handshakes under way, each with what ends it.
#[derive(Debug)]
pub(super) struct Handshakes<T> {
    max: usize,
    /// So many may be under way before addresses are validated.
    unvalidated_max: usize,
    /// What has lasted so long does not go on: it may be displaced by anyone.
    patience: Duration,
    next_id: u64,
    /// In the order of their beginning.
    under_way: BTreeMap<u64, Handshake<T>>,
    of_source: BTreeMap<Source, usize>,
}

#[derive(Debug)]
struct Handshake<T> {
    source: Source,
    begun: Instant,
    end: T,
}

impl<T> Handshakes<T> {
    pub(super) fn new(max: usize, unvalidated_max: usize, patience: Duration) -> Self {
        Self {
            max,
            unvalidated_max,
            patience,
            next_id: 0,
            under_way: BTreeMap::new(),
            of_source: BTreeMap::new(),
        }
    }

    /// One more asks to begin. `end` ends it, if it is begun and displaced later.
    pub(super) fn begin(&mut self, source: Source, validated: bool, now: Instant, end: T) -> Answer<T> {
        if !validated && self.under_way.len() >= self.unvalidated_max {
            return Answer::Validate;
        }
        let displaced = match self.under_way.len() < self.max {
            true => None,
            false => match self.displaceable(source, now) {
                Some(id) => self.remove(id),
                None => return Answer::Full,
            },
        };
        let id = self.next_id;
        self.next_id += 1;
        let begun = now;
        self.under_way.insert(id, Handshake { source, begun, end });
        *self.of_source.entry(source).or_default() += 1;
        self.check();
        Answer::Begun { id, displaced }
    }

    /// One is over, however it ended. One that was displaced is over already.
    pub(super) fn over(&mut self, id: u64) {
        self.remove(id);
        self.check();
    }

    pub(super) fn count(&self) -> usize {
        self.under_way.len()
    }

    /// Whose place a newcomer may have: the oldest of the source that holds most, if it holds more than the newcomer's
    /// would then; else the oldest of all, if it does not go on.
    fn displaceable(&self, newcomer: Source, now: Instant) -> Option<u64> {
        let held = |source| self.of_source.get(source).copied().unwrap_or_default();
        let (most, count) = self.of_source.iter().max_by_key(|(_, count)| **count)?;
        if *count > held(&newcomer) + 1 {
            let theirs = |(_, handshake): &(&u64, &Handshake<T>)| handshake.source == *most;
            return self.under_way.iter().find(theirs).map(|(id, _)| *id);
        }
        let (id, oldest) = self.under_way.first_key_value()?;
        (now.duration_since(oldest.begun) >= self.patience).then_some(*id)
    }

    fn remove(&mut self, id: u64) -> Option<T> {
        let Handshake { source, end, .. } = self.under_way.remove(&id)?;
        if let Some(count) = self.of_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.of_source.remove(&source);
            }
        }
        Some(end)
    }

    fn check(&self) {
        debug_assert!(
            self.under_way.len() <= self.max,
            "{} are under way",
            self.under_way.len()
        );
        debug_assert_eq!(self.of_source.values().sum::<usize>(), self.under_way.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(500);

    fn source(text: &str) -> Source {
        text.parse::<IpAddr>().unwrap().into()
    }

    /// Three places, each named by when it was taken.
    fn three() -> (Handshakes<&'static str>, Instant) {
        (Handshakes::new(3, 3, PATIENCE), Instant::now())
    }

    fn displaced<T>(answer: Answer<T>) -> Option<T> {
        match answer {
            Answer::Begun { displaced, .. } => displaced,
            Answer::Validate | Answer::Full => panic!("it did not begin"),
        }
    }

    #[test]
    fn addresses_are_validated_once_more_than_a_few_handshakes_are_under_way() {
        let (now, a) = (Instant::now(), source("10.0.0.1"));
        let mut handshakes = Handshakes::new(8, 2, PATIENCE);
        let ids = [(); 2].map(|()| match handshakes.begin(a, false, now, ()) {
            Answer::Begun { id, displaced: None } => id,
            other => panic!("{other:?}"),
        });
        assert_eq!(handshakes.begin(a, false, now, ()), Answer::Validate);
        assert!(matches!(handshakes.begin(a, true, now, ()), Answer::Begun { .. }));
        for id in ids {
            handshakes.over(id);
        }
        assert!(matches!(
            handshakes.begin(a, false, now, ()),
            Answer::Begun { .. }
        ));
    }

    #[test]
    fn whoever_holds_most_gives_way_to_one_who_holds_less() {
        let (mut handshakes, now) = three();
        let (many, few) = (source("10.0.0.1"), source("10.0.0.2"));
        for name in ["first", "second", "third"] {
            assert_eq!(displaced(handshakes.begin(many, true, now, name)), None);
        }
        assert_eq!(displaced(handshakes.begin(few, true, now, "few")), Some("first"));
        // Two of one and one of the other is as even as three can be.
        assert_eq!(handshakes.begin(few, true, now, "more"), Answer::Full);
        assert_eq!(handshakes.begin(many, true, now, "more"), Answer::Full);
        assert_eq!(handshakes.count(), 3);
    }

    #[test]
    fn what_does_not_go_on_gives_way_to_anyone_after_a_while() {
        let (mut handshakes, begun) = three();
        let same = source("10.0.0.1");
        for (name, after) in [("first", 0), ("second", 200), ("third", 400)] {
            let now = begun + Duration::from_millis(after);
            displaced(handshakes.begin(same, true, now, name));
        }
        let early = begun + PATIENCE - Duration::from_nanos(1);
        assert_eq!(handshakes.begin(same, true, early, "early"), Answer::Full);
        let answer = handshakes.begin(same, true, begun + PATIENCE, "late");
        assert_eq!(displaced(answer), Some("first"));
        assert_eq!(
            handshakes.begin(same, true, begun + PATIENCE, "later"),
            Answer::Full
        );
    }

    #[test]
    fn one_that_was_displaced_is_not_counted_down_twice() {
        let (mut handshakes, now) = three();
        let (many, few) = (source("10.0.0.1"), source("10.0.0.2"));
        let ids = ["first", "second", "third"].map(|name| match handshakes.begin(many, true, now, name) {
            Answer::Begun { id, .. } => id,
            other => panic!("{other:?}"),
        });
        displaced(handshakes.begin(few, true, now, "few"));
        handshakes.over(ids[0]);
        assert_eq!(handshakes.count(), 3);
        handshakes.over(ids[1]);
        assert_eq!(handshakes.count(), 2);
    }

    #[test]
    fn a_host_is_one_source_whatever_address_of_its_network_it_takes() {
        assert_eq!(source("2001:db8:0:1::1"), source("2001:db8:0:1:ffff::2"));
        assert_ne!(source("2001:db8:0:1::1"), source("2001:db8:0:2::1"));
        assert_eq!(source("::ffff:10.0.0.1"), source("10.0.0.1"));
        assert_ne!(source("10.0.0.1"), source("10.0.0.2"));
    }
}
