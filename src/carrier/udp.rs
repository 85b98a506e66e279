//! The edge's endpoint, and what it must find again after a restart.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use aws_lc_rs::hmac;
use quinn::{Endpoint, EndpointConfig, ServerConfig};
use quinn_proto::HashedConnectionIdGenerator;
use socket2::{Domain, Protocol, Socket, Type};

use super::edge_socket::{self, EdgeSocket};
use super::transport::LARGEST_PACKET;

/// What an edge must keep so that, restarted, it can tell agents at once that their old
/// connections are gone (stateless reset, RFC 9000 §10.3). Both are needed: without the key of the
/// connection ids, a restarted edge takes the packets of an old connection for noise.
#[derive(Clone, Copy)]
pub struct EdgeKeys {
    /// Signs reset tokens.
    pub reset: [u8; 64],
    /// Recognises connection ids of earlier processes.
    pub connection_ids: u64,
}

impl EdgeKeys {
    /// How long the keys are together, in bytes.
    pub const LENGTH: usize = 72;

    /// Make them of random bytes.
    pub fn from_bytes(bytes: &[u8; Self::LENGTH]) -> Self {
        let (mut reset, mut ids) = ([0; 64], [0; 8]);
        reset.copy_from_slice(&bytes[..64]);
        ids.copy_from_slice(&bytes[64..]);
        Self {
            reset,
            connection_ids: u64::from_be_bytes(ids),
        }
    }
}

/// Make the edge's endpoint: one for agents that come over UDP, at `udp`, and over up to `websockets`
/// WebSockets.
///
/// # Errors
/// If the address cannot be bound.
pub fn edge_endpoint(
    udp: Option<SocketAddr>,
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
    let udp = udp.map(socket).transpose()?;
    edge_socket::edge_endpoint(udp, endpoint, config, websockets)
}

fn socket(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        // One socket for both families, where the system has both.
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}
