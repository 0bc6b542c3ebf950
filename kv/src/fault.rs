//! What ends this node's part in the cluster: a fault is never a response, and never the program's end.
//!
//! A refusal is a value in an answer, the same on every node. A fault is what only one node can suffer: its
//! disk failed, its files are corrupt, an invariant of ours is broken. Whoever meets one returns it; the node
//! stops, leaves its files as they are, and answers the fault from then on.

use std::io;
use std::sync::Arc;

use crate::env::watch;

/// Why a node stopped.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The disk refused an operation. After a failed sync nothing is tried again on the same file.
    #[error("disk: {doing} {path}: {error}{}", advice(error))]
    Disk {
        /// What was being done.
        doing: &'static str,
        /// To which file or directory.
        path: String,
        /// What the operating system said.
        error: Arc<io::Error>,
    },
    /// A file holds what was never written to it.
    #[error("corruption: {path} at byte {offset}: {detail}")]
    Corrupt {
        /// Which file.
        path: String,
        /// Where in it.
        offset: u64,
        /// What was expected and what was found.
        detail: String,
    },
    /// The state file's database refused an operation.
    #[error("state file: {doing}: {detail}")]
    State {
        /// What was being done.
        doing: &'static str,
        /// What the database said.
        detail: String,
    },
    /// The node is not whom the cluster knows under its id, was removed, or belongs to another cluster than the others.
    #[error("refused by the cluster: {detail}")]
    Refused {
        /// By whom, why, and what to do.
        detail: String,
    },
    /// A peer would have the node replace what it has applied: the two have different histories.
    #[error(
        "another history: {detail}. What this node has applied is kept; find out which of the two histories counts, and \
         replace the nodes of the other by empty ones under new ids"
    )]
    AnotherHistory {
        /// What was to be replaced, and by what.
        detail: String,
    },
    /// The state is not that of the other nodes, though all have applied the same entries: memory or a disk failed unseen, or
    /// there is a bug.
    #[error(
        "the state at entry {at} is not what it is on other nodes: {detail}. Replace the node by an empty one under a new id; \
         where no quorum says who is right, keep the files and run `quorate check` on each node first"
    )]
    StateDiffers {
        /// Behind which entry.
        at: crate::model::LogPosition,
        /// From whom it differs.
        detail: String,
    },
    /// An invariant of ours does not hold: a bug.
    #[error("broken invariant: {invariant}: {detail}")]
    Invariant {
        /// The invariant.
        invariant: &'static str,
        /// What was seen.
        detail: String,
    },
    /// Code of ours panicked: a bug.
    #[error("the {owner} panicked: {message}")]
    Panicked {
        /// Which thread or task.
        owner: &'static str,
        /// What it said.
        message: String,
    },
    /// The thread that owns the state has ended.
    #[error("the {owner} has stopped")]
    Stopped {
        /// Whose thread.
        owner: &'static str,
    },
}

/// What to do about an error of the disk, to stand behind it; empty where nothing general can be said.
pub(crate) fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; make room there and start the node again: what was acknowledged is not lost"
        }
        _ => "",
    }
}

/// Whether what the operating system refused may pass by itself, or with room made. When in doubt it may: who tries
/// again for nothing loses less than who does not try what would have succeeded.
pub(crate) fn may_pass(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    // What our own file under the database refused is a fault in an error's coat.
    if let Some(fault) = error.get_ref().and_then(|inner| inner.downcast_ref::<Fault>()) {
        return fault.is_retryable();
    }
    !matches!(
        error.kind(),
        K::PermissionDenied
            | K::NotADirectory
            | K::IsADirectory
            | K::AlreadyExists
            | K::ReadOnlyFilesystem
            | K::InvalidInput
            | K::InvalidFilename
            | K::Unsupported
    )
}

impl Fault {
    /// Whether the node may serve again when it is started anew, with nothing done to its files. Not so after corruption:
    /// a later start meets it again, and the node is to be replaced.
    pub fn is_retryable(&self) -> bool {
        match self {
            Fault::Disk { error, .. } => may_pass(error),
            Fault::Corrupt { .. }
            | Fault::Refused { .. }
            | Fault::AnotherHistory { .. }
            | Fault::StateDiffers { .. } => false,
            // What the database says may be of the disk; a bug may need a rare order of events.
            Fault::State { .. }
            | Fault::Invariant { .. }
            | Fault::Panicked { .. }
            | Fault::Stopped { .. } => true,
        }
    }

    /// A disk error, with what was being done.
    pub fn disk(doing: &'static str, path: impl std::fmt::Display, error: io::Error) -> Self {
        Fault::Disk {
            doing,
            path: path.to_string(),
            error: Arc::new(error),
        }
    }

    /// A broken invariant. In tests this panics, so that the bug is seen where it is; in a release the node
    /// stops with the fault.
    pub fn invariant(invariant: &'static str, detail: impl Into<String>) -> Self {
        let fault = Fault::Invariant {
            invariant,
            detail: detail.into(),
        };
        debug_assert!(false, "{fault}");
        fault
    }
}

/// The first fault of a node, for everyone who must know: one for each node, cheap to clone.
///
/// Always: the first fault stays; whoever waits for it is told.
#[derive(Debug, Clone)]
pub struct Faults {
    raise: watch::Sender<Option<Fault>>,
    raised: watch::Receiver<Option<Fault>>,
}

impl Default for Faults {
    fn default() -> Self {
        let (raise, raised) = watch::channel(None);
        Self { raise, raised }
    }
}

impl Faults {
    /// Ends the node's part in the cluster, for this reason. Any but the first changes nothing.
    pub fn raise(&self, fault: Fault) {
        let is_first = self.raise.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert_with(|| fault.clone());
            is_first
        });
        if is_first {
            tracing::error!(%fault, "a fault ends this node's part in the cluster; its files are left as they are");
        } else {
            tracing::debug!(%fault, "a fault after the first");
        }
    }

    /// For [`env::spawn_owner`](crate::env::spawn_owner): a panic of that owner is a fault of the node.
    pub fn on_panic(&self, owner: &'static str) -> impl FnOnce(String) + Send + use<> {
        let faults = self.clone();
        move |message| faults.raise(Fault::Panicked { owner, message })
    }

    /// The first fault, if there was one.
    pub fn first(&self) -> Option<Fault> {
        self.raised.borrow().clone()
    }

    /// Whether there was one.
    pub fn is_raised(&self) -> bool {
        self.raised.borrow().is_some()
    }

    /// Waits for the first fault. Cancel safe.
    pub async fn raised(&self) -> Fault {
        let mut raised = self.raised.clone();
        loop {
            if let Some(fault) = &*raised.borrow_and_update() {
                return fault.clone();
            }
            // We hold a sender ourselves: the channel does not end.
            if raised.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> io::Error {
        io::Error::other(fault)
    }
}
