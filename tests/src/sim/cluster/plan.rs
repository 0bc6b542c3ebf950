//! What a run is like: everything that is drawn from its seed before it begins.

use std::time::Duration;

use quorate_kv::node::{Settings, Timing};
use quorate_transport::memory::LinkSettings;

use crate::sim::{DiskProfile, Rng};

/// A run's parameters.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many nodes.
    pub nodes: u32,
    /// How many clients.
    pub clients: u32,
    /// How long faults happen.
    pub faulty: Duration,
    /// How many keys the clients share.
    pub keys: u64,
    /// How long a client pauses between operations at most.
    pub pause_max: Duration,
    /// The nodes' settings.
    pub settings: Settings,
    /// The network's links at first.
    pub links: LinkSettings,
    /// The disks.
    pub disk: DiskProfile,
    /// How fast each node's clocks run, in millionths.
    pub clock_rates: Vec<u64>,
    /// Which faults may happen.
    pub faults: Faults,
    /// How long it takes on average from one fault to the next.
    pub fault_every: Duration,
}

/// Which faults a run has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    /// Processes die.
    pub kill: bool,
    /// Hosts lose power, one, some or all at once.
    pub power: bool,
    /// Hosts stand still.
    pub pause: bool,
    /// Links are cut, in groups, one by one or in one direction.
    pub cut: bool,
    /// Hosts crash at a step of their durability.
    pub crash_points: bool,
    /// The disk answers a step with an error.
    pub disk_errors: bool,
    /// The disk takes its time at a step.
    pub disk_stalls: bool,
}

impl Faults {
    /// None.
    pub const NONE: Faults = Faults {
        kill: false,
        power: false,
        pause: false,
        cut: false,
        crash_points: false,
        disk_errors: false,
        disk_stalls: false,
    };
}

impl Plan {
    /// The plan that a seed draws.
    pub fn of_seed(seed: u64) -> Self {
        let mut random = Rng::new(seed).fork("plan");
        let nodes = *random.pick(&[1, 3, 3, 3, 3, 5]);
        let heartbeat = Duration::from_millis(*random.pick(&[20, 50, 100, 200]));
        let mut settings = Settings::default();
        settings.timing = Timing {
            heartbeat,
            election_timeout_min: heartbeat * 10,
            election_timeout_max: heartbeat * 20,
        };
        settings.snapshot_entries = *random.pick(&[10, 50, 500, 50_000]);
        settings.log_entries_kept = *random.pick(&[0, 5, 100, 1000]);
        settings.log_segment_bytes = 65_536;
        settings.log_cache_bytes = *random.pick(&[0, 4_096, 1 << 20]);
        settings.state_cache_bytes = 1 << 20;
        settings.durable_interval = random.duration(Duration::from_millis(50), Duration::from_secs(5));
        settings.proposals_in_flight = *random.pick(&[1, 4, 64]);

        let mut faults = Faults::NONE;
        // One run in ten has no faults at all, one in ten a single kind.
        let kinds: [fn(&mut Faults) -> &mut bool; 7] = [
            |f| &mut f.kill,
            |f| &mut f.power,
            |f| &mut f.pause,
            |f| &mut f.cut,
            |f| &mut f.crash_points,
            |f| &mut f.disk_errors,
            |f| &mut f.disk_stalls,
        ];
        match random.below(10) {
            0 => {}
            1 => *random.pick(&kinds)(&mut faults) = true,
            _ => {
                for kind in kinds {
                    *kind(&mut faults) = random.one_in(2);
                }
            }
        }
        let latency = Duration::from_micros(*random.pick(&[50, 500, 5_000]));
        let links = LinkSettings {
            latency_min: latency,
            latency_max: latency * *random.pick(&[1, 2, 20]),
            loss_per_million: *random.pick(&[0, 0, 1_000, 20_000]),
            retransmission: latency * 3,
            ..LinkSettings::default()
        };
        let disk = DiskProfile {
            sync_max: Duration::from_micros(*random.pick(&[300, 3_000, 20_000])),
            stall_permille: *random.pick(&[0, 0, 2]),
            stall_max: Duration::from_millis(500),
            garbage_in: if random.one_in(2) {
                vec!["/log/"]
            } else {
                Vec::new()
            },
            ..DiskProfile::default()
        };
        Plan {
            nodes,
            clients: *random.pick(&[2, 4, 8]),
            faulty: random.duration(Duration::from_secs(5), Duration::from_secs(25)),
            keys: *random.pick(&[1, 5, 100]),
            pause_max: Duration::from_millis(*random.pick(&[5, 50, 200])),
            settings,
            links,
            disk,
            clock_rates: (0..nodes)
                .map(|_| {
                    if random.one_in(2) {
                        1_000_000
                    } else {
                        random.between(950_000, 1_050_000)
                    }
                })
                .collect(),
            faults,
            fault_every: Duration::from_millis(*random.pick(&[300, 1_000, 3_000])),
        }
    }
}

/// The links once all faults have ended.
pub(super) fn good_links() -> LinkSettings {
    LinkSettings::latency(Duration::from_micros(200), Duration::from_micros(400))
}

/// The disks once all faults have ended.
pub(super) fn good_disk() -> DiskProfile {
    DiskProfile::default()
}
