//! The edge's socket: one `quinn::Endpoint` for agents that come over UDP and over WebSockets.
//!
//! quinn knows every WebSocket by a made-up address. When an agent moves from one carrier to the
//! other, quinn sees a client whose address has changed and migrates the connection (RFC 9000 §9).
//! Who may open a WebSocket, and on which listener, is decided above.

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
    AsyncUdpSocket, Endpoint, EndpointConfig, ServerConfig, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

use crate::carrier::duplicate::send_logs::{SendLogHandle, SendLogs};
use crate::carrier::duplicate::transmitter::TransmitterRuntime;
use crate::carrier::gso_limit::{GsoLimit, send_over_udp};
use crate::carrier::receive_queue::{ReceivedPackets, ReceiveQueue};
use crate::carrier::selection::probe;
use crate::carrier::subnet::subnet;
use crate::carrier::websocket::frames::Role;
use crate::carrier::websocket::{Ended, WebSocketLink, PeerInfo};
use crate::carrier::writable::{Poller, WriteGate, note_blocked};
use crate::carrier::{Carrier, CongestionOwner, PathKind, receive_queue, websocket};
use crate::proto::DATAGRAMS_COUNT;

/// How an agent's packets reach the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CarrierInfo {
    pub carrier: Carrier,
    /// The agent, or the proxy in front of the edge.
    pub peer: PeerInfo,
}

/// A handle to the socket underneath the edge's endpoint; clones share it.
#[derive(Clone)]
pub struct EdgeSocket(Arc<Shared>);

struct Shared {
    udp: Option<Arc<dyn AsyncUdpSocket>>,
    local: SocketAddr,
    receive_queue: ReceiveQueue,
    gso_limit: GsoLimit,
    arrivals: mpsc::Sender<ReceivedPackets>,
    /// The upper half of the made-up addresses.
    prefix: [u16; 4],
    /// The open WebSockets, by the lower half of their made-up address.
    websockets: RwLock<HashMap<u64, Arc<WebSocketLink>>>,
    next: AtomicU64,
    limit: usize,
    /// What is sent over UDP to some of the agents.
    send_logs: Arc<SendLogs>,
}

/// Too many WebSockets are open already.
#[derive(Debug, thiserror::Error)]
pub enum TooManyWebSockets {
    #[error("{limit} websockets are open already")]
    InAll { limit: usize },
    #[error("{UNUSED_WEBSOCKETS} websockets of this address are open already that no session uses")]
    Unused,
}

/// WebSockets of one address (an IPv6 /64) that no authenticated session uses: anybody can open them. A
/// thousand agents that return at once through a proxy have no more on their way to a session.
const UNUSED_WEBSOCKETS: usize = 256;

/// Make the edge's endpoint over whatever moves UDP packets, and any number of WebSockets up to
/// `limit`.
///
/// Without `udp` (`--quic off`) agents come over WebSockets alone. Errors are those of setting up
/// the socket.
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
    let (arrivals, receive_queue) = ReceiveQueue::new();
    let socket = EdgeSocket(Arc::new(Shared {
        udp,
        local,
        receive_queue,
        gso_limit: GsoLimit::new(),
        arrivals,
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
        Arc::new(TransmitterRuntime),
    )?;
    Ok((endpoint, socket))
}

impl EdgeSocket {
    /// Tell how the packets of a connection travel, from its `remote_address()`.
    ///
    /// `None` is a WebSocket that has closed; the agent will be back under another address.
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

    /// Return where a connection's packets come from if they travel over UDP, from its `remote_address()`.
    pub fn udp_address(&self, remote: SocketAddr) -> Option<IpAddr> {
        self.0.id(remote.ip()).is_none().then_some(remote.ip())
    }

    /// Note that an authenticated session's packets come from there.
    pub fn session_started(&self, remote: SocketAddr) {
        if let Some(link) = self.0.id(remote.ip()).and_then(|id| self.0.link(id)) {
            link.session_started();
        }
    }

    /// Note that for all of them, as an edge would whose agents are all authenticated.
    #[cfg(test)]
    pub(crate) fn all_sessions_started(&self) {
        let websockets = self.0.websockets.read();
        let websockets = websockets.unwrap_or_else(PoisonError::into_inner);
        websockets.values().for_each(|link| link.session_started());
    }

    /// The made-up addresses of the open WebSockets.
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

    /// Carry packets over an upgraded connection until it ends.
    ///
    /// The future owns everything: dropped, it closes the connection and frees its place. It is
    /// bounded by itself (see [`Ended`]): a peer that does not speak QUIC is sent away.
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

    /// Keep what is sent over UDP to an agent from now on; a WebSocket's is not.
    pub(crate) fn start_log(&self, remote: SocketAddr) -> Option<SendLogHandle> {
        match self.0.id(remote.ip()) {
            None => Some(self.0.send_logs.start_log(remote)),
            Some(_) => None,
        }
    }

    /// Send a short message again that was sent within this time: see [`SendLog::again`](crate::carrier::duplicate::send_log::SendLog::again).
    pub(crate) fn resend_recent(&self, to: &SendLogHandle, within: Duration, most: u64) {
        to.resend_within(within, most, |transmit| {
            let _ = self.0.send_to_udp(&transmit);
        });
    }

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
        let from = subnet(peer.peer.ip());
        let is_unused =
            |link: &&Arc<WebSocketLink>| !link.has_session() && subnet(link.peer.address.ip()) == from;
        if websockets.values().filter(is_unused).count() >= UNUSED_WEBSOCKETS {
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

/// A WebSocket's place in the table; dropped, the socket forgets its address.
pub(crate) struct AttachedWebSocket {
    socket: EdgeSocket,
    id: u64,
    link: Arc<WebSocketLink>,
}

impl AttachedWebSocket {
    /// Carry packets until the connection ends; some of what it says may have been read already.
    pub(crate) async fn carry<S>(&self, io: S, early: BytesMut) -> Ended
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let arrivals = self.socket.0.arrivals.clone();
        websocket::run(io, early, &self.link, arrivals).await
    }

    /// Look at the WebSocket.
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
        // A connection may be waiting for room that nobody will make any more.
        self.link.queue.start_discarding();
    }
}

impl Shared {
    fn address(&self, id: u64) -> SocketAddr {
        let [a, b, c, d] = self.prefix;
        let mut bits = u128::from(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0));
        bits |= u128::from(id);
        (Ipv6Addr::from(bits), PORT).into()
    }

    /// The WebSocket that a made-up address stands for, or `None` for a real address.
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
            // QUIC repeats what the network loses; an error here would end the connection.
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
                self.0.send_logs.sent(transmit, |again| {
                    let _ = self.0.send_to_udp(&again);
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
            // quinn keeps what it has learnt about a path when only the port of an IPv4 client
            // changes; it must see that it is one.
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

/// A /64 from the range for local use (RFC 4193 §3.2.2), random so that nobody can send UDP
/// packets that seem to come from a WebSocket.
fn random_prefix() -> io::Result<[u16; 4]> {
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| io::Error::other("no randomness"))?;
    let [_, a, b, c, d, e, f, g] = random;
    Ok([
        u16::from_be_bytes([0xfd, a]),
        u16::from_be_bytes([b, c]),
        u16::from_be_bytes([d, e]),
        u16::from_be_bytes([f, g]),
    ])
}

/// The port of every made-up address: quinn needs one that is not 0, and nothing else reads it.
const PORT: u16 = 1;
