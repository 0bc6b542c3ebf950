//! The scrubber: reads the whole state file from the disk, part by part, and finds what has rotted where nobody reads.
//!
//! Always: it changes nothing, and holds no file open between two steps; a pass that has ended has read every page that
//! stood in the file from its beginning to its end.

use std::sync::{Arc, Weak};

use crate::fault::Fault;
use crate::machine::file::database::OpenState;
use crate::machine::reading::published::LastPublished;
use crate::machine::reading::read::Reader;
use crate::scrub::Scrubbed;

/// What one step reads at most: a few milliseconds of a slow disk, so that others do not wait for long.
const STEP_BYTES: usize = 256 * 1024;

/// See the module. Its steps block.
#[derive(Debug)]
pub struct Scrubber {
    shared: LastPublished,
    /// The file of the pass. A snapshot may replace it.
    state: Weak<OpenState>,
    /// What is read next.
    offset: u64,
    buffer: Vec<u8>,
}

impl Reader {
    /// A scrubber of the state file, at the beginning of a pass.
    pub fn scrubber(&self) -> Scrubber {
        Scrubber {
            shared: self.shared.clone(),
            state: Weak::new(),
            offset: 0,
            buffer: Vec::new(),
        }
    }
}

impl Scrubber {
    /// Reads the next part of the file. Once a pass is complete the next step begins another; where a snapshot has replaced
    /// the file, the pass begins anew on that one.
    ///
    /// # Errors
    /// What is in the file is not what was written to it, in a page that is in use or was; or the disk failed.
    pub fn step(&mut self) -> Result<Scrubbed, Fault> {
        let state = Arc::clone(&self.shared.get().state.base.state);
        if !self.state.ptr_eq(&Arc::downgrade(&state)) {
            self.state = Arc::downgrade(&state);
            self.offset = 0;
        }
        self.buffer.resize(STEP_BYTES, 0);
        let scrubbed = state
            .backend
            .scrub(self.offset, &mut self.buffer)
            .map_err(|error| {
                let file = &state.file;
                file.rot()
                    .unwrap_or_else(|| Fault::disk("reading", file.name(), error))
            })?;
        // The next step finds the file that has replaced this one.
        let scrubbed = scrubbed.unwrap_or(Scrubbed { bytes: 0, left: 1 });
        self.offset = match scrubbed.left {
            0 => 0,
            _ => self.offset + scrubbed.bytes,
        };
        Ok(scrubbed)
    }
}
