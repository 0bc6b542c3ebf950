//! How the memory that a node may take is parted among what takes it.
//!
//! Always: the parts make no more than the budget together; each is as large as a node needs to work at all.

use super::invalid_settings::InvalidSettings;
use super::settings::Settings;
use crate::machine::{GATHERED_BYTES_MAX, RECEIVING_CACHE_BYTES};

const MIB: u64 = 1 << 20;

/// A part that shares has so much at least for each MiB that it has in the default budget.
const SHARE_MIN: u64 = MIB / 4;

/// A layer takes so many times its size at most, in halves: the one that is being written, the one behind it, and half as much
/// while steps of merging or of forgetting come first.
const LAYER_HALVES: u64 = 5;

/// How the memory of a node is parted, in bytes: the most that each part takes. What several parts hold together, as entries
/// that the log's cache and a layer share, counts in each.
///
/// [`Settings::memory_bytes`] is the budget. Where a part has a setting of its own and that is given, it is taken off first;
/// some parts have a fixed size; the others share what is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryParts {
    /// What was read of the state file: an eighth of it records, the rest pages. [`Settings::state_cache_bytes`].
    pub state_cache: u64,
    /// What was applied and is not in the state file yet: 2.5 times [`Settings::state_layer_bytes`].
    pub state_layers: u64,
    /// Pages on their way to the state file.
    pub state_writes: u64,
    /// While a snapshot is received, or the state file is copied into a smaller one.
    pub receiving: u64,
    /// Recent entries, for followers that lag. [`Settings::log_cache_bytes`].
    pub log_cache: u64,
    /// Entries that wait to be written to the log.
    pub log_queue: u64,
    /// Committed entries that wait to be applied.
    pub apply_queue: u64,
    /// Commands that wait to be proposed. [`Settings::proposals_bytes_max`].
    pub proposals: u64,
    /// Calls of clients. [`Settings::calls_bytes_max`].
    pub calls: u64,
    /// Answers to reads. [`Settings::answers_bytes_max`].
    pub answers: u64,
    /// Messages of clients that have begun, for [`QuicSettings::client_messages_bytes`]; the transport is the caller's, who gives it
    /// that.
    ///
    /// [`QuicSettings::client_messages_bytes`]: https://docs.rs/quorate-transport
    pub client_messages: u64,
    /// Everything else: the program itself, its threads and connections; up to 2 bytes for each key (Bloom filters, and as
    /// much again while runs are merged); 2 MiB of checksums for each GiB of the state file; what the allocator has not given back.
    pub rest: u64,
}

/// A queue has no more than this, however large the budget is.
const QUEUE_MAX: u64 = 4 << 30;

/// The parts that are as large in every budget: what they hold is no less in a small one.
const RECEIVING_BYTES: u64 = (RECEIVING_CACHE_BYTES + GATHERED_BYTES_MAX) as u64;
/// Two messages of the longest: one that finds no room ends its stream.
const CLIENT_MESSAGES_BYTES: u64 = 2 * quorate_transport::MESSAGE_BYTES_MAX as u64;
const REST_MIN: u64 = 24 * MIB;
/// The rest is one in so many bytes of the budget at least.
const REST_PART: u64 = 8;

/// A part of which there is more in a larger budget.
struct Share {
    given: Option<u64>,
    /// What it is of all such parts: MiB in the default budget.
    weight: u64,
    max: u64,
}

impl MemoryParts {
    /// The parts of these settings. None of them is smaller than what its setting allows.
    pub(super) fn of(settings: &Settings) -> Result<Self, InvalidSettings> {
        let budget = settings.memory_bytes;
        let fixed = GATHERED_BYTES_MAX as u64 + RECEIVING_BYTES + CLIENT_MESSAGES_BYTES;
        let layers = |layer: u64| layer.saturating_mul(LAYER_HALVES) / 2;
        let share = |given: Option<u64>, weight, max| Share { given, weight, max };
        let shares = [
            share(settings.state_cache_bytes, 24, u64::MAX),
            share(settings.state_layer_bytes.map(layers), 38, u64::MAX),
            share(settings.log_cache_bytes, 6, u64::MAX),
            share(None, 4, QUEUE_MAX),
            share(settings.apply_queue_bytes, 5, QUEUE_MAX),
            share(settings.proposals_bytes_max, 5, QUEUE_MAX),
            share(settings.calls_bytes_max, 24, QUEUE_MAX),
            share(settings.answers_bytes_max, 14, QUEUE_MAX),
        ];
        let given = shares.iter().filter_map(|share| share.given);
        let given = given.fold(0, u64::saturating_add);
        let weights: u64 = shares
            .iter()
            .filter(|s| s.given.is_none())
            .map(|s| s.weight)
            .sum();
        // Less than that for each MiB of a weight is too little to work with.
        let parts = fixed.saturating_add(given).saturating_add(weights * SHARE_MIN);
        let rest = REST_MIN.max(parts.div_ceil(REST_PART - 1));
        let least = parts.saturating_add(rest);
        if budget < least {
            return Err(InvalidSettings::TooLittleMemory {
                memory_bytes: budget,
                least,
            });
        }
        let rest = REST_MIN.max(budget / REST_PART);
        let left = budget
            .saturating_sub(fixed)
            .saturating_sub(given)
            .saturating_sub(rest);
        let size = |share: &Share| {
            let part = || (u128::from(left) * u128::from(share.weight) / u128::from(weights.max(1))) as u64;
            share.given.unwrap_or_else(|| part().min(share.max))
        };
        let [
            state_cache,
            state_layers,
            log_cache,
            log_queue,
            apply_queue,
            proposals,
            calls,
            answers,
        ] = shares.each_ref().map(size);
        Ok(Self {
            state_cache,
            state_layers,
            state_writes: GATHERED_BYTES_MAX as u64,
            receiving: RECEIVING_BYTES,
            log_cache,
            log_queue,
            apply_queue,
            proposals,
            calls,
            answers,
            client_messages: CLIENT_MESSAGES_BYTES,
            rest,
        })
    }

    /// What may gather since a checkpoint began, before the next one begins.
    pub(crate) fn state_layer(&self) -> u64 {
        self.state_layers / LAYER_HALVES * 2
    }

    /// Each part with its name, as metrics and messages call it.
    pub fn named(&self) -> [(&'static str, u64); 12] {
        [
            ("state_cache", self.state_cache),
            ("state_layers", self.state_layers),
            ("state_writes", self.state_writes),
            ("receiving", self.receiving),
            ("log_cache", self.log_cache),
            ("log_queue", self.log_queue),
            ("apply_queue", self.apply_queue),
            ("proposals", self.proposals),
            ("calls", self.calls),
            ("answers", self.answers),
            ("client_messages", self.client_messages),
            ("rest", self.rest),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(parts: &MemoryParts) -> u64 {
        parts.named().iter().map(|(_, bytes)| bytes).sum()
    }

    #[test]
    fn the_parts_of_any_budget_make_no_more_than_it_and_no_part_is_missing() {
        for mib in [158, 160, 256, 300, 1_024, 1 << 20] {
            let settings = Settings {
                memory_bytes: mib * MIB,
                ..Settings::default()
            };
            let parts = settings.memory().unwrap();
            let sum = sum(&parts);
            assert!(sum <= mib * MIB, "{mib}: {parts:?}");
            // What a queue may not have is nobody's.
            let is_left_over = mib > 1_024;
            assert!(is_left_over || sum > mib * MIB - 16, "{mib}: {parts:?}");
            assert!(parts.log_queue <= 4 << 30, "the log takes no more");
            assert!(
                parts.state_cache >= mib * MIB / 32,
                "{mib}: caches grow with the budget: {parts:?}"
            );
            let smallest = parts.named().into_iter().min_by_key(|(_, bytes)| *bytes);
            assert!(smallest.unwrap().1 >= MIB, "{mib}: {parts:?}");
            settings.check().unwrap();
        }
    }

    #[test]
    fn a_part_that_is_given_is_taken_off_first_and_the_others_share_what_is_left() {
        let usual = Settings::default().memory().unwrap();
        let settings = Settings {
            answers_bytes_max: Some(usual.answers + 20 * MIB),
            state_layer_bytes: Some(4 * MIB),
            ..Settings::default()
        };
        let parts = settings.memory().unwrap();
        assert_eq!(parts.answers, usual.answers + 20 * MIB);
        assert_eq!((parts.state_layers, parts.state_layer()), (10 * MIB, 4 * MIB));
        assert!(sum(&parts) <= settings.memory_bytes);
        assert!(
            parts.state_cache > usual.state_cache,
            "the layers gave more than answers took"
        );
        assert_eq!(parts.rest, usual.rest);
    }

    #[test]
    fn a_budget_that_is_too_little_for_its_parts_is_refused_with_what_it_must_be() {
        let with = |memory_bytes, calls| Settings {
            memory_bytes,
            calls_bytes_max: calls,
            ..Settings::default()
        };
        for calls in [None, Some(64 << 10), Some(200 * MIB)] {
            let refused = with(MIB, calls).memory().unwrap_err();
            let InvalidSettings::TooLittleMemory { memory_bytes, least } = refused.clone() else {
                panic!("{refused}");
            };
            assert_eq!(memory_bytes, MIB);
            assert_eq!(with(least, calls).check(), Ok(()));
            let refused = with(least - 1, calls).check().unwrap_err();
            assert_eq!(
                refused.iter().map(ToString::to_string).collect::<Vec<_>>(),
                [format!(
                    "memory_bytes is {}, and the parts of it need {least} at least: give it more, or the parts that are set \
                     themselves less",
                    least - 1
                )]
            );
        }
    }
}
