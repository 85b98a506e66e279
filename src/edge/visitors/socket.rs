//! A visitor's TCP connection, on which a write that makes no progress comes to an end.
//!
//! It is below TLS and HTTP, so that one limit holds for whatever is written to visitors: answers over
//! HTTP/1.1, frames of HTTP/2, what follows an upgrade.

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
use crate::carrier::unacknowledged;

/// A visitor's TCP connection.
pub struct VisitorSocket {
    tcp: TcpStream,
    /// How long a write may make no progress.
    stall_limit: Duration,
    /// Set while a write waits for the visitor.
    stall: Option<Stall>,
    /// When to look whether it still makes no progress.
    deadline: LazyDeadline,
    received: Received,
}

/// A write that waits for the visitor.
struct Stall {
    /// When the visitor was last seen to take something.
    since: Instant,
    /// Bytes that it had not acknowledged when it was last looked at.
    unacknowledged: Option<u32>,
}

impl VisitorSocket {
    /// Limit the writes of a connection.
    pub fn new(tcp: TcpStream, stall_limit: Duration) -> Self {
        let _ = tcp.set_nodelay(true);
        // It fails on no socket that is good for anything.
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
            received: Received::default(),
        }
    }

    /// Return the count of the bytes that have been received.
    pub fn received(&self) -> Received {
        self.received.clone()
    }

    /// Pass the result of a write on, unless nothing has been written for too long.
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
            // Closed in the ordinary way, what is left would wait in the kernel for the visitor.
            let _ = SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO));
            Err(io::Error::new(io::ErrorKind::TimedOut, Stalled))
        })
    }

    /// Wait until the visitor has acknowledged nothing for too long. The kernel takes more only once a
    /// part of its queue is free, which a slow reader may need longer for.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let look = self.stall_limit / LOOKS;
        let stall = match &mut self.stall {
            Some(stall) => stall,
            none => {
                let since = Instant::now();
                self.deadline.set(since + look);
                none.insert(Stall {
                    since,
                    unacknowledged: unacknowledged(&self.tcp),
                })
            }
        };
        loop {
            ready!(self.deadline.poll(cx));
            let now = Instant::now();
            let left = unacknowledged(&self.tcp);
            if left
                .zip(stall.unacknowledged)
                .is_some_and(|(now, then)| now < then)
            {
                stall.since = now;
            }
            stall.unacknowledged = left;
            if now >= stall.since + self.stall_limit {
                return Poll::Ready(());
            }
            self.deadline.set(now + look);
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

/// Bytes that have been received on a connection, as TCP counts them: also those of a TLS record or a
/// frame that is not whole.
#[derive(Debug, Clone, Default)]
pub struct Received(Arc<AtomicU64>);

impl Received {
    /// Note that so many more have been.
    pub(crate) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Return how many there are.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Nothing of a write has reached the visitor for too long.
#[derive(Debug, thiserror::Error)]
#[error("the visitor takes nothing of what is written to it")]
struct Stalled;

/// How often it is looked whether a write makes progress, within the time that it has.
const LOOKS: u32 = 8;

/// A connection on which nothing moves for so long is probed: a visitor that vanished without a word is
/// found although there is nothing to write to it. An event stream may be silent for hours.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Probes follow each other at this interval; systems give up after eight or nine.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::{sleep, timeout};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(800);

    /// Connect a visitor that has a small receive buffer to a socket with this limit.
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

    /// Write without an end, and return why it ended.
    async fn write_on(mut socket: VisitorSocket) -> io::Error {
        loop {
            if let Err(err) = socket.write_all(&[0; 4096]).await {
                return err;
            }
        }
    }

    #[tokio::test]
    async fn a_write_ends_once_the_visitor_has_taken_nothing_for_the_limit() {
        let (mut visitor, socket) = connect().await;
        let started = Instant::now();

        let err = write_on(socket).await;

        assert_eq!(err.kind(), io::ErrorKind::TimedOut);
        let took = started.elapsed();
        assert!(took >= LIMIT && took < 3 * LIMIT, "{took:?}");
        // What is left in the kernel is not kept for it.
        let rest = visitor.read_to_end(&mut Vec::new()).await;
        assert_eq!(rest.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_visitor_that_takes_something_within_the_limit_is_served_on() {
        let (mut visitor, socket) = connect().await;
        let reading = async {
            loop {
                visitor.read_exact(&mut [0; 2048]).await.unwrap();
                sleep(LIMIT / 4).await;
            }
        };

        let served = timeout(LIMIT * 6, async {
            tokio::select! {
                err = write_on(socket) => err,
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
