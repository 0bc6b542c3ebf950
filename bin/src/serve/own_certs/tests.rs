//! A first start that dies, wherever it does, and starts at once.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Barrier;

use quorate_transport::ClusterId;

use super::*;

fn node(id: u64) -> Identity {
    Identity::node(ClusterId::new("tested").unwrap(), id)
}

/// Dies before the change with this number, if there are so many.
fn dies_at(number: usize) -> impl FnMut(&str) -> Result<(), Failure> {
    let mut left = number;
    move |change| match left.checked_sub(1) {
        Some(less) => {
            left = less;
            Ok(())
        }
        None => Err(Failure::failed(format!("it died before {change}"))),
    }
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    let named = |entry: std::fs::DirEntry| {
        let content = std::fs::read(entry.path()).unwrap();
        (entry.file_name().into_string().unwrap(), content)
    };
    entries.map(named).collect()
}

/// What a life prepares, and how it goes on where an earlier one died before each of its changes in turn.
fn wherever_it_dies(changes: usize, prepare: impl Fn(&Path), id: u64) {
    for number in 0.. {
        let home = tempfile::tempdir().unwrap();
        let data_dir = home.path().join("data");
        prepare(&data_dir);
        let died = open_in_steps(&data_dir, &node(id), &mut dies_at(number));
        if died.is_ok() {
            assert_eq!(number, changes, "the changes of a start");
            return;
        }
        // As a file is that was being written.
        let making = data_dir.join(MAKING);
        if making.exists() {
            std::fs::write(making.join("ca.crt"), "-----BEGIN").unwrap();
        }
        let (credentials, dir) =
            open(&data_dir, &node(id)).unwrap_or_else(|error| panic!("{number}: {error}"));
        assert_eq!(*credentials.identity(), node(id));
        let made = files(&dir);
        let client = Identity::client(node(id).cluster, CLIENT).unwrap();
        Credentials::load_from(&dir, &client).unwrap();
        open(&data_dir, &node(id)).unwrap();
        assert_eq!(files(&dir), made, "{number}: what exists is used as it is");
        assert!(!making.exists(), "{number}: something is left");
    }
}

#[test]
fn a_first_start_that_dies_anywhere_stops_no_later_one() {
    wherever_it_dies(9, |_| {}, 1);
}

#[test]
fn a_start_that_dies_while_it_issues_what_is_missing_stops_no_later_one() {
    let prepare = |data_dir: &Path| {
        let (_, dir) = open(data_dir, &node(1)).unwrap();
        std::fs::remove_file(dir.join("client-local.crt")).unwrap();
    };
    wherever_it_dies(9, prepare, 1);
}

#[test]
fn of_starts_at_once_one_makes_the_certificates_and_all_use_them() {
    let home = tempfile::tempdir().unwrap();
    let (data_dir, together) = (home.path().join("data"), Barrier::new(8));
    std::thread::scope(|scope| {
        let start = || {
            together.wait();
            let (_, dir) = open(&data_dir, &node(1)).unwrap();
            files(&dir)
        };
        let starts: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        let seen: Vec<_> = starts.into_iter().map(|start| start.join().unwrap()).collect();
        assert!(seen.iter().all(|files| *files == seen[0]));
    });
}

#[test]
fn an_authority_without_its_certificate_is_told_with_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let (_, dir) = open(home.path(), &node(1)).unwrap();
    std::fs::remove_file(dir.join("ca.crt")).unwrap();
    let refused = open(home.path(), &node(1)).unwrap_err();
    assert_eq!(refused.kind(), crate::failure::Kind::Refused);
    let told = refused.to_string();
    assert!(
        told.contains("ca.crt is missing") && told.contains("makes all certificates anew"),
        "{told}"
    );
}

#[test]
fn nobody_else_looks_into_the_directories_that_are_made() {
    let home = tempfile::tempdir().unwrap();
    let data_dir = home.path().join("data");
    let (_, dir) = open(&data_dir, &node(1)).unwrap();
    for made in [&data_dir, &dir] {
        let mode = made.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", made.display());
    }
}
