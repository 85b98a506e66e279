//! Creation of an agent's carriers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use quinn::AsyncUdpSocket;

use crate::carrier::tcp::byte_stream::ByteStream;
use crate::carrier::tcp::connect::TcpConnectError;
use crate::carrier::websocket::PeerInfo;

/// Creates an agent's carriers.
pub(crate) trait CarrierFactory: Send + Sync + 'static {
    /// Bind a UDP socket on the current network.
    fn bind(&self) -> io::Result<Arc<dyn AsyncUdpSocket>>;

    /// Dial a WebSocket.
    fn dial(&self) -> BoxFuture<'static, Result<Upgraded, TcpConnectError>>;

    /// Wait until an address reports that its port is closed. Most networks never report that.
    fn refused(&self, _to: SocketAddr) -> BoxFuture<'static, io::Error> {
        Box::pin(std::future::pending())
    }
}

/// A connection that has been upgraded to a WebSocket.
pub(crate) struct Upgraded {
    pub(crate) io: Box<dyn ByteStream>,
    pub(crate) peer: PeerInfo,
}
