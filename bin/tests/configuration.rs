//! What `quorate serve` refuses to start with, and what it says.

mod program;

use program::Home;

#[test]
fn a_configuration_is_refused_with_all_its_faults_at_once() {
    let home = Home::new();
    home.file(
        "q.toml",
        "data_dir = 'data'\nlisen = '127.0.0.1:0'\nnode_id = 'one'\nmetrics = 'nowhere'\n\
         [timing]\nheartbeat = '1s'\nfailover_min = '2s'\n[limits]\nkey_bytes_max = 0\n\
         [peers]\n2 = 'node2'\n[log]\nlevel = 'inof'\n",
    );
    home.line("serve --config q.toml --cluster Orders --workers 0")
        .fails(
            2,
            &[
                "the configuration has 9 faults",
                "lisen: there is no such key; did you mean listen?",
                "node_id: expected a whole number",
                "metrics: \"nowhere\" is no address of the form host:port: the port is missing: write nowhere:7001",
                "timing: failover_min is 2s, which is less than 5 heartbeats",
                "limits.key_bytes_max",
                "peers.2: \"node2\" is no address of the form host:port: the port is missing: write node2:7001",
                "log.level: \"inof\"",
                "--cluster (cluster): \"Orders\" is no cluster name",
                "--workers (workers): 0 is outside 1 to 1,024",
            ],
        );
    assert!(!home.path("data").exists(), "nothing was begun");
}

#[test]
fn a_setting_out_of_its_range_is_told_with_its_unit() {
    let home = Home::new();
    home.file(
        "q.toml",
        "data_dir = 'data'\n[store]\ncompare_interval = '10ms'\nstore_bytes_max = 4095\nlog_segment_bytes = '1.5GiB'\n\
         sessions_max = 0\n",
    );
    home.line("serve --config q.toml --check").fails(
        2,
        &[
            "store.compare_interval: 10ms is out of range; it must be 100 ms to 1 day",
            "store.store_bytes_max: 4095 B is out of range; it must be 0 for no limit, or 4 KiB to 1 PiB",
            "store.log_segment_bytes: 1.5 GiB is out of range; it must be 64 KiB to 1 GiB",
            "store.sessions_max: 0 is out of range; it must be 1 to 1,000,000",
        ],
    );
}

#[test]
fn only_a_node_with_one_worker_thread_can_be_told_to_look_for_datagrams_and_not_for_long() {
    let home = Home::new();
    home.line("serve --data-dir data --workers 2 --busy-poll 200us").fails(
        2,
        &["--busy-poll (busy_poll): it needs one worker thread, and there would be 2: set workers = 1, or leave it out"],
    );
    home.line("serve --data-dir data --workers 1 --busy-poll 1s")
        .fails(
            2,
            &["--busy-poll (busy_poll): 1s is too long; it must be at most 10ms"],
        );
    let shown = |line: &str| home.line(line).ok().text();
    let checked = shown("serve --data-dir data --workers 1 --busy-poll 200us --check");
    assert!(checked.contains("busy_poll  200µs"), "{checked}");
    let checked = shown("serve --data-dir data --workers 2 --check");
    assert!(checked.contains("busy_poll  off"), "{checked}");
    let checked = shown("serve --data-dir data --check");
    assert!(checked.contains("workers    1\n"), "{checked}");
    // One processor is the log's and the state's: nobody looks.
    let alone = std::thread::available_parallelism().is_ok_and(|processors| processors.get() == 1);
    let looks = if alone { "off" } else { "500µs" };
    assert!(checked.contains(&format!("busy_poll  {looks}")), "{checked}");
}

#[test]
fn an_address_is_read_by_the_same_rules_wherever_it_is_given() {
    let home = Home::new();
    home.line("certs init --cluster c --dir c").ok();
    for (line, said) in [
        ("serve --data-dir data --listen ::1", "such as [::1]:7001"),
        (
            "serve --data-dir data --listen http://a:1",
            "leave out \"http://\"",
        ),
        (
            "serve --data-dir data --advertise 0.0.0.0:7001",
            "stands for all addresses of a machine",
        ),
        ("serve --data-dir data --advertise a:0", "port 0"),
        (
            "serve --data-dir data --certs c --peers 1=SSL://a:1,2=b",
            "\"SSL://a:1\" is no address",
        ),
        (
            "serve --data-dir data --certs c --peers 1=a:1,2=::1",
            "such as [::1]:7001",
        ),
        ("status --certs c --endpoints ::1", "such as [::1]:7001"),
        (
            "status --certs c --endpoints a:7001,0.0.0.0:7002",
            "stands for all addresses of a machine",
        ),
        (
            "certs issue --dir c --node 1 --host a:7001",
            "\"a:7001\" is no part of a host's name",
        ),
    ] {
        home.line(line).fails(2, &[said]);
    }
    assert!(!home.path("data").exists(), "nothing was begun");
}

#[test]
fn a_node_needs_a_data_directory() {
    Home::new()
        .line("serve")
        .fails(2, &["data_dir: a node needs a directory", "--data-dir"]);
}

#[test]
fn a_file_that_is_no_toml_is_told_with_its_line() {
    let home = Home::new();
    home.file("q.toml", "data_dir = \n");
    home.line("serve -c q.toml")
        .fails(2, &["q.toml is no TOML", "line 1"]);
    home.line("serve -c missing.toml")
        .fails(2, &["missing.toml cannot be read"]);
}

#[test]
fn a_flag_beats_a_variable_and_a_variable_beats_the_file() {
    let home = Home::new();
    home.file(
        "q.toml",
        "data_dir = 'data'\nnode_id = 1\ncluster = 'file'\n[log]\nlevel = 'error'\n",
    );
    let args = ["serve", "-c", "q.toml", "--check", "--node-id", "3", "--json"];
    let vars = [("QUORATE_NODE_ID", "2"), ("QUORATE_CLUSTER", "variable")];
    let checked = home.run_with(args, b"", &vars).json();
    assert_eq!(
        (&checked["node_id"], &checked["cluster"]),
        (&3.into(), &"variable".into())
    );
    assert_eq!(checked["data_dir"], "data");
    assert!(
        home.line("serve -c q.toml --check")
            .ok()
            .text()
            .contains("the configuration is sound")
    );
}

#[test]
fn a_cluster_of_several_needs_certificates_and_this_node_among_its_peers() {
    let home = Home::new();
    home.line("serve --data-dir data --node-id 9 --peers 1=a:7001,2=b:7001,3=a:7001")
        .fails(
            2,
            &[
                "node 9 (node_id) is not in the list of nodes 1, 2, 3",
                "a:7001 is node 1's address already",
                "certs: nodes of one cluster need certificates of one authority",
            ],
        );
    home.line("serve --data-dir data --listen 0.0.0.0:0")
        .fails(2, &["advertise", "how others reach it"]);
    home.line("serve --data-dir data --peers 1:a")
        .fails(2, &["--peers", "ID=HOST:PORT"]);
}

#[test]
fn a_port_in_use_is_named_with_what_to_do() {
    let home = Home::new();
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    home.run(["serve", "--data-dir", "data", "--listen", &address])
        .fails(4, &[&address, "is in use already", "--listen 127.0.0.1:0"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    home.run([
        "serve",
        "--data-dir",
        "data",
        "--listen",
        "127.0.0.1:0",
        "--metrics",
        &address,
    ])
    .fails(4, &["--metrics", &address, "choose another port"]);
}

#[test]
fn a_certificate_of_another_cluster_is_refused() {
    let home = Home::new();
    home.line("certs init --cluster blue --dir c").ok();
    home.line("certs issue --dir c --node 1").ok();
    home.line("serve --data-dir data --listen 127.0.0.1:0 --certs c --cluster green")
        .fails(2, &["--certs", "quorate://blue/node/1", "quorate://green/node/1"]);
    home.line("serve --data-dir data --listen 127.0.0.1:0 --certs c --cluster blue --node-id 2")
        .fails(2, &["node-2.crt", "quorate certs issue --dir DIR --node 2"]);
}

#[test]
fn a_certificate_of_another_node_is_refused() {
    let home = Home::new();
    home.line("certs init --dir c").ok();
    home.line("certs issue --dir c --node 1").ok();
    for suffix in ["crt", "key"] {
        std::fs::rename(
            home.path(&format!("c/node-1.{suffix}")),
            home.path(&format!("c/node-2.{suffix}")),
        )
        .unwrap();
    }
    home.line("serve --data-dir data --listen 127.0.0.1:0 --certs c --node-id 2")
        .fails(2, &["quorate://quorate/node/1", "quorate://quorate/node/2"]);
    home.line("certs init --cluster green --dir g").ok();
    home.line("certs issue --dir g --node 1").ok();
    home.line("serve --data-dir data --listen 127.0.0.1:0 --certs g --cluster blue")
        .fails(
            2,
            &[
                "is quorate://green/node/1's",
                "quorate://blue/node/1",
                "--cluster green",
            ],
        );
    home.line("serve --data-dir data --node-id minus --listen ::1:7001")
        .fails(2, &["from 1 on", "[::1]:7001"]);
}

#[test]
fn a_data_directory_of_another_node_or_cluster_is_refused() {
    let home = Home::new();
    assert!(home.serve_alone().stop().success());
    let again = |args: &str| home.line(&format!("serve --data-dir data --listen 127.0.0.1:0 {args}"));
    again("--node-id 2").fails(2, &["1", "2"]);
    again("--cluster green").fails(2, &["quorate", "green"]);
}

#[test]
fn two_nodes_cannot_share_a_data_directory() {
    let home = Home::new();
    let first = home.serve_alone();
    home.line("serve --data-dir data --listen 127.0.0.1:0")
        .fails(4, &["data is in use by another node"]);
    // Told before the port, and before anything is made in it.
    std::fs::remove_dir_all(home.path("data/certs")).unwrap();
    home.line(&format!("serve --data-dir data --listen {}", first.address))
        .fails(4, &["data is in use by another node"]);
    assert!(!home.path("data/certs").exists());
}

/// A service manager tries again after some of these and not after others: docs/operations.md.
#[test]
fn what_may_pass_by_itself_is_told_from_what_lasts() {
    let home = Home::new();
    home.line("serve --data-dir data --listen no-such-host.invalid:0")
        .fails(4, &["listen", "no-such-host.invalid:0", "has no address now"]);
    // An address of a network that no machine is in (RFC 5737).
    home.line("serve --data-dir data --listen 192.0.2.1:0")
        .fails(4, &["cannot listen on 192.0.2.1:0"]);
    home.file("a-file", "");
    home.line("certs init --dir c").ok();
    home.line("certs issue --dir c --node 1").ok();
    home.line("serve --data-dir a-file --listen 127.0.0.1:0 --certs c")
        .fails(2, &["a-file"]);
    let server = home.serve_alone();
    assert!(server.stop().success());
    std::fs::remove_file(home.path("data/IDENTITY")).unwrap();
    home.line("serve --data-dir data --listen 127.0.0.1:0")
        .fails(2, &["no IDENTITY file"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_node_may_open_as_many_files_as_the_system_lets_it_and_a_log_of_more_is_refused() {
    let home = Home::new();
    let server = home.serve_alone();
    let limits = server.kernel_file("limits");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[3], words[4], "soft and hard: {line}");
    home.file(
        "q.toml",
        "data_dir = 'other'\n[store]\nlog_segment_bytes = '64 KiB'\nlog_bytes_kept = '1 GiB'\n",
    );
    home.run_after("ulimit -n 4096", "serve -c q.toml").fails(
        2,
        &[
            "store.log_segment_bytes: 64 KiB make 16,384 files of log_bytes_kept (1 GiB)",
            "this process may open 4,096",
            "use segments of 547 KiB at least",
        ],
    );
}

/// At some thousand segments, and again at each start, a soft limit of 1,024 ended a node.
#[test]
fn a_log_of_more_segments_than_the_soft_limit_has_files_is_kept_and_opened_again() {
    let home = Home::new();
    home.file(
        "q.toml",
        "data_dir = 'data'\nlisten = '127.0.0.1:0'\n[store]\nlog_segment_bytes = '64 KiB'\nlog_bytes_kept = '16 MiB'\n",
    );
    let segments = || std::fs::read_dir(home.path("data/log")).unwrap().count();
    let limits = "ulimit -Hn 4096; ulimit -Sn 64";
    let node = home.serve_after(limits, "-c q.toml");
    home.line("bench --total 200 --warm-up 0 --clients 1 --value-size 60000")
        .ok();
    assert!(segments() > 100, "{} files", segments());
    node.kill();
    let node = home.serve_after(limits, "-c q.toml");
    home.line("kv put a 1").ok();
    assert!(segments() > 100, "{} files", segments());
    assert!(node.stop().success());
}
