//! Values of tables as bytes.

use std::fmt;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::model::Value;

/// How values of type `V` become bytes.
pub trait ValueCodec<V> {
    /// Why a value cannot be written or read.
    type Error: fmt::Display;

    /// The bytes of a value.
    fn encode(value: &V) -> Result<Value, Self::Error>;

    /// The value that [`encode`](Self::encode) wrote.
    fn decode(bytes: &Value) -> Result<V, Self::Error>;
}

/// JSON, by serde: readable where the store is looked at, and a type may get fields with defaults later. JSON has no NaN and no infinity:
/// a number that is one is written as `null`, which is not read back.
#[derive(Clone, Copy, Debug)]
pub enum Json {}

impl<V: Serialize + DeserializeOwned> ValueCodec<V> for Json {
    type Error = serde_json::Error;

    fn encode(value: &V) -> Result<Value, serde_json::Error> {
        serde_json::to_vec(value).map(Bytes::from)
    }

    fn decode(bytes: &Value) -> Result<V, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

/// [postcard](https://docs.rs/postcard), by serde: small and fast. It holds no names: a type must stay as it is, or be an enum of its
/// versions. Bytes behind a value are refused.
#[derive(Clone, Copy, Debug)]
pub enum Postcard {}

/// Why postcard cannot write or read a value.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PostcardError(String);

impl<V: Serialize + DeserializeOwned> ValueCodec<V> for Postcard {
    type Error = PostcardError;

    fn encode(value: &V) -> Result<Value, PostcardError> {
        let written = postcard::to_extend(value, Vec::new());
        written
            .map(Bytes::from)
            .map_err(|error| PostcardError(error.to_string()))
    }

    fn decode(bytes: &Value) -> Result<V, PostcardError> {
        let read = postcard::take_from_bytes(bytes).map_err(|error| PostcardError(error.to_string()));
        match read? {
            (value, []) => Ok(value),
            (_, rest) => Err(PostcardError(format!("{} bytes follow the value", rest.len()))),
        }
    }
}

/// The bytes themselves, for values that are bytes.
#[derive(Clone, Copy, Debug)]
pub enum Raw {}

impl ValueCodec<Value> for Raw {
    type Error = std::convert::Infallible;

    fn encode(value: &Value) -> Result<Value, Self::Error> {
        Ok(value.clone())
    }

    fn decode(bytes: &Value) -> Result<Value, Self::Error> {
        Ok(bytes.clone())
    }
}
