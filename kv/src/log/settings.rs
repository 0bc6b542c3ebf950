//! How a log uses disk and memory.

use super::open_error::LogOpenError;

/// Whether a log should be there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OpenMode {
    /// It must be there: a log that is missing has been lost, and with it perhaps a vote.
    #[default]
    Existing,
    /// It must not be there, or must never have held anything, so that an interrupted start can be repeated.
    Create,
}

/// How a log uses disk and memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// Whether a log should be there already. Default: it must.
    pub mode: OpenMode,
    /// The full length of a segment file in bytes, from 16 KiB to 1 GiB; 64 MiB by default.
    ///
    /// A new log begins with a segment of a 512th part of it (8 KiB at least), and each later one is twice as long as the one
    /// before, up to this. Disk space is freed by whole segments, and two of them are there besides what the log holds: the one
    /// being written and the one made ready. An entry that is longer gets a longer segment of its own.
    pub segment_bytes: u64,
    /// How many bytes of the newest entries stay in memory once durable; 64 MiB by default, 0 for none.
    ///
    /// Followers that lag by no more than this are served without touching the disk.
    pub cache_bytes_max: u64,
    /// How many bytes may wait to be written until there is no more room, from 64 KiB to 4 GiB; 64 MiB by default.
    ///
    /// No call waits for room: who has more to write asks for it first, with [`Log::wait_for_room`](super::Log::wait_for_room). They are in memory
    /// in addition to the cache. Each call counts as 1 KiB at least.
    pub queue_bytes_max: u64,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            mode: OpenMode::Existing,
            segment_bytes: 64 << 20,
            cache_bytes_max: 64 << 20,
            queue_bytes_max: 64 << 20,
        }
    }
}

impl LogSettings {
    /// These settings, for a log that is to be made.
    #[must_use]
    pub fn create(self) -> Self {
        Self {
            mode: OpenMode::Create,
            ..self
        }
    }

    pub(super) fn check(&self) -> Result<(), LogOpenError> {
        let check = |setting, value, min, max| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(LogOpenError::InvalidSetting {
                    setting,
                    value,
                    min,
                    max,
                })
            }
        };
        check("segment_bytes", self.segment_bytes, 16 << 10, 1 << 30)?;
        check("queue_bytes_max", self.queue_bytes_max, 64 << 10, 4 << 30)
    }
}
