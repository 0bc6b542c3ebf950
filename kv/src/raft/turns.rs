//! Whose turn it is to be written to the state file: a checkpoint, a step of forgetting or of merging, or a copy.
//!
//! One of them is written at a time, so each makes the others wait. Writers that fill one layer after the other must not keep
//! history from going, nor runs from becoming few, for as long as they write; and who waits for a checkpoint must not wait for
//! steps.
//!
//! Always: where somebody waits for a checkpoint it is next; where a quarter more has come than asks for one it is next too, but
//! behind merging where there are far too many runs.

/// When a checkpoint begins, at the latest: whichever bound is met first. While one is being written as much may
/// gather again, and half as much more where it is steps of forgetting that come first; then what comes waits: the layers take
/// two and a half times the bytes at most, and a transaction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ApplyBounds {
    /// Entries applied since the last one began.
    pub entries: u64,
    /// Bytes of memory that hold what was applied since.
    pub bytes: u64,
    /// Bytes of entries that wait to be applied; openraft waits then, so that commits cannot outrun applies. A job that is larger
    /// goes alone.
    pub queue_bytes: u64,
}

impl Default for ApplyBounds {
    fn default() -> Self {
        Self {
            entries: 100_000,
            bytes: 48 * 1024 * 1024,
            queue_bytes: 16 * 1024 * 1024,
        }
    }
}

/// So many steps of merging and of forgetting have their turn behind a checkpoint, before the next one that a bound asks for.
const STEPS_BETWEEN: u32 = 48;

/// With more runs than these in the file merging comes before the next checkpoint, however long applying waits: each look-up goes
/// through more runs the longer they wait.
const RUNS_MAX: usize = 32;

/// What can be written next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// A step of forgetting.
    Forget,
    /// A step of merging.
    Merge,
    /// A step of merging that nobody needs who writes.
    MergeAtRest,
    /// The state file is copied into a smaller one.
    Copy,
    Checkpoint,
}

/// Where the state machine stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) bounds: ApplyBounds,
    /// Entries applied since the last checkpoint began.
    pub(super) entries: u64,
    /// Bytes of memory that hold them.
    pub(super) bytes: u64,
    /// Runs of heads in the file.
    pub(super) runs: usize,
    /// Somebody waits for a checkpoint.
    pub(super) is_awaited: bool,
    /// Somebody waits for a smaller file.
    pub(super) is_copy_wanted: bool,
}

impl Standing {
    /// Whether a bound asks for a checkpoint.
    pub(super) fn is_full(&self) -> bool {
        self.entries >= self.bounds.entries || self.bytes >= self.bounds.bytes
    }

    /// Whether so much has come since that a step would have writers wait. One takes some hundredths of a second; what may gather
    /// meanwhile is half as much again as asks for a checkpoint.
    fn is_urgent(&self) -> bool {
        let is_urgent = |count: u64, bound: u64| count >= bound.saturating_add(bound / 4);
        is_urgent(self.entries, self.bounds.entries) || is_urgent(self.bytes, self.bounds.bytes)
    }

    /// Whether there is time: a layer that fills up meanwhile would have to wait for the step.
    fn is_calm(&self) -> bool {
        !self.is_awaited && !self.is_full() && self.bytes < self.bounds.bytes / 2
    }
}

/// What has had its turn.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Steps that come before the next checkpoint.
    steps_left: u32,
    /// The next step is one of forgetting, where there is something to forget: they take turns, so that neither waits for as long
    /// as there is something for the other to do.
    forgets_next: bool,
}

impl Turns {
    /// What is to be written next, or where there is nothing of that what comes behind it.
    pub(super) fn next(&self, standing: &Standing) -> impl Iterator<Item = Turn> + use<> {
        let is_calm = standing.is_calm();
        let has_turn = self.steps_left > 0 && !standing.is_awaited && !standing.is_urgent();
        let is_pressing = standing.runs > RUNS_MAX && !standing.is_awaited;
        let steps = match self.forgets_next && !is_pressing {
            true => [Turn::Forget, Turn::Merge],
            false => [Turn::Merge, Turn::Forget],
        };
        let may_step = has_turn || is_calm || is_pressing;
        let [first, second] = steps.map(|step| may_step.then_some(step));
        let others = [
            (is_calm && standing.is_copy_wanted).then_some(Turn::Copy),
            // All that was applied is in the file.
            (is_calm && standing.entries == 0).then_some(Turn::MergeAtRest),
            (standing.is_awaited || standing.is_full()).then_some(Turn::Checkpoint),
        ];
        [first, second].into_iter().chain(others).flatten()
    }

    /// Takes note of what has begun.
    pub(super) fn begun(&mut self, turn: Turn) {
        match turn {
            Turn::Forget | Turn::Merge => {
                self.steps_left = self.steps_left.saturating_sub(1);
                self.forgets_next = !self.forgets_next;
            }
            Turn::Checkpoint => self.steps_left = STEPS_BETWEEN,
            Turn::Copy | Turn::MergeAtRest => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing is asked for, and half of what asks for a checkpoint has come.
    fn standing() -> Standing {
        Standing {
            bounds: ApplyBounds {
                entries: 100,
                bytes: 1_000,
                queue_bytes: 1_000,
            },
            entries: 50,
            bytes: 500,
            runs: 1,
            is_awaited: false,
            is_copy_wanted: true,
        }
    }

    fn next(turns: &Turns, standing: Standing) -> Vec<Turn> {
        turns.next(&standing).collect()
    }

    fn after(begun: &[Turn]) -> Turns {
        let mut turns = Turns::default();
        begun.iter().for_each(|turn| turns.begun(*turn));
        turns
    }

    const MANY: usize = RUNS_MAX + 1;

    #[test]
    fn nothing_is_written_while_a_layer_that_is_half_full_fills_up() {
        assert_eq!(next(&Turns::default(), standing()), []);
        let few = Standing {
            bytes: 499,
            ..standing()
        };
        assert_eq!(
            next(&Turns::default(), few),
            [Turn::Merge, Turn::Forget, Turn::Copy]
        );
        let nothing = Standing {
            entries: 0,
            bytes: 0,
            ..standing()
        };
        let all = [Turn::Merge, Turn::Forget, Turn::Copy, Turn::MergeAtRest];
        assert_eq!(next(&Turns::default(), nothing), all);
        let unasked = Standing {
            is_copy_wanted: false,
            ..nothing
        };
        let rest = [Turn::Merge, Turn::Forget, Turn::MergeAtRest];
        assert_eq!(next(&Turns::default(), unasked), rest);
    }

    #[test]
    fn who_waits_for_a_checkpoint_waits_for_no_step_however_many_runs_there_are() {
        for (entries, bytes, runs) in [(0, 0, 1), (50, 499, MANY), (100, 1_000, MANY), (200, 2_000, 1)] {
            let awaited = Standing {
                entries,
                bytes,
                runs,
                is_awaited: true,
                ..standing()
            };
            assert_eq!(next(&after(&[Turn::Checkpoint]), awaited), [Turn::Checkpoint]);
        }
    }

    /// The story: under a lasting load history never went.
    #[test]
    fn behind_a_checkpoint_so_many_steps_come_before_the_next_one_that_a_bound_asks_for() {
        for (entries, bytes) in [(100, 0), (0, 1_000), (124, 1_249)] {
            let full = Standing {
                entries,
                bytes,
                ..standing()
            };
            let mut turns = after(&[Turn::Checkpoint]);
            for step in 0..STEPS_BETWEEN {
                let next = next(&turns, full);
                let (first, second) = match step % 2 {
                    0 => (Turn::Merge, Turn::Forget),
                    _ => (Turn::Forget, Turn::Merge),
                };
                assert_eq!(next, [first, second, Turn::Checkpoint], "they take turns");
                turns.begun(first);
            }
            assert_eq!(next(&turns, full), [Turn::Checkpoint]);
            turns.begun(Turn::Checkpoint);
            assert_eq!(next(&turns, full).len(), 3, "their turn comes again");
        }
    }

    #[test]
    fn a_checkpoint_is_next_once_a_quarter_more_has_come_than_asks_for_one() {
        for (entries, bytes) in [(125, 0), (0, 1_250)] {
            let urgent = Standing {
                entries,
                bytes,
                ..standing()
            };
            assert_eq!(next(&after(&[Turn::Checkpoint]), urgent), [Turn::Checkpoint]);
        }
    }

    /// The story: thirty runs had piled up behind a merge of millions, and each look-up went through all of them.
    #[test]
    fn with_far_too_many_runs_merging_comes_before_all_that_nobody_waits_for() {
        for begun in [&[Turn::Checkpoint][..], &[Turn::Checkpoint, Turn::Merge], &[]] {
            let urgent = Standing {
                entries: 200,
                bytes: 2_000,
                runs: MANY,
                ..standing()
            };
            let expected = [Turn::Merge, Turn::Forget, Turn::Checkpoint];
            assert_eq!(next(&after(begun), urgent), expected);
            let many = Standing {
                runs: RUNS_MAX,
                ..urgent
            };
            assert_eq!(next(&after(begun), many), [Turn::Checkpoint]);
        }
    }
}
