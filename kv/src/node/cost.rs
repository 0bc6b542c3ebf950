//! What a call takes in memory: its request once it is read, and its answer at most.
//!
//! Estimates from above, but for the answers that are usually small, so that room can be taken before anything is made. They
//! need not be exact: they bound what many callers together can have a node hold.

use crate::machine::MachineSettings;
use crate::model::Command;
use crate::model::{
    Condition, GuardNode, KeyTest, Limits, Op, RangeRead, RangeTest, ReadOp, Txn, TxnResponse,
};
use crate::protocol::Request;

/// A call beside its keys and values: its task, its place in queues, its answer's envelope.
const CALL_BYTES: usize = 1024;
/// An operation, a condition or a read beside its keys and values.
const STEP_BYTES: usize = 128;
/// A record of an answer beside its key and value, and a result that has none.
const RECORD_BYTES: usize = 128;
/// A message has two bytes at least for each of its steps.
const STEP_ENCODED_MIN: usize = 2;
/// What a failed condition tells of a value at most.
const FOUND_VALUE_BYTES_MAX: usize = 1024;

/// What a message takes with what is read from it and before its answer is made, whatever is in it.
pub(super) fn of_message(bytes: usize, limits: &Limits) -> usize {
    let steps = (bytes / STEP_ENCODED_MIN).min(limits.txn_ops_max);
    CALL_BYTES + bytes + steps * STEP_BYTES
}

/// What a request takes that was read from a message of so many bytes, a write's answer included. That of a read is
/// counted apart, once it can be made.
///
/// `returned_max`: what the reads of one transaction return at most.
pub(super) fn of_call(bytes: usize, request: &Request, limits: &Limits, returned_max: u64) -> usize {
    let (steps, answer) = match request {
        Request::Write(command) | Request::WriteAgain(command) => match command {
            Command::Txn { txn, .. } => {
                let steps = txn.guard.nodes().len() + txn.then.len() + txn.otherwise.len();
                (steps, of_txn_answer(txn, limits, returned_max))
            }
            Command::OpenSession { .. }
            | Command::CloseSession { .. }
            | Command::SetLimits { .. }
            | Command::Compact { .. } => (0, 0),
        },
        Request::Read { reads, .. } => (reads.len(), 0),
        Request::Status | Request::Shrink | Request::Admin(_) | Request::GiveUp { .. } => (0, 0),
    };
    CALL_BYTES + bytes + steps * STEP_BYTES + answer
}

/// The most that a transaction's answer takes.
fn of_txn_answer(txn: &Txn, limits: &Limits, returned_max: u64) -> usize {
    let returned_max = usize::try_from(returned_max).unwrap_or(usize::MAX);
    let branch = |ops: &[Op]| {
        let returned: usize = ops
            .iter()
            .map(|op| returned(op, limits))
            .fold(0, usize::saturating_add);
        ops.len() * RECORD_BYTES + returned.min(returned_max)
    };
    let failed = txn.guard.nodes().iter().filter_map(|node| match node {
        GuardNode::Condition(condition) => Some(found(condition, limits)),
        GuardNode::All(_) | GuardNode::Any(_) | GuardNode::Not => None,
    });
    let failed: usize = failed.take(TxnResponse::FAILED_MAX).sum();
    failed + branch(&txn.then).max(branch(&txn.otherwise))
}

/// What an operation returns beside a result of a fixed size.
fn returned(op: &Op, limits: &Limits) -> usize {
    match op {
        Op::Get { key } => key.len() + limits.value_bytes_max,
        Op::Range(read) => of_records(read, limits),
        Op::PutSequence { prefix, .. } => prefix.len() + 20,
        Op::Put { .. } | Op::Delete { .. } | Op::DeleteRange { .. } | Op::Add { .. } | Op::Max { .. } => 0,
    }
}

/// What is told of a condition that failed.
fn found(condition: &Condition, limits: &Limits) -> usize {
    let told = match condition {
        Condition::Key {
            test: KeyTest::Value(..),
            ..
        } => FOUND_VALUE_BYTES_MAX,
        Condition::Range {
            test: RangeTest::All(_),
            ..
        } => limits.key_bytes_max,
        Condition::Key { .. } | Condition::Range { .. } => 0,
    };
    RECORD_BYTES + told
}

/// What the answer to a batch of reads takes, if its values are small.
pub(super) fn of_small_answer(reads: &[ReadOp]) -> usize {
    /// A record with its value: most are smaller.
    const RECORD_BYTES_SMALL: usize = 1024;
    let records = reads.iter().map(|read| match read {
        ReadOp::Get(_) => 1,
        ReadOp::Range(read) if read.count_only => 1,
        ReadOp::Range(read) => read.limit as usize,
    });
    records
        .fold(1, usize::saturating_add)
        .saturating_mul(RECORD_BYTES_SMALL)
}

/// The most that the answer to a batch of reads takes.
pub(super) fn of_read_answer(reads: &[ReadOp], limits: &Limits) -> usize {
    let machine = MachineSettings::default();
    let of = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    // A page ends before it is larger, but holds one record at least.
    let record_max = limits.key_bytes_max + limits.value_bytes_max + RECORD_BYTES;
    let page_max = of(machine.tuning.page_bytes_max).max(record_max);
    let all = reads.iter().map(|read| match read {
        ReadOp::Get(key) => RECORD_BYTES + key.len() + limits.value_bytes_max,
        ReadOp::Range(read) => RECORD_BYTES + of_records(read, limits).min(page_max),
    });
    // The batch is refused once it is larger, by the last of its reads.
    all.fold(0, usize::saturating_add)
        .min(of(machine.read_bytes_max) + page_max)
}

fn of_records(read: &RangeRead, limits: &Limits) -> usize {
    if read.count_only {
        return 0;
    }
    let value = if read.keys_only { 0 } else { limits.value_bytes_max };
    (read.limit as usize).saturating_mul(RECORD_BYTES + limits.key_bytes_max + value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Compare, Guard, Key, KeyRange, KeyValue, Record, Revision};

    const RETURNED_MAX: u64 = 4 << 20;

    fn key(name: &str) -> Key {
        Key::from(name.to_owned())
    }

    fn limits() -> Limits {
        Limits::default()
    }

    #[test]
    fn an_answer_is_never_more_than_was_counted_for_it() {
        let Limits {
            key_bytes_max,
            value_bytes_max,
            ..
        } = limits();
        let record = |value: usize| Record {
            value: vec![b'v'; value].into(),
            create_revision: Revision::new(u64::MAX),
            mod_revision: Revision::new(u64::MAX),
            version: u64::MAX,
            lease: None,
        };
        let pair = |value| KeyValue {
            key: Key::new(vec![b'k'; key_bytes_max]).unwrap(),
            record: record(value),
        };
        let held = |pairs: &[KeyValue]| -> usize {
            pairs
                .iter()
                .map(|pair| size_of::<KeyValue>() + pair.key.len() + pair.record.value.len())
                .sum()
        };
        let get = of_read_answer(&[ReadOp::Get(key("k"))], &limits());
        assert!(get >= size_of::<Record>() + value_bytes_max);
        let range = RangeRead::new(KeyRange::all());
        let keys_only = RangeRead {
            keys_only: true,
            limit: 3,
            ..range.clone()
        };
        let counted = of_read_answer(&[ReadOp::Range(keys_only)], &limits());
        assert!(counted >= held(&[pair(0), pair(0), pair(0)]), "{counted}");
        let one = of_read_answer(&[ReadOp::Range(range.clone().limit(1))], &limits());
        assert!(one >= held(&[pair(value_bytes_max)]), "{one}");
        let count = RangeRead {
            count_only: true,
            ..range
        };
        let counted = of_read_answer(&[ReadOp::Range(count)], &limits());
        assert!(counted < 1_000, "a number is no page: {counted}");
    }

    #[test]
    fn a_read_of_a_hundred_thousand_keys_is_no_more_than_a_batch_may_answer() {
        let reads = vec![ReadOp::Get(key("k")); 131_072];
        let counted = of_read_answer(&reads, &limits());
        assert!(counted <= 18 << 20, "{counted}");
    }

    #[test]
    fn a_small_write_takes_little_and_one_that_reads_takes_what_it_reads() {
        let write = |txn: Txn| Request::Write(Command::Txn { session: None, txn });
        let put = Txn::new([Op::put(key("k"), "v")]).when(Guard::missing(key("k")));
        let counted = of_call(100, &write(put), &limits(), RETURNED_MAX);
        assert!(counted < 4 * 1024, "{counted}");
        let gets = Txn::new(vec![Op::get(key("k")); 100]);
        let counted = of_call(1_000, &write(gets), &limits(), RETURNED_MAX);
        assert!((4 << 20..5 << 20).contains(&counted), "{counted}");
        let compared = Guard::key(key("k"), KeyTest::Value(Compare::Equal, "v".into()));
        let guarded = Txn::new([]).when(Guard::all(vec![compared; 4_000]));
        let counted = of_call(40_000, &write(guarded), &limits(), RETURNED_MAX);
        assert!(
            counted > TxnResponse::FAILED_MAX * FOUND_VALUE_BYTES_MAX,
            "{counted}"
        );
    }

    #[test]
    fn what_a_message_takes_before_it_is_read_suffices_for_what_is_in_it() {
        let reads = vec![ReadOp::Get(key("k")); 1_000];
        let request = Request::Read {
            reads,
            consistency: crate::model::Consistency::Linearizable,
            wait: std::time::Duration::ZERO,
            time: std::time::Duration::ZERO,
        };
        let bytes = crate::model::encode(&request).len();
        assert!(of_message(bytes, &limits()) >= of_call(bytes, &request, &limits(), RETURNED_MAX));
    }
}
