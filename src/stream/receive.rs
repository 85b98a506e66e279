//! Receiving half of a conversation's stream.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::http::HeaderMap;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use quinn::{ReadError, RecvStream};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::flow::{LargeHeadsFull, ReceiveWindow, SharedWindow, Unread, WindowExceeded};
use super::read_ahead::ReadAhead;
use crate::http::hygiene::sanitize_trailers;
use crate::proto;
use crate::proto::{
    BodyDecoder, BodyLength, Check, HEAD_LIMIT, Head, Reset, Splitter, Variants, WireError,
};

/// Receive the next message of a stream, or `None` at the stream's end. Messages of a kind that only
/// later versions know are skipped. Cancel-safe: the splitter keeps what has arrived of a message.
///
/// # Errors
/// If the stream fails, or the bytes are not a [valid](Check) message of at most `limit` bytes.
pub async fn next_message<T, E>(
    stream: &mut RecvStream,
    splitter: &mut Splitter,
    limit: usize,
) -> Result<Option<T>, E>
where
    T: DeserializeOwned + Check + Variants,
    E: From<WireError> + From<ReadError>,
{
    while let Some(payload) = next_payload::<E>(stream, splitter, limit).await? {
        if let Some(message) = proto::decode_known::<T>(&payload)? {
            message.check()?;
            return Ok(Some(message));
        }
    }
    Ok(None)
}

/// Receive the next message of a stream, which must be of a known kind, or `None` at the stream's end.
/// Cancel-safe, as [`next_message`].
///
/// # Errors
/// Those of [`next_message`], and [`WireError::Unknown`].
pub async fn first_message<T, E>(
    stream: &mut RecvStream,
    splitter: &mut Splitter,
    limit: usize,
) -> Result<Option<T>, E>
where
    T: DeserializeOwned + Check + Variants,
    E: From<WireError> + From<ReadError>,
{
    let Some(payload) = next_payload::<E>(stream, splitter, limit).await? else {
        return Ok(None);
    };
    let message = proto::decode_known::<T>(&payload)?.ok_or(WireError::Unknown)?;
    message.check()?;
    Ok(Some(message))
}

async fn next_payload<E>(
    stream: &mut RecvStream,
    splitter: &mut Splitter,
    limit: usize,
) -> Result<Option<Bytes>, E>
where
    E: From<WireError> + From<ReadError>,
{
    loop {
        if let Some(payload) = splitter.next(limit)? {
            return Ok(Some(payload));
        }
        match stream.read_chunk(limit, true).await? {
            Some(chunk) => splitter.push(&chunk.bytes),
            None => return Ok(None),
        }
    }
}

/// Receiving half of a stream: heads, and then a body or raw bytes.
pub struct Receiver {
    stream: RecvStream,
    window: SharedWindow,
    splitter: Splitter,
    /// Raw bytes read from the stream before their reader asked for them, and what ended them.
    ahead: Option<Box<ReadAhead<Result<(), ReceiveError>>>>,
}

impl Receiver {
    /// Wrap a stream from which nothing has been read yet.
    pub fn new(stream: RecvStream, window: ReceiveWindow) -> Self {
        Self {
            stream,
            window: SharedWindow::new(window),
            splitter: Splitter::default(),
            ahead: None,
        }
    }

    /// Set the initial window that the sender has for the body, in bytes.
    pub fn open(&mut self, window: u64) {
        self.window.open(window);
    }

    /// Return the window in which unread bytes count.
    pub fn window(&self) -> SharedWindow {
        self.window.clone()
    }

    /// Receive the next head.
    ///
    /// # Errors
    /// If the stream ends first, or the bytes are not a head.
    pub async fn head<T: Head + Check>(&mut self) -> Result<T, ReceiveError> {
        let mut large = None;
        loop {
            if let Some(head) = self.splitter.next(T::LIMIT)? {
                let head: T = proto::decode_known(&head)?.ok_or(WireError::Unknown)?;
                head.check()?;
                return Ok(head);
            }
            if let (None, Some(length)) = (&large, self.splitter.announced())
                && length > HEAD_LIMIT
            {
                large = Some(self.window.large_head(length)?);
            }
            match self.stream.read_chunk(MAX_HEAD_READ, true).await? {
                Some(chunk) => self.splitter.push(&chunk.bytes),
                None => return Err(WireError::Truncated.into()),
            }
        }
    }

    /// Continue with the body that follows the head.
    pub fn into_body(self, length: BodyLength, activity: Arc<Activity>) -> TunnelBody {
        let left = match length {
            BodyLength::Empty => Some(0),
            BodyLength::Known(length) => Some(length),
            BodyLength::Unknown => None,
        };
        if let Some(length) = left {
            self.window.expect(length);
        }
        TunnelBody {
            stream: self.stream,
            window: self.window,
            decoder: BodyDecoder::new(self.splitter.into_rest()),
            left,
            ended: length == BodyLength::Empty,
            next: None,
            ahead: None,
            trailers: None,
            violated: false,
            activity,
        }
    }

    /// Receive the next raw bytes, after an upgrade; `None` is the other end's half-close.
    ///
    /// # Errors
    /// If the other end is gone, or sends more than it may.
    pub async fn raw(&mut self) -> Result<Option<Unread>, ReceiveError> {
        let received = self.next_raw().await;
        if let Err(err) = &received
            && err.is_violation()
        {
            self.report_violation(err);
            let _ = self.stream.stop(Reset::Protocol.code());
        }
        received
    }

    async fn next_raw(&mut self) -> Result<Option<Unread>, ReceiveError> {
        let rest = std::mem::take(&mut self.splitter).into_rest();
        let ahead = self.ahead.as_mut();
        let piece = if !rest.is_empty() {
            self.window.receive(rest)?
        } else if let Some(piece) = ahead.and_then(|ahead| ahead.next(MAX_READ)) {
            piece
        } else if let Some(end) = self.ahead.as_mut().and_then(|ahead| ahead.end()) {
            return end.map(|()| None);
        } else {
            match self.stream.read_chunk(MAX_READ, true).await? {
                Some(chunk) => self.window.receive(chunk.bytes)?,
                None => return Ok(None),
            }
        };
        poll_fn(|cx| Poll::Ready(self.read_ahead(cx))).await?;
        Ok(Some(piece))
    }

    /// Read everything that has arrived, before a piece is given out whose reader lets the sender
    /// send more: what exceeds the window until then was sent against the protocol.
    fn read_ahead(&mut self, cx: &mut Context<'_>) -> Result<(), WindowExceeded> {
        while !self.ahead.as_ref().is_some_and(|ahead| ahead.has_ended()) {
            let Poll::Ready(read) = pin!(self.stream.read_chunk(MAX_READ, true)).poll(cx) else {
                break;
            };
            let new = || Box::new(ReadAhead::new(self.window.clone()));
            let ahead = self.ahead.get_or_insert_with(new);
            match read {
                Ok(Some(chunk)) => ahead.push(chunk.bytes)?,
                Ok(None) => ahead.finish(Ok(())),
                Err(err) => ahead.finish(Err(err.into())),
            }
        }
        Ok(())
    }

    /// Report that the other end has violated the protocol on this stream.
    pub fn report_violation(&self, what: &dyn std::fmt::Display) {
        self.window.report_violation(what);
    }

    /// Stop the stream with this code (STOP_SENDING).
    pub fn stop(mut self, reset: Reset) {
        // Fails only if the stream is already closed.
        let _ = self.stream.stop(reset.code());
    }
}

/// Body that arrives through the tunnel. Dropped early, it stops the sender.
pub struct TunnelBody {
    stream: RecvStream,
    window: SharedWindow,
    decoder: BodyDecoder,
    /// Bytes still to be read from the stream, if the length is known.
    left: Option<u64>,
    ended: bool,
    /// Error or trailers that came after the last announced byte.
    next: Option<Box<Result<Frame<Unread>, ReceiveError>>>,
    /// Frames read from the stream before their reader asked for them, and what ended them.
    ahead: Option<Box<ReadAhead<NextFrame>>>,
    /// Trailers, until it is certain that nothing follows them.
    trailers: Option<Box<HeaderMap>>,
    /// Set once the sender has violated the protocol.
    violated: bool,
    activity: Arc<Activity>,
}

impl TunnelBody {
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Unread>, ReceiveError>>> {
        let limit = match self.window.is_scarce() {
            true => SCARCE_READ,
            false => MAX_READ,
        };
        let piece = loop {
            let ahead = self.ahead.as_mut();
            if let Some(piece) = ahead.and_then(|ahead| ahead.next(limit)) {
                break piece;
            }
            let next = match self.ahead.as_mut().and_then(|ahead| ahead.end()) {
                Some(end) => end,
                None => ready!(self.poll_stream(cx, limit)),
            };
            match next {
                Some(Ok(proto::Frame::Data(data))) => break self.window.receive(data)?,
                Some(Ok(proto::Frame::Trailers(mut fields))) => {
                    sanitize_trailers(&mut fields);
                    self.trailers = Some(Box::new(fields));
                }
                Some(Err(err)) => return Poll::Ready(Some(Err(err))),
                None => {
                    let trailers = self.trailers.take();
                    return Poll::Ready(trailers.map(|fields| Ok(Frame::trailers(*fields))));
                }
            }
        };
        self.read_ahead(cx)?;
        self.activity.record(piece.len());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    /// Read everything that has arrived, before a piece is given out whose reader lets the sender
    /// send more: what exceeds the window until then was sent against the protocol.
    fn read_ahead(&mut self, cx: &mut Context<'_>) -> Result<(), WindowExceeded> {
        while !self.ahead.as_ref().is_some_and(|ahead| ahead.has_ended()) {
            let Poll::Ready(next) = self.poll_stream(cx, MAX_READ) else {
                break;
            };
            let new = || Box::new(ReadAhead::new(self.window.clone()));
            let ahead = self.ahead.get_or_insert_with(new);
            match next {
                Some(Ok(proto::Frame::Data(data))) => ahead.push(data)?,
                end => ahead.finish(end),
            }
        }
        Ok(())
    }

    /// Read and decode the next frame of the stream.
    fn poll_stream(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<NextFrame> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                if let (proto::Frame::Data(data), Some(left)) = (&frame, &mut self.left) {
                    *left = left
                        .checked_sub(data.len() as u64)
                        .ok_or(ReceiveError::Length)?;
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            // The future keeps no state between polls, so a new one may be made for each.
            match ready!(pin!(self.stream.read_chunk(limit, true)).poll(cx))? {
                Some(chunk) => self.decoder.push(chunk.bytes),
                None => {
                    self.decoder.finish()?;
                    if self.left.is_some_and(|left| left > 0) {
                        return Poll::Ready(Some(Err(ReceiveError::Length)));
                    }
                    return Poll::Ready(None);
                }
            }
        }
    }

    /// Return the number of bytes that were read ahead and not given out yet.
    fn waiting(&self) -> u64 {
        self.ahead.as_ref().map_or(0, |ahead| ahead.len())
    }
}

impl Body for TunnelBody {
    type Data = Unread;
    type Error = ReceiveError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Unread>, ReceiveError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = match self.next.take() {
            Some(frame) => Some(*frame),
            None => ready!(self.poll_next(cx)),
        };
        self.ended = !matches!(frame, Some(Ok(_)));
        if self.left == Some(0) && self.waiting() == 0 && !self.ended {
            // The end has most likely come with the last piece: report it together with that piece.
            match self.poll_next(cx) {
                Poll::Ready(None) => self.ended = true,
                Poll::Ready(Some(more)) => self.next = Some(Box::new(more)),
                Poll::Pending => {}
            }
        }
        if self.ended {
            self.activity.record(0);
        }
        if let Some(Err(err)) = &frame
            && err.is_violation()
        {
            self.violated = true;
            self.window.report_violation(err);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            Some(left) => SizeHint::with_exact(left + self.waiting()),
            None => SizeHint::default(),
        }
    }
}

impl Drop for TunnelBody {
    fn drop(&mut self) {
        self.window.close();
        if self.violated {
            let _ = self.stream.stop(Reset::Protocol.code());
        } else if !self.ended {
            // A reader that knows the length stops reading there, before the stream's own end.
            let reset = match self.left {
                Some(0) if self.waiting() == 0 => Reset::Enough,
                _ => Reset::Gone,
            };
            // Fails only if the stream is already closed.
            let _ = self.stream.stop(reset.code());
        }
    }
}

/// Next frame of a body, an error, or the end of the stream.
type NextFrame = Option<Result<proto::Frame, ReceiveError>>;

/// Bytes that a body has moved, and when, for timeouts and logs.
#[derive(Debug)]
pub struct Activity {
    started: Instant,
    bytes: AtomicU64,
    /// Milliseconds from the start to the last movement.
    moved: AtomicU64,
}

impl Activity {
    /// Start counting.
    pub fn start() -> Self {
        Self {
            started: Instant::now(),
            bytes: AtomicU64::new(0),
            moved: AtomicU64::new(0),
        }
    }

    /// Record that bytes have moved.
    pub fn record(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.moved
            .store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Return the number of bytes moved.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Return when bytes were last moved (or counting started).
    pub fn last(&self) -> Instant {
        self.started + Duration::from_millis(self.moved.load(Ordering::Relaxed))
    }
}

/// Error that ended receiving early.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The other end gave up, or the session was lost.
    #[error("the tunnel's stream ended")]
    Stream(#[from] ReadError),
    /// The bytes violate the protocol, or end in the wrong place.
    #[error("the tunnel's stream violates the protocol")]
    Wire(#[from] WireError),
    /// The body's length differs from the head's.
    #[error("the body's length differs from the announced length")]
    Length,
    /// The sender exceeded the window.
    #[error("the other end exceeded its window")]
    Window(#[from] WindowExceeded),
    /// Too many large heads are arriving at once.
    #[error("no memory is left for another large head")]
    LargeHeads(#[from] LargeHeadsFull),
}

impl ReceiveError {
    /// Report whether no correct implementation would send this. A truncated stream is no
    /// violation: it is how a sender gives up.
    pub fn is_violation(&self) -> bool {
        match self {
            Self::Wire(WireError::Truncated) | Self::Stream(_) | Self::LargeHeads(_) => false,
            Self::Wire(_) | Self::Length | Self::Window(_) => true,
        }
    }
}

/// Most bytes to read from the stream at once while a head arrives.
const MAX_HEAD_READ: usize = 32 << 10;

/// Most bytes to read from the stream at once: quinn's chunks are smaller anyway.
const MAX_READ: usize = 64 << 10;

/// Bytes to read at once for a slow reader while window memory is scarce: hyper queues up to
/// sixteen pieces, which then no longer count in the window.
const SCARCE_READ: usize = 512;
