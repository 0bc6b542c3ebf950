//! Whom this node has met, and how streams to and from other nodes begin.
//!
//! Every stream between nodes begins with a [`Hello`] in each direction. Whoever opens it goes on without waiting for the
//! answer; the other side looks at nothing before it has judged the hello, and answers with its own first, so that both
//! judge. What a stream was judged by is looked at again whenever the membership has changed.
//!
//! Always: no message of a peer is handled, and no answer of one counts, on a stream whose hellos do not fit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use openraft::RaftMetrics;
use quorate_transport::{
    Class, MessageReceiver, MessageSender, Peer, RefusedBecause, Stream, Transport, TransportError,
};

use super::hello::{Hello, Known, Lacks, Records, Stage, Verdict, Wrong, in_words, judge};
use super::types::{LogId, StoredMembership, TypeConfig};
use crate::env::{self, Instant, watch};
use crate::fault::{Fault, Faults};
use crate::identity::{ClusterUuid, MemberUuid};

/// How long one greeting may take: a handshake over a long way, twice.
const GREETING_MAX: Duration = Duration::from_secs(2);

/// How often the same is told of the same peer.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Who this node is, and whom it has met. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Acquaintance(Arc<Inner>);

struct Inner {
    own: Own,
    transport: Arc<dyn Transport>,
    /// Once Raft runs.
    raft: OnceLock<watch::Receiver<RaftMetrics<TypeConfig>>>,
    state: Mutex<State>,
    faults: Faults,
}

/// Who this node is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Own {
    pub node: u64,
    pub member: MemberUuid,
    pub process: u64,
}

#[derive(Default)]
struct State {
    /// It waits to be added to a cluster.
    is_joining: bool,
    /// Whom the node was told to form a cluster with, itself included.
    listed: BTreeSet<u64>,
    /// Members that belong to another cluster.
    elsewhere: BTreeMap<u64, ClusterUuid>,
    told: BTreeMap<u64, (String, Instant)>,
    /// The latest membership that knew this directory, as its peers said: its place in the log.
    known_at: Option<u64>,
}

impl std::fmt::Debug for Acquaintance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acquaintance")
            .field("own", &self.0.own)
            .finish_non_exhaustive()
    }
}

/// Which memberships a stream was judged by: the one in force, and the one that is committed.
type Seen = (Option<LogId>, Option<LogId>);

impl Acquaintance {
    pub(crate) fn new(own: Own, transport: Arc<dyn Transport>, faults: Faults) -> Self {
        Self(Arc::new(Inner {
            own,
            transport,
            raft: OnceLock::new(),
            state: Mutex::default(),
            faults,
        }))
    }

    /// Raft runs, and these are its metrics. Before that nobody is greeted.
    pub(crate) fn runs(&self, metrics: watch::Receiver<RaftMetrics<TypeConfig>>) {
        // It starts once.
        let _again = self.0.raft.set(metrics);
    }

    pub(crate) fn own(&self) -> Own {
        self.0.own
    }

    /// The smoothed round trip to a node, where it was measured.
    pub(crate) fn round_trip(&self, node: u64) -> Option<Duration> {
        self.0.transport.round_trip(node)
    }

    /// What this node waits for, as long as it has no log: to be added, or to form a cluster with these.
    pub(crate) fn waits_for(&self, is_joining: bool, listed: BTreeSet<u64>) {
        let mut state = self.state();
        (state.is_joining, state.listed) = (is_joining, listed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this node says to a peer now, and by which memberships. `None` until Raft runs.
    fn hello_to(&self, node: u64) -> Option<(Hello, Seen)> {
        let own = self.0.own;
        let metrics = self.0.raft.get()?.borrow();
        let (now, committed) = (&metrics.membership_config, &metrics.committed_membership_config);
        let seen = (*now.log_id(), *committed.log_id());
        let records = cluster_of(now).zip(now.log_id().as_ref());
        let records = records.map(|(cluster, id)| Records {
            cluster,
            at: id.index,
            settled: now.log_id() == committed.log_id(),
        });
        let state = self.state();
        let you = match known(now, node) {
            Known::Stranger if records.is_none() && state.listed.contains(&node) => Known::Unmet,
            known => known,
        };
        let vote = &metrics.vote;
        // Nobody leads it, and it has no more than the entry that forms a cluster: nobody took up what it began.
        let is_alone = !vote.committed && committed.log_id().is_none() && metrics.last_log_index <= Some(0);
        let has_log = metrics.last_log_index.is_some();
        let has_begun = has_log || vote.leader_id.term > 0 || vote.committed;
        let stage = match (has_begun, is_alone, state.is_joining) {
            // It may have heard a leader whose membership had it, and which lost that. Nobody counts on what it promised.
            _ if state.is_joining && !has_log => Stage::Joining,
            (true, true, false) => Stage::Forming,
            (true, ..) => Stage::Formed,
            (false, ..) => Stage::New,
        };
        let hello = Hello {
            node: own.node,
            member: own.member,
            process: own.process,
            cluster: cluster_of(committed),
            records,
            is_member: known(now, own.node) == Known::Is(own.member),
            you,
            stage,
        };
        Some((hello, seen))
    }

    /// Judges a peer's hello.
    fn meet(&self, node: u64, theirs: Hello) -> Result<Met, String> {
        let Some((mine, seen)) = self.hello_to(node) else {
            return Err("this node has not started yet".to_owned());
        };
        if theirs.node != node {
            return Err(format!("node {node} said that it is node {}", theirs.node));
        }
        self.act_on(&mine, &theirs)?;
        Ok(Met {
            who: self.clone(),
            theirs,
            seen,
        })
    }

    fn act_on(&self, mine: &Hello, theirs: &Hello) -> Result<(), String> {
        let was_removed = self.was_removed(theirs);
        let verdict = match judge(mine, theirs) {
            Verdict::Refused(Wrong::Cluster) if self.is_in_the_wrong_cluster(theirs) => {
                Verdict::Own(Wrong::Cluster)
            }
            Verdict::NotYet(Lacks::Membership) if was_removed => Verdict::Own(Wrong::Removed),
            verdict => verdict,
        };
        let Some(words) = in_words(verdict, mine, theirs) else {
            self.state().told.remove(&theirs.node);
            return Ok(());
        };
        match verdict {
            Verdict::Own(wrong) => {
                metrics::counter!("quorate_identity_refused_total", "reason" => wrong.label()).increment(1);
                self.0.faults.raise(Fault::Refused {
                    detail: words.clone(),
                });
            }
            Verdict::Refused(wrong) => {
                metrics::counter!("quorate_identity_refused_total", "reason" => wrong.label()).increment(1);
                if self.is_news(theirs.node, &words) {
                    tracing::warn!(peer = theirs.node, "{words}");
                }
            }
            Verdict::NotYet(_) | Verdict::Fits => {
                if self.is_news(theirs.node, &words) {
                    tracing::info!(peer = theirs.node, "{words}");
                }
            }
        }
        Err(words)
    }

    /// Whether so many voters belong to one other cluster that this node's can have no majority any more.
    fn is_in_the_wrong_cluster(&self, theirs: &Hello) -> bool {
        let Some(metrics) = self.0.raft.get() else {
            return false;
        };
        let voters: BTreeSet<u64> = metrics
            .borrow()
            .membership_config
            .membership()
            .voter_ids()
            .collect();
        let mut state = self.state();
        if let Some(cluster) = theirs.cluster {
            state.elsewhere.insert(theirs.node, cluster);
        }
        let elsewhere = state
            .elsewhere
            .iter()
            .filter(|(node, cluster)| voters.contains(node) && Some(**cluster) == theirs.cluster);
        elsewhere.count() * 2 > voters.len()
    }

    /// Takes in what a peer's membership says of this directory, and answers whether a committed one no longer has it that an
    /// earlier one had. The own log tells that too, but that of one who is removed while it catches up never comes so far.
    fn was_removed(&self, theirs: &Hello) -> bool {
        let Some(records) = theirs.records else {
            return false;
        };
        let mut state = self.state();
        if theirs.you == Known::Unmet || theirs.you == Known::Is(self.0.own.member) {
            state.known_at = state.known_at.max(Some(records.at));
        }
        let is_settled = records.settled && theirs.cluster.is_some();
        theirs.you == Known::Stranger
            && is_settled
            && state.known_at.is_some_and(|known_at| known_at < records.at)
    }

    fn is_news(&self, node: u64, words: &str) -> bool {
        let mut state = self.state();
        let is_known = |(told, at): &(String, Instant)| told == words && at.elapsed() < TOLD_EVERY;
        if state.told.get(&node).is_some_and(is_known) {
            return false;
        }
        state.told.insert(node, (words.to_owned(), env::now()));
        true
    }

    /// Opens a stream to a node, and sends the hello with which it begins.
    pub(crate) async fn open(&self, peer: &Peer, class: Class) -> Result<Opened, TransportError> {
        let refused = |reason: &str| TransportError::Refused {
            because: RefusedBecause::WrongNode,
            address: peer.address.to_string(),
            reason: reason.to_owned(),
        };
        let node = peer.node_id.ok_or_else(|| refused("no node is named"))?;
        let (hello, _) = self
            .hello_to(node)
            .ok_or_else(|| refused("this node has not started yet"))?;
        let Stream { mut sender, receiver } = self.0.transport.open(peer, class).await?;
        sender.send(hello.encode().into()).await?;
        let receiver = Greeted {
            who: self.clone(),
            node,
            receiver,
            met: None,
        };
        Ok(Opened { sender, receiver })
    }

    /// Takes a peer's hello from a stream that it opened, and answers it. `None` where the stream is to end.
    pub(crate) async fn welcome(&self, from: u64, stream: &mut Stream) -> Option<Met> {
        let first = stream.receiver.receive().await.ok()??;
        let theirs = Hello::decode(&first);
        // Also where it is refused: so that the peer can tell why.
        let (mine, _) = self.hello_to(from)?;
        stream.sender.send(mine.encode().into()).await.ok()?;
        match theirs {
            Ok(theirs) => self.meet(from, theirs).ok(),
            Err(error) => {
                let words = format!("node {from}: {error}");
                if self.is_news(from, &words) {
                    tracing::warn!(peer = from, "{words}");
                }
                None
            }
        }
    }

    /// Exchanges hellos with a node, and nothing else; what it said, whatever comes of it.
    pub(crate) async fn greet(&self, peer: &Peer) -> Result<Hello, TransportError> {
        let greeting = async {
            let mut opened = self.open(peer, Class::Control).await?;
            let theirs = opened.receiver.hello().await?;
            // What comes of it is told where it is found.
            let _unfit = self.meet(opened.receiver.node, theirs.clone());
            Ok(theirs)
        };
        env::timeout(GREETING_MAX, greeting)
            .await
            .unwrap_or_else(|env::Elapsed| {
                Err(TransportError::Unreachable {
                    address: peer.address.to_string(),
                    reason: format!("no greeting within {GREETING_MAX:?}"),
                })
            })
    }

    /// Greets several at once; who answered, and what.
    pub(crate) async fn greet_all(&self, peers: impl IntoIterator<Item = Peer>) -> BTreeMap<u64, Hello> {
        let greetings = peers.into_iter().map(|peer| async move {
            match self.greet(&peer).await {
                Ok(hello) => Some((hello.node, hello)),
                Err(error) => {
                    // Once in a while, whatever the error says of its pauses.
                    let words = format!("the node at {} was not reached", peer.address);
                    if let Some(id) = peer.node_id
                        && self.is_news(id, &words)
                    {
                        tracing::info!(peer = id, %error, "{words}");
                    }
                    None
                }
            }
        });
        join_all(greetings).await.into_iter().flatten().collect()
    }
}

/// The cluster that a membership names.
pub(super) fn cluster_of(membership: &StoredMembership) -> Option<ClusterUuid> {
    let mut members = membership.membership().nodes();
    members.find_map(|(_, member)| Some(member.introduced?.cluster))
}

/// As whom a membership knows a node.
pub(super) fn known(membership: &StoredMembership, node: u64) -> Known {
    match membership.membership().get_node(&node) {
        None => Known::Stranger,
        Some(member) => member
            .introduced
            .map_or(Known::Unmet, |introduced| Known::Is(introduced.member)),
    }
}

/// A peer whose hello was judged.
#[derive(Debug)]
pub(crate) struct Met {
    who: Acquaintance,
    theirs: Hello,
    seen: Seen,
}

impl Met {
    /// Whether the peer still fits, now that the membership may be another one.
    pub(crate) fn still_fits(&mut self) -> bool {
        let Some((mine, seen)) = self.who.hello_if_changed(self.theirs.node, self.seen) else {
            return true;
        };
        self.seen = seen;
        self.who.act_on(&mine, &self.theirs).is_ok()
    }
}

impl Acquaintance {
    fn hello_if_changed(&self, node: u64, seen: Seen) -> Option<(Hello, Seen)> {
        {
            let metrics = self.0.raft.get()?.borrow();
            let now = (
                *metrics.membership_config.log_id(),
                *metrics.committed_membership_config.log_id(),
            );
            if now == seen {
                return None;
            }
        }
        self.hello_to(node)
    }
}

/// A stream that this node opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) sender: MessageSender,
    pub(crate) receiver: Greeted,
}

/// The answers on a stream that this node opened: the peer's hello comes first, and none is handed out of one that does not
/// fit.
#[derive(Debug)]
pub(crate) struct Greeted {
    who: Acquaintance,
    node: u64,
    receiver: MessageReceiver,
    met: Option<Met>,
}

impl Greeted {
    /// The next answer; `None` after the peer's last one. Cancel safe.
    pub(crate) async fn receive(&mut self) -> Result<Option<Bytes>, TransportError> {
        self.greeted().await?;
        let answer = self.receiver.receive().await?;
        if self.met.as_mut().is_some_and(Met::still_fits) {
            return Ok(answer);
        }
        Err(TransportError::Broken {
            reason: format!(
                "node {} is not whom this stream was opened to any more",
                self.node
            ),
        })
    }

    /// Waits for the peer's hello, where it has not come yet, and judges it. Cancel safe.
    pub(crate) async fn greeted(&mut self) -> Result<(), TransportError> {
        if self.met.is_none() {
            let theirs = self.hello().await?;
            self.met = Some(self.met_by(theirs)?);
        }
        Ok(())
    }

    fn met_by(&self, theirs: Hello) -> Result<Met, TransportError> {
        let met = self.who.meet(self.node, theirs);
        met.map_err(|reason| TransportError::Refused {
            because: RefusedBecause::WrongNode,
            address: format!("node {}", self.node),
            reason,
        })
    }

    /// The peer's hello, judged or not.
    async fn hello(&mut self) -> Result<Hello, TransportError> {
        let broken = |reason: String| TransportError::Broken { reason };
        let first = self.receiver.receive().await?;
        let first = first.ok_or_else(|| broken("the peer ended the stream without a greeting".to_owned()))?;
        Hello::decode(&first).map_err(|error| TransportError::Refused {
            because: RefusedBecause::WrongNode,
            address: format!("node {}", self.node),
            reason: error.to_string(),
        })
    }
}

/// For the tests of those that speak with peers.
#[cfg(test)]
pub(super) mod testing {
    use super::super::types::{Introduced, LogId, Member, Membership};
    use super::*;
    use crate::model::{LogIndex, LogPosition, NodeId, Term};

    pub(crate) fn directory(id: u64) -> MemberUuid {
        MemberUuid::new(uuid::Uuid::from_u128(u128::from(id)))
    }

    /// The nodes 1 and 2, which know each other.
    pub(crate) fn two() -> Membership {
        let cluster = ClusterUuid::new(uuid::Uuid::from_u128(7));
        let member = |id| Member {
            address: None,
            introduced: Some(Introduced {
                member: directory(id),
                cluster,
            }),
        };
        let nodes: BTreeMap<u64, Member> = [1, 2].map(|id| (id, member(id))).into();
        Membership::new(vec![BTreeSet::from([1, 2])], nodes).expect("a membership")
    }

    /// Of one of them.
    pub(crate) fn of_two(id: u64, transport: Arc<dyn Transport>) -> Acquaintance {
        let first: LogId = super::super::types::log_id(LogPosition {
            term: Term::new(1),
            leader: NodeId::new(1),
            index: LogIndex::new(0),
        });
        let stored = Arc::new(StoredMembership::new(Some(first), two()));
        let metrics = RaftMetrics {
            membership_config: Arc::clone(&stored),
            committed_membership_config: stored,
            last_log_index: Some(0),
            ..RaftMetrics::new_initial(id)
        };
        let own = Own {
            node: id,
            member: directory(id),
            process: id + 10,
        };
        let acquaintance = Acquaintance::new(own, transport, Faults::default());
        acquaintance.runs(watch::channel(metrics).1);
        acquaintance
    }
}

#[cfg(test)]
mod tests {
    use quorate_transport::memory::{MemoryNetwork, TokioClock};
    use quorate_transport::{ClusterId, Identity};

    use super::super::types::Vote;
    use super::testing::{directory, of_two};
    use super::*;

    /// The story: a leader heard of a learner, lost the entry that had added it with its power, and added it again without its
    /// uuid, as it had just begun to lead. The learner had saved that leader's term, passed for one that had taken part, and
    /// was never taken in.
    #[tokio::test]
    async fn who_waits_to_be_added_and_has_no_log_may_be_introduced_though_it_has_heard_a_leader() {
        let network = MemoryNetwork::new(Arc::new(TokioClock::new(1)));
        let identity = Identity::node(ClusterId::new("one").expect("a name"), 2);
        let hello = |is_joining, last_log_index| {
            let own = Own {
                node: 2,
                member: directory(2),
                process: 1,
            };
            let transport = network.transport(identity.clone(), "two:1");
            let who = Acquaintance::new(own, transport, Faults::default());
            who.waits_for(is_joining, BTreeSet::new());
            let metrics = RaftMetrics {
                vote: Vote::new_committed(3, 1),
                last_log_index,
                ..RaftMetrics::new_initial(2)
            };
            who.runs(watch::channel(metrics).1);
            who.hello_to(1).expect("it runs").0
        };
        let joining = hello(true, None);
        assert_eq!(joining.stage, Stage::Joining);
        assert!(joining.may_be_introduced());
        for (is_joining, last_log_index) in [(true, Some(0)), (false, None), (false, Some(0))] {
            let other = hello(is_joining, last_log_index);
            assert_eq!(other.stage, Stage::Formed, "{is_joining}, {last_log_index:?}");
            assert!(!other.may_be_introduced());
        }
    }

    /// The story: a learner that was removed while it caught up ran on for ever: its own log never came to its removal, nor to
    /// its addition.
    #[tokio::test]
    async fn who_was_known_and_is_a_stranger_to_a_later_membership_was_removed() {
        let network = MemoryNetwork::new(Arc::new(TokioClock::new(1)));
        let identity = Identity::node(ClusterId::new("one").expect("a name"), 2);
        let who = of_two(2, network.transport(identity, "two:1"));
        let cluster = ClusterUuid::new(uuid::Uuid::from_u128(7));
        let records = |at| {
            Some(Records {
                cluster,
                at,
                settled: true,
            })
        };
        // It has a part of the log, in which it is no member yet.
        let mine = Hello {
            node: 2,
            member: directory(2),
            process: 1,
            cluster: Some(cluster),
            records: records(1),
            is_member: false,
            you: Known::Unmet,
            stage: Stage::Formed,
        };
        let says = |node, at, you| {
            let theirs = Hello {
                node,
                member: directory(node),
                is_member: true,
                records: records(at),
                you,
                ..mine.clone()
            };
            let _unfit = who.act_on(&mine, &theirs);
            who.0.faults.first().map(|fault| fault.to_string())
        };
        assert_eq!(says(1, 5, Known::Stranger), None, "it may be added later");
        assert_eq!(says(1, 7, Known::Is(directory(2))), None, "it was added");
        assert_eq!(
            says(3, 6, Known::Stranger),
            None,
            "that one has not heard of it yet"
        );
        let fault = says(1, 9, Known::Stranger).expect("it was removed");
        assert!(fault.contains("removed"), "{fault}");
    }
}
