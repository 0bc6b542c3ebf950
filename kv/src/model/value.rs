//! Values.

use std::borrow::Cow;

use bytes::Bytes;

/// A value: any bytes, up to [`Limits::value_bytes_max`](super::Limits::value_bytes_max), which is 1 MiB by default.
pub type Value = Bytes;

/// The bytes of a number, as [`Op::Add`](super::Op::Add) keeps it.
const NUMBER_BYTES: usize = 8;

/// What can be written as a value: anything that is text or bytes, borrowed or owned, and numbers.
///
/// An `i64` is written as the number that [`Op::Add`](super::Op::Add) counts with, 8 bytes big-endian;
/// [`Record::number`](super::Record::number) reads it. Implement it for a type of your own, and the type can be put.
///
/// ```
/// use quorate_kv::model::IntoValue;
///
/// assert_eq!("on".into_value(), String::from("on").into_value());
/// assert_eq!(7.into_value(), [0, 0, 0, 0, 0, 0, 0, 7].into_value());
/// ```
pub trait IntoValue {
    /// The bytes. What is owned is not copied.
    fn into_value(self) -> Value;
}

macro_rules! owned {
    ($($owned:ty),*) => {$(
        impl IntoValue for $owned {
            fn into_value(self) -> Value {
                self.into()
            }
        }
    )*};
}

macro_rules! borrowed {
    ($($borrowed:ty),*) => {$(
        impl IntoValue for $borrowed {
            fn into_value(self) -> Value {
                let bytes: &[u8] = self.as_ref();
                Bytes::copy_from_slice(bytes)
            }
        }
    )*};
}

owned!(Bytes, String, Vec<u8>, Box<[u8]>);
borrowed!(&str, &String, &[u8], &Vec<u8>);

impl IntoValue for &Bytes {
    fn into_value(self) -> Value {
        self.clone()
    }
}

impl IntoValue for Box<str> {
    fn into_value(self) -> Value {
        String::from(self).into()
    }
}

impl<const N: usize> IntoValue for [u8; N] {
    fn into_value(self) -> Value {
        Bytes::copy_from_slice(&self)
    }
}

impl<const N: usize> IntoValue for &[u8; N] {
    fn into_value(self) -> Value {
        Bytes::copy_from_slice(self)
    }
}

impl IntoValue for Cow<'_, str> {
    fn into_value(self) -> Value {
        match self {
            Cow::Borrowed(text) => text.into_value(),
            Cow::Owned(text) => text.into_value(),
        }
    }
}

impl IntoValue for Cow<'_, [u8]> {
    fn into_value(self) -> Value {
        match self {
            Cow::Borrowed(bytes) => bytes.into_value(),
            Cow::Owned(bytes) => bytes.into_value(),
        }
    }
}

impl IntoValue for i64 {
    fn into_value(self) -> Value {
        Bytes::copy_from_slice(&self.to_be_bytes())
    }
}

/// The number that a value is; `None` for other bytes.
pub(crate) fn number(value: &[u8]) -> Option<i64> {
    <[u8; NUMBER_BYTES]>::try_from(value).ok().map(i64::from_be_bytes)
}
