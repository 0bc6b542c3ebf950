//! What stands on a stream: its header, then messages with their lengths, in chunks of any size. The decoder is taken
//! from the source: it needs nothing else of the crate.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
pub use quorate_transport::Class;

#[path = "../../transport/src/frame.rs"]
#[allow(dead_code)]
mod frame;

/// As small as to be met, as large as to hold a message that is handed on without a copy.
const LIMIT: usize = 10_000;

fuzz_target!(|input: &[u8]| {
    quorate_fuzz::within_bounds(input, || {
        let Some((header, rest)) = input.split_first_chunk::<{ frame::HEADER_BYTES }>() else {
            return;
        };
        if let Ok(class) = frame::parse_header(*header) {
            assert_eq!(frame::header(class), *header);
        }
        let Some((cuts, stream)) = rest.split_first_chunk::<4>() else {
            return;
        };
        let (whole, cut) = (taken(stream, &[u8::MAX]), taken(stream, cuts));
        assert_eq!(whole, cut, "however the stream is cut");
        // What is taken is written as it came; behind it stands the beginning of one more, or one that is too long.
        let (mut messages, _) = whole;
        let mut chunks = Vec::new();
        frame::encode(&mut messages, &mut chunks);
        assert!(stream.starts_with(&chunks.concat()));
    });
});

/// The messages of a stream, and whether it was refused.
fn taken(stream: &[u8], cuts: &[u8]) -> (Vec<Bytes>, bool) {
    let mut decoder = frame::Decoder::new(LIMIT);
    let (mut messages, mut rest) = (Vec::new(), Bytes::copy_from_slice(stream));
    for cut in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let chunk = rest.split_to((usize::from(*cut) + 1).min(rest.len()));
        if decoder.push(chunk, &mut messages).is_err() {
            return (messages, true);
        }
        assert!(messages.iter().all(|message| message.len() <= LIMIT));
    }
    (messages, false)
}
