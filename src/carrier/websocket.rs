//! One WebSocket that carries packets: framing, limits and the loop that moves them both ways.
//!
//! The framing is RFC 6455 by `tungstenite`; what a message says is in [`crate::proto`]. How the
//! connection came about, and where its packets go, is the business of others.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        error::CapacityError,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::{CongestionControl, Reach, inbox::Arrival, meter::Meter, queue::Queue};

use crate::proto::{DATAGRAMS_HEADER, DATAGRAMS_LIMIT, Datagrams, DatagramsError};

/// How long a peer may take until quinn answers something it sent: longer than any handshake that
/// would still succeed.
const SPEAK_QUIC_WITHIN: Duration = Duration::from_secs(10);

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

/// Bytes read at once, and all the memory that an idle WebSocket keeps. For a long message room is made as
/// soon as its length is known, so a larger one gains nothing.
const READ_BUFFER: usize = 8 * 1024;

/// Bytes gathered before they are written: one TLS record.
const WRITE_BUFFER: usize = 16 * 1024;

/// One WebSocket as quinn's socket sees it.
#[derive(Debug)]
pub(super) struct Line {
    /// The address that quinn knows it by.
    pub(super) address: SocketAddr,
    /// The address that the far end really has.
    pub(super) peer: SocketAddr,
    /// How far it leads.
    pub(super) reach: Reach,
    /// Who controls congestion on it.
    pub(super) congestion: CongestionControl,
    pub(super) queue: Arc<Queue>,
    answered: AtomicBool,
    /// Messages that have come from the far end.
    received: AtomicU64,
    /// Bytes that the network has taken.
    written: Arc<AtomicU64>,
}

impl Line {
    pub(super) fn new(
        address: SocketAddr,
        peer: SocketAddr,
        reach: Reach,
        congestion: CongestionControl,
    ) -> Self {
        Self {
            address,
            peer,
            reach,
            congestion,
            queue: Arc::new(Queue::new(reach)),
            answered: AtomicBool::new(false),
            received: AtomicU64::new(0),
            written: Arc::default(),
        }
    }

    /// Note that quinn has something to say to the far end, which therefore speaks QUIC.
    pub(super) fn answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }
}

/// Why a WebSocket has ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error("closed by the far end")]
    Closed,
    #[error("connection lost: {0}")]
    Lost(#[source] Error),
    #[error("no QUIC within {} s", SPEAK_QUIC_WITHIN.as_secs())]
    NeverSpokeQuic,
    #[error("nothing received for {} s", IDLE.as_secs())]
    Idle,
    #[error("nothing could be sent for {} s", STUCK.as_secs())]
    Stuck,
    #[error("text message received")]
    Text,
    #[error("message longer than {} bytes received", DATAGRAMS_HEADER + DATAGRAMS_LIMIT)]
    TooLong,
    #[error("malformed message received: {0}")]
    Malformed(#[from] DatagramsError),
    #[error("the endpoint is gone")]
    NoEndpoint,
}

impl From<Error> for Ended {
    fn from(err: Error) -> Self {
        match err {
            Error::ConnectionClosed | Error::AlreadyClosed => Self::Closed,
            Error::Capacity(CapacityError::MessageTooLong { .. }) => Self::TooLong,
            Error::Utf8(_) => Self::Text,
            other => Self::Lost(other),
        }
    }
}

impl Ended {
    /// What to tell the far end (RFC 6455 §7.4.1); nothing if it is not listening.
    fn code(&self) -> Option<CloseCode> {
        match self {
            Self::Closed | Self::Lost(_) | Self::Stuck => None,
            Self::NeverSpokeQuic | Self::Malformed(_) => Some(CloseCode::Policy),
            Self::Text => Some(CloseCode::Unsupported),
            Self::TooLong => Some(CloseCode::Size),
            Self::Idle | Self::NoEndpoint => Some(CloseCode::Away),
        }
    }
}

/// What both ends expect of the framing.
pub(super) fn framing() -> WebSocketConfig {
    let longest = DATAGRAMS_HEADER + DATAGRAMS_LIMIT;
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(WRITE_BUFFER + 4 * longest)
        .max_message_size(Some(longest))
        .max_frame_size(Some(longest))
}

/// Move packets both ways over an upgraded connection until it ends, and say why.
pub(super) async fn run<S>(io: S, role: Role, line: &Line, arrivals: mpsc::Sender<Arrival>) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let io = Meter::new(io, line.written.clone());
    let ws = WebSocketStream::from_raw_socket(io, role, Some(framing())).await;
    let (mut sink, stream) = ws.split();
    let ended = tokio::select! {
        biased;
        ended = receive(stream, line, arrivals) => ended,
        ended = send(&mut sink, line) => ended,
        ended = watch(line) => ended,
    };
    if let Some(code) = ended.code() {
        let reason = ended.to_string().into();
        let close = Message::Close(Some(CloseFrame { code, reason }));
        // The far end may be gone; it has been told if it is there.
        let _ = timeout(CLOSE, sink.send(close)).await;
    }
    ended
}

async fn receive(
    mut stream: impl Stream<Item = Result<Message, Error>> + Unpin,
    line: &Line,
    arrivals: mpsc::Sender<Arrival>,
) -> Ended {
    loop {
        let datagrams = match stream.next().await {
            Some(Ok(Message::Binary(message))) => match Datagrams::decode(message) {
                Ok(datagrams) => datagrams,
                Err(err) => return err.into(),
            },
            Some(Ok(Message::Text(_))) => return Ended::Text,
            // tungstenite answers pings and close frames by itself.
            Some(Ok(_)) => continue,
            Some(Err(err)) => return err.into(),
            None => return Ended::Closed,
        };
        line.received.fetch_add(1, Ordering::Relaxed);
        let arrival = Arrival {
            from: line.address,
            datagrams,
        };
        if arrivals.send(arrival).await.is_err() {
            return Ended::NoEndpoint;
        }
    }
}

async fn send(sink: &mut (impl Sink<Message, Error = Error> + Unpin), line: &Line) -> Ended {
    loop {
        let message = match line.queue.try_pop() {
            Some(message) => message,
            None => {
                if let Err(ended) = patiently(line, sink.flush()).await {
                    return ended;
                }
                line.queue.pop().await
            }
        };
        if let Err(ended) = patiently(line, sink.feed(Message::Binary(message))).await {
            return ended;
        }
    }
}

/// Finish a write. While it makes no progress the queue is a hole, and in the end it is given up.
async fn patiently(
    line: &Line,
    write: impl Future<Output = Result<(), Error>>,
) -> Result<(), Ended> {
    let mut write = pin!(write);
    let mut written = line.written.load(Ordering::Relaxed);
    let mut stalled = Duration::ZERO;
    loop {
        if let Ok(done) = timeout(STALL, &mut write).await {
            if stalled > Duration::ZERO {
                line.queue.mend();
            }
            return Ok(done?);
        }
        let now = line.written.load(Ordering::Relaxed);
        if now != written {
            written = now;
            stalled = Duration::ZERO;
            line.queue.mend();
            continue;
        }
        stalled += STALL;
        if stalled >= STUCK {
            return Err(Ended::Stuck);
        }
        line.queue.become_hole();
    }
}

/// End a WebSocket that nobody uses for QUIC.
async fn watch(line: &Line) -> Ended {
    sleep(SPEAK_QUIC_WITHIN).await;
    if !line.answered.load(Ordering::Relaxed) {
        return Ended::NeverSpokeQuic;
    }
    loop {
        let before = line.received.load(Ordering::Relaxed);
        sleep(IDLE).await;
        if line.received.load(Ordering::Relaxed) == before {
            return Ended::Idle;
        }
    }
}
