//! Exports and imports: what is kept, what is refused, and what is said of one that ends early.

mod program;

use program::{Home, Server};
use serde_json::json;

/// A home with a node.
fn served() -> (Home, Server) {
    let home = Home::new();
    let server = home.serve_alone();
    (home, server)
}

fn lines(numbers: std::ops::Range<u32>) -> String {
    numbers
        .map(|number| format!("{{\"key\":\"many/{number:05}\",\"value\":\"of an import\"}}\n"))
        .collect()
}

fn count(home: &Home) -> String {
    home.line("kv count --format raw").ok().text().trim().to_owned()
}

/// The names in a home, but for those of its node and its logs.
fn files(home: &Home) -> Vec<String> {
    let names = std::fs::read_dir(home.dir()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names
        .filter(|name| !name.starts_with("log-") && name != "data" && name != ".quorate")
        .collect();
    names.sort();
    names
}

#[test]
fn an_export_reads_back_into_another_store() {
    let (home, _server) = served();
    home.line("kv put greeting hello").ok();
    home.line("kv put greeting again").ok();
    home.run_with(["kv", "put", "bytes", "-"], b"\xff\x00\n", &[])
        .ok();
    home.run(["kv", "put", "empty", ""]).ok();
    home.line("kv put 00ff 61 --hex").ok();
    home.line("kv add counter 42").ok();
    let expected = "{\"key_hex\":\"00ff\",\"value\":\"a\"}\n\
                    {\"key\":\"bytes\",\"value_hex\":\"ff000a\"}\n\
                    {\"key\":\"counter\",\"value\":\"\\u0000\\u0000\\u0000\\u0000\\u0000\\u0000\\u0000*\"}\n\
                    {\"key\":\"empty\",\"value\":\"\"}\n\
                    {\"key\":\"greeting\",\"value\":\"again\"}\n";
    let whole = format!("{expected}{{\"end\":{{\"keys\":5,\"revision\":7}}}}\n");
    assert_eq!(home.line("kv export").ok().text(), whole);
    assert_eq!(home.line("kv export -").ok().stderr, "", "nothing else is said");
    // The same in every format: it is one of its own.
    assert_eq!(home.line("kv export --json").ok().text(), whole);
    assert_eq!(
        home.line("kv export all.jsonl --json").json(),
        json!({"file": "all.jsonl", "revision": 7, "keys": 5, "bytes": whole.len()})
    );
    assert_eq!(std::fs::read_to_string(home.path("all.jsonl")).unwrap(), whole);
    use std::os::unix::fs::PermissionsExt as _;
    let mode = home.path("all.jsonl").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "for its user alone");
    assert_eq!(files(&home), ["all.jsonl"]);

    let (other, _other_server) = served();
    let file = home.path("all.jsonl");
    let import = ["kv", "import", file.to_str().unwrap()];
    assert_eq!(
        other.run(import).ok().text(),
        "5 keys written: 5 created, 0 overwritten; the last at revision 2\n"
    );
    let back = other.line("kv export").ok().text();
    assert_eq!(back, whole.replace("\"revision\":7", "\"revision\":2"));
    let greeting = other.line("kv get greeting --json").json();
    assert_eq!(
        (&greeting["version"], &greeting["create_revision"]),
        (&json!(1), &json!(2)),
        "revisions and versions are its own"
    );
    // Once more: the same keys.
    let again = other.run(import.iter().chain(&["--json"])).json();
    assert_eq!(
        again,
        json!({"lines": 5, "written": 5, "created": 0, "overwritten": 5, "kept": 0, "revision": 3, "dry_run": false})
    );
    assert_eq!(
        other.run(import.iter().chain(&["--format", "raw"])).ok().text(),
        "5\n"
    );
}

#[test]
fn an_export_is_of_one_revision_and_of_the_keys_that_were_asked_for() {
    let (home, _server) = served();
    for line in ["put a/1 old", "put b 1", "put a/1 new", "put a/2 2"] {
        home.line(&format!("kv {line}")).ok();
    }
    assert_eq!(
        home.line("kv export --prefix a/").ok().text(),
        "{\"key\":\"a/1\",\"value\":\"new\"}\n{\"key\":\"a/2\",\"value\":\"2\"}\n{\"end\":{\"keys\":2,\"revision\":5}}\n"
    );
    assert_eq!(
        home.line("kv export --prefix a/ --revision 3").ok().text(),
        "{\"key\":\"a/1\",\"value\":\"old\"}\n{\"end\":{\"keys\":1,\"revision\":3}}\n"
    );
    assert_eq!(
        home.line("kv export --prefix none").ok().text(),
        "{\"end\":{\"keys\":0,\"revision\":5}}\n"
    );
}

#[test]
fn a_file_is_replaced_by_a_whole_export_alone() {
    let (home, _server) = served();
    home.line("kv put a 1").ok();
    home.line("kv export all.jsonl").ok();
    let before = std::fs::read(home.path("all.jsonl")).unwrap();
    home.line("kv put a 2").ok();
    home.line("kv compact --keep 1").ok();
    home.line("kv export all.jsonl --revision 2")
        .fails(2, &["the history before revision 3 is gone", "history_kept"]);
    assert_eq!(std::fs::read(home.path("all.jsonl")).unwrap(), before);
    assert_eq!(files(&home), ["all.jsonl"], "nothing is left beside it");
    // By another name it is the same file, which stays where it is.
    std::os::unix::fs::symlink(home.path("all.jsonl"), home.path("link")).unwrap();
    home.line("kv export link").ok();
    assert_ne!(std::fs::read(home.path("all.jsonl")).unwrap(), before);
    assert!(home.path("link").is_symlink());
    home.line("kv export none/all.jsonl").fails(2, &["none: "]);
    home.line("kv export data").fails(2, &["data"]);
}

#[cfg(target_os = "linux")]
#[test]
fn an_export_that_cannot_be_written_fails() {
    let (home, _server) = served();
    // More than a pipe holds.
    let many = lines(0..3_000);
    home.run_with(["kv", "import", "--partial"], many.as_bytes(), &[])
        .ok();
    home.line("kv export /dev/full").fails(1, &["/dev/full", "space"]);
    home.line("kv export /dev/null").ok();
    // The reader has seen enough.
    let script = format!(
        "{} kv export | true; echo ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_quorate")
    );
    let ran = std::process::Command::new("bash")
        .args(["-c", &script])
        .env("HOME", home.dir())
        .env_remove("XDG_RUNTIME_DIR")
        .env_remove("QUORATE_RUN_DIR")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "0\n");
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_may_have_any_name() {
    use std::os::unix::ffi::OsStrExt as _;
    let (home, _server) = served();
    home.line("kv put a 1").ok();
    let name = std::ffi::OsStr::from_bytes(b"all-\xff.jsonl");
    let run = |command: &str| home.run([std::ffi::OsStr::new("kv"), command.as_ref(), name]);
    run("export").ok();
    assert!(home.dir().join(name).is_file());
    run("import").ok();
}

/// A page has 1,000 keys, and a batch 1,024.
#[test]
fn more_than_a_page_and_a_batch_is_exported_and_imported() {
    let (home, _server) = served();
    let many = lines(0..3_000);
    home.file("many.jsonl", &many);
    let told = home.line("kv import many.jsonl --partial --json").json();
    assert_eq!(
        (&told["lines"], &told["created"], &told["revision"]),
        (&json!(3000), &json!(3000), &json!(4)),
        "three batches"
    );
    let exported = home.line("kv export").ok().text();
    assert_eq!(
        exported,
        format!("{many}{{\"end\":{{\"keys\":3000,\"revision\":4}}}}\n")
    );
    // Large values: a batch ends at a number of bytes, too.
    let value = "v".repeat(1_000_000);
    let large: String = (0..9)
        .map(|number| format!("{{\"key\":\"large/{number}\",\"value\":\"{value}\"}}\n"))
        .collect();
    home.file("large.jsonl", &large);
    let told = home.line("kv import large.jsonl --partial --json").json();
    assert_eq!((&told["written"], &told["revision"]), (&json!(9), &json!(7)));
    let exported = home.line("kv export --prefix large/").ok().text();
    assert!(exported.starts_with(&large));
}

#[test]
fn a_file_with_a_bad_line_is_refused_before_anything_is_written() {
    let (home, _server) = served();
    let many = lines(0..2_000);
    home.file("bad.jsonl", &format!("{many}{{\"key\":\"a\"}}\n"));
    home.line("kv import bad.jsonl --partial")
        .fails(2, &["line 2001: it has no value, nor value_hex"]);
    home.file("cut.jsonl", &many);
    home.line("kv import cut.jsonl")
        .fails(2, &["the last line is missing", "after line 2000", "--partial"]);
    home.file("fewer.jsonl", &format!("{many}{{\"end\":{{\"keys\":2001}}}}\n"));
    home.line("kv import fewer.jsonl")
        .fails(2, &["line 2001: the end says 2001 keys, and 2000 lines have one"]);
    home.line("kv import none.jsonl").fails(2, &["none.jsonl"]);
    home.line("kv import data").fails(2, &["data is a directory"]);
    assert_eq!(count(&home), "0");
}

#[test]
fn an_import_from_a_pipe_says_up_to_which_line_it_has_written() {
    let (home, _server) = served();
    let import = ["kv", "import", "-"];
    home.run_with(import, b"nonsense\n", &[]).fails(
        2,
        &[
            "line 1: it is not of the form of an export",
            "nothing was written",
        ],
    );
    assert_eq!(count(&home), "0");
    let bad = format!("{}nonsense\n", lines(0..2_000));
    home.run_with(import, bad.as_bytes(), &[]).fails(
        5,
        &[
            "line 2001: it is not of the form of an export",
            "all lines up to line 1024 are written, and none behind it",
            "the same import can be given again",
        ],
    );
    assert_eq!(count(&home), "1024", "as it says");
    // What broke off, as the first half of a pipe does.
    home.run_with(import, lines(2_000..2_010).as_bytes(), &[]).fails(
        2,
        &["the last line is missing", "nothing was written", "--partial"],
    );
    assert_eq!(count(&home), "1024");
    let whole = format!("{}{{\"end\":{{\"keys\":2000}}}}\n", lines(0..2_000));
    let told = home
        .run_with(["kv", "import", "--json"], whole.as_bytes(), &[])
        .json();
    assert_eq!(
        (&told["created"], &told["overwritten"]),
        (&json!(976), &json!(1024))
    );
}

#[test]
fn keys_that_exist_are_left_alone_where_asked_for() {
    let (home, _server) = served();
    home.file("many.jsonl", &lines(0..1_500));
    for number in [0, 7, 1_200] {
        home.line(&format!("kv put many/{number:05} mine")).ok();
    }
    let told = home
        .line("kv import many.jsonl --partial --if-absent")
        .ok()
        .text();
    assert!(
        told.starts_with("1,497 keys written: 1,497 created, 0 overwritten; 3 left as they were"),
        "{told}"
    );
    assert_eq!(home.line("kv get many/00007 --raw").ok().text(), "mine");
    assert_eq!(home.line("kv get many/00008 --raw").ok().text(), "of an import");
    let again = home
        .line("kv import many.jsonl --partial --if-absent --json")
        .json();
    assert_eq!(
        (&again["written"], &again["kept"], &again["revision"]),
        (&json!(0), &json!(1500), &json!(null))
    );
    // Of two lines with one key the first is written, as if they came in two imports; without the option the last.
    let twice = "{\"key\":\"k\",\"value\":\"first\"}\n{\"key\":\"k\",\"value\":\"last\"}\n";
    let import = ["kv", "import", "--partial", "--if-absent", "--json"];
    let told = home.run_with(import, twice.as_bytes(), &[]).json();
    assert_eq!((&told["written"], &told["kept"]), (&json!(1), &json!(1)));
    assert_eq!(home.line("kv get k --raw").ok().text(), "first");
    home.run_with(["kv", "import", "--partial"], twice.as_bytes(), &[])
        .ok();
    assert_eq!(home.line("kv get k --raw").ok().text(), "last");
}

#[test]
fn a_dry_run_checks_the_whole_and_asks_no_node() {
    let home = Home::new();
    let whole = format!("{}{{\"end\":{{\"keys\":1500}}}}\n", lines(0..1_500));
    home.file("whole.jsonl", &whole);
    assert_eq!(
        home.line("kv import whole.jsonl --dry-run").ok().text(),
        "1,500 keys can be imported; nothing was written\n"
    );
    let told = home
        .run_with(["kv", "import", "--dry-run", "--json"], whole.as_bytes(), &[])
        .json();
    assert_eq!((&told["lines"], &told["dry_run"]), (&json!(1500), &json!(true)));
    home.file("bad.jsonl", &format!("{whole}nonsense"));
    home.line("kv import bad.jsonl --dry-run")
        .fails(2, &["line 1502: "]);
    home.line("kv import whole.jsonl")
        .fails(4, &["no node of yours runs"]);
}

/// The command line does not know what a node was configured for: a batch that it refuses is divided.
#[test]
fn a_node_with_narrow_limits_takes_small_batches_and_names_the_line_that_it_does_not_take() {
    let home = Home::new();
    home.file(
        "q.toml",
        "data_dir = 'data'\nlisten = '127.0.0.1:0'\n[limits]\ntxn_ops_max = 100\nvalue_bytes_max = 20\n",
    );
    let _server = home.serve(&["--config", "q.toml"]);
    home.file("many.jsonl", &lines(0..1_000));
    let told = home.line("kv import many.jsonl --partial --json").json();
    assert_eq!(told["created"], 1000, "{told}");
    assert_eq!(count(&home), "1000");
    let value = "v".repeat(21);
    home.file(
        "large.jsonl",
        &format!(
            "{}{{\"key\":\"large\",\"value\":\"{value}\"}}\n{}",
            lines(1_000..1_010),
            lines(1_010..1_020)
        ),
    );
    home.line("kv import large.jsonl --partial").fails(
        5,
        &[
            "line 11: ",
            "the value has 21 bytes, the limit is 20",
            "all lines up to line 10 are written, and none behind it",
        ],
    );
    assert_eq!(count(&home), "1010", "as it says");
}
