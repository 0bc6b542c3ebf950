//! The table `sequences`: the last number given under each prefix by a sequence put.
//!
//! Key: the prefix. Value: the number, 8 bytes, big-endian. A row lives for ever, so that a number is never
//! given twice, also when the keys that bore them are gone.

use super::wire::{Malformed, Row};

/// The bytes of a row's value.
pub(in crate::machine) const ROW_BYTES: u64 = 8;

pub(in crate::machine) fn encode(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

pub(in crate::machine) fn decode(bytes: &[u8]) -> Result<u64, Malformed> {
    let mut row = Row::new(bytes);
    let number = row.u64()?;
    row.end()?;
    Ok(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_the_one_form_of_a_number_or_refused(number: u64, bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            prop_assert_eq!(decode(&encode(number)), Ok(number));
            if let Ok(number) = decode(&bytes) {
                prop_assert_eq!(&encode(number)[..], &bytes[..]);
            }
        }
    }
}
