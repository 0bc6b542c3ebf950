//! Keys of tables as bytes, in the order of the keys.
//!
//! | type | bytes |
//! |---|---|
//! | `u8` to `u128` | big-endian |
//! | `i8` to `i128` | the same with the sign's bit turned over |
//! | `bool` | 0 or 1 |
//! | `[u8; N]`, `Uuid` | themselves |
//! | `String`, `Vec<u8>` | last: themselves; else each 0 as `00 01`, and `00 00` behind |
//! | tuples | their fields, one after the other |
//!
//! Always: of two keys the lower one's bytes are lower; no field's bytes begin with those of another value of the field, unless it is
//! the last one.

use std::ops::{Bound, Range, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive};

use uuid::Uuid;

use crate::model::{Key, KeyRange};

/// Where in a key a field stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Other fields follow.
    Inner,
    /// It ends the key.
    Last,
}

/// Bytes that are no key of the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MalformedKey {
    /// They end within a field.
    #[error("it ends within a field")]
    TooShort,
    /// A field has bytes that its type never writes.
    #[error("a field has bytes that its type does not write")]
    Unknown,
    /// Text that is not UTF-8.
    #[error("a text is not UTF-8")]
    NotText,
}

/// What can be written as a key of type `K`: `K` itself, or what is borrowed of it, such as `&str` for a `String`.
pub trait EncodeKey<K: ?Sized> {
    /// Appends the bytes. Their order must be that of the keys, and no value's bytes may begin with those of another, unless the
    /// position is the last.
    fn encode(&self, out: &mut Vec<u8>, position: Position);
}

/// A type of keys.
///
/// ```
/// use quorate_kv::table::{EncodeKey, MalformedKey, Position, TableKey};
///
/// struct OrderId(u64);
///
/// impl EncodeKey<OrderId> for OrderId {
///     fn encode(&self, out: &mut Vec<u8>, position: Position) {
///         self.0.encode(out, position);
///     }
/// }
///
/// impl TableKey for OrderId {
///     fn decode(from: &mut &[u8], position: Position) -> Result<Self, MalformedKey> {
///         u64::decode(from, position).map(OrderId)
///     }
/// }
/// ```
pub trait TableKey: EncodeKey<Self> + Sized {
    /// Takes what [`EncodeKey::encode`] wrote from the front of `from`.
    fn decode(from: &mut &[u8], position: Position) -> Result<Self, MalformedKey>;
}

impl<K: ?Sized, T: EncodeKey<K> + ?Sized> EncodeKey<K> for &T {
    fn encode(&self, out: &mut Vec<u8>, position: Position) {
        T::encode(self, out, position);
    }
}

fn take<const N: usize>(from: &mut &[u8]) -> Result<[u8; N], MalformedKey> {
    let (field, rest) = from.split_first_chunk::<N>().ok_or(MalformedKey::TooShort)?;
    *from = rest;
    Ok(*field)
}

macro_rules! unsigned {
    ($($number:ty),*) => {$(
        impl EncodeKey<$number> for $number {
            fn encode(&self, out: &mut Vec<u8>, _: Position) {
                out.extend_from_slice(&self.to_be_bytes());
            }
        }

        impl TableKey for $number {
            fn decode(from: &mut &[u8], _: Position) -> Result<Self, MalformedKey> {
                take(from).map(<$number>::from_be_bytes)
            }
        }
    )*};
}

macro_rules! signed {
    ($($number:ty),*) => {$(
        impl EncodeKey<$number> for $number {
            fn encode(&self, out: &mut Vec<u8>, _: Position) {
                // From the least to the greatest as bytes.
                out.extend_from_slice(&(self ^ <$number>::MIN).to_be_bytes());
            }
        }

        impl TableKey for $number {
            fn decode(from: &mut &[u8], _: Position) -> Result<Self, MalformedKey> {
                take(from).map(|bytes| <$number>::from_be_bytes(bytes) ^ <$number>::MIN)
            }
        }
    )*};
}

unsigned!(u8, u16, u32, u64, u128);
signed!(i8, i16, i32, i64, i128);

impl EncodeKey<bool> for bool {
    fn encode(&self, out: &mut Vec<u8>, _: Position) {
        out.push(u8::from(*self));
    }
}

impl TableKey for bool {
    fn decode(from: &mut &[u8], _: Position) -> Result<Self, MalformedKey> {
        match take(from)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(MalformedKey::Unknown),
        }
    }
}

impl<const N: usize> EncodeKey<[u8; N]> for [u8; N] {
    fn encode(&self, out: &mut Vec<u8>, _: Position) {
        out.extend_from_slice(self);
    }
}

impl<const N: usize> TableKey for [u8; N] {
    fn decode(from: &mut &[u8], _: Position) -> Result<Self, MalformedKey> {
        take(from)
    }
}

impl EncodeKey<Uuid> for Uuid {
    fn encode(&self, out: &mut Vec<u8>, _: Position) {
        out.extend_from_slice(self.as_bytes());
    }
}

impl TableKey for Uuid {
    fn decode(from: &mut &[u8], _: Position) -> Result<Self, MalformedKey> {
        take(from).map(Uuid::from_bytes)
    }
}

/// Behind a field of any length that is not the last: lower than what a longer field goes on with.
const END: [u8; 2] = [0, 0];
/// In the place of a 0 in such a field.
const ZERO: [u8; 2] = [0, 1];

fn encode_bytes(bytes: &[u8], out: &mut Vec<u8>, position: Position) {
    if position == Position::Last {
        return out.extend_from_slice(bytes);
    }
    for byte in bytes {
        match byte {
            0 => out.extend_from_slice(&ZERO),
            other => out.push(*other),
        }
    }
    out.extend_from_slice(&END);
}

fn decode_bytes(from: &mut &[u8], position: Position) -> Result<Vec<u8>, MalformedKey> {
    if position == Position::Last {
        return Ok(std::mem::take(from).to_vec());
    }
    let mut bytes = Vec::new();
    loop {
        match take(from)? {
            [0] => match take(from)? {
                [0] => return Ok(bytes),
                [1] => bytes.push(0),
                [_] => return Err(MalformedKey::Unknown),
            },
            [other] => bytes.push(other),
        }
    }
}

macro_rules! of_any_length {
    ($owned:ty: $($like:ty),*) => {$(
        impl EncodeKey<$owned> for $like {
            fn encode(&self, out: &mut Vec<u8>, position: Position) {
                encode_bytes(self.as_ref(), out, position);
            }
        }
    )*};
}

of_any_length!(String: String, str);
of_any_length!(Vec<u8>: Vec<u8>, [u8]);

impl TableKey for String {
    fn decode(from: &mut &[u8], position: Position) -> Result<Self, MalformedKey> {
        String::from_utf8(decode_bytes(from, position)?).map_err(|_| MalformedKey::NotText)
    }
}

impl TableKey for Vec<u8> {
    fn decode(from: &mut &[u8], position: Position) -> Result<Self, MalformedKey> {
        decode_bytes(from, position)
    }
}

/// The first fields of a key that is a tuple.
pub trait EncodePrefix<K: ?Sized> {
    /// Appends the bytes that all keys with these fields begin with.
    fn encode_prefix(&self, out: &mut Vec<u8>);
}

/// Tuples: for each its type's first fields, and what may stand for each field.
macro_rules! tuple {
    ($($first:ident $as_first:ident $at:tt),*; $last:ident $as_last:ident $end:tt) => {
        impl<$($first, $as_first,)* $last, $as_last> EncodeKey<($($first,)* $last,)> for ($($as_first,)* $as_last,)
        where
            $($as_first: EncodeKey<$first>,)*
            $as_last: EncodeKey<$last>,
        {
            fn encode(&self, out: &mut Vec<u8>, position: Position) {
                $(self.$at.encode(out, Position::Inner);)*
                self.$end.encode(out, position);
            }
        }

        impl<$($first: TableKey,)* $last: TableKey> TableKey for ($($first,)* $last,) {
            fn decode(from: &mut &[u8], position: Position) -> Result<Self, MalformedKey> {
                Ok(($($first::decode(from, Position::Inner)?,)* $last::decode(from, position)?,))
            }
        }
    };
}

tuple!(; A XA 0);
tuple!(A XA 0; B XB 1);
tuple!(A XA 0, B XB 1; C XC 2);
tuple!(A XA 0, B XB 1, C XC 2; D XD 3);
tuple!(A XA 0, B XB 1, C XC 2, D XD 3; E XE 4);
tuple!(A XA 0, B XB 1, C XC 2, D XD 3, E XE 4; F XF 5);

macro_rules! prefix {
    ($($field:ident $as_field:ident $at:tt),*; $($rest:ident),*) => {
        impl<$($field, $as_field: EncodeKey<$field>,)* $($rest),*> EncodePrefix<($($field,)* $($rest,)*)>
            for ($($as_field,)*)
        {
            fn encode_prefix(&self, out: &mut Vec<u8>) {
                $(self.$at.encode(out, Position::Inner);)*
            }
        }
    };
}

prefix!(A XA 0; B);
prefix!(A XA 0; B, C);
prefix!(A XA 0, B XB 1; C);
prefix!(A XA 0; B, C, D);
prefix!(A XA 0, B XB 1; C, D);
prefix!(A XA 0, B XB 1, C XC 2; D);
prefix!(A XA 0; B, C, D, E);
prefix!(A XA 0, B XB 1; C, D, E);
prefix!(A XA 0, B XB 1, C XC 2; D, E);
prefix!(A XA 0, B XB 1, C XC 2, D XD 3; E);
prefix!(A XA 0; B, C, D, E, F);
prefix!(A XA 0, B XB 1; C, D, E, F);
prefix!(A XA 0, B XB 1, C XC 2; D, E, F);
prefix!(A XA 0, B XB 1, C XC 2, D XD 3; E, F);
prefix!(A XA 0, B XB 1, C XC 2, D XD 3, E XE 4; F);

/// A range of keys of type `K`: any of Rust's ranges.
pub trait TableRange<K> {
    /// The store's keys of it in the table with this prefix.
    fn of_table(self, prefix: &str) -> KeyRange;
}

/// The store's key of a key of the table with this prefix.
pub(super) fn of_table<K>(prefix: &str, key: &impl EncodeKey<K>) -> Key {
    let mut bytes = prefix.as_bytes().to_vec();
    key.encode(&mut bytes, Position::Last);
    Key::from(bytes)
}

impl<K> TableRange<K> for RangeFull {
    fn of_table(self, prefix: &str) -> KeyRange {
        KeyRange::prefix(prefix)
    }
}

impl<K, Q: EncodeKey<K>> TableRange<K> for Range<Q> {
    fn of_table(self, prefix: &str) -> KeyRange {
        KeyRange::new(of_table(prefix, &self.start), of_table(prefix, &self.end))
    }
}

impl<K, Q: EncodeKey<K>> TableRange<K> for RangeInclusive<Q> {
    fn of_table(self, prefix: &str) -> KeyRange {
        KeyRange::between(of_table(prefix, self.start())..=of_table(prefix, self.end()))
    }
}

impl<K, Q: EncodeKey<K>> TableRange<K> for RangeFrom<Q> {
    fn of_table(self, prefix: &str) -> KeyRange {
        let end = KeyRange::prefix(prefix).end().map(Key::from);
        let start = Bound::Included(of_table(prefix, &self.start));
        KeyRange::between((start, end.map_or(Bound::Unbounded, Bound::Excluded)))
    }
}

impl<K, Q: EncodeKey<K>> TableRange<K> for RangeTo<Q> {
    fn of_table(self, prefix: &str) -> KeyRange {
        KeyRange::new(prefix, of_table(prefix, &self.end))
    }
}

impl<K, Q: EncodeKey<K>> TableRange<K> for RangeToInclusive<Q> {
    fn of_table(self, prefix: &str) -> KeyRange {
        KeyRange::between(Key::from(prefix)..=of_table(prefix, &self.end))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use proptest::prelude::*;

    use super::*;

    fn bytes<K: TableKey>(key: &K) -> Vec<u8> {
        let mut out = Vec::new();
        key.encode(&mut out, Position::Last);
        out
    }

    /// The bytes come back as the key, and have its order.
    fn obeys<K: TableKey + Ord + Debug>(one: &K, other: &K) {
        for key in [one, other] {
            let written = bytes(key);
            let mut rest = &written[..];
            assert_eq!(K::decode(&mut rest, Position::Last).as_ref(), Ok(key));
            assert_eq!(rest, b"", "{key:?}");
        }
        assert_eq!(
            bytes(one).cmp(&bytes(other)),
            one.cmp(other),
            "{one:?} and {other:?}"
        );
    }

    fn short() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(2), Just(255)], 0..4)
    }

    fn text() -> impl Strategy<Value = String> {
        "[\0\u{1}aé]{0,3}"
    }

    proptest! {
        #[test]
        fn the_bytes_of_a_key_are_in_its_order_and_come_back(
            u in any::<(u64, u64)>(), i in any::<(i64, i64)>(), small in any::<(i8, i8)>(), wide in any::<(u128, i128)>(),
            texts in (text(), text()), raw in (short(), short()), flags in any::<(bool, bool)>(),
        ) {
            obeys(&u.0, &u.1);
            obeys(&i.0, &i.1);
            obeys(&small.0, &small.1);
            obeys(&wide.0, &u128::from(u.0));
            obeys(&wide.1, &i128::from(i.0));
            obeys(&texts.0, &texts.1);
            obeys(&raw.0, &raw.1);
            obeys(&flags.0, &flags.1);
            obeys(&u.0.to_be_bytes(), &u.1.to_be_bytes());
            obeys(&Uuid::from_u128(wide.0), &Uuid::from_u128(u128::from(u.0)));
            obeys(&(raw.0.clone(), raw.1.clone()), &(raw.1.clone(), raw.0.clone()));
            obeys(&(texts.0.clone(), u.0, raw.0.clone()), &(texts.1.clone(), u.1, raw.1.clone()));
            obeys(&(texts.0.clone(), u8::MAX, flags.0, small.0), &(texts.1.clone(), 0u8, flags.1, small.1));
            obeys(&(flags.0, (raw.0.clone(), small.0), 7u16), &(flags.1, (raw.1.clone(), small.1), 7u16));
        }

        #[test]
        fn a_range_of_keys_has_the_keys_that_the_range_has(
            key in (short(), text()), one in (short(), text()), other in (short(), text()),
        ) {
            let (low, high) = if one <= other { (one, other) } else { (other, one) };
            let place = of_table("t/", &key).into_bytes();
            type Name = (Vec<u8>, String);
            fn has(range: impl TableRange<Name>, key: &[u8]) -> bool {
                range.of_table("t/").contains(key)
            }
            prop_assert!(has(.., &place));
            prop_assert_eq!(has(low.clone()..high.clone(), &place), (low.clone()..high.clone()).contains(&key));
            prop_assert_eq!(has(low.clone()..=high.clone(), &place), (low.clone()..=high.clone()).contains(&key));
            prop_assert_eq!(has(low.clone().., &place), (low.clone()..).contains(&key));
            prop_assert_eq!(has(..high.clone(), &place), (..high.clone()).contains(&key));
            prop_assert_eq!(has(..=high.clone(), &place), (..=high.clone()).contains(&key));
            // Another table's keys are in none.
            for other in ["t", "t.x", "t0", "u/x"] {
                prop_assert!(!has(low.clone().., other.as_bytes()) && !has(..=high.clone(), other.as_bytes()));
            }
            let mut prefix = b"t/".to_vec();
            EncodePrefix::<Name>::encode_prefix(&(&low.0,), &mut prefix);
            prop_assert_eq!(place.starts_with(&prefix), key.0 == low.0);
        }

        #[test]
        fn of_garbage_no_key_is_made_that_would_be_written_otherwise(garbage in prop::collection::vec(any::<u8>(), 0..24)) {
            type Name = (String, i32, bool, Vec<u8>);
            let mut rest = &garbage[..];
            if let Ok(key) = Name::decode(&mut rest, Position::Last) {
                prop_assert_eq!(bytes(&key), &garbage[..garbage.len() - rest.len()]);
            }
        }
    }

    #[test]
    fn the_documented_keys_have_these_bytes() {
        assert_eq!(bytes(&258u32), [0, 0, 1, 2]);
        assert_eq!(bytes(&-1i16), [0x7f, 0xff]);
        assert_eq!(bytes(&String::from("a\0b")), b"a\0b");
        assert_eq!(bytes(&(String::from("a\0b"), true)), b"a\0\x01b\0\0\x01");
    }
}
