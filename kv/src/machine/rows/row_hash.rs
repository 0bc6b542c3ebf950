//! The hash of a row, of which the state's hash is made.

use super::head::Head;
use super::tables::Table;
use super::wire::Malformed;

/// The hash of one row: XXH3-128 of the table's tag, the key's size (4 bytes), the key and the value.
///
/// `scratch` is a buffer to reuse.
pub(in crate::machine) fn hash_row(scratch: &mut Vec<u8>, table: Table, key: &[u8], value: &[u8]) -> u128 {
    begin_hash(scratch, table, key.len());
    scratch.extend_from_slice(key);
    scratch.extend_from_slice(value);
    end_hash(scratch)
}

/// What a row of a logical table adds to the sum of the rows' hashes: of a head, its record's part alone.
pub(in crate::machine) fn hash_of_logical_row(
    scratch: &mut Vec<u8>,
    table: Table,
    key: &[u8],
    row: &[u8],
) -> Result<u128, Malformed> {
    let row = match table {
        Table::Current => Head::record_part(row)?,
        _ => row,
    };
    Ok(hash_row(scratch, table, key, row))
}

/// Begins the hash of a row that is assembled in place: its key and its value are to be appended.
pub(in crate::machine) fn begin_hash(scratch: &mut Vec<u8>, table: Table, key_len: usize) {
    scratch.clear();
    scratch.push(table.tag());
    scratch.extend_from_slice(&(key_len as u32).to_be_bytes());
}

/// The hash of the row that was assembled.
pub(in crate::machine) fn end_hash(scratch: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(scratch)
}
