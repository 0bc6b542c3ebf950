//! A run's heads in blocks: so many neighbours as fill a page of the state file are one row of the run's table.
//!
//! A row of the database costs far more to write, and to read on, than a head in a block. A run is written and read from one
//! end to the other, again and again as runs are merged, and never changed in its middle.
//!
//! The row's key is a bound of its block: no key of the block is above it, and every key of the next block is. So the first row at or
//! above a key has the block in which the key is, if it is in any. Where the next key is known it is as short as a beginning of that key
//! can be, for the database's branches are made of bounds. The row's value: how many entries the block has (2 bytes); where each ends, counted from where the first begins (2
//! each); then the entries, in the order of their keys: the key's length (2), the key, the head. All numbers are big-endian.
//! A block has one entry at least; it is closed before it, its row's key and what the database adds fill more than a page,
//! unless one entry does.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::ops::{Bound, Range};
use std::sync::Arc;

use redb::{AccessGuard, CursorMut, OwnedAccessGuard, OwnedRange, ReadableTable, StorageError, TypeName};

use crate::fault::Fault;
use crate::machine::rows::error::{StateFile, storage};
use crate::machine::rows::wire::Malformed;
use crate::model::Order;

/// What a block with its row's key fills at most, in bytes, unless one entry is larger: a page of the state file, less what the
/// database adds to one row.
pub(in crate::machine) const BLOCK_BYTES: usize = 4096 - 12;

/// Of a number.
const NUMBER: usize = 2;

type Slice = &'static [u8];

/// The key of a block's row.
///
/// A type of its own for what stands between two rows in the database's branches. Of plain bytes the database makes something
/// short there, which is above keys of the second row's block: of three look-ups one would read the wrong page first. For this type the
/// database puts the first row's key there.
#[derive(Debug)]
pub(in crate::machine) struct BlockBound;

impl redb::Value for BlockBound {
    type SelfType<'a> = &'a [u8];
    type AsBytes<'a> = &'a [u8];

    fn fixed_width() -> Option<usize> {
        None
    }

    fn from_bytes<'a>(bytes: &'a [u8]) -> &'a [u8]
    where
        Self: 'a,
    {
        bytes
    }

    fn as_bytes<'a, 'b: 'a>(bound: &'a &'b [u8]) -> &'a [u8]
    where
        Self: 'b,
    {
        bound
    }

    fn type_name() -> TypeName {
        TypeName::new("quorate::BlockBound")
    }
}

impl redb::Key for BlockBound {
    fn compare(one: &[u8], other: &[u8]) -> Ordering {
        one.cmp(other)
    }
}

/// A row where it lies in the page cache.
pub(in crate::machine) trait Guard {
    fn bytes(&self) -> &[u8];
}

impl Guard for AccessGuard<'_, Slice> {
    fn bytes(&self) -> &[u8] {
        self.value()
    }
}

impl Guard for OwnedAccessGuard<Slice> {
    fn bytes(&self) -> &[u8] {
        self.value()
    }
}

/// The rows of a run's table, from either end: bounds and blocks.
pub(in crate::machine) trait Rows:
    DoubleEndedIterator<Item = Result<(Self::Bound, Self::Guard), StorageError>>
{
    type Bound;
    type Guard: Guard;
}

impl<'b> Rows for redb::Range<'b, BlockBound, Slice> {
    type Bound = AccessGuard<'b, BlockBound>;
    type Guard = AccessGuard<'b, Slice>;
}

impl Rows for OwnedRange<BlockBound, Slice> {
    type Bound = OwnedAccessGuard<BlockBound>;
    type Guard = OwnedAccessGuard<Slice>;
}

/// A head, and the key that it is of.
pub(in crate::machine) struct HeadRow<G> {
    block: Arc<Block<G>>,
    key: Range<usize>,
    head: Range<usize>,
}

impl<G: Guard> HeadRow<G> {
    /// In a block, of which these are parts.
    pub(in crate::machine) fn new(block: Arc<Block<G>>, key: Range<usize>, head: Range<usize>) -> Self {
        Self { block, key, head }
    }

    pub(in crate::machine) fn key(&self) -> &[u8] {
        self.block.bytes(self.key.clone())
    }

    pub(in crate::machine) fn head(&self) -> &[u8] {
        self.block.bytes(self.head.clone())
    }
}

/// `last`, or the shortest beginning of `next` that is below `next` and not below `last`, where it is shorter. `next` is above `last`.
fn between<'k>(last: &'k [u8], next: &'k [u8]) -> Cow<'k, [u8]> {
    // What the database puts between two keys that are plain bytes.
    <&[u8] as redb::Key>::separator(last, next)
}

/// A block that is being filled.
#[derive(Debug)]
pub(in crate::machine) struct Filling {
    bytes_max: usize,
    ends: Vec<u16>,
    entries: Vec<u8>,
    /// The last key of all blocks so far.
    last: Option<Vec<u8>>,
}

impl Filling {
    /// Of blocks of so many bytes, [`BLOCK_BYTES`] at most.
    pub(in crate::machine) fn blocks_of(bytes_max: usize) -> Self {
        Self {
            bytes_max: bytes_max.min(BLOCK_BYTES),
            ends: Vec::new(),
            entries: Vec::new(),
            last: None,
        }
    }

    /// Whether a key comes behind all that were put.
    pub(in crate::machine) fn is_next(&self, key: &[u8]) -> bool {
        self.last.as_ref().is_none_or(|last| &last[..] < key)
    }

    /// Whether all that was put is in blocks that are written.
    pub(in crate::machine) fn is_closed(&self) -> bool {
        self.ends.is_empty()
    }

    /// Adds a head behind all others, and closes the block before it where that is full.
    pub(in crate::machine) fn put(
        &mut self,
        file: &StateFile,
        end: &mut CursorMut<'_, BlockBound, Slice>,
        key: &[u8],
        head: &[u8],
    ) -> Result<(), Fault> {
        if !self.is_next(key) {
            return Err(file.corrupt("the keys of a run are not in order"));
        }
        let entry = NUMBER + key.len() + head.len();
        let block = NUMBER + NUMBER * (self.ends.len() + 1) + self.entries.len() + entry;
        if !self.ends.is_empty() && block + key.len() > self.bytes_max {
            self.close_before(file, end, Some(key))?;
        }
        let too_long = || file.corrupt("a key and its head are longer than a block may be");
        let ends_at = u16::try_from(self.entries.len() + entry).map_err(|_| too_long())?;
        // No longer than the entry.
        let key_len = u16::try_from(key.len()).map_err(|_| too_long())?;
        self.entries.extend_from_slice(&key_len.to_be_bytes());
        self.entries.extend_from_slice(key);
        self.entries.extend_from_slice(head);
        self.ends.push(ends_at);
        let last = self.last.get_or_insert_default();
        last.clear();
        last.extend_from_slice(key);
        Ok(())
    }

    /// Writes the block, if there is anything in it.
    pub(in crate::machine) fn close(
        &mut self,
        file: &StateFile,
        end: &mut CursorMut<'_, BlockBound, Slice>,
    ) -> Result<(), Fault> {
        self.close_before(file, end, None)
    }

    /// The same where the next block begins with a key that is known.
    fn close_before(
        &mut self,
        file: &StateFile,
        end: &mut CursorMut<'_, BlockBound, Slice>,
        next: Option<&[u8]>,
    ) -> Result<(), Fault> {
        let Some(last) = self.last.as_ref().filter(|_| !self.ends.is_empty()) else {
            return Ok(());
        };
        let bound = next.map_or(Cow::Borrowed(&last[..]), |next| between(last, next));
        let block = encode(&self.ends, &self.entries).map_err(|e| file.malformed(&e))?;
        end.insert_before(&bound[..], &block[..]).map_err(storage(file))?;
        self.ends.clear();
        self.entries.clear();
        Ok(())
    }
}

fn encode(ends: &[u16], entries: &[u8]) -> Result<Vec<u8>, Malformed> {
    let count = u16::try_from(ends.len()).map_err(|_| Malformed("a block has more entries than it may"))?;
    let mut block = Vec::with_capacity(NUMBER * (ends.len() + 1) + entries.len());
    block.extend_from_slice(&count.to_be_bytes());
    block.extend(ends.iter().flat_map(|end| end.to_be_bytes()));
    block.extend_from_slice(entries);
    Ok(block)
}

/// A block where it lies in the page cache.
pub(in crate::machine) struct Block<G> {
    row: G,
    count: usize,
}

/// Where an entry's key and head are in its block.
struct Entry {
    key: Range<usize>,
    head: Range<usize>,
}

fn number(bytes: &[u8], at: usize) -> Result<usize, Malformed> {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk::<NUMBER>);
    bytes
        .map(|bytes| usize::from(u16::from_be_bytes(*bytes)))
        .ok_or(Malformed("a block is shorter than it says"))
}

impl<G: Guard> Block<G> {
    /// The block that is a row's value. Looks at its length alone: each entry is looked at when it is asked for.
    pub(in crate::machine) fn of(row: G) -> Result<Self, Malformed> {
        let bytes = row.bytes();
        let count = number(bytes, 0)?;
        let Some(last) = count.checked_sub(1) else {
            return Err(Malformed("a block is empty"));
        };
        let begin = NUMBER * (count + 1);
        if begin + number(bytes, NUMBER * (last + 1))? != bytes.len() {
            return Err(Malformed("a block does not end where it says"));
        }
        Ok(Self { row, count })
    }

    /// How many entries it has, one at least.
    pub(in crate::machine) fn count(&self) -> usize {
        self.count
    }

    pub(in crate::machine) fn bytes(&self, part: Range<usize>) -> &[u8] {
        // Parts are those of entries, which were found to be within it.
        self.row.bytes().get(part).unwrap_or_default()
    }

    fn entry(&self, at: usize) -> Result<Entry, Malformed> {
        let bytes = self.row.bytes();
        let begin = NUMBER * (self.count + 1);
        let from = match at.checked_sub(1) {
            Some(before) => number(bytes, NUMBER * (before + 1))?,
            None => 0,
        };
        let (from, to) = (begin + from, begin + number(bytes, NUMBER * (at + 1))?);
        let key = from + NUMBER;
        let head = key + number(bytes, from)?;
        if head > to || to > bytes.len() {
            return Err(Malformed("an entry of a block does not end where it says"));
        }
        Ok(Entry {
            key: key..head,
            head: head..to,
        })
    }

    /// How many entries come before those whose keys are behind: `is_before` says of a key that it is not.
    fn before(&self, is_before: impl Fn(&[u8]) -> bool) -> Result<usize, Malformed> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            match is_before(self.bytes(self.entry(middle)?.key)) {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        Ok(low)
    }

    /// The entries that are within bounds.
    fn within(&self, lower: Bound<&[u8]>, upper: Bound<&[u8]>) -> Result<Range<usize>, Malformed> {
        let from = match lower {
            Bound::Unbounded => 0,
            Bound::Included(bound) => self.before(|key| key < bound)?,
            Bound::Excluded(bound) => self.before(|key| key <= bound)?,
        };
        let to = match upper {
            Bound::Unbounded => self.count,
            Bound::Included(bound) => self.before(|key| key <= bound)?,
            Bound::Excluded(bound) => self.before(|key| key < bound)?,
        };
        Ok(from..to.max(from))
    }

    fn row(self: &Arc<Self>, at: usize) -> Result<HeadRow<G>, Malformed> {
        let Entry { key, head } = self.entry(at)?;
        Ok(HeadRow::new(Arc::clone(self), key, head))
    }

    /// All entries, for who checks them.
    pub(in crate::machine) fn rows(self) -> impl Iterator<Item = Result<HeadRow<G>, Malformed>> {
        let block = Arc::new(self);
        (0..block.count).map(move |at| block.row(at))
    }
}

/// A row outside any file.
#[cfg(any(test, feature = "fuzzing"))]
impl Guard for &[u8] {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// See [`crate::fuzzing`]. A block whose entries can all be read is written as it is.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn decoder() -> crate::decoder::Decoder {
    fn written<'e>(rows: impl IntoIterator<Item = (&'e [u8], &'e [u8])>) -> Vec<u8> {
        let (mut ends, mut entries) = (Vec::new(), Vec::new());
        for (key, head) in rows {
            let length = |bytes: &[u8]| u16::try_from(bytes.len()).expect("of a block");
            entries.extend_from_slice(&length(key).to_be_bytes());
            entries.extend_from_slice(key);
            entries.extend_from_slice(head);
            ends.push(length(&entries));
        }
        encode(&ends, &entries).expect("as many as were read")
    }
    fn check(bytes: &[u8]) {
        let Ok(block) = Block::of(bytes) else {
            return;
        };
        let count = block.count();
        for bound in [&b"k"[..], &[], bytes] {
            for (lower, upper) in [
                (Bound::Included(bound), Bound::Unbounded),
                (Bound::Excluded(bound), Bound::Included(bound)),
                (Bound::Unbounded, Bound::Excluded(bound)),
            ] {
                let within = block.within(lower, upper);
                assert!(within.is_err() || within.is_ok_and(|range| range.end <= count));
            }
        }
        let rows: Result<Vec<_>, Malformed> = block.rows().collect();
        if let Ok(rows) = rows {
            assert_eq!(rows.len(), count);
            let anew = written(rows.iter().map(|row| (row.key(), row.head())));
            assert_eq!(anew, bytes);
        }
    }
    crate::decoder::Decoder {
        name: "block of heads",
        check,
        samples: vec![
            written([(&b"a"[..], &b"head"[..])]),
            written([(&b"a"[..], &b""[..]), (b"ab", b"1"), (b"b", b"22")]),
        ],
    }
}

/// The head of a key in a run, if it has one.
pub(in crate::machine) fn find<'t>(
    file: &StateFile,
    run: &'t impl ReadableTable<BlockBound, Slice>,
    key: &[u8],
) -> Result<Option<HeadRow<redb::AccessGuard<'t, Slice>>>, Fault> {
    let first = run.range::<&[u8]>(key..).map_err(storage(file))?.next();
    let Some((_, row)) = first.transpose().map_err(storage(file))? else {
        return Ok(None);
    };
    let found = (|| {
        let block = Block::of(row)?;
        let at = block.before(|other| other < key)?;
        if at == block.count {
            // The key is between the block's last one and its bound.
            return Ok(None);
        }
        let row = Arc::new(block).row(at)?;
        Ok((row.key() == key).then_some(row))
    })();
    found.map_err(|e| file.malformed(&e))
}

/// A block that is being read, and what is left of it.
struct UnderWay<G> {
    block: Arc<Block<G>>,
    left: Range<usize>,
}

/// The heads of a run within bounds, from the end at which the order begins.
pub(in crate::machine) struct RunRows<R: Rows> {
    blocks: R,
    order: Order,
    lower: Bound<Vec<u8>>,
    upper: Bound<Vec<u8>>,
    under_way: Option<UnderWay<R::Guard>>,
    /// Nothing within the bounds is in further blocks.
    is_over: bool,
}

/// Of a run's table.
pub(in crate::machine) fn rows<'t>(
    file: &StateFile,
    run: &'t impl ReadableTable<BlockBound, Slice>,
    (lower, upper): (Bound<&[u8]>, Bound<&[u8]>),
    order: Order,
) -> Result<RunRows<redb::Range<'t, BlockBound, Slice>>, Fault> {
    let from = |from: Bound<&[u8]>| run.range::<&[u8]>((from, Bound::Unbounded));
    let blocks = match (order, upper) {
        // Behind the block that ends the range comes no other that is asked for.
        (Order::Ascending, _) | (Order::Descending, Bound::Unbounded) => from(lower),
        (Order::Descending, Bound::Included(bound) | Bound::Excluded(bound)) => {
            // The last block that can have something of the range is the first that ends at its end or behind.
            let last = from(Bound::Included(bound)).map_err(storage(file))?.next();
            match last.transpose().map_err(storage(file))? {
                Some((key, _)) => run.range::<&[u8]>((lower, Bound::Included(key.value()))),
                None => from(lower),
            }
        }
    };
    Ok(RunRows::new(
        blocks.map_err(storage(file))?,
        order,
        lower.map(<[u8]>::to_vec),
        upper.map(<[u8]>::to_vec),
    ))
}

impl<R: Rows> RunRows<R> {
    fn new(blocks: R, order: Order, lower: Bound<Vec<u8>>, upper: Bound<Vec<u8>>) -> Self {
        Self {
            blocks,
            order,
            lower,
            upper,
            under_way: None,
            is_over: false,
        }
    }

    /// Over all blocks of a run.
    pub(in crate::machine) fn all(blocks: R, order: Order) -> Self {
        Self::new(blocks, order, Bound::Unbounded, Bound::Unbounded)
    }

    pub(in crate::machine) fn next(&mut self, file: &StateFile) -> Result<Option<HeadRow<R::Guard>>, Fault> {
        let malformed = |e| file.malformed(&e);
        loop {
            if let Some(UnderWay { block, left }) = &mut self.under_way {
                let at = match self.order {
                    Order::Ascending => left.next(),
                    Order::Descending => left.next_back(),
                };
                if let Some(at) = at {
                    return block.row(at).map(Some).map_err(malformed);
                }
            }
            if self.is_over {
                return Ok(None);
            }
            let Some(row) = self.next_block().map_err(storage(file))? else {
                (self.under_way, self.is_over) = (None, true);
                return Ok(None);
            };
            let block = Block::of(row).map_err(malformed)?;
            let (lower, upper) = (self.lower.as_ref(), self.upper.as_ref());
            let within = block.within(lower.map(Vec::as_slice), upper.map(Vec::as_slice));
            let left = within.map_err(malformed)?;
            self.is_over = match self.order {
                Order::Ascending => left.end < block.count(),
                Order::Descending => left.start > 0,
            };
            let block = Arc::new(block);
            self.under_way = Some(UnderWay { block, left });
        }
    }

    fn next_block(&mut self) -> Result<Option<R::Guard>, StorageError> {
        let row = match self.order {
            Order::Ascending => self.blocks.next(),
            Order::Descending => self.blocks.next_back(),
        };
        Ok(row.transpose()?.map(|(_, block)| block))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::rc::Rc;

    use proptest::prelude::*;
    use redb::{Database, ReadableDatabase, StorageBackend, TableDefinition};

    use super::*;

    const RUN: TableDefinition<'static, BlockBound, Slice> = TableDefinition::new("heads-0");

    impl Guard for Vec<u8> {
        fn bytes(&self) -> &[u8] {
            self
        }
    }

    fn file() -> StateFile {
        StateFile::new(Path::new("/state"))
    }

    /// A run of these heads, in blocks of so many bytes, closed besides behind each so many heads.
    fn run(heads: &BTreeMap<Vec<u8>, Vec<u8>>, block_bytes: usize, closed_every: usize) -> Database {
        let in_memory = redb::backends::InMemoryBackend::new();
        let database = Database::builder().create_with_backend(in_memory).unwrap();
        run_in(database, heads, block_bytes, closed_every)
    }

    fn run_in(
        database: Database,
        heads: &BTreeMap<Vec<u8>, Vec<u8>>,
        block_bytes: usize,
        closed_every: usize,
    ) -> Database {
        let txn = database.begin_write().unwrap();
        {
            let mut table = txn.open_table(RUN).unwrap();
            let mut end = table.upper_bound_mut(Bound::<&[u8]>::Unbounded).unwrap();
            let mut filling = Filling::blocks_of(block_bytes);
            for (count, (key, head)) in (1..).zip(heads) {
                filling.put(&file(), &mut end, key, head).unwrap();
                if count % closed_every == 0 {
                    filling.close(&file(), &mut end).unwrap();
                }
            }
            filling.close(&file(), &mut end).unwrap();
            end.close().unwrap();
        }
        txn.commit().unwrap();
        database
    }

    /// A file in memory that counts its reads.
    #[derive(Debug, Default)]
    struct CountingFile {
        file: redb::backends::InMemoryBackend,
        reads: std::sync::Arc<std::sync::atomic::AtomicUsize>,
    }

    impl StorageBackend for CountingFile {
        fn len(&self) -> Result<u64, std::io::Error> {
            self.file.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
            self.reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            self.file.read(offset, out)
        }

        fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
            self.file.set_len(len)
        }

        fn sync_data(&self) -> Result<(), std::io::Error> {
            self.file.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
            self.file.write(offset, data)
        }
    }

    /// Plain bytes as keys of rows made one look-up of three read a page too much, at ten million keys a seventh of all work.
    #[test]
    fn a_look_up_reads_one_block_and_the_way_to_it() {
        let file_in_memory = CountingFile::default();
        let reads = std::sync::Arc::clone(&file_in_memory.reads);
        let key = |number: u32| number.wrapping_mul(2_654_435_761).to_be_bytes().to_vec();
        let heads = (0..60_000).map(|number| (key(number), vec![7; 40])).collect();
        let database = run_in(
            Database::builder()
                .set_cache_size(0)
                .create_with_backend(file_in_memory)
                .unwrap(),
            &heads,
            BLOCK_BYTES,
            usize::MAX,
        );
        let txn = database.begin_read().unwrap();
        let table = txn.open_table(RUN).unwrap();
        let reads_of = |number: u32| {
            let before = reads.load(std::sync::atomic::Ordering::Relaxed);
            let found = find(&file(), &table, &key(number)).unwrap();
            assert_eq!(found.is_some(), number < 60_000, "{number}");
            drop(found);
            reads.load(std::sync::atomic::Ordering::Relaxed) - before
        };
        let depth = reads_of(0);
        assert!((3..=4).contains(&depth), "{depth}: a root, branches and a block");
        for number in 0..61_000 {
            assert_eq!(reads_of(number), depth, "{number}");
        }
    }

    proptest! {
        #[test]
        fn a_bound_is_short_and_between_two_blocks(
            one in prop::collection::vec(0u8..3, 0..6), other in prop::collection::vec(0u8..3, 0..6),
        ) {
            prop_assume!(one != other);
            let (last, next) = if one < other { (one, other) } else { (other, one) };
            let bound = between(&last, &next);
            prop_assert!(last[..] <= bound[..] && bound[..] < next[..]);
            prop_assert!(bound.len() <= last.len());
            for shorter in (0..bound.len().min(next.len())).map(|len| &next[..len]) {
                prop_assert!(shorter < &last[..], "{shorter:?} would do for {bound:?}");
            }
        }
    }

    fn short() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(0u8..3, 0..4)
    }

    fn bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
        prop_oneof![
            Just(Bound::Unbounded),
            short().prop_map(Bound::Included),
            short().prop_map(Bound::Excluded),
        ]
    }

    proptest! {
        #[test]
        fn a_run_in_blocks_reads_as_an_ordered_map_does(
            heads in prop::collection::btree_map(short(), short(), 0..40),
            block_bytes in prop_oneof![Just(1usize), 20usize..80, Just(BLOCK_BYTES)], closed_every in 1usize..50,
            looked_up in short(), lower in bound(), upper in bound(),
        ) {
            let database = run(&heads, block_bytes, closed_every);
            let txn = database.begin_read().unwrap();
            let table = txn.open_table(RUN).unwrap();
            let found = find(&file(), &table, &looked_up).unwrap();
            prop_assert_eq!(found.map(|row| row.head().to_vec()), heads.get(&looked_up).cloned());
            let is_within = |key: &[u8]| {
                (match &lower {
                    Bound::Unbounded => true,
                    Bound::Included(bound) => key >= &bound[..],
                    Bound::Excluded(bound) => key > &bound[..],
                }) && (match &upper {
                    Bound::Unbounded => true,
                    Bound::Included(bound) => key <= &bound[..],
                    Bound::Excluded(bound) => key < &bound[..],
                })
            };
            let mut expected: Vec<_> = heads.into_iter().filter(|(key, _)| is_within(key)).collect();
            for order in [Order::Ascending, Order::Descending] {
                let bounds = (lower.as_ref().map(|key| &key[..]), upper.as_ref().map(|key| &key[..]));
                let mut rows = rows(&file(), &table, bounds, order).unwrap();
                let mut read = Vec::new();
                while let Some(row) = rows.next(&file()).unwrap() {
                    read.push((row.key().to_vec(), row.head().to_vec()));
                }
                prop_assert_eq!(&read, &expected);
                prop_assert!(rows.next(&file()).unwrap().is_none(), "the end stays the end");
                expected.reverse();
            }
        }

        #[test]
        fn of_garbage_nothing_is_read_that_is_not_there(garbage in prop::collection::vec(0u8..12, 0..40)) {
            let Ok(block) = Block::of(garbage.clone()) else { return Ok(()) };
            prop_assert!(block.count() > 0);
            let _found_or_refused = block.before(|key| key < &[5][..]);
            for row in block.rows().flatten() {
                prop_assert!(2 + row.key().len() + row.head().len() < garbage.len());
            }
        }
    }

    /// Counts the blocks that are read.
    struct Counting(std::vec::IntoIter<RowOfTable>, Rc<Cell<usize>>);

    type RowOfTable = (Vec<u8>, Vec<u8>);

    impl Counting {
        fn row(&self, row: Option<RowOfTable>) -> Option<Result<RowOfTable, StorageError>> {
            self.1.set(self.1.get() + usize::from(row.is_some()));
            row.map(Ok)
        }
    }

    impl Iterator for Counting {
        type Item = Result<RowOfTable, StorageError>;

        fn next(&mut self) -> Option<Self::Item> {
            let row = self.0.next();
            self.row(row)
        }
    }

    impl DoubleEndedIterator for Counting {
        fn next_back(&mut self) -> Option<Self::Item> {
            let row = self.0.next_back();
            self.row(row)
        }
    }

    impl Rows for Counting {
        type Bound = Vec<u8>;
        type Guard = Vec<u8>;
    }

    #[test]
    fn a_range_reads_no_more_blocks_than_it_is_in_and_one() {
        // A block for each number, of one head.
        let blocks: Vec<_> = (0..100u8)
            .map(|number| {
                let entry = [0, 1, number, b'H'];
                (vec![number], encode(&[4], &entry).unwrap())
            })
            .collect();
        for order in [Order::Ascending, Order::Descending] {
            let read = Rc::default();
            // The table gives the blocks from the lower bound on, and downwards from the one with the upper.
            let (from, to) = match order {
                Order::Ascending => (40, 100),
                Order::Descending => (0, 43),
            };
            let of_table = blocks[from..to].to_vec();
            let of_table = Counting(of_table.into_iter(), Rc::clone(&read));
            let bounds = [40, 42].map(|number: u8| Bound::Included(vec![number]));
            let [lower, upper] = bounds;
            let mut rows = RunRows::new(of_table, order, lower, upper);
            let mut keys = Vec::new();
            while let Some(row) = rows.next(&file()).unwrap() {
                keys.push(row.key()[0]);
            }
            keys.sort_unstable();
            assert_eq!(keys, [40, 41, 42]);
            assert!(rows.next(&file()).unwrap().is_none());
            assert_eq!(read.get(), 4, "{order:?}");
        }
    }

    #[test]
    fn the_documented_block_has_these_bytes() {
        let heads = BTreeMap::from([(b"a".to_vec(), b"HEAD".to_vec()), (b"bc".to_vec(), b"H".to_vec())]);
        let database = run(&heads, BLOCK_BYTES, usize::MAX);
        let txn = database.begin_read().unwrap();
        let table = txn.open_table(RUN).unwrap();
        let block = table.get(&b"bc"[..]).unwrap().unwrap();
        assert_eq!(block.value(), b"\0\x02\0\x07\0\x0c\0\x01aHEAD\0\x02bcH");
    }

    #[test]
    fn the_documented_bounds_have_these_bytes_and_this_type() {
        // Each head in a block of its own.
        let heads = ["kaaaa", "kabbb", "kzzz9", "mzzz"].map(|key| (key.as_bytes().to_vec(), b"H".to_vec()));
        let database = run(&BTreeMap::from(heads), 1, usize::MAX);
        let txn = database.begin_read().unwrap();
        let table = txn.open_table(RUN).unwrap();
        let bounds = table.iter().unwrap().map(|row| row.unwrap().0.value().to_vec());
        let bounds: Vec<_> = bounds.map(|bound| String::from_utf8(bound).unwrap()).collect();
        assert_eq!(bounds, ["kab", "kz", "m", "mzzz"]);
        assert_eq!(
            <BlockBound as redb::Value>::type_name().name(),
            "quorate::BlockBound"
        );
    }

    #[test]
    fn a_full_block_with_its_row_fills_no_more_than_a_page() {
        use redb::ReadableTableMetadata as _;

        let heads = (0..10_000u32).map(|number| (number.to_be_bytes().to_vec(), vec![7; 40]));
        let database = run(&heads.collect(), BLOCK_BYTES, usize::MAX);
        let txn = database.begin_read().unwrap();
        let stats = txn.open_table(RUN).unwrap().stats().unwrap();
        let blocks = txn.open_table(RUN).unwrap().len().unwrap();
        assert_eq!(stats.leaf_pages(), blocks, "a page each, of the smallest size");
        // Half a head is left of a page on average.
        let filled = stats.stored_bytes() * 100 / (blocks * 4096);
        assert!(filled >= 97, "{stats:?} of {blocks}");
    }

    #[test]
    fn heads_that_are_not_in_order_are_refused() {
        let database = run(&BTreeMap::new(), 1, 1);
        let txn = database.begin_write().unwrap();
        let mut table = txn.open_table(RUN).unwrap();
        let mut end = table.upper_bound_mut(Bound::<&[u8]>::Unbounded).unwrap();
        let mut filling = Filling::blocks_of(BLOCK_BYTES);
        filling.put(&file(), &mut end, b"b", b"").unwrap();
        for key in [b"a", b"b"] {
            assert!(!filling.is_next(key));
            assert!(filling.put(&file(), &mut end, key, b"").is_err());
        }
        filling.close(&file(), &mut end).unwrap();
        assert!(!filling.is_next(b"b"), "a block that is closed counts too");
        assert!(filling.is_next(b"c"));
        end.close().unwrap();
    }
}
