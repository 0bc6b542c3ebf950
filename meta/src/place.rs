//! Which brokers hold a new partition, and which of them leads.
//!
//! A pure function: the same inputs give the same placement on every machine. Randomness is the caller's
//! seed, arithmetic is on integers. Racks are not looked at yet.
//!
//! Goals, in this order: the topic's replicas are spread evenly; its leaders are; the replicas of everything
//! in `load` are; its leaders are; sets of replicas repeat seldom (the seed decides what is left equal).
//!
//! Always: a partition's replicas are distinct; over brokers that all were there from the topic's beginning,
//! the most and the least loaded differ by at most 1, in replicas of the topic and in leaders of the topic,
//! after every partition and also where a topic grows in several calls.
//!
//! How: each partition takes the brokers with the fewest replicas of the topic. Among them the one that led
//! least leads, and those that led most follow, which keeps who has yet to lead among those with few replicas;
//! that is why the second spread does not break the first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::ids::BrokerId;

/// How many replicas and leaderships a broker has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Replicas, leading or not.
    pub replicas: u64,
    /// Replicas that lead.
    pub leaders: u64,
}

/// What there is to place.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The brokers to choose from, without repetition.
    pub brokers: &'a [BrokerId],
    /// How many partitions.
    pub partitions: u32,
    /// Replicas of each.
    pub replication_factor: usize,
    /// What the topic's present partitions put on each broker.
    pub topic: &'a BTreeMap<BrokerId, Load>,
    /// Decides what the goals leave equal.
    pub seed: u64,
}

/// Fewer brokers than replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{asked} replicas need as many brokers, {brokers} can take one")]
pub struct TooFewBrokers {
    /// Replicas asked for.
    pub asked: usize,
    /// Brokers that can take one.
    pub brokers: usize,
}

/// A broker in the order in which it is taken: everything that the goals compare, then its place.
type Rank<T> = (u64, T, u64, u64, u64, usize);

/// Places partitions, each as its replicas with the leader first, and adds them to `load`, which counts
/// all topics. Costs O(partitions × replication factor × log brokers).
pub fn place(
    request: &Request<'_>,
    load: &mut BTreeMap<BrokerId, Load>,
) -> Result<Vec<Vec<BrokerId>>, TooFewBrokers> {
    let (count, factor) = (request.brokers.len(), request.replication_factor);
    if factor > count {
        return Err(TooFewBrokers {
            asked: factor,
            brokers: count,
        });
    }
    if factor == 0 {
        return Ok(vec![Vec::new(); request.partitions as usize]);
    }
    // Partitions that are added go on from those that are there, or they would repeat their sets.
    let present: u64 = request.topic.values().map(|load| load.replicas).sum();
    let seed = request.seed ^ mix(present);
    let mut spread = Spread::new(request, load, seed);
    let placed = (0..request.partitions)
        .map(|index| spread.next(factor, seed, index))
        .collect::<Vec<_>>();
    for (broker, state) in request.brokers.iter().zip(&spread.brokers) {
        load.insert(*broker, state.all);
    }
    let name = |positions: Vec<usize>| {
        let brokers = positions.into_iter().filter_map(|p| request.brokers.get(p));
        brokers.copied().collect()
    };
    Ok(placed.into_iter().map(name).collect())
}

struct State {
    topic: Load,
    all: Load,
    /// What the seed made of the broker's last use: the last tie-break.
    chance: u64,
}

impl State {
    /// Fewest replicas first, then who led least.
    fn as_leader(&self, position: usize) -> Rank<u64> {
        let (topic, all) = (self.topic, self.all);
        (
            topic.replicas,
            topic.leaders,
            all.leaders,
            all.replicas,
            self.chance,
            position,
        )
    }

    /// Fewest replicas first, then who led most.
    fn as_follower(&self, position: usize) -> Rank<Reverse<u64>> {
        let (topic, all) = (self.topic, self.all);
        (
            topic.replicas,
            Reverse(topic.leaders),
            all.replicas,
            all.leaders,
            self.chance,
            position,
        )
    }
}

/// Invariant: both sets hold every broker, ranked by its present state.
struct Spread {
    brokers: Vec<State>,
    leaders: BTreeSet<Rank<u64>>,
    followers: BTreeSet<Rank<Reverse<u64>>>,
}

impl Spread {
    fn new(request: &Request<'_>, load: &BTreeMap<BrokerId, Load>, seed: u64) -> Self {
        let state = |(position, broker)| State {
            topic: request.topic.get(broker).copied().unwrap_or_default(),
            all: load.get(broker).copied().unwrap_or_default(),
            chance: mix(seed ^ mix(position)),
        };
        let brokers: Vec<State> = (0..).zip(request.brokers).map(state).collect();
        let leaders = brokers.iter().enumerate().map(|(p, b)| b.as_leader(p)).collect();
        let followers = brokers
            .iter()
            .enumerate()
            .map(|(p, b)| b.as_follower(p))
            .collect();
        Self {
            brokers,
            leaders,
            followers,
        }
    }

    /// Positions of the next partition's replicas, the leader first. `factor` is 1 to the number of brokers.
    fn next(&mut self, factor: usize, seed: u64, index: u32) -> Vec<usize> {
        let leader = self.next_leader(factor);
        let mut chosen: Vec<usize> = leader.into_iter().collect();
        let followers = self
            .followers
            .iter()
            .map(|rank| rank.5)
            .filter(|p| Some(*p) != leader);
        chosen.extend(followers.take(factor - 1));
        for position in &chosen {
            let Some(state) = self.brokers.get_mut(*position) else {
                continue;
            };
            self.leaders.remove(&state.as_leader(*position));
            self.followers.remove(&state.as_follower(*position));
            let led = u64::from(Some(*position) == leader);
            for load in [&mut state.topic, &mut state.all] {
                load.replicas += 1;
                load.leaders += led;
            }
            state.chance = mix(seed ^ mix(u64::from(index)) ^ mix(state.chance));
            self.leaders.insert(state.as_leader(*position));
            self.followers.insert(state.as_follower(*position));
        }
        chosen
    }

    /// Who led least among those that fewest replicas allow to be chosen: all that have fewer replicas than
    /// the last one chosen must be, those that have as many may be.
    fn next_leader(&self, factor: usize) -> Option<usize> {
        let most = self.followers.iter().nth(factor - 1)?.0;
        let mut best: Option<&Rank<u64>> = None;
        let mut from = 0;
        while let Some(rank) = self.leaders.range((from, 0, 0, 0, 0, 0)..).next() {
            if rank.0 > most {
                break;
            }
            if best.is_none_or(|best| rank.1 < best.1) {
                best = Some(rank);
            }
            from = rank.0 + 1;
        }
        best.map(|rank| rank.5)
    }
}

/// SplitMix64's finalizer: every bit of the input moves half of the output's.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn brokers(count: u64) -> Vec<BrokerId> {
        (1..=count).map(BrokerId::new).collect()
    }

    fn count(loads: &mut BTreeMap<BrokerId, Load>, placed: &[Vec<BrokerId>]) {
        for replicas in placed {
            let distinct: BTreeSet<_> = replicas.iter().collect();
            assert_eq!(distinct.len(), replicas.len(), "{replicas:?}");
            for (at, replica) in replicas.iter().enumerate() {
                let load = loads.entry(*replica).or_default();
                load.replicas += 1;
                load.leaders += u64::from(at == 0);
            }
        }
    }

    /// The greatest differences, in replicas and in leaders.
    fn spread(brokers: &[BrokerId], loads: &BTreeMap<BrokerId, Load>) -> (u64, u64) {
        let of = |what: fn(&Load) -> u64| {
            let values = brokers.iter().map(|b| loads.get(b).map_or(0, what));
            values.clone().max().unwrap() - values.min().unwrap()
        };
        (of(|l| l.replicas), of(|l| l.leaders))
    }

    fn request<'a>(
        brokers: &'a [BrokerId],
        partitions: u32,
        replication_factor: usize,
        topic: &'a BTreeMap<BrokerId, Load>,
        seed: u64,
    ) -> Request<'a> {
        Request {
            brokers,
            partitions,
            replication_factor,
            topic,
            seed,
        }
    }

    #[test]
    fn a_topic_is_spread_evenly_after_every_partition_for_every_size_of_cluster() {
        // Which brokers are taken depends on how many have few replicas and how many led, not on which they
        // are: one seed per size is all there is to try.
        for n in 1..=24 {
            for factor in 1..=usize::try_from(n).unwrap() {
                let brokers = brokers(n);
                let placed = place(
                    &request(&brokers, 4 * 24 * 2, factor, &BTreeMap::new(), 7),
                    &mut BTreeMap::new(),
                );
                let mut loads = BTreeMap::new();
                for (index, replicas) in placed.unwrap().into_iter().enumerate() {
                    count(&mut loads, &[replicas]);
                    let (replicas, leaders) = spread(&brokers, &loads);
                    assert!(
                        replicas <= 1 && leaders <= 1,
                        "{n} brokers, {factor} replicas, {index}: {loads:?}"
                    );
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_topic_that_grows_in_steps_stays_evenly_spread(
            n in 1u64..12,
            factor in 1usize..6,
            steps in prop::collection::vec((1u32..9, any::<u64>()), 1..9),
        ) {
            let brokers = brokers(n);
            let factor = factor.min(brokers.len());
            let mut topic = BTreeMap::new();
            for (partitions, seed) in steps {
                let placed = place(&request(&brokers, partitions, factor, &topic.clone(), seed), &mut BTreeMap::new());
                count(&mut topic, &placed.unwrap());
                let (replicas, leaders) = spread(&brokers, &topic);
                prop_assert!(replicas <= 1 && leaders <= 1, "{:?}", topic);
            }
        }

        #[test]
        fn many_topics_of_one_partition_are_spread_evenly_together(
            n in 1u64..12,
            factor in 1usize..6,
            seeds in prop::collection::vec(any::<u64>(), 1..60),
        ) {
            let brokers = brokers(n);
            let factor = factor.min(brokers.len());
            let mut all = BTreeMap::new();
            for seed in seeds {
                place(&request(&brokers, 1, factor, &BTreeMap::new(), seed), &mut all).unwrap();
            }
            let (_, leaders) = spread(&brokers, &all);
            prop_assert!(leaders <= 1, "{:?}", all);
        }

        #[test]
        fn the_same_inputs_give_the_same_placement(n in 1u64..9, partitions in 0u32..40, seed: u64) {
            let brokers = brokers(n);
            let once = || place(&request(&brokers, partitions, 1, &BTreeMap::new(), seed), &mut BTreeMap::new());
            prop_assert_eq!(once(), once());
        }
    }

    #[test]
    fn added_partitions_do_not_repeat_the_sets_of_the_present_ones_in_order() {
        // KAFKA-14437: partitions that are added restart the stripe and repeat the sets that exist.
        let brokers = brokers(6);
        let first = place(
            &request(&brokers, 6, 3, &BTreeMap::new(), 1),
            &mut BTreeMap::new(),
        )
        .unwrap();
        let mut topic = BTreeMap::new();
        count(&mut topic, &first);
        let second = place(&request(&brokers, 6, 3, &topic, 1), &mut BTreeMap::new()).unwrap();
        assert_ne!(first, second);
    }

    #[test]
    fn a_newcomer_takes_the_new_partitions_until_it_is_level() {
        let mut topic = BTreeMap::new();
        count(&mut topic, &vec![brokers(2); 3]);
        let placed = place(&request(&brokers(3), 3, 1, &topic, 0), &mut BTreeMap::new()).unwrap();
        assert_eq!(placed, vec![vec![BrokerId::new(3)]; 3]);
    }

    #[test]
    fn more_replicas_than_brokers_are_refused_with_both_figures() {
        let placed = place(
            &request(&brokers(2), 1, 3, &BTreeMap::new(), 0),
            &mut BTreeMap::new(),
        );
        assert_eq!(placed, Err(TooFewBrokers { asked: 3, brokers: 2 }));
    }
}
