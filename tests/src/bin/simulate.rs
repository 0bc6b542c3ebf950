//! Runs seeds of the simulator.

use clap::Parser;
use quorate_tests::sim::{Simulation, selftest};

/// Runs seeds of the deterministic simulator.
#[derive(Parser)]
struct Args {
    /// One seed, with its whole trace on standard output.
    #[arg(long)]
    trace: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let sim = Simulation::new(args.trace);
    sim.world().keep_whole_trace();
    let ended = selftest::run(&sim);
    for line in sim.world().trace() {
        println!("{line}");
    }
    println!("{:016x}", sim.hash());
    Ok(ended?)
}
