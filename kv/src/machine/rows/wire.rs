//! The primitives that rows of the state file and snapshots are made of, and a reader that never panics.
//!
//! Fixed numbers are big-endian, so that keys sort. A varint is LEB128: seven bits a byte, the lowest first,
//! the top bit set on all but the last; always the shortest form, since equal states must have equal bytes.

/// Bytes that are not the row they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(in crate::machine) struct Malformed(pub(in crate::machine) &'static str);

pub(in crate::machine) fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_be_bytes());
}

pub(in crate::machine) fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number as u8) | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Reads a row from its front.
#[derive(Debug, Clone)]
pub(in crate::machine) struct Row<'a> {
    rest: &'a [u8],
}

impl<'a> Row<'a> {
    pub(in crate::machine) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(in crate::machine) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(in crate::machine) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(Malformed("the row ends early"))?;
        self.rest = rest;
        Ok(head)
    }

    pub(in crate::machine) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(Malformed("the row ends early"))?;
        self.rest = rest;
        Ok(*head)
    }

    pub(in crate::machine) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    pub(in crate::machine) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub(in crate::machine) fn u128(&mut self) -> Result<u128, Malformed> {
        Ok(u128::from_be_bytes(self.array()?))
    }

    pub(in crate::machine) fn varint(&mut self) -> Result<u64, Malformed> {
        let mut number = 0u64;
        for (i, &byte) in self.rest.iter().enumerate() {
            let bits = u64::from(byte & 0x7f);
            let shift = 7 * i as u32;
            if shift > 63 || (shift == 63 && bits > 1) {
                return Err(Malformed("a varint exceeds 64 bits"));
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && i > 0 {
                    return Err(Malformed("a varint is longer than it needs to be"));
                }
                self.rest = &self.rest[i + 1..];
                return Ok(number);
            }
        }
        Err(Malformed("the row ends inside a varint"))
    }

    /// A varint that is a count of bytes, then so many bytes.
    pub(in crate::machine) fn sized(&mut self) -> Result<&'a [u8], Malformed> {
        let size = self.varint()?;
        let size = usize::try_from(size).map_err(|_| Malformed("a size exceeds the address space"))?;
        self.bytes(size)
    }

    pub(in crate::machine) fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Malformed("bytes follow the row"))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_varint_reads_back_and_bytes_that_are_none_are_refused(number: u64, garbage: Vec<u8>) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, number);
            let mut row = Row::new(&bytes);
            prop_assert_eq!(row.varint(), Ok(number));
            prop_assert_eq!(row.end(), Ok(()));
            for cut in 0..bytes.len() {
                prop_assert!(Row::new(&bytes[..cut]).varint().is_err());
            }
            let mut row = Row::new(&garbage);
            if let Ok(found) = row.varint() {
                let mut again = Vec::new();
                put_varint(&mut again, found);
                prop_assert_eq!(&garbage[..again.len()], &again[..], "one number has one form");
            }
        }
    }
}
