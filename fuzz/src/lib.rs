//! What the targets share: how much a decoder may take from the heap for what it is given.

use cap::Cap;

#[global_allocator]
static HEAP: Cap<std::alloc::System> = Cap::new(std::alloc::System, usize::MAX);

/// A decoder may hold so many bytes for each byte of its input: an operation of three bytes is a value of a hundred
/// and more.
const BYTES_PER_BYTE: usize = 100;
/// And so many at once whatever the input: serde reserves up to 1 MiB for a sequence that claims to be long, and
/// sequences nest.
const BYTES_FREE: usize = 8 << 20;

/// Runs a decoder, which dies when it takes more than it may.
pub fn within_bounds(input: &[u8], decode: impl FnOnce()) {
    let limit = HEAP.allocated() + BYTES_FREE + BYTES_PER_BYTE * input.len();
    HEAP.set_limit(limit).expect("the limit is above what is allocated");
    decode();
    HEAP.set_limit(usize::MAX).expect("there is no limit beyond this");
}
