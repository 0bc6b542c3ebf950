//! A log that cannot be written: it once ended the node, or its replication. It costs lines of the log, and nothing
//! else.

mod program;

use std::fs::{File, OpenOptions};
use std::io::{PipeReader, Write as _, pipe};
use std::process::Stdio;

use program::{Home, Server, free_ports, until};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// A pipe whose reader is gone.
fn closed() -> Stdio {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    writer.into()
}

/// A file system without room.
fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

/// A pipe that is full and that nobody reads, for as long as the reader lives: the next write waits.
fn unread() -> (PipeReader, Stdio) {
    let (reader, mut writer) = pipe().unwrap();
    let flags = fcntl_getfl(&writer).unwrap();
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    while writer.write(&[b'.'; 4096]).is_ok() {}
    while writer.write(b".").is_ok() {}
    fcntl_setfl(&writer, flags).unwrap();
    (reader, writer.into())
}

/// Serves without anybody to tell of it, until it is stopped.
fn serves_and_stops(home: &Home, node: Server, what: &str) {
    until(&format!("{what}: it serves"), || {
        (home.line("kv put a 1 --data-dir data --deadline 5s").code == 0).then_some(())
    });
    assert_eq!(
        home.line("kv get a --raw --data-dir data").ok().text(),
        "1",
        "{what}"
    );
    let ended = node.stop();
    assert!(ended.success(), "{what}: {ended}");
}

#[test]
fn a_node_serves_and_stops_whatever_became_of_its_log() {
    const ARGS: [&str; 6] = ["--data-dir", "data", "--listen", "127.0.0.1:0", "--log", "debug"];
    let home = Home::new();
    let node = home.serve_into(&ARGS, Stdio::null(), closed());
    serves_and_stops(&home, node, "2> >(exit)");
    let node = home.serve_into(&ARGS, Stdio::null(), full());
    serves_and_stops(&home, node, "2> /dev/full");
    let (_reader, log) = unread();
    let node = home.serve_into(&ARGS, Stdio::null(), log);
    serves_and_stops(&home, node, "2> a full pipe");
    // What it says on standard output has the same readers.
    let node = home.serve_into(&ARGS, closed(), closed());
    serves_and_stops(&home, node, "2>&1 | true");
    let node = home.serve_into(&ARGS, full(), full());
    serves_and_stops(&home, node, "&> /dev/full");
    let ((_out, stdout), (_err, stderr)) = (unread(), unread());
    let node = home.serve_into(&ARGS, stdout, stderr);
    serves_and_stops(&home, node, "&> a full pipe");
}

#[test]
fn a_log_whose_reader_leaves_while_the_node_runs_is_no_matter() {
    let home = Home::new();
    let (mut reader, log) = pipe().unwrap();
    let out = log.try_clone().unwrap();
    let node = home.serve_into(&["--data-dir", "data", "--listen", "127.0.0.1:0"], out, log);
    // As `serve 2>&1 | head -c 1`.
    let mut first = [0];
    std::io::Read::read_exact(&mut reader, &mut first).unwrap();
    drop(reader);
    serves_and_stops(&home, node, "2>&1 | head -c 1");
}

/// Of a leader that met its broken log while it logged that a follower was gone: that follower never received an entry
/// again, while the status said quorum.
#[test]
fn nodes_that_cannot_log_replicate_to_one_that_was_away() {
    let home = Home::new();
    home.line("certs init --dir c").ok();
    for id in 1..=3 {
        home.line(&format!("certs issue --dir c --node {id}")).ok();
    }
    home.line("certs issue --dir c --client me").ok();
    let ports = free_ports(3);
    let peers: Vec<String> = (1..)
        .zip(&ports)
        .map(|(id, port)| format!("{id}=127.0.0.1:{port}"))
        .collect();
    let peers = peers.join(",");
    let metrics = free_ports(1)[0];
    let start = |id: usize, log: Stdio| {
        let listen = format!("127.0.0.1:{}", ports[id - 1]);
        let (id, data) = (id.to_string(), format!("data{id}"));
        let mut args = vec!["--node-id", &id, "--data-dir", &data, "--listen", &listen];
        args.extend([
            "--certs",
            "c",
            "--peers",
            &peers,
            "--log",
            "debug",
            "--profile",
            "low-latency",
        ]);
        let metrics = format!("127.0.0.1:{metrics}");
        if id == "2" {
            args.extend(["--metrics", &metrics]);
        }
        home.serve_logging_to(&args, log)
    };
    let (_reader, unread) = unread();
    let nodes = [start(1, closed()), start(2, full()), start(3, unread)];
    let leader = until("a leader", || {
        let status = home.line("status --json");
        (status.code == 0)
            .then(|| status.json()["leader"].as_u64())
            .flatten()
    });
    let mut nodes: Vec<Option<Server>> = nodes.into_iter().map(Some).collect();
    let away = usize::try_from(leader).unwrap() % 3;
    nodes[away].take().unwrap().kill();
    for value in 0..20 {
        home.line(&format!("kv put a {value}")).ok();
    }
    nodes[away] = Some(start(away + 1, closed()));
    until("the one that was away has everything", || {
        let line = format!(
            "kv get a --raw --stale --endpoints 127.0.0.1:{} --certs c",
            ports[away]
        );
        let read = home.line(&line);
        (read.code == 0 && read.text() == "19").then_some(())
    });
    let page = program::http(&format!("127.0.0.1:{metrics}"), "/metrics").unwrap();
    let lost = page
        .lines()
        .find_map(|line| line.strip_prefix("quorate_log_lines_lost_total "));
    assert!(
        lost.is_some_and(|lost| lost.parse::<u64>().unwrap() > 0),
        "{page}"
    );
    for node in nodes.into_iter().flatten() {
        let ended = node.stop();
        assert!(ended.success(), "{ended}");
    }
}

#[test]
fn the_reason_of_an_end_is_told_where_it_can_be_and_holds_nobody_up_where_not() {
    let home = Home::new();
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let args = ["--data-dir", "data", "--listen", &address];
    let (_reader, log) = unread();
    let node = home.serve_into(&args, Stdio::null(), log);
    assert!(!node.wait().success());
    let log = home.path("reason");
    let node = home.serve_into(
        &[&args[..], &["--log-format", "json"]].concat(),
        Stdio::null(),
        File::create(&log).unwrap(),
    );
    assert!(!node.wait().success());
    let text = std::fs::read_to_string(&log).unwrap();
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let message = last["error"]["message"].as_str().unwrap();
    assert!(message.contains("is in use already"), "{text}");
}
