//! Who changes the cluster's members: one change at a time, each to its end, while faults happen.
//!
//! Always: a change is asked for again until its outcome is known, so that the voters that the operator
//! knows are the cluster's when the next one begins; a disk is only lost while the other voters suffice for a
//! quorum; a host that lost its disk comes back under a new id, if at all.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use quorate_kv::client::Error;
use quorate_kv::model::{LogIndex, NodeId};
use quorate_kv::planted::{self, Bug};
use quorate_kv::{Client, env};

use super::fault::{Kind, Target};
use super::{Cluster, Phase, ROUND, Stop, address};
use crate::check::membership::Membership;
use crate::check::{Rule, Violation};
use crate::sim::world::lock;
use crate::sim::{CrashAction, PowerLoss};

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(4);
/// The pause between two.
const PAUSE: Duration = Duration::from_millis(50);
/// How long after the faults' end a change that had begun may take.
const FINISH_MAX: Duration = Duration::from_secs(60);
/// Where a node has applied a change of members, and nobody was told.
const JOINT: &str = "raft.membership.applied";
/// Changes that wait; more are dropped.
const WAITING_MAX: usize = 4;

/// What the operator is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    AddLearner,
    Promote,
    PromoteAndLeave(Duration),
    Remove(Target),
    Replace(Target),
    BitRot(Target),
    RotUnderNode(Target),
    WipeWhole(Target),
    ReuseId(Target),
    MoveLeader,
}

/// The operator's desk. A clone is the same one.
#[derive(Debug, Clone, Default)]
pub(super) struct Operator {
    waiting: Rc<RefCell<VecDeque<Change>>>,
    working: Rc<Cell<bool>>,
    failed: Rc<RefCell<Option<String>>>,
}

impl Operator {
    /// Queues a change.
    pub(super) fn ask(&self, change: Change) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() < WAITING_MAX {
            waiting.push_back(change);
        }
    }

    /// Works until the faults are over.
    pub(super) async fn work(self, cluster: Cluster) {
        while !cluster.is_healed() {
            let next = self.waiting.borrow_mut().pop_front();
            let Some(change) = next else {
                env::sleep(PAUSE).await;
                continue;
            };
            self.working.set(true);
            let done = carry_out(&cluster, change).await;
            {
                let mut seen = lock(&cluster.seen);
                (seen.changing_members, seen.moving_leader) = (false, false);
            }
            self.working.set(false);
            if let Err(why) = done {
                cluster.tell(format!("operator: {why}"));
                *self.failed.borrow_mut() = Some(why);
                return;
            }
        }
    }

    /// Waits for the change that is being carried out.
    pub(super) async fn finish(&self) -> Result<(), String> {
        while self.working.get() {
            env::sleep(PAUSE).await;
        }
        self.failed.borrow().clone().map_or(Ok(()), Err)
    }
}

async fn carry_out(cluster: &Cluster, change: Change) -> Result<(), String> {
    match change {
        Change::AddLearner => add(cluster, Kind::AddLearner).await.map(drop),
        Change::Promote => match learner(cluster) {
            Some(learner) => promote(cluster, learner, Begun::No).await,
            None => Ok(()),
        },
        Change::PromoteAndLeave(away) => {
            let learner = match learner(cluster) {
                Some(learner) => learner,
                None => add(cluster, Kind::AddLearner).await?,
            };
            promote_and_leave(cluster, learner, away).await
        }
        Change::Remove(target) => match removable(cluster, target) {
            Some(number) => remove(cluster, number, Kind::Remove).await,
            None => Ok(()),
        },
        Change::Replace(target) => match replaceable(cluster, target) {
            Some(number) => replace(cluster, number).await,
            None => Ok(()),
        },
        Change::BitRot(target) => match replaceable(cluster, target) {
            Some(number) => rot(cluster, number).await,
            None => Ok(()),
        },
        Change::RotUnderNode(target) => match replaceable(cluster, target) {
            Some(number) => rot_under(cluster, number).await,
            None => Ok(()),
        },
        Change::WipeWhole(target) => match replaceable(cluster, target) {
            Some(number) => wipe(cluster, number).await,
            None => Ok(()),
        },
        Change::ReuseId(target) => match removable(cluster, target) {
            Some(number) => reuse(cluster, number).await,
            None => Ok(()),
        },
        Change::MoveLeader => {
            lock(&cluster.seen).moving_leader = true;
            cluster.excuses.operate(cluster);
            let phases = cluster.watch.phases();
            // Once: that nobody could take over is no failure.
            let client = cluster.client("operator").with_deadline(ATTEMPT);
            if client.move_leader(None).await.is_ok() {
                cluster.watch.took_effect_in(Kind::MoveLeader, &phases);
            }
            Ok(())
        }
    }
}

/// Whom a target means, if it may be taken out: the first stays, for clients to find the cluster, and so does
/// the last voter.
fn removable(cluster: &Cluster, target: Target) -> Option<u32> {
    let leader = lock(&cluster.seen).leader();
    let fleet = cluster.fleet.borrow();
    let found = fleet.find(target, leader)?;
    let number = if found == 1 { *fleet.members.last()? } else { found };
    let spared = fleet.voters.len() > 1 || !fleet.voters.contains(&number);
    (number != 1 && fleet.members.contains(&number) && spared).then_some(number)
}

async fn add(cluster: &Cluster, kind: Kind) -> Result<u32, String> {
    let number = cluster.fleet.borrow_mut().fresh();
    cluster.fleet.borrow_mut().joining.insert(number);
    cluster.install(number);
    cluster.start(number);
    let id = NodeId::new(u64::from(number));
    let is_in = |members: &Membership| members.members.contains_key(&u64::from(number));
    let ask = async |client: &Client| client.add_learner(id, address(number)).await;
    repeat(cluster, kind, Begun::No, is_in, ask).await?;
    let mut fleet = cluster.fleet.borrow_mut();
    fleet.joining.remove(&number);
    fleet.members.insert(number);
    Ok(number)
}

async fn promote(cluster: &Cluster, number: u32, begun: Begun) -> Result<(), String> {
    let id = NodeId::new(u64::from(number));
    let votes = |members: &Membership| members.votes(u64::from(number));
    let ask = async |client: &Client| client.promote(id).await;
    repeat(cluster, Kind::Promote, begun, votes, ask).await?;
    cluster.fleet.borrow_mut().voters.insert(number);
    // What was seen of it last may be from before it caught up.
    env::sleep(2 * ROUND).await;
    was_near(cluster, number)
}

/// Whether a node that has just got a vote had nearly all of the log when it got it. One that is down now cannot be asked.
fn was_near(cluster: &Cluster, number: u32) -> Result<(), String> {
    /// Entries that may be appended between the leader's look at the node and the change.
    const BETWEEN: u64 = 100;
    let behind = cluster.plan.tuning.promote_lag_max + BETWEEN;
    let (Some(promotion), Some(status)) = (
        cluster.record.promotion(number),
        lock(&cluster.seen).latest.get(&number).cloned(),
    ) else {
        return Ok(());
    };
    let last = status.last_log.map_or(0, LogIndex::number);
    if last + behind >= promotion.number() {
        return Ok(());
    }
    let what = format!("node {number} has the log up to {last}, and a vote since entry {promotion}");
    Err(Violation::new(Rule::PromotedNear, what).to_string())
}

/// A member without a vote.
fn learner(cluster: &Cluster) -> Option<u32> {
    let fleet = cluster.fleet.borrow();
    fleet.members.difference(&fleet.voters).next().copied()
}

/// Asks once, and has the leader lose power when the two sets of voters are in force; then does nothing for a while, and
/// no more than look on as long as they stay in force. Only the cluster itself can end such a change then.
async fn promote_and_leave(cluster: &Cluster, number: u32, away: Duration) -> Result<(), String> {
    let leader = lock(&cluster.seen).leader();
    if let Some(leader) = leader.filter(|_| !cluster.is_healed()) {
        cluster
            .sim
            .host(leader)
            .arm(JOINT, 0, CrashAction::SwitchOff(PowerLoss::KeepAll));
        // Shorter than an election: the client must not find the next leader.
        let client = cluster
            .client("operator")
            .with_deadline(cluster.plan.tuning.heartbeat * 8);
        let asked = client.promote(NodeId::new(u64::from(number))).await;
        cluster.tell(format!(
            "operator: asked once to promote node {number} and left: {asked:?}"
        ));
        cluster.watch.took_effect(Kind::PromoteAndLeave);
        let back = cluster.sim.now() + away;
        let looks_on = || cluster.sim.now() < back || cluster.record.is_joint();
        while looks_on() && !cluster.is_healed() {
            env::sleep(PAUSE).await;
        }
        if cluster.is_healed() {
            return Ok(());
        }
    }
    promote(cluster, number, Begun::Perhaps).await
}

async fn remove(cluster: &Cluster, number: u32, kind: Kind) -> Result<(), String> {
    let id = NodeId::new(u64::from(number));
    let is_out = |members: &Membership| !members.members.contains_key(&u64::from(number));
    let ask = async |client: &Client| client.remove(id).await;
    repeat(cluster, kind, Begun::No, is_out, ask).await?;
    let mut fleet = cluster.fleet.borrow_mut();
    fleet.members.remove(&number);
    fleet.voters.remove(&number);
    fleet.gone.insert(number);
    // Its process is left as it is: a node that was taken out must not disturb the others.
    Ok(())
}

/// Whom a target means, if the others can do without: two voters that have lost one are no majority, and can take no
/// other in.
fn replaceable(cluster: &Cluster, target: Target) -> Option<u32> {
    let number = removable(cluster, target)?;
    // Before that, a majority has formed it and the rest has no say yet: it lacks one for each of them already.
    if !is_everybody_introduced(cluster) {
        return None;
    }
    let fleet = cluster.fleet.borrow();
    (!fleet.voters.contains(&number) || fleet.voters.len() >= 3).then_some(number)
}

async fn replace(cluster: &Cluster, number: u32) -> Result<(), String> {
    cluster.watch.took_effect(Kind::Replace);
    let host = cluster.sim.host(number);
    if planted::is(Bug::WipedNodeRejoins) {
        host.kill();
        host.disk().wipe();
        return Ok(());
    }
    cluster.fleet.borrow_mut().gone.insert(number);
    host.kill();
    host.disk().wipe();
    take_place_of(cluster, number).await
}

/// Has a node come back without its directory: it must be refused by the others and stop. Then it is replaced.
async fn wipe(cluster: &Cluster, number: u32) -> Result<(), String> {
    // One that waits to be added says so and waits, since it may be added when it has been removed.
    if number > cluster.plan.nodes {
        return replace(cluster, number).await;
    }
    if !may_come_back_empty(cluster, number) {
        return Ok(());
    }
    let phases = cluster.watch.phases();
    come_back_empty(cluster, number);
    let mut healed_at = None;
    let refused = loop {
        let refused = lock(&cluster.seen).wiped.get(&number).cloned().flatten();
        if let Some(refused) = refused {
            break refused;
        }
        let now = cluster.sim.now();
        if cluster.is_healed() && now > *healed_at.get_or_insert(now) + FINISH_MAX {
            return Err(format!(
                "liveness: node {number}, which lost its directory, is not refused by the others"
            ));
        }
        env::sleep(PAUSE).await;
    };
    cluster.tell(format!(
        "operator: node {number}, which lost its directory, says: {refused}"
    ));
    cluster.watch.took_effect_in(Kind::WipeWhole, &phases);
    cluster.fleet.borrow_mut().gone.insert(number);
    cluster.sim.host(number).kill_unseen();
    cluster.fleet.borrow_mut().emptied.remove(&number);
    take_place_of(cluster, number).await
}

/// Whether a membership is committed that names every member's directory.
fn is_everybody_introduced(cluster: &Cluster) -> bool {
    cluster.record.members().is_some_and(|membership| {
        let mut members = membership.members.values();
        members.all(|member| member.introduced.is_some())
    })
}

/// Whether those that formed the cluster and are empty now stay a minority of them. A majority that does not reach the
/// others forms a cluster of its own: nobody can tell that it lost one (`docs/guarantees.md`).
fn may_come_back_empty(cluster: &Cluster, number: u32) -> bool {
    let nodes = cluster.plan.nodes;
    let mut emptied = cluster.fleet.borrow().emptied.clone();
    emptied.insert(number);
    // Nor is one that was lost before the others knew it known to be lost.
    let is_introduced = cluster.record.members().is_some_and(|membership| {
        let member = membership.members.get(&u64::from(number));
        member.is_some_and(|member| member.introduced.is_some())
    });
    is_introduced && (number > nodes || emptied.len() * 2 < nodes as usize)
}

/// Takes a node out, and starts an empty one under its id, which nobody adds.
async fn reuse(cluster: &Cluster, number: u32) -> Result<(), String> {
    if !may_come_back_empty(cluster, number) {
        return Ok(());
    }
    remove(cluster, number, Kind::Remove).await?;
    come_back_empty(cluster, number);
    cluster.watch.took_effect(Kind::ReuseId);
    Ok(())
}

fn come_back_empty(cluster: &Cluster, number: u32) {
    let host = cluster.sim.host(number);
    host.kill_unseen();
    host.disk().wipe();
    if number <= cluster.plan.nodes {
        cluster.fleet.borrow_mut().emptied.insert(number);
    }
    lock(&cluster.seen).wiped.insert(number, None);
    cluster.start(number);
}

/// How long a node has to stop as planned.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Flips a bit in one of the files of a node that has stopped as planned; one that refuses what it finds is replaced.
///
/// Of a log that nobody closed the last batch may rot unnoticed (`docs/formats/log.md`), and a majority then miss what was
/// acknowledged: no log can tell that from a torn write.
async fn rot(cluster: &Cluster, number: u32) -> Result<(), String> {
    let phases = cluster.watch.phases();
    if !stop(cluster, number).await {
        return Ok(());
    }
    let host = cluster.sim.host(number);
    let mut files = host.disk().files();
    cluster.sim.rng(&format!("bit rot {number}")).shuffle(&mut files);
    // The lock has no bytes.
    let flipped = files.iter().find(|file| host.disk().flip_bit(file).is_some());
    cluster.start(number);
    let Some(flipped) = flipped else {
        return Ok(());
    };
    lock(&cluster.seen).rotten.insert(number, None);
    if flipped.as_path() == Path::new(STATE) {
        // A start reads what it needs of it, and the rest is found when it is read.
        lock(&cluster.seen).rots_on.insert(number);
        return replace_rotting(cluster, number, Kind::BitRot, &phases).await;
    }
    let Some(refused) = refusal_of_rot(cluster, number).await? else {
        cluster.tell(format!("operator: node {number} does not need what has rotted"));
        return Ok(());
    };
    cluster.tell(format!(
        "operator: node {number} refuses what has rotted: {refused}"
    ));
    cluster.watch.took_effect_in(Kind::BitRot, &phases);
    cluster.fleet.borrow_mut().gone.insert(number);
    host.kill_unseen();
    take_place_of(cluster, number).await
}

/// A node's state file.
const STATE: &str = "/node/state/state.redb";
/// How long a node may run on a disk that rots, until that is replaced.
pub(super) const ROTTING_MAX: Duration = Duration::from_secs(5);

/// Flips a bit in the state file of a node that runs, and replaces it: when it has stopped for that, as it must where it
/// reads the page, or when it was not met for a while. Nothing leads to it perhaps, or a new page was written over it.
async fn rot_under(cluster: &Cluster, number: u32) -> Result<(), String> {
    let host = cluster.sim.host(number);
    let phases = cluster.watch.phases();
    if !host.is_alive() || host.disk().flip_bit(Path::new(STATE)).is_none() {
        return Ok(());
    }
    lock(&cluster.seen).rotten.insert(number, None);
    replace_rotting(cluster, number, Kind::RotUnderNode, &phases).await
}

/// Replaces a node whose state file has rotted: when it has stopped for that, or was not met for a while.
async fn replace_rotting(cluster: &Cluster, number: u32, kind: Kind, phases: &[Phase]) -> Result<(), String> {
    let host = cluster.sim.host(number);
    let patience = cluster.sim.now() + ROTTING_MAX;
    let found = loop {
        match lock(&cluster.seen).rotten.get(&number).cloned() {
            // It was started anew, and can do without.
            None => break None,
            Some(Some(found)) => break Some(found),
            Some(None) => {}
        }
        if cluster.sim.now() > patience {
            break None;
        }
        env::sleep(PAUSE).await;
    };
    cluster.tell(format!(
        "operator: the disk of node {number} rots, which it found: {found:?}"
    ));
    if found.is_some() {
        cluster.watch.took_effect_in(kind, phases);
    }
    cluster.fleet.borrow_mut().gone.insert(number);
    host.kill_unseen();
    take_place_of(cluster, number).await
}

/// Has a node stop as planned, and its host switched off. Answers whether it did in time; if not, it runs on.
async fn stop(cluster: &Cluster, number: u32) -> bool {
    let host = cluster.sim.host(number);
    lock(&cluster.seen).stops.insert(number, Stop::Asked);
    let patience = cluster.sim.now() + STOP_MAX;
    while lock(&cluster.seen).stops.get(&number) != Some(&Stop::Done) {
        if cluster.sim.now() > patience || cluster.is_healed() {
            let has_begun = lock(&cluster.seen).stops.remove(&number) != Some(Stop::Asked);
            // Who fell meanwhile is started by others.
            if has_begun && host.is_alive() {
                host.kill_unseen();
                cluster.start(number);
            }
            return false;
        }
        env::sleep(PAUSE).await;
    }
    host.kill_unseen();
    true
}

/// What a node says in refusing its files, in which a bit was flipped; nothing, once it has started with them.
async fn refusal_of_rot(cluster: &Cluster, number: u32) -> Result<Option<String>, String> {
    let mut healed_at = None;
    loop {
        let standing = lock(&cluster.seen).rotten.get(&number).cloned();
        match standing {
            None => return Ok(None),
            Some(Some(refused)) => return Ok(Some(refused)),
            Some(None) => {}
        }
        let now = cluster.sim.now();
        if cluster.is_healed() && now > *healed_at.get_or_insert(now) + FINISH_MAX {
            let why = lock(&cluster.seen).stopped.get(&number).cloned();
            return Err(format!(
                "liveness: node {number}, in whose files a bit was flipped, neither starts nor refuses them: {why:?}"
            ));
        }
        env::sleep(PAUSE).await;
    }
}

/// Puts a fresh node in the place of one that is gone for good.
async fn take_place_of(cluster: &Cluster, number: u32) -> Result<(), String> {
    let was_voter = cluster.fleet.borrow().voters.contains(&number);
    remove(cluster, number, Kind::Remove).await?;
    let fresh = add(cluster, Kind::AddLearner).await?;
    if was_voter {
        promote(cluster, fresh, Begun::No).await?;
    }
    Ok(())
}

/// Whether a change may have been begun already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begun {
    No,
    Perhaps,
}

/// Asks until the answer is that it is done. As long as all answers are that nothing was changed, it must not have
/// happened.
async fn repeat(
    cluster: &Cluster,
    kind: Kind,
    mut begun: Begun,
    has_happened: impl Fn(&Membership) -> bool,
    ask: impl AsyncFn(&Client) -> Result<(), Error>,
) -> Result<(), String> {
    let is_untrue = |begun| begun == Begun::No && cluster.record.members().is_some_and(|m| has_happened(&m));
    if is_untrue(begun) {
        begun = Begun::Perhaps;
    }
    lock(&cluster.seen).changing_members = true;
    cluster.excuses.operate(cluster);
    let phases = cluster.watch.phases();
    let client = cluster.client("operator");
    let mut patience = cluster.sim.rng(&format!("operator at {:?}", cluster.sim.now()));
    let mut healed_at = None;
    loop {
        // Some run out of time in the middle.
        let deadline = match patience.one_in(3) && !cluster.is_healed() {
            true => patience.duration(Duration::from_millis(1), ATTEMPT / 8),
            false => ATTEMPT,
        };
        let error = match ask(&client.with_deadline(deadline)).await {
            Ok(()) => {
                lock(&cluster.seen).changing_members = false;
                cluster.excuses.operate(cluster);
                cluster.tell(format!("operator: {kind} is done"));
                cluster.watch.took_effect_in(kind, &phases);
                return Ok(());
            }
            Err(error) => error,
        };
        cluster.tell(format!("operator: {kind}: {error}"));
        if error.may_have_committed() {
            begun = Begun::Perhaps;
        }
        if is_untrue(begun) {
            return Err(untrue(kind, &error));
        }
        if cluster.is_healed() {
            let since = *healed_at.get_or_insert(cluster.sim.now());
            if cluster.sim.now() > since + FINISH_MAX {
                return Err(format!(
                    "liveness: {kind} was not done {FINISH_MAX:?} after the last fault: {error}"
                ));
            }
        }
        env::sleep(PAUSE).await;
        if is_untrue(begun) {
            return Err(untrue(kind, &error));
        }
    }
}

fn untrue(kind: Kind, error: &Error) -> String {
    let what = format!("{kind} has happened, of which was told that nothing was changed: {error}");
    Violation::new(Rule::OperatorTold, what).to_string()
}
