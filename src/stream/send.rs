//! Sending half of a conversation's stream.

use std::error::Error as StdError;
use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use quinn::{SendStream, StoppedError, WriteError};
use tokio::time::{sleep, timeout};

use super::Activity;
use super::flow::SendWindow;
use crate::http::hygiene::sanitize_trailers;
use crate::proto;
use crate::proto::{Check, Head, Reset, WireError};

/// Sending half of a stream. Dropped before [`finish`](Self::finish), it resets the stream, so that
/// the far end can tell an aborted message from a complete one.
pub struct Sender {
    stream: SendStream,
    window: SendWindow,
    priority: Priority,
    /// Encoded head, held back to be sent with the first data.
    held_head: Option<Bytes>,
    finished: bool,
}

impl Sender {
    /// Wrap a stream on which nothing has been sent yet.
    pub fn new(stream: SendStream, window: SendWindow) -> Self {
        Self {
            stream,
            window,
            priority: Priority::Fresh,
            held_head: None,
            finished: false,
        }
    }

    /// Set the initial window that the receiver has granted for the body, in bytes.
    pub fn open(&mut self, window: u64) {
        self.window.open(window);
    }

    /// Send a head.
    ///
    /// # Errors
    /// [`SendError::Wire`] if it is none that the receiver takes; nothing is sent then.
    pub async fn head<T: Head + Check>(&mut self, head: &T) -> Result<(), SendError> {
        self.stream.write_chunk(encode(head)?).await?;
        Ok(())
    }

    /// Send a head together with the start of the [`body`](Self::body) that follows, if that is
    /// available at once: one packet instead of two, and one wake-up at the other end.
    ///
    /// # Errors
    /// [`SendError::Wire`] if it is none that the receiver takes; nothing is sent then.
    pub fn head_with_body<T: Head + Check>(&mut self, head: &T) -> Result<(), SendError> {
        self.held_head = Some(encode(head)?);
        Ok(())
    }

    /// Send a body to its end, trailers included, and finish the stream.
    ///
    /// # Errors
    /// If the body breaks off, or the receiver stops reading. The truncation is then visible at
    /// the other end.
    pub async fn body<B>(&mut self, mut body: B, activity: &Activity) -> Result<(), SendError>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let mut ended = false;
        while let Some(frame) = self.next_frame(&mut body).await? {
            let frame = frame.map_err(|err| SendError::Body(err.into()))?;
            match frame.into_data() {
                Ok(data) if data.is_empty() || ended => {}
                Ok(data) => {
                    activity.record(data.len());
                    self.data(data).await?;
                }
                Err(frame) => {
                    if let Ok(fields) = frame.into_trailers()
                        && !ended
                    {
                        ended = true;
                        // Boxed, like other rare paths below, to keep the conversation's future
                        // small.
                        Box::pin(self.trailers(fields)).await?;
                    }
                }
            }
            // The end then goes with the last piece.
            if body.is_end_stream() {
                break;
            }
        }
        self.end().await
    }

    /// Send the held head, if there is one, and finish the stream.
    ///
    /// # Errors
    /// If the receiver stops reading or the session is lost.
    pub async fn end(&mut self) -> Result<(), SendError> {
        self.send_held_head().await?;
        self.mark_end();
        Ok(())
    }

    async fn trailers(&mut self, mut fields: HeaderMap) -> Result<(), SendError> {
        self.send_held_head().await?;
        sanitize_trailers(&mut fields);
        self.stream.write_chunk(proto::trailers(fields)?).await?;
        Ok(())
    }

    /// Send data, split into the frames that the window allows.
    async fn data(&mut self, mut data: Bytes) -> Result<(), SendError> {
        while !data.is_empty() {
            let piece = self.take_allowed(&mut data).await?;
            let header = proto::data_header(piece.len());
            let head = self.held_head.take().unwrap_or_default();
            self.write(&mut [head, header, piece]).await?;
        }
        Ok(())
    }

    /// Write chunks, and update the stream's priority.
    async fn write(&mut self, chunks: &mut [Bytes]) -> Result<(), SendError> {
        if self.window.sent() <= FRESH_BYTES {
            return Ok(self.stream.write_all_chunks(chunks).await?);
        }
        match self.priority {
            Priority::Fresh => self.set_priority(Priority::Bulk),
            Priority::Starved { until } if self.window.sent() > until => {
                self.set_priority(Priority::Bulk)
            }
            Priority::Starved { .. } | Priority::Bulk => {}
        }
        if self.priority == Priority::Bulk {
            // Cancel-safe: the chunks keep what is left to be written.
            if let Ok(written) =
                timeout(STARVATION_TIMEOUT, self.stream.write_all_chunks(chunks)).await
            {
                return Ok(written?);
            }
            self.boost();
        }
        Ok(self.stream.write_all_chunks(chunks).await?)
    }

    /// Give this stream the priority of fresh ones again for a while: there are so many of them
    /// that it makes no progress.
    fn boost(&mut self) {
        let until = self.window.sent() + FRESH_BYTES;
        self.set_priority(Priority::Starved { until });
    }

    fn set_priority(&mut self, priority: Priority) {
        self.priority = priority;
        // Fails only if the stream is already closed.
        let _ = self.stream.set_priority(match priority {
            Priority::Fresh | Priority::Starved { .. } => 0,
            Priority::Bulk => -1,
        });
    }

    /// Split off as much of the data as the window allows, waiting for at least one byte.
    async fn take_allowed(&mut self, data: &mut Bytes) -> Result<Bytes, SendError> {
        loop {
            let allowed = self.window.take(data.len());
            if allowed > 0 {
                return Ok(data.split_to(allowed));
            }
            Box::pin(self.wait_for_window()).await?;
        }
    }

    async fn wait_for_window(&mut self) -> Result<(), SendError> {
        self.send_held_head().await?;
        let stopped = self.stream.stopped();
        tokio::select! {
            () = self.window.raised() => Ok(()),
            () = sleep(STARVATION_TIMEOUT), if self.priority == Priority::Bulk => {
                self.boost();
                Ok(())
            }
            stopped = stopped => Err(SendError::Stream(match stopped {
                Ok(Some(code)) => WriteError::Stopped(code),
                Ok(None) => WriteError::ClosedStream,
                Err(StoppedError::ConnectionLost(err)) => WriteError::ConnectionLost(err),
                Err(StoppedError::ZeroRttRejected) => WriteError::ZeroRttRejected,
            })),
        }
    }

    /// Wait for the next frame, and send the held head if the first one is not available at once:
    /// data that arrived with a response's head is here after one turn of the runtime.
    async fn next_frame<B>(
        &mut self,
        body: &mut B,
    ) -> Result<Option<Result<Frame<Bytes>, B::Error>>, SendError>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let mut next = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx));
        if self.held_head.is_some() {
            tokio::select! {
                biased;
                frame = &mut next => return Ok(frame),
                () = tokio::task::yield_now() => Box::pin(self.send_held_head()).await?,
            }
        }
        Ok(next.await)
    }

    /// Send the held head.
    async fn send_held_head(&mut self) -> Result<(), SendError> {
        if let Some(head) = self.held_head.take() {
            self.stream.write_chunk(head).await?;
        }
        Ok(())
    }

    /// Send raw bytes, after an upgrade.
    ///
    /// # Errors
    /// If the receiver stops reading or the session is lost.
    pub async fn raw(&mut self, mut bytes: Bytes) -> Result<(), SendError> {
        while !bytes.is_empty() {
            let piece = self.take_allowed(&mut bytes).await?;
            self.write(&mut [piece]).await?;
        }
        Ok(())
    }

    /// Reset the stream with this code.
    pub fn reset(mut self, reset: Reset) {
        self.finished = true;
        // Fails only if the stream is already closed.
        let _ = self.stream.reset(reset.code());
    }

    /// Finish the stream: everything that was sent is complete. After an upgrade this is a
    /// half-close.
    pub fn finish(mut self) {
        self.mark_end();
    }

    fn mark_end(&mut self) {
        self.finished = true;
        if self.priority == Priority::Bulk {
            // Nobody will notice any more whether the rest of it makes progress.
            self.set_priority(Priority::Fresh);
        }
        // Fails only if the receiver has stopped reading, and then it knows.
        let _ = self.stream.finish();
        self.window.message_written();
    }

    /// Wait until the receiver has stopped reading or the session is lost.
    pub fn gone(&self) -> impl Future<Output = ()> + Send + use<> {
        let stopped = self.stream.stopped();
        async move {
            match stopped.await {
                // Everything was acknowledged, or the receiver needs no more.
                Ok(None) => std::future::pending().await,
                Ok(Some(code)) if code == Reset::Enough.code() => std::future::pending().await,
                Ok(Some(_)) | Err(_) => {}
            }
        }
    }
}

/// Priority class of a stream: streams that have sent little go before those that have sent much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Priority {
    /// Little has been sent yet; it may be a short response.
    Fresh,
    /// Much has been sent; fresh streams go first.
    Bulk,
    /// Starved by fresh streams: until that many bytes have been sent, it takes turns with them.
    Starved { until: u64 },
}

impl Drop for Sender {
    fn drop(&mut self) {
        if !self.finished {
            // Fails only if the stream is already closed.
            let _ = self.stream.reset(Reset::Gone.code());
        }
    }
}

/// Encode a head, if it is valid: visitors and upstreams determine what it contains, and the receiver would take
/// an invalid one for a violation of the protocol.
fn encode<T: Head + Check>(head: &T) -> Result<Bytes, WireError> {
    head.check()?;
    proto::encode(head, T::LIMIT)
}

/// Error that ended sending early.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The other end stopped reading, or the session was lost.
    #[error("the tunnel's stream ended")]
    Stream(#[from] WriteError),
    /// The source of the body failed.
    #[error("the body broke off")]
    Body(#[source] Box<dyn StdError + Send + Sync>),
    /// The head is invalid, or too large for the wire.
    #[error("it cannot go through the tunnel")]
    Wire(#[from] WireError),
}

/// Priority of the control stream, above every conversation's: its messages must not wait behind a
/// download.
pub const CONTROL_PRIORITY: i32 = 1_000;

/// Bytes after which a stream counts as bulk: most pages and their parts are smaller.
const FRESH_BYTES: u64 = 128 << 10;

/// Time without progress after which a bulk stream counts as starved.
const STARVATION_TIMEOUT: Duration = Duration::from_secs(1);
