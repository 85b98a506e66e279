//! The sending half of a conversation's stream.

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
use crate::proto::{Head, Reset, WireError};

/// Sends heads and bodies, and makes sure that what is given up looks given up: dropped before
/// [`finish`](Self::finish), the stream is reset.
pub struct Sender {
    stream: SendStream,
    window: SendWindow,
    rank: Rank,
    /// A head that has not been sent yet.
    held: Option<Bytes>,
    finished: bool,
}

impl Sender {
    /// Take over a stream at its beginning.
    pub fn new(stream: SendStream, window: SendWindow) -> Self {
        Self {
            stream,
            window,
            rank: Rank::Fresh,
            held: None,
            finished: false,
        }
    }

    /// Set what the receiver takes of the body before it says more.
    pub fn open(&mut self, window: u64) {
        self.window.open(window);
    }

    /// Send a head.
    ///
    /// # Errors
    /// [`SendError::Wire`] if it is none that the receiver takes; nothing is sent then.
    pub async fn head<T: Head>(&mut self, head: &T) -> Result<(), SendError> {
        self.stream.write_chunk(encode(head)?).await?;
        Ok(())
    }

    /// Send a head together with the beginning of the [`body`](Self::body) that is to follow, if
    /// that is about to come: one packet instead of two, and one wake-up at the other end.
    ///
    /// # Errors
    /// [`SendError::Wire`] if it is none that the receiver takes; nothing is sent then.
    pub fn head_with_body<T: Head>(&mut self, head: &T) -> Result<(), SendError> {
        self.held = Some(encode(head)?);
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
                        // Boxed, like what is rare below: every conversation's task would have room for it.
                        Box::pin(self.trailers(fields)).await?;
                    }
                }
            }
            // Then the end goes with the last piece.
            if body.is_end_stream() {
                break;
            }
        }
        self.end().await
    }

    /// Send the head that was held, if there still is one, and finish the stream.
    ///
    /// # Errors
    /// If the receiver stops reading or the session is lost.
    pub async fn end(&mut self) -> Result<(), SendError> {
        self.release().await?;
        self.mark_end();
        Ok(())
    }

    async fn trailers(&mut self, mut fields: HeaderMap) -> Result<(), SendError> {
        self.release().await?;
        sanitize_trailers(&mut fields);
        self.stream.write_chunk(proto::trailers(fields)?).await?;
        Ok(())
    }

    /// Send data, in as many frames as the window asks for.
    async fn data(&mut self, mut data: Bytes) -> Result<(), SendError> {
        while !data.is_empty() {
            let piece = self.window_of(&mut data).await?;
            let header = proto::data_header(piece.len());
            let head = self.held.take().unwrap_or_default();
            self.write(&mut [head, header, piece]).await?;
        }
        Ok(())
    }

    /// Write chunks, and see to the stream's rank.
    async fn write(&mut self, chunks: &mut [Bytes]) -> Result<(), SendError> {
        if self.window.sent() <= FRESH {
            return Ok(self.stream.write_all_chunks(chunks).await?);
        }
        match self.rank {
            Rank::Fresh => self.rank_as(Rank::Bulk),
            Rank::Starved { until } if self.window.sent() > until => self.rank_as(Rank::Bulk),
            Rank::Starved { .. } | Rank::Bulk => {}
        }
        if self.rank == Rank::Bulk {
            // What is left to be written after that is in the chunks.
            if let Ok(written) = timeout(STARVED, self.stream.write_all_chunks(chunks)).await {
                return Ok(written?);
            }
            self.starved();
        }
        Ok(self.stream.write_all_chunks(chunks).await?)
    }

    /// Let fresh streams go first no longer: there are so many of them that nothing of this one moves.
    fn starved(&mut self) {
        let until = self.window.sent() + FRESH;
        self.rank_as(Rank::Starved { until });
    }

    fn rank_as(&mut self, rank: Rank) {
        self.rank = rank;
        // It fails only if the stream is closed already.
        let _ = self.stream.set_priority(match rank {
            Rank::Fresh | Rank::Starved { .. } => 0,
            Rank::Bulk => -1,
        });
    }

    /// Take from the data what may be sent, and wait for that if need be.
    async fn window_of(&mut self, data: &mut Bytes) -> Result<Bytes, SendError> {
        loop {
            let allowed = self.window.take(data.len());
            if allowed > 0 {
                return Ok(data.split_to(allowed));
            }
            Box::pin(self.wait_for_window()).await?;
        }
    }

    async fn wait_for_window(&mut self) -> Result<(), SendError> {
        self.release().await?;
        let stopped = self.stream.stopped();
        tokio::select! {
            () = self.window.raised() => Ok(()),
            () = sleep(STARVED), if self.rank == Rank::Bulk => {
                self.starved();
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

    /// Take the next frame, and let a head go that has waited in vain for the first one: data that
    /// came with the head of a response is here after one turn of the runtime.
    async fn next_frame<B>(
        &mut self,
        body: &mut B,
    ) -> Result<Option<Result<Frame<Bytes>, B::Error>>, SendError>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let mut next = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx));
        if self.held.is_some() {
            tokio::select! {
                biased;
                frame = &mut next => return Ok(frame),
                () = tokio::task::yield_now() => Box::pin(self.release()).await?,
            }
        }
        Ok(next.await)
    }

    /// Send the head that was held.
    async fn release(&mut self) -> Result<(), SendError> {
        if let Some(head) = self.held.take() {
            self.stream.write_chunk(head).await?;
        }
        Ok(())
    }

    /// Send bytes as they are, after an upgrade.
    ///
    /// # Errors
    /// If the receiver stops reading or the session is lost.
    pub async fn raw(&mut self, mut bytes: Bytes) -> Result<(), SendError> {
        while !bytes.is_empty() {
            let piece = self.window_of(&mut bytes).await?;
            self.write(&mut [piece]).await?;
        }
        Ok(())
    }

    /// End the stream as one on which the other end has broken the protocol.
    pub fn reset(mut self, reset: Reset) {
        self.finished = true;
        // It fails only if the stream is closed already.
        let _ = self.stream.reset(reset.code());
    }

    /// End the stream: all that was sent is complete. After an upgrade this is a half-close.
    pub fn finish(mut self) {
        self.mark_end();
    }

    fn mark_end(&mut self) {
        self.finished = true;
        if self.rank == Rank::Bulk {
            // Nobody will see then whether the rest of it moves.
            self.rank_as(Rank::Fresh);
        }
        // It fails only if the receiver has stopped reading, and then it knows.
        let _ = self.stream.finish();
        self.window.ended();
    }

    /// Wait until the receiver is gone.
    pub fn gone(&self) -> impl Future<Output = ()> + Send + use<> {
        let stopped = self.stream.stopped();
        async move {
            match stopped.await {
                // All was finished and acknowledged, or as much of it as the receiver needs.
                Ok(None) => std::future::pending().await,
                Ok(Some(code)) if code == Reset::Enough.code() => std::future::pending().await,
                Ok(Some(_)) | Err(_) => {}
            }
        }
    }
}

/// Which streams go first: those that have sent little, before those that have sent much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rank {
    /// So little has been sent that it may be a short answer.
    Fresh,
    /// The others go first.
    Bulk,
    /// The others took all there was: for that many bytes, this goes in turn with them.
    Starved { until: u64 },
}

impl Drop for Sender {
    fn drop(&mut self) {
        if !self.finished {
            // It fails only if the stream is closed already.
            let _ = self.stream.reset(Reset::Gone.code());
        }
    }
}

/// Encode a head that was made of what strangers say, if the receiver will not take it for a breach of the
/// protocol.
fn encode<T: Head>(head: &T) -> Result<Bytes, WireError> {
    head.check()?;
    proto::encode(head, T::LIMIT)
}

/// Why sending ended early.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The other end stopped reading, or the session was lost.
    #[error("the tunnel's stream ended")]
    Stream(#[from] WriteError),
    /// The body broke off at its source.
    #[error("the body broke off")]
    Body(#[source] Box<dyn StdError + Send + Sync>),
    /// What was to be sent does not fit the wire.
    #[error("it cannot go through the tunnel")]
    Wire(#[from] WireError),
}

/// The control stream's priority, above every conversation's: what is said there must not wait behind
/// anybody's download.
pub const CONTROL_PRIORITY: i32 = 1_000;

/// What a stream sends before it is one of many bytes: most pages and what they are made of.
const FRESH: u64 = 128 << 10;

/// How long nothing of a stream may move before it need not give way any more.
const STARVED: Duration = Duration::from_secs(1);
