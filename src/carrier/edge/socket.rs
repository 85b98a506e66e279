//! The edge's socket: one `quinn::Endpoint` for agents that connect over UDP and over WebSockets.
//!
//! quinn knows every WebSocket by a synthetic address. When an agent moves from one carrier to the
//! other, quinn sees a client whose address has changed and migrates the connection (RFC 9000 §9).
//! Callers decide who may open a WebSocket, and on which listener.

use std::{
    collections::HashMap,
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use quinn::{
    AsyncUdpSocket, Endpoint, EndpointConfig, ServerConfig, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

use crate::carrier::congestion::CongestionOwner;
use crate::carrier::duplicate::send_logs::{SendLogHandle, SendLogs};
use crate::carrier::gso_limit::{GsoLimit, send_over_udp};
use crate::carrier::receive_queue::{ReceiveQueue, ReceivedPackets};
use crate::carrier::selection::probe;
use crate::carrier::websocket::frames::Role;
use crate::carrier::websocket::{Ended, PeerInfo, WebSocketLink};
use crate::carrier::writable::{Poller, WriteGate, note_blocked};
use crate::carrier::{Carrier, receive_queue, websocket};
use crate::net::path_kind::PathKind;
use crate::net::subnet::subnet;
use crate::proto::DATAGRAMS_COUNT;

/// The carrier of an agent's packets, as the edge sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CarrierInfo {
    pub carrier: Carrier,
    /// The agent, or the proxy in front of the edge.
    pub peer: PeerInfo,
}

/// A handle to the socket below the edge's endpoint; clones share it.
#[derive(Clone)]
pub struct EdgeSocket(Arc<Shared>);

struct Shared {
    udp: Option<Arc<dyn AsyncUdpSocket>>,
    local: SocketAddr,
    receive_queue: ReceiveQueue,
    gso_limit: GsoLimit,
    packet_sender: mpsc::Sender<ReceivedPackets>,
    /// The upper half of the synthetic addresses.
    prefix: [u16; 4],
    /// The open WebSockets, by the lower half of their synthetic address.
    websockets: RwLock<HashMap<u64, Arc<WebSocketLink>>>,
    /// The lower half of the next synthetic address.
    next: AtomicU64,
    /// The most open WebSockets.
    limit: usize,
    /// The logs of packets sent over UDP, for agents that need one.
    send_logs: Arc<SendLogs>,
}

/// Too many WebSockets are open already.
#[derive(Debug, thiserror::Error)]
pub enum TooManyWebSockets {
    #[error("{limit} websockets are open already")]
    InAll { limit: usize },
    #[error("{MAX_UNUSED_WEBSOCKETS} unused websockets of this address are open already")]
    Unused,
}

/// Create the edge's endpoint over any implementation of a UDP socket, and up to `limit` WebSockets.
///
/// Without `udp` (`--quic off`), agents connect over WebSockets only.
///
/// # Errors
/// If the sockets cannot be set up.
pub(crate) fn edge_endpoint_over(
    udp: Option<Arc<dyn AsyncUdpSocket>>,
    config: EndpointConfig,
    server: ServerConfig,
    limit: usize,
) -> io::Result<(Endpoint, EdgeSocket)> {
    let local = match &udp {
        Some(udp) => udp.local_addr()?,
        None => (Ipv6Addr::UNSPECIFIED, PORT).into(),
    };
    let (packet_sender, receive_queue) = ReceiveQueue::new();
    let socket = EdgeSocket(Arc::new(Shared {
        udp,
        local,
        receive_queue,
        gso_limit: GsoLimit::new(),
        packet_sender,
        prefix: random_prefix()?,
        websockets: RwLock::default(),
        next: AtomicU64::new(1),
        limit,
        send_logs: Arc::default(),
    }));
    let endpoint = Endpoint::new_with_abstract_socket(
        config,
        Some(server),
        Arc::new(socket.clone()),
        Arc::new(TokioRuntime),
    )?;
    Ok((endpoint, socket))
}

impl EdgeSocket {
    /// Return the carrier of a connection, given its `remote_address()`.
    ///
    /// `None` means a WebSocket that has closed; the agent will return under another address.
    pub fn carrier(&self, remote: SocketAddr) -> Option<CarrierInfo> {
        let Some(id) = self.0.id(remote.ip()) else {
            return Some(CarrierInfo {
                carrier: Carrier::Udp,
                peer: PeerInfo {
                    address: remote,
                    path_kind: PathKind::of(remote),
                    congestion: CongestionOwner::Quic,
                },
            });
        };
        self.0.link(id).map(|link| CarrierInfo {
            carrier: Carrier::WebSocket,
            peer: link.peer,
        })
    }

    /// Return the agent's IP address if the connection uses UDP, given its `remote_address()`.
    pub fn udp_address(&self, remote: SocketAddr) -> Option<IpAddr> {
        self.0.id(remote.ip()).is_none().then_some(remote.ip())
    }

    /// Note that an authenticated session uses this remote address.
    pub fn session_started(&self, remote: SocketAddr) {
        if let Some(link) = self.0.id(remote.ip()).and_then(|id| self.0.link(id)) {
            link.session_started();
        }
    }

    /// Note that authenticated sessions use all WebSockets.
    #[cfg(test)]
    pub(crate) fn all_sessions_started(&self) {
        let websockets = self.0.websockets.read();
        let websockets = websockets.unwrap_or_else(PoisonError::into_inner);
        websockets.values().for_each(|link| link.session_started());
    }

    /// Return the synthetic addresses of the open WebSockets.
    #[cfg(test)]
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let websockets = self.0.websockets.read();
        let websockets = websockets.unwrap_or_else(PoisonError::into_inner);
        websockets.values().map(|link| link.address).collect()
    }

    /// Count the open WebSockets.
    pub fn websockets(&self) -> usize {
        let websockets = self.0.websockets.read();
        websockets.unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Move packets over an upgraded connection until it ends.
    ///
    /// The future owns everything: dropping it closes the connection and frees its slot. It enforces
    /// its own timeouts (see [`Ended`]): a peer that does not speak QUIC is disconnected.
    ///
    /// # Errors
    /// [`TooManyWebSockets`] if no slot is free.
    pub fn accept<S>(
        &self,
        io: S,
        peer: PeerInfo,
    ) -> Result<impl Future<Output = Ended> + Send + use<S>, TooManyWebSockets>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let attached = self.attach(peer)?;
        Ok(async move { attached.carry(io, BytesMut::new()).await })
    }

    /// Start a log of the packets sent over UDP to an agent. Return `None` for a WebSocket.
    pub(crate) fn start_log(&self, remote: SocketAddr) -> Option<SendLogHandle> {
        match self.0.id(remote.ip()) {
            None => Some(self.0.send_logs.start_log(remote)),
            Some(_) => None,
        }
    }

    /// Resend the packets that were sent to an agent within the given time: see
    /// [`SendLog::resend_within`](crate::carrier::duplicate::send_log::SendLog::resend_within).
    pub(crate) fn resend_recent(&self, to: &SendLogHandle, within: Duration, max_bytes: u64) {
        to.resend_within(within, max_bytes, |transmit| {
            let _ = self.0.send_to_udp(&transmit);
        });
    }

    /// Reserve a slot and a synthetic address for a WebSocket.
    pub(crate) fn attach(&self, peer: PeerInfo) -> Result<AttachedWebSocket, TooManyWebSockets> {
        let limit = self.0.limit;
        let mut websockets = self
            .0
            .websockets
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if websockets.len() >= limit {
            return Err(TooManyWebSockets::InAll { limit });
        }
        let from = subnet(peer.address.ip());
        let is_unused = |link: &&Arc<WebSocketLink>| {
            !link.has_session() && subnet(link.peer.address.ip()) == from
        };
        if websockets.values().filter(is_unused).count() >= MAX_UNUSED_WEBSOCKETS {
            return Err(TooManyWebSockets::Unused);
        }
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let link = Arc::new(WebSocketLink::new(Role::Server, self.0.address(id), peer));
        websockets.insert(id, link.clone());
        Ok(AttachedWebSocket {
            socket: self.clone(),
            id,
            link,
        })
    }
}

/// The slot of a WebSocket. Dropping it removes the WebSocket's address from the socket.
pub(crate) struct AttachedWebSocket {
    socket: EdgeSocket,
    id: u64,
    link: Arc<WebSocketLink>,
}

impl AttachedWebSocket {
    /// Move packets until the connection ends. `early` holds bytes that have been read already.
    pub(crate) async fn carry<S>(&self, io: S, early: BytesMut) -> Ended
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let packet_sender = self.socket.0.packet_sender.clone();
        websocket::run(io, early, &self.link, packet_sender).await
    }

    /// Return the WebSocket.
    #[cfg(unix)]
    pub(crate) fn link(&self) -> &WebSocketLink {
        &self.link
    }
}

impl Drop for AttachedWebSocket {
    fn drop(&mut self) {
        let websockets = self.socket.0.websockets.write();
        websockets
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.id);
        // A connection may be waiting for room in this queue, which nobody drains any more.
        self.link.queue.start_discarding();
    }
}

impl Shared {
    /// Return the synthetic address of a WebSocket.
    fn address(&self, id: u64) -> SocketAddr {
        let [a, b, c, d] = self.prefix;
        let mut bits = u128::from(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0));
        bits |= u128::from(id);
        (Ipv6Addr::from(bits), PORT).into()
    }

    /// Return the id of the WebSocket with this synthetic address, or `None` for a real address.
    fn id(&self, ip: IpAddr) -> Option<u64> {
        match ip {
            IpAddr::V6(ip) if ip.segments()[..4] == self.prefix => Some(u128::from(ip) as u64),
            _ => None,
        }
    }

    fn link(&self, id: u64) -> Option<Arc<WebSocketLink>> {
        let websockets = self.websockets.read();
        websockets
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned()
    }

    fn send_to_websocket(&self, id: u64, transmit: &Transmit) -> io::Result<()> {
        let Some(link) = self.link(id) else {
            return Ok(());
        };
        if !probe::is_version_negotiation(transmit.contents) {
            link.quic_answered();
        }
        link.queue
            .try_push(transmit.segment_size, transmit.contents)
            .map_err(|_| note_blocked(WriteGate::WebSocket(link.queue.clone())))
    }

    fn send_to_udp(&self, transmit: &Transmit) -> io::Result<()> {
        let Some(udp) = &self.udp else {
            return Ok(());
        };
        let destination = match transmit.destination {
            SocketAddr::V4(v4) if self.local.is_ipv6() => {
                (v4.ip().to_ipv6_mapped(), v4.port()).into()
            }
            other => other,
        };
        let outgoing = Transmit {
            destination,
            // After a migration quinn still asks for the local address of the first path.
            src_ip: transmit
                .src_ip
                .filter(|ip| same_family(*ip, destination.ip())),
            ..transmit.clone()
        };
        match send_over_udp(&**udp, &outgoing) {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                Err(note_blocked(WriteGate::Udp(udp.clone())))
            }
            // QUIC retransmits lost packets; an error here would end the connection.
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl AsyncUdpSocket for EdgeSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller::default())
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        self.0.gso_limit.record(transmit);
        match self.0.id(transmit.destination.ip()) {
            Some(id) => self.0.send_to_websocket(id, transmit),
            None => {
                self.0.send_to_udp(transmit)?;
                self.0.send_logs.sent(transmit, |duplicate| {
                    let _ = self.0.send_to_udp(&duplicate);
                });
                Ok(())
            }
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let filled = ready!(
            self.0
                .receive_queue
                .poll_both(self.0.udp.as_deref(), cx, bufs, meta)
        );
        let all = filled.websocket + filled.udp;
        for meta in &mut meta[filled.websocket..all] {
            // quinn keeps its path estimates when only the port of an IPv4 client changes, so it must
            // recognise IPv4 addresses.
            meta.addr.set_ip(meta.addr.ip().to_canonical());
            if self.0.id(meta.addr.ip()).is_some() {
                meta.len = 0;
            }
        }
        Poll::Ready(Ok(all))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0.local)
    }

    fn max_transmit_segments(&self) -> usize {
        let udp = self.0.udp.as_ref();
        udp.map_or(DATAGRAMS_COUNT, |udp| udp.max_transmit_segments())
            .min(self.0.gso_limit.allowed())
    }

    fn max_receive_segments(&self) -> usize {
        receive_queue::RECEIVE_SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        self.0.udp.as_ref().is_some_and(|udp| udp.may_fragment())
    }
}

impl fmt::Debug for EdgeSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeSocket")
            .field("local", &self.0.local)
            .field("websockets", &self.websockets())
            .finish_non_exhaustive()
    }
}

fn same_family(source: IpAddr, destination: IpAddr) -> bool {
    source.to_canonical().is_ipv4() == destination.to_canonical().is_ipv4()
}

/// Return a random /64 of unique local addresses (RFC 4193 §3.2.2). It is random so that nobody can send
/// UDP packets that seem to come from a WebSocket.
fn random_prefix() -> io::Result<[u16; 4]> {
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random)
        .map_err(|_| io::Error::other("the random number generator failed"))?;
    let [_, a, b, c, d, e, f, g] = random;
    Ok([
        u16::from_be_bytes([0xfd, a]),
        u16::from_be_bytes([b, c]),
        u16::from_be_bytes([d, e]),
        u16::from_be_bytes([f, g]),
    ])
}

/// The port of every synthetic address: quinn needs one that is not 0, and nothing else uses it.
const PORT: u16 = 1;

/// The most WebSockets of one subnet (IPv4 address or IPv6 /64) that no authenticated session uses:
/// anybody can open those. A thousand agents that reconnect at once through one proxy need no more.
const MAX_UNUSED_WEBSOCKETS: usize = 256;
