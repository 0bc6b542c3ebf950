//! Registers, fences, unfences and unregisters brokers, and moves what they led.
//!
//! Fence first, sweep after: once a broker's row says that it is fenced, no ISR takes it in, because every
//! such change pins the row. So a sweep that reads at a later revision sees every partition that the broker
//! is in sync for, and none appears behind its back. Each operation here therefore demands that the broker
//! is fenced before it counts on having seen all its partitions; the client runs the steps in that order.
//!
//! Always: a new incarnation begins with no place in any ISR that has another member; an epoch belongs to one
//! incarnation; the last member of an ISR stays there, without leading, until it may lead again.

use std::collections::{BTreeMap, BTreeSet};

use quorate_kv::model::{Limits, Op, ReadOp, Revision};

pub use super::target::{Flags, SetFlags, Target};
use super::{
    Answer, Context, Decision, Operation, Pins, Plan, Step, read_all, replace, sweep_partitions_max,
};
use crate::error::{Error, Size, TooLarge};
use crate::ids::{BrokerEpoch, BrokerId, Incarnation};
use crate::image::Image;
use crate::keys::Keys;
use crate::refusal::{Reason, Refusals};
use crate::rows::{Broker, Capacity, Endpoint, EpochOf, InvalidEndpoint, Partition};
use crate::transition::{self, LeaderSet};

/// A broker that registers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegisterBroker {
    /// Its id.
    pub id: BrokerId,
    /// Its process. The same again amends the registration, so that a request may be repeated whose answer was lost.
    pub incarnation: Incarnation,
    /// Where it is reached; at least one, each listener once.
    pub endpoints: Vec<Endpoint>,
    /// Its failure domain.
    pub rack: Option<String>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// What it can hold.
    pub capacity: Capacity,
    /// Whether a new incarnation begins fenced. False by default, as long as nothing but its operator keeps
    /// a broker alive; with liveness leases it will begin fenced and be unfenced by its first keep-alive.
    pub fenced: bool,
    /// What to do when another incarnation is registered and not fenced.
    pub takeover: Takeover,
}

/// Whether a new incarnation may take the id of one that is not fenced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Takeover {
    /// No: the other may be a second machine with the same id, alive. Once it is fenced, it is taken over.
    #[default]
    OnlyFenced,
    /// Yes: the caller knows that the other is gone. It is fenced first.
    Always,
}

impl RegisterBroker {
    /// A broker with one endpoint, `host:port` or `LISTENER://host:port`, not fenced, as a new incarnation. Fails for
    /// text that is no endpoint.
    ///
    /// Two requests made here are two incarnations: to repeat one whose answer was lost, clone it. A process that starts
    /// again registers as a new incarnation, which is refused while the one before is not fenced, unless it says
    /// [`takeover`](Self::takeover).
    pub fn new(
        id: impl Into<BrokerId>,
        endpoint: impl TryInto<Endpoint, Error: Into<InvalidEndpoint>>,
    ) -> Result<Self, InvalidEndpoint> {
        let broker = Self {
            id: id.into(),
            incarnation: Incarnation::random(),
            endpoints: Vec::new(),
            rack: None,
            labels: BTreeMap::new(),
            capacity: Capacity::default(),
            fenced: false,
            takeover: Takeover::OnlyFenced,
        };
        broker.endpoint(endpoint)
    }

    /// The same with one more endpoint, of another listener. Fails for text that is no endpoint.
    pub fn endpoint(
        mut self,
        endpoint: impl TryInto<Endpoint, Error: Into<InvalidEndpoint>>,
    ) -> Result<Self, InvalidEndpoint> {
        self.endpoints.push(endpoint.try_into().map_err(Into::into)?);
        Ok(self)
    }

    /// The same as this incarnation: that of the process, where it registers again.
    #[must_use]
    pub fn incarnation(mut self, incarnation: Incarnation) -> Self {
        self.incarnation = incarnation;
        self
    }

    /// The same with a label.
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// The same with a rack.
    #[must_use]
    pub fn rack(mut self, rack: impl Into<String>) -> Self {
        self.rack = Some(rack.into());
        self
    }

    /// The same, fenced at first.
    #[must_use]
    pub fn fenced(mut self) -> Self {
        self.fenced = true;
        self
    }

    /// The same, taking the id over also from an incarnation that is not fenced.
    #[must_use]
    pub fn takeover(mut self) -> Self {
        self.takeover = Takeover::Always;
        self
    }
}

/// A broker that is registered now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Registered {
    /// Its row. Its epoch goes with every request of this incarnation.
    pub broker: Broker,
    /// What the registration was.
    pub registration: Registration,
    /// How many partitions the same commit changed, because the incarnation before was in their ISR.
    pub partitions_changed: usize,
}

/// What a registration was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registration {
    /// The id was not registered.
    New,
    /// A new incarnation of a registered id.
    Restarted,
    /// The same incarnation, with other endpoints, rack, labels or capacity.
    Amended,
    /// The same incarnation, with nothing new.
    Unchanged,
}

impl Answer for Vec<Registered> {
    fn committed(&mut self, revision: Revision) {
        for Registered {
            broker, registration, ..
        } in self
        {
            match registration {
                Registration::New | Registration::Restarted => {
                    broker.revision = revision;
                    broker.epoch = BrokerEpoch::new(revision);
                }
                Registration::Amended => broker.revision = revision,
                Registration::Unchanged => {}
            }
        }
    }
}

/// Registers brokers, all or none.
#[derive(Debug, Clone)]
pub struct RegisterBrokers(pub Vec<RegisterBroker>);

impl RegisterBrokers {
    /// The brokers whose id another incarnation has.
    fn restarted<'a>(&'a self, image: &Image) -> BTreeSet<BrokerId> {
        let other = |register: &&'a RegisterBroker| {
            let row = image.brokers.get(&register.id);
            row.is_some_and(|row| row.incarnation != register.incarnation)
        };
        self.0.iter().filter(other).map(|register| register.id).collect()
    }
}

impl Operation for RegisterBrokers {
    type Answer = Vec<Registered>;

    fn check(&self, _: &Keys, limits: &Limits) -> Result<(), TooLarge> {
        // A pin and a write each.
        let (asked, limit) = ((self.0.len() as u64).saturating_mul(2), limits.txn_ops_max);
        match asked > limit as u64 {
            true => Err(TooLarge::operations(asked, limit)),
            false => Ok(()),
        }
    }

    fn reads(&self, keys: &Keys) -> Vec<ReadOp> {
        let ids: BTreeSet<_> = self.0.iter().map(|register| register.id).collect();
        ids.into_iter().map(|id| ReadOp::Get(keys.broker(id))).collect()
    }

    fn more_reads(&self, image: &Image) -> Vec<ReadOp> {
        if self.restarted(image).is_empty() {
            return Vec::new();
        }
        // Nobody indexes partitions by broker in the store: the rows hold each fact once.
        let keys = image.keys();
        vec![read_all(keys.brokers()), read_all(keys.partitions())]
    }

    fn decide(&self, image: &Image, context: &Context) -> Result<Decision<Self::Answer>, Error> {
        self.check(image.keys(), &context.limits)?;
        let mut refusals = Refusals::default();
        let mut seen = BTreeSet::new();
        let mut fences = Vec::new();
        for register in &self.0 {
            let broker = register.id;
            for reason in check_registration(register, !seen.insert(broker)) {
                refusals.broker(broker, reason);
            }
            match (unfenced(image, register), register.takeover) {
                (None, _) => {}
                (Some(row), Takeover::Always) => fences.push(Step::SetFlags(SetFlags {
                    target: row.into(),
                    flags: Flags::FENCE,
                })),
                (Some(row), Takeover::OnlyFenced) => {
                    let (incarnation, epoch) = (row.incarnation, row.epoch);
                    refusals.broker(broker, Reason::DuplicateRegistration { incarnation, epoch });
                }
            }
        }
        // Nobody is fenced for what is refused by what was read.
        refusals.into_result()?;
        if !fences.is_empty() {
            return Ok(Decision::First(fences));
        }

        let mut pins = Pins::of(image);
        let mut then = Vec::new();
        let mut answer: Vec<Registered> = Vec::with_capacity(self.0.len());
        for register in &self.0 {
            pins.broker_in(image, register.id);
            let present = image.brokers.get(&register.id);
            let (broker, registration) = registered(present, register, image, context);
            let epoch = match registration {
                Registration::New | Registration::Restarted => Some(EpochOf::Begins),
                Registration::Amended => Some(EpochOf::Continues),
                Registration::Unchanged => None,
            };
            if let Some(epoch) = epoch {
                then.push(Op::put(image.keys().broker(broker.id), broker.encode(epoch)));
            }
            answer.push(Registered {
                broker,
                registration,
                partitions_changed: 0,
            });
        }

        let restarted = self.restarted(image);
        let active: BTreeSet<BrokerId> = answer
            .iter()
            .filter(|r| r.broker.is_active())
            .map(|r| r.broker.id)
            .collect();
        let affected = image
            .partitions
            .values()
            .filter(|p| p.isr.iter().any(|member| restarted.contains(member)));
        for before in affected.filter(|_| !restarted.is_empty()) {
            let Some(after) = restart(image, before, &restarted, &active, context) else {
                continue;
            };
            if let Some(leader) = after.leader.filter(|leader| !restarted.contains(leader)) {
                pins.broker_in(image, leader);
            }
            replace(&mut pins, &mut then, before, &after);
            for registered in &mut answer {
                let id = registered.broker.id;
                registered.partitions_changed +=
                    usize::from(restarted.contains(&id) && before.isr.contains(&id));
            }
        }
        match Plan::new(pins, then, answer, &context.limits) {
            Ok(plan) => Ok(Decision::Commit(plan)),
            Err(
                too_large @ Error::TooLarge(TooLarge {
                    what: Size::Operations | Size::Bytes,
                    ..
                }),
            ) => {
                // Sweeps in steps take them out of ISRs where others are in sync, and leave less for this commit.
                let to_sweep = |id: &BrokerId| swept(image, image, *id, context).next().is_some();
                let sweeps: Vec<_> = restarted
                    .iter()
                    .copied()
                    .filter(to_sweep)
                    .map(Step::Sweep)
                    .collect();
                match sweeps.is_empty() {
                    true => Err(too_large),
                    false => Ok(Decision::First(sweeps)),
                }
            }
            Err(other) => Err(other),
        }
    }
}

fn check_registration(register: &RegisterBroker, repeated: bool) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if repeated {
        reasons.push(Reason::Repeated);
    }
    if register.endpoints.is_empty() {
        reasons.push(Reason::NoEndpoint);
    }
    let mut listeners = BTreeSet::new();
    for endpoint in &register.endpoints {
        if !listeners.insert(endpoint.listener()) {
            let listener = endpoint.listener().to_owned();
            reasons.push(Reason::RepeatedListener { listener });
        }
    }
    reasons
}

/// The row of another incarnation that has the id and is not fenced.
fn unfenced<'a>(image: &'a Image, register: &RegisterBroker) -> Option<&'a Broker> {
    let row = image.brokers.get(&register.id)?;
    (row.incarnation != register.incarnation && !row.fenced).then_some(row)
}

/// The row of a broker that registers. A cordon outlives a restart: its operator has not lifted it.
fn registered(
    present: Option<&Broker>,
    register: &RegisterBroker,
    image: &Image,
    context: &Context,
) -> (Broker, Registration) {
    let same = present.filter(|row| row.incarnation == register.incarnation);
    let row = Broker {
        id: register.id,
        epoch: same.map_or(BrokerEpoch::new(image.revision), |row| row.epoch),
        incarnation: register.incarnation,
        endpoints: register.endpoints.clone(),
        rack: register.rack.clone(),
        labels: register.labels.clone(),
        capacity: register.capacity,
        fenced: same.map_or(register.fenced, |row| row.fenced),
        shutting_down: same.is_some_and(|row| row.shutting_down),
        cordoned: present.is_some_and(|row| row.cordoned),
        draining: present.is_some_and(|row| row.draining),
        registered_at: same.map_or(context.now, |row| row.registered_at),
        modified_at: same.map_or(context.now, |row| row.modified_at),
        revision: same.map_or(image.revision, |row| row.revision),
    };
    match (present, same) {
        (None, _) => (row, Registration::New),
        (Some(_), None) => (row, Registration::Restarted),
        (Some(_), Some(before)) if *before == row => (row, Registration::Unchanged),
        (Some(_), Some(before)) => {
            let modified_at = context.now.max(before.modified_at);
            (Broker { modified_at, ..row }, Registration::Amended)
        }
    }
}

/// A partition after brokers in its ISR began new incarnations, `active` of them ready to lead at once: they
/// may have lost their tails, so each leaves the ISR unless nobody else is in it.
fn restart(
    image: &Image,
    before: &Partition,
    restarted: &BTreeSet<BrokerId>,
    active: &BTreeSet<BrokerId>,
    context: &Context,
) -> Option<Partition> {
    let mut after = before.clone();
    for broker in restarted {
        if after.isr != [*broker] {
            after.isr.retain(|member| member != broker);
        }
    }
    let others = |broker: BrokerId| !restarted.contains(&broker) && image.ineligible(broker).is_none();
    after.leader = transition::elect(&after, others);
    if after.leader.is_none() {
        after.leader = transition::elect(&after, |broker| active.contains(&broker));
    }
    let again = before.leader.is_some_and(|leader| restarted.contains(&leader));
    let leader = if again {
        LeaderSet::Anew
    } else {
        LeaderSet::IfDifferent
    };
    transition::next(before, after, leader, context.now)
}

/// A broker after a change of its flags.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChangedBroker {
    /// Its row.
    pub broker: Broker,
    /// Whether the row was changed; where not, it was so already.
    pub changed: bool,
    /// How many partitions changed with it.
    pub partitions_changed: usize,
}

impl Answer for ChangedBroker {
    fn committed(&mut self, revision: Revision) {
        if self.changed {
            self.broker.revision = revision;
        }
    }
}

impl Operation for SetFlags {
    type Answer = ChangedBroker;

    fn reads(&self, keys: &Keys) -> Vec<ReadOp> {
        vec![ReadOp::Get(keys.broker(self.target.id))]
    }

    fn decide(&self, image: &Image, context: &Context) -> Result<Decision<ChangedBroker>, Error> {
        let before = self.target.find(image)?;
        let mut broker = Broker {
            fenced: before.fenced || self.flags.fence,
            // A fenced broker has left: its controlled shutdown is over.
            shutting_down: before.shutting_down && !self.flags.fence,
            cordoned: self.flags.cordoned.unwrap_or(before.cordoned),
            ..before.clone()
        };
        let mut pins = Pins::of(image);
        let mut then = Vec::new();
        let changed = broker != *before;
        if changed {
            broker.modified_at = context.now.max(before.modified_at);
            pins.broker(before);
            then.push(Op::put(
                image.keys().broker(broker.id),
                broker.encode(EpochOf::Continues),
            ));
        }
        let answer = ChangedBroker {
            broker,
            changed,
            partitions_changed: 0,
        };
        Ok(Decision::Commit(Plan::new(pins, then, answer, &context.limits)?))
    }
}

/// What a step of a sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swept {
    /// How many partitions it changed.
    pub partitions_changed: usize,
    /// Whether there are more to change.
    pub more: bool,
}

impl Answer for Swept {
    fn committed(&mut self, _: Revision) {}
}

/// Brings partitions in line with a broker's flags, as many as one transaction takes: takes a broker that may
/// not be in sync out of ISRs and leaderships, lets one that may lead take over what nobody leads.
///
/// Complete when it answers that there is no more, and can be begun anew at any time by anyone.
#[derive(Debug, Clone, Copy)]
pub struct Sweep {
    /// The broker.
    pub broker: BrokerId,
}

impl Operation for Sweep {
    type Answer = Swept;

    fn reads(&self, keys: &Keys) -> Vec<ReadOp> {
        vec![read_all(keys.brokers()), read_all(keys.partitions())]
    }

    fn decide(&self, image: &Image, context: &Context) -> Result<Decision<Swept>, Error> {
        let mut pins = Pins::of(image);
        // As long as the broker's row stays as it is, no ISR takes it in.
        pins.broker_in(image, self.broker);
        let mut then = Vec::new();
        let most = sweep_partitions_max(&context.limits);
        let mut more = false;
        for (before, after) in swept(image, image, self.broker, context) {
            if then.len() == most {
                more = true;
                break;
            }
            if let Some(leader) = after.leader {
                pins.broker_in(image, leader);
            }
            replace(&mut pins, &mut then, before, &after);
        }
        let answer = Swept {
            partitions_changed: then.len(),
            more,
        };
        Ok(Decision::Commit(Plan::new(pins, then, answer, &context.limits)?))
    }
}

/// The partitions that a sweep changes. `brokers` has the flags to go by.
fn swept<'a>(
    image: &'a Image,
    brokers: &'a Image,
    broker: BrokerId,
    context: &'a Context,
) -> impl Iterator<Item = (&'a Partition, Partition)> {
    let ineligible = brokers.ineligible(broker).is_some();
    let concerned = image.partitions.values().filter(move |p| p.isr.contains(&broker));
    concerned.filter_map(move |before| {
        let acceptable = |member| brokers.ineligible(member).is_none();
        let after = if ineligible {
            transition::without(before, broker, acceptable, context.now)
        } else {
            transition::with(before, acceptable, context.now)
        };
        after.map(|after| (before, after))
    })
}

/// Unfences a broker and, in the same commit, lets it lead what nobody leads: as many partitions as one
/// transaction takes, a [`Sweep`] the rest. A sweep that takes it out of ISRs and is not complete comes first.
#[derive(Debug, Clone, Copy)]
pub struct Unfence {
    /// The broker.
    pub target: Target,
}

impl Operation for Unfence {
    type Answer = ChangedBroker;

    fn reads(&self, keys: &Keys) -> Vec<ReadOp> {
        vec![read_all(keys.brokers()), read_all(keys.partitions())]
    }

    fn decide(&self, image: &Image, context: &Context) -> Result<Decision<ChangedBroker>, Error> {
        let before = self.target.find(image)?;
        if !before.fenced {
            let answer = ChangedBroker {
                broker: before.clone(),
                changed: false,
                partitions_changed: 0,
            };
            let plan = Plan::new(Pins::of(image), Vec::new(), answer, &context.limits)?;
            return Ok(Decision::Commit(plan));
        }
        if swept(image, image, before.id, context).next().is_some() {
            return Ok(Decision::First(vec![Step::Sweep(before.id)]));
        }
        let broker = Broker {
            fenced: false,
            modified_at: context.now.max(before.modified_at),
            ..before.clone()
        };
        let mut brokers = Image::under(image.keys().clone(), image.revision);
        brokers.brokers = image.brokers.clone();
        brokers.brokers.insert(broker.id, broker.clone());
        let mut pins = Pins::of(image);
        pins.broker(before);
        let mut then = vec![Op::put(
            image.keys().broker(broker.id),
            broker.encode(EpochOf::Continues),
        )];
        let mut partitions_changed = 0;
        let most = sweep_partitions_max(&context.limits);
        for (before, after) in swept(image, &brokers, broker.id, context).take(most) {
            if let Some(leader) = after.leader {
                pins.broker_in(image, leader);
            }
            replace(&mut pins, &mut then, before, &after);
            partitions_changed += 1;
        }
        let answer = ChangedBroker {
            broker,
            changed: true,
            partitions_changed,
        };
        Ok(Decision::Commit(Plan::new(pins, then, answer, &context.limits)?))
    }
}

/// Whether a broker may be unregistered while it holds replicas.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Replicas {
    /// No: move them first.
    #[default]
    MustBeGone,
    /// Yes: they stay in the partitions' replicas, dead, until a reassignment replaces them.
    MayDangle,
}

/// Unregisters a broker, once it is fenced, takes no replicas, and is swept. Answers its row as it was then.
#[derive(Debug, Clone, Copy)]
pub struct Unregister {
    /// The broker.
    pub target: Target,
    /// Whether it may hold replicas.
    pub replicas: Replicas,
}

impl Operation for Unregister {
    type Answer = ChangedBroker;

    fn reads(&self, keys: &Keys) -> Vec<ReadOp> {
        vec![read_all(keys.brokers()), read_all(keys.partitions())]
    }

    fn decide(&self, image: &Image, context: &Context) -> Result<Decision<ChangedBroker>, Error> {
        let broker = self.target.find(image)?;
        let held = image
            .partitions
            .values()
            .filter(|p| p.replicas.contains(&broker.id))
            .count() as u64;
        if held > 0 && self.replicas == Replicas::MustBeGone {
            return Err(self.target.refused(Reason::HasReplicas { count: held }));
        }
        // Fenced, it joins no ISR; cordoned, it gets no replica: what was read stays all there is.
        if !broker.fenced || !broker.cordoned {
            return Ok(Decision::First(vec![Step::SetFlags(SetFlags {
                target: self.target,
                flags: Flags::RETIRE,
            })]));
        }
        if swept(image, image, broker.id, context).next().is_some() {
            return Ok(Decision::First(vec![Step::Sweep(broker.id)]));
        }
        let mut pins = Pins::of(image);
        pins.broker(broker);
        let answer = ChangedBroker {
            broker: broker.clone(),
            changed: false,
            partitions_changed: 0,
        };
        let then = vec![Op::delete(image.keys().broker(broker.id))];
        Ok(Decision::Commit(Plan::new(pins, then, answer, &context.limits)?))
    }
}
