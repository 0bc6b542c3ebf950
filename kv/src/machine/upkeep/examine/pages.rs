//! Verifies the pages of a state file where they are, by redb's layout of them, and tells which are wrong.
//!
//! redb says of a file only that something in it is wrong. This walks the same trees, from the commit that redb would open, and
//! goes on beside a page that does not verify. It reads the format of redb 4 (its `docs/design.md`), and decides nothing: redb has
//! the last word on whether the file opens.
//!
//! Always: no page is looked into before its checksum is right, so that what is followed was written by redb.

use std::io;
use std::ops::Range;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

use crate::damage::{Damage, Damages, Part};
use crate::env::File;

const MAGIC: [u8; 9] = [b'r', b'e', b'd', b'b', 0x1A, 0x0A, 0xA9, 0x0D, 0x0A];
const HEADER_BYTES: usize = 320;
const SLOT_BYTES: usize = 128;
const SLOTS: [usize; 2] = [64, 192];
const PRIMARY_IS_SECOND: u8 = 1;
const TWO_PHASE: u8 = 4;
const LEAF: u8 = 1;
const BRANCH: u8 = 2;
const NORMAL_TABLE: u8 = 3;
/// Trees of 2⁶⁴ rows are less deep; only a file that was made to deceive goes further.
const DEPTH_MAX: u32 = 64;

/// What was walked through.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Walked {
    /// Pages of trees.
    pub(super) pages: u64,
    /// The same in bytes.
    pub(super) bytes: u64,
    /// Of the pages, those that are wrong.
    pub(super) wrong: u64,
}

/// Walks through the file; also answers where the pages are that are wrong.
pub(super) fn walk(
    file: &dyn File,
    path: &Path,
    damages: &mut Damages,
) -> io::Result<(Walked, Vec<Range<u64>>)> {
    let mut walk = Walk {
        file,
        path,
        damages,
        len: file.len()?,
        page_bytes: 0,
        region_header_pages: 0,
        region_pages: 0,
        walked: Walked::default(),
        wrong: Vec::new(),
    };
    walk.file()?;
    Ok((walk.walked, walk.wrong))
}

struct Walk<'a> {
    file: &'a dyn File,
    path: &'a Path,
    damages: &'a mut Damages,
    len: u64,
    page_bytes: u64,
    region_header_pages: u64,
    region_pages: u64,
    walked: Walked,
    wrong: Vec<Range<u64>>,
}

/// A tree: where its root is, the checksum of that, and how wide keys and values are where that is fixed.
#[derive(Clone, Copy)]
struct Tree<'a> {
    table: &'a str,
    keys: Option<usize>,
    values: Option<usize>,
    /// Its values are the definitions of tables.
    of_tables: bool,
}

/// Where a page is, and its checksum.
#[derive(Clone, Copy)]
struct Link {
    page: u64,
    checksum: u128,
}

impl Walk<'_> {
    fn wrong(&mut self, offset: u64, detail: impl Into<String>) {
        self.walked.wrong += 1;
        self.damages
            .add(Damage::new(Part::State, self.path, detail).at(offset));
    }

    fn file(&mut self) -> io::Result<()> {
        let mut header = [0; HEADER_BYTES];
        if self.len < HEADER_BYTES as u64 {
            self.wrong(
                0,
                format!("the file has {} bytes, less than its header", self.len),
            );
            return Ok(());
        }
        self.file.read_from_disk_at(&mut header, 0)?;
        let number = |at| u32_at(&header, at).map_or(0, u64::from);
        (self.page_bytes, self.region_header_pages, self.region_pages) = (number(12), number(16), number(20));
        if header[..9] != MAGIC || self.page_bytes != 4096 || self.region_pages == 0 {
            self.wrong(0, "the file does not start as a state file's database does");
            return Ok(());
        }
        let slot = |at: usize| &header[at..at + SLOT_BYTES];
        let is_whole = |at: usize| {
            let slot = slot(at);
            u128_at(slot, SLOT_BYTES - 16) == Some(xxh3_128(&slot[..SLOT_BYTES - 16]))
        };
        let transaction = |at: usize| u64_at(slot(at), 104);
        let [primary, secondary] = match header[9] & PRIMARY_IS_SECOND == 0 {
            true => SLOTS,
            false => [SLOTS[1], SLOTS[0]],
        };
        // As redb chooses: after a commit of two phases there is no choice.
        let chosen = match (header[9] & TWO_PHASE != 0, is_whole(primary), is_whole(secondary)) {
            (true, true, _) => primary,
            (false, true, true) if transaction(secondary) > transaction(primary) => secondary,
            (false, true, _) => primary,
            (false, false, true) => secondary,
            (true, false, _) | (false, false, false) => {
                self.wrong(
                    primary as u64,
                    "the commit that counts does not have its checksum",
                );
                return Ok(());
            }
        };
        let slot = slot(chosen);
        for (is_there, root, table) in [
            (slot[1], 8, "the list of tables"),
            (slot[2], 40, "the list of redb's own tables"),
        ] {
            if let (true, Some(link)) = (is_there != 0, link_at(slot, root)) {
                let tree = Tree {
                    table,
                    keys: None,
                    values: None,
                    of_tables: true,
                };
                self.page(tree, link, DEPTH_MAX)?;
            }
        }
        Ok(())
    }

    /// Where a page is in the file, and how long.
    fn place(&self, page: u64) -> Option<(u64, u64)> {
        let order = page >> 59;
        let index = page & (0xF_FFFF >> order.min(20));
        let region = (page >> 20) & 0xF_FFFF;
        let bytes = self.page_bytes.checked_shl(order as u32)?;
        let region_bytes = (self.region_header_pages + self.region_pages) * self.page_bytes;
        let within = self.region_header_pages * self.page_bytes + index.checked_mul(bytes)?;
        let offset = self.page_bytes + region.checked_mul(region_bytes)? + within;
        (order <= 20 && offset.checked_add(bytes)? <= self.len).then_some((offset, bytes))
    }

    fn page(&mut self, tree: Tree<'_>, link: Link, depth: u32) -> io::Result<()> {
        self.walked.pages += 1;
        let Some((offset, bytes)) = self.place(link.page) else {
            self.wrong(
                self.len,
                format!("a page of {} lies beyond the end of the file", tree.table),
            );
            return Ok(());
        };
        self.walked.bytes += bytes;
        let mut page = vec![0; bytes as usize];
        self.file.read_from_disk_at(&mut page, offset)?;
        let told = covered(&page, tree).and_then(|end| page.get(..end));
        if told.map(xxh3_128) != Some(link.checksum) {
            self.wrong.push(offset..offset + bytes);
            self.wrong(
                offset,
                format!(
                    "the page of {bytes} bytes here, of {}, does not have its checksum",
                    tree.table
                ),
            );
            return Ok(());
        }
        if page[0] == BRANCH {
            let Some(depth) = depth.checked_sub(1) else {
                self.wrong(offset, format!("{} is deeper than any tree", tree.table));
                return Ok(());
            };
            for link in children(&page) {
                self.page(tree, link, depth)?;
            }
        } else if tree.of_tables {
            for (name, definition) in rows(&page) {
                self.table(&name, definition, offset)?;
            }
        }
        Ok(())
    }

    /// Walks through a table by its definition.
    fn table(&mut self, name: &str, definition: &[u8], offset: u64) -> io::Result<()> {
        let fixed = |at: usize| -> Option<Option<usize>> {
            let width = u32_at(definition, at + 1)? as usize;
            Some((*definition.get(at)? != 0).then_some(width))
        };
        // Kind (1), rows (8), whether there is a root (1), the root (32), then both widths, each behind whether there is one.
        let (Some(&kind), Some(&has_root), Some(keys), Some(values)) =
            (definition.first(), definition.get(9), fixed(42), fixed(47))
        else {
            self.wrong(offset, format!("the definition of table {name} ends early"));
            return Ok(());
        };
        if kind != NORMAL_TABLE {
            self.wrong(
                offset,
                format!("table {name} is of a kind that the state has none of"),
            );
            return Ok(());
        }
        match link_at(definition, 10) {
            Some(link) if has_root != 0 => {
                let table = format!("table {name}");
                let tree = Tree {
                    table: &table,
                    keys,
                    values,
                    of_tables: false,
                };
                self.page(tree, link, DEPTH_MAX)
            }
            _ => Ok(()),
        }
    }
}

/// How many bytes of a page its checksum covers.
fn covered(page: &[u8], tree: Tree<'_>) -> Option<usize> {
    let count = count(page)?;
    match *page.first()? {
        LEAF => {
            let last = count.checked_sub(1)?;
            let ends = 4 * (usize::from(tree.keys.is_none()) + usize::from(tree.values.is_none())) * count;
            let keys_end = match tree.keys {
                Some(width) => 4 + ends + width * count,
                None => u32_at(page, 4 + 4 * last)? as usize,
            };
            match tree.values {
                Some(width) => Some(keys_end + width * count),
                None => {
                    let before = if tree.keys.is_none() { 4 * count } else { 0 };
                    Some(u32_at(page, 4 + before + 4 * last)? as usize)
                }
            }
        }
        BRANCH => {
            let last = count.checked_sub(1)?;
            let keys = 8 + 24 * (count + 1);
            match tree.keys {
                Some(width) => Some(keys + width * count),
                None => Some(u32_at(page, keys + 4 * last)? as usize),
            }
        }
        _ => None,
    }
}

/// The children of a branch.
fn children(page: &[u8]) -> Vec<Link> {
    let count = count(page).map_or(0, |keys| keys + 1);
    let child = |at: usize| {
        Some(Link {
            checksum: u128_at(page, 8 + 16 * at)?,
            page: u64_at(page, 8 + 16 * count + 8 * at)?,
        })
    };
    (0..count).filter_map(child).collect()
}

/// The rows of a leaf of a list of tables.
fn rows(page: &[u8]) -> Vec<(String, &[u8])> {
    let count = count(page).unwrap_or(0);
    let end = |at: usize| u32_at(page, 4 + 4 * at).map(|end| end as usize);
    let row = |at: usize| {
        let key_start = if at == 0 { 4 + 8 * count } else { end(at - 1)? };
        let value_start = end(count + at - usize::from(at > 0))
            .filter(|_| at > 0)
            .or(end(count - 1))?;
        let name = String::from_utf8_lossy(page.get(key_start..end(at)?)?).into_owned();
        Some((name, page.get(value_start..end(count + at)?)?))
    };
    (0..count).filter_map(row).collect()
}

fn count(page: &[u8]) -> Option<usize> {
    let bytes = page.get(2..4)?.try_into().ok()?;
    Some(usize::from(u16::from_le_bytes(bytes)))
}

fn link_at(bytes: &[u8], at: usize) -> Option<Link> {
    Some(Link {
        page: u64_at(bytes, at)?,
        checksum: u128_at(bytes, at + 8)?,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    Some(u32::from_le_bytes(bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?.try_into().ok()?;
    Some(u64::from_le_bytes(bytes))
}

fn u128_at(bytes: &[u8], at: usize) -> Option<u128> {
    let bytes = bytes.get(at..at.checked_add(16)?)?.try_into().ok()?;
    Some(u128::from_le_bytes(bytes))
}
