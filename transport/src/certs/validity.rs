//! From when until when certificates are valid.

use std::fmt;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::time::ASN1Time;

/// A time in which certificates are valid, by the wall clock, both ends included (RFC 5280, 4.1.2.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Validity {
    /// The first second.
    pub not_before: SystemTime,
    /// The last second.
    pub not_after: SystemTime,
}

impl Validity {
    /// When all of these are valid; they are not none.
    pub(crate) fn of_all(certificates: &[CertificateDer<'_>]) -> Result<Self, String> {
        Self::of(certificates, |so_far, next| Self {
            not_before: so_far.not_before.max(next.not_before),
            not_after: so_far.not_after.min(next.not_after),
        })
    }

    /// From when until when any of these is valid; they are not none.
    pub(crate) fn of_any(certificates: &[CertificateDer<'_>]) -> Result<Self, String> {
        Self::of(certificates, |so_far, next| Self {
            not_before: so_far.not_before.min(next.not_before),
            not_after: so_far.not_after.max(next.not_after),
        })
    }

    fn of(certificates: &[CertificateDer<'_>], joined: impl Fn(Self, Self) -> Self) -> Result<Self, String> {
        let mut all = certificates.iter().map(Self::of_one);
        let first = all.next().ok_or("there is no certificate")??;
        all.try_fold(first, |so_far, next| Ok(joined(so_far, next?)))
    }

    fn of_one(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|error| format!("it is malformed: {error}"))?;
        let validity = parsed.validity();
        Ok(Self {
            not_before: moment(validity.not_before)?,
            not_after: moment(validity.not_after)?,
        })
    }

    /// The first moment at which no peer takes them any more: the last second is over.
    pub fn end(&self) -> SystemTime {
        self.not_after + Duration::from_secs(1)
    }
}

impl fmt::Display for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "from {} until {}", utc(self.not_before), utc(self.not_after))
    }
}

/// A moment as RFC 3339 writes it, in UTC.
pub(crate) fn utc(moment: SystemTime) -> String {
    let at = OffsetDateTime::from(moment);
    let (date, time) = (at.date(), at.time());
    let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
    let (hour, minute, second) = time.as_hms();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn moment(time: ASN1Time) -> Result<SystemTime, String> {
    let seconds = time.timestamp();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let moment = match seconds >= 0 {
        true => SystemTime::UNIX_EPOCH.checked_add(distance),
        false => SystemTime::UNIX_EPOCH.checked_sub(distance),
    };
    moment.ok_or_else(|| format!("its time {time} is beyond what this machine can tell"))
}

/// Any time, for tests.
#[cfg(test)]
pub(crate) fn tests_validity(not_before: SystemTime, not_after: SystemTime) -> Validity {
    Validity {
        not_before,
        not_after,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_told_as_rfc_3339_has_them() {
        let at = |seconds| utc(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(1_000_000_000), "2001-09-09T01:46:40Z");
    }
}
