//! Peers that were not let in: counted each, logged now and then.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use metrics::{Counter, counter};
use tokio::time::Instant;

use super::said::Said;
use super::seldom::Seldom;

/// Why a peer was not let in, or its stream not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Its certificate is of another authority.
    Untrusted,
    /// Its certificate is not valid now.
    Expired,
    /// The handshake failed otherwise.
    Tls,
    /// Its certificate is the authority's, and says that it has no business here.
    Identity,
    /// Its handshake did not go on.
    Timeout,
    /// Another one needed the place of its handshake.
    Displaced,
    /// Too many handshakes were under way.
    Handshakes,
    /// Too many nodes are connected.
    Nodes,
    /// Too many clients are connected.
    Clients,
    /// Too many clients of its name are connected.
    ClientShare,
    /// A stream that is not as it should be.
    Stream,
}

impl Why {
    const ALL: [Why; 11] = [
        Why::Untrusted,
        Why::Expired,
        Why::Tls,
        Why::Identity,
        Why::Timeout,
        Why::Displaced,
        Why::Handshakes,
        Why::Nodes,
        Why::Clients,
        Why::ClientShare,
        Why::Stream,
    ];

    /// Its name in the label of the metric.
    fn name(self) -> &'static str {
        match self {
            Why::Untrusted => "untrusted",
            Why::Expired => "expired",
            Why::Tls => "tls",
            Why::Identity => "identity",
            Why::Timeout => "timeout",
            Why::Displaced => "displaced",
            Why::Handshakes => "handshakes",
            Why::Nodes => "nodes",
            Why::Clients => "clients",
            Why::ClientShare => "client_share",
            Why::Stream => "stream",
        }
    }
}

/// Counts and tells.
pub(super) struct Refusals {
    counters: [Counter; Why::ALL.len()],
    /// Held for a few lines.
    lines: Mutex<[Seldom; Why::ALL.len()]>,
}

impl fmt::Debug for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Refusals")
    }
}

impl Refusals {
    pub(super) fn new() -> Self {
        Self {
            counters: Why::ALL
                .map(|why| counter!("quorate_transport_refusals_total", "reason" => why.name())),
            lines: Mutex::default(),
        }
    }

    /// Somebody was refused, and why in words, of which some may be the peer's.
    pub(super) fn note(&self, why: Why, peer: impl fmt::Display, reason: impl fmt::Display) {
        if let Some(kept_back) = self.count(why, Instant::now()) {
            let reason = Said(reason);
            tracing::warn!(%peer, %reason, kind = why.name(), kept_back, "refused a peer");
        }
    }

    /// Counts one; `Some` when a line is due, with how many it stands for beside this one.
    fn count(&self, why: Why, now: Instant) -> Option<u64> {
        let index = why as usize;
        self.counters[index].increment(1);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines[index].happened(now)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing::field::{Field, Visit};
    use tracing::span;

    use super::*;

    /// What a log would show of each field of each event.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<String>>>);

    impl tracing::Subscriber for Log {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &tracing::Event<'_>) {
            event.record(&mut self.clone());
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    impl Visit for Log {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            self.0.lock().unwrap().push(format!("{}={value:?}", field.name()));
        }
    }

    /// The story: a stranger closed its handshake with a reason of two lines, and the log had a line of the stranger's.
    #[test]
    fn a_strangers_words_begin_no_line_of_the_log() {
        let log = Log::default();
        tracing::subscriber::with_default(log.clone(), || {
            let close = quinn_proto::ConnectionClose {
                error_code: quinn_proto::TransportErrorCode::NO_ERROR,
                frame_type: None,
                reason: "x\n2026-01-01 WARN all is well".into(),
            };
            let error = quinn::ConnectionError::ConnectionClosed(close);
            Refusals::new().note(
                Why::Tls,
                "10.0.0.1:1",
                format_args!("the handshake failed: {error}"),
            );
        });
        let fields = log.0.lock().unwrap().clone();
        let whole = |field: &String| !field.contains('\n');
        assert!(fields.iter().all(whole), "{fields:?}");
        assert!(
            fields.iter().any(|field| field.contains("x\\n2026")),
            "{fields:?}"
        );
    }

    #[test]
    fn strangers_who_are_refused_by_the_hundred_leave_one_line_for_each_reason() {
        let (refusals, now) = (Refusals::new(), Instant::now());
        let mut lines = Vec::new();
        for _ in 0..300 {
            lines.extend(refusals.count(Why::Untrusted, now));
            lines.extend(refusals.count(Why::Timeout, now));
        }
        assert_eq!(lines, [0, 0]);
        let later = now + super::super::seldom::EVERY;
        assert_eq!(refusals.count(Why::Untrusted, later), Some(299));
    }

    #[test]
    fn every_reason_has_a_place_of_its_own() {
        for (index, why) in Why::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, index, "{}", why.name());
        }
    }
}
