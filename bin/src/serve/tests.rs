//! How a node's start and end are told to a service manager.

use std::io::{Error, ErrorKind};

use quorate_kv::identity::IdentityError;
use quorate_kv::log::LogOpenError;
use quorate_kv::machine::MachineOpenError;
use quorate_kv::model::{LogIndex, LogPosition, NodeId, Term};
use quorate_kv::node::{InvalidSettings, StorageError};
use quorate_transport::ClusterId;
use quorate_transport::certs::Authority;

use super::*;

const LASTS: Kind = Kind::Refused;
const MAY_PASS: Kind = Kind::Unavailable;
const BUG: Kind = Kind::Failed;

fn disk(kind: ErrorKind) -> Fault {
    Fault::disk("writing", "f", Error::from(kind))
}

fn faults() -> Vec<(&'static str, Fault, Kind)> {
    let corrupt = Fault::Corrupt {
        path: "f".to_owned(),
        offset: 1,
        detail: "x".to_owned(),
    };
    let state = Fault::State {
        doing: "x",
        detail: "x".to_owned(),
    };
    // Not by its constructor, which panics in tests.
    let invariant = Fault::Invariant {
        invariant: "x",
        detail: "x".to_owned(),
    };
    let panicked = Fault::Panicked {
        owner: "x",
        message: "x".to_owned(),
    };
    let wrapped = Fault::disk("reading", "f", Error::other(corrupt.clone()));
    vec![
        ("no space", disk(ErrorKind::StorageFull), MAY_PASS),
        ("over the quota", disk(ErrorKind::QuotaExceeded), MAY_PASS),
        ("an error of the disk", disk(ErrorKind::Other), MAY_PASS),
        ("not permitted", disk(ErrorKind::PermissionDenied), LASTS),
        ("read-only", disk(ErrorKind::ReadOnlyFilesystem), LASTS),
        ("corruption", corrupt, LASTS),
        ("corruption that came as an error of the file", wrapped, LASTS),
        ("the database", state, BUG),
        ("an invariant", invariant, BUG),
        ("a panic", panicked, BUG),
        ("a thread that ended", Fault::Stopped { owner: "x" }, BUG),
    ]
}

/// The story: over a page that had rotted a start ended with where that was, and with nothing of what to do.
#[test]
fn a_start_that_corruption_ends_says_what_to_do() {
    let corrupt = Fault::Corrupt {
        path: "f".to_owned(),
        offset: 1,
        detail: "x".to_owned(),
    };
    let told = Failure::from(StartError::Fault(corrupt)).to_string();
    assert!(told.contains("quorate check"), "{told}");
}

fn starts() -> Vec<(&'static str, StartError, Kind)> {
    let cluster = ClusterId::new("a").unwrap();
    let (file, dir) = (PathBuf::from("f"), PathBuf::from("d"));
    let identity = |error: IdentityError| StartError::Storage(error.into());
    let log = |error: LogOpenError| StartError::Storage(error.into());
    let state = |error: MachineOpenError| StartError::Storage(error.into());
    let detail = || "x".to_owned();
    let path = dir.clone();
    let position = LogPosition {
        index: LogIndex::new(1),
        term: Term::new(1),
        leader: NodeId::new(1),
    };
    let mut all = vec![
        ("no directory", StartError::NoDataDir, LASTS),
        (
            "settings",
            StartError::Settings(vec![InvalidSettings::OutOfRange {
                setting: "x",
                value: 0,
                bounds: "1",
            }]),
            LASTS,
        ),
        (
            "the cluster's name",
            StartError::Cluster(ClusterId::new("").unwrap_err()),
            LASTS,
        ),
        ("no transport", StartError::NoTransport, LASTS),
        (
            "another's certificate",
            StartError::WrongIdentity {
                certificate: Identity::node(cluster.clone(), 1),
                node: Identity::node(cluster, 2),
            },
            LASTS,
        ),
        ("not a peer", StartError::NotAPeer { id: NodeId::new(1) }, LASTS),
        (
            "another address",
            StartError::AddressChanged {
                id: NodeId::new(1),
                recorded: "a:7001".parse().unwrap(),
                given: "a:7002".parse().unwrap(),
            },
            LASTS,
        ),
        (
            "the lock is held",
            StartError::Storage(StorageError::InUse { dir: dir.clone() }),
            MAY_PASS,
        ),
        (
            "no identity",
            StartError::Storage(StorageError::IdentityMissing {
                dir: dir.clone(),
                found: "log",
            }),
            LASTS,
        ),
        (
            "log and state of different times",
            StartError::Storage(StorageError::StateBehindLog {
                dir: dir.clone(),
                applied: detail(),
                purged: position,
            }),
            LASTS,
        ),
    ];
    let file = || file.clone();
    all.extend([
        (
            "a corrupt identity",
            identity(IdentityError::Corrupt {
                file: file(),
                detail: detail(),
            }),
            LASTS,
        ),
        (
            "an identity of another release",
            identity(IdentityError::UnknownFormat {
                file: file(),
                found: 2,
                known: 1,
            }),
            LASTS,
        ),
        (
            "another cluster's directory",
            identity(IdentityError::WrongCluster {
                file: file(),
                expected: detail(),
                found: detail(),
            }),
            LASTS,
        ),
        (
            "another node's directory",
            identity(IdentityError::WrongNode {
                file: file(),
                expected: NodeId::new(1),
                found: NodeId::new(2),
            }),
            LASTS,
        ),
        (
            "a second identity",
            identity(IdentityError::Exists { file: file() }),
            LASTS,
        ),
        (
            "a cluster's name too long",
            identity(IdentityError::InvalidCluster { bytes: 0, max: 1 }),
            LASTS,
        ),
        ("no log", log(LogOpenError::Missing { dir: dir.clone() }), LASTS),
        (
            "another's log",
            log(LogOpenError::NotEmpty {
                dir: dir.clone(),
                last: None,
            }),
            LASTS,
        ),
        (
            "a corrupt log",
            log(LogOpenError::Corrupt {
                file: file(),
                offset: 0,
                detail: detail(),
            }),
            LASTS,
        ),
        (
            "a log of another release",
            log(LogOpenError::UnknownFormat {
                file: file(),
                found: 2,
                known: 1,
            }),
            LASTS,
        ),
        (
            "a setting of the log",
            log(LogOpenError::InvalidSetting {
                setting: "x",
                value: 0,
                min: 1,
                max: 2,
            }),
            LASTS,
        ),
        (
            "no state",
            state(MachineOpenError::Missing { path: path.clone() }),
            LASTS,
        ),
        (
            "another's state",
            state(MachineOpenError::Exists { path: path.clone() }),
            LASTS,
        ),
        (
            "a corrupt state",
            state(MachineOpenError::Corrupt {
                path: path.clone(),
                detail: detail(),
            }),
            LASTS,
        ),
        (
            "a state of another release",
            state(MachineOpenError::UnknownFormat {
                path: path.clone(),
                found: 2,
                known: 1,
            }),
            LASTS,
        ),
    ]);
    for (kind, expected) in [
        (ErrorKind::StorageFull, MAY_PASS),
        (ErrorKind::NotFound, MAY_PASS),
        (ErrorKind::PermissionDenied, LASTS),
        (ErrorKind::NotADirectory, LASTS),
    ] {
        let path = path.clone();
        let error = || Error::from(kind);
        let doing = "opening";
        all.extend([
            (
                "the directory",
                StartError::Storage(StorageError::Io {
                    path: path.clone(),
                    error: error(),
                }),
                expected,
            ),
            (
                "the identity",
                identity(IdentityError::Disk {
                    doing,
                    path: path.clone(),
                    error: error(),
                }),
                expected,
            ),
            (
                "the log",
                log(LogOpenError::Disk {
                    doing,
                    path: path.clone(),
                    error: error(),
                }),
                expected,
            ),
            (
                "the state",
                state(MachineOpenError::Disk {
                    doing,
                    path,
                    error: error(),
                }),
                expected,
            ),
        ]);
    }
    for (name, fault, kind) in faults() {
        // Of files that are being opened, a bug is told as what may pass: it was not met while serving.
        let opening = if kind == BUG { MAY_PASS } else { kind };
        all.push((name, log(LogOpenError::Fault(fault.clone())), opening));
        all.push((name, state(MachineOpenError::Fault(fault.clone())), opening));
        all.push((name, StartError::Fault(fault), kind));
    }
    all
}

#[test]
fn a_start_that_may_succeed_later_is_told_from_one_that_may_not() {
    for (name, error, expected) in starts() {
        let said = error.to_string();
        let failure = Failure::from(error);
        assert_eq!(failure.kind(), expected, "{name}: {said}");
        assert!(failure.to_string().contains(&said), "{name}: {failure}");
    }
}

#[tokio::test]
async fn a_port_or_an_address_may_be_there_later_and_a_credential_may_not() {
    let address: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let refused = |kind| BindError::Address {
        address,
        error: Error::from(kind),
    };
    let settings = QuicSettings {
        busy_poll: Duration::from_secs(3600),
        ..QuicSettings::default()
    };
    let cluster = ClusterId::new("a").unwrap();
    let authority = Authority::create(cluster.clone()).unwrap();
    let credentials = authority.credentials(&Identity::node(cluster, 1)).unwrap();
    let settings = QuicTransport::bind(None, &credentials, settings).unwrap_err();
    for (error, expected) in [
        (BindError::AddressInUse { address }, MAY_PASS),
        (refused(ErrorKind::AddrNotAvailable), MAY_PASS),
        (refused(ErrorKind::NetworkDown), MAY_PASS),
        (refused(ErrorKind::PermissionDenied), LASTS),
        (refused(ErrorKind::Unsupported), LASTS),
        (
            BindError::Credentials {
                reason: "x".to_owned(),
            },
            LASTS,
        ),
        (settings, LASTS),
    ] {
        let said = error.to_string();
        assert_eq!(Failure::from(error).kind(), expected, "{said}");
    }
}

#[test]
fn a_node_that_fell_to_a_fault_is_worth_another_start_unless_its_files_are_spoiled() {
    for (name, fault, expected) in faults() {
        let failure = fallen(7, Some(fault.clone()), None);
        assert_eq!(failure.kind(), expected, "{name}");
        assert!(
            failure.to_string().contains(&fault.to_string()),
            "{name}: {failure}"
        );
    }
    let failure = fallen(7, None, Some("openraft said so".to_owned()));
    assert_eq!(failure.kind(), BUG);
    assert!(
        failure.to_string().contains("node 7: openraft said so"),
        "{failure}"
    );
}

/// The story: a disk that failed while the node stopped was a warning in the log, and exit code 0.
#[test]
fn a_stop_that_was_asked_for_is_told_by_what_became_of_it() {
    let whole = || {
        let mut report = ShutdownReport::default();
        (report.durable, report.closed, report.drained) = (true, true, true);
        report
    };
    how_it_stopped(7, Ok(whole()), None).unwrap();
    let mut report = whole();
    (report.drained, report.leadership_moved) = (false, Some(false));
    how_it_stopped(7, Ok(report), None).expect("an election follows, and that is all");
    let late = || Failure::failed("it took too long");
    for (name, fault, expected) in faults() {
        for stopped in [Ok(whole()), Err(late())] {
            let failure = how_it_stopped(7, stopped, Some(fault.clone())).unwrap_err();
            assert_eq!(failure.kind(), expected, "{name}");
            assert!(
                failure.to_string().contains(&fault.to_string()),
                "{name}: {failure}"
            );
        }
    }
    let [mut volatile, mut open] = [whole(), whole()];
    (volatile.durable, open.closed) = (false, false);
    for (stopped, said) in [
        (Ok(volatile), "not made durable"),
        (Ok(open), "not closed"),
        (Err(late()), "too long"),
    ] {
        let failure = how_it_stopped(7, stopped, None).unwrap_err();
        assert_eq!(failure.kind(), BUG, "{said}");
        assert!(failure.to_string().contains(said), "{failure}");
    }
}

#[tokio::test]
async fn a_stop_ends_when_it_is_done_or_cut_short_or_takes_too_long() {
    let never = std::future::pending::<()>;
    let long = Duration::from_secs(600);
    assert_eq!(within(long, async { 7 }, never()).await.unwrap(), 7);
    let again = within(long, never(), async {}).await.unwrap_err();
    assert!(again.to_string().contains("at a second signal"), "{again}");
    let late = within(Duration::from_millis(1), never(), never())
        .await
        .unwrap_err();
    assert_eq!(late.kind(), Kind::Failed);
    assert!(late.to_string().contains("was not over after 1ms"), "{late}");
}

#[test]
fn the_bounds_of_a_stop_fit_into_what_the_manual_allows() {
    let unit = include_str!("../../../docs/operations.md");
    let allowed = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec="));
    let allowed = Duration::from_secs(allowed.unwrap().parse().unwrap());
    // The log's last lines and the reason of the end have a second each.
    assert!(
        STOP_MAX + THREADS_PATIENCE + Duration::from_secs(2) < allowed,
        "{allowed:?}"
    );
}
