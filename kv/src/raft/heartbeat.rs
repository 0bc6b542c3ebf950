//! A leader's heartbeats, and a follower's answer to one, which waits for no disk.
//!
//! openraft answers a heartbeat as it answers entries: once everything that it has accepted is durable. Beside a bulk load
//! that is seconds, in which the leader's reads wait and its lease runs out. So the heartbeat goes through openraft's core
//! as ever (it renews the lease there, tells of commits, and has a conflicting tail cut off). Where nothing waits for the
//! disk, openraft has answered by then. Where it has not, the answer is made of what the core holds in memory.
//!
//! Why that is sound. An answer `Ok` to a leader of vote V says: at some moment after the heartbeat was sent, this node
//! had accepted no vote above V. It says nothing of entries: openraft draws from it the time of the answer alone
//! (`HeartbeatProgress`), for its lease and for ReadIndex. The vote in memory is never below the one on disk, and a
//! leader above V needs votes of a majority, each in memory before it is on disk and on disk before it is told. So if a
//! majority has answered `Ok`, nobody above V had a majority's votes when the heartbeat was sent, hence nobody above V had
//! committed anything by then: that is what a read confirms.
//!
//! A node that answers and then forgets V in a crash, since it had V from this very leader and not yet on disk, may vote
//! again below V. That elects nobody who could commit: V's own election has a majority of durable votes, and entries
//! of a vote below V need a majority too. `HigherVote` may be told before it is durable as well, as openraft does for
//! entries: it makes a leader step down, which needs no proof.

use std::time::Duration;

use futures_util::future::{self, Either};
use openraft::errors::{Fatal, RaftError};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult};
use openraft::{RaftState, ServerState};

use super::state_machine::Raft;
use super::types::{LogId, TypeConfig, Vote};
use super::wire::Heartbeat;
use crate::env::{self, oneshot};
use crate::planted::{self, Bug};

/// So long openraft's own answer is waited for: it costs the core one look less, and comes at once where the disk has nothing
/// to do.
const DISK_PATIENCE: Duration = Duration::from_millis(1);

/// Sends heartbeats for as long as this node leads, and whenever it does. Ends with Raft.
///
/// openraft sends none by itself here, since it would wait for each no longer than until the next (see `config`). Each peer
/// has one on its way at a time: where its answer takes longer than `interval`, they follow each other as fast as it comes.
pub(super) async fn send(raft: Raft, interval: Duration) {
    let mut server = raft.server_metrics();
    loop {
        if server.borrow_and_update().state == ServerState::Leader {
            if let Err(error) = raft.trigger().heartbeat().await {
                tracing::debug!(%error, "no more heartbeats: Raft has stopped");
                return;
            }
            env::sleep(interval).await;
        } else if server.changed().await.is_err() {
            return;
        }
    }
}

/// Has openraft handle a heartbeat, and answers it.
pub(super) async fn answer(
    raft: &Raft,
    heartbeat: &Heartbeat,
) -> Result<StreamAppendResult<TypeConfig>, Fatal<TypeConfig>> {
    let Heartbeat {
        vote, prev, commit, ..
    } = *heartbeat;
    let request = AppendEntriesRequest {
        vote,
        prev_log_id: prev,
        entries: Vec::new(),
        leader_commit: commit,
    };
    let mut handled = std::pin::pin!(raft.append_entries(request));
    let durable = |answer: Result<AppendEntriesResponse<TypeConfig>, RaftError<TypeConfig>>| match answer {
        Ok(answer) => Ok(answer.into_stream_result(prev, prev)),
        Err(stopped) => Err(stopped.into_fatal().unwrap_or(Fatal::Stopped)),
    };
    let patience = if planted::is(Bug::HeartbeatOkWithHigherVote) {
        Duration::ZERO
    } else {
        DISK_PATIENCE
    };
    if let Ok(answer) = env::timeout(patience, handled.as_mut()).await {
        return durable(answer);
    }
    let (tell, told) = oneshot::channel();
    // It comes behind the heartbeat in the core's one queue.
    let look = raft.external_request(move |state| {
        let _gone = tell.send(judged(state, vote, prev));
    });
    let looked = async move {
        look.await?;
        // The core drops a request untold only when it ends.
        told.await.map_err(|_| Fatal::Stopped)
    };
    match future::select(handled, std::pin::pin!(looked)).await {
        Either::Left((Ok(_), looked)) if planted::is(Bug::HeartbeatOkWithHigherVote) => looked.await,
        Either::Left((answer, _)) => durable(answer),
        Either::Right((judged, _)) => judged,
    }
}

/// What the core's state says of a heartbeat that it has just handled.
fn judged(state: &RaftState<TypeConfig>, vote: Vote, prev: Option<LogId>) -> StreamAppendResult<TypeConfig> {
    let own = *state.vote_ref();
    if own != vote && !planted::is(Bug::HeartbeatOkWithHigherVote) {
        return Err(StreamAppendError::HigherVote(own));
    }
    match prev {
        Some(prev) if !has(state, &prev) => Err(StreamAppendError::Conflict(prev)),
        prev => Ok(prev),
    }
}

/// Whether an entry is in the log, or was: what is committed never conflicts.
fn has(state: &RaftState<TypeConfig>, id: &LogId) -> bool {
    let is_committed = state
        .local_committed()
        .is_some_and(|committed| id.index <= committed.index);
    is_committed || state.log_ids.get(id.index).as_ref() == Some(id)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use quorate_transport::memory::{MemoryNetwork, TokioClock};
    use quorate_transport::{ClusterId, Identity};

    use super::super::types::{Entry, EntryPayload, Member, Membership, log_id};
    use super::super::{RaftNode, RaftParts};
    use super::*;
    use crate::env::{self, RealDisk};
    use crate::fault::Faults;
    use crate::identity::MemberUuid;
    use crate::log::crash_disk::CrashDisk;
    use crate::log::{Log, LogSettings};
    use crate::machine::{Machine, MachineSettings, OpenMode};
    use crate::model::{LogIndex, LogPosition, NodeId, Term};
    use crate::node::Settings;

    /// A follower whose log is on a disk that can be made to stall.
    struct Follower {
        node: RaftNode,
        disk: CrashDisk,
        _dir: tempfile::TempDir,
    }

    async fn follower() -> Follower {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = CrashDisk::default();
        let faults = Faults::default();
        let log = Log::open(
            Arc::new(disk.clone()),
            Path::new("/log"),
            LogSettings::default().create(),
        )
        .expect("a log");
        let settings = MachineSettings {
            cache_bytes: 8 << 20,
            ..MachineSettings::default()
        };
        let (machine, reader) =
            Machine::open(Arc::new(RealDisk), dir.path(), OpenMode::Create, settings).expect("a state");
        let network = MemoryNetwork::new(Arc::new(TokioClock::new(1)));
        let cluster = ClusterId::new("heartbeats").expect("a legal name");
        let settings = Settings::default();
        let node = RaftNode::start(RaftParts {
            id: NodeId::new(2),
            member: MemberUuid::new(uuid::Uuid::from_u128(2)),
            log,
            machine,
            tap: None,
            reader,
            disk: Arc::new(RealDisk),
            dir: dir.path().to_owned(),
            transport: network.transport(Identity::node(cluster, 2), "node-2"),
            timing: settings.timing,
            settings: settings.raft(&settings.memory().unwrap()),
            faults,
        })
        .await
        .expect("a node");
        Follower {
            node,
            disk,
            _dir: dir,
        }
    }

    fn id(term: u64, index: u64) -> LogId {
        log_id(LogPosition {
            term: Term::new(term),
            leader: NodeId::new(term),
            index: LogIndex::new(index),
        })
    }

    fn leads(term: u64) -> Vote {
        Vote::new_committed(term, term)
    }

    fn heartbeat(vote: Vote, prev: Option<LogId>) -> Heartbeat {
        Heartbeat {
            vote,
            prev,
            commit: None,
            confirmed: None,
        }
    }

    impl Follower {
        fn append(
            &self,
            term: u64,
            prev: Option<LogId>,
            entries: Vec<Entry>,
        ) -> impl Future<Output = ()> + use<> {
            let raft = self.node.raft.clone();
            async move {
                let request = AppendEntriesRequest {
                    vote: leads(term),
                    prev_log_id: prev,
                    entries,
                    leader_commit: None,
                };
                raft.append_entries(request).await.expect("Raft runs");
            }
        }

        async fn answer(&self, heartbeat: Heartbeat) -> StreamAppendResult<TypeConfig> {
            let answered = answer(&self.node.raft, &heartbeat);
            let in_time = env::timeout(Duration::from_secs(30), answered).await;
            in_time.expect("the answer waits for no disk").expect("Raft runs")
        }
    }

    fn first_entry() -> Entry {
        let member = |id: u64| Member::at(Some(format!("node-{id}:1").parse().expect("an address")));
        let members: BTreeMap<u64, Member> = (1..=5).map(|id| (id, member(id))).collect();
        let voters: BTreeSet<u64> = members.keys().copied().collect();
        Entry {
            log_id: id(1, 0),
            payload: EntryPayload::Membership(Membership::new(vec![voters], members).expect("a membership")),
        }
    }

    fn blank(term: u64, index: u64) -> Entry {
        Entry {
            log_id: id(term, index),
            payload: EntryPayload::Blank,
        }
    }

    /// The story: beside a bulk load followers answered heartbeats after everything that they had accepted was on disk,
    /// and leaders took them for 4.9 s behind.
    #[tokio::test]
    async fn a_heartbeat_is_answered_while_the_disk_stalls_and_entries_wait() {
        let follower = follower().await;
        follower.append(1, None, vec![first_entry()]).await;
        let held = follower.disk.hold_syncs();
        let waiting = env::spawn(
            "append",
            follower.append(1, Some(id(1, 0)), vec![blank(1, 1), blank(1, 2)]),
        );
        // The entries are accepted once a heartbeat that stands on them is no conflict.
        loop {
            match follower.answer(heartbeat(leads(1), Some(id(1, 2)))).await {
                Ok(prev) => break assert_eq!(prev, Some(id(1, 2))),
                Err(conflict) => assert_eq!(conflict, StreamAppendError::Conflict(id(1, 2))),
            }
        }
        assert!(!waiting.is_finished(), "the entries are not durable");
        drop(held);
        waiting.await.expect("they are answered once they are durable");
        follower.node.abort().await;
    }

    #[tokio::test]
    async fn a_deposed_leader_is_told_the_higher_vote() {
        let follower = follower().await;
        follower.append(3, None, vec![first_entry()]).await;
        let told = follower.answer(heartbeat(leads(1), None)).await;
        assert_eq!(told, Err(StreamAppendError::HigherVote(leads(3))));
        let told = follower.answer(heartbeat(leads(3), None)).await;
        assert_eq!(told, Ok(None));
        follower.node.abort().await;
    }

    #[tokio::test]
    async fn a_leader_is_told_what_does_not_follow_on_this_log() {
        let follower = follower().await;
        follower.append(1, None, vec![first_entry(), blank(1, 1)]).await;
        for (case, prev) in [("another leader's", id(3, 1)), ("what is not here", id(3, 7))] {
            let told = follower.answer(heartbeat(leads(3), Some(prev))).await;
            assert_eq!(told, Err(StreamAppendError::Conflict(prev)), "{case}");
        }
        follower.node.abort().await;
    }
}
