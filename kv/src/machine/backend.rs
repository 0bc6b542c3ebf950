//! redb's storage, over a file of the disk seam.
//!
//! Always: redb sees the length and bytes of the file as they are; after [`Retire::retire`] nothing is written
//! to the file any more.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::StorageBackend;

use crate::env::File;

/// The file as redb sees it.
#[derive(Debug)]
pub(super) struct Backend {
    file: Arc<dyn File>,
    retired: Retire,
}

/// Ends all writing to a file that another has replaced, so that its closing, which the last reader brings
/// about on a thread of its own, does no I/O.
#[derive(Clone, Debug, Default)]
pub(super) struct Retire(Arc<AtomicBool>);

impl Retire {
    pub(super) fn retire(&self) {
        // Nothing else is published by the flag, and a late write to a replaced file harms nobody.
        self.0.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) {
            Err(io::Error::other("the file was replaced by a snapshot"))
        } else {
            Ok(())
        }
    }
}

impl Backend {
    pub(super) fn new(file: Arc<dyn File>) -> (Self, Retire) {
        let retired = Retire::default();
        let backend = Self {
            file,
            retired: retired.clone(),
        };
        (backend, retired)
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.retired.check()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.retired.check()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.retired.check()?;
        self.file.write_all_at(data, offset)
    }
}
