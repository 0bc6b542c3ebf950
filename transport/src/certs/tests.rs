//! Certificates from the authority to the credentials that a node loads, through files.

use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rustls::pki_types::CertificateDer;

use super::{Authority, CertsError, Credentials, CredentialsError, identity_in};
use crate::{ClusterId, Identity};

const DAY: Duration = Duration::from_secs(86_400);

fn cluster() -> ClusterId {
    ClusterId::new("tested").unwrap()
}

fn node(id: u64) -> Identity {
    Identity::node(cluster(), id)
}

/// A directory with an authority and the certificate of node 1 in it.
fn filled(directory: &Path) -> Authority {
    let authority = Authority::create(cluster()).unwrap();
    authority.write(directory).unwrap();
    authority
        .issue(&node(1), &[], DAY)
        .unwrap()
        .write(directory)
        .unwrap();
    authority
}

fn load(directory: &Path) -> Result<Credentials, CredentialsError> {
    Credentials::load_from(directory, &node(1))
}

#[test]
fn what_an_authority_issues_proves_its_holder() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path());
    assert_eq!(*load(directory.path()).unwrap().identity(), node(1));
}

#[test]
fn an_authority_that_was_loaded_again_issues_for_the_same_cluster() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path());
    let loaded = Authority::load(directory.path()).unwrap();
    assert_eq!(*loaded.cluster(), cluster());
    let client = Identity::client(cluster(), "reader").unwrap();
    let hosts = ["db-1.example", "db-1.example.", "10.0.0.1", "::1"].map(|host| host.parse().unwrap());
    let (certificate, key) = loaded
        .issue(&client, &hosts, DAY)
        .unwrap()
        .write(directory.path())
        .unwrap();
    assert_eq!(certificate, directory.path().join("client-reader.crt"));
    let credentials = Credentials::load(&directory.path().join("ca.crt"), &certificate, &key).unwrap();
    assert_eq!(*credentials.identity(), client);
}

#[cfg(unix)]
#[test]
fn key_files_are_readable_by_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path());
    for key in ["ca.key", "node-1.key"] {
        let mode = directory
            .path()
            .join(key)
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
}

#[test]
fn nothing_is_ever_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let authority = filled(directory.path());
    let before = std::fs::read(directory.path().join("node-1.crt")).unwrap();
    let again = authority.write(directory.path());
    assert!(matches!(again, Err(CertsError::Exists { .. })), "{again:?}");
    // With one of the two files missing too.
    std::fs::remove_file(directory.path().join("node-1.key")).unwrap();
    let again = authority
        .issue(&node(1), &[], DAY)
        .unwrap()
        .write(directory.path());
    assert!(matches!(again, Err(CertsError::Exists { .. })), "{again:?}");
    assert!(!directory.path().join("node-1.key").exists());
    assert_eq!(
        std::fs::read(directory.path().join("node-1.crt")).unwrap(),
        before
    );
}

#[test]
fn an_authority_issues_for_its_own_cluster_alone_and_only_what_makes_sense() {
    let authority = Authority::create(cluster()).unwrap();
    let stranger = Identity::node(ClusterId::new("another").unwrap(), 1);
    let refused = authority.issue(&stranger, &[], DAY);
    assert!(
        matches!(refused, Err(CertsError::OtherCluster { .. })),
        "{refused:?}"
    );
    for impossible in [Duration::ZERO, Duration::MAX] {
        let refused = authority.issue(&node(1), &[], impossible);
        assert!(
            matches!(refused, Err(CertsError::InvalidValidity { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn no_key_is_shown_by_debug() {
    let authority = Authority::create(cluster()).unwrap();
    let issued = authority.issue(&node(1), &[], DAY).unwrap();
    let credentials = issued.credentials(&authority).unwrap();
    for shown in [
        format!("{authority:?}"),
        format!("{issued:?}"),
        format!("{credentials:?}"),
    ] {
        assert!(!shown.contains("key") && shown.len() < 300, "{shown}");
    }
}

#[test]
fn a_missing_file_is_named_with_what_to_do() {
    for missing in ["ca.crt", "node-1.crt", "node-1.key"] {
        let directory = tempfile::tempdir().unwrap();
        filled(directory.path());
        std::fs::remove_file(directory.path().join(missing)).unwrap();
        let refused = load(directory.path()).unwrap_err();
        assert!(matches!(refused, CredentialsError::Missing { .. }), "{refused:?}");
        let text = refused.to_string();
        assert!(text.contains(missing) && text.contains("quorate certs"), "{text}");
    }
}

#[test]
fn a_file_that_is_no_pem_is_named() {
    for broken in ["ca.crt", "node-1.crt", "node-1.key"] {
        for content in [
            "",
            "no PEM",
            "-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n",
        ] {
            let directory = tempfile::tempdir().unwrap();
            filled(directory.path());
            std::fs::write(directory.path().join(broken), content).unwrap();
            let refused = load(directory.path()).unwrap_err();
            assert!(
                matches!(refused, CredentialsError::NotPem { .. }),
                "{broken}: {refused:?}"
            );
            assert!(refused.to_string().contains(broken), "{refused}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path());
    let key = directory.path().join("node-1.key");
    std::fs::remove_file(&key).unwrap();
    // A directory in its place: unreadable for every user.
    std::fs::create_dir(&key).unwrap();
    let refused = load(directory.path()).unwrap_err();
    assert!(
        matches!(refused, CredentialsError::Unreadable { .. }),
        "{refused:?}"
    );
    assert!(refused.to_string().contains("node-1.key"), "{refused}");
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let authority = filled(directory.path());
    let other = authority.issue(&node(2), &[], DAY).unwrap();
    std::fs::write(directory.path().join("node-1.key"), other.key_pem()).unwrap();
    let refused = load(directory.path()).unwrap_err();
    assert!(
        matches!(refused, CredentialsError::KeyMismatch { .. }),
        "{refused:?}"
    );
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path());
    let other = Authority::create(cluster()).unwrap();
    std::fs::write(directory.path().join("ca.crt"), other.certificate_pem()).unwrap();
    let refused = load(directory.path()).unwrap_err();
    assert!(
        matches!(refused, CredentialsError::OtherAuthority { .. }),
        "{refused:?}"
    );
}

#[test]
fn a_certificate_whose_time_is_over_is_refused() {
    let authority = Authority::create(cluster()).unwrap();
    // It ends before anyone can load it.
    let issued = authority.issue(&node(1), &[], Duration::from_nanos(1)).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let refused = loop {
        match issued.credentials(&authority) {
            // X.509 counts whole seconds: wait for the next one.
            Ok(_) => assert!(std::time::Instant::now() < deadline, "it never ends"),
            Err(refused) => break refused,
        }
        std::thread::yield_now();
    };
    assert!(matches!(refused, CredentialsError::Expired { .. }), "{refused:?}");
    assert!(refused.to_string().contains("quorate certs issue"), "{refused}");
}

#[test]
fn a_certificate_under_the_name_of_another_node_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path());
    for end in ["crt", "key"] {
        let from = directory.path().join(format!("node-1.{end}"));
        std::fs::copy(from, directory.path().join(format!("node-2.{end}"))).unwrap();
    }
    let refused = Credentials::load_from(directory.path(), &node(2)).unwrap_err();
    assert!(
        matches!(refused, CredentialsError::NoIdentity { .. }),
        "{refused:?}"
    );
}

#[test]
fn a_member_is_no_authority_and_an_authority_no_member() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path());
    let at = |name: &str| directory.path().join(name);
    let refused = Credentials::load(&at("ca.crt"), &at("ca.crt"), &at("ca.key")).unwrap_err();
    let rightly = matches!(
        refused,
        CredentialsError::NoIdentity { .. } | CredentialsError::OtherAuthority { .. }
    );
    assert!(rightly, "{refused:?}");
    for end in ["crt", "key"] {
        std::fs::copy(at(&format!("node-1.{end}")), at(&format!("ca.{end}"))).unwrap();
    }
    let refused = Authority::load(directory.path()).unwrap_err();
    assert!(
        matches!(refused, CertsError::NotAnAuthority { .. }),
        "{refused:?}"
    );
}

#[test]
fn ephemeral_credentials_need_no_files() {
    assert_eq!(*Credentials::ephemeral(&node(7)).unwrap().identity(), node(7));
}

/// An authority's certificate, and the certificate and key that it issued for node 1, as texts.
static ISSUED: LazyLock<[String; 3]> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path());
    ["ca.crt", "node-1.crt", "node-1.key"]
        .map(|file| std::fs::read_to_string(directory.path().join(file)).unwrap())
});

/// The certificate itself.
static CERTIFICATE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let [authority, certificate, key] = &*ISSUED;
    let credentials = Credentials::from_pem(authority, certificate, key).unwrap();
    credentials.chain[0].to_vec()
});

/// Bytes name no identity, or one that has its one form as a text.
fn named(der: &[u8]) -> Option<Identity> {
    let identity = identity_in(&CertificateDer::from(der)).ok()?;
    assert_eq!(identity.to_string().parse(), Ok(identity.clone()));
    Some(identity)
}

proptest! {
    #[test]
    fn a_certificate_that_is_not_whole_and_bytes_that_are_none_name_nobody(
        cut: prop::sample::Index, follows in prop::collection::vec(any::<u8>(), 1..9), garbage: Vec<u8>,
    ) {
        let whole = &CERTIFICATE[..];
        prop_assert_eq!(named(whole), Some(node(1)));
        prop_assert_eq!(named(&whole[..cut.index(whole.len())]), None);
        prop_assert_eq!(named(&[whole, &follows].concat()), None);
        prop_assert_eq!(named(&garbage), None);
    }

    /// Whom it names stands in it in plain letters; that they are the authority's words shows the signature alone.
    #[test]
    fn a_damaged_certificate_names_someone_in_one_form_or_nobody(
        damages in prop::collection::vec((any::<prop::sample::Index>(), 1u8..=255), 1..4),
    ) {
        let mut damaged = CERTIFICATE.clone();
        for (at, bits) in damages {
            let at = at.index(damaged.len());
            damaged[at] ^= bits;
        }
        let _someone = named(&damaged);
    }

    #[test]
    fn credentials_whose_certificate_was_changed_are_refused(at: prop::sample::Index, letter in "[A-Za-z0-9+/]") {
        let [authority, certificate, key] = &*ISSUED;
        let mut changed = certificate.clone();
        let at = at.index(changed.len());
        changed.replace_range(at..=at, &letter);
        if let Ok(accepted) = Credentials::from_pem(authority, &changed, key) {
            // The letter was that one, or stood for bits that nothing is made of.
            prop_assert_eq!(&accepted.chain[0][..], &CERTIFICATE[..]);
        }
    }
}

#[test]
fn credentials_tell_from_when_until_when_they_are_valid() {
    let before = SystemTime::now();
    let authority = Authority::create(cluster()).unwrap();
    let issued = authority.issue(&node(1), &[], DAY).unwrap();
    let credentials = issued.credentials(&authority).unwrap();
    let validity = credentials.validity();
    // In whole seconds.
    assert!(validity.not_before <= before, "{validity}");
    assert!(
        validity.end() >= before + DAY && validity.not_after <= SystemTime::now() + DAY,
        "{validity}"
    );
    assert!(credentials.authority_validity().not_after > before + DAY * 3_650);
}
