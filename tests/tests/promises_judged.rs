//! Every promise of the manual has something that judges it: `tests/promises.toml` says what, and stays whole.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use quorate_tests::check::workload::surface::variants;

const MANUAL: &str = include_str!("../../docs/guarantees.md");
const JUDGED: &str = include_str!("../promises.toml");
const RULES: &str = include_str!("../src/check/mod.rs");

/// The items of the manual's lists, up to where it says what there is not.
fn promises() -> Vec<&'static str> {
    let end = MANUAL.find("## What this release does not have");
    let promised = &MANUAL[..end.expect("the manual says what it does not promise")];
    promised
        .lines()
        .filter_map(|line| line.strip_prefix("- "))
        .collect()
}

fn judged() -> BTreeMap<String, Vec<String>> {
    let sections: BTreeMap<String, BTreeMap<String, Vec<String>>> =
        toml::from_str(JUDGED).expect("sections of promises");
    let count = sections.values().map(BTreeMap::len).sum::<usize>();
    let all: BTreeMap<_, _> = sections.into_values().flatten().collect();
    assert_eq!(all.len(), count, "a promise stands in two sections");
    all
}

/// The names of all functions under a directory.
fn functions(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).expect("a directory of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let source = std::fs::read_to_string(&path).expect("a source");
            let names = source.split("fn ").skip(1).filter_map(|after| {
                let end = after.find(|c: char| !c.is_alphanumeric() && c != '_')?;
                Some(after[..end].to_owned())
            });
            found.extend(names);
        }
    }
}

#[test]
fn every_promise_of_the_manual_has_an_entry_and_every_entry_a_promise() {
    let (promises, judged) = (promises(), judged());
    for promise in &promises {
        let entries = judged.keys().filter(|begin| promise.starts_with(begin.as_str()));
        assert_eq!(entries.count(), 1, "what judges this promise? {promise}");
    }
    for begin in judged.keys() {
        let standing = promises
            .iter()
            .filter(|promise| promise.starts_with(begin.as_str()));
        assert_eq!(standing.count(), 1, "the manual does not promise (once): {begin}");
    }
}

#[test]
fn every_promise_names_rules_and_tests_that_there_are() {
    let rules: BTreeSet<String> = variants(RULES, "Rule").into_iter().collect();
    let mut tests = BTreeSet::new();
    for sources in ["kv", "meta", "transport", "bin", "tests"] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(sources);
        for part in ["src", "tests"].map(|part| root.join(part)) {
            if part.is_dir() {
                functions(&part, &mut tests);
            }
        }
    }
    for (promise, judges) in judged() {
        assert!(!judges.is_empty(), "nothing judges {promise:?}");
        for judge in judges {
            let is_there = match judge.split_once(':') {
                Some(("rule", name)) => rules.contains(name),
                Some(("test", name)) => tests.contains(name),
                _ => false,
            };
            assert!(is_there, "{promise:?}: there is no {judge}");
        }
    }
}
