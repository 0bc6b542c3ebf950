//! The certificates by which peers prove who they are.
//!
//! A cluster has one [`Authority`], whose certificate every node and client trusts and whose key stays
//! with the operator. It issues one certificate for each node and each client; the holder's
//! [`Identity`](crate::Identity) stands in it as a URI, and the peers believe that name alone, never an
//! address. [`Credentials`] are what a node or a client loads: the authority's certificate, its own, and
//! the key to it.
//!
//! In a directory: `ca.crt`, `ca.key`, `node-<id>.crt`, `node-<id>.key`, `client-<name>.crt`,
//! `client-<name>.key`, all PEM.
//!
//! Always: a key file is created readable by its owner alone, it is never so for a moment only; no file is
//! ever overwritten; no key appears in a log or an error.

mod error;
mod files;
mod validity;

mod credentials;

mod authority;

#[cfg(test)]
mod tests;

pub use authority::{Authority, Issued};
pub use credentials::{Credentials, CredentialsError};
pub(crate) use credentials::{crypto_provider, identity_in};
pub use error::CertsError;
pub use validity::Validity;
#[cfg(test)]
pub(crate) use validity::tests_validity;
pub(crate) use validity::utc;
