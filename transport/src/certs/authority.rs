//! The cluster's certificate authority.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::credentials::{Credentials, CredentialsError};
use super::error::CertsError;
use super::files::{self, Readers};
use crate::{ClusterId, Host, Identity, Role};

/// How long an authority's certificate is valid: ten years. Replacing it means touching every node.
const AUTHORITY_VALIDITY: Duration = Duration::from_secs(3_652 * 86_400);

/// How far back a certificate begins, so that a node whose clock is behind takes it.
const CLOCK_SKEW: Duration = Duration::from_secs(3_600);

/// Issues the certificates of one cluster.
pub struct Authority {
    cluster: ClusterId,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM, not yet written anywhere.
pub struct Issued {
    identity: Identity,
    certificate_pem: String,
    key_pem: String,
}

impl Authority {
    /// Makes a new authority for a cluster, valid for ten years. Nothing is written.
    pub fn create(cluster: ClusterId) -> Result<Self, CertsError> {
        let key = KeyPair::generate()?;
        let mut params = params(&format!("quorate authority of {cluster}"), AUTHORITY_VALIDITY)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![uri(authority_name(&cluster))?];
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            cluster,
            certificate_pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads the authority that [`write`](Self::write) left in a directory.
    pub fn load(directory: &Path) -> Result<Self, CertsError> {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => CertsError::Missing { path: path.clone() },
                _ => CertsError::file("read", path, error),
            })
        };
        let (certificate_path, key_path) = (directory.join("ca.crt"), directory.join("ca.key"));
        let certificate_pem = read(&certificate_path)?;
        let key_pem = read(&key_path)?;
        let not = |path: &PathBuf, reason: String| CertsError::NotAnAuthority {
            path: path.clone(),
            reason,
        };
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|error| not(&certificate_path, format!("no PEM certificate: {error:?}")))?;
        let cluster = cluster_of_authority(&certificate).map_err(|reason| not(&certificate_path, reason))?;
        let key = KeyPair::from_pem(&key_pem).map_err(|error| not(&key_path, error.to_string()))?;
        if !belongs_to(&key, &certificate) {
            return Err(not(
                &key_path,
                "the key belongs to another certificate".to_owned(),
            ));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| not(&certificate_path, error.to_string()))?;
        Ok(Self {
            cluster,
            certificate_pem,
            issuer,
        })
    }

    /// Writes `ca.crt` and `ca.key` into a directory, which is made if it is missing.
    pub fn write(&self, directory: &Path) -> Result<(), CertsError> {
        let (certificate, key) = (directory.join("ca.crt"), directory.join("ca.key"));
        write_pair(
            directory,
            (&certificate, &self.certificate_pem),
            (&key, &self.issuer.key().serialize_pem()),
        )
    }

    /// The cluster for which it issues.
    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// The certificate that all nodes and clients trust, as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Issues a certificate that is valid from now on for `validity`. The hosts are names and IP addresses
    /// that the certificate carries besides the identity, for tools that look at them; peers do not.
    pub fn issue(
        &self,
        identity: &Identity,
        hosts: &[Host],
        validity: Duration,
    ) -> Result<Issued, CertsError> {
        if identity.cluster != self.cluster {
            return Err(CertsError::OtherCluster {
                identity: Box::new(identity.clone()),
                cluster: self.cluster.clone(),
            });
        }
        let mut params = params(&identity.to_string(), validity)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // A node answers and opens; a client only opens, so that it can never pass as a node.
        params.extended_key_usages = match identity.role {
            Role::Node(_) => vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            Role::Client(_) => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.subject_alt_names = vec![uri(identity.to_string())?];
        for host in hosts {
            params.subject_alt_names.push(host_name(host)?);
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            identity: identity.clone(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// Credentials that never touch a disk, valid for a year: for tests, demonstrations and single nodes.
    pub fn credentials(&self, identity: &Identity) -> Result<Credentials, CertsError> {
        let issued = self.issue(identity, &[], Duration::from_secs(365 * 86_400))?;
        issued.credentials(self).map_err(|error| CertsError::Crypto {
            reason: error.to_string(),
        })
    }
}

impl Credentials {
    /// Credentials under an authority that is made for them and forgotten: for a single node in tests and
    /// demonstrations. Several that speak with each other need one [`Authority`] and its
    /// [`credentials`](Authority::credentials).
    pub fn ephemeral(identity: &Identity) -> Result<Self, CertsError> {
        Authority::create(identity.cluster.clone())?.credentials(identity)
    }
}

impl fmt::Debug for Authority {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl Issued {
    /// Whose certificate it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The certificate.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The private key: handle with care.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Writes `node-<id>.crt` and `.key`, or `client-<name>.crt` and `.key`, into a directory, which is made
    /// if it is missing. Returns their paths.
    pub fn write(&self, directory: &Path) -> Result<(PathBuf, PathBuf), CertsError> {
        let stem = files::stem(&self.identity);
        let (certificate, key) = (
            directory.join(format!("{stem}.crt")),
            directory.join(format!("{stem}.key")),
        );
        write_pair(
            directory,
            (&certificate, &self.certificate_pem),
            (&key, &self.key_pem),
        )?;
        Ok((certificate, key))
    }

    /// The credentials of its holder, without a detour over files.
    pub fn credentials(&self, authority: &Authority) -> Result<Credentials, CredentialsError> {
        Credentials::from_pem(&authority.certificate_pem, &self.certificate_pem, &self.key_pem)
    }
}

impl fmt::Debug for Issued {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

fn write_pair(
    directory: &Path,
    (certificate, certificate_pem): (&PathBuf, &str),
    (key, key_pem): (&PathBuf, &str),
) -> Result<(), CertsError> {
    files::directory(directory)?;
    files::refuse_existing(&[certificate, key])?;
    // The key first: a certificate without its key would stop the next attempt and serve nobody.
    files::create(key, key_pem, Readers::OwnerAlone)?;
    files::create(certificate, certificate_pem, Readers::Everyone)
}

fn params(common_name: &str, validity: Duration) -> Result<CertificateParams, CertsError> {
    let invalid = || CertsError::InvalidValidity { validity };
    let now = OffsetDateTime::now_utc();
    let span = time::Duration::try_from(validity).map_err(|_| invalid())?;
    let mut params = CertificateParams::default();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now.checked_add(span).ok_or_else(invalid)?;
    if validity.is_zero() {
        return Err(invalid());
    }
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    Ok(params)
}

fn uri(text: String) -> Result<SanType, CertsError> {
    Ok(SanType::URI(text.try_into()?))
}

fn host_name(host: &Host) -> Result<SanType, CertsError> {
    match host {
        Host::Name(name) => {
            // A dot at the end is the resolver's business, and stands in no certificate (RFC 5280, 4.2.1.6).
            let name = name.as_str();
            let name = name.strip_suffix('.').unwrap_or(name);
            Ok(SanType::DnsName(name.try_into()?))
        }
        Host::V4(ip) => Ok(SanType::IpAddress((*ip).into())),
        Host::V6(ip) => Ok(SanType::IpAddress((*ip).into())),
    }
}

/// An authority's own name: no identity, so that its certificate never passes as a member's.
fn authority_name(cluster: &ClusterId) -> String {
    format!("quorate://{cluster}/authority")
}

fn cluster_of_authority(certificate: &CertificateDer<'_>) -> Result<ClusterId, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    if !parsed.is_ca() {
        return Err("it is a member's certificate".to_owned());
    }
    let names = parsed
        .subject_alternative_name()
        .map_err(|error| error.to_string())?;
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        let GeneralName::URI(name) = name else {
            continue;
        };
        let cluster = name
            .strip_prefix("quorate://")
            .and_then(|rest| rest.strip_suffix("/authority"));
        if let Some(cluster) = cluster {
            return ClusterId::new(cluster).map_err(|error| error.to_string());
        }
    }
    Err("it names no cluster".to_owned())
}

fn belongs_to(key: &KeyPair, certificate: &CertificateDer<'_>) -> bool {
    use rcgen::PublicKeyData as _;
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, parsed)| parsed.public_key().raw == key.subject_public_key_info())
}
