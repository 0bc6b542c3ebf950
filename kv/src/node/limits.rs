//! Whether the cluster has its limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::machine::Reader;

/// Whether the cluster has its limits, as far as this node has seen. Cheap to clone; a clone is the same.
#[derive(Debug, Clone, Default)]
pub(super) struct LimitsSet(Arc<AtomicBool>);

impl LimitsSet {
    /// Looks, until they were seen once: they never go. A state that cannot be looked at has stopped the node.
    pub(super) fn look(&self, reader: &Reader) -> bool {
        // Nothing else is published by the flag.
        if self.0.load(Ordering::Relaxed) {
            return true;
        }
        let view = reader.view();
        let is_set = view.is_ok_and(|view| view.limits().0 > 0);
        if is_set {
            self.0.store(true, Ordering::Relaxed);
        }
        is_set
    }
}
