//! Shrinks the state file by itself, where it is much larger than what it holds.

use std::sync::Arc;
use std::time::Duration;

use super::front::Front;
use super::space::Used;
use crate::env;
use crate::machine::NotShrunk;

/// After a copy that came to nothing it is tried again so much later, and twice as late each further time.
const PAUSE_MIN: Duration = Duration::from_secs(120);
const PAUSE_MAX: Duration = Duration::from_secs(3_600);

/// A file is to shrink from so many times what it holds on, where three quarters of the disk are used.
const TIGHT_AT: u32 = 2;

/// Whether a file of so many bytes is to shrink, which holds what counts so many: where it is longer than `at` times that, by
/// more than what it is worth. Never, where `at` is 0.
fn is_due(file_bytes: u64, held_bytes: u64, at: u32, worth_bytes: u64) -> bool {
    let wanted = held_bytes
        .saturating_mul(u64::from(at))
        .saturating_add(worth_bytes);
    at > 0 && file_bytes > wanted
}

/// From how many times what it holds on a file is to shrink: earlier where the disk is tight.
fn at(shrink_at: u32, disk: Option<Used>) -> u32 {
    match disk.is_some_and(Used::is_tight) {
        true => shrink_at.min(TIGHT_AT),
        false => shrink_at,
    }
}

/// Runs until it is dropped, with the node's tasks.
pub(super) async fn run(front: Arc<Front>) {
    let tuning = front.settings.tuning;
    let look_every = Duration::from_millis(tuning.shrink_look_millis);
    let mut pause = PAUSE_MIN;
    // What a copy does not make smaller (answers that sessions remember, large pages) is not copied again and again.
    let mut dense = 0u64;
    loop {
        env::sleep(look_every).await;
        // A state that cannot be looked at has stopped the node.
        let view = front.raft.machine().reader().view();
        let Ok((holds, file_bytes)) = view.map(|view| (view.holds(), view.file_bytes())) else {
            return;
        };
        let held = holds.live_bytes.saturating_add(holds.history_bytes);
        if file_bytes < dense.saturating_add(dense / 2)
            || !is_due(
                file_bytes,
                held,
                at(front.settings.shrink_at, front.space().disk_used()),
                tuning.shrink_worth_bytes,
            )
        {
            continue;
        }
        match front.raft.machine().shrink().await {
            Ok(shrunk) => {
                dense = shrunk.after;
                tracing::info!(
                    before = shrunk.before,
                    after = shrunk.after,
                    "the state file was shrunk"
                );
                pause = PAUSE_MIN;
            }
            Err(NotShrunk::Stopped) => return,
            Err(reason) => {
                tracing::info!(%reason, ?pause, "the state file was not shrunk");
                env::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_shrinks_that_is_so_many_times_larger_than_what_it_holds() {
        const MIB: u64 = 1 << 20;
        assert!(
            !is_due(299 * MIB, 100 * MIB, 3, 64 * MIB),
            "less than three times"
        );
        assert!(
            !is_due(364 * MIB, 100 * MIB, 3, 64 * MIB),
            "it would be worth little"
        );
        assert!(is_due(365 * MIB, 100 * MIB, 3, 64 * MIB));
        assert!(!is_due(u64::MAX, 0, 0, 64 * MIB), "never");
        assert!(is_due(65 * MIB, 0, 3, 64 * MIB), "an empty one that was large");
    }

    #[test]
    fn a_file_shrinks_earlier_where_three_quarters_of_the_disk_are_used() {
        let used = |bytes| {
            Some(Used {
                bytes,
                history: 0,
                max: Some(100),
            })
        };
        assert_eq!(at(3, None), 3);
        assert_eq!(at(3, used(74)), 3);
        assert_eq!(at(3, used(75)), 2);
        assert_eq!(at(0, used(99)), 0, "never");
    }
}
