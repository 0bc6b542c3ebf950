//! Sets the limits of the cluster, once, when it is new.
//!
//! They belong to the replicated state, so that a command sets them: the first leader proposes those of its settings, and
//! lets no other command go before. Afterwards no node's settings matter: they are changed by a command.

use std::sync::Arc;
use std::time::Duration;

use super::front::Front;
use super::proposer::ROOM_WAIT_MAX;
use crate::env;
use crate::model::{Command, Outcome};
use crate::protocol::{Request, Response};
use crate::raft::Part;

/// How long a leader waits before it asks again, when it was not answered: whoever forms a cluster counts as its leader for a
/// moment, before it stands for election.
const PAUSE: Duration = Duration::from_millis(20);

/// Ends when the limits of the cluster are set, by whom ever, or the node stops. Only a leader does anything.
pub(super) async fn set_first(front: Arc<Front>) {
    loop {
        let mut is_stopped = false;
        front
            .raft
            .wait_for(|state| {
                is_stopped = state.role == Part::Stopped;
                is_stopped || state.role == Part::Leader
            })
            .await;
        let is_set = front
            .raft
            .machine()
            .reader()
            .view()
            .map(|view| view.limits().0 > 0);
        // A state that cannot be looked at has stopped the node.
        if is_stopped || is_set.unwrap_or(true) {
            return;
        }
        let command = Command::SetLimits {
            expected: Some(0),
            changes: front.settings.replicated().to_changes(),
        };
        let until = env::now() + ROOM_WAIT_MAX;
        match front.call(Request::Write(command), until).await {
            Response::Written(Outcome::LimitsSet(set)) => {
                tracing::info!(version = set.version, limits = ?set.limits, "the limits of the cluster");
                return;
            }
            // Not the leader any more, or no quorum.
            _ => env::sleep(PAUSE).await,
        }
    }
}
