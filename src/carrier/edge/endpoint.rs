//! The edge's QUIC endpoint, and the keys that survive a restart.

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    AsyncUdpSocket, ConnectionError, Endpoint, EndpointConfig, Incoming, Runtime, ServerConfig,
    TokioRuntime, VarInt,
};
use quinn_proto::HashedConnectionIdGenerator;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::link::EdgeLink;
use super::socket;
use super::socket::{CarrierInfo, EdgeSocket, TooManyWebSockets};
use crate::carrier::congestion::{PathCache, PathMemory, SharedCongestionOwner};
use crate::carrier::duplicate::duplicator::Duplicator;
#[cfg(unix)]
use crate::carrier::handover::predecessors::Predecessors;
use crate::carrier::link::Link;
use crate::carrier::transport::{LARGEST_PACKET, edge_transport};
use crate::carrier::websocket::{Ended, PeerInfo};
use crate::net::path_kind::PathKind;
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

/// The edge's endpoint, for agents that connect over UDP and over WebSockets. Clones share it.
#[derive(Clone)]
pub struct EdgeEndpoint {
    endpoint: Endpoint,
    socket: EdgeSocket,
    /// QUIC settings for agents on other machines.
    quic: Arc<ServerConfig>,
    /// QUIC settings for agents on this machine.
    quic_loopback: Arc<ServerConfig>,
    /// Congestion estimates of the paths to agents, by address.
    paths: Arc<PathCache>,
}

impl EdgeEndpoint {
    /// Create the endpoint, with a UDP socket if there is one, and for up to `websockets` WebSockets.
    ///
    /// # Errors
    /// If the system refuses what the endpoint needs.
    pub fn new(
        udp: Option<Arc<dyn AsyncUdpSocket>>,
        tls: QuicServerConfig,
        keys: EdgeKeys,
        websockets: usize,
    ) -> io::Result<Self> {
        let (quic, quic_loopback) = server_configs(tls);
        let (endpoint, socket) = edge_endpoint(udp, quic.clone(), keys, websockets)?;
        Ok(Self {
            endpoint,
            socket,
            quic: Arc::new(quic),
            quic_loopback: Arc::new(quic_loopback),
            paths: Arc::default(),
        })
    }

    /// Prepare a UDP socket for the endpoint. Its buffers are enlarged as far as the system allows.
    ///
    /// # Errors
    /// If the system refuses what quinn needs.
    pub fn wrap_udp(socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        udp_socket::enlarge_buffers(&socket);
        TokioRuntime.wrap_udp_socket(socket)
    }

    /// Wait for a connection attempt. Return `None` once the endpoint is closed.
    pub async fn accept(&self) -> Option<Incoming> {
        self.endpoint.accept().await
    }

    /// Return the carrier of a connection attempt, or `None` for a WebSocket that has closed.
    pub fn carrier(&self, incoming: &Incoming) -> Option<CarrierInfo> {
        self.socket.carrier(incoming.remote_address())
    }

    /// Count the connections, including those that are closing.
    pub fn open_connections(&self) -> usize {
        self.endpoint.open_connections()
    }

    /// Complete the QUIC handshake of a connection attempt.
    ///
    /// # Errors
    /// [`ConnectionError`] if it fails.
    pub async fn handshake(&self, incoming: Incoming) -> Result<EdgeLink, ConnectionError> {
        let remote = incoming.remote_address();
        let path_kind = self
            .socket
            .carrier(remote)
            .map_or(PathKind::Network, |carrier| carrier.peer.path_kind);
        let congestion_owner = SharedCongestionOwner::default();
        let agent = self.socket.udp_address(remote);
        let path = agent
            .map(|agent| self.paths.recall(agent))
            .unwrap_or_default();
        let config = match path_kind {
            PathKind::Loopback => self.quic_loopback.clone(),
            PathKind::Network => {
                let mut config = ServerConfig::clone(&self.quic);
                let transport = edge_transport(path_kind, &congestion_owner, &path);
                config.transport_config(transport);
                Arc::new(config)
            }
        };
        let connection = incoming.accept_with(config)?.await?;
        let duplicator = Duplicator::for_edge(&connection, &self.socket);
        Ok(EdgeLink {
            link: Link::new(connection, duplicator),
            socket: self.socket.clone(),
            congestion_owner,
            path,
            paths: self.paths.clone(),
        })
    }

    /// Move packets over an upgraded connection: see [`EdgeSocket::accept`].
    ///
    /// # Errors
    /// [`TooManyWebSockets`] if no slot is free.
    pub fn carry<S>(
        &self,
        io: S,
        peer: PeerInfo,
    ) -> Result<impl Future<Output = Ended> + Send + use<S>, TooManyWebSockets>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        self.socket.accept(io, peer)
    }

    /// Move packets over an upgraded connection, or relay it to the predecessor that has its session: see
    /// [`EdgeSocket::accept_or_relay`].
    ///
    /// # Errors
    /// [`TooManyWebSockets`] if no slot is free.
    #[cfg(unix)]
    pub fn carry_or_relay<S>(
        &self,
        predecessors: &Predecessors,
        io: S,
        peer: PeerInfo,
    ) -> Result<impl Future<Output = Ended> + Send + use<S>, TooManyWebSockets>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        self.socket.accept_or_relay(predecessors, io, peer)
    }

    /// Close all connections, and give the agents up to [`CLOSE_TIMEOUT`] to acknowledge it.
    pub async fn close(&self, code: VarInt, reason: &[u8]) {
        self.endpoint.close(code, reason);
        let _ = timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle()).await;
    }
}

/// Return the QUIC settings for agents on other machines, and for those on this machine.
fn server_configs(tls: QuicServerConfig) -> (ServerConfig, ServerConfig) {
    let mut server = ServerConfig::with_crypto(Arc::new(tls));
    server
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFER_TOTAL);
    let mut quic_loopback = server.clone();
    let (ours, memory) = (SharedCongestionOwner::default(), PathMemory::default());
    let transport = |path_kind| edge_transport(path_kind, &ours, &memory);
    server.transport_config(transport(PathKind::Network));
    quic_loopback.transport_config(transport(PathKind::Loopback));
    (server, quic_loopback)
}

/// Most new connections whose first packet waits to be examined, which takes less than a
/// millisecond. Any more are dropped, and retransmitted by clients that mean it.
const MAX_INCOMING: usize = 1_024;

/// Bytes buffered for one of them: the rest of a first flight with large keys is one packet.
const INCOMING_BUFFER: u64 = 16 << 10;

/// Bytes buffered for all of them together.
const INCOMING_BUFFER_TOTAL: u64 = 4 << 20;

/// Time for agents to acknowledge that the edge closes their connections.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Create the edge's endpoint, for agents that connect over UDP, if there is a socket for it, and over
/// up to `websockets` WebSockets.
///
/// # Errors
/// If the system refuses what the endpoint needs.
pub(crate) fn edge_endpoint(
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
