//! What the pages of an open file must read as: a checksum of each, in memory.
//!
//! redb verifies pages when it is told to read the whole file, and not when it reads one. So a checksum is learnt of
//! each page when it leaves for the file. What earlier processes wrote the [`ledger`](super::ledger) tells. Where that
//! tells nothing, the file is read whole while it is opened, with redb's own checksums judging what was read, and the
//! sum of every page in use is known from there on.
//!
//! It costs 8 bytes for each page: 2 MiB of memory for each GiB of file.
//!
//! Only whole pages have sums. The first page of the file never is written whole: it has the database's header, which redb
//! keeps in memory while the file is open, and which has checksums of its own for when it is opened.
//!
//! Always: a page's sum, where there is one, is of the bytes that were last written to it or first read from it.

use std::num::NonZeroU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use xxhash_rust::xxh3::xxh3_64;

/// What has one sum: a page of redb, of which it also writes and reads several at once.
pub(super) const PAGE_BYTES: usize = 4096;

/// What is known of a page. Not zero, so that an unknown one takes no more room.
pub(super) type Sum = NonZeroU64;

fn sum(page: &[u8]) -> Sum {
    NonZeroU64::new(xxh3_64(page)).unwrap_or(NonZeroU64::MIN)
}

/// See the module. The lock is held for a few lines, and never while a sum is made.
#[derive(Debug, Default)]
pub(super) struct Sums(Mutex<Vec<Option<Sum>>>);

/// A page that does not read as it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mismatch {
    /// Where the page begins.
    pub(super) offset: u64,
    pub(super) expected: Sum,
    pub(super) found: Sum,
}

impl Sums {
    fn known(&self) -> MutexGuard<'_, Vec<Option<Sum>>> {
        // Whoever panicked here had set a sum or not.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are known.
    pub(super) fn of(all: Vec<Option<Sum>>) -> Self {
        Self(Mutex::new(all))
    }

    /// All of them, by the number of the page.
    pub(super) fn all(&self) -> Vec<Option<Sum>> {
        self.known().clone()
    }

    /// Learns what a range reads as from now on. A page of which it covers a part only is no longer known.
    #[cfg(test)]
    pub(super) fn written(&self, offset: u64, bytes: &[u8]) {
        self.learn(&sums_of(offset, bytes));
    }

    /// Learns what pages read as from now on.
    pub(super) fn learn(&self, sums: &[(usize, Option<Sum>)]) {
        let mut known = self.known();
        for (page, sum) in sums {
            if known.len() <= *page {
                known.resize(page + 1, None);
            }
            known[*page] = *sum;
        }
    }

    /// Compares what was read with what is known, and learns what was not known.
    pub(super) fn check(&self, offset: u64, bytes: &[u8]) -> Result<(), Mismatch> {
        self.each(offset, bytes, |known, found| *known.get_or_insert(found))
    }

    /// Compares what was read with what is known.
    pub(super) fn compare(&self, offset: u64, bytes: &[u8]) -> Result<(), Mismatch> {
        self.each(offset, bytes, |known, found| known.unwrap_or(found))
    }

    fn each(
        &self,
        offset: u64,
        bytes: &[u8],
        expected: impl Fn(&mut Option<Sum>, Sum) -> Sum,
    ) -> Result<(), Mismatch> {
        for (page, bytes) in split(offset, bytes).0 {
            let found = sum(bytes);
            let mut known = self.known();
            if known.len() <= page {
                known.resize(page + 1, None);
            }
            let expected = expected(&mut known[page], found);
            if expected != found {
                let offset = (page * PAGE_BYTES) as u64;
                return Err(Mismatch {
                    offset,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }

    /// Forgets what is not wholly within the first `len` bytes of the file.
    pub(super) fn truncate(&self, len: u64) {
        self.known().truncate(len as usize / PAGE_BYTES);
    }
}

/// The sums of the pages of a range; none of those of which it covers a part only.
pub(super) fn sums_of(offset: u64, bytes: &[u8]) -> Vec<(usize, Option<Sum>)> {
    let (whole, part) = split(offset, bytes);
    let mut sums = Vec::with_capacity(part.len() + bytes.len() / PAGE_BYTES);
    sums.extend(part.into_iter().flatten().map(|page| (page, None)));
    sums.extend(whole.map(|(page, bytes)| (page, Some(sum(bytes)))));
    sums
}

/// The pages that a range covers whole, and up to two of which it covers a part.
fn split(offset: u64, bytes: &[u8]) -> (impl Iterator<Item = (usize, &[u8])>, [Option<usize>; 2]) {
    let (offset, size) = (offset as usize, PAGE_BYTES);
    let end = offset + bytes.len();
    let (first, last) = (offset.div_ceil(size), end / size);
    let inner = match first < last {
        true => &bytes[first * size - offset..last * size - offset],
        false => &[],
    };
    let in_part = |at: usize| (!at.is_multiple_of(size) && !bytes.is_empty()).then_some(at / size);
    (
        (first..).zip(inner.chunks_exact(size)),
        [in_part(offset), in_part(end)],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: u64 = PAGE_BYTES as u64;

    fn page(byte: u8) -> Vec<u8> {
        vec![byte; PAGE_BYTES]
    }

    #[test]
    fn a_page_must_read_as_it_was_written_or_first_read_wherever_it_was_read_from() {
        let sums = Sums::default();
        sums.written(P, &[page(1), page(2)].concat());
        assert_eq!(sums.check(P, &page(1)), Ok(()));
        assert_eq!(sums.check(2 * P, &[page(2), page(3)].concat()), Ok(()));
        let wrong = sums.check(P, &[page(1), page(2), page(4)].concat()).unwrap_err();
        assert_eq!((wrong.offset, wrong.expected), (3 * P, sum(&page(3))));
        // Another page's bytes are not this one's.
        assert!(sums.compare(P, &page(2)).is_err());
        sums.written(P, &page(9));
        assert_eq!(sums.compare(P, &page(9)), Ok(()));
    }

    #[test]
    fn comparing_teaches_nothing() {
        let sums = Sums::default();
        for byte in [1, 2] {
            assert_eq!(sums.compare(P, &page(byte)), Ok(()));
        }
        assert_eq!(sums.check(P, &page(3)), Ok(()));
        assert!(sums.compare(P, &page(1)).is_err());
    }

    #[test]
    fn a_page_is_unknown_once_a_part_of_it_is_written_or_lies_beyond_the_end() {
        let sums = Sums::default();
        let all = || sums.written(0, &page(1).repeat(4));
        for (offset, length, unknown) in [
            (0, 320, vec![0]),
            (P + 1, 10, vec![1]),
            (P / 2, PAGE_BYTES, vec![0, 1]),
            (P - 1, PAGE_BYTES + 2, vec![0, 2]),
            (P, 0, vec![]),
        ] {
            all();
            sums.written(offset, &vec![1; length]);
            for number in 0..4 {
                let read = sums.compare(number * P, &page(7));
                assert_eq!(
                    read.is_ok(),
                    unknown.contains(&number),
                    "page {number}: {length} at {offset}"
                );
            }
        }
        all();
        sums.truncate(2 * P + 5);
        assert!(sums.compare(P, &page(7)).is_err());
        assert!(sums.compare(2 * P, &page(7).repeat(2)).is_ok());
    }
}
