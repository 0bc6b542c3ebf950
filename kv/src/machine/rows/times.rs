//! The table `times`: which revision stood when, by the log's time; for what is to be found by its age.
//!
//! Key: the log's time in milliseconds, 8 bytes. Value: the first revision that was made at that time, 8 bytes. Both
//! big-endian. A row is written for the first revision, and for each that is made so long after the row before as
//! [`Tuning::time_spacing_millis`](crate::machine::Tuning::time_spacing_millis) says; so all that was made within that time of a row
//! goes by it. A row lives until a later one stands for the oldest readable revision.
//!
//! The table is no part of the replicated state: it leads to history, which is each node's own.

use redb::{ReadableTable, Table as Rows, WriteTransaction};

use super::error::{StateFile, step, storage};
use super::tables::Table;
use super::wire::{Malformed, Row};
use crate::fault::Fault;
use crate::model::{LogTime, Revision};

/// What stood first at a time.
pub(in crate::machine) type Stood = (LogTime, Revision);

pub(in crate::machine) fn key(time: LogTime) -> [u8; 8] {
    time.millis().to_be_bytes()
}

pub(in crate::machine) fn value(revision: Revision) -> [u8; 8] {
    revision.number().to_be_bytes()
}

/// Reads a row back.
pub(in crate::machine) fn read(key: &[u8], value: &[u8]) -> Result<Stood, Malformed> {
    let (mut key, mut value) = (Row::new(key), Row::new(value));
    let stood = (LogTime::from_millis(key.u64()?), Revision::new(value.u64()?));
    key.end()?;
    value.end()?;
    Ok(stood)
}

/// Demands that rows stand in the order of revisions, which is that of times: to be asked row by row.
pub(in crate::machine) fn follows(last: Option<Stood>, next: Stood) -> Result<(), Malformed> {
    match last.is_some_and(|(_, revision)| revision >= next.1) {
        true => Err(Malformed("of two times the later one has not the later revision")),
        false => Ok(()),
    }
}

/// Takes away what stands before the last row that is not later than the oldest revision.
pub(in crate::machine) fn forget(
    file: &StateFile,
    txn: &WriteTransaction,
    oldest: Revision,
) -> Result<(), Fault> {
    let mut rows: Rows<'_, &'static [u8], &'static [u8]> = txn
        .open_table(Table::Times.definition())
        .map_err(step(file, "opening a table of"))?;
    let mut gone = Vec::new();
    for row in rows.range::<&[u8]>(..).map_err(storage(file))? {
        let (key, value) = row.map_err(storage(file))?;
        let (_, revision) = read(key.value(), value.value()).map_err(|e| file.malformed(&e))?;
        if revision > oldest {
            break;
        }
        gone.push(key.value().to_vec());
    }
    // The last of them stands for the oldest revision.
    gone.pop();
    for key in gone {
        rows.remove(&key[..]).map_err(storage(file))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_row_reads_back_and_any_bytes_are_its_one_form_or_refused(
            time: u64, revision: u64, key_bytes in prop::collection::vec(any::<u8>(), 0..10),
            value_bytes in prop::collection::vec(any::<u8>(), 0..10),
        ) {
            let stood = (LogTime::from_millis(time), Revision::new(revision));
            prop_assert_eq!(read(&key(stood.0), &value(stood.1)), Ok(stood));
            if let Ok((time, revision)) = read(&key_bytes, &value_bytes) {
                prop_assert_eq!(&key(time)[..], &key_bytes[..]);
                prop_assert_eq!(&value(revision)[..], &value_bytes[..]);
            }
        }
    }
}
