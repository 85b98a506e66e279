//! The transport below QUIC: sockets, QUIC's transport settings and congestion control. Code above
//! this module works with a `quinn::Connection` and never depends on the carrier underneath, except
//! to show it.
//!
//! There is one protocol, QUIC. A *carrier* moves its packets, either over UDP or inside a WebSocket,
//! and a connection can migrate between the two while it is in use.
//!
//! ```text
//!            agent                                                  edge
//!   quinn ─ AgentSocket ──┬─ UDP ═══════════════════════════ UDP ─┬── EdgeSocket ─ quinn
//!              ▲          └─ queue ─ websocket ═ HTTP(S) ═ websocket ─ queue ─┘
//!   Driver ─ Selector ◀─ receive_monitor, progress
//! ```
//!
//! - `agent`: the agent's end. `dial` and `race` establish a connection; `driver` keeps it alive.
//! - `edge`: the edge's end, one socket for UDP and any number of WebSockets.
//! - `websocket`: one WebSocket that carries packets. The message format is in [`crate::proto`].
//! - `tcp`: the connection below a WebSocket: Happy Eyeballs, proxies, TLS and the upgrade.
//! - `selection`: the choice between the carriers.
//! - `congestion`: the congestion controller.
//! - `duplicate`: sending short messages twice, against packet loss.
//! - `handover`: one UDP socket and the WebSockets of two edge processes, during a hot restart.

use std::fmt;
use std::str::FromStr;

mod agent;
mod congestion;
mod duplicate;
mod edge;
mod flush;
mod gso_limit;
pub(crate) mod handover;
mod receive_queue;
mod selection;
mod tcp;
mod transport;
mod websocket;
mod writable;

pub use self::agent::check::{MIN_PROBE_SIZE, UDP_ANSWER_TIMEOUT, probe_over_udp};
pub use self::agent::dial::{DialConfig, Dialed, dial};
pub use self::agent::dial_error::{AttemptError, DialError};
pub use self::agent::driver::{CarrierState, Driver};
pub use self::congestion::{CongestionOwner, PathCache, PathMemory, SharedCongestionOwner};
pub use self::duplicate::duplicator::Duplicator;
pub use self::edge::endpoint::{EdgeKeys, edge_endpoint, edge_udp};
pub use self::edge::socket::EdgeSocket;
pub use self::flush::wait_until_delivered;
#[cfg(unix)]
pub use self::handover::passed_websocket::{PassedWebSocket, PassedWebSockets};
#[cfg(unix)]
pub use self::handover::predecessor::Predecessor;
#[cfg(unix)]
pub use self::handover::predecessors::Predecessors;
#[cfg(unix)]
pub use self::handover::shared_udp::SharedUdp;
#[cfg(unix)]
pub use self::handover::successor::Successor;
pub use self::tcp::outer_tls::outer_tls;
pub use self::tcp::proxy::Proxy;
pub use self::transport::{
    AGENT_STREAMS, ETHERNET_PACKET, SESSION_BUFFER, alpn, edge_transport, session_window,
};
pub use self::websocket::PeerInfo;
pub use self::websocket::upgrade::{
    UpgradeError, WEBSOCKET_PATH, check_extended_connect, upgrade_response,
};

#[cfg(test)]
mod testbed;

/// A way to move the packets of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    Udp,
    WebSocket,
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::WebSocket => "websocket",
        })
    }
}

/// The carriers that a connection may use (`--transport`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Whichever works, UDP preferred.
    #[default]
    Auto,
    /// UDP alone.
    Quic,
    /// A WebSocket alone.
    Websocket,
}

impl FromStr for Transport {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "quic" | "udp" => Ok(Self::Quic),
            "websocket" => Ok(Self::Websocket),
            _ => Err("use auto, quic or websocket"),
        }
    }
}
