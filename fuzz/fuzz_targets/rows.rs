//! Rows of the state file and of the metadata. The machine's decoders are taken from the source: they need nothing else
//! of the crate. The first byte says which.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use quorate_kv::model::{Key, Record, Revision};
use quorate_meta::Image;

mod model {
    pub use quorate_kv::model::{
        LeaseId, LogIndex, LogTime, Record, ReplicatedLimits, Revision, Sequence, SessionId,
    };
}

use quorate_kv::planted;

#[allow(dead_code)]
mod machine;

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
