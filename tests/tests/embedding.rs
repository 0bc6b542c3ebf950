//! What a program takes on that embeds one node.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The crates that a program builds which names this one alone, itself among them.
fn built_for(package: &str) -> Result<BTreeSet<String>> {
    let tree = ["tree", "--edges", "normal,build", "--prefix", "none", "--offline"];
    let output = Command::new(env!("CARGO"))
        .args(tree)
        .args(["--package", package])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .context("cargo tree")?;
    let told = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success(),
        "cargo tree: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let crates = told.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some(format!("{} {}", words.next()?, words.next()?))
    });
    Ok(crates.collect())
}

#[test]
fn a_node_in_a_program_takes_at_most_a_hundred_crates_and_nothing_of_the_server() -> Result<()> {
    let crates = built_for("quorate-kv")?;
    assert!(crates.len() > 50, "cargo tree was not understood: {crates:?}");
    assert!(crates.len() <= 100, "{}: {crates:#?}", crates.len());
    for heavy in [
        "quinn",
        "rustls",
        "ring",
        "rcgen",
        "clap",
        "metrics-exporter-prometheus",
        "tracing-subscriber",
    ] {
        let of_it = |name: &&String| name.split(' ').next() == Some(heavy);
        assert_eq!(crates.iter().find(of_it), None, "a node alone needs no {heavy}");
    }
    Ok(())
}

#[test]
fn the_server_has_what_a_node_alone_has_not() -> Result<()> {
    // So that the test above would see it.
    let crates = built_for("quorate")?;
    for name in ["quinn", "rustls", "clap"] {
        assert!(
            crates.iter().any(|c| c.split(' ').next() == Some(name)),
            "no {name}: {crates:?}"
        );
    }
    Ok(())
}
