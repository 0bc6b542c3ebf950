//! Every public operation is exercised: a new method, operation or condition fails these tests until the workload
//! has it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use quorate_kv::model::{Condition, GuardNode, Limits, Op, RangeTest, ReadOp, Revision};
use quorate_tests::check::history::CallId;
use quorate_tests::check::recording::record;
use quorate_tests::check::workload::surface::{
    CLIENT, CLIENT_ELSEWHERE, META, META_ELSEWHERE, methods, variants,
};
use quorate_tests::check::workload::{Generator, Tally, key};
use quorate_tests::sim::Rng;

const CLIENT_SOURCES: [&str; 6] = [
    include_str!("../../kv/src/client/admin.rs"),
    include_str!("../../kv/src/client/mod.rs"),
    include_str!("../../kv/src/client/read.rs"),
    include_str!("../../kv/src/client/write.rs"),
    include_str!("../../kv/src/table/rows.rs"),
    include_str!("../../kv/src/client/transact.rs"),
];
const META_SOURCE: &str = include_str!("../../meta/src/client.rs");

fn sorted(names: impl IntoIterator<Item = impl Into<String>>) -> BTreeSet<String> {
    names.into_iter().map(Into::into).collect()
}

#[test]
fn every_method_of_the_stores_client_is_listed() {
    let source = CLIENT_SOURCES
        .iter()
        .flat_map(|source| methods(source, "impl Client"));
    let listed = CLIENT.iter().chain(CLIENT_ELSEWHERE.iter().map(|(name, _)| name));
    assert_eq!(
        sorted(source),
        sorted(listed.copied()),
        "list it in check::workload::surface, and exercise it"
    );
}

#[test]
fn every_method_of_the_metadatas_client_is_listed() {
    let source = methods(META_SOURCE, "impl<S: Store> MetaClient<S>");
    let listed = META.iter().chain(META_ELSEWHERE.iter().map(|(name, _)| name));
    assert_eq!(
        sorted(source),
        sorted(listed.copied()),
        "list it in check::workload::surface, and exercise it"
    );
}

/// A value's variant: how its debug text begins.
fn variant(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    let end = text.find(|c: char| !c.is_alphanumeric());
    text[..end.unwrap_or(text.len())].to_owned()
}

#[test]
fn every_operation_condition_and_consistency_is_drawn() {
    let mut draw = Generator::new(Rng::new(1), 5);
    let mut seen: [BTreeSet<String>; 11] = Default::default();
    for number in 0..5_000 {
        draw.met(Revision::new(number + 2));
        if number % 10 == 0 {
            draw.gone(key("kv/1"), Revision::new(number + 2));
        }
        let txn = draw.txn(CallId { client: 1, number });
        for op in txn.then.iter().chain(&txn.otherwise) {
            seen[0].insert(variant(op));
            if let Op::Put { mode, lease, .. } = op {
                seen[1].insert(variant(mode));
                seen[2].insert(variant(lease));
            }
        }
        for node in txn.guard.nodes() {
            seen[3].insert(variant(node));
            if let GuardNode::Condition(condition) = node {
                seen[4].insert(variant(condition));
                let test = match condition {
                    Condition::Key { test, .. } => Some(test),
                    Condition::Range { test, .. } => {
                        seen[6].insert(variant(test));
                        match test {
                            RangeTest::Any(test) | RangeTest::All(test) => Some(test),
                            RangeTest::Count(compare, _) => {
                                seen[7].insert(variant(compare));
                                None
                            }
                        }
                    }
                };
                seen[5].extend(test.map(variant));
            }
        }
        for read in draw.reads() {
            seen[8].insert(variant(&read));
            if let ReadOp::Range(read) = read {
                seen[9].insert(variant(&read.order));
            }
        }
        seen[10].insert(variant(&draw.consistency()));
    }
    const OP: &str = include_str!("../../kv/src/model/op.rs");
    const GUARD: &str = include_str!("../../kv/src/model/guard.rs");
    const READ: &str = include_str!("../../kv/src/model/read.rs");
    const ORDER: &str = include_str!("../../kv/src/model/order.rs");
    let enums = [
        (OP, "Op"),
        (OP, "PutMode"),
        (OP, "LeaseChange"),
        (GUARD, "GuardNode"),
        (GUARD, "Condition"),
        (GUARD, "KeyTest"),
        (GUARD, "RangeTest"),
        (GUARD, "Compare"),
        (READ, "ReadOp"),
        (ORDER, "Order"),
        (READ, "Consistency"),
    ];
    for ((source, name), seen) in enums.into_iter().zip(seen) {
        let all = sorted(variants(source, name));
        assert!(!all.is_empty(), "the source of {name} was not understood");
        assert_eq!(
            seen, all,
            "variants of {name}: draw them in check::workload::generate"
        );
    }
}

#[test]
fn the_limits_that_are_exceeded_are_all_there_are() {
    const SOURCE: &str = include_str!("../../kv/src/model/check.rs");
    let mut draw = Generator::new(Rng::new(2), 5);
    let limits = Limits::default();
    let mut refusals = BTreeSet::new();
    for number in 0..40 {
        let txn = draw.oversized(CallId { client: 1, number }, &limits);
        let refused =
            quorate_kv::model::CheckedTxn::check(txn, &limits).expect_err("it is beyond the limits");
        refusals.insert(variant(&refused));
    }
    // A malformed guard cannot be built, only decoded.
    let mut all = sorted(variants(SOURCE, "InvalidTxn"));
    assert!(all.remove("MalformedGuard"));
    assert_eq!(refusals, all);
}

#[test]
fn runs_call_everything_that_is_listed_and_get_answers() {
    // The rarest of them is answered twice in a run of so many steps: one run alone may well not meet it.
    let mut tallies: BTreeMap<_, Tally> = BTreeMap::new();
    for seed in 11..15 {
        for (name, tally) in record(seed, 1_200, 5).book.tallies() {
            let sum = tallies.entry(name).or_default();
            sum.done += tally.done;
            sum.refused += tally.refused;
            sum.failed += tally.failed;
            sum.unknown += tally.unknown;
        }
    }
    let listed = CLIENT.iter().chain(&META).chain(&["transact"]);
    // Clients are made by whoever runs the workload.
    let never: Vec<&str> = listed
        .copied()
        .filter(|name| !["connect", "new"].contains(name))
        .filter(|name| tallies.get(name).is_none_or(|tally| tally.done == 0))
        .collect();
    assert_eq!(never, Vec::<&str>::new(), "were never answered: {tallies:#?}");
    for refused in [
        "commit",
        "txn beyond the limits",
        "txn beyond the node's limits",
        "update_isr",
        "create_topic",
    ] {
        assert!(
            tallies[refused].refused > 0,
            "{refused} was never refused: {tallies:#?}"
        );
    }
    let failed: Vec<_> = tallies.iter().filter(|(_, tally)| tally.unknown > 0).collect();
    assert!(failed.is_empty(), "nothing goes wrong in this run: {failed:?}");
}
