//! Pages that were written and have not left for their file.
//!
//! Always: no two of them cover the same byte.

use std::collections::BTreeMap;

/// Memory is taken in pieces of this size: a single one would be copied as it grows.
const PIECE_BYTES: usize = 1 << 20;

/// Written ranges of a file, in memory.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// By where in the file each begins.
    places: BTreeMap<u64, Place>,
    pieces: Vec<Vec<u8>>,
    bytes: usize,
}

/// Where in the pieces a page is.
#[derive(Clone, Copy, Debug)]
struct Place {
    piece: usize,
    start: usize,
    length: usize,
}

/// What the pages say of a range.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Coverage<'p> {
    Nothing,
    /// They cover some of it, or it goes beyond a page.
    Part,
    Whole(&'p [u8]),
}

/// Neighbours.
pub(super) struct Run<'p> {
    /// Where in the file the first begins.
    pub(super) offset: u64,
    pub(super) pages: Vec<&'p [u8]>,
    pub(super) bytes: usize,
}

impl Pages {
    /// Bytes of all pages.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where in the file the last page ends.
    pub(super) fn end(&self) -> u64 {
        let last = self.places.last_key_value();
        last.map_or(0, |(offset, place)| offset + place.length as u64)
    }

    /// Takes in a page, in the place of one that covers the same range. False, and nothing taken in, when it covers
    /// something of a page and not the same.
    #[must_use]
    pub(super) fn put(&mut self, offset: u64, data: &[u8]) -> bool {
        if data.is_empty() {
            return true;
        }
        let known = self.places.get(&offset).copied();
        if let Some(place) = known.filter(|place| place.length == data.len()) {
            self.pieces[place.piece][place.start..][..place.length].copy_from_slice(data);
            return true;
        }
        if self.find(offset, data.len()) != Coverage::Nothing {
            return false;
        }
        let fits = |piece: &Vec<u8>| piece.capacity() - piece.len() >= data.len();
        if !self.pieces.last().is_some_and(fits) {
            self.pieces.push(Vec::with_capacity(PIECE_BYTES.max(data.len())));
        }
        let number = self.pieces.len() - 1;
        let piece = &mut self.pieces[number];
        let place = Place {
            piece: number,
            start: piece.len(),
            length: data.len(),
        };
        piece.extend_from_slice(data);
        self.places.insert(offset, place);
        self.bytes += data.len();
        true
    }

    /// What is here of a range.
    pub(super) fn find(&self, offset: u64, length: usize) -> Coverage<'_> {
        let end = offset.saturating_add(length as u64);
        // The last that begins before the end reaches farthest.
        let Some((&begin, &place)) = self.places.range(..end).next_back() else {
            return Coverage::Nothing;
        };
        if begin + place.length as u64 <= offset {
            return Coverage::Nothing;
        }
        let within = offset
            .checked_sub(begin)
            .and_then(|skipped| self.page(place).get(skipped as usize..)?.get(..length));
        within.map_or(Coverage::Part, Coverage::Whole)
    }

    /// All pages in the order of the file but that the file's first is the last, neighbours together as far as they
    /// have at most so many bytes.
    pub(super) fn runs(&self, bytes_max: usize) -> impl Iterator<Item = Run<'_>> {
        let (first, others) = (self.places.range(..1), self.places.range(1..));
        let mut places = others.chain(first).peekable();
        std::iter::from_fn(move || {
            let (&offset, &first) = places.next()?;
            let mut run = Run {
                offset,
                pages: vec![self.page(first)],
                bytes: first.length,
            };
            while let Some((_, place)) = places.next_if(|(at, place)| {
                **at == offset + run.bytes as u64 && run.bytes + place.length <= bytes_max
            }) {
                run.pages.push(self.page(*place));
                run.bytes += place.length;
            }
            Some(run)
        })
    }

    fn page(&self, place: Place) -> &[u8] {
        &self.pieces[place.piece][place.start..][..place.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(all: &[(u64, &[u8])]) -> Pages {
        let mut pages = Pages::default();
        for (offset, data) in all {
            assert!(pages.put(*offset, data), "{offset}");
        }
        pages
    }

    #[test]
    fn a_range_is_found_within_one_page_alone() {
        let pages = pages(&[(10, b"abcd"), (14, b"efgh"), (30, b"x")]);
        assert_eq!(pages.find(10, 4), Coverage::Whole(b"abcd"));
        assert_eq!(pages.find(11, 2), Coverage::Whole(b"bc"));
        for (offset, length) in [(9, 2), (12, 4), (8, 30), (17, 2), (0, 11), (29, 3)] {
            assert_eq!(pages.find(offset, length), Coverage::Part, "{length} at {offset}");
        }
        for (offset, length) in [(0, 10), (18, 12), (31, 100)] {
            assert_eq!(
                pages.find(offset, length),
                Coverage::Nothing,
                "{length} at {offset}"
            );
        }
        assert_eq!((pages.end(), pages.bytes()), (31, 9));
    }

    #[test]
    fn a_page_is_replaced_by_one_of_the_same_range_and_no_other_may_overlap_it() {
        let mut pages = pages(&[(10, b"abcd")]);
        assert!(pages.put(10, b"ABCD"));
        assert!(pages.put(12, b""));
        for (offset, data) in [(10, &b"xy"[..]), (8, b"xyz"), (13, b"x"), (9, b"0123456789")] {
            assert!(!pages.put(offset, data), "{offset}");
        }
        assert_eq!(pages.find(10, 4), Coverage::Whole(b"ABCD"));
        assert_eq!((pages.end(), pages.bytes()), (14, 4));
    }

    #[test]
    fn pages_leave_sorted_with_their_neighbours_and_the_first_of_the_file_last() {
        let pages = pages(&[
            (4, b"ef"),
            (20, b"z"),
            (0, b"ab"),
            (8, b"ij"),
            (6, b"gh"),
            (2, b"cd"),
        ]);
        let runs = |most| -> Vec<(u64, Vec<u8>)> {
            let runs = pages.runs(most);
            runs.map(|run| {
                assert_eq!(run.bytes, run.pages.concat().len());
                (run.offset, run.pages.concat())
            })
            .collect()
        };
        let (head, tail) = ((0, b"ab".to_vec()), (20, b"z".to_vec()));
        assert_eq!(runs(100), [(2, b"cdefghij".to_vec()), tail.clone(), head.clone()]);
        assert_eq!(
            runs(5),
            [(2, b"cdef".to_vec()), (6, b"ghij".to_vec()), tail, head]
        );
    }
}
