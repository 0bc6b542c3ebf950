//! Whether another start is worth trying, by what ended the last one.

use quorate_kv::fault::Fault;

use crate::failure::Kind;

/// Whether a start after this fault is refused until somebody has acted, may find it gone, or is worth trying.
pub(super) fn kind_of(fault: &Fault) -> Kind {
    match fault {
        fault if !fault.is_retryable() => Kind::Refused,
        Fault::Disk { .. } => Kind::Unavailable,
        _ => Kind::Failed,
    }
}

/// What keeps a node from starting either may pass, or lasts until somebody acts.
pub(super) fn start_kind(may_pass: bool) -> Kind {
    if may_pass {
        Kind::Unavailable
    } else {
        Kind::Refused
    }
}
