//! Laws over random sequences of operations, alone and at once: after every commit all invariants hold (the
//! store checks them), and a refusal changes nothing.

use proptest::prelude::*;
use quorate_meta::check::{Sweeps, check};
use quorate_meta::{
    Assignment, CreateTopic, DeleteTopic, GrowTopic, Image, IsrUpdate, LeaderUpdate, NewPartition, Partition,
    Replicas,
};

use crate::support::*;

/// A random operation. Numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Action {
    Register {
        broker: u64,
        takeover: bool,
        fenced: bool,
    },
    Fence(u64),
    Unfence(u64),
    Cordon(u64, bool),
    Unregister(u64, bool),
    Create {
        topic: u8,
        partitions: u32,
        factor: u16,
    },
    CreateOn {
        topic: u8,
        replicas: Vec<u64>,
    },
    Grow {
        topic: u8,
        by: u32,
    },
    Add {
        topic: u8,
        at: u32,
        replicas: Vec<u64>,
    },
    Delete(u8),
    Leader {
        partition: usize,
        leader: u64,
        unclean: bool,
        stale: bool,
    },
    Isr {
        partition: usize,
        isr: Vec<u64>,
        recovered: bool,
    },
}

fn action() -> impl Strategy<Value = Action> {
    use Action as A;
    let broker = || 1u64..6;
    let brokers = || prop::collection::vec(1u64..6, 0..4);
    prop_oneof![
        2 => (broker(), any::<bool>(), any::<bool>())
            .prop_map(|(broker, takeover, fenced)| A::Register { broker, takeover, fenced }),
        2 => broker().prop_map(A::Fence),
        3 => broker().prop_map(A::Unfence),
        1 => (broker(), any::<bool>()).prop_map(|(b, c)| A::Cordon(b, c)),
        1 => (broker(), any::<bool>()).prop_map(|(b, f)| A::Unregister(b, f)),
        3 => (0u8..4, 0u32..5, 0u16..4)
            .prop_map(|(topic, partitions, factor)| A::Create { topic, partitions, factor }),
        3 => (0u8..4, brokers()).prop_map(|(topic, replicas)| A::CreateOn { topic, replicas }),
        2 => (0u8..4, 0u32..4).prop_map(|(topic, by)| A::Grow { topic, by }),
        2 => (0u8..4, 0u32..4, brokers()).prop_map(|(topic, at, replicas)| A::Add { topic, at, replicas }),
        1 => (0u8..4).prop_map(A::Delete),
        6 => (any::<usize>(), broker(), any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(partition, leader, unclean, stale)| A::Leader { partition, leader, unclean, stale }),
        6 => (any::<usize>(), brokers(), any::<bool>())
            .prop_map(|(partition, isr, recovered)| A::Isr { partition, isr, recovered }),
    ]
}

fn topic(number: u8) -> quorate_meta::TopicName {
    // Two of them collide.
    name(["a.b", "a_b", "c", "d"][usize::from(number)])
}

fn pick(image: &Image, number: usize) -> Option<&Partition> {
    let count = image.partitions.len();
    image.partitions.values().nth(number.checked_rem(count)?)
}

/// Runs an action; whether it was accepted.
async fn run(meta: &Meta, seen: &Image, action: Action) -> bool {
    let brokers = |numbers: Vec<u64>| numbers.into_iter().map(id).collect::<Vec<_>>();
    match action {
        Action::Register {
            broker,
            takeover,
            fenced,
        } => {
            let mut register = registration(broker);
            register.fenced = fenced;
            let register = if takeover { register.takeover() } else { register };
            meta.register_broker(register).await.is_ok()
        }
        Action::Fence(broker) => meta.fence_broker(id(broker)).await.is_ok(),
        Action::Unfence(broker) => meta.unfence_broker(id(broker)).await.is_ok(),
        Action::Cordon(broker, cordoned) => meta.cordon_broker(id(broker), cordoned).await.is_ok(),
        Action::Unregister(broker, force) => {
            let replicas = if force {
                Replicas::MayDangle
            } else {
                Replicas::MustBeGone
            };
            meta.unregister_broker(id(broker), replicas).await.is_ok()
        }
        Action::Create {
            topic: t,
            partitions,
            factor,
        } => meta
            .create_topic(CreateTopic::new(topic(t), partitions, factor).unwrap())
            .await
            .is_ok(),
        Action::CreateOn { topic: t, replicas } => {
            let assignment = Assignment::new(brokers(replicas));
            meta.create_topic(CreateTopic::manual(topic(t), [assignment]).unwrap())
                .await
                .is_ok()
        }
        Action::Grow { topic: t, by } => {
            let present = seen.topics.get(&topic(t)).map_or(0, |t| t.partitions);
            meta.grow_topics(vec![GrowTopic::new(topic(t), present + by).unwrap()])
                .await
                .is_ok()
        }
        Action::Add {
            topic: t,
            at,
            replicas,
        } => {
            let new = NewPartition::new(topic(t), index(at), Assignment::new(brokers(replicas))).unwrap();
            meta.create_partition(new).await.is_ok()
        }
        Action::Delete(t) => meta
            .delete_topic(DeleteTopic::new(topic(t)).unwrap())
            .await
            .is_ok(),
        Action::Leader {
            partition,
            leader,
            unclean,
            stale,
        } => {
            let Some(partition) = pick(seen, partition) else {
                return false;
            };
            let mut update = LeaderUpdate::new(partition, id(leader));
            if stale {
                update.expected.partition = quorate_meta::PartitionEpoch::new(0);
            }
            let update = if unclean { update.unclean() } else { update };
            meta.update_leader(update).await.is_ok()
        }
        Action::Isr {
            partition,
            isr,
            recovered,
        } => {
            let Some(partition) = pick(seen, partition) else {
                return false;
            };
            let update = IsrUpdate::new(partition, brokers(isr));
            let update = if recovered { update.recovered() } else { update };
            meta.update_isr(update).await.is_ok()
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn one_after_the_other_leaves_every_invariant_and_refusals_change_nothing(
        actions in prop::collection::vec(action(), 1..60),
    ) {
        runtime().block_on(async {
            let (store, meta) = cluster(4).await;
            for action in actions {
                let before = store.image();
                let several_commits = matches!(action, Action::Register { .. } | Action::Unregister(..));
                if !run(&meta, &before, action.clone()).await && !several_commits {
                    assert_eq!(store.image(), before, "refused: {action:?}");
                }
                let violations = check(&store.image(), Sweeps::Complete);
                assert_eq!(violations, [], "after {action:?}");
            }
        });
    }

    #[test]
    fn all_at_once_leaves_every_invariant(
        rounds in prop::collection::vec(prop::collection::vec(action(), 4), 1..16),
    ) {
        runtime().block_on(async {
            let (store, meta) = cluster(4).await;
            for round in rounds {
                let seen = store.image();
                let mut round = round.into_iter().map(|action| run(&meta, &seen, action));
                let mut next = || round.next().expect("each round has four");
                // They yield at every read and before every commit, so that they interleave.
                tokio::join!(next(), next(), next(), next());
                let violations = check(&store.image(), Sweeps::MayBePending);
                assert_eq!(violations, []);
            }
        });
    }
}
