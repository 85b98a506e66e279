//! What happens at an agent, for whoever watches it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::Method;

use crate::carrier::Carrier;
use crate::proto::TunnelGrant;

/// Something that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// The tunnels are open.
    Ready {
        /// Where visitors reach them.
        tunnels: Vec<TunnelGrant>,
        /// What the packets travel on.
        transport: LinkStats,
    },
    /// The packets have moved to another carrier.
    Transport(LinkStats),
    /// The edge is not there, or went away; the agent will try again.
    Reconnecting {
        /// Why.
        reason: String,
        /// When.
        wait: Duration,
    },
    /// Nobody listens at an upstream at the moment; its tunnel is open all the same.
    UpstreamDown {
        /// The upstream's address.
        upstream: String,
        /// What was tried and failed.
        problem: String,
    },
    /// The upstream set cookies for a domain above the tunnel's, whose other tunnels would get them. They
    /// were left out. It is told at most once in a minute.
    CookiesLeftOut {
        /// The tunnel's host.
        host: String,
        /// How many since this was told last.
        count: u64,
    },
    /// A conversation has ended.
    Request(RequestRecord),
    /// The edge has something to say.
    Notice(String),
}

/// What a session's packets travel on, and how well.
#[derive(Debug, Clone)]
pub struct LinkStats {
    /// The carrier.
    pub carrier: Carrier,
    /// Why this one: `udp silent for 1.2 s, moved to websocket`.
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
    /// Who asked.
    pub visitor: SocketAddr,
    /// How.
    pub method: Method,
    /// For what, as the visitor wrote it: escape it before showing it.
    pub target: String,
    /// The answer's status; `None` if there was none.
    pub status: Option<u16>,
    /// From the request's head to the end of the response.
    pub duration: Duration,
    /// The request's body, in bytes.
    pub received: u64,
    /// The response's body, in bytes.
    pub sent: u64,
    /// What went wrong on our side of the upstream, or why the conversation broke off.
    pub problem: Option<String>,
}

/// Who is told what happens. It is called from the agent's tasks and must not block.
#[derive(Clone)]
pub struct Observer(Arc<dyn Fn(Event) + Send + Sync>);

impl Observer {
    /// Call this with every event.
    pub fn new(watch: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self(Arc::new(watch))
    }

    pub(crate) fn tell(&self, event: Event) {
        (self.0)(event);
    }
}

impl Default for Observer {
    /// Watch nothing.
    fn default() -> Self {
        Self::new(|_| {})
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}
