//! A visitor's TCP connection, with a timeout for writes that make no progress.
//!
//! It is below TLS and HTTP, so that one limit covers everything written to visitors: responses
//! over HTTP/1.1, frames of HTTP/2, raw bytes after an upgrade.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::lazy_deadline::LazyDeadline;
use crate::net::tcp_options::unacknowledged;

/// A visitor's TCP connection.
pub struct VisitorSocket {
    tcp: TcpStream,
    /// Longest time that a write may make no progress.
    stall_limit: Duration,
    /// Set while a write waits for the visitor.
    stall: Option<Stall>,
    /// The next check of whether the write makes progress.
    deadline: LazyDeadline,
    received: ReceivedBytes,
}

/// A write that waits for the visitor.
struct Stall {
    /// Last time at which the visitor was seen to make progress.
    since: Instant,
    /// Bytes that the visitor had not acknowledged at the last check; `None` if the system does not
    /// tell.
    unacknowledged: Option<u32>,
}

impl VisitorSocket {
    /// Limit the writes of a connection.
    pub fn new(tcp: TcpStream, stall_limit: Duration) -> Self {
        let _ = tcp.set_nodelay(true);
        // This cannot fail on a working TCP socket.
        let _ = SockRef::from(&tcp).set_tcp_keepalive(
            &TcpKeepalive::new()
                .with_time(KEEP_ALIVE)
                .with_interval(KEEP_ALIVE_INTERVAL),
        );
        Self {
            tcp,
            stall_limit,
            stall: None,
            deadline: LazyDeadline::default(),
            received: ReceivedBytes::default(),
        }
    }

    /// Return the counter of bytes received on the connection.
    pub fn received(&self) -> ReceivedBytes {
        self.received.clone()
    }

    /// Return the result of a write, or an error if nothing has been written for too long.
    fn check<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stall = None;
            self.deadline.clear();
            return written;
        }
        self.poll_stall(cx).map(|()| {
            // Abort with a reset: after an ordinary close, unsent data would stay in the kernel for
            // the visitor.
            let _ = SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO));
            Err(io::Error::new(io::ErrorKind::TimedOut, Stalled))
        })
    }

    /// Wait until the visitor has acknowledged nothing for too long. Acknowledgements count,
    /// because the kernel accepts more data only once a part of its queue is free, which a slow
    /// reader may take longer for.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let interval = self.stall_limit / STALL_CHECKS;
        let stall = match &mut self.stall {
            Some(stall) => stall,
            none => {
                let since = Instant::now();
                self.deadline.set(since + interval);
                none.insert(Stall {
                    since,
                    unacknowledged: unacknowledged(&self.tcp),
                })
            }
        };
        loop {
            ready!(self.deadline.poll(cx));
            let now = Instant::now();
            let unacknowledged_now = unacknowledged(&self.tcp);
            if unacknowledged_now
                .zip(stall.unacknowledged)
                .is_some_and(|(now, then)| now < then)
            {
                stall.since = now;
            }
            stall.unacknowledged = unacknowledged_now;
            if now >= stall.since + self.stall_limit {
                return Poll::Ready(());
            }
            self.deadline.set(now + interval);
        }
    }
}

impl AsyncRead for VisitorSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.tcp).poll_read(cx, buf);
        self.received.add(buf.filled().len() - before);
        read
    }
}

impl AsyncWrite for VisitorSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write(cx, buf);
        self.check(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs);
        self.check(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

/// Counter of the bytes received on a connection, as TCP counts them: it includes those of an
/// incomplete TLS record or HTTP/2 frame.
#[derive(Debug, Clone, Default)]
pub struct ReceivedBytes(Arc<AtomicU64>);

impl ReceivedBytes {
    /// Add to the count.
    pub(crate) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Return the number of bytes received so far.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Error: nothing of a write has reached the visitor for too long.
#[derive(Debug, thiserror::Error)]
#[error("the visitor has stopped reading")]
struct Stalled;

/// Checks of a waiting write within its time limit.
const STALL_CHECKS: u32 = 8;

/// Idle time before TCP keep-alive probes: they detect a visitor that vanished silently even when
/// there is nothing to write to it. An event stream may be silent for hours.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Interval of the keep-alive probes; systems give up after eight or nine.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::{sleep, timeout};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(800);

    /// Connect a visitor with a small receive buffer to a socket with this limit.
    async fn connect() -> (TcpStream, VisitorSocket) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let visitor = tokio::net::TcpSocket::new_v4().unwrap();
        visitor.set_recv_buffer_size(4096).unwrap();
        let (visitor, accepted) = tokio::join!(
            visitor.connect(listener.local_addr().unwrap()),
            listener.accept()
        );
        let (tcp, _) = accepted.unwrap();
        SockRef::from(&tcp).set_send_buffer_size(4096).unwrap();
        (visitor.unwrap(), VisitorSocket::new(tcp, LIMIT))
    }

    /// Write until an error occurs, and return it.
    async fn write_until_error(mut socket: VisitorSocket) -> io::Error {
        loop {
            if let Err(err) = socket.write_all(&[0; 4096]).await {
                return err;
            }
        }
    }

    #[tokio::test]
    async fn a_write_that_makes_no_progress_fails_after_the_limit() {
        let (mut visitor, socket) = connect().await;
        let started = Instant::now();

        let err = write_until_error(socket).await;

        assert_eq!(err.kind(), io::ErrorKind::TimedOut);
        let took = started.elapsed();
        assert!(took >= LIMIT && took < 3 * LIMIT, "{took:?}");
        // Unsent data in the kernel is discarded.
        let rest = visitor.read_to_end(&mut Vec::new()).await;
        assert_eq!(rest.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_visitor_that_makes_progress_within_the_limit_is_not_cut_off() {
        let (mut visitor, socket) = connect().await;
        let reading = async {
            loop {
                visitor.read_exact(&mut [0; 2048]).await.unwrap();
                sleep(LIMIT / 4).await;
            }
        };

        let served = timeout(LIMIT * 6, async {
            tokio::select! {
                err = write_until_error(socket) => err,
                () = reading => unreachable!("it reads on"),
            }
        });

        assert!(served.await.is_err(), "it was cut");
    }

    #[tokio::test]
    async fn a_connection_with_nothing_to_write_has_no_limit() {
        let (mut visitor, mut socket) = connect().await;
        socket.write_all(b"event").await.unwrap();
        visitor.read_exact(&mut [0; 5]).await.unwrap();

        sleep(LIMIT * 2).await;
        socket.write_all(b"event").await.unwrap();

        visitor.read_exact(&mut [0; 5]).await.unwrap();
    }
}
