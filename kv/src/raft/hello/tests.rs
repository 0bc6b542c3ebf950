use uuid::Uuid;

use super::*;

fn member(number: u128) -> MemberUuid {
    MemberUuid::new(Uuid::from_u128(number))
}

fn cluster(number: u128) -> ClusterUuid {
    ClusterUuid::new(Uuid::from_u128(number))
}

/// A directory that has never taken part, of node 1.
fn new() -> Hello {
    Hello {
        node: 1,
        member: member(1),
        process: 11,
        cluster: None,
        records: None,
        is_member: false,
        you: Known::Unmet,
        stage: Stage::New,
    }
}

/// A member of a cluster whose committed membership stands at an entry, as node 2.
fn founded(number: u128, at: u64, you: Known) -> Hello {
    Hello {
        node: 2,
        member: member(2),
        process: 22,
        cluster: Some(cluster(number)),
        records: Some(Records {
            cluster: cluster(number),
            at,
            settled: true,
        }),
        is_member: true,
        you,
        stage: Stage::Formed,
    }
}

/// The same as node 1.
fn ours(number: u128, at: u64, you: Known) -> Hello {
    Hello {
        node: 1,
        member: member(1),
        ..founded(number, at, you)
    }
}

/// As it is before anything is known to be committed: while it is formed, and after a start.
fn unsettled(hello: Hello) -> Hello {
    Hello {
        cluster: None,
        records: hello.records.map(|records| Records {
            settled: false,
            ..records
        }),
        ..hello
    }
}

/// In whose membership a change is under way.
fn changing(hello: Hello) -> Hello {
    Hello {
        records: hello.records.map(|records| Records {
            settled: false,
            ..records
        }),
        ..hello
    }
}

fn joining() -> Hello {
    Hello {
        stage: Stage::Joining,
        you: Known::Stranger,
        ..new()
    }
}

fn outsider(hello: Hello) -> Hello {
    Hello {
        is_member: false,
        ..hello
    }
}

/// Node 1 is `mine`, node 2 is `theirs`; what each makes of the other.
#[test]
fn who_speaks_with_whom() {
    use Known::{Is, Stranger, Unmet};
    use Lacks::{Agreement, Cluster as NoCluster, Introduction, Membership};
    use Verdict::{Fits, NotYet, Own, Refused};
    let (one, two, lost) = (Is(member(1)), Is(member(2)), Is(member(99)));
    let new_two = || Hello {
        node: 2,
        member: member(2),
        ..new()
    };
    let cases = [
        (
            "two new directories wait for a cluster",
            new(),
            new_two(),
            NotYet(NoCluster),
            NotYet(NoCluster),
        ),
        (
            "two members of one cluster",
            ours(7, 5, two),
            founded(7, 5, one),
            Fits,
            Fits,
        ),
        (
            "two members that have just started",
            unsettled(ours(7, 5, two)),
            unsettled(founded(7, 5, one)),
            Fits,
            Fits,
        ),
        (
            "two clusters of one name",
            ours(7, 5, two),
            founded(8, 5, one),
            Refused(Wrong::Cluster),
            Refused(Wrong::Cluster),
        ),
        (
            "a wiped directory under its old id",
            new(),
            founded(7, 5, lost),
            Own(Wrong::Directory),
            Refused(Wrong::Directory),
        ),
        (
            "the same, and the member does not know yet what is committed",
            new(),
            unsettled(founded(7, 5, lost)),
            NotYet(Agreement),
            Refused(Wrong::Directory),
        ),
        (
            "a wiped directory that waits to be added: the member may be removed, and it may be added",
            joining(),
            founded(7, 5, lost),
            NotYet(Agreement),
            Refused(Wrong::Directory),
        ),
        (
            "a new directory that was just added",
            joining(),
            changing(founded(7, 6, one)),
            Fits,
            Fits,
        ),
        (
            "a new directory that nobody added",
            joining(),
            founded(7, 5, Stranger),
            NotYet(Membership),
            NotYet(Membership),
        ),
        (
            "a member that was away when the cluster was formed",
            new(),
            founded(7, 5, Unmet),
            NotYet(Introduction),
            NotYet(Introduction),
        ),
        (
            "the same, once it was introduced",
            new(),
            founded(7, 6, one),
            Fits,
            Fits,
        ),
        (
            "a new directory that a forming node has met",
            new(),
            unsettled(founded(7, 0, one)),
            Fits,
            Fits,
        ),
        (
            "a member without a commit, and one of another history that does not know it",
            unsettled(ours(7, 5, lost)),
            founded(8, 3, Unmet),
            NotYet(Introduction),
            NotYet(Introduction),
        ),
        (
            "the same, before the other one knows what is committed",
            unsettled(ours(7, 5, lost)),
            unsettled(founded(8, 3, Unmet)),
            Refused(Wrong::Directory),
            NotYet(Agreement),
        ),
        (
            "two that formed at once, one of which has won",
            unsettled(ours(7, 0, two)),
            founded(8, 0, one),
            Fits,
            Fits,
        ),
        (
            "a member that was removed",
            ours(7, 5, two),
            founded(7, 9, Stranger),
            Own(Wrong::Removed),
            Refused(Wrong::Removed),
        ),
        (
            "a member whose removal is not committed",
            ours(7, 5, two),
            changing(founded(7, 9, Stranger)),
            Fits,
            Fits,
        ),
        (
            "a leader that was added since this node last heard",
            ours(7, 5, Stranger),
            founded(7, 9, one),
            Fits,
            Fits,
        ),
        (
            "a new member that is catching up, and one that has not heard of it",
            outsider(ours(7, 5, two)),
            founded(7, 9, Stranger),
            NotYet(Membership),
            NotYet(Membership),
        ),
        (
            "an id that was given to another directory: who knows the later members is right",
            ours(7, 5, lost),
            founded(7, 9, one),
            Fits,
            Fits,
        ),
        (
            "and the directory that had the id before is refused",
            ours(7, 5, two),
            founded(7, 9, lost),
            Own(Wrong::Directory),
            Refused(Wrong::Directory),
        ),
    ];
    for (case, mine, theirs, own, peers) in cases {
        assert_eq!(judge(&mine, &theirs), own, "{case}");
        assert_eq!(judge(&theirs, &mine), peers, "{case}, from the other side");
    }
}

/// Every hello against every other: a law that holds for all of them, whatever the table above says of some.
#[test]
fn neither_side_alone_takes_the_other_for_fit_and_nobody_wiped_is_let_in() {
    let mut hellos = Vec::new();
    for you in [
        Known::Stranger,
        Known::Unmet,
        Known::Is(member(1)),
        Known::Is(member(2)),
        Known::Is(member(99)),
    ] {
        hellos.push(Hello { you, ..new() });
        hellos.push(Hello { you, ..joining() });
        for (number, at) in [(7, 5), (7, 9), (8, 5)] {
            let hello = founded(number, at, you);
            hellos.extend([
                hello.clone(),
                unsettled(hello.clone()),
                changing(hello.clone()),
                outsider(hello),
            ]);
        }
    }
    for mine in &hellos {
        let mine = Hello {
            node: 1,
            member: member(1),
            ..mine.clone()
        };
        for theirs in &hellos {
            let theirs = Hello {
                node: 2,
                member: member(2),
                ..theirs.clone()
            };
            let (own, peers) = (judge(&mine, &theirs), judge(&theirs, &mine));
            let both = format!("{mine:#?}\n{theirs:#?}\n{own:?} and {peers:?}");
            assert_eq!(own == Verdict::Fits, peers == Verdict::Fits, "{both}");
            assert_eq!(judge(&mine, &theirs), own, "it is a function of the two");
            let are_apart =
                mine.cluster.is_some() && theirs.cluster.is_some() && mine.cluster != theirs.cluster;
            if are_apart || mine.is_fresh() && theirs.you == Known::Is(member(99)) {
                assert_ne!(own, Verdict::Fits, "{both}");
            }
            // A fault that lasts is never the word of somebody who knows of nothing that is committed.
            if matches!(own, Verdict::Own(_)) {
                assert!(theirs.cluster.is_some(), "{both}");
            }
            let has_words = in_words(own, &mine, &theirs).is_some_and(|words| !words.is_empty());
            assert_eq!(has_words, own != Verdict::Fits);
        }
    }
}

#[test]
fn a_greeting_reads_back_and_one_of_a_release_without_a_common_version_is_refused_by_name() {
    let hello = founded(7, 300, Known::Is(member(1)));
    let bytes = hello.encode();
    assert_eq!(Hello::decode(&bytes), Ok(hello));
    for cut in 0..bytes.len() {
        assert!(Hello::decode(&bytes[..cut]).is_err(), "{cut}");
    }
    let mut later = bytes.clone();
    later[4..8].copy_from_slice(&[2, 0, 5, 0]);
    later.truncate(9);
    let refused = Hello::decode(&later).expect_err("no common version");
    assert!(
        refused.to_string().contains("versions 2 to 5") && refused.to_string().contains("versions 1 to 1"),
        "{refused}"
    );
    let mut wider = bytes;
    wider[6] = 9;
    assert!(Hello::decode(&wider).is_ok(), "a version in common suffices");
}

/// `docs/formats/peers.md` shows these bytes.
#[test]
fn the_documented_greeting_has_these_bytes() {
    let hello = Hello {
        process: 300,
        ..founded(7, 5, Known::Is(member(1)))
    };
    let mut expected = b"QRTH".to_vec();
    expected.extend([1, 0, 1, 0, 1]);
    let uuid = |last: u8| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    expected.push(2);
    expected.extend(uuid(2));
    expected.extend([0xac, 0x02]);
    expected.push(1);
    expected.extend(uuid(7));
    expected.push(1);
    expected.extend(uuid(7));
    expected.extend([5, 1]);
    expected.push(1);
    expected.push(2);
    expected.extend(uuid(1));
    expected.push(2);
    assert_eq!(hello.encode(), expected);
}
