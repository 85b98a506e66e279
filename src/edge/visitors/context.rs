//! The data that a request is served with: what all visitors share, and what belongs to one visit.

use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection_id::ConnectionId;
use super::connection_limit::ConnectionLimit;
use super::http::failure_log::FailureLog;
use super::http::guard::Verdicts;
use super::http::http2::Http2Stream;
use super::socket::ReceivedBytes;
use crate::edge::agents::websockets::{AgentWebSockets, RawTcp};
use crate::edge::limits::EdgeLimits;
use crate::edge::names::waiting::WaitingRequests;
use crate::edge::shutdown::Draining;
use crate::edge::workers::Workers;
use crate::proto::Scheme;
use crate::stream::BufferTotal;

/// State shared by all visitors' connections.
pub struct Visitors {
    /// Finds the tunnels, including those whose agents are away.
    pub waiting: WaitingRequests,
    /// The domain of the tunnels, in lower case.
    pub domain: String,
    pub limits: EdgeLimits,
    /// Memory of all bodies that wait for their readers, of visitors and agents together.
    pub buffer: Arc<BufferTotal>,
    pub connection_limit: ConnectionLimit,
    /// Log of failed requests.
    pub failure_log: FailureLog,
    pub workers: Workers,
    /// Proxies whose forwarded fields are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// The agents' WebSockets.
    pub websockets: AgentWebSockets,
    /// The HTTPS port, if plain HTTP is answered with a redirect.
    pub redirect: Option<u16>,
    /// Upgraded conversations, which have outlived their HTTP connection.
    pub upgrades: TaskTracker,
    /// Draining: no new conversations are accepted.
    pub draining: Draining,
    /// Cancelled to cut the conversations that are left.
    pub closing: CancellationToken,
}

/// A request's visitor, and the connection that it came on.
pub struct Visit {
    pub visitors: Arc<Visitors>,
    pub visitor: SocketAddr,
    pub connection: ConnectionId,
    pub scheme: Scheme,
    /// The connection's socket, valid as long as the connection.
    pub tcp: RawTcp,
    /// The guard's verdicts; HTTP/2 has no guard.
    pub verdicts: Option<Verdicts>,
    /// Counter of the bytes received on the connection.
    pub received: ReceivedBytes,
    /// The HTTP/2 stream; `None` over HTTP/1.
    pub stream: Option<Arc<Http2Stream>>,
}
