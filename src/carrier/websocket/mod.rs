//! One WebSocket that carries packets: limits and the loop that moves them both ways.
//!
//! The framing is in [`frames`], what a message says in [`crate::proto`]. How the connection came about, and where
//! its packets go, is the business of others.

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
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time::{sleep, timeout},
};

use self::frames::{FrameError, Reader, Received, Role};
use self::send_queue::Queue;
use super::receive_queue::Arrival;
use super::{CongestionOwner, PathKind};

use crate::proto::{DATAGRAMS_HEADER, DATAGRAMS_LIMIT, Datagrams, DatagramsError};

/// What is at the other end of a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerInfo {
    /// The address that it really has, or that of the first hop on the way there.
    pub peer: SocketAddr,
    /// How far it is to the other end.
    pub reach: PathKind,
    /// Who controls congestion on the way there.
    pub congestion: CongestionOwner,
}

/// One WebSocket as quinn's socket sees it.
#[derive(Debug)]
pub(crate) struct Line {
    /// Which end of it this is.
    role: Role,
    /// The address that quinn knows it by.
    pub(crate) address: SocketAddr,
    pub(crate) peer: PeerInfo,
    pub(crate) queue: Arc<Queue>,
    answered: AtomicBool,
    /// Whether an authenticated session uses it, or has used it.
    has_session: AtomicBool,
    /// Messages, or pieces of them, that have come from the far end.
    received: AtomicU64,
    /// Bytes that the network has taken.
    written: AtomicU64,
}

impl Line {
    pub(crate) fn new(role: Role, address: SocketAddr, peer: PeerInfo) -> Self {
        Self {
            role,
            address,
            peer,
            queue: Arc::new(Queue::new(role, peer.reach)),
            answered: AtomicBool::new(false),
            has_session: AtomicBool::new(false),
            received: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }

    /// Note that something has come from the far end.
    pub(crate) fn received(&self) {
        self.received.fetch_add(1, Ordering::Relaxed);
    }

    /// Note that an authenticated session uses it.
    pub(crate) fn joined(&self) {
        self.has_session.store(true, Ordering::Relaxed);
    }

    /// Report whether an authenticated session uses it, or has used it.
    pub(crate) fn has_session(&self) -> bool {
        self.has_session.load(Ordering::Relaxed)
    }

    /// Note that quinn has something to say to the far end, which therefore speaks QUIC.
    pub(crate) fn answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }
}

/// Why a WebSocket has ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error("closed by the far end")]
    Closed,
    #[error("connection lost: {0}")]
    Lost(#[source] io::Error),
    #[error("no QUIC within {} s", SPEAK_QUIC_WITHIN.as_secs())]
    NeverSpokeQuic,
    #[error("no session within {} s", (SPEAK_QUIC_WITHIN + BEGIN_SESSION_WITHIN).as_secs())]
    NoSession,
    #[error("nothing received for {} s", IDLE.as_secs())]
    Idle,
    #[error("nothing could be sent for {} s", STUCK.as_secs())]
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
    /// What to tell the far end (RFC 6455 §7.4.1); nothing if it is not listening.
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

/// Move packets both ways over an upgraded connection until it ends, and say why. Some of what it says
/// may have been read already.
pub(crate) async fn run<S>(
    io: S,
    early: BytesMut,
    line: &Line,
    arrivals: mpsc::Sender<Arrival>,
) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (reading, mut writing) = tokio::io::split(io);
    let longest = DATAGRAMS_HEADER + DATAGRAMS_LIMIT;
    let reader = Reader::new(reading, line.role, longest).after(early);
    let mut frames = VecDeque::new();
    let ended = tokio::select! {
        biased;
        ended = receive(reader, line, arrivals) => ended,
        ended = send(&mut writing, &mut frames, line) => ended,
        ended = watch(line) => ended,
    };
    if let Some(code) = ended.code() {
        frames.extend(line.queue.close(code, &ended.to_string()));
        // The far end may be gone; it has been told if it is there.
        let _ = timeout(
            CLOSE,
            frames::write_all(&mut writing, &mut frames, &line.written),
        )
        .await;
    }
    ended
}

async fn receive(
    mut reader: Reader<impl AsyncRead + Unpin>,
    line: &Line,
    arrivals: mpsc::Sender<Arrival>,
) -> Ended {
    loop {
        let datagrams = match reader.next().await {
            Ok(Received::Binary(message)) => match Datagrams::decode(message) {
                Ok(datagrams) => datagrams,
                Err(err) => return err.into(),
            },
            Ok(Received::Ping(ping)) => {
                line.queue.answer(&ping);
                continue;
            }
            Ok(Received::Pong) => continue,
            Ok(Received::Close) => return Ended::Closed,
            Err(err) => return err.into(),
        };
        line.received();
        let arrival = Arrival {
            from: line.address,
            datagrams,
        };
        if arrivals.send(arrival).await.is_err() {
            return Ended::NoEndpoint;
        }
    }
}

async fn send(
    writing: &mut (impl AsyncWrite + Unpin),
    frames: &mut VecDeque<Bytes>,
    line: &Line,
) -> Ended {
    loop {
        line.queue.pop(frames).await;
        let write = frames::write_all(writing, frames, &line.written);
        if let Err(ended) = patiently(line, write).await {
            return ended;
        }
    }
}

/// Finish a write. While it makes no progress the queue is a hole, and in the end it is given up.
async fn patiently(line: &Line, write: impl Future<Output = io::Result<()>>) -> Result<(), Ended> {
    let mut write = pin!(write);
    let mut written = line.written.load(Ordering::Relaxed);
    let mut stalled = Duration::ZERO;
    loop {
        if let Ok(done) = timeout(STALL, &mut write).await {
            if stalled > Duration::ZERO {
                line.queue.stop_discarding();
            }
            return done.map_err(Ended::Lost);
        }
        let now = line.written.load(Ordering::Relaxed);
        if now != written {
            written = now;
            stalled = Duration::ZERO;
            line.queue.stop_discarding();
            continue;
        }
        stalled += STALL;
        if stalled >= STUCK {
            return Err(Ended::Stuck);
        }
        line.queue.start_discarding();
    }
}

/// End a WebSocket that nobody uses for QUIC.
pub(crate) async fn watch(line: &Line) -> Ended {
    sleep(SPEAK_QUIC_WITHIN).await;
    if !line.answered.load(Ordering::Relaxed) {
        return Ended::NeverSpokeQuic;
    }
    if line.role == Role::Server {
        sleep(BEGIN_SESSION_WITHIN).await;
        if !line.has_session() {
            return Ended::NoSession;
        }
    }
    loop {
        let before = line.received.load(Ordering::Relaxed);
        sleep(IDLE).await;
        if line.received.load(Ordering::Relaxed) == before {
            return Ended::Idle;
        }
    }
}

/// How long a peer may take until quinn answers something it sent: longer than any handshake that
/// would still succeed.
pub(crate) const SPEAK_QUIC_WITHIN: Duration = Duration::from_secs(10);

/// How much longer it may take until a session is authenticated that uses the WebSocket: longer than an
/// edge waits for a handshake and a hello. One that an agent has opened beside UDP and does not use is
/// closed as well, and opened again when it is needed.
const BEGIN_SESSION_WITHIN: Duration = Duration::from_secs(10);

/// How long a WebSocket may bring nothing, up to twice: at least twice what a connection that uses
/// it survives without a packet, so only those are closed that no connection uses.
const IDLE: Duration = Duration::from_secs(30);

/// How long a write may make no progress before what is sent here is dropped. Slower than TCP's
/// first repetitions, as fast as an agent's decision to use the other carrier.
const STALL: Duration = Duration::from_secs(1);

/// How long a write may make no progress before the WebSocket is given up.
const STUCK: Duration = Duration::from_secs(30);

/// How long to wait for the close frame to be sent.
const CLOSE: Duration = Duration::from_secs(1);
