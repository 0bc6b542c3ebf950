//! Reads whole ranges into an [`Image`], page by page, all at one revision.

use std::collections::VecDeque;

use quorate_kv::model::{Consistency, RangeRead, ReadOp, ReadResult, Revision};

use crate::error::ReadError;
use crate::image::Image;
use crate::keys::Keys;
use crate::store::Store;

/// What the reads of one call may weigh: a thousand rows are some 100 KiB, eight pages of a range are 8 MiB,
/// both well below what a store answers at once.
const WEIGHT_MAX: usize = 1024;
const RANGE_WEIGHT: usize = WEIGHT_MAX / 8;

/// Reads everything that is asked for, as of one revision.
pub(crate) async fn load<S: Store>(
    store: &S,
    keys: &Keys,
    reads: Vec<ReadOp>,
    consistency: Consistency,
) -> Result<Image, ReadError> {
    let mut image = Image::under(keys.clone(), Revision::FIRST);
    if let Some(revision) = load_into(store, &mut image, reads, consistency).await? {
        image.revision = revision;
    }
    Ok(image)
}

/// Reads more at the image's own revision.
pub(crate) async fn load_more<S: Store>(
    store: &S,
    image: &mut Image,
    reads: Vec<ReadOp>,
) -> Result<(), ReadError> {
    let at = Consistency::At(image.revision);
    load_into(store, image, reads, at).await?;
    Ok(())
}

async fn load_into<S: Store>(
    store: &S,
    image: &mut Image,
    reads: Vec<ReadOp>,
    consistency: Consistency,
) -> Result<Option<Revision>, ReadError> {
    let mut wanted = VecDeque::from(reads);
    let mut consistency = consistency;
    let mut revision = None;
    while !wanted.is_empty() {
        let asked = next_call(&mut wanted);
        let response = store.read(asked.clone(), consistency).await?;
        // What follows is of the state that the first answer saw.
        revision = Some(response.revision);
        consistency = Consistency::At(response.revision);
        for (read, result) in asked.into_iter().zip(response.results) {
            match (read, result) {
                (ReadOp::Get(key), ReadResult::Get(record)) => {
                    if let Some(record) = record {
                        image.insert(&key, &record)?;
                    }
                }
                (ReadOp::Range(read), ReadResult::Range { records, more, .. }) => {
                    for found in &records {
                        image.insert(&found.key, &found.record)?;
                    }
                    if let Some(last) = records.last().filter(|_| more) {
                        wanted.push_front(ReadOp::Range(RangeRead {
                            range: read.range.behind(last.key.as_bytes(), read.order),
                            ..read
                        }));
                    }
                }
                // A store that answers a get with a range has answered nothing.
                (ReadOp::Get(_), ReadResult::Range { .. }) | (ReadOp::Range(_), ReadResult::Get(_)) => {
                    debug_assert!(false, "the answer is of another kind than the read");
                }
            }
        }
    }
    Ok(revision)
}

/// Takes the reads of the next call; at least one.
fn next_call(wanted: &mut VecDeque<ReadOp>) -> Vec<ReadOp> {
    let mut weight = 0;
    let mut fits = |read: &ReadOp| {
        weight += match read {
            ReadOp::Get(_) => 1,
            ReadOp::Range(_) => RANGE_WEIGHT,
        };
        weight <= WEIGHT_MAX
    };
    let count = wanted.iter().take_while(|read| fits(read)).count();
    wanted.drain(..count).collect()
}
