//! Every flag of `quorate serve` is a variable, and what is wrong with one never starts a node.

mod program;

use clap::CommandFactory as _;
use program::{Home, Ran};
use quorate::cli::Cli;
use serde_json::Value;

/// The flags of `serve`: their names, and their variables.
fn flags() -> Vec<(String, Option<String>)> {
    let mut cli = Cli::command();
    // So that the global flags are told too.
    cli.build();
    let serve = cli.find_subcommand("serve").unwrap();
    let flags = serve.get_arguments().filter_map(|flag| {
        let variable = flag.get_env().map(|name| name.to_str().unwrap().to_owned());
        Some((flag.get_long()?.to_owned(), variable))
    });
    flags
        .filter(|(name, _)| !["help", "version"].contains(&name.as_str()))
        .collect()
}

/// A value that is not the default.
fn sample(flag: &str) -> &'static str {
    match flag {
        "config" => "other.toml",
        "data-dir" => "elsewhere",
        "cluster" => "blue",
        "node-id" => "2",
        "listen" => "127.0.0.1:7999",
        "advertise" => "node:7001",
        "peers" => "1=a:7001,2=b:7001",
        "join" | "check" | "json" => "true",
        "certs" => "other-certs",
        "profile" => "production",
        "metrics" => "127.0.0.1:9464",
        "log" => "debug",
        "log-format" | "format" => "json",
        "workers" => "3",
        "busy-poll" => "100us",
        other => panic!("--{other} is new: it needs a value here"),
    }
}

/// What else a configuration needs to be sound with that flag.
fn beside(flag: &str) -> &'static [&'static str] {
    match flag {
        "data-dir" | "config" => &[],
        "join" | "peers" => &["--data-dir=d", "--certs=c"],
        "busy-poll" => &["--data-dir=d", "--workers=1"],
        _ => &["--data-dir=d"],
    }
}

/// Certificates of node 1: a check reads them.
fn certify(home: &Home, dir: &str) {
    home.line(&format!("certs init --dir {dir}")).ok();
    home.line(&format!("certs issue --dir {dir} --node 1")).ok();
}

fn checked(home: &Home, flag: &str, args: &[String], vars: &[(&str, &str)]) -> Value {
    let mut line = vec!["serve".to_owned()];
    line.extend(beside(flag).iter().map(|arg| (*arg).to_owned()));
    line.extend(args.iter().cloned());
    for always in ["check", "json"] {
        if flag != always {
            line.push(format!("--{always}"));
        }
    }
    home.run_with(&line, b"", vars).json()
}

#[test]
fn every_flag_is_a_variable_that_does_the_same() {
    let home = Home::new();
    home.file(
        "other.toml",
        "data_dir = 'from-the-file'\ncluster = 'of-the-file'\n",
    );
    certify(&home, "c");
    certify(&home, "other-certs");
    let flags = flags();
    assert!(flags.len() >= 17, "{flags:?}");
    for (flag, variable) in flags {
        let name = format!("QUORATE_{}", flag.to_uppercase().replace('-', "_"));
        assert_eq!(variable.as_ref(), Some(&name), "--{flag}");
        let value = sample(&flag);
        let by_flag = match flag.as_str() {
            // Only whether, and neither takes a value of its own in the way of others.
            "json" => vec!["--json".to_owned()],
            _ => vec![format!("--{flag}={value}")],
        };
        let by_flag = checked(&home, &flag, &by_flag, &[]);
        let by_variable = checked(&home, &flag, &[], &[(&name, value)]);
        assert_eq!(by_flag, by_variable, "{name}={value}");
        if !["check", "json", "format", "data-dir", "config"].contains(&flag.as_str()) {
            assert_ne!(
                by_flag,
                checked(&home, &flag, &[], &[]),
                "{name}={value} changes something"
            );
        }
    }
}

/// Runs `serve` with these variables; it must not begin.
fn refused(home: &Home, vars: &[(&str, &str)], says: &[&str]) {
    let ran: Ran = home.run_with(
        ["serve", "--data-dir", "data", "--listen", "127.0.0.1:0"],
        b"",
        vars,
    );
    ran.fails(2, says);
    assert!(!home.path("data").exists(), "{vars:?}: nothing was begun");
}

/// `QUORATE_PEERS=` once started a cluster of one that took writes.
#[test]
fn an_empty_value_is_refused_by_its_name() {
    let home = Home::new();
    for (flag, variable) in flags() {
        let variable = variable.unwrap();
        if flag == "data-dir" {
            home.run_with(["serve"], b"", &[(&variable, "")])
                .fails(2, &[&variable, "it is empty"]);
        } else if flag == "listen" {
            home.run_with(["serve", "--data-dir", "data"], b"", &[(&variable, "")])
                .fails(2, &[&variable, "it is empty"]);
        } else if flag == "json" {
            refused(&home, &[(&variable, "")], &["QUORATE_JSON: it is empty"]);
        } else {
            refused(&home, &[(&variable, "")], &[&variable]);
        }
    }
    refused(&home, &[("QUORATE_PEERS", " ")], &["QUORATE_PEERS: it is empty"]);
    refused(
        &home,
        &[("QUORATE_PEERS", "1=a:7001,")],
        &["QUORATE_PEERS: \"\" is not of the form"],
    );
    refused(
        &home,
        &[("QUORATE_JOIN", "flase")],
        &["QUORATE_JOIN (join): expected true or false, found \"flase\""],
    );
    home.run(["serve", "--data-dir", "data", "--peers", ""])
        .fails(2, &["--peers: it is empty"]);
    home.run_with(["kv", "get", "a"], b"", &[("QUORATE_CLUSTER", "")])
        .fails(2, &["QUORATE_CLUSTER: it is empty"]);
    // By every command, and by the variable's name, whoever reads it.
    for command in ["kv get a", "status", "member list", "meta check", "bench"] {
        for variable in ["ENDPOINTS", "CERTS", "CLIENT", "DEADLINE", "NODE_ID"] {
            let variable = format!("QUORATE_{variable}");
            let says = format!("{variable}: it is empty");
            home.run_with(command.split_whitespace(), b"", &[(&variable, "")])
                .fails(2, &[&says]);
        }
    }
}

#[test]
fn what_a_variable_gave_is_not_blamed_on_a_flag() {
    let home = Home::new();
    let endpoints = [("QUORATE_ENDPOINTS", "a:7001")];
    home.run_with(["bench", "--nodes", "3"], b"", &endpoints)
        .fails(2, &["the variable QUORATE_ENDPOINTS"]);
    let ran = home.run_with(["kv", "put", "a"], b"", &endpoints);
    ran.fails(2, &["Usage: quorate kv put [OPTIONS] <KEY> <VALUE>"]);
}

#[test]
fn a_node_that_is_named_twice_is_refused() {
    let home = Home::new();
    let list = "1=a:7001,2=b:7001,2=c:7001";
    refused(
        &home,
        &[("QUORATE_PEERS", list)],
        &["QUORATE_PEERS (peers.2): it stands in the list twice"],
    );
    home.run(["serve", "--data-dir", "data", "--peers", "1=a:7001,01=b:7001"])
        .fails(2, &["node 1 stands in the list twice"]);
    home.file(
        "q.toml",
        "data_dir = 'data'\n[peers]\n1 = 'a:7001'\n1 = 'b:7001'\n",
    );
    home.line("serve -c q.toml").fails(2, &["duplicate key"]);
    home.line("serve --data-dir data --listen 127.0.0.1:1 --listen 127.0.0.1:2")
        .fails(2, &["--listen", "cannot be used multiple times"]);
}

#[test]
fn a_misspelt_variable_starts_nothing_and_asks_nobody() {
    let home = Home::new();
    let says = ["QUORATE_PEER: there is no such variable; did you mean QUORATE_PEERS?"];
    refused(&home, &[("QUORATE_PEER", "1=a:7001,2=b:7001")], &says);
    home.run_with(["kv", "get", "a"], b"", &[("QUORATE_ENDPOINT", "a:7001")])
        .fails(
            2,
            &["QUORATE_ENDPOINT: there is no such variable; did you mean QUORATE_ENDPOINTS?"],
        );
    let service = [
        ("QUORATE_SERVICE_HOST", "10.0.0.1"),
        ("QUORATE_PORT", "udp://10.0.0.1:7001"),
    ];
    home.run_with(["serve", "--data-dir", "data", "--check"], b"", &service)
        .ok();
}

#[test]
fn a_flag_beats_its_variable_and_either_beats_the_file_also_to_say_no() {
    let home = Home::new();
    certify(&home, "c");
    home.file("q.toml", "data_dir = 'data'\njoin = true\ncerts = 'c'\n");
    let join = |args: &[&str], vars: &[(&str, &str)]| {
        let line = [&["serve", "-c", "q.toml", "--check", "--json"], args].concat();
        home.run_with(line, b"", vars).json()["join"].as_bool().unwrap()
    };
    assert!(join(&[], &[]));
    assert!(!join(&["--join=false"], &[]));
    assert!(!join(&[], &[("QUORATE_JOIN", "false")]));
    assert!(join(&["--join"], &[("QUORATE_JOIN", "false")]));
}
