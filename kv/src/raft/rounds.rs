//! Which readers share a round: the rule of `read_index`, without anything that waits.
//!
//! Always: a reader is answered by a round that began after it came, by one alone, and by every such round's end; no more
//! than [`ROUNDS_MAX`] rounds are under way; whoever waits while none is under way waits for nothing.

use std::collections::VecDeque;
use std::time::Duration;

use crate::env::Instant;
use crate::planted::{self, Bug};

/// Rounds that may be under way at once.
pub(super) const ROUNDS_MAX: usize = 8;
/// How long those that come later wait for a round to end before they begin one of their own. Longer than a round
/// takes in one place, so that under load each round has many readers.
const PATIENCE: Duration = Duration::from_millis(25);

/// A round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RoundId(u64);

/// The readers that wait, and those of each round under way.
#[derive(Debug)]
pub(super) struct Rounds<R> {
    gathering: Vec<R>,
    under_way: VecDeque<Round<R>>,
    begun: u64,
}

#[derive(Debug)]
struct Round<R> {
    id: RoundId,
    began: Instant,
    readers: Vec<R>,
}

impl<R> Default for Rounds<R> {
    fn default() -> Self {
        Self {
            gathering: Vec::new(),
            under_way: VecDeque::new(),
            begun: 0,
        }
    }
}

impl<R> Rounds<R> {
    /// A reader comes: it waits for the next round to begin.
    pub(super) fn arrive(&mut self, reader: R) {
        if planted::is(Bug::RoundJoinedLate)
            && let Some(round) = self.under_way.back_mut()
        {
            return round.readers.push(reader);
        }
        self.gathering.push(reader);
    }

    /// Whether nobody waits and no round is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.gathering.is_empty() && self.under_way.is_empty()
    }

    /// Forgets readers that wait for a round and need none any more.
    pub(super) fn retain(&mut self, needs: impl FnMut(&R) -> bool) {
        self.gathering.retain(needs);
    }

    /// Whether anybody waits for a round to begin.
    pub(super) fn is_awaited(&self) -> bool {
        !self.gathering.is_empty()
    }

    /// From when on the next round may begin, if anybody waits for it; `None` while too many are under way.
    ///
    /// Each round under way doubles the time until the next: a leader that does not answer is asked more seldom.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        match (self.under_way.len(), self.under_way.back()) {
            (0, _) | (_, None) => Some(now),
            (ROUNDS_MAX.., _) => None,
            (rounds, Some(newest)) => {
                let doublings = u32::try_from(rounds - 1).unwrap_or(u32::MAX);
                Some(newest.began + PATIENCE.saturating_mul(2u32.saturating_pow(doublings)))
            }
        }
    }

    /// Begins a round for all that wait.
    pub(super) fn begin(&mut self, now: Instant) -> (RoundId, &[R]) {
        self.begun += 1;
        let id = RoundId(self.begun);
        self.under_way.push_back(Round {
            id,
            began: now,
            readers: std::mem::take(&mut self.gathering),
        });
        let readers = self.under_way.back().map_or(&[][..], |round| &round.readers);
        (id, readers)
    }

    /// Takes those of a round's readers that it cannot help out of it.
    pub(super) fn dismiss(&mut self, id: RoundId, mut which: impl FnMut(&R) -> bool) -> Vec<R> {
        let Some(round) = self.under_way.iter_mut().find(|round| round.id == id) else {
            return Vec::new();
        };
        let (gone, kept) = std::mem::take(&mut round.readers)
            .into_iter()
            .partition(|reader| which(reader));
        round.readers = kept;
        gone
    }

    /// A round has ended: when it began, and who gets its answer.
    pub(super) fn end(&mut self, id: RoundId) -> Option<(Instant, Vec<R>)> {
        let place = self.under_way.iter().position(|round| round.id == id)?;
        let round = self.under_way.remove(place)?;
        Some((round.began, round.readers))
    }

    /// A round has come to nothing: its readers wait for the next one, before those that came later.
    pub(super) fn begin_anew(&mut self, id: RoundId) {
        if let Some((_, mut readers)) = self.end(id) {
            readers.append(&mut self.gathering);
            self.gathering = readers;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::env;

    /// The story: a reader that joined a round which had begun before it came went unseen in 200 seeds of the simulator,
    /// with 4,049 occasions. The round may have been confirmed by then, so that what was acknowledged since is missing.
    #[test]
    fn a_reader_never_gets_the_answer_of_a_round_that_began_before_it_came() {
        let now = env::now();
        let mut rounds = Rounds::default();
        rounds.arrive("early");
        let (first, readers) = rounds.begin(now);
        assert_eq!(readers, ["early"]);
        rounds.arrive("late");
        let (second, _) = rounds.begin(now + PATIENCE);
        assert_eq!(rounds.end(first), Some((now, vec!["early"])));
        assert_eq!(rounds.end(second), Some((now + PATIENCE, vec!["late"])));
    }

    /// The story: while a follower's question to a dead leader waited for an election timeout, all its readers waited,
    /// also once it led itself.
    #[test]
    fn a_round_that_does_not_end_holds_nobody_up_for_long() {
        let mut now = env::now();
        let mut rounds = Rounds::default();
        let mut waits = Vec::new();
        for reader in 0..ROUNDS_MAX {
            rounds.arrive(reader);
            let due = rounds.due(now).expect("there is room for another round");
            waits.push(due.since(now));
            now = due;
            rounds.begin(now);
        }
        assert_eq!(waits[..4], [Duration::ZERO, PATIENCE, PATIENCE * 2, PATIENCE * 4]);
        rounds.arrive(ROUNDS_MAX);
        assert_eq!(rounds.due(now), None, "as many are under way as may be");
        let any = rounds.under_way[3].id;
        rounds.end(any);
        assert!(rounds.due(now).is_some());
    }

    #[test]
    fn readers_of_a_round_that_came_to_nothing_are_in_the_next_one() {
        let now = env::now();
        let mut rounds = Rounds::default();
        rounds.arrive("one");
        let (first, _) = rounds.begin(now);
        rounds.arrive("two");
        rounds.begin_anew(first);
        assert_eq!(rounds.end(first), None);
        assert_eq!(rounds.due(now), Some(now));
        assert_eq!(rounds.begin(now).1, ["one", "two"]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Arrive,
        Begin,
        End(prop::sample::Index),
        Anew(prop::sample::Index),
        Dismiss(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        let any = any::<prop::sample::Index>;
        prop_oneof![
            4 => Just(Step::Arrive),
            3 => Just(Step::Begin),
            2 => any().prop_map(Step::End),
            1 => any().prop_map(Step::Anew),
            1 => any().prop_map(Step::Dismiss),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_each_reader_is_answered_once_and_by_a_later_round(
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let start = env::now();
            let mut rounds: Rounds<usize> = Rounds::default();
            // By reader: the step at which it came. By round: the step at which it began.
            let (mut came, mut began) = (Vec::new(), Vec::new());
            let (mut answered, mut dismissed) = (Vec::new(), Vec::new());
            for (at, step) in steps.into_iter().enumerate() {
                let now = start + Duration::from_secs(at as u64);
                let pick = |index: prop::sample::Index, rounds: &Rounds<usize>| {
                    let ids: Vec<_> = rounds.under_way.iter().map(|round| round.id).collect();
                    (!ids.is_empty()).then(|| ids[index.index(ids.len())])
                };
                match step {
                    Step::Arrive => {
                        rounds.arrive(came.len());
                        came.push(at);
                    }
                    Step::Begin => {
                        if rounds.is_awaited() && rounds.due(now).is_some_and(|due| due <= now) {
                            let (id, readers) = rounds.begin(now);
                            prop_assert!(!readers.is_empty());
                            began.push((id, at));
                        }
                    }
                    Step::End(index) => {
                        if let Some(id) = pick(index, &rounds) {
                            let round = began.iter().find(|(begun, _)| *begun == id).map(|(_, at)| *at);
                            let (_, readers) = rounds.end(id).expect("it is under way");
                            for reader in readers {
                                prop_assert!(Some(came[reader]) < round);
                                answered.push(reader);
                            }
                        }
                    }
                    Step::Anew(index) => {
                        if let Some(id) = pick(index, &rounds) {
                            rounds.begin_anew(id);
                        }
                    }
                    Step::Dismiss(index) => {
                        if let Some(id) = pick(index, &rounds) {
                            dismissed.append(&mut rounds.dismiss(id, |reader| reader % 2 == 0));
                        }
                    }
                }
                prop_assert!(rounds.under_way.len() <= ROUNDS_MAX);
                prop_assert!(!rounds.under_way.is_empty() || rounds.due(now) == Some(now));
            }
            let waiting = rounds.gathering.iter().chain(rounds.under_way.iter().flat_map(|round| &round.readers));
            let mut all: Vec<usize> = answered.into_iter().chain(dismissed).chain(waiting.copied()).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..came.len()).collect::<Vec<_>>());
        }
    }
}
