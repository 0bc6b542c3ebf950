//! The decoders of the machine, from its source, and what must hold of each. A file of its own, since the paths below are
//! taken from its folder.

#[path = "../../../kv/src/machine/rows/wire.rs"]
pub mod wire;
#[path = "../../../kv/src/machine/rows/tables.rs"]
pub mod tables;
#[path = "../../../kv/src/machine/rows/head.rs"]
pub mod head;
#[path = "../../../kv/src/machine/rows/version.rs"]
pub mod version;
#[path = "../../../kv/src/machine/rows/sessions.rs"]
pub mod sessions;
#[path = "../../../kv/src/machine/rows/sequences.rs"]
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
        let mut written = Vec::new();
        version.encode_into(&mut written);
        assert_eq!(written, bytes);
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
