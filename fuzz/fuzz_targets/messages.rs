//! What peers and clients send, and what the log keeps for openraft. The first byte says which decoder.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use quorate_kv::fuzzing::{Decoder, decoders};

static DECODERS: LazyLock<Vec<Decoder>> = LazyLock::new(decoders);

fuzz_target!(|input: &[u8]| {
    let decoders = &*DECODERS;
    if let Some((which, bytes)) = input.split_first() {
        let decoder = &decoders[usize::from(*which) % decoders.len()];
        quorate_fuzz::within_bounds(bytes, || (decoder.check)(bytes));
    }
});
