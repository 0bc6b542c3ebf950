use uuid::Uuid;

use super::*;
use crate::raft::hello::Records;

fn fresh(node: u64) -> Hello {
    Hello {
        node,
        member: MemberUuid::new(Uuid::from_u128(u128::from(node))),
        process: node,
        cluster: None,
        records: None,
        is_member: false,
        you: Known::Unmet,
        stage: Stage::New,
    }
}

fn answers(hellos: impl IntoIterator<Item = Hello>) -> BTreeMap<u64, Hello> {
    hellos.into_iter().map(|hello| (hello.node, hello)).collect()
}

#[test]
fn a_new_directory_forms_a_cluster_with_all_others_or_after_a_grace_with_a_majority_and_never_beside_one() {
    let cluster = ClusterUuid::new(Uuid::from_u128(7));
    let formed = Hello {
        stage: Stage::Formed,
        records: Some(Records {
            cluster,
            at: 0,
            settled: false,
        }),
        ..fresh(3)
    };
    let begun = Hello {
        stage: Stage::Forming,
        ..formed.clone()
    };
    let joining = Hello {
        stage: Stage::Joining,
        ..fresh(3)
    };
    let other_list = Hello {
        you: Known::Stranger,
        ..fresh(3)
    };
    let cases = [
        ("all are new", answers([fresh(2), fresh(3)]), Some(2), Some(2)),
        ("one is away", answers([fresh(2)]), None, Some(1)),
        ("two are away", answers([]), None, None),
        (
            "one belongs to a cluster",
            answers([fresh(2), formed]),
            None,
            None,
        ),
        (
            "one has begun to form a cluster, which may yet come about",
            answers([fresh(2), begun]),
            None,
            None,
        ),
        (
            "one waits to be added",
            answers([fresh(2), joining]),
            None,
            Some(1),
        ),
        (
            "one was given another list",
            answers([fresh(2), other_list]),
            None,
            Some(1),
        ),
    ];
    for (case, answers, at_once, after_grace) in cases {
        let met = |grace| may_form(3, &answers, grace).map(|met| met.len());
        assert_eq!(met(false), at_once, "{case}");
        assert_eq!(met(true), after_grace, "{case}, after the grace");
    }
}

/// The story: a first start that broke off. The one that had begun to form a cluster was no new directory any more, and the
/// cluster that the others formed without it never took it in.
#[test]
fn a_member_that_was_never_met_is_introduced_where_nothing_it_has_is_anybodys() {
    let records = |settled| {
        Some(Records {
            cluster: ClusterUuid::new(Uuid::from_u128(7)),
            at: 0,
            settled,
        })
    };
    let of = |stage, cluster, records| Hello {
        stage,
        cluster,
        records,
        ..fresh(3)
    };
    let cluster = Some(ClusterUuid::new(Uuid::from_u128(7)));
    assert!(of(Stage::New, None, None).may_be_introduced());
    assert!(of(Stage::Joining, None, None).may_be_introduced());
    assert!(of(Stage::Forming, None, None).may_be_introduced(), "it has voted");
    assert!(of(Stage::Forming, None, records(false)).may_be_introduced());
    assert!(!of(Stage::Formed, None, records(false)).may_be_introduced());
    assert!(!of(Stage::Formed, cluster, records(true)).may_be_introduced());
}
