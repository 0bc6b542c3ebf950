//! The table `sequences`: the last number given under each prefix by a sequence put.
//!
//! Key: the prefix. Value: the number, 8 bytes, big-endian. A row lives for ever, so that a number is never
//! given twice, also when the keys that bore them are gone.

use super::wire::{Malformed, Row};

pub(super) fn encode(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

pub(super) fn decode(bytes: &[u8]) -> Result<u64, Malformed> {
    let mut row = Row::new(bytes);
    let number = row.u64()?;
    row.end()?;
    Ok(number)
}
