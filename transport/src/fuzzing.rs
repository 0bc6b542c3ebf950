//! The way in for the fuzzer. Behind the feature `fuzzing`, which no release has.

use rustls::pki_types::CertificateDer;

use crate::certs::identity_in;

/// The identity in a certificate, whatever its bytes are: one that has its one form as a text.
pub fn certificate(der: &[u8]) {
    if let Ok(identity) = identity_in(&CertificateDer::from(der)) {
        assert_eq!(identity.to_string().parse(), Ok(identity));
    }
}
