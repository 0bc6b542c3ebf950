//! The public operations that the workload exercises, by name, and those that others do.
//!
//! `tests/check_surface.rs` reads the methods and the variants out of the source and holds them against these
//! lists, and the lists against what a run has really called: a new operation fails it until it is exercised.

/// Methods of `quorate_kv::Client` that the workload calls.
pub const CLIENT: [&str; 10] = [
    "commit",
    "compact",
    "connect",
    "delete",
    "get",
    "limits",
    "put",
    "range",
    "read",
    "set_limits",
];

/// Methods of `quorate_kv::Client` that it calls under another kind than their name, or that others call.
pub const CLIENT_ELSEWHERE: [(&str, &str); 25] = [
    ("add", "a transaction as commit sends it: kv/tests/calls.rs"),
    (
        "compare_and_swap",
        "a transaction as commit sends it: kv/tests/calls.rs",
    ),
    ("count", "a read as read sends it: kv/tests/calls.rs"),
    (
        "delete_prefix",
        "transactions as commit sends them: kv/tests/calls.rs",
    ),
    (
        "delete_range",
        "transactions as commit sends them: kv/tests/calls.rs",
    ),
    ("exists", "a read as read sends it: kv/tests/calls.rs"),
    (
        "prefix",
        "the range of a prefix: the workload reads prefixes by range",
    ),
    ("put_if_absent", "a compare_and_swap: kv/tests/calls.rs"),
    ("revision", "a read as read sends it: kv/tests/calls.rs"),
    (
        "table",
        "get, put, range and delete under a prefix: kv/tests/tables.rs",
    ),
    ("try_transact", "the workload: a method of its own file"),
    ("txn", "makes what commit sends: kv/tests/calls.rs"),
    ("with_consistency", "a setting: kv/tests/calls.rs"),
    (
        "for_one_operation",
        "a setting: the metadata's client, for every operation of the workload",
    ),
    ("add_learner", "the simulator's nemesis, and tests/cluster.rs"),
    (
        "close",
        "the workload, where faults happen: whose calls are under way loses what makes them exactly-once",
    ),
    ("move_leader", "the simulator's nemesis, and tests/cluster.rs"),
    ("promote", "the simulator's nemesis, and tests/cluster.rs"),
    ("remove", "the simulator's nemesis, and tests/cluster.rs"),
    ("retries", "a counter"),
    (
        "shrink",
        "changes nothing that is told; the simulator shrinks by itself, and tests/state.rs",
    ),
    ("status", "reads no state; the simulator reads each node's own"),
    ("statuses", "reads no state; the simulator reads each node's own"),
    (
        "transact",
        "try_transact, for a closure whose errors are the client's",
    ),
    ("with_deadline", "the workload, with every call"),
];

/// Methods of `quorate_meta::MetaClient` that the workload calls.
pub const META: [&str; 26] = [
    "broker",
    "brokers",
    "cordon_broker",
    "create_partition",
    "create_partitions",
    "create_topic",
    "create_topics",
    "delete_topic",
    "delete_topics",
    "describe",
    "fence_broker",
    "grow_topics",
    "image",
    "partition",
    "partitions",
    "register_broker",
    "register_brokers",
    "topic",
    "topics",
    "unfence_broker",
    "unregister_broker",
    "update_isr",
    "update_isrs",
    "update_leader",
    "update_leaders",
    "new",
];

/// Methods of `quorate_meta::MetaClient` that are no operations.
pub const META_ELSEWHERE: [(&str, &str); 7] = [
    ("keys", "an accessor"),
    (
        "reading",
        "a setting: the workload's reads of the store itself draw every consistency",
    ),
    ("run", "below every operation"),
    ("store", "an accessor"),
    ("under", "a setting: the tests of meta"),
    ("with_clock", "a setting"),
    ("with_limits", "a setting"),
];

/// The public methods of the `impl` blocks in a source text that begin with this line.
pub fn methods(source: &str, block: &str) -> Vec<String> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in source.lines() {
        if line.starts_with(block) {
            inside = true;
        } else if line.starts_with('}') {
            inside = false;
        }
        let line = line.trim_start();
        let after = line
            .strip_prefix("pub async fn ")
            .or_else(|| line.strip_prefix("pub fn "));
        if let Some(name) = after.filter(|_| inside) {
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
            found.push(name[..end.unwrap_or(name.len())].to_owned());
        }
    }
    found
}

/// The variants of an enum in a source text.
pub fn variants(source: &str, name: &str) -> Vec<String> {
    let head = format!("pub enum {name} {{");
    let body = source.lines().skip_while(|line| *line != head).skip(1);
    let body = body.take_while(|line| !line.starts_with('}'));
    // A variant stands one level in; its fields stand deeper, comments and attributes begin otherwise.
    let variant = |line: &str| {
        let name = line.strip_prefix("    ")?;
        let first = name.chars().next()?;
        let end = name.find(|c: char| !c.is_alphanumeric());
        first
            .is_uppercase()
            .then(|| name[..end.unwrap_or(name.len())].to_owned())
    };
    body.filter_map(variant).collect()
}
