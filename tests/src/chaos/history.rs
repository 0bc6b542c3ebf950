//! What the callers of a store saw, and whether one order of revisions explains all of it.
//!
//! Pure: events in, verdict out. The store gives each write a revision, so no search is needed: the revisions
//! ARE the order, and what remains is to check that it agrees with time and with every value that was seen.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_kv::model::Revision;

/// A call, as its caller saw it.
#[derive(Debug, Clone)]
pub struct Event {
    /// When the caller began, since the start of the history.
    pub begun: Duration,
    /// When it was answered, or gave up.
    pub ended: Duration,
    /// The key, or the keys of one transaction.
    pub keys: Vec<String>,
    /// What it did and what came of it.
    pub deed: Deed,
}

/// What a call did. Every value is written by one call only.
#[derive(Debug, Clone)]
pub enum Deed {
    /// Wrote `value` to all of the event's keys in one transaction.
    Write {
        /// The value.
        value: String,
        /// The revision, when the write was acknowledged; `None` when its outcome is not known.
        revision: Option<Revision>,
    },
    /// Read the event's one key, linearizably.
    Read {
        /// What was there: the value, and the revision that wrote it.
        found: Option<(String, Revision)>,
        /// The revision of the state that was read.
        at: Revision,
    },
}

/// A key at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Last {
    /// Its value.
    pub value: String,
    /// The revision that wrote it.
    pub revision: Revision,
    /// How often it was written.
    pub version: u64,
}

/// Checks a history against the state at its end; answers everything that no order explains.
///
/// Demanded: an acknowledged write took effect once, at its revision; one of unknown outcome at most once; a call
/// that began after another had ended saw or made a later revision; a read saw the newest write at or below its
/// revision.
pub fn check(events: &[Event], last: &BTreeMap<String, Last>) -> Vec<String> {
    let mut wrong = Vec::new();
    real_time(events, &mut wrong);
    let keys = Keys::gather(events, &mut wrong);
    keys.check_last(last, &mut wrong);
    for event in events {
        if let Deed::Read { found, at } = &event.deed {
            keys.check_read(event, found.as_ref(), *at, &mut wrong);
        }
    }
    wrong
}

/// Revisions never fall along real time.
fn real_time(events: &[Event], wrong: &mut Vec<String>) {
    let point = |event: &Event| match &event.deed {
        Deed::Write { revision, .. } => revision.map(|revision| (revision, true)),
        Deed::Read { at, .. } => Some((*at, false)),
    };
    let mut by_begin: Vec<_> = events.iter().filter_map(|e| Some((e, point(e)?))).collect();
    let mut by_end = by_begin.clone();
    by_begin.sort_by_key(|(event, _)| event.begun);
    by_end.sort_by_key(|(event, _)| event.ended);
    let mut ended = by_end.into_iter().peekable();
    let mut newest: Option<(&Event, Revision)> = None;
    for (event, (revision, writes)) in by_begin {
        while let Some((before, (revision, _))) = ended.next_if(|(before, _)| before.ended < event.begun) {
            if newest.is_none_or(|(_, newest)| revision > newest) {
                newest = Some((before, revision));
            }
        }
        if let Some((before, newest)) = newest {
            let later = if writes {
                revision > newest
            } else {
                revision >= newest
            };
            if !later {
                wrong.push(format!(
                    "time ran backwards: {event:?} began after {before:?} had ended"
                ));
            }
        }
    }
}

/// The writes of each key: by revision, and those of unknown outcome.
struct Keys<'a> {
    acknowledged: BTreeMap<&'a str, BTreeMap<Revision, &'a str>>,
    unknown: BTreeMap<&'a str, Vec<&'a str>>,
}

impl<'a> Keys<'a> {
    fn gather(events: &'a [Event], wrong: &mut Vec<String>) -> Self {
        let mut keys = Self {
            acknowledged: BTreeMap::new(),
            unknown: BTreeMap::new(),
        };
        let mut revisions = BTreeMap::new();
        for event in events {
            let Deed::Write { value, revision } = &event.deed else {
                continue;
            };
            if let Some(revision) = revision
                && let Some(other) = revisions.insert(*revision, event)
            {
                wrong.push(format!(
                    "one revision for two transactions: {other:?} and {event:?}"
                ));
            }
            for key in &event.keys {
                match revision {
                    Some(revision) => {
                        let writes = keys.acknowledged.entry(key).or_default();
                        writes.insert(*revision, value);
                    }
                    None => keys.unknown.entry(key).or_default().push(value),
                }
            }
        }
        // What was seen of a write of unknown outcome tells its revision to every later check.
        for event in events {
            if let (
                Deed::Read {
                    found: Some((value, revision)),
                    ..
                },
                [key],
            ) = (&event.deed, &event.keys[..])
            {
                keys.reveal(key, value, *revision);
            }
        }
        keys
    }

    fn reveal(&mut self, key: &'a str, value: &'a str, revision: Revision) {
        let unknown = self
            .unknown
            .get(key)
            .is_some_and(|values| values.contains(&value));
        if unknown {
            let writes = self.acknowledged.entry(key).or_default();
            writes.entry(revision).or_insert(value);
        }
    }

    fn check_last(&self, last: &BTreeMap<String, Last>, wrong: &mut Vec<String>) {
        for (key, writes) in &self.acknowledged {
            let unknown = self.unknown.get(key).map_or(&[][..], Vec::as_slice);
            let Some(last) = last.get(*key) else {
                wrong.push(format!("{key} is lost: it was written by {writes:?}"));
                continue;
            };
            let (newest, value) = match writes.last_key_value() {
                Some((revision, value)) => (*revision, *value),
                None => continue,
            };
            let explained = (last.revision, last.value.as_str()) == (newest, value)
                || (last.revision > newest && unknown.contains(&last.value.as_str()));
            if !explained {
                wrong.push(format!(
                    "{key} ended as {last:?}, the newest write is {value} at {newest}"
                ));
            }
            // Each write raises the version by one, so a write that happened twice shows.
            let least = writes.len() as u64;
            let revealed = writes.values().filter(|value| unknown.contains(value)).count();
            let most = (writes.len() + unknown.len() - revealed) as u64;
            if !(least..=most).contains(&last.version) {
                wrong.push(format!(
                    "{key} was written {} times, by {least} known and at most {most} writes in all",
                    last.version
                ));
            }
        }
        for (key, last) in last {
            let unknown = self.unknown.get(key.as_str());
            if !self.acknowledged.contains_key(key.as_str())
                && !unknown.is_some_and(|values| values.contains(&last.value.as_str()))
            {
                wrong.push(format!("{key} holds {last:?}, which nobody wrote"));
            }
        }
    }

    fn check_read(
        &self,
        event: &Event,
        found: Option<&(String, Revision)>,
        at: Revision,
        wrong: &mut Vec<String>,
    ) {
        let [key] = &event.keys[..] else {
            wrong.push(format!("a read of several keys: {event:?}"));
            return;
        };
        let empty = BTreeMap::new();
        let writes = self.acknowledged.get(key.as_str()).unwrap_or(&empty);
        let newest = writes.range(..=at).next_back().map(|(r, value)| (*value, *r));
        let seen = found.map(|(value, revision)| (value.as_str(), *revision));
        if newest != seen {
            wrong.push(format!("{event:?} should have found {newest:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(begun: u64, ended: u64, deed: Deed) -> Event {
        Event {
            begun: Duration::from_millis(begun),
            ended: Duration::from_millis(ended),
            keys: vec!["k".to_owned()],
            deed,
        }
    }

    fn write(value: &str, revision: Option<u64>) -> Deed {
        Deed::Write {
            value: value.to_owned(),
            revision: revision.map(Revision::new),
        }
    }

    fn read(found: Option<(&str, u64)>, at: u64) -> Deed {
        Deed::Read {
            found: found.map(|(value, revision)| (value.to_owned(), Revision::new(revision))),
            at: Revision::new(at),
        }
    }

    fn last(value: &str, revision: u64, version: u64) -> BTreeMap<String, Last> {
        let last = Last {
            value: value.to_owned(),
            revision: Revision::new(revision),
            version,
        };
        BTreeMap::from([("k".to_owned(), last)])
    }

    #[test]
    fn a_history_in_order_is_accepted() {
        let events = [
            event(0, 1, write("a", Some(2))),
            event(2, 3, read(Some(("a", 2)), 2)),
            event(2, 9, write("b", Some(3))),
            event(4, 5, read(Some(("b", 3)), 3)),
        ];
        assert_eq!(check(&events, &last("b", 3, 2)), Vec::<String>::new());
    }

    #[test]
    fn a_write_of_unknown_outcome_may_have_happened_or_not() {
        let events = [event(0, 1, write("a", Some(2))), event(2, 9, write("b", None))];
        assert_eq!(check(&events, &last("a", 2, 1)), Vec::<String>::new());
        assert_eq!(check(&events, &last("b", 7, 2)), Vec::<String>::new());
        assert_eq!(check(&events, &last("b", 7, 3)).len(), 1, "but not twice");
    }

    #[test]
    fn every_kind_of_fault_is_found() {
        let lost = check(&[event(0, 1, write("a", Some(2)))], &BTreeMap::new());
        assert!(lost[0].contains("lost"), "{lost:?}");

        let twice = check(&[event(0, 1, write("a", Some(2)))], &last("a", 2, 2));
        assert!(twice[0].contains("written 2 times"), "{twice:?}");

        let overwritten = [event(0, 1, write("a", Some(2))), event(2, 3, write("b", Some(3)))];
        let overwritten = check(&overwritten, &last("a", 2, 2));
        assert!(overwritten[0].contains("ended as"), "{overwritten:?}");

        let stale = [
            event(0, 1, write("a", Some(2))),
            event(2, 3, write("b", Some(3))),
            event(4, 5, read(Some(("a", 2)), 2)),
        ];
        let stale = check(&stale, &last("b", 3, 2));
        assert!(stale[0].contains("backwards"), "{stale:?}");

        let wrong_value = [
            event(0, 1, write("a", Some(2))),
            event(2, 3, write("b", Some(3))),
            event(4, 5, read(Some(("a", 2)), 3)),
        ];
        let wrong_value = check(&wrong_value, &last("b", 3, 2));
        assert!(wrong_value[0].contains("should have found"), "{wrong_value:?}");

        let invented = check(&[], &last("c", 9, 1));
        assert!(invented[0].contains("nobody"), "{invented:?}");

        let shared = [event(0, 9, write("a", Some(2))), event(0, 9, write("b", Some(2)))];
        assert!(
            check(&shared, &last("b", 2, 2))
                .iter()
                .any(|w| w.contains("one revision"))
        );
    }
}
