//! Rows of the state file and of the metadata. The machine's decoders are taken from the source: they need nothing else
//! of the crate. The first byte says which.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use quorate_kv::model::{Key, Record, Revision};
use quorate_meta::Image;

mod model {
    pub use quorate_kv::model::{LeaseId, LogTime, Record, Revision, Sequence, SessionId};
}

#[allow(dead_code)]
mod machine {
    #[path = "../../../kv/src/machine/wire.rs"]
    pub mod wire;
    #[path = "../../../kv/src/machine/tables.rs"]
    pub mod tables;
    #[path = "../../../kv/src/machine/head.rs"]
    pub mod head;
    #[path = "../../../kv/src/machine/version.rs"]
    pub mod version;
    #[path = "../../../kv/src/machine/sessions.rs"]
    pub mod sessions;
    #[path = "../../../kv/src/machine/sequences.rs"]
    pub mod sequences;

    pub fn head(bytes: &[u8]) {
        if let Ok(head) = head::Head::decode(bytes) {
            let mut written = Vec::new();
            head.encode_into(&mut written);
            assert_eq!(written, bytes);
        }
    }

    pub fn version(bytes: &[u8]) {
        if let Ok(version) = version::Version::decode(bytes) {
            assert_eq!(version.encode(&mut Vec::new()), bytes);
        }
        if let Ok((revision, key)) = version::read_key(bytes) {
            assert_eq!(version::row_key(revision, key), bytes);
        }
    }

    pub fn session(bytes: &[u8]) {
        if let Ok(session) = sessions::Session::decode(bytes) {
            assert_eq!(session.encode(), bytes);
        }
        if let Ok(id) = sessions::read_session_key(bytes) {
            assert_eq!(sessions::session_key(id), bytes);
        }
        if let Ok((id, sequence)) = sessions::read_answer_key(bytes) {
            assert_eq!(sessions::answer_key(id, sequence), bytes);
        }
        if let Ok(number) = sequences::decode(bytes) {
            assert_eq!(sequences::encode(number), bytes);
        }
    }

    pub fn varints(bytes: &[u8]) {
        let mut row = wire::Row::new(bytes);
        let mut written = Vec::new();
        while let Ok(number) = row.varint() {
            wire::put_varint(&mut written, number);
        }
        assert!(bytes.starts_with(&written));
        let mut row = wire::Row::new(bytes);
        while let Ok(part) = row.sized() {
            assert!(part.len() < bytes.len());
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((which, bytes)) = input.split_first() else {
        return;
    };
    quorate_fuzz::within_bounds(bytes, || match which % 5 {
        0 => machine::head(bytes),
        1 => machine::version(bytes),
        2 => machine::session(bytes),
        3 => machine::varints(bytes),
        _ => metadata(bytes),
    });
});

/// The first byte says how long the key is; the rest is the row.
fn metadata(bytes: &[u8]) {
    let Some((size, rest)) = bytes.split_first() else {
        return;
    };
    let (key, value) = rest.split_at(usize::from(*size).min(rest.len()));
    let Ok(key) = Key::new(Bytes::copy_from_slice(key)) else {
        return;
    };
    let record = Record {
        value: Bytes::copy_from_slice(value),
        create_revision: Revision::new(3),
        mod_revision: Revision::new(7),
        version: 2,
        lease: None,
    };
    let mut image = Image::new(Revision::new(7));
    if image.insert(&key, &record).is_ok() {
        for row in image.partitions.values() {
            for set in [&row.isr, &row.eligible_leaders, &row.adding, &row.removing, &row.last_known_leaders] {
                assert!(set.iter().all(|member| row.replicas.contains(member)));
            }
            assert!(row.leader.is_none_or(|leader| row.replicas.contains(&leader)));
        }
        let _faults = quorate_meta::check::check(&image, quorate_meta::check::Sweeps::MayBePending);
    }
}
