//! The kind of path to a peer: a network, or this machine's loopback interface.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The kind of path to the peer, which determines packet sizes and queue lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathKind {
    /// Any network. It may change during the connection, and the next network may have a smaller MTU:
    /// no packets larger than Ethernet's are tried.
    Network,
    /// The loopback interface of this machine, which carries packets of 64 KiB.
    Loopback,
}

impl PathKind {
    /// Determine the kind of path from the peer's address, which must not be that of a proxy on the
    /// path.
    pub fn of(peer: SocketAddr) -> Self {
        match peer.ip().to_canonical().is_loopback() {
            true => Self::Loopback,
            false => Self::Network,
        }
    }
}
