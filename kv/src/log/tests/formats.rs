//! The bytes of format version 1, and what is made of bytes that are not ours.

use super::super::crash_disk::CrashDisk;
use super::super::format::{
    Anchor, BATCH_HEADER, BatchHeader, FIRST_BATCH, Head, NO_POSITION, RecordKind, SegmentHeader,
    decode_record, encode_record,
};
use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn header() -> SegmentHeader {
    SegmentHeader {
        log_id: 0x1122_3344_5566_7788,
        generation: 3,
        bytes: 64 << 20,
    }
}

#[test]
fn the_bytes_of_a_segment_header_are_these() {
    let sector = header().encode();
    let expected = concat!(
        "51554f52414c4f47",
        "01000000",
        "00000000",
        "8877665544332211",
        "0300000000000000",
        "0000000400000000",
        "0000000000000000000000000000000000000000",
        "b1c5e8ba",
    );
    assert_eq!(hex(&sector[..64]), expected);
    assert!(sector[64..].iter().all(|byte| *byte == 0));
    assert_eq!(SegmentHeader::decode(&sector), Ok(header()));
}

#[test]
fn the_bytes_of_a_batch_and_its_records_are_these() {
    let salt = header().salt();
    let mut batch = vec![0; BATCH_HEADER];
    let head = crate::model::encode(&Head {
        sequence: 2,
        previous: Some(1),
        state: Anchor {
            purged: Some(position(4, 5)),
            last: Some(position(4, 300)),
            vote: Some(Bytes::from_static(b"vote")),
            committed: None,
        },
    });
    encode_record(salt, 9, RecordKind::Head, NO_POSITION, &head, &mut batch);
    encode_record(
        salt,
        9,
        RecordKind::Entry,
        position(4, 301),
        b"payload",
        &mut batch,
    );
    let header = BatchHeader {
        offset: 8192,
        durable: 4096,
        body_bytes: (batch.len() - BATCH_HEADER) as u32,
        records: 2,
        opening: 9,
    };
    header.encode(salt, &mut batch);
    let expected = concat!(
        "98a468f051424154002000000000000000100000000000006b0000000200000009000000000000000000000000000000",
        "84a3caf4140000000900000006000000000000000000000000000000000000000000000000000000",
        "0102010101040705010407ac020104766f746500",
        "6959cbd10700000009000000010000002d0100000000000004000000000000000700000000000000",
        "7061796c6f6164",
    );
    assert_eq!(hex(&batch), expected);
    assert_eq!(BatchHeader::decode(salt, &batch, 8192), Some(header));
    assert_eq!(
        BatchHeader::decode(salt, &batch, 8704),
        None,
        "a batch verifies only in its place"
    );
    assert_eq!(
        BatchHeader::decode(salt ^ 1, &batch, 8192),
        None,
        "and only in its life of the file"
    );
    let record = decode_record(salt, &batch[BATCH_HEADER..]).expect("a record");
    assert_eq!(record.kind, RecordKind::Head);
}

#[test]
fn generations_that_follow_on_each_other_have_different_salts() {
    let salts: std::collections::BTreeSet<u32> = (0..10_000)
        .map(|generation| {
            SegmentHeader {
                generation,
                ..header()
            }
            .salt()
        })
        .collect();
    assert_eq!(salts.len(), 10_000);
}

/// A log on a disk in memory, closed, with one segment in use.
async fn closed() -> CrashDisk {
    let disk = CrashDisk::default();
    let log = Log::open(Arc::new(disk.clone()), Path::new("/log"), small().create()).expect("a log");
    append(&log, entries(1, 0..3)).await.expect("an append");
    log.close().await.expect("a close");
    disk
}

fn open(disk: &CrashDisk) -> Result<Log, LogOpenError> {
    Log::open(Arc::new(disk.clone()), Path::new("/log"), small())
}

#[tokio::test]
async fn a_file_of_another_format_version_is_named_and_refused() {
    let mut image = closed().await.image();
    let (path, content) = image.iter_mut().next().expect("a segment");
    content[8] = 2;
    let crc = crc32c::crc32c(&content[..60]);
    content[60..64].copy_from_slice(&crc.to_le_bytes());
    let path = path.clone();
    match open(&CrashDisk::from_image(&image)) {
        Err(LogOpenError::UnknownFormat {
            file,
            found: 2,
            known: 1,
        }) => assert_eq!(file, path),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_segment_of_another_log_is_refused() {
    let mut image = closed().await.image();
    let other = closed().await.image();
    let stray = other.values().next().expect("a segment").clone();
    image.insert("/log/segment-00000099.log".into(), stray);
    match open(&CrashDisk::from_image(&image)) {
        Err(LogOpenError::Corrupt { detail, .. }) => assert!(detail.contains("another log"), "{detail}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_copy_of_a_segment_is_refused() {
    let mut image = closed().await.image();
    let copy = image.values().next().expect("a segment").clone();
    image.insert("/log/segment-00000099.log".into(), copy);
    match open(&CrashDisk::from_image(&image)) {
        Err(LogOpenError::Corrupt { detail, .. }) => assert!(detail.contains("a copy of"), "{detail}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_file_that_was_cut_short_is_refused() {
    let image = closed().await.image();
    let first = image.keys().next().expect("a segment");
    for len in [0, 100, FIRST_BATCH as usize, 6_000] {
        let mut image = image.clone();
        if let Some(content) = image.get_mut(first) {
            content.truncate(len);
        }
        let opened = open(&CrashDisk::from_image(&image));
        assert!(
            matches!(opened, Err(LogOpenError::Corrupt { .. })),
            "cut to {len}: {opened:?}"
        );
    }
}

#[tokio::test]
async fn an_entry_that_rots_while_the_log_is_open_is_not_returned() {
    let dir = tempfile::tempdir().expect("a directory");
    let settings = LogSettings {
        cache_bytes_max: 0,
        ..small().create()
    };
    let log = Log::open(Arc::new(RealDisk), dir.path(), settings).expect("a log");
    append(&log, entries(1, 0..3)).await.expect("an append");
    let path = dir.path().join("segment-00000001.log");
    let mut content = std::fs::read(&path).expect("the segment");
    let at = content
        .windows(4)
        .position(|window| window == b"1/1 ")
        .expect("the entry");
    content[at + 10] ^= 1;
    std::fs::write(&path, content).expect("rot");
    let read = log
        .read(index(0)..index(1), usize::MAX)
        .await
        .expect("the entry before");
    assert_eq!(read, entries(1, 0..1));
    match log.read(index(0)..index(3), usize::MAX).await {
        Err(Fault::Corrupt { offset, .. }) => assert!((offset as usize) < at && offset >= FIRST_BATCH),
        other => panic!("{other:?}"),
    }
}

#[test]
fn settings_out_of_bounds_are_refused_with_the_bound() {
    let settings = LogSettings {
        segment_bytes: 100,
        ..LogSettings::default()
    };
    let opened = Log::open(Arc::new(CrashDisk::default()), Path::new("/log"), settings);
    match opened {
        Err(LogOpenError::InvalidSetting {
            setting: "segment_bytes",
            value: 100,
            min,
            ..
        }) => {
            assert_eq!(min, 16 << 10);
        }
        other => panic!("{other:?}"),
    }
}
