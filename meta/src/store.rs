//! What this crate asks of the key-value store: a transaction and a consistent read.
//!
//! The seam between deciding and waiting: the store's client implements it, and so do the tests' stores.

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use quorate_kv::env;
use quorate_kv::model::{Consistency, ReadOp, ReadResponse, Txn, TxnResponse};

/// A store that runs transactions and reads.
pub trait Store: Send + Sync {
    /// Runs a transaction once, exactly: a retry inside must not run it again.
    ///
    /// Cancel safety: dropped before it answered, the transaction may still commit.
    fn txn(&self, txn: Txn) -> impl Future<Output = Result<TxnResponse, StoreError>> + Send;

    /// Reads, all at one revision, which is at least as fresh as `consistency` asks.
    ///
    /// Cancel safe.
    fn read(
        &self,
        reads: Vec<ReadOp>,
        consistency: Consistency,
    ) -> impl Future<Output = Result<ReadResponse, StoreError>> + Send;

    /// The store for one operation of several calls, where it has a time for each of them: all together then have that time,
    /// from now on; of such a store it is the same again. `None` where calls have no time.
    fn one_operation(&self) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }

    /// Waits before a decision that lost a race is made again, for the `attempt`-th time (from 1).
    fn backoff(&self, attempt: u32) -> impl Future<Output = ()> + Send {
        // Whoever won has committed already, so the first wait is short; it spreads those that lost together.
        let most = Duration::from_millis(1) * 2u32.pow(attempt.min(7));
        let share = u32::try_from(env::random_u64() % 1024).unwrap_or(0);
        env::sleep(most * share / 1024)
    }
}

impl<S: Store> Store for Arc<S> {
    fn txn(&self, txn: Txn) -> impl Future<Output = Result<TxnResponse, StoreError>> + Send {
        S::txn(self, txn)
    }

    fn read(
        &self,
        reads: Vec<ReadOp>,
        consistency: Consistency,
    ) -> impl Future<Output = Result<ReadResponse, StoreError>> + Send {
        S::read(self, reads, consistency)
    }

    fn one_operation(&self) -> Option<Self> {
        S::one_operation(self).map(Arc::new)
    }

    fn backoff(&self, attempt: u32) -> impl Future<Output = ()> + Send {
        S::backoff(self, attempt)
    }
}

/// A call of the store's client on its way. A trait object, so that what a client is made of does not add to the
/// depth of the callers' own types, which the compiler bounds.
type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

impl Store for quorate_kv::Client {
    fn txn(&self, txn: Txn) -> impl Future<Output = Result<TxnResponse, StoreError>> + Send {
        let call = async move {
            quorate_kv::Client::commit(self, txn)
                .await
                .map_err(StoreError::from)
        };
        Box::pin(call) as Answer<'_, TxnResponse>
    }

    fn read(
        &self,
        reads: Vec<ReadOp>,
        consistency: Consistency,
    ) -> impl Future<Output = Result<ReadResponse, StoreError>> + Send {
        let call = async move {
            quorate_kv::Client::read(self, reads)
                .consistency(consistency)
                .await
                .map_err(StoreError::from)
        };
        Box::pin(call) as Answer<'_, ReadResponse>
    }

    fn one_operation(&self) -> Option<Self> {
        Some(self.for_one_operation())
    }
}

impl From<quorate_kv::client::Error> for StoreError {
    fn from(error: quorate_kv::client::Error) -> Self {
        let (retryable, may_have_committed) = (error.is_retryable(), error.may_have_committed());
        Self::new(error, retryable, may_have_committed)
    }
}

/// The store did not do what was asked, or nobody knows whether it did.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the store: {source}")]
pub struct StoreError {
    source: Arc<dyn StdError + Send + Sync>,
    retryable: bool,
    may_have_committed: bool,
}

impl StoreError {
    /// Wraps the store's own error with what it says of itself.
    pub fn new(
        source: impl StdError + Send + Sync + 'static,
        retryable: bool,
        may_have_committed: bool,
    ) -> Self {
        Self {
            source: Arc::new(source),
            retryable,
            may_have_committed,
        }
    }

    /// Whether the same may succeed later.
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// Whether it may have happened all the same.
    pub fn may_have_committed(&self) -> bool {
        self.may_have_committed
    }
}
