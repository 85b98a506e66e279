//! The receiving half of a conversation's stream.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use quinn::{ReadError, RecvStream};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::ahead::Ahead;
use super::flow::{Crowded, Exceeded, ReceiveWindow, SharedWindow, Unread};
use crate::http::hygiene::sanitize_trailers;
use crate::proto;
use crate::proto::{BodyDecoder, BodyLength, Check, HEAD_LIMIT, Head, Reset, Splitter, WireError};

/// Receive the next message of a stream, of which the splitter keeps the beginning; `None` at the stream's
/// end. May be cancelled.
///
/// # Errors
/// If the stream breaks, or the bytes are not a [checked](Check) message of at most that length.
pub async fn next_message<T, E>(
    stream: &mut RecvStream,
    splitter: &mut Splitter,
    limit: usize,
) -> Result<Option<T>, E>
where
    T: DeserializeOwned + Check,
    E: From<WireError> + From<ReadError>,
{
    loop {
        if let Some(message) = splitter.next(limit)? {
            let message: T = proto::decode(&message)?;
            message.check()?;
            return Ok(Some(message));
        }
        match stream.read_chunk(limit, true).await? {
            Some(chunk) => splitter.push(&chunk.bytes),
            None => return Ok(None),
        }
    }
}

/// Receives heads, and then a body or raw bytes.
pub struct Receiver {
    stream: RecvStream,
    window: SharedWindow,
    splitter: Splitter,
    /// Raw bytes that were taken off the stream to see how many there are.
    ahead: Option<Box<Ahead<Result<(), ReceiveError>>>>,
}

impl Receiver {
    /// Take over a stream at its beginning.
    pub fn new(stream: RecvStream, window: ReceiveWindow) -> Self {
        Self {
            stream,
            window: SharedWindow::new(window),
            splitter: Splitter::default(),
            ahead: None,
        }
    }

    /// Set what the sender may send of the body before it is told more.
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
                let head: T = proto::decode(&head)?;
                head.check()?;
                return Ok(head);
            }
            if let (None, Some(length)) = (&large, self.splitter.announced())
                && length > HEAD_LIMIT
            {
                large = Some(self.window.large_head(length)?);
            }
            match self.stream.read_chunk(HEAD_READ, true).await? {
                Some(chunk) => self.splitter.push(&chunk.bytes),
                None => return Err(WireError::Truncated.into()),
            }
        }
    }

    /// Go on with the body that follows the head.
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
            self.violated(err);
            let _ = self.stream.stop(Reset::Protocol.code());
        }
        received
    }

    async fn next_raw(&mut self) -> Result<Option<Unread>, ReceiveError> {
        let rest = std::mem::take(&mut self.splitter).into_rest();
        let ahead = self.ahead.as_mut();
        let piece = if !rest.is_empty() {
            self.window.receive(rest)?
        } else if let Some(piece) = ahead.and_then(|ahead| ahead.next(RAW_READ)) {
            piece
        } else if let Some(end) = self.ahead.as_mut().and_then(|ahead| ahead.end()) {
            return end.map(|()| None);
        } else {
            match self.stream.read_chunk(RAW_READ, true).await? {
                Some(chunk) => self.window.receive(chunk.bytes)?,
                None => return Ok(None),
            }
        };
        poll_fn(|cx| Poll::Ready(self.look_ahead(cx))).await?;
        Ok(Some(piece))
    }

    /// Take what has come off the stream, before anything is read that lets the sender send more: nobody but a
    /// liar has sent more than the window by now.
    fn look_ahead(&mut self, cx: &mut Context<'_>) -> Result<(), Exceeded> {
        while !self.ahead.as_ref().is_some_and(|ahead| ahead.has_ended()) {
            let Poll::Ready(read) = pin!(self.stream.read_chunk(RAW_READ, true)).poll(cx) else {
                break;
            };
            let new = || Box::new(Ahead::new(self.window.clone()));
            let ahead = self.ahead.get_or_insert_with(new);
            match read {
                Ok(Some(chunk)) => ahead.push(chunk.bytes)?,
                Ok(None) => ahead.finish(Ok(())),
                Err(err) => ahead.finish(Err(err.into())),
            }
        }
        Ok(())
    }

    /// Note that the other end has broken the protocol on this stream.
    pub fn violated(&self, what: &dyn std::fmt::Display) {
        self.window.violated(what);
    }

    /// Say that nothing more is wanted, if anything is still coming.
    pub fn refuse(mut self, reset: Reset) {
        // It fails only if the stream is closed already.
        let _ = self.stream.stop(reset.code());
    }
}

/// A body that arrives through the tunnel. Dropped early, it tells the sender to stop.
pub struct TunnelBody {
    stream: RecvStream,
    window: SharedWindow,
    decoder: BodyDecoder,
    /// What a known length leaves to come off the stream.
    left: Option<u64>,
    ended: bool,
    /// What came after the last byte that was announced: an error, or trailers.
    next: Option<Box<Result<Frame<Unread>, ReceiveError>>>,
    /// What was taken off the stream to see how much there is.
    ahead: Option<Box<Ahead<Option<Result<proto::Frame, ReceiveError>>>>>,
    /// Trailers, until it is certain that nothing follows them.
    trailers: Option<Box<HeaderMap>>,
    /// Whether the sender has broken the protocol.
    violated: bool,
    activity: Arc<Activity>,
}

impl TunnelBody {
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Unread>, ReceiveError>>> {
        let most = match self.window.is_scarce() {
            true => SCARCE_READ,
            false => RAW_READ,
        };
        let piece = loop {
            let ahead = self.ahead.as_mut();
            if let Some(piece) = ahead.and_then(|ahead| ahead.next(most)) {
                break piece;
            }
            let next = match self.ahead.as_mut().and_then(|ahead| ahead.end()) {
                Some(end) => end,
                None => ready!(self.poll_stream(cx, most)),
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
        self.look_ahead(cx)?;
        self.activity.record(piece.len());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    /// Take what has come off the stream, before anything is read that lets the sender send more: nobody but a
    /// liar has sent more than the window by now.
    fn look_ahead(&mut self, cx: &mut Context<'_>) -> Result<(), Exceeded> {
        while !self.ahead.as_ref().is_some_and(|ahead| ahead.has_ended()) {
            let Poll::Ready(next) = self.poll_stream(cx, RAW_READ) else {
                break;
            };
            let new = || Box::new(Ahead::new(self.window.clone()));
            let ahead = self.ahead.get_or_insert_with(new);
            match next {
                Some(Ok(proto::Frame::Data(data))) => ahead.push(data)?,
                end => ahead.finish(end),
            }
        }
        Ok(())
    }

    /// Decode what comes next on the stream.
    fn poll_stream(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
    ) -> Poll<Option<Result<proto::Frame, ReceiveError>>> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                if let (proto::Frame::Data(data), Some(left)) = (&frame, &mut self.left) {
                    *left = left
                        .checked_sub(data.len() as u64)
                        .ok_or(ReceiveError::Length)?;
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            // The future keeps no state between polls, so it may be made anew for each.
            match ready!(pin!(self.stream.read_chunk(most, true)).poll(cx))? {
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

    /// What is here and not given out yet, in bytes.
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
            // The end came with the last piece, most likely: then whoever writes it knows at once.
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
            self.window.violated(err);
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
            // Whoever knows the length stops reading when it is reached, before the stream's own end.
            let reset = match self.left {
                Some(0) if self.waiting() == 0 => Reset::Enough,
                _ => Reset::Gone,
            };
            // It fails only if the stream is closed already.
            let _ = self.stream.stop(reset.code());
        }
    }
}

/// When and how much a body has moved, for timeouts and logs.
#[derive(Debug)]
pub struct Activity {
    started: Instant,
    bytes: AtomicU64,
    /// Milliseconds from the start to the last movement.
    moved: AtomicU64,
}

impl Activity {
    /// Begin to count.
    pub fn start() -> Self {
        Self {
            started: Instant::now(),
            bytes: AtomicU64::new(0),
            moved: AtomicU64::new(0),
        }
    }

    /// Note that bytes have moved.
    pub fn record(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.moved
            .store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Return how many bytes have moved.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Return when bytes moved last (or the counting began).
    pub fn last(&self) -> Instant {
        self.started + Duration::from_millis(self.moved.load(Ordering::Relaxed))
    }
}

/// Why receiving ended early.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The other end gave up, or the session was lost.
    #[error("the tunnel's stream ended")]
    Stream(#[from] ReadError),
    /// The bytes do not follow the protocol, or end where they must not.
    #[error("the tunnel's stream is not understood")]
    Wire(#[from] WireError),
    /// The body is not as long as its head said.
    #[error("the body's length differs from what was announced")]
    Length,
    /// More came than was allowed.
    #[error("the other end does not keep to its window")]
    Window(#[from] Exceeded),
    /// Too many large heads are on their way at once.
    #[error("there is no room for another large head")]
    Crowded(#[from] Crowded),
}

/// The most to take from the stream at once while a head comes.
const HEAD_READ: usize = 32 << 10;
impl ReceiveError {
    /// Report whether no honest end would send this. A stream that ends too early is how one gives up.
    pub fn is_violation(&self) -> bool {
        match self {
            Self::Wire(WireError::Truncated) | Self::Stream(_) | Self::Crowded(_) => false,
            Self::Wire(_) | Self::Length | Self::Window(_) => true,
        }
    }
}

/// The most to take from the stream at once: what quinn has in one piece is smaller anyway.
const RAW_READ: usize = 64 << 10;

/// What a slow reader's body is read by while there is little room for windows: hyper takes up to sixteen pieces of
/// it off our hands, and out of the windows that count what waits.
const SCARCE_READ: usize = 512;
