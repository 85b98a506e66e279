//! Upgraded conversations over HTTP/2, where a stream's window may block a write although the
//! connection is sound.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::stream::Activity;

/// Raw bytes on a stream, with a timeout for writes that make no progress.
pub struct UpgradedStream<S> {
    io: S,
    limit: Duration,
    /// Set while a write waits.
    stall: Option<Pin<Box<Sleep>>>,
    activity: Arc<Activity>,
}

impl<S> UpgradedStream<S> {
    /// Limit the writes, and note what moves.
    pub fn new(io: S, limit: Duration, activity: Arc<Activity>) -> Self {
        Self {
            io,
            limit,
            stall: None,
            activity,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for UpgradedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.record(buf.filled().len() - before);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for UpgradedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        // hyper accepts a piece as a whole: with small ones, progress shows sooner.
        let piece = &buf[..buf.len().min(MAX_WRITE)];
        let written = Pin::new(&mut this.io).poll_write(cx, piece);
        if let Poll::Ready(written) = &written {
            this.stall = None;
            this.activity.record(*written.as_ref().unwrap_or(&0));
        }
        if written.is_ready() {
            return written;
        }
        let limit = this.limit;
        let stall = this.stall.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(stall.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Most bytes to write at once: one HTTP/2 frame.
const MAX_WRITE: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(90);

    #[tokio::test(start_paused = true)]
    async fn a_write_that_makes_no_progress_fails_after_the_limit() {
        let (_visitor, edge) = duplex(16);
        let mut stream = UpgradedStream::new(edge, LIMIT, Arc::new(Activity::start()));
        let started = Instant::now();

        let err = stream.write_all(&[0; 100]).await.unwrap_err();

        assert_eq!(err.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed().as_secs(), LIMIT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_makes_progress_within_the_limit_continues() {
        let (mut visitor, edge) = duplex(16);
        let mut stream = UpgradedStream::new(edge, LIMIT, Arc::new(Activity::start()));
        let reading = async {
            for _ in 0..84 {
                sleep(LIMIT - Duration::from_secs(1)).await;
                visitor.read_u8().await.unwrap();
            }
        };

        let (written, ()) = tokio::join!(stream.write_all(&[0; 100]), reading);

        written.unwrap();
    }
}
