//! What must hold for any bytes that come from the other end of a WebSocket, and from a proxy.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use http::HeaderMap;
use http::header::SEC_WEBSOCKET_ACCEPT;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::handover::packet_header;
use super::tcp::proxy;
use super::websocket::frames::{FrameError, Reader, Received, Role};
use super::websocket::upgrade::upgrade_response;

/// Take frames apart: the pieces in which they arrive make no difference, and no message is too long.
pub fn websocket_frames(bytes: &[u8]) {
    for role in [Role::Client, Role::Server] {
        let whole = read(bytes, usize::MAX, role);
        assert_eq!(whole, read(bytes, 1, role));
        assert_eq!(whole, read(bytes, 7, role));
    }
    #[cfg(unix)]
    if let Some(beginning) = super::websocket::frames::beginning(bytes, 16) {
        assert!(beginning.len() <= 16);
    }
}

/// Read what another process of this edge says about packets: what is understood is said as it was.
pub fn label(bytes: &[u8]) {
    let mut label = [0; packet_header::LABEL];
    let most = bytes.len().min(label.len());
    label[..most].copy_from_slice(&bytes[..most]);
    if let Some(meta) = packet_header::read(&label, 7) {
        let again = packet_header::read(&packet_header::write(&meta), 7).expect("just written");
        assert_eq!(format!("{again:?}"), format!("{meta:?}"));
    }
}

/// Take a WebSocket's handshake: a request is answered with the proof of its own key alone.
pub fn handshake(fields: &HeaderMap) {
    if let Ok(answer) = upgrade_response(fields) {
        assert_eq!(answer[SEC_WEBSOCKET_ACCEPT].len(), 28);
    }
}

/// Hear a proxy's answers: to CONNECT, and as SOCKS5.
pub fn proxy(bytes: &[u8]) {
    thread_local! {
        static RUNTIME: RefCell<tokio::runtime::Runtime> = RefCell::new(
            tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .expect("threads"),
        );
    }
    RUNTIME.with_borrow(|runtime| {
        let io = || -> Box<dyn super::agent::websocket_tasks::Io> {
            Box::new(Pieces::of(bytes, usize::MAX))
        };
        for answered in runtime.block_on(proxy::fuzzing::answers(io)) {
            if let Err(err) = answered {
                // Whatever it says must be possible to show.
                assert!(!err.to_string().is_empty());
            }
        }
    });
}

const LONGEST: usize = 1 << 10;

fn read(bytes: &[u8], at_once: usize, role: Role) -> (Vec<Received>, String) {
    let mut reader = Reader::new(Pieces::of(bytes, at_once), role, LONGEST);
    let mut received = Vec::new();
    loop {
        match reader.next().now_or_never().expect("all is there") {
            Ok(next) => {
                let (Received::Binary(data) | Received::Ping(data)) = &next else {
                    received.push(next);
                    continue;
                };
                assert!(data.len() <= LONGEST);
                received.push(next);
            }
            Err(FrameError::Io(err)) => panic!("{err}"),
            Err(err) => return (received, format!("{err:?}")),
        }
    }
}

/// A connection that brings these bytes and then an end, and takes anything.
struct Pieces {
    bytes: Bytes,
    at_once: usize,
}

impl Pieces {
    fn of(bytes: &[u8], at_once: usize) -> Self {
        Self {
            bytes: Bytes::copy_from_slice(bytes),
            at_once,
        }
    }
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let most = self.bytes.len().min(self.at_once).min(buf.remaining());
        buf.put_slice(&self.bytes.split_to(most));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
