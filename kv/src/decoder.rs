//! A decoder of what a peer or a disk could have spoiled, and what must hold of every one, for any bytes.
//!
//! Those who have decoders say so by these; `fuzzing` gathers them.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::model::{decode, encode};

/// A decoder.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// What it decodes.
    pub name: &'static str,
    /// Decodes these bytes, and panics where a promise of the decoder is broken.
    pub check: fn(&[u8]),
    /// Bytes that it accepts.
    pub samples: Vec<Vec<u8>>,
}

/// What is accepted is encoded in one form, which is read as the same. It is the given bytes, unless these had numbers
/// that were longer than they need to be, or the nodes of a membership out of order.
pub(crate) fn message<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    one_form(bytes, decode::<T>, encode::<T>);
}

/// The same of any decoder. Answers what was read, and what was read of the form that was written for it.
pub(crate) fn one_form<T, E: fmt::Display>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, E>,
    encode: impl Fn(&T) -> Vec<u8>,
) -> Option<(T, T)> {
    let message = decode(bytes).ok()?;
    let written = encode(&message);
    assert!(
        written.len() <= bytes.len(),
        "{bytes:?} is written as {written:?}"
    );
    match decode(&written) {
        Ok(again) => {
            assert_eq!(encode(&again), written, "of {bytes:?}");
            Some((message, again))
        }
        Err(error) => panic!("{bytes:?} is written as {written:?}, which is refused: {error}"),
    }
}

/// A decoder of one kind of message.
pub(crate) fn decoder_of<T: Serialize + DeserializeOwned>(name: &'static str, samples: &[T]) -> Decoder {
    Decoder {
        name,
        check: message::<T>,
        samples: samples.iter().map(encode).collect(),
    }
}
