//! `quorate demo` and `quorate bench`, as programs read them.

mod program;

use program::Home;

#[test]
fn the_demonstration_shows_one_entry_for_a_batch_and_a_cluster_that_goes_on() {
    let report = Home::new().line("demo --partitions 5 --json").json();
    let steps = report["steps"].as_array().unwrap();
    let names: Vec<&str> = steps.iter().map(|step| step["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "register_brokers",
            "create_topic",
            "create_partitions_sequential",
            "create_partitions_batch",
            "update_leader",
            "update_isr",
            "leader_killed",
        ]
    );
    assert!(steps.iter().all(|step| step["ok"] == true), "{report:#}");
    let entries: Vec<u64> = steps
        .iter()
        .map(|step| step["entries"].as_u64().unwrap())
        .collect();
    assert_eq!(entries[..6], [1, 1, 5, 1, 1, 1], "{report:#}");
    assert_eq!(report["nodes_agree"], true);
    assert_eq!(report["leader_changed"], true);
    assert!(
        report["fsync_p50_micros"].is_u64() && report["ratio"].is_f64(),
        "{report:#}"
    );
}

#[test]
fn the_demonstration_runs_over_a_distance_and_on_one_node() {
    let home = Home::new();
    let far = home.line("demo --partitions 2 --rtt-ms 20 --json").json();
    assert_eq!(
        (&far["nodes_agree"], &far["profile"]),
        (&true.into(), &"low-latency".into())
    );
    assert!(
        far["batch_micros"].as_u64().unwrap() >= 20_000,
        "a commit takes a round trip at least: {far:#}"
    );
    home.line("demo --rtt-ms 501")
        .fails(2, &["--rtt-ms", "501 is not in 0..=500"]);
    let alone = home.line("demo --nodes 1 --json").json();
    assert_eq!(
        (alone["nodes_agree"].as_bool(), alone["leader_changed"].as_bool()),
        (Some(true), Some(false))
    );
    let table = home.line("demo --nodes 1 --partitions 1").ok().text();
    assert!(
        table.contains("create 1 partition as one batch") && table.contains("times as fast"),
        "{table}"
    );
}

#[test]
fn a_load_is_measured_on_processes_of_its_own() {
    let home = Home::new();
    for op in ["put", "txn", "get", "stale-get"] {
        let line = format!(
            "bench --nodes 3 --op {op} --clients 8 --total 200 --warm-up 20 --keys 50 --value-size 32 --json"
        );
        let report = home.line(&line).json();
        assert_eq!(
            (
                report["op"].as_str(),
                report["ok"].as_u64(),
                report["errors"].as_u64()
            ),
            (Some(op), Some(200), Some(0))
        );
        assert_eq!(report["nodes"], 3, "{report:#}");
        for figure in [
            "rate",
            "seconds",
            "p50_us",
            "p90_us",
            "p99_us",
            "p999_us",
            "max_us",
            "fsync_p50_us",
        ] {
            assert!(report[figure].as_f64().unwrap() > 0.0, "{figure}: {report:#}");
        }
    }
}

#[test]
fn a_load_is_measured_on_a_node_that_runs() {
    let home = Home::new();
    let _server = home.serve_alone();
    let report = home
        .line("bench --clients 4 --connections 2 --total 100 --warm-up 0 --json")
        .json();
    assert_eq!(
        (report["ok"].as_u64(), report["nodes"].as_u64()),
        (Some(100), Some(1))
    );
    assert!(
        home.line("bench --total 50 --clients 2")
            .ok()
            .text()
            .contains("operations/s")
    );
    home.line("bench --nodes 3 --endpoints 127.0.0.1:1")
        .fails(2, &["give one of them"]);
}
