//! `quorate certs`.

mod program;

use std::os::unix::fs::PermissionsExt as _;

use program::{Home, until};

#[test]
fn keys_are_readable_by_their_owner_alone_and_nothing_is_overwritten() {
    let home = Home::new();
    let made = home.line("certs init --cluster blue --dir c").ok().text();
    assert!(made.contains("quorate certs issue --dir c --node ID"), "{made}");
    let issued = home
        .line("certs issue --dir c --node 1 --host localhost --host 127.0.0.1 --json")
        .json();
    assert_eq!(issued["identity"], "quorate://blue/node/1");
    home.line("certs issue --dir c --client admin --validity 30days")
        .ok();
    for file in ["ca.key", "node-1.key", "client-admin.key"] {
        let mode = std::fs::metadata(home.path("c").join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    home.line("certs init --dir c")
        .fails(2, &["ca.crt", "exists already"]);
    home.line("certs issue --dir c --node 1")
        .fails(2, &["node-1.crt", "exists already"]);
}

#[test]
fn a_check_of_the_configuration_reads_the_certificates_and_makes_none() {
    let home = Home::new();
    let own = "serve --data-dir data --check";
    assert!(
        home.line(own)
            .ok()
            .text()
            .contains("valid      from the first start on")
    );
    assert!(!home.path("data").exists(), "nothing was made");
    home.serve_alone().stop();
    let found = home.line("serve --data-dir data --check --json").json();
    assert_eq!(found["certificates"]["directory"], "data/certs");

    let given = "serve --data-dir d --check --certs c";
    home.line(given).fails(2, &["c/ca.crt is missing"]);
    home.line("certs init --dir c").ok();
    home.line(given)
        .fails(2, &["c/node-1.crt is missing", "quorate certs issue"]);
    let issued = home
        .line("certs issue --dir c --node 1 --validity 1s")
        .ok()
        .text();
    assert!(issued.contains("valid for 1s"), "{issued}");
    until("it has ended", || home.line(given).code.ne(&0).then_some(()));
    home.line(given).fails(2, &["c/node-1.crt is valid no longer"]);
    home.line("certs issue --dir c --node 1 --validity 1day --out new")
        .ok();
    for file in ["node-1.crt", "node-1.key"] {
        std::fs::rename(home.path("new").join(file), home.path("c").join(file)).unwrap();
    }
    assert!(home.line(given).ok().text().contains("valid      until 2"));
}

#[test]
fn what_cannot_be_issued_is_told() {
    let home = Home::new();
    home.line("certs issue --dir nowhere --node 1")
        .fails(3, &["ca.crt", "quorate certs init"]);
    home.line("certs init --cluster Blue --dir c")
        .fails(2, &["--cluster", "\"Blue\" is no cluster name"]);
    home.line("certs init --dir c").ok();
    home.line("certs issue --dir c --node 0").fails(2, &["--node"]);
    home.line("certs issue --dir c --client no/name")
        .fails(2, &["\"no/name\" is no client name"]);
    home.line("certs issue --dir c").fails(2, &["--node", "--client"]);
    home.run([
        "certs",
        "issue",
        "--dir",
        "c",
        "--node",
        "1",
        "--host",
        "not a host",
    ])
    .fails(2, &["not a host"]);
    home.line("certs issue --dir c --node 7 --out elsewhere").ok();
    assert!(home.path("elsewhere/node-7.key").exists());
}
