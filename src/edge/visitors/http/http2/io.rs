//! The bytes between a visitor and hyper's HTTP/2 server, passed on unchanged and observed.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::connection::Http2Connection;

/// A connection whose frames are observed, and which is not read while too much of what it has
/// received is unread.
pub struct ObservedIo<S> {
    io: S,
    connection: Arc<Http2Connection>,
    /// Time of the next check, while the connection is not read.
    recheck: Option<Pin<Box<Sleep>>>,
}

impl<S> ObservedIo<S> {
    /// Observe the frames of a connection.
    pub fn new(io: S, connection: Arc<Http2Connection>) -> Self {
        Self {
            io,
            connection,
            recheck: None,
        }
    }

    /// Wait while too much is unread.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.connection.has_room() {
            let recheck = self
                .recheck
                .get_or_insert_with(|| Box::pin(sleep(ROOM_CHECK_INTERVAL)));
            ready!(recheck.as_mut().poll(cx));
            self.recheck = None;
        }
        Poll::Ready(())
    }

    /// Record the result of a write.
    fn note_written<'a>(
        &self,
        written: &Poll<io::Result<usize>>,
        bufs: impl IntoIterator<Item = &'a [u8]>,
    ) {
        match written {
            Poll::Ready(Ok(length)) => {
                let mut left = *length;
                for buf in bufs {
                    let here = left.min(buf.len());
                    self.connection.sent(&buf[..here]);
                    left -= here;
                    if left == 0 {
                        break;
                    }
                }
            }
            Poll::Pending => self.connection.write_blocked(true),
            Poll::Ready(Err(_)) => {}
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ObservedIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_room(cx));
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        let fresh = &buf.filled()[before..];
        if !fresh.is_empty() {
            self.connection.received(fresh);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ObservedIo<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.note_written(&written, [buf]);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.note_written(&written, bufs.iter().map(|buf| &**buf));
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.connection.write_blocked(flushed.is_pending());
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Interval at which a connection that is not read is checked again for room.
pub const ROOM_CHECK_INTERVAL: Duration = Duration::from_millis(100);
