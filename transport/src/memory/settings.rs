//! The bounds and timeouts of a network in memory.

use std::time::Duration;

use crate::MESSAGE_BYTES_MAX;
use crate::backoff::BackoffSettings;

/// What all transports of a network have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSettings {
    /// How long a link is cut before the connections over it break. 3 s by default, as over QUIC.
    pub idle_timeout: Duration,
    /// How long an attempt to reach a place may take. 2 s by default.
    pub connect_timeout: Duration,
    /// How often a place is probed by [`ended`](crate::Transport::ended). 100 ms by default, as over QUIC.
    pub probe_every: Duration,
    /// The delays between attempts.
    pub backoff: BackoffSettings,
    /// The largest message in bytes. 32 MiB by default.
    pub message_bytes_max: usize,
    /// The bytes that one direction of a stream holds before senders wait; a message that does not fit into
    /// the rest still goes. 1 MiB by default, as over QUIC.
    pub stream_bytes_max: usize,
    /// The streams of one class that wait to be accepted at one place before `open` waits. 256 by default.
    pub streams_waiting_max: usize,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(2),
            probe_every: Duration::from_millis(100),
            backoff: BackoffSettings::default(),
            message_bytes_max: MESSAGE_BYTES_MAX,
            stream_bytes_max: 1 << 20,
            streams_waiting_max: 256,
        }
    }
}
