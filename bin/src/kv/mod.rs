//! `quorate kv`: keys, as a person or a script reads and writes them.
//!
//! `request` checks what is asked, this module asks the cluster, `show` has the answers' forms. [`form`] reads transactions;
//! `export` and `import` write and read `lines`.

mod export;
pub mod form;
mod import;
mod lines;
mod request;
mod show;

use quorate_kv::Client;
use quorate_kv::client::{Error, Expected, Swap};
use quorate_kv::model::{
    Consistency, Guard, Key, KeyRange, KeyValue, Op, OpResult, RangeRead, ReadOp, ReadResult, Record,
    Revision, Txn, TxnRefused,
};
use serde::Serialize;

use crate::cli::KvArgs;
use crate::failure::{Failure, Kind};
use crate::output::{Format, Line, Output};
use crate::reach::{self, Reached};
use crate::text::{self, Form, Forms};
use request::{AtOnce, Compact, Request};

pub(crate) use request::consistency;

/// Runs the command.
pub async fn run(args: KvArgs, output: Output) -> Result<(), Failure> {
    let forms = Forms::new(args.hex, args.number);
    // What is wrong with the request itself is told before any node is looked for.
    let request = match Request::read(args.command, forms)? {
        Request::Import(import) => return import::run(&import, &args.reach, output).await,
        request => request,
    };
    let client = Reached::find(&args.reach)?.client()?;
    let answered = answer(&client, request, forms, output).await;
    reach::close(client).await;
    answered
}

async fn answer(client: &Client, request: Request, forms: Forms, output: Output) -> Result<(), Failure> {
    match request {
        Request::Get {
            key,
            raw,
            consistency,
        } => {
            let output = if raw { output.in_raw() } else { output };
            get(client, key, consistency, forms, output).await
        }
        Request::Exists { key, consistency } => exists(client, key, consistency, forms, output).await,
        Request::Count { range, consistency } => count(client, range, consistency, forms, output).await,
        Request::Range { read, consistency } => range(client, read, consistency, forms, output).await,
        Request::Put {
            key,
            value,
            prev: false,
        } => put(client, &key, Op::put(&key, value), forms, output).await,
        Request::Put {
            key,
            value,
            prev: true,
        } => {
            let replaced = client.put(&key, value).with_previous().await?;
            let written = show::Written::put(&key, replaced.revision, replaced.previous.is_some(), forms);
            output.show(&written.with_previous(replaced.previous))
        }
        Request::Swap { key, expected, value } => swap(client, &key, expected, value, forms, output).await,
        Request::Add { key, delta } => add(client, &key, delta, forms, output).await,
        Request::Delete { key, prev } => delete(client, &key, prev, forms, output).await,
        Request::DeleteRange { range, at_once, none } => {
            delete_range(client, range, at_once, &none, forms, output).await
        }
        Request::Compact(what) => compact(client, what, output).await,
        Request::Txn(written) => {
            let guarded = written.txn.guard != Guard::always();
            let response = client.commit(written.txn).await?;
            output.show(&show::Answer::new(response, guarded, &written.conditions, forms))
        }
        Request::Export(export) => export::run(client, export, output).await,
        Request::Import(_) => Err(Failure::failed("an import looks for its cluster itself")),
    }
}

async fn compact(client: &Client, what: Compact, output: Output) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Compacted {
        oldest: u64,
    }
    let client = client.for_one_operation();
    let revision = match what {
        Compact::Before(revision) => revision,
        Compact::AllBut(keep) => {
            let newest = client.revision().await?;
            Revision::new(newest.number().saturating_sub(keep.saturating_sub(1)).max(1))
        }
    };
    let oldest = match client.compact(revision).await {
        Ok(oldest) => oldest.number(),
        // It will come, and then it may not be meant any more.
        Err(Error::NotYet { asked, current, .. }) => {
            return Err(Failure::refused(format!(
                "revision {asked} has not come: the store is at revision {current}; nothing was given up"
            )));
        }
        Err(error) => return Err(error.into()),
    };
    output.show(&Line::new(
        Compacted { oldest },
        format!("the history before revision {oldest} is given up"),
    ))
}

fn no_such_key(key: &Key, consistency: Consistency, forms: Forms) -> Failure {
    let key = forms.key(key.as_bytes());
    Failure::not_found(match consistency {
        Consistency::At(revision) => format!("there is no key {key} at revision {revision}"),
        Consistency::Linearizable | Consistency::Stale { .. } => format!("there is no key {key}"),
    })
}

async fn get(
    client: &Client,
    key: Key,
    consistency: Consistency,
    forms: Forms,
    output: Output,
) -> Result<(), Failure> {
    let record = client.get(&key).consistency(consistency).await?;
    let record = record.ok_or_else(|| no_such_key(&key, consistency, forms))?;
    if forms.values == Form::Number && text::number(&record.value).is_none() {
        return Err(Failure::refused(format!(
            "the value of {} has {} bytes, and a number has 8",
            forms.key(key.as_bytes()),
            record.value.len()
        ))
        .hint("without --number it is shown as it is"));
    }
    output.show(&show::OneKey {
        row: show::Row::new(key.into_bytes(), &record, true),
        forms,
    })
}

async fn exists(
    client: &Client,
    key: Key,
    consistency: Consistency,
    forms: Forms,
    output: Output,
) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Exists {
        exists: bool,
    }
    match client.exists(&key).consistency(consistency).await? {
        true => {
            let line = format!("{} exists", forms.key(key.as_bytes()));
            output.show(&Line::new(Exists { exists: true }, line))
        }
        false => Err(no_such_key(&key, consistency, forms)),
    }
}

async fn count(
    client: &Client,
    range: KeyRange,
    consistency: Consistency,
    forms: Forms,
    output: Output,
) -> Result<(), Failure> {
    let mut read = RangeRead::new(range);
    read.count_only = true;
    let read = client.read([ReadOp::Range(read)]);
    let response = read.consistency(consistency).await?;
    let Some(ReadResult::Range { count, .. }) = response.results.first() else {
        return Err(answered_otherwise());
    };
    output.show(&show::Range {
        revision: response.revision.number(),
        count: *count,
        more: false,
        records: Vec::new(),
        only: show::Only::Count,
        forms,
    })
}

fn answered_otherwise() -> Failure {
    Failure::failed("the node answered with something else than was asked for")
}

/// A refusal of the one operation that a command is.
fn refused(error: Error) -> Failure {
    match &error {
        Error::Refused(TxnRefused::RangeTooLarge { limit, .. }) => Failure::refused(format!(
            "there are more than {limit} keys to delete; none was deleted"
        ))
        .hint(
            "--limit N takes more of them, in one transaction; --in-steps takes all, 1,000 in a transaction",
        ),
        _ => error.into(),
    }
}

async fn put(client: &Client, key: &Key, op: Op, forms: Forms, output: Output) -> Result<(), Failure> {
    let response = client.commit(Txn::new([op])).await.map_err(refused)?;
    let existed = matches!(response.results.first(), Some(OpResult::Put { existed: true }));
    output.show(&show::Written::put(key, response.revision, existed, forms))
}

/// Writes a key that must be as is expected.
async fn swap(
    client: &Client,
    key: &Key,
    expected: Expected,
    value: bytes::Bytes,
    forms: Forms,
    output: Output,
) -> Result<(), Failure> {
    let existed = expected != Expected::Missing;
    match client.compare_and_swap(key, expected.clone(), value).await? {
        Swap::Written(revision) => output.show(&show::Written::put(key, revision, existed, forms)),
        Swap::Differs(found) => Err(differs(key, &expected, found.as_ref(), forms)),
    }
}

/// How much of a value a failure shows, in characters.
const SHOWN: usize = 60;

fn differs(key: &Key, expected: &Expected, found: Option<&Record>, forms: Forms) -> Failure {
    let value = |value: &[u8]| text::shorten(forms.value(value), value.len(), SHOWN);
    let key = forms.key(key.as_bytes());
    let (message, hint) = match expected {
        Expected::Missing => (
            format!("the key {key} exists already"),
            Some("without --if-absent it is overwritten"),
        ),
        Expected::Value(old) => (format!("{key} is not {}; it was not written", value(old)), None),
        Expected::Revision(revision) => (
            format!("{key} was not last written at revision {revision}; it was not written"),
            None,
        ),
        _ => (format!("{key} is not as was expected; it was not written"), None),
    };
    let found = match found {
        Some(record) => format!(
            "it is {}, version {}, created at {}, modified at {}",
            value(&record.value),
            record.version,
            record.create_revision,
            record.mod_revision
        ),
        None => "it does not exist".to_owned(),
    };
    let failure = Failure::refused(message).details([found]);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

async fn add(client: &Client, key: &Key, delta: i64, forms: Forms, output: Output) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Added {
        revision: u64,
        number: i64,
    }
    let response = client.commit(Txn::new([Op::add(key, delta)])).await?;
    let Some(OpResult::Number(number)) = response.results.first() else {
        return Err(answered_otherwise().of_kind(Kind::UnknownOutcome));
    };
    let added = Added {
        revision: response.revision.number(),
        number: *number,
    };
    let (key, revision) = (forms.key(key.as_bytes()), added.revision);
    let line = format!("{key} is {number} at revision {revision}");
    output.show(&Line::new(added, line).piped(number))
}

async fn delete(client: &Client, key: &Key, prev: bool, forms: Forms, output: Output) -> Result<(), Failure> {
    let mut ops = Vec::from([Op::delete(key)]);
    // Its record as it is before the operation behind it.
    if prev {
        ops.insert(0, Op::get(key));
    }
    let response = client.commit(Txn::new(ops)).await?;
    let deleted = match response.results.last() {
        Some(OpResult::Deleted { count, .. }) => *count,
        _ => 0,
    };
    if deleted == 0 {
        return Err(no_such_key(key, Consistency::Linearizable, forms));
    }
    let previous = match response.results.into_iter().next() {
        Some(OpResult::Get(record)) => record,
        _ => None,
    };
    let written = show::Written::deleted(Some(response.revision), deleted, forms);
    output.show(&match prev {
        true => written.with_previous(previous),
        false => written,
    })
}

async fn delete_range(
    client: &Client,
    range: KeyRange,
    at_once: AtOnce,
    none: &str,
    forms: Forms,
    output: Output,
) -> Result<(), Failure> {
    let (revision, deleted) = match at_once {
        AtOnce::All { limit } => {
            let txn = Txn::new([Op::delete_range(range, limit)]);
            let response = client.commit(txn).await.map_err(refused)?;
            match response.results.first() {
                Some(OpResult::Deleted { count, .. }) => (Some(response.revision), *count),
                _ => return Err(answered_otherwise().of_kind(Kind::UnknownOutcome)),
            }
        }
        // Of several revisions.
        AtOnce::Steps => (None, client.delete_range(range).in_steps().await?),
    };
    match deleted {
        0 => Err(Failure::not_found(none)),
        deleted => output.show(&show::Written::deleted(revision, deleted, forms)),
    }
}

/// Reads a range page by page, all pages at the revision of the first.
async fn range(
    client: &Client,
    read: RangeRead,
    consistency: Consistency,
    forms: Forms,
    output: Output,
) -> Result<(), Failure> {
    let (keys_only, limit) = (read.keys_only, read.limit);
    let mut found: Vec<KeyValue> = Vec::new();
    let (mut next, mut consistency) = (read, consistency);
    loop {
        let read = client.read([ReadOp::Range(next.clone())]);
        let response = read.consistency(consistency).await?;
        let revision = response.revision;
        let Some(ReadResult::Range { records, more, .. }) = response.results.into_iter().next() else {
            return Err(answered_otherwise());
        };
        let last = records.last().map(|record| record.key.clone());
        found.extend(records);
        let left = limit.saturating_sub(u32::try_from(found.len()).unwrap_or(u32::MAX));
        // A page also ends at a number of bytes: then the rest follows, as far as the limit goes.
        if let (true, 1.., Some(last)) = (more, left, last) {
            next = RangeRead {
                range: next.range.behind(last.as_bytes(), next.order),
                limit: left,
                ..next
            };
            consistency = Consistency::At(revision);
            continue;
        }
        if more && output.format() == Format::Raw {
            // Lines alone do not tell.
            output.warn(format!(
                "warning: there are more keys than the {limit} that are shown (see --limit)"
            ));
        }
        let only = if keys_only {
            show::Only::Keys
        } else {
            show::Only::All
        };
        return output.show(&show::Range {
            revision: revision.number(),
            count: found.len() as u64,
            more,
            records: show::page(found, !keys_only),
            only,
            forms,
        });
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        let failure = match &error {
            error if error.may_have_committed() => Failure::new(Kind::UnknownOutcome, message),
            error if error.is_retryable() => Failure::unavailable(message),
            _ => Failure::refused(message),
        };
        match &error {
            Error::OutcomeUnknown(_) => {
                failure.hint("read what the write would have changed before you repeat it")
            }
            Error::Unavailable { .. } => {
                failure.hint("quorate status shows which nodes answer; --deadline gives more time")
            }
            Error::LedByAnother { .. } => failure.hint("ask again"),
            Error::NotAdmitted { .. } => failure.hint(
                "this client's certificate must be of the cluster's own authority: --certs DIR and --client NAME say which",
            ),
            _ => failure,
        }
    }
}
