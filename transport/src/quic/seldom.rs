//! One line of the log a while about what strangers can cause as often as they like.
//!
//! Pure: the owner brings the time.

use std::time::Duration;

use tokio::time::Instant;

/// At most one line of a kind is written within this time.
pub(super) const EVERY: Duration = Duration::from_secs(10);

/// Whether the next line of a kind is due.
#[derive(Debug, Default)]
pub(super) struct Seldom {
    last: Option<Instant>,
    kept_back: u64,
}

impl Seldom {
    /// It happened once more. `Some` when a line is due, with how many were kept back since the last one.
    pub(super) fn happened(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.duration_since(last) < EVERY) {
            self.kept_back += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.kept_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_due_at_first_and_then_once_a_while_with_how_many_were_kept_back() {
        let begun = Instant::now();
        let mut seldom = Seldom::default();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let due: Vec<_> = [0, 1, 9, 10, 11, 40, 41]
            .map(|second| seldom.happened(at(second)))
            .into();
        assert_eq!(due, [Some(0), None, None, Some(2), None, Some(1), None]);
    }
}
