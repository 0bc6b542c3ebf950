//! Gives up old history by itself: the leader proposes it, now and then.
//!
//! Every node notes which revision stood when, by its own clock, so that whoever leads knows what is old. A node that has just
//! started knows nothing, and gives nothing up for as long as history is kept. Where the store's quota comes near, history goes
//! before anything is refused, however young it is. What goes is decided by the entry; no node decides for itself.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::front::Front;
use super::proposer::ROOM_WAIT_MAX;
use super::space::Used;
use crate::env::{self, Instant};
use crate::model::{Command, Outcome, Revision};
use crate::protocol::{Request, Response};
use crate::raft::Part;

/// History is looked at so many times within the time for which it is kept: what is kept is older by such a part at most.
const LOOKS: u32 = 20;
/// How often it is looked at, at least and at most: limits are changed meanwhile.
const LOOK_MAX: Duration = Duration::from_secs(5);
const LOOK_MIN: Duration = Duration::from_millis(50);
/// How often it is looked at, at least: the quota may be near soon.
const PRESSED_LOOK: Duration = Duration::from_millis(250);

/// So many are noted at most: more than are needed, and a bound where history is kept for ever.
const NOTED_MAX: usize = 1_000;

/// Which revision stood when.
#[derive(Debug, Default)]
struct Past {
    /// The oldest first; a revision at the first look that met it.
    seen: VecDeque<(Instant, Revision)>,
}

impl Past {
    /// Notes what stands now, unless something was noted within this time: so few are noted, however long history is kept.
    fn note(&mut self, now: Instant, revision: Revision, apart: Duration) {
        let is_new = |(at, last): &(Instant, Revision)| *last < revision && now.since(*at) >= apart;
        if self.seen.back().is_none_or(is_new) {
            self.seen.push_back((now, revision));
            if self.seen.len() > NOTED_MAX {
                self.seen.pop_front();
            }
        }
    }

    /// The newest revision that stood so long ago. What is older is forgotten.
    fn before(&mut self, now: Instant, kept: Duration) -> Option<Revision> {
        let is_old = |(at, _): &(Instant, Revision)| now.since(*at) >= kept;
        while self.seen.get(1).is_some_and(is_old) {
            self.seen.pop_front();
        }
        self.seen
            .front()
            .filter(|seen| is_old(seen))
            .map(|(_, revision)| *revision)
    }
}

/// Runs until it is dropped, with the node's tasks.
pub(super) async fn run(front: Arc<Front>) {
    let mut past = Past::default();
    let mut pause = LOOK_MIN;
    loop {
        wait(&front, pause).await;
        // A state that cannot be looked at has stopped the node.
        let Ok(view) = front.raft.machine().reader().view() else {
            return;
        };
        let (revision, oldest) = (view.applied().revision, view.applied().oldest);
        let limits = *view.limits().1;
        let is_pressed = Used::of(&view).presses();
        let has_gone = view.history_has_gone();
        drop(view);
        let now = env::now();
        let kept = Duration::from_millis(limits.history_kept_millis);
        if kept.is_zero() {
            pause = LOOK_MAX;
            past.note(now, revision, pause);
            continue;
        }
        pause = (kept / LOOKS).clamp(LOOK_MIN, LOOK_MAX);
        past.note(now, revision, kept / LOOKS);
        if is_pressed {
            // Half of what there is, each time, as soon as what was given up before has gone from the disk.
            pause = pause.min(PRESSED_LOOK);
            if has_gone {
                let half = oldest.number().midpoint(revision.number().saturating_add(1));
                give_up(&front, Revision::new(half).min(revision), oldest).await;
            }
            // It goes behind the next checkpoint, which nothing else asks for in a store that is full.
            let goes = !has_gone || front.raft.machine().applied().borrow().oldest > oldest;
            if goes && front.raft.role() == Part::Leader {
                let _in_time = env::timeout(LOOK_MAX, front.raft.machine().make_durable()).await;
            }
            continue;
        }
        let Some(old) = past.before(now, kept) else {
            continue;
        };
        // The present is one of those that are kept, and always is.
        let before_it = limits.history_revisions_kept.saturating_sub(1);
        let newest = revision.number().saturating_sub(before_it);
        let target = old.min(Revision::new(newest));
        give_up(&front, target, oldest).await;
    }
}

/// Waits so long, or until the store's quota is near.
async fn wait(front: &Front, pause: Duration) {
    let until = env::now() + pause;
    loop {
        let left = until.since(env::now());
        env::sleep(left.min(PRESSED_LOOK)).await;
        let view = front.raft.machine().reader().view();
        if left <= PRESSED_LOOK || view.is_ok_and(|view| Used::of(&view).presses()) {
            return;
        }
    }
}

/// Proposes that history up to a revision is given up, where this node leads.
async fn give_up(front: &Arc<Front>, target: Revision, oldest: Revision) {
    if target <= oldest || front.raft.role() != Part::Leader {
        return;
    }
    let command = Command::Compact { revision: target };
    match front
        .call(Request::Write(command), env::now() + ROOM_WAIT_MAX)
        .await
    {
        Response::Written(Outcome::Compacted(compacted)) => {
            tracing::debug!(oldest = %compacted.oldest, "older history is given up");
        }
        // Not the leader any more, or no quorum: whoever leads next does it.
        other => tracing::debug!(?other, "history was not given up"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stood_so_long_ago_is_known_and_nothing_before_it_is_kept() {
        let start = env::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let kept = Duration::from_secs(10);
        let mut past = Past::default();
        for second in 0..10 {
            past.note(
                at(second),
                Revision::new(100 + second / 2),
                Duration::from_millis(500),
            );
            assert_eq!(
                past.before(at(second), kept),
                None,
                "nothing is so old at {second} s"
            );
        }
        assert_eq!(past.seen.len(), 5, "one for each revision");
        assert_eq!(past.before(at(10), kept), Some(Revision::new(100)));
        assert_eq!(past.before(at(13), kept), Some(Revision::new(101)));
        assert_eq!(
            past.before(at(1_000), kept),
            Some(Revision::new(104)),
            "nothing came since"
        );
        assert_eq!(past.seen.len(), 1);
        past.note(at(1_001), Revision::new(105), Duration::from_secs(5));
        past.note(at(1_002), Revision::new(106), Duration::from_secs(5));
        past.note(at(1_006), Revision::new(107), Duration::from_secs(5));
        assert_eq!(past.seen.len(), 3, "two within five seconds are one");
    }
}
