//! `quorate kv`: keys, as a person or a script reads and writes them.

pub mod form;
mod show;

use std::io::Read as _;
use std::path::Path;

use bytes::Bytes;
use quorate_kv::Client;
use quorate_kv::client::Error;
use quorate_kv::model::{
    Consistency, Guard, Key, KeyRange, KeyValue, Op, OpResult, Order, RangeRead, ReadOp, ReadResult,
    Revision, Txn, TxnRefused,
};
use serde::Serialize;

use crate::cli::{Freshness, KvArgs, KvCommand};
use crate::failure::{Failure, Kind};
use crate::output::{Line, Output};
use crate::reach::{self, Reached};
use crate::text::{self, Form, Forms};

/// Runs the command.
pub async fn run(args: KvArgs, output: Output) -> Result<(), Failure> {
    let forms = Forms::new(args.hex, args.number);
    // What is wrong with the request itself is told before any node is looked for.
    let request = Request::read(args.command, forms)?;
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
        } => get(client, key, raw, consistency, forms, output).await,
        Request::Put { key, op } => put(client, &key, op, forms, output).await,
        Request::Delete { op, what } => delete(client, op, &what, output).await,
        Request::Range { read, consistency } => range(client, read, consistency, forms, output).await,
        Request::Compact(what) => compact(client, what, output).await,
        Request::Txn(txn) => {
            let guarded = txn.guard != Guard::always();
            let response = client.commit(txn).await?;
            output.show(&show::Answer::new(response, guarded, forms))
        }
    }
}

/// How many keys a deletion takes where nothing is said.
const DELETE_MAX: u32 = 10_000;

/// A request that has been checked.
enum Request {
    Get {
        key: Key,
        raw: bool,
        consistency: Consistency,
    },
    Put {
        key: Key,
        op: Op,
    },
    Delete {
        op: Op,
        what: String,
    },
    Range {
        read: RangeRead,
        consistency: Consistency,
    },
    Compact(Compact),
    Txn(Txn),
}

/// Which history is given up.
enum Compact {
    /// Before this revision.
    Before(Revision),
    /// All but so many of the newest revisions.
    AllBut(u64),
}

impl Request {
    fn read(command: KvCommand, forms: Forms) -> Result<Self, Failure> {
        let bytes = |text: &str| {
            let read = forms.keys.read(text);
            read.map_err(|error| Failure::refused(error.to_string()))
        };
        let key = |text: &str| Key::new(bytes(text)?).map_err(|error| Failure::refused(error.to_string()));
        Ok(match command {
            KvCommand::Get {
                key: name,
                raw,
                freshness,
            } => Request::Get {
                key: key(&name)?,
                raw,
                consistency: consistency(&freshness),
            },
            KvCommand::Put {
                key: name,
                value,
                if_absent,
            } => {
                let key = key(&name)?;
                // The bytes of a pipe are taken as they are, whatever form the arguments have.
                let value = if value == "-" {
                    stdin_bytes()?
                } else {
                    let read = forms.values.read(&value);
                    read.map_err(|error| Failure::refused(error.to_string()))?
                };
                let op = if if_absent {
                    Op::create(key.clone(), value)
                } else {
                    Op::put(key.clone(), value)
                };
                Request::Put { key, op }
            }
            KvCommand::Del { all: true, limit, .. } => Request::Delete {
                op: Op::delete_range(KeyRange::all(), limit.unwrap_or(DELETE_MAX)),
                what: "there is no key".to_owned(),
            },
            KvCommand::Del {
                key: prefix,
                prefix: true,
                limit,
                ..
            } => {
                let prefix = bytes(&prefix.unwrap_or_default())?;
                if prefix.is_empty() {
                    return Err(Failure::refused("every key begins with \"\"")
                        .hint("to delete all keys, say quorate kv del --all"));
                }
                let what = format!("no key begins with {}", forms.key(&prefix));
                Request::Delete {
                    op: Op::delete_range(KeyRange::prefix(prefix), limit.unwrap_or(DELETE_MAX)),
                    what,
                }
            }
            KvCommand::Del { key: name, limit, .. } => {
                if limit.is_some() {
                    return Err(Failure::refused(
                        "--limit bounds --prefix and --all; one key needs none",
                    ));
                }
                let key = key(&name.unwrap_or_default())?;
                let what = no_such_key(&key, forms);
                Request::Delete {
                    op: Op::delete(key),
                    what,
                }
            }
            KvCommand::Range {
                start,
                end,
                prefix,
                limit,
                descending,
                keys_only,
                count,
                freshness,
            } => {
                let range = match (prefix, start, end) {
                    (Some(prefix), ..) => KeyRange::prefix(bytes(&prefix)?),
                    (None, Some(start), Some(end)) => {
                        let (from, to) = (bytes(&start)?, bytes(&end)?);
                        if from >= to {
                            return Err(Failure::refused(format!(
                                "no key is at {start:?} or after and before {end:?}: the range ends before it begins"
                            )));
                        }
                        KeyRange::new(from, to)
                    }
                    (None, Some(start), None) => KeyRange::starting_at(bytes(&start)?),
                    (None, None, _) => KeyRange::all(),
                };
                let order = if descending {
                    Order::Descending
                } else {
                    Order::Ascending
                };
                let read = RangeRead {
                    range,
                    limit,
                    order,
                    keys_only,
                    count_only: count,
                };
                Request::Range {
                    read,
                    consistency: consistency(&freshness),
                }
            }
            KvCommand::Compact { revision, keep } => Request::Compact(match (revision, keep) {
                (Some(revision), _) => Compact::Before(Revision::new(revision)),
                (None, Some(keep)) => Compact::AllBut(keep),
                (None, None) => {
                    return Err(Failure::refused("it is not said which history is given up")
                        .hint("name the oldest revision to keep, or how many of the newest with --keep"));
                }
            }),
            KvCommand::Txn { file } => {
                let text = text_of(&file)?;
                let txn = form::parse(&text, forms).map_err(|error| Failure::refused(error.to_string()))?;
                Request::Txn(txn)
            }
        })
    }
}

/// What a read of this freshness asks for.
pub(crate) fn consistency(freshness: &Freshness) -> Consistency {
    match freshness {
        Freshness {
            revision: Some(revision),
            ..
        } => Consistency::At(Revision::new(*revision)),
        Freshness {
            stale: true, max_lag, ..
        } => Consistency::Stale {
            min_revision: None,
            max_lag: *max_lag,
        },
        Freshness { .. } => Consistency::Linearizable,
    }
}

fn stdin_bytes() -> Result<Bytes, Failure> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::failed(format!("standard input cannot be read: {error}")))?;
    Ok(bytes.into())
}

fn text_of(file: &Path) -> Result<String, Failure> {
    let (name, bytes) = match file.as_os_str() == "-" {
        true => ("standard input".to_owned(), stdin_bytes()?.to_vec()),
        false => {
            let name = file.display().to_string();
            let bytes = std::fs::read(file).map_err(|error| Failure::refused(format!("{name}: {error}")))?;
            (name, bytes)
        }
    };
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::refused(format!(
            "{name} is not UTF-8 from byte {at} on; give other bytes in hexadecimal, with --hex"
        ))
    })
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

fn no_such_key(key: &Key, forms: Forms) -> String {
    format!("there is no key {}", forms.key(key.as_bytes()))
}

async fn get(
    client: &Client,
    key: Key,
    raw: bool,
    consistency: Consistency,
    forms: Forms,
    output: Output,
) -> Result<(), Failure> {
    let record = client.get(key.clone()).consistency(consistency).await?;
    let record = record.ok_or_else(|| {
        let missing = no_such_key(&key, forms);
        Failure::not_found(match consistency {
            Consistency::At(revision) => format!("{missing} at revision {revision}"),
            _ => missing,
        })
    })?;
    if forms.values == Form::Number && text::number(&record.value).is_none() {
        return Err(Failure::refused(format!(
            "the value of {} has {} bytes, and a number has 8",
            forms.key(key.as_bytes()),
            record.value.len()
        ))
        .hint("without --number it is shown as it is"));
    }
    match (raw, forms.values) {
        (true, Form::Text) => output.raw(&record.value),
        (true, form) => output.raw(form.show(&record.value).as_bytes()),
        (false, _) => output.show(&show::OneKey {
            row: show::Row::new(key.into_bytes(), &record, true),
            forms,
        }),
    }
}

/// A refusal of the one operation that a command is.
fn refused(error: Error) -> Failure {
    match &error {
        Error::Refused(TxnRefused::KeyExists { key, .. }) => {
            Failure::refused(format!("the key {key} exists already"))
                .hint("without --if-absent it is overwritten")
        }
        Error::Refused(TxnRefused::RangeTooLarge { limit, .. }) => Failure::refused(format!(
            "there are more than {limit} keys to delete; none was deleted"
        ))
        .hint("--limit N takes more of them, in one transaction"),
        _ => error.into(),
    }
}

/// What a write answers.
#[derive(Serialize)]
struct Written {
    revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    existed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<u64>,
}

async fn put(client: &Client, key: &Key, op: Op, forms: Forms, output: Output) -> Result<(), Failure> {
    let response = client.commit(Txn::new([op])).await.map_err(refused)?;
    let existed = matches!(response.results.first(), Some(OpResult::Put { existed: true }));
    let verb = if existed { "overwritten" } else { "created" };
    let line = format!(
        "{} {verb} at revision {}",
        forms.key(key.as_bytes()),
        response.revision
    );
    output.show(&Line::new(
        Written {
            revision: response.revision.number(),
            existed: Some(existed),
            deleted: None,
        },
        line,
    ))
}

async fn delete(client: &Client, op: Op, what: &str, output: Output) -> Result<(), Failure> {
    let response = client.commit(Txn::new([op])).await.map_err(refused)?;
    let count = match response.results.first() {
        Some(OpResult::Deleted { count, .. }) => *count,
        _ => 0,
    };
    if count == 0 {
        return Err(Failure::not_found(what));
    }
    let keys = if count == 1 { "key" } else { "keys" };
    let line = format!("{count} {keys} deleted at revision {}", response.revision);
    output.show(&Line::new(
        Written {
            revision: response.revision.number(),
            existed: None,
            deleted: Some(count),
        },
        line,
    ))
}

/// Reads a range page by page, all pages at the revision of the first.
async fn range(
    client: &Client,
    read: RangeRead,
    consistency: Consistency,
    forms: Forms,
    output: Output,
) -> Result<(), Failure> {
    let (keys_only, count_only, limit) = (read.keys_only, read.count_only, read.limit);
    let mut found: Vec<KeyValue> = Vec::new();
    let (mut next, mut consistency) = (read, consistency);
    loop {
        let response = client
            .read(vec![ReadOp::Range(next.clone())])
            .consistency(consistency)
            .await?;
        let revision = response.revision;
        let Some(ReadResult::Range { records, count, more }) = response.results.into_iter().next() else {
            return Err(Failure::failed("the node answered a range with something else"));
        };
        let last = records.last().map(|record| record.key.clone());
        found.extend(records);
        let left = limit.saturating_sub(u32::try_from(found.len()).unwrap_or(u32::MAX));
        // A page also ends at a number of bytes: then the rest follows, as far as the limit goes.
        if let (true, false, 1.., Some(last)) = (more, count_only, left, last) {
            next = RangeRead {
                range: next.range.behind(last.as_bytes(), next.order),
                limit: left,
                ..next
            };
            consistency = Consistency::At(revision);
            continue;
        }
        let count = if count_only { count } else { found.len() as u64 };
        let records = show::page(found, !keys_only);
        return output.show(&show::Range {
            revision: revision.number(),
            count,
            more,
            records,
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
