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
    home.line("check data --cluster orders")
        .fails(6, &["one thing is wrong with the files in data"]);

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
