//! Settings, checked: whether they can work, and what follows from them for the parts of a node.

use super::invalid_settings::InvalidSettings;
use super::memory::MemoryParts;
use super::settings::{Settings, millis};
use crate::machine::MachineSettings;
use crate::model::Limit;
use crate::raft::{ApplyBounds, RaftSettings};

impl Settings {
    /// Checks every setting and tells all that are wrong.
    pub fn check(&self) -> Result<(), Vec<InvalidSettings>> {
        let mut wrong = Vec::new();
        if let Err(error) = self.timing.check() {
            wrong.push(error.into());
        }
        let mut range = |setting, value: u64, allowed: std::ops::RangeInclusive<u64>, bounds| {
            if !allowed.contains(&value) {
                wrong.push(InvalidSettings::OutOfRange {
                    setting,
                    value,
                    bounds,
                });
            }
        };
        range(
            "snapshot_entries",
            self.snapshot_entries,
            1..=u64::MAX,
            "at least 1",
        );
        range(
            "proposals_in_flight",
            self.proposals_in_flight as u64,
            1..=1024,
            "1 to 1,024",
        );
        const GIB: u64 = 1 << 30;
        for (setting, bytes, min, bounds) in [
            (
                "proposals_bytes_max",
                self.proposals_bytes_max,
                1 << 20,
                "1 MiB to 4 GiB",
            ),
            // Little room makes callers wait, and does no other harm.
            (
                "calls_bytes_max",
                self.calls_bytes_max,
                64 << 10,
                "64 KiB to 4 GiB",
            ),
            (
                "answers_bytes_max",
                self.answers_bytes_max,
                64 << 10,
                "64 KiB to 4 GiB",
            ),
        ] {
            if let Some(bytes) = bytes {
                range(setting, bytes, min..=4 * GIB, bounds);
            }
        }
        if self.shrink_at > 0 {
            range(
                "shrink_at",
                self.shrink_at.into(),
                2..=100,
                "0 for never, or 2 to 100",
            );
        }
        range(
            "compare_interval",
            millis(self.compare_interval),
            100..=86_400_000,
            "100 ms to 1 day",
        );
        range(
            "read_time_max",
            u64::try_from(self.read_time_max.as_millis()).unwrap_or(u64::MAX),
            10..=3_600_000,
            "10 ms to 1 hour",
        );
        if !self.scrub_interval.is_zero() {
            range(
                "scrub_interval",
                millis(self.scrub_interval),
                1_000..=365 * 86_400_000,
                "0 for never, or 1,000 ms to 365 days",
            );
        }
        // What the cluster may be told later it may be given at first, and nothing else.
        let of = |limit: Limit| limit.bounds().min..=limit.bounds().max;
        if !self.history_kept.is_zero() {
            range(
                "history_kept",
                millis(self.history_kept),
                of(Limit::HistoryKept),
                "0 for ever, or 1,000 ms to 365 days",
            );
        }
        if self.store_bytes_max > 0 {
            range(
                "store_bytes_max",
                self.store_bytes_max,
                of(Limit::StoreBytesMax),
                "0 for no limit, or 4 KiB to 1 PiB",
            );
        }
        range(
            "sessions_max",
            self.sessions_max,
            of(Limit::SessionsMax),
            "1 to 1,000,000",
        );
        range(
            "session_ttl",
            millis(self.session_ttl),
            of(Limit::SessionTtl),
            "1,000 ms to 30 days",
        );
        range(
            "session_idle",
            millis(self.session_idle),
            of(Limit::SessionIdle),
            "1,000 ms to 30 days",
        );
        range(
            "unanswered_bytes_max",
            self.unanswered_bytes_max,
            of(Limit::UnansweredBytesMax),
            "64 KiB to 1 GiB",
        );
        range(
            "response_bytes_max",
            self.response_bytes_max,
            of(Limit::ResponseBytesMax),
            "1 KiB to 16 MiB",
        );
        for (setting, value, limit) in [
            (
                "keys_looked_at_max",
                self.keys_looked_at_max,
                Limit::KeysLookedAtMax,
            ),
            ("keys_changed_max", self.keys_changed_max, Limit::KeysChangedMax),
        ] {
            range(setting, value, of(limit), "1,000 to 16,777,216");
        }
        range(
            "log_segment_bytes",
            self.log_segment_bytes,
            65_536..=1 << 30,
            "64 KiB to 1 GiB",
        );
        if self.disk_bytes_max > 0 {
            range(
                "disk_bytes_max",
                self.disk_bytes_max,
                1 << 30..=1 << 50,
                "0 for what the disk has, or 1 GiB to 1 PiB",
            );
        }
        range(
            "log_bytes_kept",
            self.log_bytes_kept(),
            self.log_segment_bytes.saturating_mul(2)..=u64::MAX,
            "at least two segments of log_segment_bytes",
        );
        range(
            "limits.key_bytes_max",
            self.limits.key_bytes_max as u64,
            1..=32_768,
            "1 to 32,768",
        );
        range(
            "limits.txn_ops_max",
            self.limits.txn_ops_max as u64,
            1..=1 << 24,
            "1 to 16,777,216",
        );
        range(
            "limits.txn_bytes_max",
            self.limits.txn_bytes_max as u64,
            1024..=24 << 20,
            "1 KiB to 24 MiB",
        );
        range(
            "limits.value_bytes_max",
            self.limits.value_bytes_max as u64,
            1..=self.limits.txn_bytes_max as u64,
            "at least 1 and at most limits.txn_bytes_max",
        );
        // What can be written must be able to be read, alone in its batch.
        let record_max = MachineSettings::default().record_bytes_max();
        range(
            "limits.value_bytes_max",
            self.limits.value_bytes_max as u64,
            0..=record_max.saturating_sub(self.limits.key_bytes_max as u64),
            "at most the 16 MiB that one batch of reads returns, less limits.key_bytes_max and 64 bytes",
        );
        if let Some(bytes) = self.state_layer_bytes {
            range("state_layer_bytes", bytes, 4_096..=1 << 40, "4 KiB to 1 TiB");
        }
        range("memory_bytes", self.memory_bytes, 0..=1 << 40, "1 TiB at most");
        if let Err(too_little) = MemoryParts::of(self) {
            wrong.push(too_little);
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// How [`memory_bytes`](Self::memory_bytes) is parted; an error where it is too little for the parts that are given.
    pub fn memory(&self) -> Result<MemoryParts, InvalidSettings> {
        MemoryParts::of(self)
    }

    pub(crate) fn raft(&self, memory: &MemoryParts) -> RaftSettings {
        RaftSettings {
            snapshot_entries: self.snapshot_entries,
            log_entries_kept: self.log_entries_kept,
            log_bytes_kept: self.log_bytes_kept(),
            apply: ApplyBounds {
                bytes: memory.state_layer(),
                queue_bytes: memory.apply_queue,
                ..ApplyBounds::default()
            },
            durable_interval: self.durable_interval,
            promote_lag_max: self.promote_lag_max,
            compare_interval: self.compare_interval,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use quorate_transport::memory::{MemoryNetwork, TokioClock};
    use quorate_transport::{ClusterId, Identity};

    use super::*;
    use crate::Node;
    use crate::model::{Key, Op, Txn};

    const MIB: usize = 1024 * 1024;

    fn with_values_of(bytes: usize) -> Settings {
        let mut settings = Settings::default();
        settings.limits.txn_bytes_max = 24 * MIB;
        settings.limits.value_bytes_max = bytes;
        settings
    }

    /// With the default keys: what a batch of reads returns, less a key and what a record counts for.
    const LARGEST: usize = 16 * MIB - 4096 - 64;

    /// Values of up to 24 MiB could be written, and never be read.
    #[test]
    fn values_that_could_be_written_and_not_read_are_refused_by_name() {
        let refused = with_values_of(LARGEST + 1).check().unwrap_err();
        assert_eq!(
            refused.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [format!(
                "limits.value_bytes_max is {}; it must be at most the 16 MiB that one batch of reads returns, less \
                 limits.key_bytes_max and 64 bytes",
                LARGEST + 1
            )]
        );
        with_values_of(LARGEST).check().unwrap();
        let mut longer_keys = with_values_of(LARGEST);
        longer_keys.limits.key_bytes_max += 1;
        assert!(longer_keys.check().is_err());
        longer_keys.limits.value_bytes_max -= 1;
        longer_keys.check().unwrap();
    }

    #[test]
    fn memory_for_calls_and_answers_has_a_least_and_a_most_that_are_told_by_name() {
        let with = |bytes| {
            let settings = Settings {
                memory_bytes: 16 << 30,
                calls_bytes_max: Some(bytes),
                answers_bytes_max: Some(bytes),
                ..Settings::default()
            };
            settings.check()
        };
        for bytes in [64 << 10, 4 << 30] {
            with(bytes).unwrap();
        }
        for bytes in [(64 << 10) - 1, (4 << 30) + 1] {
            let refused = with(bytes).unwrap_err();
            let told = ["calls_bytes_max", "answers_bytes_max"]
                .map(|name| format!("{name} is {bytes}; it must be 64 KiB to 4 GiB"));
            let refused: Vec<String> = refused.iter().map(ToString::to_string).collect();
            assert_eq!(refused, told);
        }
    }

    #[test]
    fn the_log_has_an_eighth_of_the_disk_that_the_node_may_take_and_a_gibibyte_at_most() {
        const GIB: u64 = 1 << 30;
        let with = |disk_bytes_max, log_bytes_kept| {
            let settings = Settings {
                disk_bytes_max,
                log_bytes_kept,
                ..Settings::default()
            };
            settings.check().unwrap();
            settings.log_bytes_kept()
        };
        assert_eq!(with(0, None), GIB);
        assert_eq!(with(64 * GIB, None), GIB);
        assert_eq!(with(4 * GIB, None), GIB / 2);
        assert_eq!(with(4 * GIB, Some(2 * GIB)), 2 * GIB);
    }

    #[test]
    fn a_layer_and_the_disk_have_a_least_and_a_most_that_are_told_by_name() {
        let with = |layer, disk_bytes_max| {
            let settings = Settings {
                memory_bytes: 1 << 40,
                state_layer_bytes: Some(layer),
                disk_bytes_max,
                log_bytes_kept: Some(1 << 30),
                ..Settings::default()
            };
            settings.check()
        };
        with(4_096, 1 << 30).unwrap();
        with(4_096, 1 << 50).unwrap();
        let refused = with(4_095, (1 << 30) - 1).unwrap_err();
        assert_eq!(
            refused.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "disk_bytes_max is 1073741823; it must be 0 for what the disk has, or 1 GiB to 1 PiB",
                "state_layer_bytes is 4095; it must be 4 KiB to 1 TiB",
            ]
        );
    }

    #[test]
    fn times_that_may_be_none_have_a_least_and_a_most_that_are_told_by_name() {
        let with = |time| {
            let settings = Settings {
                scrub_interval: time,
                history_kept: time,
                ..Settings::default()
            };
            settings.check()
        };
        const YEAR: u64 = 365 * 86_400_000;
        for millis in [0, 1_000, YEAR] {
            with(Duration::from_millis(millis)).unwrap();
        }
        for millis in [1, 999, YEAR + 1] {
            let refused = with(Duration::from_millis(millis)).unwrap_err();
            let refused: Vec<String> = refused.iter().map(ToString::to_string).collect();
            let told = [("scrub_interval", "never"), ("history_kept", "ever")].map(|(name, none)| {
                format!("{name} is {millis}; it must be 0 for {none}, or 1,000 ms to 365 days")
            });
            assert_eq!(refused, told);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_largest_value_under_the_longest_key_is_written_and_read() {
        let network = MemoryNetwork::new(Arc::new(TokioClock::new(7)));
        let cluster = ClusterId::new("test").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let node = Node::builder()
            .cluster("test")
            .data_dir(dir.path())
            .settings(with_values_of(LARGEST))
            .transport(network.transport(Identity::node(cluster, 1), "node:1"))
            .start()
            .await
            .unwrap();
        let client = node.client().with_deadline(Duration::from_secs(60));
        let key = Key::new(vec![b'k'; 4096]).unwrap();
        let value = bytes::Bytes::from(vec![7; LARGEST]);
        client
            .commit(Txn::new([Op::put(key.clone(), value.clone())]))
            .await
            .unwrap();
        let read = client.get(key).await.unwrap().expect("it was written");
        assert!(read.value == value);
        let records = client.range(..).await.unwrap().records;
        assert!(records.len() == 1 && records[0].record.value == value);
        node.shutdown().await;
    }
}
