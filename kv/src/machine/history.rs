//! The table `history`: the records that were.
//!
//! Key: the key with each 0x00 written as 0x00 0xFF, then 0x00 0x00, then the revision that ended the record
//! (8 bytes, big-endian). So rows sort by key, then by end, and no key's rows stand among another's.
//! Value: the row of `current`, as it was. A row lives from the revision that ended it until compaction.
//!
//! The record of a key at revision R is the current one if that was written at or before R; else the row with
//! the smallest end above R, if that was written at or before R; else the key did not exist.

use super::wire::Malformed;
use crate::model::Revision;

const END: [u8; 2] = [0, 0];
const ESCAPED_ZERO: [u8; 2] = [0, 0xff];

/// Appends the escaped key, without its terminator.
fn put_escaped(out: &mut Vec<u8>, key: &[u8]) {
    for (i, part) in key.split(|byte| *byte == 0).enumerate() {
        if i > 0 {
            out.extend_from_slice(&ESCAPED_ZERO);
        }
        out.extend_from_slice(part);
    }
}

/// The row key of the record of `key` that ended at `end`.
pub(super) fn row_key(key: &[u8], end: Revision) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 12);
    put_escaped(&mut out, key);
    out.extend_from_slice(&END);
    out.extend_from_slice(&end.number().to_be_bytes());
    out
}

/// A row key that lies before each row of `key` and of every greater key, and after those of all lesser ones.
pub(super) fn bound(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 2);
    put_escaped(&mut out, key);
    out.extend_from_slice(&END);
    out
}

/// A row key that lies behind each row of `key` and before those of every greater key.
pub(super) fn bound_after(key: &[u8]) -> Vec<u8> {
    let mut out = bound(key);
    if let Some(last) = out.last_mut() {
        // 0x00 0x01: above the terminator, below an escaped zero.
        *last = 1;
    }
    out
}

/// Reads a row key back: the key and the revision that ended the record.
pub(super) fn read_key(row: &[u8]) -> Result<(Vec<u8>, Revision), Malformed> {
    let (escaped, end) = row
        .split_last_chunk::<8>()
        .ok_or(Malformed("a history key is shorter than its revision"))?;
    let escaped = escaped
        .strip_suffix(&END)
        .ok_or(Malformed("a history key lacks its terminator"))?;
    let mut key = Vec::with_capacity(escaped.len());
    let mut bytes = escaped.iter();
    while let Some(&byte) = bytes.next() {
        key.push(byte);
        if byte == 0 && bytes.next() != Some(&ESCAPED_ZERO[1]) {
            return Err(Malformed("a history key holds a bare zero"));
        }
    }
    Ok((key, Revision::new(u64::from_be_bytes(*end))))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Keys in which zeros and ends of range are common.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        vec(
            prop_oneof![Just(0u8), Just(1), Just(0xfe), Just(0xff), any::<u8>()],
            0..6,
        )
    }

    proptest! {
        #[test]
        fn history_sorts_by_key_then_by_revision(a in key(), b in key(), x: u64, y: u64) {
            let (ra, rb) = (row_key(&a, Revision::new(x)), row_key(&b, Revision::new(y)));
            prop_assert_eq!(ra.cmp(&rb), (&a, x).cmp(&(&b, y)));
            prop_assert_eq!(read_key(&ra), Ok((a.clone(), Revision::new(x))));
            prop_assert_eq!(bound(&a) <= rb, a <= b, "the bound parts lesser keys from the others");
            prop_assert_eq!(bound_after(&a) <= rb, a < b, "this one parts greater keys from the others");
        }

        #[test]
        fn a_garbled_history_key_is_refused_or_read_never_a_panic(garbage: Vec<u8>) {
            let _ = read_key(&garbage);
        }
    }
}
