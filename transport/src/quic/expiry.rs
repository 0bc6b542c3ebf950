//! The end of certificates: foretold in the log and in metrics, and the end of the connections that rest on them.
//!
//! A handshake is the only time at which TLS looks at a certificate's time. A connection that lived on behind it would
//! hide the expiry until the next restart, when the node is needed most.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use metrics::gauge;

use super::{Shared, errors};
use crate::Identity;
use crate::certs::{Credentials, Validity, utc};

/// How often the wall clock is looked at: it may be set at any time.
const LOOK_EVERY: Duration = Duration::from_secs(30);

const DAY: Duration = Duration::from_secs(86_400);

/// What is left when it is said, the most first.
const FORETOLD: [Duration; 3] = [DAY.saturating_mul(30), DAY.saturating_mul(7), DAY];

/// The times of one's own certificates.
#[derive(Debug, Clone, Copy)]
pub(super) struct Own {
    pub(super) own: Validity,
    pub(super) authority: Validity,
}

impl Own {
    pub(super) fn of(credentials: &Credentials) -> Self {
        Self {
            own: credentials.validity(),
            authority: credentials.authority_validity(),
        }
    }

    /// Publishes when they end.
    pub(super) fn publish(self) {
        for (kind, validity) in self.kinds() {
            let end = validity.end().duration_since(SystemTime::UNIX_EPOCH);
            gauge!("quorate_certificate_expiry_seconds", "kind" => kind)
                .set(end.unwrap_or_default().as_secs_f64());
        }
    }

    fn kinds(self) -> [(&'static str, Validity); 2] {
        [("own", self.own), ("authority", self.authority)]
    }
}

/// When a connection between these ends, and why.
#[derive(Debug, Clone)]
pub(super) struct End {
    at: SystemTime,
    whose: Identity,
}

impl End {
    pub(super) fn of(ours: (&Identity, Validity), theirs: (&Identity, Validity)) -> Self {
        let (whose, validity) = if ours.1.end() <= theirs.1.end() {
            ours
        } else {
            theirs
        };
        Self {
            at: validity.end(),
            whose: whose.clone(),
        }
    }

    /// Waits for it; cancel safe. Answers the reason in words.
    pub(super) async fn comes(&self) -> String {
        while let Ok(left) = self.at.duration_since(SystemTime::now())
            && !left.is_zero()
        {
            tokio::time::sleep(left.min(LOOK_EVERY)).await;
        }
        format!("the certificate of {} ended at {}", self.whose, utc(self.at))
    }
}

/// Closes a connection of which a certificate has ended.
pub(super) fn close(connection: &quinn::Connection, way: &errors::Way, reason: &str) {
    way.closed_here(reason);
    connection.close(errors::EXPIRED, reason.as_bytes());
}

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

    #[tokio::test]
    async fn a_connection_ends_with_the_certificate_that_ends_first() {
        let cluster = crate::ClusterId::new("tested").unwrap();
        let [one, two] = [1, 2].map(|id| Identity::node(cluster.clone(), id));
        let ((early, _), (late, _)) = (valid_for(DAY), valid_for(2 * DAY));
        for end in [
            End::of((&one, early), (&two, late)),
            End::of((&two, late), (&one, early)),
        ] {
            assert!(
                end.comes()
                    .await
                    .contains("quorate://tested/node/1 ended at 1997-05-20"),
                "{end:?}"
            );
        }
    }
}
