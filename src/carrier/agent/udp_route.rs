//! The way of an agent's packets over UDP.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::AsyncUdpSocket;

/// A UDP socket and where it sends to.
#[derive(Clone)]
pub(crate) struct UdpRoute {
    pub(crate) socket: Arc<dyn AsyncUdpSocket>,
    /// The socket before this one: packets may still be on their way to it.
    pub(crate) previous: Option<Arc<dyn AsyncUdpSocket>>,
    /// The edge's addresses, the one in use first. Packets from elsewhere are not looked at.
    pub(crate) edge: Vec<SocketAddr>,
    /// Whether the socket writes addresses in the way of IPv6. Asked once: it takes a system call.
    ipv6: bool,
}

impl UdpRoute {
    /// Send through a socket to an edge that has these addresses, of which there is at least one.
    pub(crate) fn new(
        socket: Arc<dyn AsyncUdpSocket>,
        previous: Option<Arc<dyn AsyncUdpSocket>>,
        edge: Vec<SocketAddr>,
    ) -> Self {
        Self {
            ipv6: socket.local_addr().is_ok_and(|addr| addr.is_ipv6()),
            socket,
            previous,
            edge,
        }
    }

    /// An address of the edge in the family of the socket.
    pub(crate) fn reachable(&self, edge: SocketAddr) -> SocketAddr {
        match edge {
            SocketAddr::V4(v4) if self.ipv6 => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
            edge => edge,
        }
    }
}
