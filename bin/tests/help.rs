//! What a person reads before anything runs.

mod program;

use program::Home;

#[test]
fn the_help_lists_the_commands_and_the_exit_codes() {
    let help = Home::new().line("--help").ok().text();
    for part in [
        "serve",
        "status",
        "kv",
        "meta",
        "member",
        "certs",
        "check",
        "demo",
        "bench",
        "completions",
    ] {
        assert!(help.contains(part), "{part}: {help}");
    }
    for code in [
        "2  refused",
        "3  not found",
        "4  unavailable",
        "5  unknown outcome",
        "6  damaged",
    ] {
        assert!(help.contains(code), "{code}: {help}");
    }
}

#[test]
fn every_command_explains_itself() {
    let home = Home::new();
    for command in [
        "serve",
        "status",
        "kv get",
        "kv put",
        "kv del",
        "kv range",
        "kv exists",
        "kv count",
        "kv cas",
        "kv add",
        "kv txn",
        "kv export",
        "kv import",
        "meta broker register",
        "meta topic create",
        "meta partition set-isr",
        "member add",
        "certs issue",
        "check",
        "demo",
        "bench",
    ] {
        let help = home.line(&format!("{command} --help")).ok().text();
        assert!(help.contains("Usage: quorate"), "{command}: {help}");
        for line in help.lines() {
            assert!(line.chars().count() <= 80, "{command}: {line}");
        }
    }
    assert!(home.line("kv txn --help").ok().text().contains("missing KEY"));
    let help = home.line("--help").ok().text();
    assert!(
        help.contains("--format <FORMAT>") && help.contains("raw    for pipes"),
        "{help}"
    );
}

#[test]
fn an_unknown_command_or_flag_is_refused() {
    let home = Home::new();
    home.line("kv gett a")
        .fails(2, &["unrecognized subcommand 'gett'", "get"]);
    home.line("demo --nods 3").fails(2, &["--nods"]);
    home.line("demo --nodes 0").fails(2, &["--nodes"]);
}

#[test]
fn a_shell_learns_the_commands() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = home.line(&format!("completions {shell}")).ok().text();
        assert!(script.contains("quorate") && script.contains("bench"), "{shell}");
    }
}
