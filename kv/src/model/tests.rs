//! Laws of the model's words: guards, limits, encodings.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn key(text: &str) -> Key {
    Key::from(text)
}

fn small() -> Limits {
    Limits {
        key_bytes_max: 24,
        value_bytes_max: 6,
        txn_bytes_max: 120,
        txn_ops_max: 4,
    }
}

/// A guard as a tree, for the reference.
#[derive(Clone, Debug)]
enum Tree {
    Leaf(u64),
    All(Vec<Tree>),
    Any(Vec<Tree>),
    Not(Box<Tree>),
}

impl Tree {
    /// Leaf `n` tests for version `n`, so that a leaf is known by its content.
    fn guard(&self) -> Guard {
        match self {
            Tree::Leaf(n) => Guard::key(key("k"), KeyTest::Version(Compare::Equal, *n)),
            Tree::All(trees) => Guard::all(trees.iter().map(Tree::guard)),
            Tree::Any(trees) => Guard::any(trees.iter().map(Tree::guard)),
            Tree::Not(tree) => Guard::not(tree.guard()),
        }
    }

    fn holds(&self, leaf: &impl Fn(u64) -> bool) -> bool {
        match self {
            Tree::Leaf(n) => leaf(*n),
            Tree::All(trees) => trees.iter().all(|tree| tree.holds(leaf)),
            Tree::Any(trees) => trees.iter().any(|tree| tree.holds(leaf)),
            Tree::Not(tree) => !tree.holds(leaf),
        }
    }

    fn leaves(&self, out: &mut Vec<u64>) {
        match self {
            Tree::Leaf(n) => out.push(*n),
            Tree::All(trees) | Tree::Any(trees) => trees.iter().for_each(|tree| tree.leaves(out)),
            Tree::Not(tree) => tree.leaves(out),
        }
    }
}

fn any_tree() -> impl Strategy<Value = Tree> {
    (0u64..16).prop_map(Tree::Leaf).prop_recursive(5, 40, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Tree::All),
            vec(inner.clone(), 0..4).prop_map(Tree::Any),
            inner.prop_map(|tree| Tree::Not(Box::new(tree))),
        ]
    })
}

fn any_node() -> impl Strategy<Value = GuardNode> {
    prop_oneof![
        (0u32..4).prop_map(GuardNode::All),
        (0u32..4).prop_map(GuardNode::Any),
        Just(GuardNode::All(u32::MAX)),
        Just(GuardNode::Not),
        Just(GuardNode::Condition(Condition::Key {
            key: key("k"),
            test: KeyTest::Exists(true)
        })),
    ]
}

/// A guard of nodes as they might come from a peer. A guard is encoded as the sequence of its nodes.
fn guard_of(nodes: &Vec<GuardNode>) -> Guard {
    decode(&encode(nodes)).unwrap()
}

/// Whether nodes form exactly one tree, by recursion.
fn one_tree(nodes: &[GuardNode]) -> bool {
    fn skip(nodes: &[GuardNode]) -> Option<&[GuardNode]> {
        let (node, mut rest) = nodes.split_first()?;
        let children = match node {
            GuardNode::All(n) | GuardNode::Any(n) => *n,
            GuardNode::Not => 1,
            GuardNode::Condition(_) => 0,
        };
        for _ in 0..children {
            rest = skip(rest)?;
        }
        Some(rest)
    }
    nodes.is_empty() || skip(nodes).is_some_and(<[GuardNode]>::is_empty)
}

proptest! {
    #[test]
    fn a_guard_holds_as_its_tree_does_and_asks_every_leaf_in_order(tree in any_tree(), holding: u16) {
        let leaf = |n: u64| holding >> n & 1 == 1;
        let mut asked = Vec::new();
        let guard = tree.guard();
        let held = guard.evaluate(|index, condition| {
            assert_eq!(index as usize, asked.len());
            match condition {
                Condition::Key { test: KeyTest::Version(_, n), .. } => {
                    asked.push(*n);
                    Ok::<_, ()>(leaf(*n))
                }
                other => panic!("{other:?}"),
            }
        });
        prop_assert_eq!(held, Ok(tree.holds(&leaf)));
        let mut leaves = Vec::new();
        tree.leaves(&mut leaves);
        prop_assert_eq!(asked, leaves);
        prop_assert!(guard.is_well_formed());
    }

    #[test]
    fn nodes_that_form_no_tree_are_known_and_evaluating_them_does_not_panic(nodes in vec(any_node(), 0..8)) {
        let guard = guard_of(&nodes);
        prop_assert_eq!(guard.is_well_formed(), one_tree(&nodes));
        let _ = guard.evaluate(|_, _| Ok::<_, ()>(true));
        let checked = CheckedTxn::check(Txn::default().when(guard), &Limits::default());
        prop_assert_eq!(checked.is_ok(), one_tree(&nodes));
    }

    #[test]
    fn bytes_that_are_no_message_are_refused_and_never_a_panic(bytes: Vec<u8>) {
        let _ = decode::<Proposal>(&bytes);
        let mut versioned = vec![1];
        versioned.extend(bytes);
        let _ = decode::<Proposal>(&versioned);
        let _ = decode::<Outcome>(&versioned);
        let _ = decode::<Vec<ReadOp>>(&versioned);
    }

    #[test]
    fn a_message_that_was_damaged_is_refused_or_another_message(at: usize, flip in 1u8..=255, cut: usize) {
        let txn = Txn::new([Op::put(key("a"), "value"), Op::Add { key: key("n"), delta: -7 }])
            .when(Guard::exists(key("a")))
            .or_else([Op::get(key("b")), Op::Range(RangeRead::new(KeyRange::prefix("p")))]);
        let proposal = Proposal {
            stamp: LogTime::from_millis(1_700_000_000_000),
            full_at: Some(1 << 20),
            commands: vec![Command::Txn { session: None, txn }, Command::open_session(5)],
        };
        let bytes = encode(&proposal);
        prop_assert_eq!(decode_shared::<Proposal>(&bytes.clone().into()), Ok(proposal.clone()));
        prop_assert_eq!(decode::<Proposal>(&bytes), Ok(proposal));
        let mut damaged = bytes.clone();
        let at = at % bytes.len();
        damaged[at] ^= flip;
        prop_assert_eq!(decode_shared::<Proposal>(&damaged.clone().into()), decode(&damaged));
        prop_assert!(decode::<Proposal>(&bytes[..cut % bytes.len()]).is_err());
    }

    #[test]
    fn a_prefix_range_holds_exactly_the_keys_with_the_prefix(prefix: Vec<u8>, key in vec(any::<u8>(), 1..6)) {
        let range = KeyRange::prefix(prefix.clone());
        prop_assert_eq!(range.contains(&key), key.starts_with(&prefix));
        let mut longer = prefix.clone();
        longer.extend(&key);
        prop_assert!(range.contains(&longer));
    }
}

#[test]
fn a_hostile_depth_costs_no_stack() {
    let mut nodes = vec![GuardNode::Not; 1_000_000];
    nodes.push(GuardNode::Condition(Condition::Key {
        key: key("k"),
        test: KeyTest::Exists(true),
    }));
    let guard = guard_of(&nodes);
    assert!(guard.is_well_formed());
    assert_eq!(
        guard.evaluate(|_, _| Ok::<_, ()>(true)),
        Ok(true),
        "an even number of nots"
    );
}

#[test]
fn a_transaction_beyond_a_limit_is_refused_with_limit_size_and_place() {
    let long = || key("0123456789012345678901234");
    let large = || Bytes::from_static(b"1234567");
    let key_too_long = |place| InvalidTxn::KeyTooLong {
        place,
        size: 25,
        limit: 24,
    };
    let value_too_large = |place| InvalidTxn::ValueTooLarge {
        place,
        size: 7,
        limit: 6,
    };
    let ok = || Op::get(key("a"));
    let exists = |k| Guard::exists(k);
    let cases: Vec<(&str, Txn, InvalidTxn)> = vec![
        (
            "a long key",
            Txn::new([ok(), Op::delete(long())]),
            key_too_long(Place::Then(1)),
        ),
        (
            "a long key in the else branch",
            Txn::default().or_else([ok(), ok(), Op::get(long())]),
            key_too_long(Place::Otherwise(2)),
        ),
        (
            "a long key in the guard",
            Txn::default().when(Guard::any([exists(key("a")), exists(long())])),
            key_too_long(Place::Condition(1)),
        ),
        (
            "a large value",
            Txn::new([ok(), Op::put(key("a"), large())]),
            value_too_large(Place::Then(1)),
        ),
        (
            "a large value in a test",
            Txn::default().when(Guard::key(key("a"), KeyTest::Value(Compare::Equal, large()))),
            value_too_large(Place::Condition(0)),
        ),
        (
            "a sequence without room for its digits",
            Txn::new([Op::PutSequence {
                prefix: key("12345"),
                value: Bytes::new(),
            }]),
            key_too_long(Place::Then(0)),
        ),
        (
            "many operations, guard and both branches together",
            Txn::new([ok(), ok()])
                .when(exists(key("a")))
                .or_else([ok(), ok()]),
            InvalidTxn::TooManyOps { count: 5, limit: 4 },
        ),
        (
            "a large whole",
            Txn::new(vec![Op::get(key("0123456789012345")); 4]),
            InvalidTxn::TooLarge {
                size: 128,
                limit: 120,
            },
        ),
    ];
    for (name, txn, expected) in cases {
        assert_eq!(CheckedTxn::check(txn, &small()), Err(expected), "{name}");
    }
    let within = Txn::new([Op::put(key("012345678901234567890123"), "123456")]);
    assert!(
        CheckedTxn::check(within, &small()).is_ok(),
        "each limit itself is allowed"
    );
}

#[test]
fn a_read_with_a_long_key_is_refused_with_its_index() {
    let reads = [
        ReadOp::Get(key("a")),
        ReadOp::Get(key("0123456789012345678901234")),
    ];
    assert_eq!(
        check_reads(&reads, &small()),
        Err(InvalidRead::KeyTooLong {
            index: 1,
            size: 25,
            limit: 24
        })
    );
    let many = vec![ReadOp::Get(key("a")); 5];
    assert_eq!(
        check_reads(&many, &small()),
        Err(InvalidRead::TooManyReads { count: 5, limit: 4 })
    );
}

/// The story: 32 MiB of guard nodes of one byte took 3 GiB to be read, and were counted, and refused, only then.
#[test]
fn a_message_with_more_steps_than_the_limit_is_refused_while_it_is_read() {
    let read = |message: &Command, limit| decode_limited::<Command>(&encode(message).into(), limit);
    let txn = Txn::new([Op::get(key("a")), Op::get(key("b"))])
        .when(Guard::exists(key("a")))
        .or_else([Op::get(key("c"))]);
    let steps = 4;
    let command = Command::Txn { session: None, txn };
    assert_eq!(read(&command, steps), Ok(command.clone()));
    let too_many = |limit| Err(DecodeError::TooManySteps { limit });
    for limit in 0..steps {
        assert_eq!(read(&command, limit), too_many(limit));
    }
    // A limit ends with the message that it was for.
    assert_eq!(decode(&encode(&command)), Ok(command));

    // `Not`, 32 Mi times: written by hand, since whoever encodes it holds it.
    const NODES: usize = 32 << 20;
    let empty = encode(&Command::Txn {
        session: None,
        txn: Txn::default(),
    });
    let (head, tail) = empty.split_at(empty.len() - 3);
    let mut bytes = head.to_vec();
    bytes.extend(postcard::to_allocvec(&NODES).unwrap());
    bytes.resize(bytes.len() + NODES, 2);
    bytes.extend(&tail[1..]);
    let bytes = Bytes::from(bytes);
    assert_eq!(decode_limited::<Command>(&bytes, 1000), too_many(1000));
    // What docs/configuration.md says that each takes.
    assert!(size_of::<Op>() <= 128 && size_of::<GuardNode>() <= 128 && size_of::<ReadOp>() <= 128);
}

#[test]
fn keys_and_values_share_the_memory_of_the_message_where_that_is_asked_for_and_never_after() {
    let bytes = Bytes::from(encode(&Op::put(key("a key"), "a value")));
    let is_inside = |part: &[u8]| bytes.as_ptr_range().contains(&part.as_ptr());
    let inside = |op: Op| match op {
        Op::Put { key, value, .. } => (is_inside(key.as_bytes()), is_inside(&value)),
        other => panic!("{other:?}"),
    };
    assert_eq!(inside(decode_shared(&bytes).unwrap()), (true, true));
    assert_eq!(inside(decode(&bytes).unwrap()), (false, false));
    decode_shared::<Op>(&bytes.slice(..3)).unwrap_err();
    assert_eq!(inside(decode(&bytes).unwrap()), (false, false));
}

#[test]
fn a_key_is_read_from_a_format_for_people_too() {
    let op = Op::put(key("a"), "v");
    let text = serde_json::to_string(&op).unwrap();
    assert_eq!(serde_json::from_str::<Op>(&text).unwrap(), op);
}

#[test]
fn what_is_no_message_is_refused_with_its_reason() {
    let bytes = encode(&LogTime::ZERO);
    assert_eq!(decode::<LogTime>(&[]), Err(DecodeError::Empty));
    assert_eq!(
        decode::<LogTime>(&[9, 0]),
        Err(DecodeError::UnknownVersion { found: 9 })
    );
    assert!(matches!(
        decode::<LogTime>(&bytes[..1]),
        Err(DecodeError::Malformed { .. })
    ));
    let mut longer = bytes;
    longer.extend([0, 0]);
    assert_eq!(
        decode::<LogTime>(&longer),
        Err(DecodeError::TrailingBytes { count: 2 })
    );
    // A claim of 2^32 commands allocates nothing.
    assert!(decode::<Proposal>(&[1, 0, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
    // An empty key is no key, also inside a message.
    assert!(decode::<ReadOp>(&[1, 0, 0]).is_err());
}
