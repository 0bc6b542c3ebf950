//! Who looks names up, and the questions that are open.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::HostName;

/// Looks names up: the system does, unless a [`QuicTransport`](super::QuicTransport) was given another.
#[async_trait]
pub trait Resolver: fmt::Debug + Send + Sync + 'static {
    /// The IP addresses of a machine, the preferred ones first. It may take its time: whoever needs it waits no longer
    /// than [`QuicSettings::resolve_timeout`](super::QuicSettings::resolve_timeout), and nobody else waits.
    async fn addresses(&self, name: &HostName) -> io::Result<Vec<IpAddr>>;
}

/// The operating system's resolver: hosts file, DNS and what else it is set up for.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn addresses(&self, name: &HostName) -> io::Result<Vec<IpAddr>> {
        let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
        Ok(found.map(|address| address.ip()).collect())
    }
}

/// The addresses, or why there are none.
pub(super) type Answer = Result<Vec<IpAddr>, String>;

/// The questions that are open.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) resolver: Arc<dyn Resolver>,
    /// Held for a few lines. As many at most as attempts to connect and watchers of peers.
    questions: Mutex<BTreeMap<HostName, Question>>,
}

/// One name that is being looked up, or was.
#[derive(Debug)]
pub(super) enum Question {
    Asked(watch::Receiver<Option<Answer>>),
    AnsweredLate { at: Instant, answer: Answer },
}

impl Names {
    pub(super) fn new(resolver: Arc<dyn Resolver>) -> Self {
        Self {
            resolver,
            questions: Mutex::default(),
        }
    }

    pub(super) fn questions(&self) -> MutexGuard<'_, BTreeMap<HostName, Question>> {
        // Nothing panics while it is held.
        self.questions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
