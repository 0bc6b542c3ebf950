//! Why a transport was not made.

use std::net::SocketAddr;

use super::settings::InvalidSettings;

/// A transport was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another program has the port, or this one already.
    #[error("{address} is in use already: stop who listens there, or choose another port")]
    AddressInUse {
        /// The address.
        address: SocketAddr,
    },
    /// The operating system refused the address.
    #[error("cannot listen on {address}: {error}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// What it said.
        error: std::io::Error,
    },
    /// The credentials do not make a TLS configuration.
    #[error("the credentials cannot be used: {reason}")]
    Credentials {
        /// What rustls said.
        reason: String,
    },
    /// Settings that cannot work.
    #[error(transparent)]
    Settings(#[from] InvalidSettings),
}

impl BindError {
    /// Whether the same may succeed later with nothing changed: a port that another program has now, an address that the
    /// machine does not have yet.
    pub fn is_retryable(&self) -> bool {
        use std::io::ErrorKind as K;
        match self {
            BindError::AddressInUse { .. } => true,
            BindError::Address { error, .. } => !matches!(
                error.kind(),
                K::PermissionDenied | K::InvalidInput | K::Unsupported
            ),
            BindError::Credentials { .. } | BindError::Settings(_) => false,
        }
    }
}
