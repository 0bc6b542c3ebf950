//! A minute of everything that real processes can suffer: kills, pauses, restarts, cuts, storms, failing disks.

use std::time::Duration;

use anyhow::{Result, ensure};
use quorate_tests::chaos::nemesis::can_trace;
use quorate_tests::chaos::run::{Event, Plan, run};
use quorate_tests::processes::Processes;

#[tokio::test(flavor = "multi_thread")]
async fn a_minute_of_kills_cuts_and_storms_loses_nothing_and_repeats_nothing() -> Result<()> {
    let plan = Plan {
        time: Duration::from_secs(60),
        seed: 4,
        strace: can_trace(),
    };
    let mut processes = Processes::prepare(3)?;
    let result = run(plan, &mut processes, &|event| match event {
        Event::Acts(what) => println!("{what}"),
        Event::Judges { what, done: 0, all } => println!("judging {all} {what}"),
        Event::Judges { .. } => {}
    });
    let report = match result.await {
        Ok(report) => report,
        Err(error) => {
            let files = processes.keep_files().display();
            return Err(error.context(format!("kept in {files}")));
        }
    };
    println!("{report:#?}");
    if !report.not_done.is_empty() {
        println!(
            "strace is missing or may not trace; not done: {:?}",
            report.not_done
        );
    }
    ensure!(
        report.processes_killed >= 6 && report.kills_of_all >= 1,
        "{} processes were killed, {} times all: too few to mean something",
        report.processes_killed,
        report.kills_of_all
    );
    ensure!(
        report.acknowledged > 200 && report.reads > 100,
        "hardly anything was written or read: {report:?}"
    );
    Ok(())
}
