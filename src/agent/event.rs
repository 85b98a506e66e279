//! Events of an agent, and the observer that receives them.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::Method;

use crate::carrier::Carrier;
use crate::proto::TunnelGrant;

/// An event of an agent.
#[derive(Debug, Clone)]
pub enum Event {
    /// The tunnels are open.
    Ready {
        /// The tunnels with their public URLs.
        tunnels: Vec<TunnelGrant>,
        /// The carrier in use, with its statistics.
        transport: LinkStats,
    },
    /// The packets have moved to another carrier.
    Transport(LinkStats),
    /// The edge cannot be reached, or the session was lost; the agent will try again.
    Reconnecting {
        /// The cause.
        reason: String,
        /// The time until the next attempt.
        wait: Duration,
    },
    /// An upstream cannot be reached at the moment; its tunnel is open nevertheless.
    UpstreamDown {
        /// The upstream's address.
        upstream: String,
        /// The attempt that failed, and its cause.
        problem: String,
    },
    /// The upstream set cookies for a parent domain of the tunnel's host, which browsers would also send to
    /// other tunnels. They were removed from the response. Emitted at most once a minute.
    CookiesLeftOut {
        /// The tunnel's host.
        host: String,
        /// Cookies removed since the last event of this kind.
        count: u64,
    },
    /// A conversation has ended.
    Request(RequestRecord),
    /// A message from the edge or about it, for people to read.
    Notice(String),
}

/// The carrier of a session, with statistics of its path.
#[derive(Debug, Clone)]
pub struct LinkStats {
    /// The carrier.
    pub carrier: Carrier,
    /// The reason for choosing it: `udp silent for 1.2 s, moved to websocket`.
    pub reason: String,
    /// The round trip time.
    pub rtt: Duration,
    /// Packets sent on this path.
    pub sent_packets: u64,
    /// Packets of these that were lost.
    pub lost_packets: u64,
    /// The largest packet that the path is known to carry, in bytes of UDP payload.
    pub mtu: u16,
}

/// One conversation, once it has ended.
#[derive(Debug, Clone)]
pub struct RequestRecord {
    /// The tunnel's number.
    pub tunnel: u32,
    /// The address of the visitor.
    pub visitor: SocketAddr,
    /// The request method.
    pub method: Method,
    /// The request target as the visitor sent it: escape it before showing it.
    pub target: String,
    /// The status code of the response; `None` if there was none.
    pub status: Option<u16>,
    /// From the request's head to the end of the response.
    pub duration: Duration,
    /// Bytes of the request's body (after an upgrade, also the raw bytes from the visitor).
    pub received: u64,
    /// Bytes of the response's body (after an upgrade, also the raw bytes to the visitor).
    pub sent: u64,
    /// The error that ended the conversation, if it did not complete.
    pub problem: Option<String>,
}

/// A callback for events. It is called from the agent's tasks and must not block.
#[derive(Clone)]
pub struct Observer(Arc<dyn Fn(Event) + Send + Sync>);

impl Observer {
    /// Create an observer that calls `callback` with every event.
    pub fn new(callback: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self(Arc::new(callback))
    }

    /// Pass an event to the callback.
    pub(crate) fn emit(&self, event: Event) {
        (self.0)(event);
    }
}

impl Default for Observer {
    /// Create an observer that ignores every event.
    fn default() -> Self {
        Self::new(|_| {})
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}
