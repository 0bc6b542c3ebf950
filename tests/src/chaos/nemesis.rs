//! Does things to a cluster of processes, one after another, as a seed says.
//!
//! Always: what one action did is undone before the next begins, so that a majority could work in between; a node
//! that ends by itself, other than by a disk that failed on purpose, is a fault.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::proxy::{CLIENT, Relays, Weather};
use crate::processes::Processes;
use crate::sim::Rng;

/// What can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// SIGKILL to one node.
    Kill,
    /// SIGKILL to all nodes at once.
    KillAll,
    /// SIGSTOP to one node, and SIGCONT.
    Pause,
    /// SIGTERM to each node in turn, as an upgrade would.
    RollingRestart,
    /// One node hears nobody and is heard by nobody, clients included.
    Isolate,
    /// Packets of one node to one other are lost, not the other way round.
    CutOneWay,
    /// Packets are lost, late, doubled and out of order everywhere.
    Storm,
    /// A disk whose fdatasync fails with EIO at some point.
    SyncFails,
    /// A disk whose fdatasync takes long.
    SyncSlow,
}

impl Action {
    /// What is drawn from, each as often as it stands here in proportion: mostly kills, which take least time, so that
    /// half an hour sees some hundreds of them.
    const DRAWN: [(Action, u64); 9] = [
        (Action::Kill, 15),
        (Action::KillAll, 3),
        (Action::Pause, 2),
        (Action::RollingRestart, 1),
        (Action::Isolate, 2),
        (Action::CutOneWay, 2),
        (Action::Storm, 2),
        (Action::SyncFails, 1),
        (Action::SyncSlow, 1),
    ];

    /// What cannot be done without strace.
    pub fn without(strace: bool) -> Vec<Self> {
        let all = Self::DRAWN.into_iter().map(|(action, _)| action);
        all.filter(|action| action.needs_strace() && !strace).collect()
    }

    fn draw(rng: &mut Rng, strace: bool) -> Self {
        let not_done = Self::without(strace);
        let possible = || {
            let drawn = Self::DRAWN.into_iter();
            drawn.filter(|(action, _)| !not_done.contains(action))
        };
        let mut drawn = rng.below(possible().map(|(_, weight)| weight).sum());
        for (action, weight) in possible() {
            match drawn.checked_sub(weight) {
                Some(rest) => drawn = rest,
                None => return action,
            }
        }
        Action::Kill
    }

    fn needs_strace(self) -> bool {
        matches!(self, Action::SyncFails | Action::SyncSlow)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Kill => "kill",
            Action::KillAll => "kill all",
            Action::Pause => "pause",
            Action::RollingRestart => "rolling restart",
            Action::Isolate => "isolate",
            Action::CutOneWay => "cut one way",
            Action::Storm => "storm",
            Action::SyncFails => "sync fails",
            Action::SyncSlow => "sync slow",
        })
    }
}

/// A failing disk is waited for this long; under little load its sync may not come.
const FAILURE_MAX: Duration = Duration::from_secs(10);

/// Does things.
#[derive(Debug)]
pub struct Nemesis<'a> {
    /// The processes.
    pub processes: &'a mut Processes,
    /// The network between them.
    pub relays: &'a Relays,
    /// Draws what, whom and how long.
    pub rng: Rng,
    /// How often each was done.
    pub done: BTreeMap<Action, u64>,
    /// Whether strace can be used, for failing disks.
    pub strace: bool,
}

impl Nemesis<'_> {
    /// Does one thing and undoes it; `tell` hears what, before it happens.
    pub async fn act(&mut self, tell: impl Fn(&str)) -> Result<()> {
        let action = Action::draw(&mut self.rng, self.strace);
        let ids = self.processes.ids();
        let victim = *self.rng.pick(&ids);
        tell(&format!("{action}: node {victim} of {}", ids.len()));
        match action {
            Action::Kill => {
                self.processes.kill(victim)?;
                self.linger(0, 2_000).await;
                self.processes.start(victim)?;
            }
            Action::KillAll => {
                for id in &ids {
                    self.processes.kill(*id)?;
                }
                for id in &ids {
                    self.linger(0, 200).await;
                    self.processes.start(*id)?;
                }
            }
            Action::Pause => {
                self.processes.pause(victim)?;
                self.linger(100, 3_000).await;
                self.processes.resume(victim)?;
            }
            Action::RollingRestart => {
                for id in &ids {
                    self.processes.stop(*id).await?;
                    self.processes.start(*id)?;
                    self.processes.leader().await?;
                }
            }
            Action::Isolate => {
                let cut = Weather {
                    cut: true,
                    ..Weather::default()
                };
                for other in ids.iter().chain([&CLIENT]).filter(|id| **id != victim) {
                    self.relays.set(victim, *other, cut);
                    self.relays.set(*other, victim, cut);
                }
                self.linger(500, 4_000).await;
                self.relays.heal();
            }
            Action::CutOneWay => {
                let others: Vec<u64> = ids.iter().copied().filter(|id| *id != victim).collect();
                if let [_, ..] = others[..] {
                    let cut = Weather {
                        cut: true,
                        ..Weather::default()
                    };
                    self.relays.set(victim, *self.rng.pick(&others), cut);
                }
                self.linger(500, 4_000).await;
                self.relays.heal();
            }
            Action::Storm => self.storm(&ids).await,
            Action::SyncFails => self.sync_fails(victim).await?,
            Action::SyncSlow => {
                let micros = self.rng.between(20_000, 200_000);
                self.restart_traced(victim, &format!("delay_enter={micros}"))?;
                self.linger(2_000, 5_000).await;
                self.processes.kill(victim)?;
                self.processes.start(victim)?;
            }
        }
        *self.done.entry(action).or_default() += 1;
        self.none_ended(&ids)?;
        self.linger(100, 1_500).await;
        Ok(())
    }

    async fn linger(&mut self, low: u64, high: u64) {
        let time = self
            .rng
            .duration(Duration::from_millis(low), Duration::from_millis(high));
        sleep(time).await;
    }

    async fn storm(&mut self, ids: &[u64]) {
        for from in ids.iter().chain([&CLIENT]) {
            for to in ids.iter().chain([&CLIENT]).filter(|to| *to != from) {
                let weather = Weather {
                    cut: false,
                    loss_permille: self.rng.between(0, 200),
                    delay: self.rng.duration(Duration::ZERO, Duration::from_millis(20)),
                    jitter: self.rng.duration(Duration::ZERO, Duration::from_millis(20)),
                    twice_permille: self.rng.between(0, 50),
                };
                self.relays.set(*from, *to, weather);
            }
        }
        self.linger(2_000, 6_000).await;
        self.relays.heal();
    }

    /// The node must end by itself at the failed sync; started again with a sound disk, it must serve.
    async fn sync_fails(&mut self, victim: u64) -> Result<()> {
        let nth = self.rng.between(1, 200);
        self.restart_traced(victim, &format!("error=EIO:when={nth}+"))?;
        let end = Instant::now() + FAILURE_MAX;
        while Instant::now() < end {
            if let Some(status) = self.processes.ended(victim)? {
                if status.success() {
                    bail!("node {victim} ended with success though its disk failed");
                }
                self.processes.forget(victim);
                return self.processes.start(victim);
            }
            sleep(Duration::from_millis(50)).await;
        }
        self.processes.kill(victim)?;
        self.processes.start(victim)
    }

    fn restart_traced(&mut self, victim: u64, inject: &str) -> Result<()> {
        self.processes.kill(victim)?;
        self.processes.start_with_syncs(victim, inject)
    }

    fn none_ended(&mut self, ids: &[u64]) -> Result<()> {
        for id in ids {
            if let Some(status) = self.processes.ended(*id)? {
                bail!(
                    "node {id} ended by itself ({status}):\n{}",
                    self.processes.log(*id)
                );
            }
        }
        Ok(())
    }
}

/// Whether strace is there and may trace.
pub fn can_trace() -> bool {
    let traced = std::process::Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "true"])
        .stderr(std::process::Stdio::null())
        .status();
    traced.is_ok_and(|status| status.success())
}
