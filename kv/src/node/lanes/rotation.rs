//! Whose turn it is: guests take turns, and so do the jobs of each.
//!
//! Always: a guest's next turn comes when every other guest that has a job has had one.

use std::collections::{BTreeMap, VecDeque};

use crate::node::room::GuestNumber;

/// Jobs that wait for their turn.
#[derive(Debug)]
pub(super) struct Rotation<J> {
    /// Those who have a job, each once; the next first.
    turns: VecDeque<GuestNumber>,
    jobs: BTreeMap<GuestNumber, VecDeque<J>>,
}

impl<J> Default for Rotation<J> {
    fn default() -> Self {
        Self {
            turns: VecDeque::new(),
            jobs: BTreeMap::new(),
        }
    }
}

impl<J> Rotation<J> {
    /// Adds a job behind all others of its guest.
    pub(super) fn push(&mut self, guest: GuestNumber, job: J) {
        let jobs = self.jobs.entry(guest).or_default();
        if jobs.is_empty() {
            self.turns.push_back(guest);
        }
        jobs.push_back(job);
    }

    /// Takes the job whose turn it is.
    pub(super) fn next(&mut self) -> Option<J> {
        let guest = self.turns.pop_front()?;
        let jobs = self.jobs.get_mut(&guest)?;
        let job = jobs.pop_front();
        if jobs.is_empty() {
            self.jobs.remove(&guest);
        } else {
            self.turns.push_back(guest);
        }
        job
    }

    /// Takes out every job that `is_to_go`, in no order that matters.
    pub(super) fn take_out(&mut self, mut is_to_go: impl FnMut(&J) -> bool) -> Vec<J> {
        let mut gone = Vec::new();
        for jobs in self.jobs.values_mut() {
            let (go, stay): (VecDeque<J>, VecDeque<J>) =
                std::mem::take(jobs).into_iter().partition(|job| is_to_go(job));
            *jobs = stay;
            gone.extend(go);
        }
        self.jobs.retain(|_, jobs| !jobs.is_empty());
        self.turns.retain(|guest| self.jobs.contains_key(guest));
        gone
    }

    pub(super) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.jobs.values().map(VecDeque::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guests() -> [GuestNumber; 3] {
        [0, 1, 2].map(GuestNumber::new)
    }

    #[test]
    fn guests_take_turns_however_many_jobs_one_of_them_has() {
        let [many, one, two] = guests();
        let mut rotation = Rotation::default();
        for job in ["m1", "m2", "m3"] {
            rotation.push(many, job);
        }
        rotation.push(one, "o1");
        rotation.push(two, "t1");
        // A job that is not done goes back behind its guest's others.
        let mut turns = Vec::new();
        for _ in 0..7 {
            let job = rotation.next().expect("there are jobs");
            turns.push(job);
            let guest = match job.as_bytes()[0] {
                b'm' => many,
                b'o' => one,
                _ => two,
            };
            rotation.push(guest, job);
        }
        assert_eq!(turns, ["m1", "o1", "t1", "m2", "o1", "t1", "m3"]);
    }

    #[test]
    fn what_is_taken_out_has_no_turn_any_more() {
        let [a, b, _] = guests();
        let mut rotation = Rotation::default();
        for (guest, job) in [(a, 1), (a, 2), (b, 3)] {
            rotation.push(guest, job);
        }
        assert_eq!(rotation.len(), 3);
        let mut gone = rotation.take_out(|job| *job != 2);
        gone.sort_unstable();
        assert_eq!(gone, [1, 3]);
        assert_eq!((rotation.next(), rotation.next()), (Some(2), None));
        assert!(rotation.is_empty());
    }
}
