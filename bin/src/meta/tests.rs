//! Arguments, and that nothing of the library is missing on the command line.

use std::collections::BTreeMap;

use clap::CommandFactory as _;

use super::arguments::{assignments, pairs};
use crate::cli::Cli;

#[test]
fn assignments_are_read_partition_by_partition() {
    let read = assignments("1,2,3; 2,3,1").unwrap();
    let replicas: Vec<Vec<u64>> = read
        .iter()
        .map(|a| a.replicas.iter().map(|b| b.number()).collect())
        .collect();
    assert_eq!(replicas, [[1, 2, 3], [2, 3, 1]]);
    assert!(assignments("1,x").unwrap_err().to_string().contains("\"x\""));
    assert!(assignments("").is_err());
}

#[test]
fn pairs_need_a_name_and_have_it_once() {
    assert_eq!(pairs("--config", &["a=b=c".to_owned()]).unwrap()["a"], "b=c");
    assert!(pairs("--config", &["=x".to_owned()]).is_err());
    assert!(pairs("--config", &["x".to_owned()]).is_err());
    let twice = pairs("--config", &["a=1".to_owned(), "a=2".to_owned()]).unwrap_err();
    assert!(twice.to_string().contains("\"a\" is given twice"), "{twice}");
}

/// What each method of the library's client is on the command line: the words of a command, or why there is none.
const METHODS: [(&str, Result<&str, &str>); 33] = [
    ("register_broker", Ok("broker register")),
    ("register_brokers", Err("a batch: the command is one of one")),
    ("fence_broker", Ok("broker fence")),
    ("unfence_broker", Ok("broker unfence")),
    ("cordon_broker", Ok("broker cordon, broker uncordon")),
    ("unregister_broker", Ok("broker unregister")),
    ("create_topic", Ok("topic create")),
    ("create_topics", Err("a batch: the command is one of one")),
    ("delete_topic", Ok("topic delete")),
    ("delete_topics", Err("a batch: the command is one of one")),
    ("create_partitions", Ok("partition create")),
    (
        "create_partition",
        Err("a batch of one: the command takes several"),
    ),
    ("grow_topics", Ok("partition create")),
    ("update_leader", Ok("partition set-leader")),
    ("update_leaders", Err("a batch: the command is one of one")),
    ("update_isr", Ok("partition set-isr")),
    ("update_isrs", Err("a batch: the command is one of one")),
    ("broker", Ok("broker describe")),
    ("brokers", Ok("broker list")),
    ("topic", Ok("topic describe")),
    ("topics", Ok("topic list")),
    ("partition", Ok("partition describe")),
    ("partitions", Ok("topic describe")),
    ("describe", Ok("topic describe")),
    ("image", Ok("check, broker describe")),
    (
        "reading",
        Ok("check, broker list, broker describe, topic list, topic describe, partition describe"),
    ),
    ("under", Ok("check")),
    ("new", Err("makes the client")),
    ("with_limits", Err("the nodes' own limits decide")),
    ("with_clock", Err("rows carry this machine's clock")),
    ("store", Err("an accessor")),
    ("keys", Err("an accessor")),
    ("run", Err("below every operation")),
];

#[test]
fn every_method_has_a_command_or_a_reason_why_not() {
    let source = include_str!("../../../meta/src/client.rs");
    let inside = source.split("impl<S: Store> MetaClient<S> {").nth(1).unwrap();
    let inside = inside.split("\n}\n").next().unwrap();
    let names = inside.lines().filter_map(|line| {
        let line = line.trim_start().strip_prefix("pub ")?;
        let line = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")?;
        line.split(['(', '<']).next()
    });
    let listed = BTreeMap::from(METHODS);
    let names: Vec<&str> = names.collect();
    assert!(names.len() > 30, "{names:?}");
    for name in &names {
        assert!(
            listed.contains_key(name),
            "{name} is new: give it a command, or say here why not"
        );
    }
    for (name, is) in METHODS {
        assert!(names.contains(&name), "{name} is gone");
        for words in is.into_iter().flat_map(|commands| commands.split(", ")) {
            let mut cli = Cli::command();
            cli.build();
            let mut command = cli.find_subcommand("meta").unwrap();
            for word in words.split(' ') {
                let found = command.find_subcommand(word);
                command = found.unwrap_or_else(|| panic!("{name}: there is no command {words:?}"));
            }
        }
    }
}

#[test]
fn every_read_is_as_fresh_as_is_asked_for() {
    let mut cli = Cli::command();
    cli.build();
    let meta = cli.find_subcommand("meta").unwrap();
    let reads = [
        "broker list",
        "broker describe",
        "topic list",
        "topic describe",
        "partition describe",
        "check",
    ];
    for words in reads {
        let command = words
            .split(' ')
            .fold(meta, |command, word| command.find_subcommand(word).unwrap());
        let flags: Vec<_> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
        for flag in ["revision", "stale", "max-lag"] {
            assert!(flags.contains(&flag), "{words}: {flags:?}");
        }
    }
}
