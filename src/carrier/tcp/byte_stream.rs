//! Byte streams of any kind: TCP, TLS, or a tunnel through a proxy.

use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream that can carry WebSocket messages.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> ByteStream for T {}
