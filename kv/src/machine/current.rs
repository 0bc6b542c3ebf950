//! The table `current`: the records that exist now.
//!
//! Key: the key's bytes. Value: flags (bit 0: a lease follows), create_revision, mod_revision, version and,
//! where flagged, the lease, all varints; then the value's bytes to the end. A row lives from the revision
//! that wrote it to the one that writes or deletes the key; then it moves, byte for byte, to `history`.

use bytes::Bytes;

use super::wire::{Malformed, Row, put_varint};
use crate::model::{LeaseId, Record, Revision};

const HAS_LEASE: u8 = 1;

/// An encoded record: cheap to clone, decoded where it is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RecordRow(Bytes);

/// A record inside an encoded row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordRef<'a> {
    pub(super) create_revision: Revision,
    pub(super) mod_revision: Revision,
    pub(super) version: u64,
    pub(super) lease: Option<LeaseId>,
    pub(super) value: &'a [u8],
}

impl RecordRow {
    pub(super) fn encode(record: RecordRef<'_>) -> Self {
        let mut out = Vec::with_capacity(24 + record.value.len());
        out.push(if record.lease.is_some() { HAS_LEASE } else { 0 });
        put_varint(&mut out, record.create_revision.number());
        put_varint(&mut out, record.mod_revision.number());
        put_varint(&mut out, record.version);
        if let Some(lease) = record.lease {
            put_varint(&mut out, lease.number());
        }
        out.extend_from_slice(record.value);
        Self(out.into())
    }

    /// Takes a row that was read from the state file, once it decodes.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        RecordRef::decode(bytes)?;
        Ok(Self(Bytes::copy_from_slice(bytes)))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn record(&self) -> Result<RecordRef<'_>, Malformed> {
        RecordRef::decode(&self.0)
    }
}

impl<'a> RecordRef<'a> {
    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut row = Row::new(bytes);
        let flags = row.u8()?;
        if flags & !HAS_LEASE != 0 {
            return Err(Malformed("a record has unknown flags"));
        }
        let create_revision = Revision::new(row.varint()?);
        let mod_revision = Revision::new(row.varint()?);
        let version = row.varint()?;
        let lease = if flags & HAS_LEASE == 0 {
            None
        } else {
            Some(LeaseId::new(row.varint()?))
        };
        Ok(Self {
            create_revision,
            mod_revision,
            version,
            lease,
            value: row.rest(),
        })
    }

    pub(super) fn to_record(self, with_value: bool) -> Record {
        Record {
            value: if with_value {
                Bytes::copy_from_slice(self.value)
            } else {
                Bytes::new()
            },
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            lease: self.lease,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_record_reads_back_and_garbage_is_refused_or_read_never_a_panic(
            create: u64, modified: u64, version: u64, lease: Option<u64>, value: Vec<u8>, garbage: Vec<u8>,
        ) {
            let record = RecordRef {
                create_revision: Revision::new(create),
                mod_revision: Revision::new(modified),
                version,
                lease: lease.map(LeaseId::new),
                value: &value,
            };
            let row = RecordRow::encode(record);
            prop_assert_eq!(row.record(), Ok(record));
            prop_assert_eq!(RecordRow::read(row.bytes()), Ok(row));
            let _ = RecordRow::read(&garbage);
        }
    }
}
