//! Whether the node still serves: until it stops, or a fault ends its part.

use tokio_util::sync::CancellationToken;

use crate::fault::Faults;
use crate::protocol::Failure;

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Service {
    faults: Faults,
    stop: CancellationToken,
}

impl Service {
    pub(super) fn new(faults: Faults, stop: CancellationToken) -> Self {
        Self { faults, stop }
    }

    /// What whoever asks now is answered, once the node does not serve any more.
    pub(super) fn is_over(&self) -> Option<Failure> {
        if let Some(fault) = self.faults.first() {
            return Some(Failure::Stopped(fault.to_string()));
        }
        let stopping = self.stop.is_cancelled();
        stopping.then(|| Failure::Stopped("the node is stopping".to_owned()))
    }

    /// Whether the node serves.
    pub(super) fn goes_on(&self) -> bool {
        !self.faults.is_raised() && !self.stop.is_cancelled()
    }

    /// Waits until the node does not serve any more. Cancel safe.
    pub(super) async fn over(&self) -> Failure {
        tokio::select! {
            biased;
            _ = self.faults.raised() => {}
            () = self.stop.cancelled() => {}
        }
        self.is_over()
            .unwrap_or_else(|| Failure::Stopped("the node has stopped".to_owned()))
    }

    pub(super) fn faults(&self) -> &Faults {
        &self.faults
    }
}
