//! One WebSocket that carries packets: its timeouts, and the loop that moves packets in both directions.
//!
//! Framing is in [`frames`], the message format in [`crate::proto`]. Callers establish the connection and route its
//! packets.

pub(crate) mod frames;
pub(crate) mod record_size;
pub(crate) mod send_queue;
pub(crate) mod upgrade;

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time::{sleep, timeout},
};

use self::frames::{FrameError, Reader, Received, Role};
use self::send_queue::SendQueue;
use super::receive_queue::ReceivedPackets;
use crate::carrier::congestion::CongestionOwner;
use crate::net::path_kind::PathKind;
use crate::proto::{DATAGRAMS_HEADER, DATAGRAMS_LIMIT, Datagrams, DatagramsError};

/// The peer at the other end of a carrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerInfo {
    /// The peer's real address, or that of the nearest proxy on the path.
    pub address: SocketAddr,
    /// The kind of path to the peer.
    pub path_kind: PathKind,
    /// The owner of congestion control on the path.
    pub congestion: CongestionOwner,
}

impl PeerInfo {
    /// Describe an agent whose connection comes from `peer`, and not through a proxy.
    pub fn direct<'s>(agent: SocketAddr, tcp: impl Into<SockRef<'s>>, peer: SocketAddr) -> Self {
        Self {
            address: agent,
            path_kind: PathKind::of(peer),
            congestion: CongestionOwner::of(tcp, peer),
        }
    }

    /// Describe an agent whose connection comes through a proxy. The proxy is often on the same machine,
    /// and the agent never is.
    pub fn proxied(agent: SocketAddr) -> Self {
        Self {
            address: agent,
            path_kind: PathKind::Network,
            congestion: CongestionOwner::Quic,
        }
    }
}

/// One WebSocket, as quinn's socket sees it.
#[derive(Debug)]
pub(crate) struct WebSocketLink {
    /// The role of this end.
    role: Role,
    /// The address by which quinn knows it.
    pub(crate) address: SocketAddr,
    pub(crate) peer: PeerInfo,
    pub(crate) queue: Arc<SendQueue>,
    /// Set once quinn has sent something to the peer, which therefore speaks QUIC.
    quic_answered: AtomicBool,
    /// Set once an authenticated session uses it.
    has_session: AtomicBool,
    /// Messages, or parts of them, received from the peer.
    received: AtomicU64,
    /// Bytes written to the connection.
    written: AtomicU64,
}

impl WebSocketLink {
    pub(crate) fn new(role: Role, address: SocketAddr, peer: PeerInfo) -> Self {
        Self {
            role,
            address,
            peer,
            queue: Arc::new(SendQueue::new(role, peer.path_kind)),
            quic_answered: AtomicBool::new(false),
            has_session: AtomicBool::new(false),
            received: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }

    /// Note that something was received from the peer.
    pub(crate) fn note_received(&self) {
        self.received.fetch_add(1, Ordering::Relaxed);
    }

    /// Note that an authenticated session uses this WebSocket.
    pub(crate) fn session_started(&self) {
        self.has_session.store(true, Ordering::Relaxed);
    }

    /// Report whether an authenticated session uses this WebSocket, or has used it.
    pub(crate) fn has_session(&self) -> bool {
        self.has_session.load(Ordering::Relaxed)
    }

    /// Note that quinn has sent something to the peer, which therefore speaks QUIC.
    pub(crate) fn quic_answered(&self) {
        self.quic_answered.store(true, Ordering::Relaxed);
    }
}

/// The reason for the end of a WebSocket.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error("closed by the peer")]
    Closed,
    #[error("connection lost: {0}")]
    Lost(#[source] io::Error),
    #[error("no QUIC within {} s", QUIC_TIMEOUT.as_secs())]
    NeverSpokeQuic,
    #[error("no session within {} s", (QUIC_TIMEOUT + SESSION_TIMEOUT).as_secs())]
    NoSession,
    #[error("nothing received for {} s", IDLE_TIMEOUT.as_secs())]
    Idle,
    #[error("nothing could be sent for {} s", WRITE_TIMEOUT.as_secs())]
    Stuck,
    #[error("text message received")]
    Text,
    #[error("{0} received")]
    Protocol(&'static str),
    #[error("message longer than {} bytes received", DATAGRAMS_HEADER + DATAGRAMS_LIMIT)]
    TooLong,
    #[error("malformed message received: {0}")]
    Malformed(#[from] DatagramsError),
    #[error("the endpoint is gone")]
    NoEndpoint,
}

impl From<FrameError> for Ended {
    fn from(err: FrameError) -> Self {
        match err {
            FrameError::End => Self::Closed,
            FrameError::Io(err) => Self::Lost(err),
            FrameError::Text => Self::Text,
            FrameError::TooLong => Self::TooLong,
            FrameError::Protocol(what) => Self::Protocol(what),
        }
    }
}

impl Ended {
    /// Return the status code of the close frame (RFC 6455 §7.4.1), or `None` if the peer cannot receive one.
    fn code(&self) -> Option<u16> {
        match self {
            Self::Lost(_) | Self::Stuck => None,
            Self::Closed => Some(1000),
            Self::Idle | Self::NoEndpoint => Some(1001),
            Self::Protocol(_) => Some(1002),
            Self::Text => Some(1003),
            Self::NeverSpokeQuic | Self::NoSession | Self::Malformed(_) => Some(1008),
            Self::TooLong => Some(1009),
        }
    }
}

/// Move packets in both directions over an upgraded connection until it ends, and return the reason. `early`
/// holds bytes that have been read already.
pub(crate) async fn run<S>(
    io: S,
    early: BytesMut,
    link: &WebSocketLink,
    packet_sender: mpsc::Sender<ReceivedPackets>,
) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (reading, mut writing) = tokio::io::split(io);
    let max_message = DATAGRAMS_HEADER + DATAGRAMS_LIMIT;
    let reader = Reader::new(reading, link.role, max_message).with_buffered(early);
    let mut frames = VecDeque::new();
    let ended = tokio::select! {
        biased;
        ended = receive(reader, link, packet_sender) => ended,
        ended = send(&mut writing, &mut frames, link) => ended,
        ended = wait_for_timeout(link) => ended,
    };
    if let Some(code) = ended.code() {
        frames.extend(link.queue.close(code, &ended.to_string()));
        // Best effort: the peer may be gone.
        let _ = timeout(
            CLOSE_TIMEOUT,
            frames::write_all(&mut writing, &mut frames, &link.written),
        )
        .await;
    }
    ended
}

async fn receive(
    mut reader: Reader<impl AsyncRead + Unpin>,
    link: &WebSocketLink,
    packet_sender: mpsc::Sender<ReceivedPackets>,
) -> Ended {
    loop {
        let datagrams = match reader.next().await {
            Ok(Received::Binary(message)) => match Datagrams::decode(message) {
                Ok(datagrams) => datagrams,
                Err(err) => return err.into(),
            },
            Ok(Received::Ping(ping)) => {
                link.queue.answer(&ping);
                continue;
            }
            Ok(Received::Pong) => continue,
            Ok(Received::Close) => return Ended::Closed,
            Err(err) => return err.into(),
        };
        link.note_received();
        let received = ReceivedPackets {
            from: link.address,
            datagrams,
        };
        if packet_sender.send(received).await.is_err() {
            return Ended::NoEndpoint;
        }
    }
}

async fn send(
    writing: &mut (impl AsyncWrite + Unpin),
    frames: &mut VecDeque<Bytes>,
    link: &WebSocketLink,
) -> Ended {
    loop {
        link.queue.pop(frames).await;
        let write = frames::write_all(writing, frames, &link.written);
        if let Err(ended) = finish_write(link, write).await {
            return ended;
        }
    }
}

/// Complete a write. While it makes no progress, the queue discards packets; after [`WRITE_TIMEOUT`] without any
/// progress, fail.
async fn finish_write(
    link: &WebSocketLink,
    write: impl Future<Output = io::Result<()>>,
) -> Result<(), Ended> {
    let mut write = pin!(write);
    let mut written = link.written.load(Ordering::Relaxed);
    let mut stalled = Duration::ZERO;
    loop {
        if let Ok(done) = timeout(STALL_TIMEOUT, &mut write).await {
            if stalled > Duration::ZERO {
                link.queue.stop_discarding();
            }
            return done.map_err(Ended::Lost);
        }
        let now = link.written.load(Ordering::Relaxed);
        if now != written {
            written = now;
            stalled = Duration::ZERO;
            link.queue.stop_discarding();
            continue;
        }
        stalled += STALL_TIMEOUT;
        if stalled >= WRITE_TIMEOUT {
            return Err(Ended::Stuck);
        }
        link.queue.start_discarding();
    }
}

/// Wait until the WebSocket exceeds one of its timeouts: for QUIC, for a session, or for idleness.
pub(crate) async fn wait_for_timeout(link: &WebSocketLink) -> Ended {
    sleep(QUIC_TIMEOUT).await;
    if !link.quic_answered.load(Ordering::Relaxed) {
        return Ended::NeverSpokeQuic;
    }
    if link.role == Role::Server {
        sleep(SESSION_TIMEOUT).await;
        if !link.has_session() {
            return Ended::NoSession;
        }
    }
    loop {
        let before = link.received.load(Ordering::Relaxed);
        sleep(IDLE_TIMEOUT).await;
        if link.received.load(Ordering::Relaxed) == before {
            return Ended::Idle;
        }
    }
}

/// The time in which a peer must send something that quinn answers: longer than any handshake that
/// would still succeed.
pub(crate) const QUIC_TIMEOUT: Duration = Duration::from_secs(10);

/// The additional time in which an authenticated session must use the WebSocket: longer than an edge waits
/// for a handshake and a hello. A WebSocket that an agent opens beside UDP and does not use is closed as
/// well, and opened again when it is needed.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);

/// The idle timeout; a WebSocket is closed after one to two times this long without a received message. It is
/// twice the idle timeout of a connection, so only WebSockets that no connection uses are closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The time without progress of a write after which packets are discarded. Longer than TCP's first
/// retransmissions, and as short as an agent's decision to use the other carrier.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);

/// The time without progress of a write after which the WebSocket is closed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// The time limit for sending the close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
