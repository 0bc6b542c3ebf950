//! The way in for the fuzzer, and the laws beside it. Behind the feature `fuzzing`, which no release has.

use crate::serve::read_configuration;

/// A node's configuration, whatever its text is: refused with its faults told, or sound.
pub fn configuration(text: &str) {
    match read_configuration(text) {
        None => {}
        Some(Err(faults)) => {
            assert!(!faults.is_empty(), "refused for no reason");
            assert!(faults.iter().all(|fault| !fault.is_empty()));
        }
        Some(Ok(lines)) => assert!(lines.contains("data_dir"), "{lines}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// Keys that there are and keys that there are not, with values of every kind, in and out of their bounds.
    fn line() -> impl Strategy<Value = String> {
        const KEYS: [&str; 35] = [
            "data_dir",
            "cluster",
            "node_id",
            "listen",
            "advertise",
            "join",
            "certs",
            "metrics",
            "workers",
            "busy_poll",
            "peers.1",
            "peers.18446744073709551616",
            "log.level",
            "log.format",
            "timing.profile",
            "timing.heartbeat",
            "timing.failover_min",
            "timing.failover_max",
            "limits.key_bytes_max",
            "limits.value_bytes_max",
            "limits.txn_bytes_max",
            "store.snapshot_entries",
            "store.log_segment_bytes",
            "store.durable_interval",
            "store.scrub_interval",
            "store.history_kept",
            "store.store_bytes_max",
            "store.compare_interval",
            "store.shrink_at",
            "store.session_ttl",
            "store.sessions_max",
            "store.session_idle",
            "store.unanswered_bytes_max",
            "store.keys_looked_at_max",
            "nothing.of.ours",
        ];
        let value = prop_oneof![
            any::<i64>().prop_map(|number| number.to_string()),
            any::<f64>().prop_map(|number| format!("{number:?}")),
            any::<bool>().prop_map(|flag| flag.to_string()),
            "[0-9]{1,25}(ns|us|ms|s|m|h|d|w|years)?".prop_map(|text| format!("'{text}'")),
            "[a-z0-9.:\\[\\]/=,-]{0,30}".prop_map(|text| format!("'{text}'")),
            Just("['a', 1, {}]".to_owned()),
            Just("{ a = 1 }".to_owned()),
            Just("1979-05-27T07:32:00Z".to_owned()),
        ];
        (prop::sample::select(&KEYS[..]), value).prop_map(|(key, value)| format!("{key} = {value}"))
    }

    proptest! {
        #[test]
        fn any_configuration_is_refused_with_its_faults_or_sound(lines in prop::collection::vec(line(), 0..8)) {
            super::configuration(&lines.join("\n"));
            super::configuration(&format!("data_dir = 'data'\n{}", lines.join("\n")));
        }

        #[test]
        fn any_text_is_no_configuration_or_one_that_is_checked(text in ".{0,200}") {
            super::configuration(&text);
        }
    }
}
