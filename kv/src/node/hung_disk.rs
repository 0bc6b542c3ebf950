//! A leader whose disk hangs hands leadership on.
//!
//! Its heartbeats go on, since they wait for no disk, and for a while so do its writes, which a majority of other disks makes
//! durable. Then its log's queue is full, and nothing more is written by anybody, while everything looks well.
//!
//! Always: leadership is handed on only where another voter's disk has come further than this one's, so that it does not go
//! round where all of them hang.

use super::front::Front;
use crate::env;
use crate::raft::Part;
use std::sync::Arc;

/// In so many parts of the time that a write may take it is looked at.
const LOOKS: u32 = 16;

/// Looks for a write of the log that has been under way for longer than a failover may take. Ends when the node does.
pub(super) async fn watch(front: Arc<Front>) {
    let patience = front.settings.timing.failover_max;
    loop {
        env::sleep(patience / LOOKS).await;
        let under_way = front.log().write_under_way().unwrap_or_default();
        metrics::gauge!("quorate_log_write_under_way_seconds").set(under_way.as_secs_f64());
        if under_way <= patience {
            continue;
        }
        let state = front.raft.state();
        match state.role {
            Part::Stopped => return,
            Part::Leader => {}
            Part::Follower | Part::Candidate | Part::Learner => continue,
        }
        let durable = front.log().statistics().durable.map(|at| at.index);
        let voters = state.members.iter().filter(|m| m.voter && m.id != front.node());
        if !voters
            .map(|member| member.matched)
            .any(|matched| matched > durable)
        {
            continue;
        }
        env::mark("leader.disk_hangs");
        tracing::warn!(
            seconds = under_way.as_secs(),
            "this node leads, and a write of its disk has not ended for so long: it hands leadership on"
        );
        if let Err(error) = front.move_leader(None).await {
            tracing::warn!(%error, "leadership was not handed on");
        }
    }
}
