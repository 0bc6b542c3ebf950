//! What a node or a client proves itself with, checked when it is loaded.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::validity::Validity;
use crate::Identity;

/// The authority's certificate, the holder's own with what leads to the authority, and the key to it.
///
/// Cheap to clone. Whatever value exists was checked: the parts belong together, and were valid then.
#[derive(Clone)]
pub struct Credentials {
    pub(crate) identity: Identity,
    validity: Validity,
    authority_validity: Validity,
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: Arc<PrivateKeyDer<'static>>,
}

/// Credentials that cannot be used. The message says which file is wrong and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// A file is not there.
    #[error(
        "{file} is missing: `quorate certs issue` makes the certificate and key of a node or client, `quorate certs init` the authority"
    )]
    Missing {
        /// The file.
        file: String,
    },
    /// A file is there and cannot be read.
    #[error("{file} cannot be read: {error}; it must belong to the user who runs this program")]
    Unreadable {
        /// The file.
        file: String,
        /// What the operating system said.
        error: io::Error,
    },
    /// A file holds no PEM of the kind that it must.
    #[error("{file} holds no {what} in PEM form: {reason}")]
    NotPem {
        /// The file.
        file: String,
        /// What it should hold.
        what: &'static str,
        /// What was found.
        reason: String,
    },
    /// The key is another certificate's.
    #[error(
        "the key in {key} does not belong to the certificate in {certificate}: take both from one `quorate certs issue`"
    )]
    KeyMismatch {
        /// The key's file.
        key: String,
        /// The certificate's.
        certificate: String,
    },
    /// The certificate's time is over.
    #[error("the certificate in {file} is valid no longer: issue a new one with `quorate certs issue`")]
    Expired {
        /// The certificate's file.
        file: String,
    },
    /// The certificate's time has not begun.
    #[error("the certificate in {file} is not valid yet: check this machine's clock")]
    NotYetValid {
        /// The certificate's file.
        file: String,
    },
    /// The certificate was signed by somebody else.
    #[error("the certificate in {file} was not issued by the authority in {authority}: {reason}")]
    OtherAuthority {
        /// The certificate's file.
        file: String,
        /// The authority's.
        authority: String,
        /// What the check said.
        reason: String,
    },
    /// The certificate names no node and no client of a cluster.
    #[error("the certificate in {file} names no identity: {reason}")]
    NoIdentity {
        /// The certificate's file.
        file: String,
        /// What was found.
        reason: String,
    },
}

impl Credentials {
    /// Loads and checks three PEM files: the authority's certificate, the own one (with intermediate ones
    /// behind it, if any), and its key.
    pub fn load(authority: &Path, certificate: &Path, key: &Path) -> Result<Self, CredentialsError> {
        let named = |path: &Path| path.display().to_string();
        let (authority_pem, certificate_pem, key_pem) = (read(authority)?, read(certificate)?, read(key)?);
        warn_if_others_may_read(key);
        Self::check(
            Part {
                name: named(authority),
                pem: &authority_pem,
            },
            Part {
                name: named(certificate),
                pem: &certificate_pem,
            },
            Part {
                name: named(key),
                pem: &key_pem,
            },
        )
    }

    /// Loads `ca.crt` and the certificate and key of `identity` from a directory, under the names that
    /// [`Issued::write`](super::Issued::write) gives them.
    pub fn load_from(directory: &Path, identity: &Identity) -> Result<Self, CredentialsError> {
        let stem = super::files::stem(identity);
        let file = |name: String| -> PathBuf { directory.join(name) };
        let certificate = file(format!("{stem}.crt"));
        let loaded = Self::load(&file("ca.crt".into()), &certificate, &file(format!("{stem}.key")))?;
        if loaded.identity != *identity {
            return Err(CredentialsError::NoIdentity {
                file: certificate.display().to_string(),
                reason: format!("it is the one of {}, not of {identity}", loaded.identity),
            });
        }
        Ok(loaded)
    }

    /// Checks three PEM texts.
    pub fn from_pem(authority: &str, certificate: &str, key: &str) -> Result<Self, CredentialsError> {
        Self::check(
            Part {
                name: "the authority's certificate".into(),
                pem: authority.as_bytes(),
            },
            Part {
                name: "the certificate".into(),
                pem: certificate.as_bytes(),
            },
            Part {
                name: "the key".into(),
                pem: key.as_bytes(),
            },
        )
    }

    /// Who they prove their holder to be.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// From when until when the holder's certificate is valid, with what leads from it to the authority.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// The same of the authority's certificate; of several, for as long as one of them is. No peer asks for it: an authority
    /// whose time is over is believed, and tools outside of Quorate refuse it.
    pub fn authority_validity(&self) -> Validity {
        self.authority_validity
    }

    fn check(authority: Part<'_>, certificate: Part<'_>, key: Part<'_>) -> Result<Self, CredentialsError> {
        let mut roots = RootCertStore::empty();
        let authorities = authority.certificates()?;
        let authority_validity = Validity::of_any(&authorities)
            .map_err(|reason| authority.not_pem("authority's certificate", &reason))?;
        for root in authorities {
            roots.add(root).map_err(|error| CredentialsError::NotPem {
                file: authority.name.clone(),
                what: "authority's certificate",
                reason: error.to_string(),
            })?;
        }
        let roots = Arc::new(roots);
        let chain = certificate.certificates()?;
        let Some((own, intermediates)) = chain.split_first() else {
            return Err(certificate.not_pem("certificate", "the file is empty"));
        };
        let private = PrivateKeyDer::from_pem_slice(key.pem)
            .map_err(|error| key.not_pem("private key", &describe(&error)))?;

        let provider = crypto_provider();
        let signing = provider
            .key_provider
            .load_private_key(private.clone_key())
            .map_err(|error| key.not_pem("private key of a kind that is supported", &error.to_string()))?;
        match CertifiedKey::new(chain.clone(), signing).keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(_) => {
                return Err(CredentialsError::KeyMismatch {
                    key: key.name,
                    certificate: certificate.name,
                });
            }
        }
        check_chain(own, intermediates, &roots, &authority, &certificate)?;
        let validity =
            Validity::of_all(&chain).map_err(|reason| certificate.not_pem("certificate", &reason))?;
        let identity = identity_in(own).map_err(|reason| CredentialsError::NoIdentity {
            file: certificate.name,
            reason,
        })?;
        Ok(Self {
            identity,
            validity,
            authority_validity,
            roots,
            chain,
            key: Arc::new(private),
        })
    }
}

impl fmt::Debug for Credentials {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// A PEM text and the name under which errors speak of it.
struct Part<'a> {
    name: String,
    pem: &'a [u8],
}

impl Part<'_> {
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(self.pem).collect();
        match found {
            Ok(certificates) if certificates.is_empty() => {
                Err(self.not_pem("certificate", "there is no PEM section of that kind"))
            }
            Ok(certificates) => Ok(certificates),
            Err(error) => Err(self.not_pem("certificate", &describe(&error))),
        }
    }

    fn not_pem(&self, what: &'static str, reason: &str) -> CredentialsError {
        CredentialsError::NotPem {
            file: self.name.clone(),
            what,
            reason: reason.to_owned(),
        }
    }
}

fn describe(error: &rustls::pki_types::pem::Error) -> String {
    match error {
        rustls::pki_types::pem::Error::NoItemsFound => "there is no PEM section of that kind".to_owned(),
        other => format!("{other:?}"),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CredentialsError> {
    std::fs::read(path).map_err(|error| {
        let file = path.display().to_string();
        match error.kind() {
            io::ErrorKind::NotFound => CredentialsError::Missing { file },
            _ => CredentialsError::Unreadable { file, error },
        }
    })
}

/// A key that others may read is not refused (secret stores mount files in many ways), but said.
fn warn_if_others_may_read(key: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let open = key
            .metadata()
            .is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0);
        if open {
            tracing::warn!(key = %key.display(), "the private key may be read by others than its owner");
        }
    }
    #[cfg(not(unix))]
    let _ = key;
}

/// Every certificate of ours, a node's too, is good for opening: the check as an opener's covers all.
fn check_chain(
    own: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &Arc<RootCertStore>,
    authority: &Part<'_>,
    certificate: &Part<'_>,
) -> Result<(), CredentialsError> {
    use rustls::{CertificateError, Error};
    let file = || certificate.name.clone();
    let other = |reason: String| CredentialsError::OtherAuthority {
        file: file(),
        authority: authority.name.clone(),
        reason,
    };
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), crypto_provider())
        .build()
        .map_err(|error| other(error.to_string()))?;
    match verifier.verify_client_cert(own, intermediates, UnixTime::now()) {
        Ok(_) => Ok(()),
        Err(Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => Err(CredentialsError::Expired { file: file() }),
        Err(Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        )) => Err(CredentialsError::NotYetValid { file: file() }),
        Err(error) => Err(other(error.to_string())),
    }
}

/// The one identity that a certificate names.
pub(crate) fn identity_in(certificate: &CertificateDer<'_>) -> Result<Identity, String> {
    let (follows, parsed) =
        X509Certificate::from_der(certificate).map_err(|error| format!("it is malformed: {error}"))?;
    if !follows.is_empty() {
        return Err(format!("{} bytes follow it", follows.len()));
    }
    let names = parsed
        .subject_alternative_name()
        .map_err(|error| format!("its names are malformed: {error}"))?;
    let mut found = None;
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        if let GeneralName::URI(name) = name
            && name.starts_with("quorate://")
        {
            if found.is_some() {
                return Err("it names several".to_owned());
            }
            found = Some(name.parse::<Identity>().map_err(|error| error.to_string())?);
        }
    }
    found.ok_or_else(|| "there is no quorate:// name in it".to_owned())
}

/// ring, with the cheaper of the two AES suites first: every machine that we run on has AES in hardware.
pub(crate) fn crypto_provider() -> Arc<CryptoProvider> {
    use rustls::crypto::ring;
    use rustls::crypto::ring::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..ring::default_provider()
    })
}
