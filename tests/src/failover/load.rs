//! What makes a healthy cluster look dead: processors that are wanted by others, syncs that take long, packets that are lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use quorate_kv::Client;

use crate::chaos::nemesis::can_trace;
use crate::chaos::proxy::{CLIENT, Relays, Weather};
use crate::processes::Processes;

/// Callers that put without a pause.
const WRITERS: usize = 4;
/// How much longer each sync takes, in microseconds.
const SYNC_DELAY_MICROS: u64 = 30_000;

/// Whether there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// None.
    Off,
    /// Busy loops, as many as processors; packets lost and late; writes; and slow syncs where they can be made.
    On {
        /// Whether strace can be used for slow syncs.
        strace: bool,
    },
}

/// A load that goes on until it is dropped.
#[derive(Debug)]
pub(super) struct Running {
    over: Arc<AtomicBool>,
    loops: Vec<JoinHandle<()>>,
    writers: tokio::task::JoinSet<()>,
}

impl Load {
    /// All that can be done here.
    pub fn all() -> Self {
        Self::On { strace: can_trace() }
    }

    pub(super) fn is_on(self) -> bool {
        self != Self::Off
    }

    /// Starts a node, on a slow disk where that is part of it.
    pub(super) fn start_node(self, processes: &mut Processes, id: u64) -> Result<()> {
        if self != (Self::On { strace: true }) {
            return processes.start(id);
        }
        processes.start_with_syncs(id, &format!("delay_enter={SYNC_DELAY_MICROS}"))
    }

    /// Bad weather everywhere.
    pub(super) fn spoil(self, relays: &Relays, ids: &[u64]) {
        if !self.is_on() {
            return;
        }
        let weather = Weather {
            loss_permille: 50,
            jitter: Duration::from_millis(20),
            ..Weather::default()
        };
        for from in ids.iter().chain([&CLIENT]) {
            for to in ids.iter().chain([&CLIENT]).filter(|to| *to != from) {
                relays.set(*from, *to, weather);
            }
        }
    }

    pub(super) fn begin(self, processes: &Processes) -> Result<Running> {
        let over = Arc::new(AtomicBool::new(false));
        let (mut loops, mut writers) = (Vec::new(), tokio::task::JoinSet::new());
        if self.is_on() {
            let processors = std::thread::available_parallelism()?.get();
            loops.extend((0..processors).map(|_| {
                let over = Arc::clone(&over);
                std::thread::spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                })
            }));
            for writer in 0..WRITERS {
                writers.spawn(write(processes.client()?, writer));
            }
        }
        Ok(Running { over, loops, writers })
    }
}

async fn write(client: Client, writer: usize) {
    let mut number = 0u64;
    loop {
        // What does not succeed is of no matter here: it is load.
        let _failed = client
            .put(format!("load-{writer}-{}", number % 1_000), vec![0; 1_000])
            .await;
        number += 1;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.writers.abort_all();
        self.over.store(true, Ordering::Relaxed);
        for busy in self.loops.drain(..) {
            let _panicked = busy.join();
        }
    }
}
