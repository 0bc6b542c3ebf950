//! The examples of `kv/examples`, run as a reader runs them: each prints what its comments promise, and ends by itself.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use quorate_tests::processes::Processes;
use quorate_transport::Identity;
use quorate_transport::certs::Authority;

/// How long an example may take: far beyond what is expected, so that only one that hangs meets it.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn one_node_serves_the_calls_that_most_programs_need() -> Result<()> {
    prints(
        "embedded",
        &[
            r#"ann: Some("reader"), version 1"#,
            r#"users/ann: Some("reader")"#,
            r#"users/bob: Some("writer")"#,
            "the name was free: true",
            "visits: 1",
            "tags: written at revision 6",
        ],
    )
}

#[test]
fn three_nodes_serve_through_the_end_of_their_leader() -> Result<()> {
    prints(
        "three_nodes",
        &[
            r#"node 1 reads Some("hello")"#,
            r#"node 2 reads Some("hello")"#,
            r#"node 3 reads Some("hello")"#,
            "one of three is gone, and revision 3 was written",
            r#"a node that is left reads Some("still here")"#,
            r#"a node that is left reads Some("still here")"#,
        ],
    )
}

#[test]
fn a_registry_lists_who_lives_and_forgets_who_died() -> Result<()> {
    prints(
        "service_registry",
        &[
            r#"mail: ["10.0.0.1:25", "10.0.0.2:25"]"#,
            r#"b stopped: ["10.0.0.1:25"]"#,
            "a died, 31 s later: []",
        ],
    )
}

#[test]
fn a_job_has_one_owner_and_goes_back_when_its_claim_is_over() -> Result<()> {
    prints(
        "job_queue",
        &[
            "they have different jobs: true",
            "nothing is left for cid: true",
            "ann is done: true",
            "cid has bob's job: true",
            "bob is done: false",
            "cid is done: true",
            "jobs done: Some(2)",
        ],
    )
}

#[test]
fn a_table_and_its_index_change_together() -> Result<()> {
    prints(
        "typed_table",
        &[
            "7: Ann, admin: true",
            "12: Bob, admin: false",
            "Ann is number 7",
            "Ann is number 300",
            "called Ann: 1",
            r#"in the store: {"name":"Ann","admin":true}"#,
        ],
    )
}

#[test]
fn a_service_is_tested_on_three_nodes_in_memory() -> Result<()> {
    prints(
        "testkit",
        &[
            "the leader crashed",
            "no seat was sold twice",
            "the node that came back knows what was sold meanwhile",
        ],
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_elsewhere_asks_a_cluster_of_processes() -> Result<()> {
    let cluster = Processes::start_all(3).await?;
    let certs = cluster.data_dir(1).with_file_name("certs");
    let authority = Authority::load(&certs)?;
    let local = Identity::client(authority.cluster().clone(), "local")?;
    authority
        .issue(&local, &[], Duration::from_secs(86_400))?
        .write(&certs)?;
    let (certs, node) = (certs.display().to_string(), cluster.listening()[&1].to_string());
    for run in 1..=2 {
        let printed = run_with("remote_client", &[&certs, &node])?;
        let first = format!("this program has run {run} times against this cluster");
        ensure!(printed.lines().next() == Some(&first), "{printed}");
        let led = printed.lines().filter(|line| line.ends_with(": leader")).count();
        let followed = printed
            .lines()
            .filter(|line| line.ends_with(": follower"))
            .count();
        ensure!((led, followed) == (1, 2), "{printed}");
    }
    Ok(())
}

/// Runs an example, which must print these lines and no others.
#[track_caller]
fn prints(name: &str, lines: &[&str]) -> Result<()> {
    let printed = run_with(name, &[])?;
    assert_eq!(printed.lines().collect::<Vec<_>>(), lines, "{name}");
    Ok(())
}

/// Runs an example to its end, which must be a good one; what it printed.
fn run_with(name: &str, args: &[&str]) -> Result<String> {
    let mut command = Command::new(directory()?.join(name));
    let started = command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    let mut running = Running(started.with_context(|| format!("{name} does not start"))?);
    let end = Instant::now() + PATIENCE;
    // What it prints fits into the pipe, so that it ends also when nobody reads.
    let ended = loop {
        match running.0.try_wait()? {
            Some(ended) => break ended,
            None => ensure!(Instant::now() < end, "{name} still runs after {PATIENCE:?}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let printed = std::io::read_to_string(running.0.stdout.take().context("no output")?)?;
    ensure!(ended.success(), "{name}: {ended}; it printed:\n{printed}");
    Ok(printed)
}

/// Killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended is not killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where the examples are, as they stand in the source: built first, since what `cargo test -p quorate-tests` runs does not
/// build another package's.
fn directory() -> Result<PathBuf> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    built.clone().map_err(|error| anyhow!(error))
}

fn build() -> Result<PathBuf> {
    // target/<profile>/deps/examples-0123
    let ours = std::env::current_exe()?;
    let profile_dir = ours.ancestors().nth(2).context("a test in no profile")?;
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let cargo = std::env::var_os("CARGO").context("cargo runs this test")?;
    let mut build = Command::new(cargo);
    // What cargo told this test of its own package: some build scripts would be run again for it.
    let ours = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
        "CARGO_PRIMARY_",
        "OUT_DIR",
    ];
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| ours.iter().any(|prefix| name.starts_with(prefix)))
        {
            build.env_remove(&name);
        }
    }
    // With the features that they have in `cargo test --workspace`, which has built them already.
    let built = build
        .args([
            "build",
            "--workspace",
            "--examples",
            "--quiet",
            "--offline",
            "--profile",
            profile,
        ])
        .arg("--target-dir")
        .arg(profile_dir.parent().context("a profile in no directory")?)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .status()?;
    ensure!(built.success(), "the examples were not built: {built}");
    Ok(profile_dir.join("examples"))
}
