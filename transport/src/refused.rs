//! Why a peer is not spoken with.

/// Why a peer was refused, or refused us: what lasts until somebody changes a certificate, an address, a clock or a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusedBecause {
    /// The certificate of one is of an authority that the other does not know.
    UntrustedAuthority,
    /// The time of a certificate is over; the peer's, or ours as the peer says.
    Expired,
    /// The time of a certificate has not begun, by the clock of the one that looked.
    NotYetValid,
    /// The two are of different clusters.
    WrongCluster,
    /// Another node is there than was meant, or none but a client.
    WrongNode,
    /// A certificate of the authority names no member of a cluster.
    NoIdentity,
    /// The two speak different versions of the protocol.
    Version,
    /// The handshake was not as it should be: the reason says what TLS or QUIC said.
    Handshake,
}
