//! What only QUIC promises: certificates, priorities on a full link, malformed peers.
