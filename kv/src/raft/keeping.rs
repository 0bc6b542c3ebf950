//! What of the log is kept: the state is made durable from time to time, and the log goes behind it and behind snapshots.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;

use super::purge::PurgeWanted;
use super::sendings::Sendings;
use super::state_machine::{Raft, StateMachine};
use super::types::LogId;
use crate::env;
use crate::log::Log;
use crate::model::LogIndex;

/// Makes the state durable from time to time, so that a restart replays little and the state file's pages
/// can be used again; and has the log purged behind it where it takes more of the disk than it may.
pub(super) async fn keep_durable(
    machine: StateMachine,
    raft: Raft,
    log: Log,
    interval: Duration,
    log_bytes_kept: u64,
    wanted: PurgeWanted,
) {
    let mut applied = machine.applied();
    let (mut asked, mut seen) = (None, None);
    // Ends when the state machine's owner does. What could not be purged yet is tried again: a follower may still
    // be reading it, or the snapshot before it was not made in time.
    while log.beyond(log_bytes_kept).is_some() || applied.changed().await.is_ok() {
        wait_for_interval(&log, interval, log_bytes_kept, seen).await;
        applied.borrow_and_update();
        if machine.make_durable().await.is_err() {
            return;
        }
        if asked.is_some_and(|upto| log.purged().is_some_and(|purged| purged.index >= upto)) {
            env::mark("log.purged_by_bytes");
        }
        asked = log.beyond(log_bytes_kept);
        seen = asked;
        let snapshot = raft
            .metrics()
            .borrow_watched()
            .snapshot
            .map(|id| LogIndex::new(id.index));
        if let Some(upto) = log.beyond(log_bytes_kept.saturating_mul(2)).min(snapshot) {
            wanted.set(upto);
        }
        if let (Some(upto), Some(held)) = (asked, machine.sendings().held())
            && held < upto
        {
            let upto = spared(held, log.beyond(log_bytes_kept.saturating_mul(2)));
            match upto > held {
                true => machine.sendings().overrun(upto),
                false => env::mark("log.held_for_snapshot"),
            }
            asked = Some(upto);
        }
        if let Some(upto) = asked.filter(|upto| log.purged().is_none_or(|purged| purged.index < *upto)) {
            tracing::debug!(%upto, log_bytes_kept, "the log takes more of the disk than it may: it is purged");
            // Purging stops at the last snapshot: first one of what was just made durable.
            if raft.trigger().snapshot().await.is_err() {
                return;
            }
            let _in_time = env::timeout(SNAPSHOT_WAIT, has_snapshot(&raft, upto)).await;
            if raft.trigger().purge_log(upto.number()).await.is_err() {
                return;
            }
        }
    }
}

/// A snapshot is what the last checkpoint has: it takes no time but that of the tasks on the way.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(1);

/// Waits for a snapshot of an entry, or for the end of Raft.
async fn has_snapshot(raft: &Raft, upto: LogIndex) {
    let mut metrics = raft.metrics();
    let is_there = |id: &Option<LogId>| id.as_ref().is_some_and(|id| id.index >= upto.number());
    while !is_there(&metrics.borrow_watched().snapshot) && metrics.changed().await.is_ok() {}
}

/// Waits for so long, or until the log takes half as much again as it may with what has come since it was `seen`.
async fn wait_for_interval(log: &Log, interval: Duration, bytes_kept: u64, seen: Option<LogIndex>) {
    const LOOK: Duration = Duration::from_millis(100);
    let until = env::now() + interval;
    let much = bytes_kept.saturating_add(bytes_kept / 2);
    loop {
        let left = until.since(env::now());
        if left.is_zero() {
            return;
        }
        env::sleep(left.min(LOOK)).await;
        if log.beyond(much) > seen {
            env::mark("log.purged_before_its_time");
            return;
        }
    }
}

/// Up to where the log is purged, where what follows `held` is for a snapshot on its way: no further, but for what lies
/// beyond twice of what is kept.
fn spared(held: LogIndex, beyond_twice: Option<LogIndex>) -> LogIndex {
    beyond_twice.map_or(held, |twice| twice.max(held))
}

/// So many entries are purged at once at least: each purge is a record of the log, and a sync.
const PURGE_ENTRIES_MIN: u64 = 256;

/// Has the log purged behind each snapshot, but for the entries that are to be kept.
pub(super) async fn keep_short(raft: Raft, sendings: Sendings, entries_kept: u64) {
    let mut changes = raft.metrics();
    let mut asked = None;
    loop {
        let upto = {
            let metrics = changes.borrow_watched();
            let index = |id: &Option<LogId>| id.as_ref().map(|id| id.index);
            let held = sendings.held().map(LogIndex::number);
            beyond_kept(
                index(&metrics.snapshot),
                held,
                index(&metrics.purged),
                entries_kept,
            )
        };
        // What waits for a follower that still reads it is not asked for again.
        if let Some(upto) = upto.filter(|upto| Some(*upto) > asked) {
            asked = Some(upto);
            if raft.trigger().purge_log(upto).await.is_err() {
                return;
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// The last entry that may go, where that is worth it: a snapshot has it, and none that is on its way needs what follows
/// `held`.
fn beyond_kept(
    snapshot: Option<u64>,
    held: Option<u64>,
    purged: Option<u64>,
    entries_kept: u64,
) -> Option<u64> {
    let snapshot = snapshot.map(|snapshot| held.map_or(snapshot, |held| held.min(snapshot)));
    let after = |last: Option<u64>| last.map_or(0, |last| last.saturating_add(1));
    let end = after(snapshot).saturating_sub(entries_kept);
    (end >= after(purged).saturating_add(PURGE_ENTRIES_MIN)).then(|| end - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_behind_a_snapshot_on_its_way_stays_up_to_twice_what_is_kept() {
        let upto = |held, twice: Option<u64>| spared(LogIndex::new(held), twice.map(LogIndex::new)).number();
        assert_eq!(upto(20, None), 20, "what follows waits for it");
        assert_eq!(
            upto(20, Some(5)),
            20,
            "of what is beyond twice as much it needs nothing"
        );
        assert_eq!(upto(20, Some(25)), 25, "the disk has its bound");
    }

    #[test]
    fn what_follows_a_snapshot_on_its_way_is_not_purged_behind_a_later_one() {
        assert_eq!(beyond_kept(Some(5_000), Some(1_000), Some(500), 0), Some(1_000));
        assert_eq!(beyond_kept(Some(5_000), Some(1_000), Some(1_000), 0), None);
        assert_eq!(beyond_kept(Some(5_000), Some(6_000), Some(1_000), 0), Some(5_000));
    }

    #[test]
    fn the_log_is_purged_behind_a_snapshot_in_strides_and_keeps_what_it_is_to_keep() {
        // Without a snapshot nothing goes, and with one that is short nothing yet.
        assert_eq!(beyond_kept(None, None, None, 0), None);
        assert_eq!(beyond_kept(Some(PURGE_ENTRIES_MIN - 2), None, None, 0), None);
        assert_eq!(
            beyond_kept(Some(PURGE_ENTRIES_MIN - 1), None, None, 0),
            Some(PURGE_ENTRIES_MIN - 1)
        );
        assert_eq!(beyond_kept(Some(1_000), None, Some(600), 100), Some(900));
        assert_eq!(beyond_kept(Some(1_000), None, Some(700), 100), None);
        assert_eq!(beyond_kept(Some(1_000), None, None, 1_000_000), None);
    }
}
