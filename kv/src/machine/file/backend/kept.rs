//! What is written to a file that was replaced: it stays in memory, and goes to no file.
//!
//! A checkpoint may be writing to such a file, and readers of the old state share its database. After one failed write the
//! database answers nobody any more; and a checkpoint that read back another page than it wrote would fail as well. So the
//! file seems to go on as it was, until nobody holds it.
//!
//! Always: no two pieces cover the same byte, and none reaches beyond the length.

use std::collections::BTreeMap;

/// See the module.
#[derive(Debug)]
pub(super) struct Kept {
    /// By where in the file each begins.
    pieces: BTreeMap<u64, Vec<u8>>,
    /// How long the file seems to be.
    len: u64,
    /// Up to where the file itself still counts.
    file_end: u64,
}

impl Kept {
    /// Nothing yet beside a file of this length.
    pub(super) fn beside(file_len: u64) -> Self {
        Self {
            pieces: BTreeMap::new(),
            len: file_len,
            file_end: file_len,
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn set_len(&mut self, len: u64) {
        self.cut(len, u64::MAX);
        self.file_end = self.file_end.min(len);
        self.len = len;
    }

    pub(super) fn put(&mut self, offset: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let end = offset + data.len() as u64;
        self.cut(offset, end);
        self.pieces.insert(offset, data.to_vec());
        self.len = self.len.max(end);
    }

    /// Takes out what the pieces have of a range.
    fn cut(&mut self, start: u64, end: u64) {
        // The last that begins before it may reach into it, and even beyond.
        if let Some((&begin, piece)) = self.pieces.range_mut(..start).next_back()
            && begin + piece.len() as u64 > start
        {
            let within = piece.split_off((start - begin) as usize);
            self.pieces.insert(start, within);
        }
        let inside: Vec<u64> = self.pieces.range(start..end).map(|(begin, _)| *begin).collect();
        for begin in inside {
            if let Some(mut piece) = self.pieces.remove(&begin)
                && begin + piece.len() as u64 > end
            {
                self.pieces.insert(end, piece.split_off((end - begin) as usize));
            }
        }
    }

    /// How many bytes from `offset` on are the file's to tell, of `length` that are asked for; `None` for a range beyond the
    /// end.
    pub(super) fn of_file(&self, offset: u64, length: usize) -> Option<usize> {
        (offset.checked_add(length as u64)? <= self.len)
            .then(|| self.file_end.saturating_sub(offset).min(length as u64) as usize)
    }

    /// Puts what the pieces have of a range over what the file told.
    pub(super) fn lay_over(&self, offset: u64, out: &mut [u8]) {
        let end = offset + out.len() as u64;
        let before = self.pieces.range(..=offset).next_back();
        let first = before.map_or(offset, |(begin, _)| *begin);
        for (&begin, piece) in self.pieces.range(first..end) {
            let (from, to) = (begin.max(offset), (begin + piece.len() as u64).min(end));
            if from < to {
                let piece = &piece[(from - begin) as usize..(to - begin) as usize];
                out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(piece);
            }
        }
    }
}
