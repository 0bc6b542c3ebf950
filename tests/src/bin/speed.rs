use quorate_tests::sim::{Simulation, selftest};
fn main() {
    let t = std::time::Instant::now();
    let (mut polls, mut events, mut virt) = (0, 0, 0.0);
    for seed in 0..300 {
        let sim = Simulation::new(seed);
        selftest::run(&sim).unwrap();
        polls += sim.polls();
        events += sim.world().events();
        virt += sim.now().as_secs_f64();
    }
    let s = t.elapsed().as_secs_f64();
    println!(
        "{polls} polls {events} events {virt} virtual s in {s} s: {} polls/s, {} x",
        polls as f64 / s,
        virt / s
    );
}
