//! The counters, made once: a lookup by name for each message would cost more than the message.

use metrics::{Counter, Gauge, counter, gauge};

use crate::Class;

/// The counters of one class of traffic.
#[derive(Clone)]
pub(super) struct ClassMeters {
    pub(super) messages_sent: Counter,
    pub(super) messages_received: Counter,
    pub(super) bytes_sent: Counter,
    pub(super) bytes_received: Counter,
    pub(super) opened: Counter,
    pub(super) accepted: Counter,
    pub(super) refused: Counter,
}

impl std::fmt::Debug for ClassMeters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClassMeters")
    }
}

/// All of a transport's meters.
pub(super) struct Meters {
    classes: [ClassMeters; 4],
    pub(super) outgoing: Gauge,
    pub(super) incoming: Gauge,
    pub(super) unreachable: Counter,
    pub(super) refused: Counter,
    pub(super) handshakes: Gauge,
    pub(super) validations: Counter,
}

impl Meters {
    pub(super) fn new() -> Self {
        let classes = Class::ALL.map(|class| {
            let class = class.name();
            ClassMeters {
                messages_sent: counter!("quorate_transport_messages_sent_total", "class" => class),
                messages_received: counter!("quorate_transport_messages_received_total", "class" => class),
                bytes_sent: counter!("quorate_transport_bytes_sent_total", "class" => class),
                bytes_received: counter!("quorate_transport_bytes_received_total", "class" => class),
                opened: counter!("quorate_transport_streams_opened_total", "class" => class),
                accepted: counter!("quorate_transport_streams_accepted_total", "class" => class),
                refused: counter!("quorate_transport_messages_refused_total", "class" => class),
            }
        });
        let connects = |reason| counter!("quorate_transport_connects_failed_total", "reason" => reason);
        Self {
            classes,
            outgoing: gauge!("quorate_transport_connections", "direction" => "outgoing"),
            incoming: gauge!("quorate_transport_connections", "direction" => "incoming"),
            unreachable: connects("unreachable"),
            refused: connects("refused"),
            handshakes: gauge!("quorate_transport_handshakes"),
            validations: counter!("quorate_transport_validations_total"),
        }
    }

    pub(super) fn class(&self, class: Class) -> ClassMeters {
        self.classes[class.rank()].clone()
    }
}
