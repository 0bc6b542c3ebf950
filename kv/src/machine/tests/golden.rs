//! The bytes of format version 5, as they are on the disks and networks of those who use it. A release that
//! writes others has another format version, and adds its bytes beside these.

use super::*;
use crate::machine::file::runs;
use crate::machine::rows::tables::{FILTERS, SYSTEM, Table};
use crate::model::{Op, Sequence, SessionId, SessionRef};
use redb::ReadableTable;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares with the file of that name. With `QUORATE_WRITE_GOLDEN=1` it is written anew, for a change that is meant.
fn is_golden(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/machine/tests/golden")
        .join(name);
    if std::env::var_os("QUORATE_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, format!("{found}\n")).unwrap();
    }
    assert_eq!(
        found,
        std::fs::read_to_string(&path).unwrap().trim_end(),
        "{name}"
    );
}

/// A store with a row of each kind.
fn store() -> Store {
    let mut store = Store::new();
    let id = SessionId::new(1);
    store.one(
        1_000,
        Command::OpenSession {
            id,
            ttl_millis: 60_000,
        },
    );
    let session = SessionRef {
        id,
        sequence: Sequence::new(2),
        answered_below: Sequence::new(2),
    };
    let txn = Txn::new([
        Op::put(key("a\0b"), value("one")),
        Op::PutSequence {
            prefix: key("q/"),
            value: value(""),
        },
    ]);
    store.one(
        2_000,
        Command::Txn {
            session: Some(session),
            txn,
        },
    );
    store.txn(Txn::new([Op::put(key("a\0b"), value("two"))])).unwrap();
    store.index += 1;
    let membership = Payload::Membership(Bytes::from_static(b"members"));
    let entry = Entry {
        position: position(store.index),
        payload: membership,
    };
    store.machine.apply(vec![entry]).unwrap();
    store.txn(Txn::new([Op::delete(key("a\0b"))])).unwrap();
    store.machine.make_durable().unwrap();
    store
}

#[test]
fn the_rows_of_format_version_9() {
    let store = store();
    let published = store.reader.shared.get();
    let base = &published.state.base;
    let txn = &base.txn;
    let mut rows = Vec::new();
    for table in Table::ALL {
        base.for_each_row(table, |key, value| {
            rows.push(format!("{} {} {}", table.tag(), hex(key), hex(value)));
            Ok(())
        })
        .unwrap();
    }
    for row in txn.open_table(SYSTEM).unwrap().iter().unwrap() {
        let (key, value) = row.unwrap();
        rows.push(format!("{} {}", key.value().escape_ascii(), hex(value.value())));
    }
    for run in &base.runs.list {
        for row in runs::open(base.file(), txn, run.number).unwrap().iter().unwrap() {
            let (key, value) = row.unwrap();
            rows.push(format!(
                "run {} {} {}",
                run.number,
                hex(key.value()),
                hex(value.value())
            ));
        }
    }
    for row in txn.open_table(FILTERS).unwrap().iter().unwrap() {
        let (key, value) = row.unwrap();
        rows.push(format!("filter {} {}", hex(key.value()), hex(value.value())));
    }
    is_golden("rows-9.txt", &rows.join("\n"));
}

#[test]
fn the_snapshot_stream_of_format_version_9() {
    let mut source = store().reader.snapshot().unwrap();
    let chunk = source.next_chunk().unwrap().unwrap();
    assert_eq!(source.next_chunk().unwrap(), None);
    is_golden("snapshot-9.txt", &hex(&chunk));
}
