//! `quorate check`: what it says of a node's files, and with which exit code.

mod program;

use program::Home;
use serde_json::json;

fn flip(home: &Home, file: &str, what: &[u8]) -> u64 {
    let path = home.path(file);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(what.len()).position(|found| found == what);
    let at = at.unwrap_or_else(|| panic!("{file} does not hold what was written"));
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
    at as u64
}

#[test]
fn the_files_of_a_node_that_was_killed_are_whole_and_rot_in_them_is_told_by_file_and_byte() {
    let home = Home::new();
    let server = home.serve_alone();
    let value = "a value that is long enough to be found in the file that it stands in";
    home.run(["kv", "put", "long", value]).ok();
    home.line("kv put greeting hello").ok();
    home.line("check data")
        .fails(4, &["a node runs on data", "stop it first"]);
    server.kill();

    let whole = home.line("check data").ok().text();
    for part in [
        "node 1 of cluster quorate",
        "vote: node 1",
        "the files in data are whole",
    ] {
        assert!(whole.contains(part), "{part}: {whole}");
    }
    let told = home.line("check data --json").json();
    assert_eq!(told["whole"], json!(true));
    assert_eq!(told["damages"], json!([]));
    assert_eq!(told["identity"]["node"], json!(1));
    assert!(
        told["log"]["entries"].as_u64().is_some_and(|entries| entries > 2),
        "{told}"
    );
    home.line("check data --cluster quorate --node-id 1").ok();
    let of = "this directory is of node 1 of cluster quorate";
    for (asked, said) in [
        ("--cluster orders", "--cluster says orders"),
        ("--node-id 7", "--node-id says 7"),
        (
            "--cluster orders --node-id 7",
            "--cluster says orders, --node-id says 7",
        ),
    ] {
        let ran = home.line(&format!("check data {asked}"));
        ran.fails(2, &[of, said]);
        let told = &ran.stderr;
        assert!(!told.contains("replace"), "a node that is whole stays: {told}");
    }

    let at = flip(&home, "data/log/segment-00000001.log", value.as_bytes());
    let ran = home.line("check data");
    ran.fails(6, &["one thing is wrong", "nothing was changed"]);
    let text = ran.text();
    assert!(text.contains("log/segment-00000001.log"), "{text}");
    let ran = home.line("check data --json");
    ran.fails(6, &["\"kind\":\"damaged\""]);
    let told: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(told["whole"], json!(false));
    let damage = &told["damages"][0];
    assert_eq!(damage["part"], json!("log"));
    let offset = damage["offset"].as_u64().unwrap();
    assert!(offset <= at && at < offset + 4096, "{at}: {told}");
}

/// The story: redb panicked over a damaged page, and its message stood on standard error before the right answer, so that nobody
/// could tell it from a crash.
#[test]
fn files_that_the_database_panics_over_are_told_as_damaged_and_nothing_else_is_said() {
    const PAGE: usize = 4096;
    let home = Home::new();
    let server = home.serve_alone();
    for number in 0..20 {
        home.run(["kv", "put", &format!("key/{number}"), "a value"]).ok();
    }
    assert!(server.stop().success());

    let path = home.path("data/state/state.redb");
    let whole = std::fs::read(&path).unwrap();
    let mut damaged = 0;
    for page in 1..whole.len().div_ceil(PAGE).min(32) {
        let mut bytes = whole.clone();
        bytes[page * PAGE] ^= 0xff;
        std::fs::write(&path, bytes).unwrap();
        let ran = home.line("check data --json");
        let told = &ran.stderr;
        assert!(!told.contains("panicked"), "page {page}: {told}");
        match ran.code {
            0 => assert_eq!(told.as_str(), "", "page {page}, which is free"),
            6 => {
                damaged += 1;
                let _: serde_json::Value = serde_json::from_str(told).expect("one object");
            }
            other => panic!("page {page}: exit code {other}: {told}"),
        }
    }
    assert!(damaged > 0, "no page that counts was damaged");
}

#[test]
fn what_is_no_nodes_directory_is_not_found_and_stays_as_it_is() {
    let home = Home::new();
    home.line("check nowhere")
        .fails(3, &["nowhere is no node's data directory"]);
    std::fs::create_dir(home.path("empty")).unwrap();
    home.line("check empty")
        .fails(3, &["empty is no node's data directory"]);
    assert_eq!(std::fs::read_dir(home.path("empty")).unwrap().count(), 0);
    home.line("check").fails(2, &["DIR"]);
}
