//! The edge's QUIC endpoint, and the keys that survive a restart.

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;

use aws_lc_rs::hmac;
use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, Runtime, ServerConfig, TokioRuntime};
use quinn_proto::HashedConnectionIdGenerator;

use super::socket;
use super::socket::EdgeSocket;
use crate::carrier::transport::LARGEST_PACKET;
use crate::net::udp_socket;

/// The keys that an edge must store so that, after a restart, it can tell agents at once that their old
/// connections are gone (stateless reset, RFC 9000 §10.3). Both are needed: without the key of the
/// connection ids, a restarted edge ignores the packets of an old connection as noise.
#[derive(Clone, Copy)]
pub struct EdgeKeys {
    /// The key of the stateless reset tokens.
    pub reset: [u8; 64],
    /// The key of the connection ids, which identifies those of earlier processes.
    pub connection_ids: u64,
}

impl EdgeKeys {
    /// The length of both keys together, in bytes.
    pub const LENGTH: usize = 72;

    /// Create the keys from random bytes.
    pub fn from_bytes(bytes: &[u8; Self::LENGTH]) -> Self {
        let (mut reset, mut ids) = ([0; 64], [0; 8]);
        reset.copy_from_slice(&bytes[..64]);
        ids.copy_from_slice(&bytes[64..]);
        Self {
            reset,
            connection_ids: u64::from_be_bytes(ids),
        }
    }

    /// Replace the key of the connection ids with a random one. A process that shares its socket with
    /// another needs a key of its own.
    #[cfg(unix)]
    pub fn with_random_id_key(mut self) -> Self {
        let mut ids = [0; 8];
        aws_lc_rs::rand::fill(&mut ids).expect("the operating system has random numbers");
        self.connection_ids = u64::from_be_bytes(ids);
        self
    }

    /// Encode the keys for [`from_bytes`](Self::from_bytes).
    #[cfg(unix)]
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..64].copy_from_slice(&self.reset);
        bytes[64..].copy_from_slice(&self.connection_ids.to_be_bytes());
        bytes
    }
}

/// Create the edge's endpoint, for agents that connect over UDP, if there is a socket for it, and over
/// up to `websockets` WebSockets.
///
/// # Errors
/// If the system refuses what the endpoint needs.
pub fn edge_endpoint(
    udp: Option<Arc<dyn AsyncUdpSocket>>,
    config: ServerConfig,
    keys: EdgeKeys,
    websockets: usize,
) -> io::Result<(Endpoint, EdgeSocket)> {
    let reset = hmac::Key::new(hmac::HMAC_SHA256, &keys.reset);
    let mut endpoint = EndpointConfig::new(Arc::new(reset));
    endpoint
        .max_udp_payload_size(LARGEST_PACKET)
        .expect("more than the least that QUIC allows");
    endpoint.cid_generator(move || {
        Box::new(HashedConnectionIdGenerator::from_key(keys.connection_ids))
    });
    socket::edge_endpoint_over(udp, endpoint, config, websockets)
}

/// Prepare a UDP socket for the edge's endpoint. Its buffers are enlarged as far as the system allows.
///
/// # Errors
/// If the system refuses what quinn needs.
pub fn edge_udp(socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    udp_socket::enlarge_buffers(&socket);
    TokioRuntime.wrap_udp_socket(socket)
}
