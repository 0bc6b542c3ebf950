//! What `quorate kv` asks of a node, and the forms in which it answers.

mod program;

use program::{Home, Ran};
use serde_json::{Value, json};

#[track_caller]
fn text(ran: &Ran) -> String {
    ran.ok().text()
}

#[test]
fn what_a_key_was_before_is_shown_on_request() {
    let home = Home::new();
    let _server = home.serve_alone();
    let first = home.line("kv put k one --prev --json").json();
    assert_eq!(first, json!({"revision": 2, "existed": false, "previous": null}));
    let second = home.line("kv put k two --prev --json").json();
    let one = json!({
        "value": {"text": "one", "hex": "6f6e65", "number": null},
        "version": 1, "create_revision": 2, "mod_revision": 2, "lease": null,
    });
    assert_eq!(second, json!({"revision": 3, "existed": true, "previous": one}));
    assert_eq!(
        text(&home.line("kv put k three --prev")),
        "k overwritten at revision 4\nit was two, version 2, created at 2, modified at 3\n"
    );
    assert_eq!(
        text(&home.line("kv put new 1 --prev")),
        "new created at revision 5\nthere was no such key\n"
    );
    let deleted = home.line("kv del k --prev --json").json();
    assert_eq!(
        (&deleted["deleted"], &deleted["previous"]["value"]["text"]),
        (&json!(1), &json!("three"))
    );
    home.line("kv del k --prev").fails(3, &["there is no key k"]);
    // Nobody asked.
    assert_eq!(home.line("kv put new 2 --json").json().get("previous"), None);
    home.line("kv del n --prefix --prev")
        .fails(2, &["--prev", "cannot be used with"]);
}

#[test]
fn a_key_is_written_only_where_it_is_as_expected() {
    let home = Home::new();
    let _server = home.serve_alone();
    home.line("kv put state idle --if-absent").ok();
    home.line("kv put state other --if-absent").fails(
        2,
        &[
            "the key state exists already",
            "it is idle, version 1, created at 2, modified at 2",
        ],
    );

    let swapped = home.line("kv cas state idle busy --json").json();
    assert_eq!(swapped, json!({"revision": 3, "existed": true}));
    home.line("kv cas state idle done").fails(
        2,
        &[
            "state is not idle; it was not written",
            "it is busy, version 2, created at 2, modified at 3",
        ],
    );
    home.line("kv cas missing a b")
        .fails(2, &["missing is not a", "it does not exist"]);
    let input = home.run_with(["kv", "cas", "state", "busy", "-"], b"\xff\n", &[]);
    input.ok();
    assert_eq!(home.line("kv get state --raw").ok().stdout, b"\xff\n");
    home.line("kv put level 7 --number").ok();
    home.line("kv cas level 7 8 --number").ok();
    home.line("kv cas level 7 9 --number")
        .fails(2, &["level is not 7", "it is 8, version 2"]);

    let seen = home.line("kv get level --json").json()["mod_revision"].clone();
    home.line(&format!("kv put level mine --if-revision {seen}")).ok();
    home.line(&format!("kv put level mine --if-revision {seen}"))
        .fails(2, &["level was not last written at revision", "it is mine"]);
    assert_eq!(text(&home.line("kv get level --raw")), "mine");
    home.line("kv put level x --if-absent --if-revision 1")
        .fails(2, &["cannot be used with"]);
}

#[test]
fn numbers_are_added() {
    let home = Home::new();
    let _server = home.serve_alone();
    assert_eq!(text(&home.line("kv add hits")), "hits is 1 at revision 2\n");
    assert_eq!(text(&home.line("kv add hits 41 --format raw")), "42\n");
    assert_eq!(
        home.line("kv add hits -44 --json").json(),
        json!({"revision": 4, "number": -2})
    );
    home.line("kv put word hello").ok();
    home.line("kv add word 1").fails(2, &["word"]);
    home.line("kv add hits one").fails(2, &["'one'"]);
}

#[test]
fn keys_are_counted_and_looked_for_at_any_revision() {
    let home = Home::new();
    let _server = home.serve_alone();
    for key in ["a/1", "a/2", "b"] {
        home.line(&format!("kv put {key} 1")).ok();
    }
    assert_eq!(text(&home.line("kv count")), "3 keys at revision 4\n");
    assert_eq!(text(&home.line("kv count --prefix a/")), "2 keys at revision 4\n");
    assert_eq!(text(&home.line("kv count a/2 b")), "1 key at revision 4\n");
    let counted = home.line("kv count --revision 3 --json").json();
    assert_eq!((&counted["count"], &counted["revision"]), (&json!(2), &json!(3)));
    home.line("kv count b a")
        .fails(2, &["the range ends before it begins"]);

    assert_eq!(text(&home.line("kv exists b")), "b exists\n");
    assert_eq!(home.line("kv exists b --json").json(), json!({"exists": true}));
    home.line("kv exists c").fails(3, &["there is no key c"]);
    home.line("kv exists b --revision 3")
        .fails(3, &["there is no key b at revision 3"]);

    assert_eq!(
        text(&home.line("kv get b --stale --max-lag 1m --min-revision 4 --raw")),
        "1"
    );
    let future = home.line("kv get b --stale --min-revision 99 --deadline 300ms");
    assert_eq!(future.code, 4, "{}", future.stderr);
    home.line("kv get b --min-revision 4").fails(2, &["--stale"]);
}

#[test]
fn ranges_of_keys_are_deleted_at_once_or_in_steps() {
    let home = Home::new();
    let _server = home.serve_alone();
    let lines: String = (0..2_500)
        .map(|number| format!("{{\"key\":\"many/{number:04}\",\"value\":\"\"}}\n"))
        .collect();
    home.run_with(["kv", "import", "--partial"], lines.as_bytes(), &[])
        .ok();
    home.line("kv put other 1").ok();
    assert_eq!(
        home.line("kv del many/0000 --until many/0010 --json").json()["deleted"],
        10
    );
    home.line("kv del many/0000 --until many/0010")
        .fails(3, &["no key is at many/0000 or after and before many/0010"]);
    home.line("kv del many/ --prefix --limit 2000")
        .fails(2, &["there are more than 2000 keys to delete", "--in-steps"]);
    assert_eq!(
        text(&home.line("kv del many/ --prefix --in-steps")),
        "2490 keys deleted\n"
    );
    assert_eq!(text(&home.line("kv count --format raw")), "1\n");
    home.line("kv del many/ --prefix --in-steps")
        .fails(3, &["no key begins with many/"]);
    // What looks like two keys, as other stores delete them, is no range.
    home.line("kv del a z").fails(2, &["'z'"]);
    home.line("kv del a --in-steps")
        .fails(2, &["one key needs neither"]);
    home.line("kv del z --until a")
        .fails(2, &["the range ends before it begins"]);
}

#[test]
fn what_other_stores_call_it_is_understood() {
    let home = Home::new();
    let _server = home.serve_alone();
    home.line("kv set a 1").ok();
    home.line("kv set a 2 --nx")
        .fails(2, &["the key a exists already"]);
    assert_eq!(text(&home.line("kv incr n --format raw")), "1\n");
    assert_eq!(text(&home.line("kv incrby n 2 --format raw")), "3\n");
    assert_eq!(text(&home.line("kv list --keys-only --format raw")), "a\nn\n");
    assert_eq!(
        text(&home.line("kv range --count-only --rev 2 --format raw")),
        "1\n"
    );
    assert_eq!(text(&home.line("kv rm a --prev-kv --format raw")), "5\t1\t1\n");
}

#[test]
fn a_condition_that_failed_is_told_in_its_own_words() {
    let home = Home::new();
    let _server = home.serve_alone();
    home.line("kv put lock me").ok();
    home.line("kv put c1 1").ok();
    home.line("kv put c2 2").ok();
    let txn = "if\n  missing lock # nobody\n  exists lock\n  value lock = \"you\"\n  version nope = 1\n\n  count c < 1\n\
               then\n  put lock you\nelse\n  get lock\n";
    let told = text(&home.run_with(["kv", "txn"], txn.as_bytes(), &[]));
    assert_eq!(
        told,
        "the conditions did not hold, \"else\" ran; revision 4\n  \
           line 2: missing lock # nobody\n    found: version 1, created at 2, modified at 2\n  \
           line 4: value lock = \"you\"\n    found: me, version 1, created at 2, modified at 2\n  \
           line 5: version nope = 1\n    found: there is no such key\n  \
           line 7: count c < 1\n    found: at least 2 keys\n  \
           operation 0: me (version 1)\n"
    );
    let answer = home.run_with(["kv", "txn", "--json"], txn.as_bytes(), &[]).json();
    let failed: Vec<(&Value, &Value, &Value)> = answer["failed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|failed| (&failed["condition"], &failed["place"], &failed["text"]))
        .collect();
    assert_eq!(
        failed,
        [
            (&json!(0), &json!("line 2"), &json!("missing lock # nobody")),
            (&json!(2), &json!("line 4"), &json!("value lock = \"you\"")),
            (&json!(3), &json!("line 5"), &json!("version nope = 1")),
            (&json!(4), &json!("line 7"), &json!("count c < 1")),
        ]
    );
    assert_eq!(
        answer["failed"][3]["found"],
        json!({"kind": "count", "count": 2, "at_least": true})
    );
    let same = json!({"if": [["missing", "lock"]], "then": [["del", "lock"]]}).to_string();
    let told = text(&home.run_with(["kv", "txn"], same.as_bytes(), &[]));
    assert!(
        told.contains("  if[0]: [\"missing\",\"lock\"]\n    found: version 1"),
        "{told}"
    );
}

#[test]
fn raw_is_bytes_or_lines_of_fields_and_nothing_else() {
    let home = Home::new();
    let _server = home.serve_alone();
    home.run_with(["kv", "put", "k", "-"], b"\xff\t\\\n", &[]).ok();
    home.line("kv add n 7").ok();
    let raw = |line: &str| home.line(&format!("{line} --format raw")).ok().stdout.clone();
    assert_eq!(raw("kv get k"), b"\xff\t\\\n", "to the byte");
    assert_eq!(
        raw("kv get k --hex"[..].replace(" k ", " 6b ").as_str()),
        b"ff095c0a"
    );
    assert_eq!(raw("kv get n --number"), b"7");
    assert_eq!(
        raw("kv range"),
        b"k\t\xff\\t\\\\\\n\nn\t\x00\x00\x00\x00\x00\x00\x00\x07\n",
        "each byte can be told"
    );
    assert_eq!(raw("kv range --number"), b"k\t\xff\\t\\\\\\n\nn\t7\n");
    assert_eq!(raw("kv range --keys-only"), b"k\nn\n");
    assert_eq!(raw("kv range --prefix none"), b"");
    let cut = home.line("kv range --limit 1 --keys-only --format raw");
    assert_eq!(
        (text(&cut).as_str(), cut.stderr.contains("more keys")),
        ("k\n", true)
    );
    assert_eq!(raw("kv put k x"), b"4\ttrue\n");
    assert_eq!(raw("kv put k y --prev"), b"5\ttrue\tx\n");
    assert_eq!(raw("kv put new y --prev"), b"6\tfalse\n");
    assert_eq!(raw("kv cas k y z"), b"7\ttrue\n");
    assert_eq!(raw("kv exists k"), b"true\n");
    assert_eq!(raw("kv del new"), b"8\t1\n");
    assert_eq!(raw("kv compact 2"), b"2\n");
    let txn = "get k\nget none\nput a 1\nadd n 1\nprefix n\ndel a";
    let ran = home.run_with(["kv", "txn", "--format", "raw", "--number"], b"get k", &[]);
    assert_eq!(text(&ran), "then\t8\n0\tget\tz\n");
    let ran = home.run_with(["kv", "txn", "--format", "raw"], txn.as_bytes(), &[]);
    assert_eq!(
        text(&ran),
        "then\t9\n0\tget\tz\n1\tget\n2\tput\tfalse\n3\tnumber\t8\n\
         4\trange\tn\t\0\0\0\0\0\0\0\x08\n5\tdeleted\t1\n"
    );

    // The other commands: the fields of the JSON form, or of the table.
    let fields = |line: &str| -> Vec<Vec<String>> {
        let text = home.line(&format!("{line} --format raw")).ok().text();
        let lines = text
            .lines()
            .map(|line| line.split('\t').map(str::to_owned).collect());
        lines.collect()
    };
    let [status] = fields("status").try_into().expect("one node");
    assert_eq!(
        (status.len(), status[0].as_str(), status[2].as_str()),
        (9, "1", "leader")
    );
    let [member] = fields("member list").try_into().expect("one member");
    assert_eq!(
        (member.len(), member[0].as_str(), member[3].as_str()),
        (7, "1", "true")
    );
    assert_eq!(fields("config get history_kept"), [["600000"]]);
    assert_eq!(fields("config set history_kept 1h"), [["3600000"]]);
    let limits = fields("config get");
    assert!(
        limits.len() > 10 && limits.iter().all(|limit| limit.len() == 8),
        "{limits:?}"
    );
    assert_eq!(fields("meta broker list"), Vec::<Vec<String>>::new());
    home.line("meta broker register 1 b1:9092 --label zone=z --label dc=d")
        .ok();
    home.line("meta topic create t --partitions 2").ok();
    let [broker] = fields("meta broker list").try_into().expect("one broker");
    assert!(broker.contains(&"dc=d,zone=z".to_owned()), "{broker:?}");
    let partitions = fields("meta topic describe t");
    assert_eq!(
        partitions
            .iter()
            .map(|row| row[..3].join(" "))
            .collect::<Vec<_>>(),
        ["0 1 1", "1 1 1"]
    );
    assert_eq!(fields("shrink").len(), 1);
    assert_eq!(fields("certs init --dir c")[0][1], "c/ca.crt");
}

#[test]
fn the_form_is_asked_for_by_a_flag_or_a_variable() {
    let home = Home::new();
    let _server = home.serve_alone();
    home.line("kv put k v").ok();
    let json = home.line("kv get k --json");
    assert_eq!(home.line("kv get k --format json").ok().stdout, json.ok().stdout);
    let by = |args: &str, vars: &[(&str, &str)]| home.run_with(args.split(' '), b"", vars);
    let set = [("QUORATE_FORMAT", "json")];
    assert_eq!(by("kv get k", &set).ok().stdout, json.stdout);
    assert_eq!(
        text(&by("kv get k --format raw", &set)),
        "v",
        "a flag beats a variable"
    );
    assert_eq!(
        text(&by("kv get k --format raw", &[("QUORATE_JSON", "true")])),
        "v"
    );
    let table = by("kv get k --format table", &set).ok().text();
    assert!(table.contains("│ k"), "{table}");
    by("kv get k", &[("QUORATE_FORMAT", "raw"), ("QUORATE_JSON", "1")])
        .fails(2, &["QUORATE_JSON says json, and QUORATE_FORMAT says raw"]);
    home.line("kv get k --json --format raw")
        .fails(2, &["--json is --format json, and --format raw is given too"]);
    home.line("kv get k --format xml").fails(2, &["'xml'"]);

    // Failures follow: JSON under json, wrong arguments included, and text else.
    for line in ["kv get none", "kv gett k", "kv put"] {
        for json in ["--format json", "--format=json", "--json"] {
            let failed = home.line(&format!("{line} {json}"));
            let told: Value = serde_json::from_str(&failed.stderr)
                .unwrap_or_else(|error| panic!("{line} {json}: {error}: {}", failed.stderr));
            assert!(told["error"]["kind"].is_string(), "{told}");
        }
        let failed = home.line(&format!("{line} --format raw"));
        assert!(failed.stderr.starts_with("error: "), "{line}: {}", failed.stderr);
        assert!(failed.stdout.is_empty(), "{line}: {}", failed.text());
    }
    let failed = home.run_with(["kv", "gett"], b"", &set);
    assert!(failed.stderr.starts_with('{'), "{}", failed.stderr);
    // A value that is written raw, and a failure that is JSON all the same.
    assert_eq!(text(&home.line("kv get k --raw --json")), "v");
    let failed = home.line("kv get none --raw --json");
    assert!(failed.stderr.starts_with('{'), "{}", failed.stderr);
}
