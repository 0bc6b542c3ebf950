//! The end of certificates: told in metrics, and the end of the connections that rest on them.
//!
//! A handshake is the only time at which TLS looks at a certificate's time. A connection that lived on behind it would
//! hide the expiry until the next restart, when the node is needed most.

use std::time::{Duration, SystemTime};

use metrics::gauge;

use super::errors;
use crate::Identity;
use crate::certs::{Credentials, Validity, utc};

/// How often the wall clock is looked at: it may be set at any time.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(30);

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

    pub(super) fn kinds(self) -> [(&'static str, Validity); 2] {
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

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn valid_for(whole: Duration) -> (Validity, SystemTime) {
        let begun = SystemTime::UNIX_EPOCH + 10_000 * DAY;
        let validity = crate::certs::tests_validity(begun, begun + whole - Duration::from_secs(1));
        (validity, begun)
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
