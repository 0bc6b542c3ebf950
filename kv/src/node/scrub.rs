//! Goes through all that a node has on its disk, at a pace that lets others work, and ends its part where something rotted.
//!
//! Always: a pass takes its interval, or longer where there is more than can be read in half of it, or more than 25 MiB for
//! each of its seconds; a pass that was told was whole.

use std::time::Duration;

use crate::env::{self, Instant, Owner, oneshot};
use crate::fault::{Fault, Faults};
use crate::log::{Log, LogScrubber};
use crate::machine::{Reader, Scrubber};
use crate::scrub::Scrubbed;

/// The least time between two steps: a step is 256 KiB.
const PAUSE_MIN: Duration = Duration::from_millis(10);

type Reply = oneshot::Sender<Result<Scrubbed, Fault>>;

/// Goes through state and log again and again, each time in `interval`, until a fault is found, or this is dropped.
pub(super) async fn run(reader: Reader, log: Log, interval: Duration, faults: Faults) {
    let scrub = Scrub {
        state: reader.scrubber(),
        log: log.scrubber(),
        part: Part::State,
    };
    let on_panic = faults.on_panic("scrubber");
    let scrub = env::spawn_owner("quorate-scrub", 1, 1, scrub, on_panic);
    let mut pass = Pass::begin(interval);
    loop {
        let begun = env::now();
        let (reply, answer) = oneshot::channel();
        // An owner that has ended has told why.
        if scrub.send(reply).await.is_err() {
            return;
        }
        let scrubbed = match answer.await {
            Ok(Ok(scrubbed)) => scrubbed,
            Ok(Err(fault)) => return faults.raise(fault),
            Err(_) => return,
        };
        metrics::counter!("quorate_scrub_bytes_total").increment(scrubbed.bytes);
        let next = pass.goes_on(scrubbed);
        if scrubbed.left == 0 {
            let took = pass.began.elapsed();
            tracing::info!(
                bytes = pass.bytes,
                seconds = took.as_secs(),
                "the scrubber went through state and log: nothing has rotted"
            );
            let now = Duration::from_millis(env::wall_clock().millis());
            metrics::gauge!("quorate_scrub_last_pass_timestamp_seconds").set(now.as_secs_f64());
            pass = Pass::begin(interval);
        }
        let rest = env::now() + begun.elapsed().max(PAUSE_MIN);
        env::sleep_until(next.max(rest)).await;
    }
}

/// One time through everything.
struct Pass {
    interval: Duration,
    began: Instant,
    bytes: u64,
}

impl Pass {
    fn begin(interval: Duration) -> Self {
        Self {
            interval,
            began: env::now(),
            bytes: 0,
        }
    }

    /// Counts a step, and answers when the next is due: as much of the time has passed then as of the bytes.
    fn goes_on(&mut self, scrubbed: Scrubbed) -> Instant {
        self.bytes += scrubbed.bytes;
        let done = u128::from(self.bytes).max(1);
        let all = done + u128::from(scrubbed.left);
        let nanos = self.interval.as_nanos() * done / all;
        self.began + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Does the steps, on a thread of its own: the state first, then the log.
struct Scrub {
    state: Scrubber,
    log: LogScrubber,
    part: Part,
}

#[derive(Clone, Copy)]
enum Part {
    State,
    Log,
}

impl Scrub {
    fn step(&mut self) -> Result<Scrubbed, Fault> {
        match self.part {
            Part::State => {
                let scrubbed = self.state.step()?;
                let log = self.log.left();
                if scrubbed.left == 0 && log > 0 {
                    self.part = Part::Log;
                }
                let left = scrubbed.left + log;
                Ok(Scrubbed { left, ..scrubbed })
            }
            Part::Log => {
                let scrubbed = self.log.step()?;
                if scrubbed.left == 0 {
                    self.part = Part::State;
                }
                Ok(scrubbed)
            }
        }
    }
}

impl Owner for Scrub {
    type Job = Reply;
    type Effects = Vec<(Reply, Result<Scrubbed, Fault>)>;

    fn work(&mut self, batch: &mut Vec<Reply>) -> Self::Effects {
        batch.drain(..).map(|reply| (reply, self.step())).collect()
    }

    fn publish(&mut self, effects: Self::Effects) {
        for (reply, scrubbed) in effects {
            // The node may have ended meanwhile.
            let _gone = reply.send(scrubbed);
        }
    }
}
