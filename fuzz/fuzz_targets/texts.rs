//! What people and certificates write: a node's configuration, an identity, the certificate that carries it. The first
//! byte says which.

#![no_main]

use libfuzzer_sys::fuzz_target;
use quorate_transport::Identity;

fuzz_target!(|input: &[u8]| {
    let Some((which, bytes)) = input.split_first() else {
        return;
    };
    quorate_fuzz::within_bounds(bytes, || match (which % 3, std::str::from_utf8(bytes)) {
        (0, Ok(text)) => quorate::fuzzing::configuration(text),
        (1, Ok(text)) => {
            if let Ok(identity) = text.parse::<Identity>() {
                assert_eq!(identity.to_string(), text);
            }
        }
        (2, _) => quorate_transport::fuzzing::certificate(bytes),
        _ => {}
    });
});
