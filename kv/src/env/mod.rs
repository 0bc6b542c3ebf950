//! The seams: whatever has a clock, randomness, a thread or a file passes through here.
//!
//! Everything below the client's API asks this module for time, tasks, random numbers and files, so that
//! the simulator can own them all. The real implementations live here; the simulated ones in the tests crate.
//!
//! Always: no other module of this crate names tokio's clock or spawner, `std::time`'s clocks,
//! `std::thread` or a random source (clippy's disallowed methods hold it so).

pub mod disk;
mod executor;
mod instant;
mod owner;
mod random;
mod runtime;
mod task;
mod time;
pub mod watch;
mod watched;

pub(crate) use disk::ReadOnlyDisk;
pub use disk::{Disk, File, RealDisk};
pub use executor::{BoxTask, Entered, Executor, Span, TaskId, TimerId, crash_point, enter, mark, span};
pub use instant::Instant;
pub use owner::{Owner, OwnerHandle, QueueClosed, WeakOwnerHandle, spawn_owner};
pub use random::{ThreadRng, random_u64, random_u128, thread_rng};
pub use runtime::Runtime;
pub use task::{
    GiveWay, JoinError, JoinHandle, catching, give_way, panic_message, spawn, spawn_blocking, try_spawn,
};
pub use time::{Elapsed, Sleep, Timeout, now, sleep, sleep_until, timeout, timeout_at, wall_clock};
pub use watched::{OnPanic, Watched, watched};

/// Channels: tokio's types are plain data structures that run under any executor.
pub use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
