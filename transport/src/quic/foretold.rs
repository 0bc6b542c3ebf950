//! The end of certificates, foretold in the log.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use super::expiry::LOOK_EVERY;
use super::shared::Shared;
use crate::certs::{Validity, utc};

const DAY: Duration = Duration::from_secs(86_400);

/// What is left when it is said, the most first.
const FORETOLD: [Duration; 3] = [DAY.saturating_mul(30), DAY.saturating_mul(7), DAY];

/// Says in the log that a certificate ends, once a day from thirty days before on, until the transport closes.
pub(super) async fn foretell(shared: Arc<Shared>) {
    let mut told = [None; 2];
    loop {
        let own = shared.own.read().unwrap_or_else(PoisonError::into_inner).times;
        let now = SystemTime::now();
        for ((kind, validity), told) in own.kinds().into_iter().zip(&mut told) {
            if let Some(foretold) = due(validity, now, *told) {
                *told = Some((foretold, now));
                let (identity, ends) = (&shared.identity, utc(validity.end()));
                match foretold {
                    Foretold::Ended => {
                        tracing::error!(%identity, kind, ended = ends, "a certificate has ended")
                    }
                    Foretold::Within(_) => {
                        tracing::warn!(%identity, kind, ends, "a certificate ends soon: renew it")
                    }
                }
            }
        }
        tokio::select! {
            () = shared.closing.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Foretold {
    /// Within this.
    Within(Duration),
    Ended,
}

/// What is to be said now, after what was said last and when. Of a certificate that is short-lived by intention nothing
/// is said in the first two thirds of its time.
fn due(validity: Validity, now: SystemTime, told: Option<(Foretold, SystemTime)>) -> Option<Foretold> {
    let end = validity.end();
    let foretold = match end.duration_since(now) {
        Ok(left) if !left.is_zero() => {
            let whole = end.duration_since(validity.not_before).unwrap_or_default();
            let within = |within: &&Duration| left <= **within;
            let nearest = FORETOLD.iter().rev().find(within)?;
            if left > whole / 3 {
                return None;
            }
            Foretold::Within(*nearest)
        }
        _ => Foretold::Ended,
    };
    match told {
        Some((last, at)) if last == foretold && now < at + DAY => None,
        _ => Some(foretold),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid_for(whole: Duration) -> (Validity, SystemTime) {
        let begun = SystemTime::UNIX_EPOCH + 10_000 * DAY;
        let validity = crate::certs::tests_validity(begun, begun + whole - Duration::from_secs(1));
        (validity, begun)
    }

    #[test]
    fn an_end_is_foretold_at_thirty_seven_and_one_days_and_once_a_day() {
        let (validity, begun) = valid_for(365 * DAY);
        let end = begun + 365 * DAY;
        let mut told = None;
        let mut lines = Vec::new();
        for quarter in (0..4 * 40).rev() {
            let left = DAY * quarter / 4;
            if let Some(foretold) = due(validity, end - left, told) {
                told = Some((foretold, end - left));
                lines.push((quarter, foretold));
            }
        }
        let days: Vec<u32> = lines.iter().map(|(quarter, _)| quarter / 4).collect();
        let first_of = |level| lines.iter().find(|(_, foretold)| *foretold == level).unwrap().0;
        assert_eq!(first_of(Foretold::Within(30 * DAY)), 120);
        assert_eq!(first_of(Foretold::Within(7 * DAY)), 28);
        assert_eq!(first_of(Foretold::Within(DAY)), 4);
        assert_eq!(first_of(Foretold::Ended), 0);
        assert_eq!(days, (0..=30).rev().collect::<Vec<_>>());
    }

    #[test]
    fn a_certificate_that_is_meant_to_live_for_days_is_not_foretold_from_its_first_hour_on() {
        let (validity, begun) = valid_for(3 * DAY);
        assert_eq!(due(validity, begun + DAY, None), None);
        assert_eq!(due(validity, begun + 2 * DAY, None), Some(Foretold::Within(DAY)));
    }
}
