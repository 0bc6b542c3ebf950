//! Random numbers: for jitter, and for ids that are made before a proposal.

use std::convert::Infallible;
use std::rc::Rc;

use super::executor::{Executor, current};

/// A random number.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub fn random_u64() -> u64 {
    match current() {
        Some(executor) => executor.random_u64(),
        None => rand::random(),
    }
}

/// A random number that no other will ever be.
pub fn random_u128() -> u128 {
    u128::from(random_u64()) << 64 | u128::from(random_u64())
}

/// A source of random numbers, of this thread or of the simulator's seed.
pub struct ThreadRng(Source);

enum Source {
    Thread(rand::rngs::ThreadRng),
    Simulated(Rc<dyn Executor>),
}

/// The source that belongs to whoever runs this task. It does not leave the thread.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub fn thread_rng() -> ThreadRng {
    ThreadRng(match current() {
        Some(executor) => Source::Simulated(executor),
        None => Source::Thread(rand::rng()),
    })
}

impl std::fmt::Debug for ThreadRng {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThreadRng").finish_non_exhaustive()
    }
}

impl rand::TryRng for ThreadRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        match &mut self.0 {
            Source::Thread(rng) => rng.try_next_u32(),
            // The upper half: as good as the lower in every generator, and better in some.
            Source::Simulated(executor) => Ok((executor.random_u64() >> 32) as u32),
        }
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        match &mut self.0 {
            Source::Thread(rng) => rng.try_next_u64(),
            Source::Simulated(executor) => Ok(executor.random_u64()),
        }
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        match &mut self.0 {
            Source::Thread(rng) => rng.try_fill_bytes(bytes),
            Source::Simulated(executor) => {
                for chunk in bytes.chunks_mut(8) {
                    chunk.copy_from_slice(&executor.random_u64().to_le_bytes()[..chunk.len()]);
                }
                Ok(())
            }
        }
    }
}
