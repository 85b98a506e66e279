//! How far answers are read ahead of visitors who are slow to take them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The connections of an agent that are in use.
#[derive(Debug, Clone, Default)]
pub struct Crowd(Arc<AtomicUsize>);

/// One of them, until it is dropped.
pub struct ActiveConnection(Crowd);

impl Crowd {
    /// Count one more.
    pub fn join(&self) -> ActiveConnection {
        self.0.fetch_add(1, Relaxed);
        ActiveConnection(self.clone())
    }

    fn is_large(&self) -> bool {
        self.0.load(Relaxed) > LARGE
    }
}

impl Drop for ActiveConnection {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// An upstream's connection, of which less is read at once while many are in use: hyper keeps two reads for a visitor
/// who takes nothing, and as much memory as the largest had.
pub struct CappedReads<S> {
    io: S,
    crowd: Crowd,
}

impl<S> CappedReads<S> {
    /// Read as that crowd allows.
    pub fn new(io: S, crowd: Crowd) -> Self {
        Self { io, crowd }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CappedReads<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() <= SMALL || !self.crowd.is_large() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(SMALL));
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

/// So many may read as much as they can: 8 MiB, if all of their visitors are slow.
const LARGE: usize = 128;

/// A little less than hyper's smallest buffer: it takes a larger one whenever one is filled.
const SMALL: usize = (8 << 10) - 1;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_crowd_reads_less_at_once_until_it_has_gone() {
        let crowd = Crowd::default();
        let (mut upstream, end) = tokio::io::duplex(256 << 10);
        upstream.write_all(&[7; 200 << 10]).await.unwrap();
        let mut io = CappedReads::new(end, crowd.clone());
        let mut buf = vec![0; 32 << 10];

        assert_eq!(io.read(&mut buf).await.unwrap(), 32 << 10);
        let members: Vec<_> = (0..=LARGE).map(|_| crowd.join()).collect();
        assert_eq!(io.read(&mut buf).await.unwrap(), SMALL);
        assert!(buf.iter().all(|byte| *byte == 7));
        assert_eq!(io.read(&mut buf[..100]).await.unwrap(), 100);
        drop(members);
        assert_eq!(io.read(&mut buf).await.unwrap(), 32 << 10);
    }
}
