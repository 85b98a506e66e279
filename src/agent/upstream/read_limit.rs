//! Smaller reads from upstreams while many connections are active, to bound the memory that slow visitors occupy.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The number of connections to upstreams that are in use, over all upstreams of an agent.
#[derive(Debug, Clone, Default)]
pub struct ActiveConnections(Arc<AtomicUsize>);

/// A connection in use, counted until this is dropped.
pub struct ActiveConnection(ActiveConnections);

impl ActiveConnections {
    /// Count one more connection.
    pub fn enter(&self) -> ActiveConnection {
        self.0.fetch_add(1, Relaxed);
        ActiveConnection(self.clone())
    }

    /// Report whether reads are to be capped.
    fn are_many(&self) -> bool {
        self.0.load(Relaxed) > MAX_UNCAPPED
    }
}

impl Drop for ActiveConnection {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// A connection to an upstream, read in smaller pieces while many are in use: for a visitor who does not read, hyper
/// holds two reads, and as much memory as the largest read needed.
pub struct CappedReads<S> {
    io: S,
    active: ActiveConnections,
}

impl<S> CappedReads<S> {
    /// Wrap a connection.
    pub fn new(io: S, active: ActiveConnections) -> Self {
        Self { io, active }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CappedReads<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() <= CAPPED_READ || !self.active.are_many() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(CAPPED_READ));
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CappedReads<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The most active connections with full-size reads: together they hold 8 MiB if all of their visitors are slow.
const MAX_UNCAPPED: usize = 128;

/// Bytes of a capped read: one less than hyper's smallest buffer, because hyper grows a buffer that was filled.
const CAPPED_READ: usize = (8 << 10) - 1;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn reads_are_small_while_many_connections_are_active() {
        let active = ActiveConnections::default();
        let (mut upstream, end) = tokio::io::duplex(256 << 10);
        upstream.write_all(&[7; 200 << 10]).await.unwrap();
        let mut io = CappedReads::new(end, active.clone());
        let mut buf = vec![0; 32 << 10];

        assert_eq!(io.read(&mut buf).await.unwrap(), 32 << 10);
        let others: Vec<_> = (0..=MAX_UNCAPPED).map(|_| active.enter()).collect();
        assert_eq!(io.read(&mut buf).await.unwrap(), CAPPED_READ);
        assert!(buf.iter().all(|byte| *byte == 7));
        assert_eq!(io.read(&mut buf[..100]).await.unwrap(), 100);
        drop(others);
        assert_eq!(io.read(&mut buf).await.unwrap(), 32 << 10);
    }
}
