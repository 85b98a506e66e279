//! Properties that hold for any bytes from the other end of a WebSocket, from a proxy, and from another process of the
//! edge.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use http::HeaderMap;
use http::header::SEC_WEBSOCKET_ACCEPT;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::handover;
use super::tcp::byte_stream::ByteStream;
use super::tcp::proxy;
use super::websocket::frames::{FrameError, Reader, Received, Role};
use super::websocket::upgrade::upgrade_response;

/// Read WebSocket frames: the pieces in which they arrive make no difference, and no message is too long.
pub fn websocket_frames(bytes: &[u8]) {
    for role in [Role::Client, Role::Server] {
        let whole = read(bytes, usize::MAX, role);
        assert_eq!(whole, read(bytes, 1, role));
        assert_eq!(whole, read(bytes, 7, role));
    }
    if let Some(prefix) = super::websocket::frames::payload_prefix(bytes, 16) {
        assert!(prefix.len() <= 16);
    }
}

/// Read the header of packets from another process of this edge: a valid one survives a round trip.
pub fn packet_header(bytes: &[u8]) {
    use handover::packet_header;

    let mut header = [0; packet_header::PACKET_HEADER];
    let length = bytes.len().min(header.len());
    header[..length].copy_from_slice(&bytes[..length]);
    if let Some(meta) = packet_header::read(&header, 7) {
        let again = packet_header::read(&packet_header::write(&meta), 7).expect("just written");
        assert_eq!(format!("{again:?}"), format!("{meta:?}"));
    }
}

/// Accept the handshake of a WebSocket: an accepted one gets a `Sec-WebSocket-Accept` of 28 characters.
pub fn handshake(fields: &HeaderMap) {
    if let Ok(response) = upgrade_response(fields) {
        assert_eq!(response[SEC_WEBSOCKET_ACCEPT].len(), 28);
    }
}

/// Read the responses of a proxy, to CONNECT and in SOCKS5.
pub fn proxy(bytes: &[u8]) {
    thread_local! {
        static RUNTIME: RefCell<tokio::runtime::Runtime> = RefCell::new(
            tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .expect("a runtime without threads"),
        );
    }
    RUNTIME.with_borrow(|runtime| {
        let io = || -> Box<dyn ByteStream> { Box::new(Pieces::of(bytes, usize::MAX)) };
        for result in runtime.block_on(proxy::fuzzing::responses(io)) {
            if let Err(err) = result {
                // Formatting it must not panic.
                assert!(!err.to_string().is_empty());
            }
        }
    });
}

/// The longest message, in bytes.
const MAX_MESSAGE: usize = 1 << 10;

/// Read all messages of `bytes`, which arrive in pieces of `size`.
fn read(bytes: &[u8], size: usize, role: Role) -> (Vec<Received>, String) {
    let mut reader = Reader::new(Pieces::of(bytes, size), role, MAX_MESSAGE);
    let mut received = Vec::new();
    loop {
        match reader
            .next()
            .now_or_never()
            .expect("all bytes are available")
        {
            Ok(next) => {
                let (Received::Binary(data) | Received::Ping(data)) = &next else {
                    received.push(next);
                    continue;
                };
                assert!(data.len() <= MAX_MESSAGE);
                received.push(next);
            }
            Err(FrameError::Io(err)) => panic!("{err}"),
            Err(err) => return (received, format!("{err:?}")),
        }
    }
}

/// A connection that delivers `bytes`, in pieces of `size`, and then ends; it accepts all writes.
struct Pieces {
    bytes: Bytes,
    size: usize,
}

impl Pieces {
    fn of(bytes: &[u8], size: usize) -> Self {
        Self {
            bytes: Bytes::copy_from_slice(bytes),
            size,
        }
    }
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let most = self.bytes.len().min(self.size).min(buf.remaining());
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
