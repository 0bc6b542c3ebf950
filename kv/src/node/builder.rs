//! Describes a node and starts it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use quorate_transport::{Address, ClusterId, Identity, InvalidAddress, InvalidIdentity, Transport};
use tokio_util::sync::CancellationToken;

use super::accept::accept;
use super::front::{Front, FrontParts};
use super::invalid_settings::InvalidSettings;
use super::loopback::Loopback;
use super::running::{Ending, Inner, Node};
use super::settings::Settings;
use super::storage::{self, StorageError};
use crate::env::{self, Disk, JoinError, RealDisk};
use crate::fault::{Fault, Faults};
use crate::log::LogSettings;
use crate::machine::MachineSettings;
use crate::model::NodeId;
use crate::raft::{Member, Part, RaftNode, RaftParts, Tap};
use crate::tasks::Tasks;

/// Describes a node. The one thing without a default is the data directory.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use quorate_kv::node::Node;
///
/// let node = Node::builder().data_dir("/var/lib/app/quorate").start().await?;
/// let client = node.client();
/// client.put("greeting", "hello").await?;
/// node.shutdown().await;
/// # Ok(()) }
/// ```
///
/// A node of a cluster is the same with more lines: its id, the list of all nodes, and a transport with its own certificate, which
/// `quorate certs` makes. The other nodes run the same program with their own ids.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use std::path::Path;
///
/// use quorate_kv::node::{Node, Profile};
/// use quorate_transport::certs::Credentials;
/// use quorate_transport::quic::{QuicSettings, QuicTransport};
/// use quorate_transport::{ClusterId, Identity};
///
/// let me = Identity::node(ClusterId::new("orders")?, 1);
/// let credentials = Credentials::load_from(Path::new("/etc/orders/certs"), &me)?;
/// let transport = QuicTransport::bind(Some("0.0.0.0:7001".parse()?), &credentials, QuicSettings::default())?;
///
/// let node = Node::builder()
///     .data_dir("/var/lib/orders")
///     .peers([(1, "a.internal:7001"), (2, "b.internal:7001"), (3, "c.internal:7001")])
///     .transport(transport)
///     .timing(Profile::Production)
///     .start()
///     .await?;
/// node.ready().await;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use]
pub struct Builder {
    data_dir: Option<PathBuf>,
    /// As given; else as the transport's certificate says.
    cluster: Option<String>,
    id: Option<NodeId>,
    peers: BTreeMap<NodeId, String>,
    join: bool,
    transport: Option<Arc<dyn Transport>>,
    disk: Arc<dyn Disk>,
    settings: Settings,
    tap: Option<Arc<dyn Tap>>,
}

/// The name of a cluster that is given none.
const CLUSTER: &str = "quorate";

impl Default for Builder {
    fn default() -> Self {
        Self {
            data_dir: None,
            cluster: None,
            id: None,
            peers: BTreeMap::new(),
            join: false,
            transport: None,
            disk: Arc::new(RealDisk),
            settings: Settings::default(),
            tap: None,
        }
    }
}

/// A node that was not started. Nothing runs, its transport is shut down, and no data was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// No data directory was given, or an empty path.
    #[error("a node needs a data directory: call data_dir() with a path that is not empty")]
    NoDataDir,
    /// Settings outside their ranges: all of them.
    #[error("{}", list(.0))]
    Settings(Vec<InvalidSettings>),
    /// The cluster's name cannot be used.
    #[error(transparent)]
    Cluster(#[from] InvalidIdentity),
    /// A cluster without a way to reach it.
    #[error("a node of a cluster (peers(), join()) needs a transport to reach the others: call transport()")]
    NoTransport,
    /// The transport speaks for someone else.
    #[error("the certificate says {certificate}, but the node is {node}")]
    WrongIdentity {
        /// Who the transport's certificate names.
        certificate: Identity,
        /// Who the node is.
        node: Identity,
    },
    /// No node has this id: it stands for nobody in votes.
    #[error("0 is no node id: the first is 1")]
    NoId,
    /// The node is not among the peers.
    #[error("node {id} is not in the list of peers; the list names every node, this one included")]
    NotAPeer {
        /// The node.
        id: NodeId,
    },
    /// A text that is no address that others could go to.
    #[error("node {id}: {error}")]
    Address {
        /// Whose address it was to be.
        id: NodeId,
        /// What is wrong with it.
        error: InvalidAddress,
    },
    /// The node would listen where the others do not look for it. An address is never changed in place: two
    /// halves of the cluster could then each take the node for theirs.
    #[error(
        "the cluster knows node {id} at {recorded}, but it would now be at {given}: start it at {recorded} (a port \
         of 0 gives another one each time), or remove it from the cluster and add an empty directory under a new \
         node id at {given}"
    )]
    AddressChanged {
        /// The node.
        id: NodeId,
        /// Its address in the membership.
        recorded: Address,
        /// Its address now.
        given: Address,
    },
    /// The data directory cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Raft did not start.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl StartError {
    /// Whether the same start may succeed later with nothing changed, so that a service manager should try again. Where
    /// not, somebody must act first.
    pub fn is_retryable(&self) -> bool {
        match self {
            StartError::Storage(error) => error.is_retryable(),
            StartError::Fault(fault) => fault.is_retryable(),
            StartError::NoDataDir
            | StartError::Settings(_)
            | StartError::Cluster(_)
            | StartError::NoTransport
            | StartError::WrongIdentity { .. }
            | StartError::NoId
            | StartError::NotAPeer { .. }
            | StartError::Address { .. }
            | StartError::AddressChanged { .. } => false,
        }
    }
}

fn list(errors: &[InvalidSettings]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

impl Builder {
    /// Where the node keeps its files. Made if missing; used by one process at a time.
    pub fn data_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(dir.into());
        self
    }

    /// The cluster's name: 1 to 64 characters of a-z, 0-9 and -. By default the one in the transport's certificate; "quorate" without
    /// a transport.
    pub fn cluster(mut self, name: impl Into<String>) -> Self {
        self.cluster = Some(name.into());
        self
    }

    /// The node's id, at least 1. By default the one in the transport's certificate; 1 without a transport. Another data directory may have it once its last
    /// one was removed from the cluster, and only an empty one; an id that no node ever had is better.
    pub fn node_id(mut self, id: u64) -> Self {
        self.id = Some(NodeId::new(id));
        self
    }

    /// All nodes of the cluster with their addresses, this one included. Every node is given the same list
    /// and may start in any order; the list forms the cluster once and is not consulted later. Each address is an
    /// [`Address`] as a text.
    pub fn peers<A: Into<String>>(mut self, peers: impl IntoIterator<Item = (u64, A)>) -> Self {
        self.peers = peers
            .into_iter()
            .map(|(id, address)| (NodeId::new(id), address.into()))
            .collect();
        self
    }

    /// Waits to be added to a cluster that exists, instead of forming one:
    /// [`Client::add_learner`](crate::Client::add_learner) adds it, once it runs.
    pub fn join(mut self) -> Self {
        self.join = true;
        self
    }

    /// What carries messages to peers and clients. Its identity must be this node's. It belongs to the node from the
    /// start on, and is shut down when the node ends or does not start: its address is free then.
    pub fn transport(mut self, transport: Arc<dyn Transport>) -> Self {
        self.transport = Some(transport);
        self
    }

    /// The disk; the operating system's by default.
    pub fn disk(mut self, disk: Arc<dyn Disk>) -> Self {
        self.disk = disk;
        self
    }

    /// Lets a checker hear everything that the node applies and that its log promises; see [`Tap`].
    pub fn tap(mut self, tap: Arc<dyn Tap>) -> Self {
        self.tap = Some(tap);
        self
    }

    /// All settings at once.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// use quorate_kv::node::{Node, Settings};
    ///
    /// let mut settings = Settings::default();
    /// settings.memory_bytes = 512 << 20;
    /// settings.disk_bytes_max = 20 << 30;
    /// let node = Node::builder().data_dir("data").settings(settings).start().await?;
    /// # let _ = node;
    /// # Ok(()) }
    /// ```
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Heartbeats and the promised failover time, as a [`Profile`](super::Profile) or in full.
    pub fn timing(mut self, timing: impl Into<super::Timing>) -> Self {
        self.settings.timing = timing.into();
        self
    }

    /// Starts the node: returns when it serves (alone), or when it takes part in its cluster's elections; then
    /// [`Node::ready`] waits for a leader. Everything that was acknowledged before is there.
    ///
    /// # Errors
    /// [`StartError`] says what was wrong and [`is_retryable`](StartError::is_retryable) whether the same start may succeed later.
    /// Settings outside their ranges are refused all at once. Nothing runs then, and no data was changed.
    ///
    /// Cancel safe: dropped, the start goes on in the background, and the node that comes of it ends at once, in order;
    /// the data directory is in use until then.
    pub async fn start(self) -> Result<Node, StartError> {
        self.starting().await
    }

    /// The start as a trait object, made in a function that is not `async`: so the compiler translates the whole of
    /// a node with this crate, once. The body of an `async` function is translated by whoever awaits it, again in
    /// every program and test that starts a node.
    ///
    /// A task of its own: in the middle of it there are threads and tasks at work on files, which its caller cannot end by
    /// no longer waiting.
    #[inline(never)]
    fn starting(self) -> BoxFuture<'static, Result<Node, StartError>> {
        let starting = env::spawn("start", async {
            let transport = self.transport.clone();
            let started = self.begin().await;
            if let (Err(_), Some(transport)) = (&started, transport) {
                transport.shutdown().await;
            }
            started
        });
        Box::pin(async {
            let owner = "start";
            match starting.await {
                Ok(started) => started,
                Err(JoinError::Panicked(message)) => Err(Fault::Panicked { owner, message }.into()),
                Err(JoinError::Cancelled) => Err(Fault::Stopped { owner }.into()),
            }
        })
    }

    async fn begin(self) -> Result<Node, StartError> {
        // An empty path would be the directory that the program happens to stand in.
        let dir = self.data_dir.filter(|dir| !dir.as_os_str().is_empty());
        let dir = dir.ok_or(StartError::NoDataDir)?;
        let proven = self.transport.as_ref().map(|transport| transport.identity());
        let id = self.id.or_else(|| proven?.node_id().map(NodeId::new));
        let id = id.unwrap_or(NodeId::new(1));
        let cluster = self.cluster.unwrap_or_else(|| {
            let proven = proven.map(|identity| identity.cluster.as_str());
            proven.unwrap_or(CLUSTER).to_owned()
        });
        let nobody = NodeId::new(0);
        if id == nobody || self.peers.contains_key(&nobody) {
            return Err(StartError::NoId);
        }
        self.settings.check().map_err(StartError::Settings)?;
        let identity = Identity::node(ClusterId::new(&cluster)?, id.number());
        let transport = match self.transport {
            Some(transport) if transport.identity() != &identity => {
                let certificate = transport.identity().clone();
                return Err(StartError::WrongIdentity {
                    certificate,
                    node: identity,
                });
            }
            Some(transport) => transport,
            None if self.peers.len() > 1 || self.join => return Err(StartError::NoTransport),
            None => Arc::new(Loopback::new(identity)),
        };
        let mut members = BTreeMap::new();
        for (id, text) in self.peers {
            let address = text.parse().map_err(|error| StartError::Address { id, error })?;
            members.insert(id, Member::at(Some(address)));
        }
        let named_by_caller = !members.is_empty();
        if !named_by_caller {
            let address = match transport.local_address().map(Address::try_from).transpose() {
                Ok(address) => address,
                // Whoever adds the node says where it is.
                Err(_) if self.join => None,
                Err(error) => return Err(StartError::Address { id, error }),
            };
            members.insert(id, Member::at(address));
        }
        if !members.contains_key(&id) {
            return Err(StartError::NotAPeer { id });
        }
        let settings = Arc::new(self.settings);
        let memory = settings
            .memory()
            .map_err(|wrong| StartError::Settings(vec![wrong]))?;
        let log_settings = LogSettings {
            segment_bytes: settings.log_segment_bytes,
            cache_bytes_max: memory.log_cache,
            queue_bytes_max: memory.log_queue,
            ..LogSettings::default()
        };
        let state_settings = MachineSettings {
            cache_bytes: usize::try_from(memory.state_cache).unwrap_or(usize::MAX),
            tuning: settings.tuning,
            ..MachineSettings::default()
        };
        let disk = self.disk;
        let dirs = ["log", "state"].map(|part| dir.join(part)).to_vec();
        let faults = Faults::default();
        let opened = {
            let (disk, faults) = (Arc::clone(&disk), faults.clone());
            let cluster = cluster.clone();
            env::spawn_blocking(move || {
                storage::open(&disk, &dir, &cluster, id, log_settings, state_settings, &faults)
            })
            .await
        };
        let opened = opened.map_err(|_| Fault::Stopped {
            owner: "opening thread",
        })?;
        let storage = match opened {
            Ok(storage) => storage,
            Err(unopened) => return Err(unopened.close().await.into()),
        };
        let raft = RaftNode::start(RaftParts {
            id,
            member: storage.member,
            log: storage.log.clone(),
            machine: storage.machine,
            tap: self.tap,
            reader: storage.reader,
            disk: Arc::clone(&disk),
            dir: storage.state_dir,
            transport: Arc::clone(&transport),
            timing: settings.timing,
            settings: settings.raft(&memory),
            faults: faults.clone(),
        });
        let raft = match raft.await {
            Ok(raft) => Arc::new(raft),
            Err(fault) => {
                // What openraft says of it is a text; the fault that it met decides whether a retry may help.
                let met = faults.first().unwrap_or(fault);
                // Before the directory's lock is given free. What it says is the same fault, or nothing new.
                let _closed = storage.log.close().await;
                return Err(met.into());
            }
        };
        let (stopping, tasks) = (CancellationToken::new(), Tasks::new(faults.clone()));
        let scrubbing = (!settings.scrub_interval.is_zero()).then(|| {
            let reader = raft.machine().reader().clone();
            super::scrub::run(
                reader,
                storage.log.clone(),
                settings.scrub_interval,
                faults.clone(),
            )
        });
        let parts = FrontParts {
            raft: Arc::clone(&raft),
            settings,
            memory,
            cluster: cluster.into(),
            node: id,
            log: storage.log,
            transport: Arc::clone(&transport),
            stop: stopping.clone(),
            faults,
        };
        raft.waits_for(self.join, &members);
        let front = Front::open(parts, &tasks);
        let accepting = accept(
            Arc::clone(&front),
            Arc::clone(&raft),
            Arc::clone(&transport),
            tasks.clone(),
        );
        tasks.spawn("accept", accepting);
        tasks.spawn("disk-use", super::disk_use::watch(Arc::clone(&front), disk, dirs));
        tasks.spawn("measure", watch_timing(Arc::clone(&front)));
        if let Some(scrubbing) = scrubbing {
            tasks.spawn("scrub", scrubbing);
        }
        let ending = Ending::new(Arc::clone(&raft), Arc::clone(&transport), storage.lock);
        // Of no group: it is what ends them.
        env::spawn("end", Arc::clone(&ending).run());
        let node = Node {
            inner: Arc::new(Inner {
                front,
                raft,
                transport,
                stopping,
                tasks,
                ending,
            }),
        };
        if let Err(error) = node.take_part(members, named_by_caller, self.join).await {
            // Of a node that has ended already its own reason says more.
            let fault = node.fault();
            node.abort().await;
            return Err(fault.map_or(error, StartError::from));
        }
        Ok(node)
    }
}

impl Node {
    /// Forms the cluster where that is still to be done; a sole voter elects itself and serves on return.
    async fn take_part(
        &self,
        members: BTreeMap<NodeId, Member>,
        named_by_caller: bool,
        join: bool,
    ) -> Result<(), StartError> {
        let raft = &self.inner.raft;
        let refused = |e: crate::raft::MembershipError| Fault::State {
            doing: "forming",
            detail: e.to_string(),
        };
        let formed = raft.is_formed().await.map_err(refused)?;
        let known = raft.state().members;
        if known.len() > 1
            && let Some(recorded) = known.iter().find(|m| m.id == self.id())
            && let Some(recorded) = &recorded.address
            && let Some(given) = members.get(&self.id()).and_then(|member| member.address.as_ref())
            && has_moved(recorded, given, named_by_caller)
        {
            return Err(StartError::AddressChanged {
                id: self.id(),
                recorded: recorded.clone(),
                given: given.clone(),
            });
        }
        let voters: Vec<NodeId> = match formed {
            true => raft
                .state()
                .members
                .iter()
                .filter(|m| m.voter)
                .map(|m| m.id)
                .collect(),
            false => members.keys().copied().collect(),
        };
        let chronicle = super::chronicle::run(self.inner.front.clone());
        self.inner.tasks.spawn("chronicle", chronicle);
        let hung = super::hung_disk::watch(self.inner.front.clone());
        self.inner.tasks.spawn("hung-disk", hung);
        let compactor = super::compactor::run(self.inner.front.clone());
        self.inner.tasks.spawn("compactor", compactor);
        let shrinker = super::shrinker::run(self.inner.front.clone());
        self.inner.tasks.spawn("shrinker", shrinker);
        if voters == [self.id()] && !join {
            if formed {
                raft.elect().await;
            } else {
                raft.form_alone(&members).await.map_err(refused)?;
            }
            raft.wait_for(|state| matches!(state.role, Part::Leader | Part::Stopped))
                .await;
            super::first_limits::set_first(self.inner.front.clone()).await;
            return Ok(());
        } else if !formed && !join {
            let raft = Arc::clone(raft);
            let forming = async move { raft.form_in_turn(members).await };
            self.inner.tasks.spawn("form", forming);
        }
        let limits = super::first_limits::set_first(self.inner.front.clone());
        self.inner.tasks.spawn("limits", limits);
        Ok(())
    }
}

/// Whether a node is to be reached elsewhere than its cluster knows. An address that the caller did not name is
/// that of the socket, which may stand for a name or a forwarded port: then only another port of the very same
/// host counts.
fn has_moved(recorded: &Address, given: &Address, named_by_caller: bool) -> bool {
    if named_by_caller {
        return recorded != given;
    }
    let same_host = given.host().ip().is_some() && recorded.host() == given.host();
    same_host && recorded.port() != given.port()
}

/// Measures round trips and syncs from time to time, and warns, with the figures, where the timing does not
/// fit them.
async fn watch_timing(front: Arc<Front>) {
    const INTERVAL: Duration = Duration::from_secs(30);
    let mut told = None;
    loop {
        env::sleep(INTERVAL).await;
        let warning = front.timing_warning();
        if warning != told {
            if let Some(warning) = &warning {
                tracing::warn!("{warning}");
            }
            told = warning;
        }
    }
}

impl Node {
    /// Begins to describe a node.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_nobody_could_go_to_is_refused_before_a_file_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        for text in ["::1", "0.0.0.0:7004", "http://a:7001", "a:0", "", "a:7001,b:7001"] {
            let start = Node::builder().data_dir(&data).peers([(1, text)]).start();
            let refused = start.await.expect_err("a refusal");
            assert!(
                matches!(&refused, StartError::Address { id, error } if id.number() == 1 && error.text == text),
                "{text}: {refused:?}"
            );
        }
        assert!(!data.exists());
    }

    #[tokio::test]
    async fn a_node_whose_id_stands_for_nobody_is_refused_before_a_file_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let itself = Node::builder().data_dir(&data).node_id(0);
        let among = Node::builder()
            .data_dir(&data)
            .peers([(0, "a:7001"), (1, "b:7001")]);
        for builder in [itself, among] {
            let refused = builder.start().await.expect_err("a refusal");
            assert!(matches!(refused, StartError::NoId), "{refused:?}");
        }
        assert!(!data.exists());
    }

    #[test]
    fn a_node_has_moved_when_its_cluster_would_look_for_it_elsewhere() {
        let cases = [
            ("the same", "n1.example:7001", "n1.example:7001", true, false),
            (
                "another port, named",
                "n1.example:7001",
                "n1.example:7002",
                true,
                true,
            ),
            (
                "another port of the socket",
                "127.0.0.1:7001",
                "127.0.0.1:40112",
                false,
                true,
            ),
            (
                "a name for the socket",
                "n1.example:7001",
                "10.0.0.1:7001",
                false,
                false,
            ),
            (
                "a forwarded port",
                "203.0.113.9:7001",
                "10.0.0.1:9000",
                false,
                false,
            ),
        ];
        for (case, recorded, given, named, moved) in cases {
            let (recorded, given) = (recorded.parse().unwrap(), given.parse().unwrap());
            assert_eq!(has_moved(&recorded, &given, named), moved, "{case}");
        }
    }
}
