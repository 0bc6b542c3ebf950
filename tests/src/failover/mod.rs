//! How long is a cluster without a leader? Real processes, whose leader ends in one of several ways.
//!
//! [`measure`] makes the leader end again and again, and takes the time from the end until a put succeeds; [`watch`] ends
//! nothing, and counts elections beside a [`Load`]. Both count elections that had no reason.

mod load;

pub use load::Load;

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use quorate_kv::Client;
use quorate_kv::node::Profile;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::chaos::proxy::{CLIENT, Relays, Weather};
use crate::processes::Processes;

/// How long one try of a put takes at most; the next one goes to another node.
const TRY_MAX: Duration = Duration::from_millis(300);
/// How long a put is tried altogether: several times what any profile promises.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the nodes' terms.
const LOOK: Duration = Duration::from_millis(500);

/// How a leader ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// SIGKILL.
    Kill,
    /// SIGSTOP.
    Stop,
    /// Nothing that it sends reaches another node.
    CutSending,
    /// Nothing that another node sends reaches it.
    CutHearing,
    /// Nothing passes between it and anybody, clients included.
    CutWhole,
    /// SIGTERM.
    Planned,
}

impl End {
    /// All, in the order of the table.
    pub const ALL: [End; 6] = [
        End::Kill,
        End::Stop,
        End::CutSending,
        End::CutHearing,
        End::CutWhole,
        End::Planned,
    ];

    /// As the table writes it.
    pub fn name(self) -> &'static str {
        match self {
            End::Kill => "kill",
            End::Stop => "stop",
            End::CutSending => "cut one way (its sending)",
            End::CutHearing => "cut one way (its hearing)",
            End::CutWhole => "cut whole",
            End::Planned => "planned",
        }
    }

    /// Whether packets go through relays. An end of a process is not seen through them, as through any proxy.
    fn needs_relays(self) -> bool {
        matches!(self, End::CutSending | End::CutHearing | End::CutWhole)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Nodes of the cluster.
    pub nodes: u64,
    /// Their timing.
    pub profile: Profile,
    /// What goes on beside it.
    pub load: Load,
}

/// One line of the table. Times in milliseconds.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "its names are the table's")]
pub struct Line {
    pub kind: String,
    pub runs: u64,
    pub p50_ms: u64,
    pub p99_ms: u64,
    pub max_ms: u64,
    pub promised_ms: u64,
    pub false_elections: u64,
}

/// A cluster, with relays where something is to happen to its packets.
struct Bench {
    processes: Processes,
    relays: Option<Relays>,
    /// Dropped, it ends.
    _load: load::Running,
}

impl Bench {
    async fn start(plan: Plan, relays: bool) -> Result<Self> {
        let configuration = format!("[timing]\nprofile = \"{}\"\n", plan.profile.name());
        let mut processes = Processes::prepare_with(plan.nodes, &configuration)?;
        let relays = match relays {
            true => Some(Relays::start(processes.listening(), &processes.pids(), 1).await?),
            false => None,
        };
        if let Some(relays) = &relays {
            processes.reach_at(relays.reached().clone());
        }
        for id in processes.ids() {
            plan.load.start_node(&mut processes, id)?;
        }
        processes.leader().await?;
        if let Some(relays) = &relays {
            plan.load.spoil(relays, &processes.ids());
        }
        let load = plan.load.begin(&processes)?;
        Ok(Self {
            processes,
            relays,
            _load: load,
        })
    }

    /// The highest term that a node that answers knows.
    async fn term(&self) -> u64 {
        let ids = self.processes.ids();
        let asked = ids.iter().map(|id| self.processes.status(*id));
        let answers = futures_util::future::join_all(asked).await;
        let terms = answers.into_iter().flatten().map(|status| status.term.number());
        terms.max().unwrap_or_default()
    }

    fn cut(&self, leader: u64, end: End) -> Result<()> {
        let relays = self.relays.as_ref().context("a cut without relays")?;
        let cut = Weather {
            cut: true,
            ..Weather::default()
        };
        let ids = self.processes.ids();
        for other in ids.into_iter().filter(|id| *id != leader) {
            if end != End::CutHearing {
                relays.set(leader, other, cut);
            }
            if end != End::CutSending {
                relays.set(other, leader, cut);
            }
        }
        if end == End::CutWhole {
            relays.set(leader, CLIENT, cut);
            relays.set(CLIENT, leader, cut);
        }
        Ok(())
    }

    /// Has the leader end, and answers how long it took until a put succeeded.
    async fn end(&mut self, client: &Client, end: End, plan: Plan) -> Result<Duration> {
        let leader = self.processes.leader().await?;
        put(client).await?;
        let ended = Instant::now();
        match end {
            End::Kill => self.processes.kill(leader)?,
            End::Stop => self.processes.pause(leader)?,
            End::CutSending | End::CutHearing | End::CutWhole => self.cut(leader, end)?,
            End::Planned => return self.planned(client, leader, plan).await,
        }
        put(client).await?;
        Ok(ended.elapsed())
    }

    /// Stops the leader as planned; the longest time that a put took from then until it was gone.
    async fn planned(&mut self, client: &Client, leader: u64, plan: Plan) -> Result<Duration> {
        let longest = {
            let mut stopping = std::pin::pin!(self.processes.stop(leader));
            let (mut longest, mut gone) = (Duration::ZERO, false);
            while !gone {
                let begun = Instant::now();
                let mut putting = std::pin::pin!(put(client));
                tokio::select! {
                    done = &mut putting => done?,
                    status = &mut stopping => {
                        status?;
                        gone = true;
                        putting.await?;
                    }
                }
                longest = longest.max(begun.elapsed());
            }
            longest
        };
        plan.load.start_node(&mut self.processes, leader)?;
        Ok(longest)
    }

    /// Undoes an end, and waits until all nodes are level again.
    async fn undo(&mut self, end: End, plan: Plan) -> Result<()> {
        for id in self.processes.ids() {
            match end {
                End::Stop => self.processes.resume(id)?,
                _ if !self.processes.runs(id) => plan.load.start_node(&mut self.processes, id)?,
                _ => {}
            }
        }
        if let Some(relays) = &self.relays {
            relays.heal();
            plan.load.spoil(relays, &self.processes.ids());
        }
        self.processes.level().await
    }
}

/// Puts until it succeeds, in short tries.
async fn put(client: &Client) -> Result<()> {
    let client = client.with_deadline(TRY_MAX);
    let begun = Instant::now();
    loop {
        match client.put("failover", "served").await {
            Ok(_) => return Ok(()),
            Err(error) if begun.elapsed() > PATIENCE => {
                return Err(error).with_context(|| format!("no put within {PATIENCE:?}"));
            }
            Err(_) => sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Ends the leader so often in this way; `tell` hears of each run.
pub async fn measure(plan: Plan, end: End, runs: u64, tell: &dyn Fn(u64, Duration)) -> Result<Line> {
    let mut bench = Bench::start(plan, end.needs_relays() || plan.load.is_on()).await?;
    let mut times = Histogram::<u64>::new(3)?;
    let mut false_elections = 0;
    bench.processes.level().await?;
    let client = bench.processes.client()?;
    for run in 0..runs {
        let took = bench.end(&client, end, plan).await?;
        let served = bench.term().await;
        times.record(u64::try_from(took.as_millis())?)?;
        tell(run + 1, took);
        bench.undo(end, plan).await?;
        // Another leader serves: whatever comes back has no reason to elect one more.
        false_elections += bench.term().await.saturating_sub(served);
    }
    Ok(Line {
        kind: end.name().to_owned(),
        runs,
        p50_ms: times.value_at_quantile(0.5),
        p99_ms: times.value_at_quantile(0.99),
        max_ms: times.max(),
        promised_ms: promised(plan.profile),
        false_elections,
    })
}

/// Ends nothing for so long, and counts the elections that come all the same.
pub async fn watch(plan: Plan, time: Duration, tell: &dyn Fn(Duration, u64)) -> Result<Line> {
    let mut bench = Bench::start(plan, plan.load.is_on()).await?;
    bench.processes.level().await?;
    let begun = Instant::now();
    let first = bench.term().await;
    let mut last = first;
    while begun.elapsed() < time {
        sleep(LOOK).await;
        last = last.max(bench.term().await);
        tell(begun.elapsed(), last - first);
    }
    Ok(Line {
        kind: format!("nothing, for {:.0} minutes", time.as_secs_f64() / 60.0),
        runs: 0,
        p50_ms: 0,
        p99_ms: 0,
        max_ms: 0,
        promised_ms: promised(plan.profile),
        false_elections: last - first,
    })
}

fn promised(profile: Profile) -> u64 {
    u64::try_from(profile.timing().failover_max.as_millis()).unwrap_or(u64::MAX)
}
