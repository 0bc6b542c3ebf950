//! `quorate meta check`: the rules that always hold, against all rows as they are.

use quorate_meta::check::{Sweeps, check};
use serde::Serialize;

use super::arguments::{Meta, reading};
use crate::cli::Freshness;
use crate::failure::Failure;
use crate::output::{Line, Output};

pub(super) async fn run(
    freshness: &Freshness,
    client: impl FnOnce() -> Result<Meta, Failure>,
    output: Output,
) -> Result<(), Failure> {
    let image = reading(client()?, freshness).image().await?;
    // A fence that is being carried out, or was left halfway, leaves members behind that its repeat takes out.
    let violations = check(&image, Sweeps::MayBePending);
    if !violations.is_empty() {
        let what = match violations.len() {
            1 => "one thing is wrong".to_owned(),
            many => format!("{many} things are wrong"),
        };
        return Err(
            Failure::failed(format!("{what} with the metadata at revision {}", image.revision))
                .details(violations.iter().map(ToString::to_string)),
        );
    }
    let checked = Checked {
        revision: image.revision.number(),
        brokers: image.brokers.len(),
        topics: image.topics.len(),
        partitions: image.partitions.len(),
    };
    let line = format!(
        "the metadata is sound at revision {}: {} brokers, {} topics, {} partitions",
        checked.revision, checked.brokers, checked.topics, checked.partitions
    );
    output.show(&Line::new(checked, line))
}

#[derive(Debug, Serialize)]
struct Checked {
    revision: u64,
    brokers: usize,
    topics: usize,
    partitions: usize,
}
