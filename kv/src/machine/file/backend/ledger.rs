//! The sums of an open file's pages, on disk: so that a file that is opened need not be read whole to know what its pages must
//! read as.
//!
//! Two small files beside the state file, of which one is written to, at its end; once it has grown to a few times what
//! the sums take, they begin anew in the other. Each begins with the magic `QRTSUMS1`, a number (8) that is greater in
//! the later one, and the sums of all pages; then come records:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | kind |
//! | 4 | how many pages it is of, or whose header it tells of: see below |
//! | 12 for each page | the page's number (4) and its sum (8); 0 where it is not known |
//! | 8 | XXH3-64 of all that |
//!
//! Kinds: 1, these pages are about to be written; 2, the file is about to be cut to so many pages; 3, the file's header
//! is about to be written: its sum takes the place of a page's. All numbers are big-endian.
//!
//! A record is durable before what it announces is done. So the first record of the header that the file has was made of
//! exactly the state that the header stands for, or of one before it that had the same header. Pages that later records name are not in use by that state, and may
//! have been written or not: they are unknown. Where no record tells of the file's header (another program wrote to the
//! file, a power cut took the news of a new one, a snapshot's name came first), the sums are worth nothing, and whoever
//! opens the file reads all of it.
//!
//! Always: what the ledger says of a page that is in use is what was written to it.

use std::io;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::sums::{PAGE_BYTES, Sum};
use crate::env::File;

const MAGIC: &[u8; 8] = b"QRTSUMS1";
/// The database's header, with its own checksums: it is written whole, and as the last of a commit.
pub(super) const HEADER_BYTES: usize = 320;
/// It begins anew when its records have so many bytes more than the sums.
const RECORDS_BYTES_MIN: u64 = 1 << 20;

const PAGES: u8 = 1;
const CUT: u8 = 2;
const HEADER: u8 = 3;

/// The sums of all pages, by number.
pub(super) type All = Vec<Option<Sum>>;

/// See the module.
#[derive(Debug)]
pub(super) struct Ledger {
    /// The one that is written to, and the other.
    files: [Arc<dyn File>; 2],
    number: u64,
    end: u64,
    /// Where the records begin.
    begin: u64,
    /// The sum of the header that was announced last.
    header: Option<Sum>,
    record: Vec<u8>,
}

/// The sum of a header. `None` where there is none: a file to which none was written yet has a hole in its place, so zeros
/// would stand for states of which no record tells.
pub(super) fn sum_of(header: &[u8]) -> Option<Sum> {
    let header = header.get(..HEADER_BYTES)?;
    if header.iter().all(|byte| *byte == 0) {
        return None;
    }
    Some(Sum::new(xxh3_64(header)).unwrap_or(Sum::MIN))
}

impl Ledger {
    /// Begins anew in the second of the files.
    pub(super) fn begin(
        files: [Arc<dyn File>; 2],
        number: u64,
        all: &[Option<Sum>],
        header: Option<Sum>,
    ) -> io::Result<Self> {
        let [first, second] = files;
        let mut ledger = Self {
            files: [second, first],
            number,
            end: 0,
            begin: 0,
            header,
            record: Vec::new(),
        };
        ledger.write_all(all)?;
        Ok(ledger)
    }

    /// Writes the sums of all pages to the file that is written to from here on.
    fn write_all(&mut self, all: &[Option<Sum>]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(32 + 8 * all.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.number.to_be_bytes());
        bytes.extend_from_slice(&(all.len() as u64).to_be_bytes());
        for sum in all {
            bytes.extend_from_slice(&number_of(*sum).to_be_bytes());
        }
        bytes.extend_from_slice(&xxh3_64(&bytes).to_be_bytes());
        let file = &self.files[0];
        file.set_len(0)?;
        file.write_all_at(&bytes, 0)?;
        (self.begin, self.end) = (bytes.len() as u64, bytes.len() as u64);
        if let Some(header) = self.header {
            self.put(HEADER, &[(0, Some(header))]);
            self.append()?;
        }
        self.files[0].sync_data()
    }

    /// What two files tell of the file whose header this is, and the ledger to go on with. `None` where they tell
    /// nothing of it.
    pub(super) fn open(files: [Arc<dyn File>; 2], header: &[u8]) -> io::Result<Option<(Self, All)>> {
        let Some((number, which, all)) = Self::told(&files, header)? else {
            return Ok(None);
        };
        let [first, second] = files;
        let files = match which {
            0 => [first, second],
            _ => [second, first],
        };
        // Anew: what follows the header's record counts for nothing.
        let ledger = Self::begin(files, number.saturating_add(1), &all, sum_of(header))?;
        Ok(Some((ledger, all)))
    }

    /// What two files tell of the file whose header this is: the number of the better one, which it is, and the sums. Changes
    /// nothing.
    pub(super) fn told(files: &[Arc<dyn File>; 2], header: &[u8]) -> io::Result<Option<(u64, usize, All)>> {
        let Some(header) = sum_of(header) else {
            return Ok(None);
        };
        let mut best: Option<(u64, usize, All)> = None;
        for (which, file) in files.iter().enumerate() {
            let mut bytes = vec![0; usize::try_from(file.len()?).map_err(io::Error::other)?];
            // One that cannot be read tells nothing.
            let is_read = file.read_exact_at(&mut bytes, 0).is_ok();
            if is_read
                && let Some((number, all)) = read(&bytes, header)
                && best.as_ref().is_none_or(|(known, ..)| *known < number)
            {
                best = Some((number, which, all));
            }
        }
        Ok(best)
    }

    fn put(&mut self, kind: u8, pages: &[(u32, Option<Sum>)]) {
        let start = self.record.len();
        self.record.push(kind);
        self.record.extend_from_slice(&(pages.len() as u32).to_be_bytes());
        for (page, sum) in pages {
            self.record.extend_from_slice(&page.to_be_bytes());
            self.record.extend_from_slice(&number_of(*sum).to_be_bytes());
        }
        let sum = xxh3_64(&self.record[start..]);
        self.record.extend_from_slice(&sum.to_be_bytes());
    }

    fn append(&mut self) -> io::Result<()> {
        let record = std::mem::take(&mut self.record);
        self.files[0].write_all_at(&record, self.end)?;
        self.end += record.len() as u64;
        self.record = record;
        self.record.clear();
        Ok(())
    }

    /// Announces that pages are written.
    pub(super) fn pages(&mut self, pages: &[(u32, Option<Sum>)]) -> io::Result<()> {
        if pages.is_empty() {
            return Ok(());
        }
        self.put(PAGES, pages);
        self.append()?;
        self.files[0].sync_data()
    }

    /// Announces that the file is cut.
    pub(super) fn cut(&mut self, pages: u32) -> io::Result<()> {
        self.put(CUT, &[(pages, None)]);
        self.append()?;
        self.files[0].sync_data()
    }

    /// Announces the header, all before being durable. `all` are the sums now.
    pub(super) fn header(&mut self, bytes: &[u8], all: impl FnOnce() -> All) -> io::Result<()> {
        let header = sum_of(bytes);
        // The same again proves nothing of what was written in between.
        if header == self.header {
            return Ok(());
        }
        self.header = header;
        let records = self.end - self.begin;
        if records > self.begin + RECORDS_BYTES_MIN {
            self.files.swap(0, 1);
            self.number = self.number.saturating_add(1);
            return self.write_all(&all());
        }
        if header.is_some() {
            self.put(HEADER, &[(0, header)]);
            self.append()?;
        }
        self.files[0].sync_data()
    }
}

fn number_of(sum: Option<Sum>) -> u64 {
    sum.map_or(0, Sum::get)
}

/// What a file tells of a header: its own number, and the sums. `None` where it tells nothing of it.
fn read(bytes: &[u8], header: Sum) -> Option<(u64, All)> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (number, rest) = rest.split_first_chunk::<8>()?;
    let (count, rest) = rest.split_first_chunk::<8>()?;
    let count = usize::try_from(u64::from_be_bytes(*count)).ok()?;
    let (sums, rest) = rest.split_at_checked(count.checked_mul(8)?)?;
    let (sum, mut rest) = rest.split_first_chunk::<8>()?;
    if xxh3_64(&bytes[..24 + sums.len()]) != u64::from_be_bytes(*sum) {
        return None;
    }
    let mut all: All = sums
        .as_chunks::<8>()
        .0
        .iter()
        .map(|sum| Sum::new(u64::from_be_bytes(*sum)))
        .collect();
    // The sums as of the header's first record, and what came since: where the same header was written again later, what was
    // written in between may not have come to the disk.
    let mut found: Option<All> = None;
    let mut since: Vec<(u8, u32)> = Vec::new();
    while let Some((kind, pages, behind)) = record(rest) {
        rest = behind;
        for (page, sum) in pages {
            match kind {
                PAGES => {
                    let page = page as usize;
                    if all.len() <= page {
                        all.resize(page + 1, None);
                    }
                    all[page] = sum;
                }
                CUT => all.truncate(page as usize),
                _ if sum == Some(header) && found.is_none() => {
                    found = Some(all.clone());
                    since.clear();
                    continue;
                }
                _ => continue,
            }
            since.push((kind, page));
        }
    }
    let mut all = found?;
    for (kind, page) in since {
        match kind {
            CUT => all.truncate(page as usize),
            _ => {
                if let Some(sum) = all.get_mut(page as usize) {
                    *sum = None;
                }
            }
        }
    }
    Some((u64::from_be_bytes(*number), all))
}

type Record<'a> = (u8, Vec<(u32, Option<Sum>)>, &'a [u8]);

/// The first record, and what is behind it; `None` where there is no whole one.
fn record(bytes: &[u8]) -> Option<Record<'_>> {
    let (kind, rest) = bytes.split_first()?;
    let (count, rest) = rest.split_first_chunk::<4>()?;
    let (pages, rest) = rest.split_at_checked((u32::from_be_bytes(*count) as usize).checked_mul(12)?)?;
    let (sum, behind) = rest.split_first_chunk::<8>()?;
    let is_whole = xxh3_64(&bytes[..5 + pages.len()]) == u64::from_be_bytes(*sum);
    if !is_whole || !matches!(*kind, PAGES | CUT | HEADER) {
        return None;
    }
    let pages = pages.as_chunks::<12>().0.iter().map(|page| {
        let [a, b, c, d, sum @ ..] = *page;
        (
            u32::from_be_bytes([a, b, c, d]),
            Sum::new(u64::from_be_bytes(sum)),
        )
    });
    Some((*kind, pages.collect(), behind))
}

/// The number of a page, which a file of less than 16 TiB has.
pub(super) fn page_number(page: usize) -> io::Result<u32> {
    u32::try_from(page)
        .map_err(|_| io::Error::other(format!("a file has more than 2^32 pages of {PAGE_BYTES} bytes")))
}
