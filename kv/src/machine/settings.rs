//! What a state machine may be told. What decides an answer is not among it: see [`ReplicatedLimits`](crate::model::ReplicatedLimits).

/// Settings of one node's state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MachineSettings {
    /// Memory for what was read of the state file, in bytes; 96 MiB by default. An eighth holds records; the rest holds pages, of
    /// which half at most are not written yet: what exceeds that goes to the file before its time.
    pub cache_bytes: usize,
    /// Reads the whole file when it is opened and nothing tells what its pages must read as, and verifies every page's
    /// checksum: after an upgrade, where the files of the sums were lost, or where another program wrote to the file. On by
    /// default; costs about a second for each GiB. Without it such a page counts as right as it is first read, and only what
    /// rots after that is found.
    pub verify_on_open: bool,
    /// The most bytes that one batch of reads returns, where a record counts its key, its value and 64 bytes; 16 MiB by
    /// default.
    pub read_bytes_max: u64,
    /// How much is done at a time.
    #[doc(hidden)]
    pub tuning: Tuning,
}

/// How much is done at a time: sizes that decide no answer's content, only how work is cut. Not for users: tests draw
/// them small, so that what happens at their borders happens often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
pub struct Tuning {
    /// Keys that a scan takes at a time of what is in memory: 1 or more; 256 by default.
    pub chunk_keys: usize,
    /// A run of deleted keys is remembered by transactions from this length on: 1 or more; 8 by default.
    pub gap_keys: usize,
    /// One apply ends when the transactions have looked at so many keys; 200,000 by default.
    pub apply_keys: u64,
    /// One apply ends when it answers so many bytes; 16 MiB by default.
    pub apply_answer_bytes: u64,
    /// A page of a range ends at so many bytes of answer; 1 MiB by default.
    pub page_bytes_max: u64,
    /// A chunk of a snapshot carries so many bytes: 1 or more, 1 MiB less 64 bytes at most and by default. Nodes with
    /// different ones begin a snapshot anew that broke.
    pub snapshot_chunk_bytes: usize,
    /// A step of forgetting looks at so many rows, fewer where they are large, and ends with the revision: 1 or more; 16,384 by
    /// default.
    pub forget_rows: usize,
    /// The state's hash is kept behind each entry whose index is a multiple of this, for the comparison between nodes: 1 or more;
    /// 1,024 by default. Nodes with different ones compare at common multiples.
    pub hash_entries: u64,
    /// The table of times has a row for each so many milliseconds of the log's time in which something was changed; 1,000 by
    /// default.
    pub time_spacing_millis: u64,
    /// Whether the state file is to shrink is looked at every so many milliseconds; 60,000 by default.
    pub shrink_look_millis: u64,
    /// A file that is larger than it may be by fewer bytes stays as it is; 64 MiB by default.
    pub shrink_worth_bytes: u64,
    /// Reads of callers elsewhere are answered from memory too, where that can be, on the task that has taken them in: by default.
    pub recall_elsewhere: bool,
    /// A checkpoint writes the newest runs of heads anew, together with its own, as long as they have so many rows together at
    /// most; 2,048 by default.
    pub run_rows: u64,
    /// Where nothing is written, runs are merged beyond what writers need if what is newer has so many rows at least: in a small store
    /// it is worth nothing, and what is merged takes its room twice meanwhile; 131,072 by default.
    pub rest_rows: u64,
    /// So many runs are merged at least: 2 or more; 8 by default.
    pub runs_merged: usize,
    /// A step of merging writes the heads of so many keys: 1 or more; 32,768 by default.
    pub merge_rows: usize,
    /// A block of heads is closed before it has more bytes, unless one head has: a page by default and at most.
    pub block_bytes: usize,
}

impl MachineSettings {
    /// The most bytes that key and value of one record may have together to be read at all.
    pub fn record_bytes_max(&self) -> u64 {
        self.read_bytes_max
            .saturating_sub(super::rows::counters::RECORD_BYTES)
    }
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            chunk_keys: 256,
            gap_keys: 8,
            apply_keys: 200_000,
            apply_answer_bytes: 16 * 1024 * 1024,
            page_bytes_max: 1024 * 1024,
            snapshot_chunk_bytes: super::snapshot::CHUNK_BYTES,
            forget_rows: 16_384,
            hash_entries: 1_024,
            time_spacing_millis: 1_000,
            shrink_look_millis: 60_000,
            shrink_worth_bytes: 64 << 20,
            recall_elsewhere: true,
            run_rows: 2_048,
            rest_rows: 131_072,
            runs_merged: 8,
            merge_rows: 32_768,
            block_bytes: super::file::blocks::BLOCK_BYTES,
        }
    }
}

impl Default for MachineSettings {
    fn default() -> Self {
        Self {
            cache_bytes: 96 * 1024 * 1024,
            verify_on_open: true,
            read_bytes_max: 16 * 1024 * 1024,
            tuning: Tuning::default(),
        }
    }
}
