//! One node that was given nothing but a data directory, and everything that the command line does with it.

mod program;

use program::{Home, free_ports, until};
use rustix::process::Signal;
use serde_json::json;

#[test]
fn the_command_line_finds_the_node_of_this_machine() {
    let home = Home::new();
    let server = home.serve_alone();
    home.line("kv put greeting hello").ok();
    assert_eq!(home.line("kv get greeting --raw").ok().text(), "hello");
    assert_eq!(
        home.line("kv get greeting --raw --data-dir data").ok().text(),
        "hello"
    );
    let address = server.address.clone();
    let named = home.run([
        "kv",
        "get",
        "greeting",
        "--raw",
        "--endpoints",
        &address,
        "--certs",
        "data/certs",
    ]);
    assert_eq!(named.ok().text(), "hello");
    let vars = [
        ("QUORATE_ENDPOINTS", address.as_str()),
        ("QUORATE_CERTS", "data/certs"),
    ];
    assert_eq!(
        home.run_with(["kv", "get", "greeting", "--raw"], b"", &vars)
            .ok()
            .text(),
        "hello"
    );

    home.line("kv get greeting --cluster other")
        .fails(4, &["no node of cluster other runs", "of quorate do"]);
    // The story: with endpoints given the name counted for nothing, and the write went to the certificate's cluster.
    home.run_with(
        ["kv", "put", "greeting", "lost", "--cluster", "nonsense"],
        b"",
        &vars,
    )
    .fails(2, &["says nonsense", "of cluster quorate"]);
    assert_eq!(
        home.line("kv get greeting --raw --cluster quorate").ok().text(),
        "hello"
    );
    assert!(server.stop().success());
    home.line("kv get greeting").fails(4, &["no node of yours runs"]);
    home.line("kv get greeting --data-dir data").fails(
        4,
        &[
            "no node that quorate serve started runs on data",
            "quorate serve --data-dir data",
        ],
    );
}

/// A start that waits for its configuration, in a pipe of the file system, and the end of the pipe that it waits for.
#[cfg(target_os = "linux")]
fn waiting_for_its_configuration(home: &Home) -> (program::Server, std::fs::File) {
    use rustix::fs::{CWD, Mode, mkfifoat};
    let pipe = home.path("node.toml");
    mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
    let log = std::fs::File::create(home.path("log-start")).unwrap();
    let stdout = std::fs::File::create(home.path("stdout")).unwrap();
    let server = home.serve_into(&["--config", "node.toml"], stdout, log);
    // Returns when the other end is opened too: it reads its configuration.
    let configuration = std::fs::File::options().write(true).open(&pipe).unwrap();
    (server, configuration)
}

#[cfg(target_os = "linux")]
#[test]
fn a_node_that_is_told_to_read_its_certificates_while_it_starts_serves() {
    let home = Home::new();
    let (server, mut configuration) = waiting_for_its_configuration(&home);
    server.signal(Signal::HUP);
    let text = "data_dir = \"data\"\nlisten = \"127.0.0.1:0\"\n";
    std::io::Write::write_all(&mut configuration, text.as_bytes()).unwrap();
    drop(configuration);
    until("the node serves", || {
        home.line("kv put a 1").code.eq(&0).then_some(())
    });
    until("the certificates were read again", || {
        home.logs()
            .contains("the certificates were read again")
            .then_some(())
    });
    assert!(server.stop().success(), "{}", home.logs());
}

#[cfg(target_os = "linux")]
#[test]
fn a_node_that_waits_for_its_configuration_is_ended_by_one_signal() {
    for signal in [Signal::TERM, Signal::INT] {
        let home = Home::new();
        let (server, _configuration) = waiting_for_its_configuration(&home);
        assert!(server.stop_by(signal).success(), "{}", home.logs());
    }
}

/// The story: a start that waited for a lock or a name heard no signal, and was killed after the service manager's patience.
#[test]
fn a_node_that_waits_for_a_lock_is_ended_by_one_signal() {
    let home = Home::new();
    std::fs::create_dir(home.path("data")).unwrap();
    let held = std::fs::File::open(home.path("data")).unwrap();
    held.lock().unwrap();
    let log = std::fs::File::create(home.path("log-start")).unwrap();
    let args = ["--data-dir", "data", "--listen", "127.0.0.1:0"];
    let server = home.serve_into(&args, std::process::Stdio::null(), log);
    until("the start has begun", || {
        home.logs().contains("files open").then_some(())
    });
    let begun = std::time::Instant::now();
    assert!(server.stop().success(), "{}", home.logs());
    assert!(
        begun.elapsed() < std::time::Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    drop(held);
    // Nothing was left that keeps the next one from serving.
    assert!(home.serve_alone().stop().success());
}

/// The story: it was a warning in the log, and exit code 0.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fails_while_a_node_stops_decides_its_exit_code() {
    let home = Home::new();
    let server = home.serve_after("trap '' XFSZ", "--data-dir data --listen 127.0.0.1:0");
    home.line("kv put a 1").ok();
    server.fail_writes();
    let ended = server.stop();
    assert_eq!(ended.code(), Some(4), "{ended}: {}", home.logs());
    // Whatever the disk did, what was acknowledged is there.
    let _server = home.serve_alone();
    assert_eq!(home.line("kv get a --raw").ok().text(), "1");
}

#[test]
fn what_a_node_makes_is_for_its_user_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = Home::new();
    let _server = home.serve_alone();
    home.line("kv put a 1").ok();
    let (mut left, mut files) = (vec![home.path("data")], 0);
    while let Some(path) = left.pop() {
        let metadata = path.metadata().unwrap();
        let mode = metadata.permissions().mode() & 0o777;
        if metadata.is_dir() {
            assert_eq!(mode, 0o700, "{}", path.display());
            left.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if path.extension().is_none_or(|extension| extension != "crt") {
            assert_eq!(mode, 0o600, "{}", path.display());
            files += 1;
        }
    }
    assert!(
        files >= 6,
        "{files} files: the log, the state, keys, the identity, locks, the note"
    );
}

/// They cost a loaded node a fifth of its time: `main.rs`.
#[cfg(target_os = "linux")]
#[test]
fn a_node_uses_no_huge_pages() {
    let home = Home::new();
    let server = home.serve_alone();
    let status = server.kernel_file("status");
    let line = status.lines().find(|line| line.starts_with("THP_enabled:"));
    assert_eq!(line.expect("Linux 5.0 says it"), "THP_enabled:\t0");
}

#[test]
fn a_killed_node_leaves_no_note_that_is_believed_and_loses_nothing() {
    let home = Home::new();
    let server = home.serve_alone();
    home.line("kv put a 1").ok();
    server.kill();
    home.line("kv get a").fails(4, &["no node of yours runs"]);
    let server = home.serve_alone();
    assert_eq!(home.line("kv get a --raw").ok().text(), "1");
    assert!(server.stop_by(Signal::INT).success());
}

#[test]
fn keys_are_written_read_and_deleted() {
    let home = Home::new();
    let _server = home.serve_alone();
    let put = home.line("kv put fruit/apple red --json").json();
    assert_eq!(put["existed"], false);
    assert_eq!(
        home.line("kv put fruit/apple green --json").json()["existed"],
        true
    );
    home.line("kv put fruit/apple blue --if-absent")
        .fails(2, &["the key fruit/apple exists already", "--if-absent"]);
    let got = home.line("kv get fruit/apple --json").json();
    assert_eq!(
        (&got["key"]["text"], &got["value"]["text"], &got["version"]),
        (&json!("fruit/apple"), &json!("green"), &json!(2))
    );

    home.line("kv put fruit/pear yellow").ok();
    home.line("kv put stone grey").ok();
    let range = home.line("kv range --prefix fruit/ --json").json();
    let keys: Vec<_> = range["records"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["key"]["text"].clone())
        .collect();
    assert_eq!(keys, ["fruit/apple", "fruit/pear"]);
    assert_eq!(home.line("kv range --count --json").json()["count"], 3);
    let last = home
        .line("kv range --descending --limit 1 --keys-only --json")
        .json();
    assert_eq!(
        (&last["records"][0]["key"]["text"], &last["more"]),
        (&json!("stone"), &json!(true))
    );
    assert_eq!(last["records"][0].get("value"), None);
    assert_eq!(home.line("kv range fruit/b stone --json").json()["count"], 1);

    let before = got["mod_revision"].as_u64().unwrap();
    let old = home
        .line(&format!("kv get fruit/apple --revision {} --json", before - 1))
        .json();
    assert_eq!(old["value"]["text"], "red");
    let future = home.line("kv get fruit/apple --revision 999999 --deadline 300ms");
    assert_eq!(future.code, 4, "{}", future.stderr);
    assert_eq!(home.line("kv get fruit/apple --stale --raw").ok().text(), "green");

    assert_eq!(home.line("kv del fruit/ --prefix --json").json()["deleted"], 2);
    home.line("kv del fruit/ --prefix")
        .fails(3, &["no key begins with fruit/"]);
    home.line("kv get fruit/apple")
        .fails(3, &["there is no key fruit/apple"]);
    home.line("kv del nothing").fails(3, &["there is no key nothing"]);
}

/// Each of these once meant every key, or dropped what was asked for.
#[test]
fn nothing_is_deleted_or_left_out_by_accident() {
    let home = Home::new();
    let _server = home.serve_alone();
    for key in ["a", "b", "c"] {
        home.line(&format!("kv put {key} 1")).ok();
    }
    home.run(["kv", "del", "", "--prefix"])
        .fails(2, &["every key begins with \"\"", "quorate kv del --all"]);
    home.line("kv del a --limit 5")
        .fails(2, &["--limit and --in-steps are for --prefix, --until and --all"]);
    home.line("kv del a --all")
        .fails(2, &["--all", "cannot be used with"]);
    home.line("kv del").fails(2, &["<KEY>"]);
    home.line("kv range c a")
        .fails(2, &["the range ends before it begins"]);
    home.line("kv range --count --limit 1")
        .fails(2, &["--count", "--limit"]);
    home.line("kv range --limit 0")
        .fails(2, &["--limit", "0 is not in 1.."]);
    for txn in [
        "del-prefix \"\" 10",
        "put a 2\nelse\n put b 2",
        "if\nthen\n put a 2",
    ] {
        assert_eq!(home.run_with(["kv", "txn"], txn.as_bytes(), &[]).code, 2, "{txn}");
    }
    let range = home.run(["kv", "range", "--prefix", "", "--json"]).json();
    assert_eq!(
        (&range["count"], &range["revision"]),
        (&json!(3), &json!(4)),
        "nothing was changed"
    );

    home.line("kv del --all --limit 2")
        .fails(2, &["there are more than 2 keys to delete", "--limit"]);
    assert_eq!(home.line("kv del --all --json").json()["deleted"], 3);
    home.line("kv del --all").fails(3, &["there is no key"]);
}

#[test]
fn history_is_given_up_by_hand() {
    let home = Home::new();
    let _server = home.serve_alone();
    for value in ["one", "two", "three"] {
        home.run(["kv", "put", "k", value]).ok();
    }
    let at = |revision| home.line(&format!("kv get k --revision {revision}"));
    at(2).ok();
    at(1).fails(3, &["there is no key k at revision 1"]);
    assert_eq!(home.line("kv compact 3 --json").json()["oldest"], 3);
    at(2).fails(2, &["the history before revision 3 is gone"]);
    at(3).ok();
    home.line("kv compact 9")
        .fails(2, &["revision 9 has not come", "at revision 4"]);
    home.line("kv compact").fails(2, &["--keep"]);
    home.line("kv compact 0").fails(2, &["0 is not in 1.."]);
    home.line("kv compact --keep 0").fails(2, &["0 is not in 1.."]);
    assert_eq!(home.line("kv compact --keep 2 --json").json()["oldest"], 3);
    let told = home.line("kv compact --keep 1").ok().text();
    assert!(
        told.contains("the history before revision 4 is given up"),
        "{told}"
    );
    assert_eq!(home.line("kv get k --raw").ok().text(), "three");
    let status = home.line("status --json").json();
    assert_eq!(status["nodes"][0]["oldest_revision"], 4, "{status}");
}

#[test]
fn limits_of_the_cluster_are_shown_and_changed() {
    let home = Home::new();
    let _server = home.serve_alone();
    let all = home.line("config get --json").json();
    let names: Vec<&str> = all["limits"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|limit| limit["name"].as_str())
        .collect();
    assert!(
        names.contains(&"history_kept") && names.contains(&"store_bytes_max"),
        "{all}"
    );
    let told = home.line("config set history_kept 1h").ok().text();
    assert!(told.starts_with("history_kept = 1h (it was 10m)\n"), "{told}");
    let told = home.line("config set store.history_kept 2h --json").json();
    assert_eq!(
        (&told["was"], &told["value"]),
        (&json!(3_600_000), &json!(7_200_000))
    );
    home.line("config set history_kept 1h").ok();
    let one = home.line("config get history_kept --json").json();
    assert_eq!(
        (&one["value"], &one["unit"]),
        (&json!(3_600_000), &json!("milliseconds"))
    );
    home.line("config set history_kept 1ms")
        .fails(2, &["out of range", "or none"]);
    home.line("config set history_keep 1h")
        .fails(2, &["did you mean history_kept?"]);
    let table = home.line("config get").ok().text();
    assert!(table.contains("1h") && table.contains("8 GiB"), "{table}");
}

#[test]
fn who_fills_the_store_gets_out_as_the_manual_says() {
    let home = Home::new();
    let _server = home.serve_alone();
    home.line("config set store_bytes_max 64KiB").ok();
    for id in 1..=2 {
        home.line(&format!("meta broker register {id} broker{id}:9092"))
            .ok();
    }
    home.line("meta topic create orders --assignment 1,2;2,1").ok();
    home.line("kv put own first").ok();
    let value = "v".repeat(7_000);
    let full = (0..20).find(|number| {
        let put = home.run(["kv", "put", &format!("k{number}"), &value]);
        put.code != 0
    });
    assert_eq!(
        full,
        Some(9),
        "nine of some 7 KiB and the metadata are more than 95 % of 64 KiB"
    );
    let rest = (0..200).find(|number| {
        let put = home.run(["kv", "put", &format!("kk{number}"), "1"]);
        put.code != 0
    });
    assert!(rest.is_some(), "what grows by little is refused too");
    home.run(["kv", "put", "more", "1"])
        .fails(4, &["the store is nearly full", "quorate kv compact"]);
    // Who fails over is not held up.
    home.line("kv put own second").ok();
    home.line("meta partition set-leader orders/0 2").ok();
    home.line("meta broker fence 1").ok();
    home.line("meta topic create more --assignment 2")
        .fails(4, &["the store is nearly full"]);
    let status = home.line("status").ok().text();
    assert!(status.contains("the store is nearly full"), "{status}");
    home.line("kv del k --prefix").ok();
    home.line("kv compact --keep 1").ok();
    until("there is room again", || {
        (home.run(["kv", "put", "more", "1"]).code == 0).then_some(())
    });
    let status = home.line("status --json").json();
    assert_eq!(status["nodes"][0]["full"], false, "{status}");
}

#[test]
fn a_state_file_is_shrunk_by_hand() {
    let home = Home::new();
    let server = home.serve_alone();
    home.run(["kv", "put", "k", "v"]).ok();
    let told = home.line("shrink --json").json();
    let node = &told["nodes"][0];
    assert!(
        node["after_bytes"].as_u64() <= node["before_bytes"].as_u64(),
        "{told}"
    );
    assert_eq!(node["error"], serde_json::Value::Null);
    assert_eq!(home.line("kv get k --raw").ok().text(), "v");
    assert_eq!(node["member"], true, "{told}");
    let table = home.line("shrink").ok().text();
    assert!(table.contains("before") && table.contains("iB"), "{table}");

    let gone = free_ports(1)[0];
    let endpoints = format!("{},127.0.0.1:{gone}", server.address);
    let asked = ["shrink", "--certs", "data/certs", "--endpoints", &endpoints];
    let table = home.run(asked).ok().text();
    assert!(table.contains(&format!("no member: 127.0.0.1:{gone}")), "{table}");
}

#[test]
fn counters_are_numbers() {
    let home = Home::new();
    let _server = home.serve_alone();
    let added = home
        .run_with(["kv", "txn", "--json"], b"add hits 41\nadd hits 1", &[])
        .json();
    assert_eq!(added["results"][1], json!({"op": "number", "number": 42}));
    assert_eq!(
        home.line("kv get hits --json").json()["value"],
        json!({"text": "\0\0\0\0\0\0\0*", "hex": "000000000000002a", "number": 42})
    );
    assert_eq!(home.line("kv get hits --number --raw").ok().text(), "42");
    assert_eq!(
        home.line("kv get 68697473 --hex --raw").ok().text(),
        "000000000000002a"
    );
    assert!(
        home.line("kv get hits")
            .ok()
            .text()
            .contains("0x000000000000002a (number 42)")
    );

    home.line("kv put level -3 --number").ok();
    home.line("kv put name hello").ok();
    let table = home.line("kv range --number").ok().text();
    assert!(
        table.contains(" 42 ") && table.contains(" -3 ") && table.contains(" hello "),
        "{table}"
    );
    home.line("kv put level high --number")
        .fails(2, &["\"high\" is not a number"]);
    home.line("kv get name --number")
        .fails(2, &["the value of name has 5 bytes, and a number has 8"]);
    let txn = b"if\n value hits = 42\nthen\n put hits 0";
    assert_eq!(
        home.run_with(["kv", "txn", "--number", "--json"], txn, &[])
            .json()["succeeded"],
        true
    );
    let lost = home.run_with(["kv", "txn", "--number"], txn, &[]).ok().text();
    let told = "line 2: value hits = 42\n    found: 0, version 2";
    assert!(lost.contains(told), "{lost}");
}

#[test]
fn values_are_bytes() {
    let home = Home::new();
    let _server = home.serve_alone();
    let bytes = b"\xff\x00binary\n";
    home.run_with(["kv", "put", "raw", "-"], bytes, &[]).ok();
    assert_eq!(home.line("kv get raw --raw").ok().stdout, bytes);
    assert!(
        home.line("kv get raw")
            .ok()
            .text()
            .contains("\\xff\\x00binary\\n")
    );
    assert_eq!(
        home.line("kv get raw --json").json()["value"],
        json!({"text": null, "hex": "ff0062696e6172790a", "number": null})
    );
    home.line("kv put 00ff aabb --hex").ok();
    assert!(home.line("kv get 00ff --hex").ok().text().contains("aabb"));
    home.line("kv put zz 00 --hex")
        .fails(2, &["\"zz\" is not hexadecimal"]);
    home.run(["kv", "put", "", "x"]).fails(2, &["the key is empty"]);
    home.run(["kv", "get", ""]).fails(2, &["the key is empty"]);
}

#[test]
fn a_transaction_runs_one_branch_and_says_why() {
    let home = Home::new();
    let _server = home.serve_alone();
    let txn = "if\n  missing lock\nthen\n  put lock me\n  add count 2\nelse\n  get lock\n";
    let first = home.run_with(["kv", "txn", "--json"], txn.as_bytes(), &[]).json();
    assert_eq!(first["succeeded"], true);
    assert_eq!(first["results"][1], json!({"op": "number", "number": 2}));
    let file = home.file("t.txn", txn);
    let second = home.run(["kv", "txn", file.to_str().unwrap(), "--json"]).json();
    assert_eq!(second["succeeded"], false);
    assert_eq!(second["failed"][0]["condition"], 0);
    assert_eq!(second["failed"][0]["found"]["kind"], "record");
    assert_eq!(second["results"][0]["record"]["value"]["text"], "me");
    let same = json!({"if": [["version", "lock", "=", 1]], "then": [["del", "lock"]]}).to_string();
    assert_eq!(
        home.run_with(["kv", "txn", "--json"], same.as_bytes(), &[])
            .json()["succeeded"],
        true
    );

    home.run_with(["kv", "txn"], b"put a", &[])
        .fails(2, &["line 1: a value is missing"]);
    home.run_with(["kv", "txn"], b"put a \xff", &[])
        .fails(2, &["standard input is not UTF-8 from byte 6 on", "--hex"]);
    home.line("kv txn missing.txn").fails(2, &["missing.txn"]);
}

#[test]
fn brokers_topics_and_partitions() {
    let home = Home::new();
    let _server = home.serve_alone();
    for id in 1..=3 {
        home.line(&format!(
            "meta broker register {id} broker{id}:9092 --rack r{id} --label zone=z{id}"
        ))
        .ok();
    }
    let brokers = home.line("meta broker list --json").json();
    assert_eq!(brokers["brokers"].as_array().unwrap().len(), 3);
    assert_eq!(brokers["brokers"][0]["labels"]["zone"], "z1");
    home.line("meta broker register 1 broker1:9092")
        .fails(2, &["broker 1", "registered and not fenced"]);
    home.line("meta broker register 4 broker4")
        .fails(2, &["\"broker4\" is no endpoint"]);

    let created = home
        .line("meta topic create orders --partitions 4 --replication-factor 3 --config a=b --json")
        .json();
    assert_eq!(created["partitions"].as_array().unwrap().len(), 4);
    assert_eq!(created["config"]["a"], "b");
    home.line("meta topic create orders")
        .fails(2, &["orders", "exists"]);
    home.line("meta topic create by-hand --assignment 1,2,3;2,3,1")
        .ok();
    home.line("meta topic create bad --assignment 1,9;2")
        .fails(2, &["nothing was changed", "broker 9 is not registered"]);
    home.run(["meta", "topic", "create", "naïve"])
        .fails(2, &["topic \"naïve\"", "'ï'"]);
    assert_eq!(
        home.line("meta topic list --json").json()["topics"]
            .as_array()
            .unwrap()
            .len(),
        2
    );

    let described = home.line("meta topic describe by-hand --json").json();
    assert_eq!(described["partitions"][1]["replicas"], json!([2, 3, 1]));
    assert_eq!(described["partitions"][1]["leader"], 2);
    let grown = home
        .line("meta partition create by-hand --assignment 3,1,2;1,2,3 --json")
        .json();
    assert_eq!(grown["partitions"][0]["partition"], 2);
    assert_eq!(
        home.line("meta partition create orders --total 6 --json").json()["partitions"]
            .as_array()
            .unwrap()
            .len(),
        2
    );

    let moved = home.line("meta partition set-leader by-hand/0 3 --json").json();
    assert_eq!(
        (&moved["leader"], &moved["leader_epoch"], &moved["changed"]),
        (&json!(3), &json!(2), &json!(true))
    );
    home.line("meta partition set-leader by-hand/0 2 --leader-epoch 1")
        .fails(2, &["leader epoch 1", "leader epoch 2"]);
    home.line("meta partition set-leader by-hand/0 7")
        .fails(2, &["broker 7 is not a replica"]);
    let isr = home.line("meta partition set-isr by-hand/0 3,1 --json").json();
    assert_eq!(isr["isr"], json!([1, 3]), "in the order of the replicas");
    home.line("meta partition set-isr by-hand/0 1,2")
        .fails(2, &["leader 3 is not in the ISR"]);
    home.line("meta partition set-leader by-hand/9 1")
        .fails(3, &["has no partition 9"]);
    home.line("meta partition set-leader by-hand 1")
        .fails(2, &["TOPIC/INDEX"]);

    let broker = home.line("meta broker describe 3 --json").json();
    assert_eq!(broker["partitions"].as_array().unwrap().len(), 10);
    home.line("meta broker describe 9")
        .fails(3, &["there is no broker 9"]);
    home.line("meta topic describe nothing")
        .fails(3, &["there is no topic nothing"]);
    home.line("meta topic delete by-hand").ok();
    home.line("meta topic delete by-hand")
        .fails(3, &["there is no topic by-hand"]);
}

/// The manual says that operators fence; there was no command for it.
#[test]
fn operators_fence_cordon_and_unregister_brokers() {
    let home = Home::new();
    let _server = home.serve_alone();
    for id in 1..=3 {
        home.line(&format!(
            "meta broker register {id} broker{id}:9092 --replicas-max 1000 --disk-bytes 500GiB"
        ))
        .ok();
    }
    let leads = |home: &Home| home.line("meta partition describe orders/0 --json").json()["leader"].clone();
    home.line("meta topic create orders --assignment 1,2;2,1").ok();
    let broker = home.line("meta broker describe 1 --json").json();
    assert_eq!(
        (&broker["replicas_max"], &broker["disk_bytes"]),
        (&json!(1000), &json!(500u64 << 30))
    );
    let epoch = broker["epoch"].as_u64().unwrap();

    home.line("meta broker fence 1 --epoch 1").fails(
        2,
        &[
            "broker 1",
            "the epoch of broker 1 is",
            "the request says 1",
            "registered anew",
        ],
    );
    let fenced = home
        .line(&format!("meta broker fence 1 --epoch {epoch} --json"))
        .json();
    assert_eq!(
        (
            &fenced["changed"],
            &fenced["fenced"],
            &fenced["partitions_changed"]
        ),
        (&json!(true), &json!(true), &json!(2))
    );
    assert_eq!(leads(&home), 2);
    assert_eq!(
        home.line("meta broker fence 1").ok().text(),
        "broker 1 was fenced already\n"
    );
    assert!(home.line("meta broker list").ok().text().contains("fenced"));
    home.line("meta partition set-leader orders/0 1")
        .fails(2, &["broker 1"]);
    assert_eq!(
        home.line("meta broker unfence 1").ok().text(),
        "broker 1 is unfenced\n"
    );
    // Whoever restarts a broker's process registers a new life of it.
    home.line("meta broker register 1 broker1:9092").fails(
        2,
        &[
            "registered and not fenced",
            "quorate meta broker fence 1",
            "--takeover",
        ],
    );
    home.line("meta broker register 1 broker1:9092 --takeover").ok();

    home.line("meta broker cordon 3").ok();
    assert_eq!(
        home.line("meta broker cordon 3").ok().text(),
        "broker 3 was cordoned already\n"
    );
    home.line("meta topic create wide --replication-factor 3")
        .fails(2, &["replication factor 3 is outside 1 to 2"]);
    assert!(
        home.line("meta broker uncordon 3")
            .ok()
            .text()
            .contains("may get new replicas")
    );
    home.line("meta topic create wide --replication-factor 3").ok();

    home.line("meta broker unregister 2")
        .fails(2, &["it holds replicas of 3 partitions", "--dangling"]);
    home.line("meta broker unregister 9")
        .fails(3, &["there is no broker 9"]);
    home.line("meta broker fence 9")
        .fails(3, &["there is no broker 9"]);
    home.line("meta topic delete wide").ok();
    assert_eq!(
        home.line("meta broker unregister 3").ok().text(),
        "broker 3 is unregistered\n"
    );
    home.line("meta broker unregister 2 --dangling").ok();
    let broker = home.line("meta broker list --json").json();
    assert_eq!(broker["brokers"].as_array().unwrap().len(), 1);
    // Its replicas dangle: the ISR of orders/0 is 2 alone no more, and 1 may lead by an unclean election.
    let partition = home.line("meta partition describe orders/0").ok().text();
    assert!(partition.contains("topic orders"), "{partition}");
    home.line("meta broker register 5 broker5:9092 --fenced").ok();
    assert_eq!(home.line("meta broker describe 5 --json").json()["fenced"], true);
}

#[test]
fn what_is_not_right_with_the_metadata_is_named() {
    let home = Home::new();
    let _server = home.serve_alone();
    home.line("meta broker register 1 broker1:9092").ok();
    home.line("meta topic create orders").ok();
    assert!(
        home.line("meta check")
            .ok()
            .text()
            .contains("the metadata is sound at revision")
    );
    // Ordinary keys of the names that the rows had before they got a prefix of their own.
    for key in ["b/1", "t/orders", "p/x", "n/x", "c/x"] {
        home.line(&format!("kv put {key} mine")).ok();
    }
    assert_eq!(home.line("meta check --json").json()["partitions"], 1);
    home.line("kv put meta/b/mine x").ok();
    home.line("meta broker fence 1").ok();
    home.line("meta check").fails(
        1,
        &[
            "one thing is wrong with the metadata",
            "the key meta/b/mine is no row",
        ],
    );

    // Another metadata beside it.
    let other = [("QUORATE_META_PREFIX", "blue/meta/")];
    let none = home
        .run_with(["meta", "broker", "list", "--json"], b"", &other)
        .json();
    assert_eq!(none["brokers"], json!([]));
    home.line("meta broker register 7 broker7:9092 --meta-prefix blue/meta/")
        .ok();
    let one = home.run_with(["meta", "check", "--json"], b"", &other).json();
    assert_eq!(one["brokers"], 1);
    home.run(["meta", "check", "--meta-prefix", ""])
        .fails(2, &["--meta-prefix \"\"", "from 1 to 1024"]);
}

/// It once took seven gigabytes before it was refused.
#[cfg(target_os = "linux")]
#[test]
fn a_topic_of_absurd_size_is_refused_before_it_takes_memory() {
    let home = Home::new();
    let _server = home.serve_alone();
    home.line("meta broker register 1 broker1:9092").ok();
    home.line("meta topic create small").ok();
    for line in [
        "meta topic create orders --partitions 16000000",
        "meta topic create orders --partitions 4294967295 --replication-factor 65535",
        "meta partition create small --total 16000000",
        "meta partition create small --total 4294967295",
    ] {
        // Two gigabytes of addresses: the stacks of threads and the reserve of the allocator are among them.
        home.run_after("ulimit -v 2000000", line).fails(
            2,
            &[
                "in one transaction, the limit is",
                "quorate meta partition create TOPIC --total N",
            ],
        );
    }
}

#[test]
fn status_and_members_are_shown_in_both_forms() {
    let home = Home::new();
    let server = home.serve_alone();
    let status = home.line("status --json").json();
    assert_eq!((&status["leader"], &status["quorum"]), (&json!(1), &json!(true)));
    assert_eq!(status["nodes"][0]["role"], "leader");
    assert_eq!(status["nodes"][0]["address"], json!(server.address));
    assert!(
        home.line("status")
            .ok()
            .text()
            .contains("cluster quorate: node 1 leads, quorum")
    );
    assert_eq!(
        home.line("member list --json").json()["members"][0]["voter"],
        true
    );
    home.line("member promote 7").fails(3, &["node 7 is no member"]);
    home.line("member add 0 x:1").fails(2, &["0 is no node's id"]);
    // A removal that is given again, to finish it, finds nothing to do.
    let removed = home.line("member remove 7").ok().text();
    assert!(removed.contains("node 7 is no member"), "{removed}");
    let own = home.line("member list --json").json()["members"][0]["address"].clone();
    let added = home
        .line(&format!("member add 1 {}", own.as_str().unwrap()))
        .ok()
        .text();
    assert!(added.contains("a member with a vote already"), "{added}");
    // It is not started yet: the same command succeeds later.
    home.line("member add 7 127.0.0.1:1")
        .fails(4, &["node 7 does not answer at 127.0.0.1:1", "start it there"]);
    let refused = home.line("member move-leader");
    assert_eq!(refused.code, 2, "{}", refused.stderr);
}

/// The failure that a run told as JSON: always with the same fields.
#[track_caller]
fn failure(ran: &program::Ran, code: i32, kind: &str) -> serde_json::Value {
    assert_eq!(ran.code, code, "{}", ran.stderr);
    let told: serde_json::Value =
        serde_json::from_str(&ran.stderr).unwrap_or_else(|error| panic!("{error}: {}", ran.stderr));
    let error = told["error"].clone();
    let fields: Vec<&String> = error.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["details", "hint", "kind", "message"]);
    assert_eq!(error["kind"], kind);
    error
}

#[test]
fn every_failure_is_json_of_one_shape_where_asked_for() {
    let home = Home::new();
    let _server = home.serve_alone();
    let none = failure(&home.line("kv get nothing --json"), 3, "not_found");
    assert_eq!(none["message"], "there is no key nothing");
    assert_eq!((&none["details"], &none["hint"]), (&json!([]), &json!(null)));
    let refused = failure(
        &home.line("meta topic create t --assignment 8;9 --json"),
        2,
        "refused",
    );
    assert_eq!(refused["message"], "refused, nothing was changed");
    assert_eq!(refused["details"].as_array().unwrap().len(), 2);

    // Arguments that are no command, of each kind.
    let unknown = failure(&home.line("kv gett a --json"), 2, "refused");
    assert_eq!(unknown["message"], "unrecognized subcommand 'gett'");
    assert!(
        unknown["hint"]
            .as_str()
            .unwrap()
            .contains("similar subcommands exist: 'set', 'get'")
    );
    let flag = failure(&home.line("--json status --verbos"), 2, "refused");
    assert_eq!(flag["message"], "unexpected argument '--verbos' found");
    let value = failure(&home.line("kv get a --deadline soon --json"), 2, "refused");
    let message = value["message"].as_str().unwrap();
    assert!(
        message.contains("'soon'") && message.contains("--deadline"),
        "{message}"
    );
    let missing = failure(&home.line("kv --json"), 2, "refused");
    let message = missing["message"].as_str().unwrap();
    assert!(
        message.starts_with("'quorate kv' requires a subcommand"),
        "{message}"
    );
    failure(&home.line("--json"), 2, "refused");
    failure(&home.line("kv put a --json"), 2, "refused");
    let both = failure(&home.line("kv range a --prefix b --json"), 2, "refused");
    assert!(
        both["message"].as_str().unwrap().contains("cannot be used with"),
        "{both}"
    );
    failure(&home.line("serve --json"), 2, "refused");
    let variable = home.run_with(["kv", "gett"], b"", &[("QUORATE_JSON", "true")]);
    failure(&variable, 2, "refused");

    // Help that was asked for is no failure.
    assert!(
        home.line("kv --help --json")
            .ok()
            .text()
            .contains("Usage: quorate kv")
    );
    assert!(home.line("--version --json").ok().text().starts_with("quorate "));
}

#[test]
fn a_client_of_another_authority_is_not_served() {
    let home = Home::new();
    let server = home.serve_alone();
    home.line("certs init --dir other").ok();
    home.line("certs issue --dir other --client eve").ok();
    let args = [
        "kv",
        "get",
        "a",
        "--endpoints",
        &server.address,
        "--certs",
        "other",
        "--deadline",
        "2s",
    ];
    home.run(args)
        .fails(2, &[&server.address, "refused", "certificate", "--certs"]);
}

#[test]
fn nobody_listening_is_unavailable_and_not_unknown() {
    let home = Home::new();
    home.line("certs init --dir c").ok();
    home.line("certs issue --dir c --client me").ok();
    let port = program::free_ports(1)[0];
    let ran = home.line(&format!(
        "kv put a 1 --endpoints 127.0.0.1:{port} --certs c --deadline 1s"
    ));
    ran.fails(4, &["no answer within 1s", "quorate status"]);
    home.line("kv put a 1 --endpoints nonsense --certs c").fails(
        2,
        &["--endpoints", "\"nonsense\" is no address of the form host:port"],
    );
    home.line(&format!("kv put a 1 --endpoints 127.0.0.1:{port}"))
        .fails(2, &["--certs", "quorate certs issue"]);
    home.line("certs issue --dir c --client you").ok();
    home.line(&format!("kv put a 1 --endpoints 127.0.0.1:{port} --certs c"))
        .fails(2, &["me, you", "--client"]);
}

#[test]
fn metrics_are_offered_with_their_meaning() {
    let home = Home::new();
    let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = probe.local_addr().unwrap().to_string();
    drop(probe);
    let _server = home.serve(&[
        "--data-dir",
        "data",
        "--listen",
        "127.0.0.1:0",
        "--metrics",
        &address,
    ]);
    home.line("kv put a 1").ok();
    let page = until("the metrics show the write", || {
        let page = program::http(&address, "/metrics")?;
        page.contains("quorate_is_leader 1").then_some(page)
    });
    for part in [
        "# HELP quorate_commit_seconds ",
        "# TYPE quorate_commit_seconds histogram",
        "# HELP quorate_revision ",
        "quorate_has_leader 1",
        "quorate_members{kind=\"voter\"} 1",
        "quorate_log_committed_index ",
    ] {
        assert!(page.contains(part), "{part:?} is not in:\n{page}");
    }
    let undescribed: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .filter(|name| name.starts_with("quorate_") && !page.contains(&format!("# HELP {name} ")))
        .collect();
    assert!(undescribed.is_empty(), "without a meaning: {undescribed:?}");
}

#[test]
fn logs_are_json_where_asked_for() {
    let home = Home::new();
    let server = home.serve(&[
        "--data-dir",
        "data",
        "--listen",
        "127.0.0.1:0",
        "--log-format",
        "json",
    ]);
    assert!(server.stop().success());
    let log = home.logs();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(
        lines
            .iter()
            .any(|line| line["message"] == "the node serves" && line["node"] == 1),
        "{log}"
    );
    assert!(lines.iter().any(|line| line["message"] == "stopped"), "{log}");
}
