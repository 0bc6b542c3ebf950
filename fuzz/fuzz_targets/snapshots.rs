//! A snapshot as a peer sends it: chunks whose checksums are right, around any content. What is received whole must be a
//! state that opens; everything else is refused and leaves nothing behind.

#![no_main]

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use quorate_kv::env::RealDisk;
use quorate_kv::machine::SnapshotSink;
use xxhash_rust::xxh3::xxh3_64;

static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let base = ["/dev/shm", "/tmp"].into_iter().find(|dir| std::path::Path::new(dir).is_dir());
    let dir = tempfile::tempdir_in(base.unwrap_or(".")).expect("a directory");
    dir.keep()
});

/// Chunks: a length of two bytes and so many bytes each, which get a right checksum. The second and later ones bear
/// the tag of the first one's head where the first byte of the input says so.
fn chunks(input: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = input;
    let mut chunks = Vec::new();
    while let Some((size, after)) = rest.split_first_chunk::<2>() {
        let size = usize::from(u16::from_le_bytes(*size)).min(after.len());
        let (chunk, after) = after.split_at(size);
        let mut chunk = chunk.to_vec();
        chunk.extend(xxh3_64(&chunk).to_be_bytes());
        chunks.push(chunk);
        rest = after;
    }
    chunks
}

fuzz_target!(|input: &[u8]| {
    let mut sink = SnapshotSink::begin(Arc::new(RealDisk), &DIR).expect("a place for the snapshot");
    let mut taken = 0;
    for chunk in chunks(input) {
        match sink.write(&chunk) {
            Ok(()) => taken += 1,
            Err(_refused) => break,
        }
    }
    match sink.finish() {
        Ok(received) => assert!(taken > 0, "a snapshot of no chunks was received: {received:?}"),
        Err(_refused) => {}
    }
    let left = std::fs::read_dir(&*DIR).expect("the directory").count();
    assert_eq!(left, 0, "files are left behind");
});
