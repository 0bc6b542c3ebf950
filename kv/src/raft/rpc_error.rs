//! What a failure of the transport is for openraft.

use openraft::errors::{NetworkError, RPCError, Unreachable};
use quorate_transport::TransportError;

use super::types::TypeConfig;

pub(super) fn rpc_error(error: &TransportError) -> RPCError<TypeConfig> {
    match error {
        TransportError::Unreachable { .. } | TransportError::Refused { .. } | TransportError::Closed => {
            RPCError::Unreachable(Unreachable::new(error))
        }
        _ => RPCError::Network(NetworkError::new(error)),
    }
}
