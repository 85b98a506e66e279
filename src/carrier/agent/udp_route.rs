//! The route of an agent's packets over UDP.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::AsyncUdpSocket;

/// A UDP socket and the addresses that it sends to.
#[derive(Clone)]
pub(crate) struct UdpRoute {
    pub(crate) socket: Arc<dyn AsyncUdpSocket>,
    /// The previous socket: packets for it may still be in flight.
    pub(crate) previous: Option<Arc<dyn AsyncUdpSocket>>,
    /// The edge's addresses, the current one first. Packets from other addresses are ignored.
    pub(crate) edge: Vec<SocketAddr>,
    /// Set for an IPv6 socket, which needs IPv4-mapped addresses. Cached: asking takes a system call.
    ipv6: bool,
}

impl UdpRoute {
    /// Create a route through a socket to an edge. `edge` must not be empty.
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

    /// Convert an address of the edge to the socket's address family.
    pub(crate) fn reachable(&self, edge: SocketAddr) -> SocketAddr {
        match edge {
            SocketAddr::V4(v4) if self.ipv6 => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
            edge => edge,
        }
    }
}
