//! A snapshot that comes, as far as it has come: the thread that writes it, and what is kept where its stream breaks.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::state_machine::StateMachine;
use crate::env::{Owner, OwnerHandle, oneshot};
use crate::machine::{ReceivedSnapshot, SnapshotSink};

/// A snapshot of which a part has come. Its file goes with it.
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) tag: u64,
    /// So many chunks are written.
    pub(super) chunks: u32,
    pub(super) writer: OwnerHandle<ChunkJob>,
}

/// The one that broke off.
#[derive(Debug, Default)]
pub(super) struct BrokenOff(Mutex<Option<Partial>>);

impl BrokenOff {
    /// The one of this tag. Another is of no more use.
    pub(super) fn take(&self, tag: u64) -> Option<Partial> {
        self.partial().take().filter(|partial| partial.tag == tag)
    }

    pub(super) fn forget(&self, tag: u64, chunks: u32) {
        let mut partial = self.partial();
        if partial
            .as_ref()
            .is_some_and(|p| (p.tag, p.chunks) == (tag, chunks))
        {
            *partial = None;
        }
    }

    pub(super) fn partial(&self) -> MutexGuard<'_, Option<Partial>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the chunks of one.
pub(super) struct ChunkWriter {
    pub(super) machine: StateMachine,
    pub(super) sink: Option<SnapshotSink>,
}

#[derive(Debug)]
pub(super) enum ChunkJob {
    Write(Bytes, oneshot::Sender<Result<(), String>>),
    Finish(oneshot::Sender<Result<ReceivedSnapshot, String>>),
}

pub(super) enum ChunkEffect {
    Wrote(Result<(), String>, oneshot::Sender<Result<(), String>>),
    Finished(
        Result<ReceivedSnapshot, String>,
        oneshot::Sender<Result<ReceivedSnapshot, String>>,
    ),
}

impl ChunkWriter {
    fn write(&mut self, chunk: &[u8]) -> Result<(), String> {
        if self.sink.is_none() {
            self.sink = Some(self.machine.sink().map_err(|e| e.to_string())?);
        }
        match &mut self.sink {
            Some(sink) => sink.write(chunk).map_err(|e| e.to_string()),
            None => Err("no file to write to".to_owned()),
        }
    }

    fn complete(&mut self) -> Result<ReceivedSnapshot, String> {
        let sink = self.sink.take().ok_or("the snapshot has no chunk")?;
        sink.finish().map_err(|e| e.to_string())
    }
}

impl Owner for ChunkWriter {
    type Job = ChunkJob;
    type Effects = Vec<ChunkEffect>;

    fn work(&mut self, batch: &mut Vec<ChunkJob>) -> Vec<ChunkEffect> {
        let jobs = batch.drain(..);
        jobs.map(|job| match job {
            ChunkJob::Write(chunk, done) => ChunkEffect::Wrote(self.write(&chunk), done),
            ChunkJob::Finish(done) => ChunkEffect::Finished(self.complete(), done),
        })
        .collect()
    }

    fn publish(&mut self, effects: Vec<ChunkEffect>) {
        for effect in effects {
            match effect {
                ChunkEffect::Wrote(result, done) => {
                    let _ = done.send(result);
                }
                ChunkEffect::Finished(result, done) => {
                    let _ = done.send(result);
                }
            }
        }
    }
}
