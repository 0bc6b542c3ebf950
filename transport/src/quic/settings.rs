//! What can be set about a QUIC transport.

use std::time::Duration;

use crate::MESSAGE_BYTES_MAX;
use crate::backoff::BackoffSettings;

/// The longest [`QuicSettings::busy_poll`]: a thread's way back is far shorter.
pub const BUSY_POLL_MAX: Duration = Duration::from_millis(10);

/// Limits and timeouts of a [`QuicTransport`](super::QuicTransport).
///
/// Every queue has a bound in bytes. What peers may make an acceptor hold, at most: 64 KiB for each of `handshakes_max`; for each of
/// `client_connections_max` 150 KiB and `client_window` of what nobody has read; for each of `node_connections_max` 450 KiB and
/// `connection_window`; and `client_messages_bytes` of clients' messages above 16 KiB, from when they begin until no part of them is held. Of nodes' messages,
/// which are believed, each stream may hold one that has begun. What else was read is the caller's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuicSettings {
    /// The largest message in bytes, sent or received, below 4 GiB. 32 MiB by default. A peer's message is
    /// held in memory whole, once for each stream that receives one.
    pub message_bytes_max: usize,
    /// How long a connection lives without a sign of its peer. 3 s by default, above what a stalled process or a route
    /// change takes. The nodes of a cluster with long timing need more: a leader that hears nobody tells the others so when
    /// its lease is over.
    pub idle_timeout: Duration,
    /// How often a sign of life is sent when there is nothing else. 750 ms by default; at most half of
    /// `idle_timeout`, so that one lost packet costs no connection.
    pub keep_alive: Duration,
    /// How long an attempt to connect waits for the addresses of the peer's name. 2 s by default. An answer that comes
    /// later serves the next attempt.
    pub resolve_timeout: Duration,
    /// How long an attempt to connect may take once the addresses are known, whatever their number: the next one is tried
    /// when one failed, or has not answered for 250 ms. 2 s by default. A handshake that a peer began ends after the same
    /// time.
    pub connect_timeout: Duration,
    /// How often a peer is probed by [`ended`](crate::Transport::ended), 10 ms to 10 s. 100 ms by default: the end of a
    /// process is noticed after half of that and two round trips, on average. Each probe is a datagram of one byte, which
    /// the peer drops at the first look; nobody is probed whom nobody waits for.
    pub probe_every: Duration,
    /// How long [`shutdown`](crate::Transport::shutdown) waits for the peers to take note. 500 ms by default.
    pub shutdown_timeout: Duration,
    /// The delays between attempts to connect to a peer that cannot be reached.
    pub backoff: BackoffSettings,
    /// The bytes of one stream that may be under way or unread before its sender waits. 1 MiB by default. A
    /// reader that does not read costs that much memory, and what a snapshot has under way is what a vote
    /// finds before it in the network's queues: at 1 Gbit/s 8 ms, at 100 Mbit/s 80 ms. One stream carries at
    /// most this much for each round trip (10 MB/s over 100 ms): raise it between distant regions.
    pub stream_window: u32,
    /// The same for all streams of a connection with a node together. 256 MiB by default: so many windows of streams
    /// that bulk which nobody reads never takes the room of votes.
    pub connection_window: u32,
    /// The same of a connection that a client opened, and of a peer that has not proved who it is. 8 MiB by default: a
    /// client that sends what nobody reads takes so much of this node's memory, times `client_share_max` at most.
    pub client_window: u32,
    /// The streams that a node may have open at once, 16 to 65,536. 4,096 by default; one more waits at its opener. Each takes
    /// 100 bytes for as long as the connection lives.
    pub streams_max: u32,
    /// The same of a client. 1,024 by default. A client of the library opens one stream to each node.
    pub client_streams_max: u32,
    /// The memory for messages of clients, at least one message. 512 MiB by default. A message above 16 KiB takes its whole length of
    /// it from when it begins until no part of it is held any more, by the caller either; one connection takes four messages of the longest at most, and a quarter of this or one message. A message that finds no room
    /// ends its stream, and its client tries again.
    pub client_messages_bytes: usize,
    /// How long a client may be waited for in the middle of such a message, all in all, and a second more for each 256 KiB of it;
    /// above zero, 10 s by default. One that comes more slowly ends its stream, and gives its room back.
    pub client_message_patience: Duration,
    /// The handshakes of peers that may be under way at once, 1 to 65,536. 256 by default; each takes less than 64 KiB. One more
    /// displaces the oldest of the address that has most of them under way (of the network of 64 bits in IPv6), or one
    /// that did not go on within a quarter of `connect_timeout`; else it is refused, and its peer tries again.
    pub handshakes_max: usize,
    /// So many handshakes may be under way before a peer has to show that it receives what is sent to its address (RFC
    /// 9000, 8.1), up to `handshakes_max`. 16 by default. That takes one round trip, and no memory here: whoever forges
    /// addresses holds no place. Zero validates always.
    pub handshakes_unvalidated_max: usize,
    /// The connections of nodes that are accepted at once, at least 1. 64 by default; they are apart from those of clients, so
    /// that no number of clients keeps a node out. One node has eight at most: its ninth ends its oldest one. A node's
    /// connection may hold `connection_window` of memory.
    pub node_connections_max: usize,
    /// The connections of clients that are accepted at once, at least 1. 1,024 by default; one more is closed, with the reason, and
    /// is tried again by its client. A client's connection takes some 150 KiB, and may hold
    /// `client_window` more.
    pub client_connections_max: usize,
    /// How many of these one client's name may have, up to `client_connections_max`. 512 by default: a program that leaks
    /// connections keeps no other name out.
    pub client_share_max: usize,
    /// The largest UDP payload that is tried, 1,200 to 65,527 bytes. 6,500 by default: ten of these leave in one
    /// system call, which carries 64 KiB at most; beyond it each datagram takes a call of its own. What a path
    /// carries is found out at the start of each connection, from 1,200 on, and again every ten minutes (RFC
    /// 8899), at the price of some lost probes: 1,452 on Ethernet, all of it on loopback and with jumbo frames.
    pub datagram_bytes_max: u16,
    /// How long at most a thread that received a datagram looks for the next one before it sleeps, up to 10 ms. Zero by
    /// default: it sleeps at once. Looking saves the thread's way back onto a processor at each hop, some tens of
    /// microseconds, and costs processor time that nobody else wants: a thread that looks gives way to all others, looks
    /// the longer the more often something comes, and not at all while other threads compute on every processor. 500 µs
    /// spans a sync of a fast disk and the hops around it. Takes effect where the runtime that the transport is made in
    /// has one worker thread.
    pub busy_poll: Duration,
}

impl Default for QuicSettings {
    fn default() -> Self {
        Self {
            message_bytes_max: MESSAGE_BYTES_MAX,
            idle_timeout: Duration::from_secs(3),
            keep_alive: Duration::from_millis(750),
            resolve_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(2),
            probe_every: Duration::from_millis(100),
            shutdown_timeout: Duration::from_millis(500),
            backoff: BackoffSettings::default(),
            stream_window: 1 << 20,
            connection_window: 256 << 20,
            streams_max: 4_096,
            client_streams_max: 1_024,
            client_window: 8 << 20,
            client_messages_bytes: 512 << 20,
            client_message_patience: Duration::from_secs(10),
            handshakes_max: 256,
            handshakes_unvalidated_max: 16,
            node_connections_max: 64,
            client_connections_max: 1_024,
            client_share_max: 512,
            datagram_bytes_max: 6_500,
            busy_poll: Duration::ZERO,
        }
    }
}

/// A setting outside of its bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} is {value}: {bound}")]
pub struct InvalidSettings {
    /// Which one.
    pub setting: &'static str,
    /// Its value.
    pub value: String,
    /// The bound that it breaks.
    pub bound: &'static str,
}

impl QuicSettings {
    /// The longest [`idle_timeout`](Self::idle_timeout).
    pub const IDLE_TIMEOUT_MAX: Duration = Duration::from_secs(3_600);

    pub(super) fn check(&self) -> Result<(), InvalidSettings> {
        let refuse = |setting, value: String, bound| {
            Err(InvalidSettings {
                setting,
                value,
                bound,
            })
        };
        let seconds = |duration: Duration| format!("{duration:?}");
        if self.message_bytes_max == 0 || u32::try_from(self.message_bytes_max).is_err() {
            let value = self.message_bytes_max.to_string();
            return refuse("message_bytes_max", value, "it must be from 1 byte to 4 GiB - 1");
        }
        if self.idle_timeout < Duration::from_millis(100) || self.idle_timeout > Self::IDLE_TIMEOUT_MAX {
            return refuse(
                "idle_timeout",
                seconds(self.idle_timeout),
                "it must be from 100 ms to an hour",
            );
        }
        if self.keep_alive.is_zero() || self.keep_alive > self.idle_timeout / 2 {
            return refuse(
                "keep_alive",
                seconds(self.keep_alive),
                "it must be above zero and at most half of idle_timeout",
            );
        }
        if self.resolve_timeout.is_zero() {
            let value = seconds(self.resolve_timeout);
            return refuse("resolve_timeout", value, "it must be above zero");
        }
        if self.connect_timeout.is_zero() {
            return refuse(
                "connect_timeout",
                seconds(self.connect_timeout),
                "it must be above zero",
            );
        }
        if self.probe_every < Duration::from_millis(10) || self.probe_every > Duration::from_secs(10) {
            let value = seconds(self.probe_every);
            return refuse("probe_every", value, "it must be from 10 ms to 10 s");
        }
        if self.backoff.first > self.backoff.max {
            let value = seconds(self.backoff.first);
            return refuse("backoff.first", value, "it must be at most backoff.max");
        }
        if self.stream_window < 64 << 10 {
            let value = self.stream_window.to_string();
            return refuse("stream_window", value, "it must be at least 64 KiB");
        }
        if self.connection_window / 8 < self.stream_window || self.connection_window > 1 << 30 {
            let value = self.connection_window.to_string();
            let bound = "it must be at least eight times stream_window, and at most 1 GiB";
            return refuse("connection_window", value, bound);
        }
        if self.client_window < self.stream_window || self.client_window > self.connection_window {
            let value = self.client_window.to_string();
            let bound = "it must be at least stream_window, and at most connection_window";
            return refuse("client_window", value, bound);
        }
        if self.client_message_patience.is_zero() {
            let value = seconds(self.client_message_patience);
            return refuse("client_message_patience", value, "it must be above zero");
        }
        if self.handshakes_max == 0 || self.handshakes_max > 1 << 16 {
            let value = self.handshakes_max.to_string();
            return refuse("handshakes_max", value, "it must be from 1 to 65,536");
        }
        if self.handshakes_unvalidated_max > self.handshakes_max {
            let value = self.handshakes_unvalidated_max.to_string();
            return refuse(
                "handshakes_unvalidated_max",
                value,
                "it must be at most handshakes_max",
            );
        }
        if self.node_connections_max == 0 {
            return refuse("node_connections_max", "0".to_owned(), "it must be at least 1");
        }
        if self.client_connections_max == 0 {
            return refuse("client_connections_max", "0".to_owned(), "it must be at least 1");
        }
        if self.client_share_max == 0 || self.client_share_max > self.client_connections_max {
            let value = self.client_share_max.to_string();
            let bound = "it must be at least 1, and at most client_connections_max";
            return refuse("client_share_max", value, bound);
        }
        if self.streams_max < 16 || self.streams_max > 1 << 16 {
            let value = self.streams_max.to_string();
            return refuse("streams_max", value, "it must be from 16 to 65,536");
        }
        if self.client_streams_max < 16 || self.client_streams_max > 1 << 16 {
            let value = self.client_streams_max.to_string();
            return refuse("client_streams_max", value, "it must be from 16 to 65,536");
        }
        if self.datagram_bytes_max < 1_200 || self.datagram_bytes_max > 65_527 {
            let value = self.datagram_bytes_max.to_string();
            return refuse("datagram_bytes_max", value, "it must be from 1,200 to 65,527");
        }
        if self.busy_poll > BUSY_POLL_MAX {
            return refuse("busy_poll", seconds(self.busy_poll), "it must be at most 10 ms");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_within_the_bounds() {
        assert_eq!(QuicSettings::default().check(), Ok(()));
    }

    #[test]
    fn a_refusal_names_the_setting_its_value_and_the_bound() {
        let settings = QuicSettings {
            keep_alive: Duration::from_secs(2),
            ..QuicSettings::default()
        };
        let refused = settings.check().unwrap_err();
        assert_eq!(
            refused.to_string(),
            "keep_alive is 2s: it must be above zero and at most half of idle_timeout"
        );
    }
}
