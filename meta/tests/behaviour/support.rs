//! A store of one state machine without Raft, that checks the invariants after every commit and can be told to
//! lose answers and to let others commit first.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use quorate_kv::env::RealDisk;
use quorate_kv::machine::{Entry, EntryOutcome, Machine, MachineSettings, OpenMode, Payload, Reader};
use quorate_kv::model::{
    Command, Consistency, KeyRange, KeyValue, LogIndex, LogPosition, LogTime, NodeId, Outcome, Proposal,
    RangeRead, ReadOp, ReadResponse, ReadResult, Revision, Term, Txn, TxnResponse, encode,
};
use quorate_meta::check::{Sweeps, check, check_step};
use quorate_meta::{
    Broker, BrokerId, CreateTopic, Image, Keys, MetaClient, Partition, PartitionIndex, RegisterBroker, Store,
    StoreError, TopicName,
};

pub type Meta = MetaClient<Arc<TestStore>>;

pub struct TestStore {
    machine: Mutex<Machine>,
    reader: Reader,
    clock: Arc<AtomicU64>,
    state: Mutex<State>,
    _dir: tempfile::TempDir,
}

#[derive(Default)]
struct State {
    /// The transactions that ran, in order.
    txns: Vec<Txn>,
    /// The freshness that each call of `read` asked for.
    reads: Vec<Consistency>,
    /// How many records were read.
    records: usize,
    /// Committed just before the next transactions, one each.
    first: VecDeque<Txn>,
    /// How many answers to lose after the commit.
    lose: u32,
    /// The image after the last commit; `None` where nothing is checked.
    checked: Option<Image>,
}

#[derive(Debug, thiserror::Error)]
enum TestError {
    #[error("the answer was lost")]
    AnswerLost,
    #[error("{0}")]
    Refused(String),
}

impl TestStore {
    pub fn new() -> Arc<Self> {
        Self::open(Some(Image::new(Revision::FIRST)))
    }

    /// A store that checks nothing, for large batches.
    pub fn unchecked() -> Arc<Self> {
        Self::open(None)
    }

    fn open(checked: Option<Image>) -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = MachineSettings::default();
        settings.cache_bytes = 64 * 1024 * 1024;
        let (machine, reader) =
            Machine::open(Arc::new(RealDisk), dir.path(), OpenMode::Create, settings).unwrap();
        let state = State {
            checked,
            ..State::default()
        };
        Arc::new(Self {
            machine: Mutex::new(machine),
            reader,
            clock: Arc::new(AtomicU64::new(1_700_000_000_000)),
            state: Mutex::new(state),
            _dir: dir,
        })
    }

    pub fn meta(self: &Arc<Self>) -> Meta {
        let clock = Arc::clone(&self.clock);
        MetaClient::new(Arc::clone(self))
            .with_clock(move || LogTime::from_millis(clock.load(Ordering::Relaxed)))
    }

    /// Moves the proposers' clock.
    pub fn set_clock(&self, millis: u64) {
        self.clock.store(millis, Ordering::Relaxed);
    }

    /// The transactions that ran so far.
    pub fn txns(&self) -> Vec<Txn> {
        self.state.lock().unwrap().txns.clone()
    }

    pub fn txn_count(&self) -> usize {
        self.state.lock().unwrap().txns.len()
    }

    pub fn consistencies(&self) -> Vec<Consistency> {
        self.state.lock().unwrap().reads.clone()
    }

    pub fn records_read(&self) -> usize {
        self.state.lock().unwrap().records
    }

    /// Commits `txn` just before the next transaction that comes.
    pub fn commit_first(&self, txn: Txn) {
        self.state.lock().unwrap().first.push_back(txn);
    }

    /// Loses the answers to the next `count` transactions, which commit.
    pub fn lose_answers(&self, count: u32) {
        self.state.lock().unwrap().lose = count;
    }

    pub fn revision(&self) -> Revision {
        self.reader.view().unwrap().applied().revision
    }

    /// The whole metadata.
    pub fn image(&self) -> Image {
        let view = self.reader.view().unwrap();
        let mut records: Vec<KeyValue> = Vec::new();
        let keys = Keys::default();
        let mut range = keys.all();
        loop {
            let read = ReadOp::Range(RangeRead::new(range).limit(u32::MAX));
            let mut results = view.read(&[read], None).unwrap().unwrap();
            let Some(ReadResult::Range {
                records: page, more, ..
            }) = results.pop()
            else {
                panic!("a range is answered with a range");
            };
            records.extend(page);
            if !more {
                return Image::from_records(keys, view.applied().revision, &records).unwrap();
            }
            let mut next = records.last().unwrap().key.as_bytes().to_vec();
            next.push(0);
            range = KeyRange::new(next, keys.all().end().unwrap().to_vec());
        }
    }

    /// Applies a transaction, and checks what must hold after it.
    pub fn apply(&self, txn: Txn) -> Result<TxnResponse, String> {
        let mut machine = self.machine.lock().unwrap();
        let last = machine.applied().position.map_or(0, |p| p.index.number());
        let position = LogPosition {
            term: Term::new(1),
            leader: NodeId::new(1),
            index: LogIndex::new(last + 1),
        };
        let proposal = Proposal {
            stamp: LogTime::from_millis(self.clock.load(Ordering::Relaxed)),
            full_at: None,
            commands: vec![Command::Txn {
                session: None,
                txn: txn.clone(),
            }],
        };
        let payload = Payload::Proposal(Bytes::from(encode(&proposal)));
        let mut outcomes = machine.apply(vec![Entry { position, payload }]).unwrap();
        let Some(EntryOutcome::Proposal(mut outcomes)) = outcomes.pop() else {
            panic!("a proposal is answered with a proposal's outcome");
        };
        let Some(Outcome::Txn(result)) = outcomes.pop() else {
            panic!("a transaction is answered with a transaction's outcome");
        };
        drop(machine);
        let mut state = self.state.lock().unwrap();
        if let Some(before) = state.checked.take() {
            let after = self.image();
            let violations = [check(&after, Sweeps::MayBePending), check_step(&before, &after)].concat();
            assert_eq!(violations, [], "after {txn:#?}");
            state.checked = Some(after);
        }
        state.txns.push(txn);
        result.map_err(|refused| refused.to_string())
    }
}

impl Store for TestStore {
    async fn txn(&self, txn: Txn) -> Result<TxnResponse, StoreError> {
        // Others that wait come first: that is how races are made.
        tokio::task::yield_now().await;
        let first = self.state.lock().unwrap().first.pop_front();
        if let Some(first) = first {
            assert!(self.apply(first).unwrap().succeeded, "the competitor wins");
        }
        let result = self.apply(txn);
        let mut state = self.state.lock().unwrap();
        if state.lose > 0 {
            state.lose -= 1;
            return Err(StoreError::new(TestError::AnswerLost, true, true));
        }
        result.map_err(|refused| StoreError::new(TestError::Refused(refused), false, false))
    }

    async fn read(&self, reads: Vec<ReadOp>, consistency: Consistency) -> Result<ReadResponse, StoreError> {
        tokio::task::yield_now().await;
        let view = self.reader.view().unwrap();
        let at = match consistency {
            Consistency::At(revision) => Some(revision),
            Consistency::Linearizable | Consistency::Stale { .. } => None,
        };
        let results = view.read(&reads, at).unwrap();
        let results =
            results.map_err(|e| StoreError::new(TestError::Refused(e.to_string()), false, false))?;
        let mut state = self.state.lock().unwrap();
        state.reads.push(consistency);
        state.records += results
            .iter()
            .map(|result| match result {
                ReadResult::Get(record) => usize::from(record.is_some()),
                ReadResult::Range { records, .. } => records.len(),
            })
            .sum::<usize>();
        let revision = at.unwrap_or(view.applied().revision);
        Ok(ReadResponse { revision, results })
    }

    async fn backoff(&self, _: u32) {
        tokio::task::yield_now().await;
    }
}

pub fn id(number: u64) -> BrokerId {
    BrokerId::new(number)
}

pub fn ids<const N: usize>(numbers: [u64; N]) -> Vec<BrokerId> {
    numbers.map(BrokerId::new).to_vec()
}

pub fn index(number: u32) -> PartitionIndex {
    PartitionIndex::new(number)
}

pub fn name(text: &str) -> TopicName {
    TopicName::new(text).unwrap()
}

pub fn registration(number: u64) -> RegisterBroker {
    RegisterBroker::new(number, format!("broker-{number}:9092")).unwrap()
}

/// A store with brokers 1 to `count`.
pub async fn cluster(count: u64) -> (Arc<TestStore>, Meta) {
    let store = TestStore::new();
    let meta = store.meta();
    register(&meta, count).await;
    (store, meta)
}

pub async fn register(meta: &Meta, count: u64) -> Vec<Broker> {
    let registered = meta
        .register_brokers((1..=count).map(registration))
        .await
        .unwrap();
    registered
        .into_iter()
        .map(|registered| registered.broker)
        .collect()
}

/// A topic of one partition on these replicas.
pub async fn topic_on(meta: &Meta, text: &str, replicas: Vec<BrokerId>) -> Partition {
    let create = CreateTopic::manual(text, [replicas]).unwrap();
    let mut created = meta.create_topic(create).await.unwrap();
    created.partitions.pop().unwrap()
}

/// The partition as it is now.
pub async fn now(meta: &Meta, partition: &Partition) -> Partition {
    meta.partition(partition.topic, partition.index)
        .await
        .unwrap()
        .unwrap()
}
