//! `quorate bench`: how fast a cluster answers, and how late.
//!
//! A closed loop: so many callers, each of which waits for its answer before it asks again. So the rate is what
//! that many callers get, and no latency hides in a queue of ours.

mod load;
mod processes;
mod report;
mod scale;

use std::collections::BTreeSet;

use crate::cli::{BenchArgs, BenchOp};
use crate::failure::Failure;
use crate::output::Output;
use crate::reach::Reached;
use load::Load;
use processes::Processes;
use report::BenchReport;

/// Runs the command. `variables` are the flags that a variable gave.
pub fn run(args: BenchArgs, variables: &BTreeSet<String>, output: Output) -> Result<(), Failure> {
    let workers = args.workers.and_then(|workers| usize::try_from(workers).ok());
    // One thread drives tens of thousands of operations a second, and the nodes need the rest of the machine.
    crate::runtime::runtime(Some(workers.unwrap_or(1)))?.block_on(async {
        tokio::select! {
            result = measure(&args, variables, output) => result,
            _ = tokio::signal::ctrl_c() => Err(Failure::failed("interrupted")),
        }
    })
}

async fn measure(args: &BenchArgs, variables: &BTreeSet<String>, output: Output) -> Result<(), Failure> {
    if args.ops_per_txn.is_some() && args.op != BenchOp::Txn {
        return Err(Failure::refused(format!(
            "--ops-per-txn belongs to --op txn, and the load is --op {}",
            args.op.name()
        )));
    }
    if let Some(keys) = args.scale {
        return match args.reach.endpoints.is_empty() {
            true => scale::run(args, keys, output).await,
            false => Err(Failure::refused(
                "--scale starts a cluster of its own, --endpoints names one that runs: give one of them",
            )),
        };
    }
    let (processes, reached) = match args.nodes {
        None => (None, Reached::find(&args.reach)?),
        Some(_) if !args.reach.endpoints.is_empty() => {
            return Err(match variables.contains("endpoints") {
                true => Failure::refused(
                    "--nodes starts a cluster, and the variable QUORATE_ENDPOINTS names one that runs",
                )
                .hint("leave --nodes out, or unset the variable: env -u QUORATE_ENDPOINTS quorate bench ..."),
                false => Failure::refused(
                    "--nodes starts a cluster, --endpoints names one that runs: give one of them",
                ),
            });
        }
        Some(count) => {
            let processes = Processes::start(count, args).await?;
            let reached = processes.reached(args.reach.deadline)?;
            (Some(processes), reached)
        }
    };
    let load = Load::prepare(args, &reached, output).await?;
    let measured = load.run().await;
    load.close().await;
    let measured = measured?;
    let statuses = reached.client()?.statuses().await;
    let report = BenchReport::new(args, measured, &statuses);
    if let Some(processes) = processes {
        processes.stop().await;
    }
    output.show(&report)
}

impl BenchOp {
    fn name(self) -> &'static str {
        match self {
            BenchOp::Put => "put",
            BenchOp::Txn => "txn",
            BenchOp::Get => "get",
            BenchOp::StaleGet => "stale-get",
        }
    }
}
