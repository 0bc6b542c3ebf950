//! What an operator does: status, membership, leadership, history, limits.
//!
//! Errors and durability are those of all calls, as the client's documentation has them, and what each adds.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_transport::Address;

use super::endpoint::Endpoint;
use super::outcome::{self, Kind, Progress};
use super::route::To;
use super::{CHANGE, Client, Error, HARMLESS, REPEATABLE, SILENCE_MAX, Time};
use crate::machine::Shrunk;
use crate::model::{Command, Limit, LimitChange, LimitsSet, NodeId, Outcome, ReplicatedLimits, Revision};
use crate::node::Status;
use crate::protocol::{Admin, Failure, Request, Response};

impl Client {
    /// What the node asked first tells of itself. It asks nobody else, so it may be old. Cancel safe.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// let status = client.status().await?;
    /// println!("node {} is a {}, led by {:?}", status.node, status.role, status.leader);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unavailable`] or [`Error::NotAdmitted`] where no node answers.
    pub async fn status(&self) -> Result<Status, Error> {
        self.inner.status(self.time()).await
    }

    /// What every node that is known tells of itself, by address; an unreachable one tells why. Each tells of its own moment. Never an
    /// error as a whole. Cancel safe.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) {
    /// for (address, status) in client.statuses().await {
    ///     match status {
    ///         Ok(status) => println!("{address}: {} at revision {}", status.role, status.revision),
    ///         Err(reason) => println!("{address}: {reason}"),
    ///     }
    /// }
    /// # }
    /// ```
    pub async fn statuses(&self) -> BTreeMap<String, Result<Status, String>> {
        let time = self.time();
        let asks = self
            .known(time)
            .await
            .into_iter()
            .map(|(address, endpoint)| async move {
                let status = match endpoint.call(Request::Status, SILENCE_MAX, time.end).await {
                    Ok(Response::Status(status)) => Ok(*status),
                    Ok(other) => Err(format!("{other:?}")),
                    Err(error) => Err(error.reason),
                };
                (address, status)
            });
        futures_util::future::join_all(asks).await.into_iter().collect()
    }

    /// The nodes that are known, and those that one of them knows, by address.
    async fn known(&self, time: Time) -> Vec<(String, Arc<Endpoint>)> {
        let named = |endpoint: Arc<Endpoint>| (endpoint.address().to_owned(), endpoint);
        let mut addresses: Vec<(String, Arc<Endpoint>)> =
            self.inner.routes.all().into_iter().map(named).collect();
        if let Ok(status) = self.inner.status(time).await {
            for member in status.members {
                let Ok(address) = member.address.parse() else {
                    continue;
                };
                let known = |(address, endpoint): &(String, Arc<Endpoint>)| {
                    *address == member.address
                        || matches!(&**endpoint, Endpoint::Local(front) if front.node() == member.id)
                };
                if !addresses.iter().any(known) {
                    let endpoint = self.inner.routes.remote(Some(member.id), address);
                    addresses.push((member.address, Arc::new(endpoint)));
                }
            }
        }
        addresses
    }

    /// Has every node that is known copy its state file into one without free pages, one after the other, and answers by address
    /// what each came to, or why not. A node serves meanwhile; it needs room for a second file, and gives the copy up where much is
    /// written meanwhile.
    ///
    /// A node does this by itself ([`Settings::shrink_at`](crate::node::Settings::shrink_at)). It changes no key, and is never an error as a
    /// whole. Cancel safe: a copy under way goes on.
    pub async fn shrink(&self) -> BTreeMap<String, Result<Shrunk, String>> {
        let time = self.time();
        let mut told = BTreeMap::new();
        for (address, endpoint) in self.known(time).await {
            let left = time.left();
            let shrunk = match endpoint.call(Request::Shrink, left, time.end).await {
                Ok(Response::Shrunk(shrunk)) => Ok(shrunk),
                Ok(Response::Failed(Failure::Refused(reason) | Failure::Stopped(reason))) => Err(reason),
                Ok(other) => Err(format!("{other:?}")),
                Err(error) => Err(error.reason),
            };
            told.insert(address, shrunk);
        }
        told
    }

    /// Adds a node without a vote; it receives the log from then on. No member may have the id; one
    /// that was removed may have had it, if the node at the address has an empty directory, and an id that none ever had is better.
    /// The address is an [`Address`] as a text.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// use quorate_kv::model::NodeId;
    ///
    /// // Node 4 runs and waits: `Node::builder().node_id(4).join()`.
    /// client.add_learner(NodeId::new(4), "d.internal:7001").await?;
    /// // Refused until it has caught up.
    /// client.promote(NodeId::new(4)).await?;
    /// client.remove(NodeId::new(1)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// Durable on a majority when it returns; carried out twice it does no more than once.
    ///
    /// # Errors
    /// [`Error::Rejected`], and nothing was changed: no node answers at the address, the id has another address or belongs to another
    /// directory, the text is no address. [`Error::OutcomeUnknown`]: it may have happened or may yet; ask again.
    ///
    /// Cancel safety: dropped, it may take effect all the same.
    pub async fn add_learner(&self, id: NodeId, address: impl AsRef<str>) -> Result<(), Error> {
        let parsed = address.as_ref().parse::<Address>();
        let address = parsed.map_err(|error| Error::rejected(error.to_string()))?;
        let address = address.to_string();
        let admin = || Admin::AddLearner {
            id,
            address: address.clone(),
        };
        self.admin(REPEATABLE, admin).await
    }

    /// Gives a learner that has caught up a vote. See [`add_learner`](Self::add_learner) for an example.
    ///
    /// Durable on a majority when it returns; carried out twice it does no more than once.
    ///
    /// # Errors
    /// [`Error::Rejected`], and nothing was changed: it has not caught up, or has not answered its leader of late.
    /// [`Error::OutcomeUnknown`]: it may have happened, whole or in part, or may yet; ask again.
    ///
    /// Cancel safety: dropped, it may take effect all the same.
    pub async fn promote(&self, id: NodeId) -> Result<(), Error> {
        self.admin(REPEATABLE, || Admin::Promote { id }).await
    }

    /// Takes a node out of the cluster. Whoever is added under its id later needs an empty directory. A leader that is to go hands
    /// leadership on first. See [`add_learner`](Self::add_learner) for an example.
    ///
    /// Durable on a majority when it returns; carried out twice it does no more than once.
    ///
    /// # Errors
    /// [`Error::Rejected`], and nothing was changed. [`Error::OutcomeUnknown`]: it may have happened, whole or in part (the node may be
    /// left without its vote), or may yet; ask again.
    ///
    /// Cancel safety: dropped, it may take effect all the same.
    pub async fn remove(&self, id: NodeId) -> Result<(), Error> {
        self.admin(REPEATABLE, || Admin::Remove { id }).await
    }

    /// Hands leadership to a voter, or to the one whose log is furthest, and waits until it leads. Nothing that was acknowledged is lost, and
    /// writes wait meanwhile.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// use quorate_kv::model::NodeId;
    ///
    /// client.move_leader(Some(NodeId::new(2))).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::LedByAnother`] when a voter was named and another one took over: an election came between.
    /// [`Error::OutcomeUnknown`] also for a move to whoever is furthest whose answer was lost: asked for again it might
    /// move leadership on from the one that has just taken over.
    ///
    /// Cancel safe: dropped, leadership may move all the same.
    pub async fn move_leader(&self, to: Option<NodeId>) -> Result<(), Error> {
        let kind = if to.is_some() { REPEATABLE } else { CHANGE };
        self.admin(kind, || Admin::MoveLeader { to }).await
    }

    /// Gives up the history before a revision, and answers the oldest revision that can be read from then on: this one, or a
    /// later one that was given up to before. On a node that has applied it, reads below it fail with [`Error::Compacted`]; at
    /// it they are exact. The nodes take the rows away afterwards, in steps.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// let newest = client.revision().await?;
    /// let oldest = client.compact(newest).await?;
    /// assert!(oldest >= newest);
    /// # Ok(()) }
    /// ```
    ///
    /// A leader does this by itself ([`Settings::history_kept`](crate::node::Settings::history_kept)). Durable when it
    /// returns; carried out twice it does no more than once.
    ///
    /// # Errors
    /// [`Error::NotYet`] for a revision that the store has not reached: nothing was given up.
    ///
    /// Cancel safe: dropped, it may take effect all the same.
    pub async fn compact(&self, revision: Revision) -> Result<Revision, Error> {
        let request = || Request::Write(Command::Compact { revision });
        let mut progress = Progress::default();
        let asked = self
            .inner
            .ask(To::Leader, REPEATABLE, self.time(), &mut progress, request);
        match asked.await? {
            Response::Written(Outcome::Compacted(compacted)) if compacted.oldest >= revision => {
                Ok(compacted.oldest)
            }
            // An attempt before this one may come later than the revision.
            Response::Written(Outcome::Compacted(compacted)) => Err(progress.conclude(Error::NotYet {
                node: None,
                asked: revision,
                current: compacted.revision,
            })),
            other => Err(outcome::unexpected(&other, REPEATABLE)),
        }
    }

    /// The limits of the cluster that stand, all of them. Asks through the log, so that they are those of this moment. The errors are
    /// those of a [`Write`](super::Write); nothing is changed.
    ///
    /// Cancel safe.
    pub async fn limits(&self) -> Result<ReplicatedLimits, Error> {
        Ok(self.change_limits(Vec::new()).await?.limits)
    }

    /// Changes limits of the cluster, all or none, and answers all that stand then. They count on every node from the same
    /// entry on. Durable when it returns; carried out twice it does no more than once, unless somebody else changes the same ones
    /// meanwhile.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// use quorate_kv::model::Limit;
    ///
    /// let limits = client.set_limits([(Limit::StoreBytesMax, 4 << 30)]).await?;
    /// # let _ = limits;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidLimit`] for a value outside [`Limit::bounds`]: nothing was changed.
    ///
    /// Cancel safe: dropped, it may take effect all the same.
    pub async fn set_limits(
        &self,
        changes: impl IntoIterator<Item = (Limit, u64)>,
    ) -> Result<ReplicatedLimits, Error> {
        let mut list = Vec::new();
        for (limit, value) in changes {
            limit.check(value)?;
            list.push(LimitChange::new(limit, value));
        }
        let is_change = !list.is_empty();
        let set = self.change_limits(list).await?;
        match set.changed || !is_change {
            true => Ok(set.limits),
            false => Err(Error::rejected(
                "the leader does not know these limits, or allows less: it is of another release",
            )),
        }
    }

    async fn change_limits(&self, changes: Vec<LimitChange>) -> Result<LimitsSet, Error> {
        let request = || {
            Request::Write(Command::SetLimits {
                expected: None,
                changes: changes.clone(),
            })
        };
        let mut progress = Progress::default();
        // Who only looks changes nothing, whatever becomes of it.
        let kind = if changes.is_empty() { HARMLESS } else { REPEATABLE };
        let asked = self
            .inner
            .ask(To::Leader, kind, self.time(), &mut progress, request);
        match asked.await? {
            Response::Written(Outcome::LimitsSet(set)) => Ok(set),
            other => Err(outcome::unexpected(&other, kind)),
        }
    }

    async fn admin(&self, kind: Kind, admin: impl Fn() -> Admin) -> Result<(), Error> {
        let request = || Request::Admin(admin());
        let mut progress = Progress::default();
        let asked = self
            .inner
            .ask(To::Leader, kind, self.time(), &mut progress, request);
        match asked.await? {
            Response::Done => Ok(()),
            other => Err(outcome::unexpected(&other, kind)),
        }
    }
}
