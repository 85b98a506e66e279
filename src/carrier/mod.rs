//! How packets travel: sockets, transport settings and congestion control. Above this module there
//! is a `quinn::Connection`, and nothing asks how its packets get there except to show it.
//!
//! There is one protocol, QUIC; a carrier moves its packets, over UDP or inside a WebSocket, and a
//! connection changes between them while it is in use.
//!
//! ```text
//!            agent                                                  edge
//!   quinn ─ agent_socket ─┬─ UDP ═══════════════════════════ UDP ─┬─ edge_socket ─ quinn
//!              ▲          └─ queue ─ websocket ═ HTTP(S) ═ websocket ─ queue ─┘
//!    path ─ judge ◀─ evidence, progress
//! ```
//!
//! `dial` and its `race` are how an agent comes by a connection, `hop` and `proxy` are its way through TCP, `path`
//! keeps it alive and `judge` decides over what. What a WebSocket says is in [`crate::proto`].
//! `shared_udp` is how two processes of an edge have one UDP socket, while one succeeds the other, and `sorting`
//! how each gets the WebSockets of its own agents.

use std::fmt;
use std::str::FromStr;

mod agent;
mod congestion;
mod duplicate;
mod edge;
mod flush;
#[cfg(all(unix, any(test, fuzzing)))]
pub mod fuzzing;
mod gso_limit;
pub(crate) mod handover;
mod receive_queue;
mod selection;
mod subnet;
mod tcp;
mod transport;
mod udp_socket;
mod websocket;
mod writable;

pub use self::agent::check::{SMALLEST_FULL_PACKET, UDP_ANSWER, ask_over_udp};
pub use self::agent::dial::{DialConfig, Dialed, dial};
pub use self::agent::dial_error::{AttemptError, DialError};
pub use self::agent::driver::{CarrierState, Driver};
pub use self::congestion::{CongestionOwner, PathMemory, Paths, SharedCongestionOwner};
pub use self::duplicate::duplicator::Duplicator;
pub use self::duplicate::transmitter::Transmitter;
pub use self::edge::endpoint::{EdgeKeys, bind_edge_udp, edge_endpoint, edge_udp};
pub use self::edge::socket::EdgeSocket;
pub use self::flush::all_delivered;
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
pub use self::subnet::subnet;
pub use self::tcp::happy_eyeballs::{alternate as alternate_families, connect as connect_to_first};
pub use self::tcp::options::{
    ask_for_bbr, congestion_control, shorten_send_queue, shorten_visitors_queues, unacknowledged,
};
pub use self::tcp::outer_tls::outer_tls;
pub use self::tcp::proxy::Proxy;
pub use self::transport::{
    AGENT_STREAMS, ETHERNET_PACKET, PathKind, SESSION_BUFFER, alpn, edge_transport, session_window,
};
pub use self::websocket::PeerInfo;
pub use self::websocket::upgrade::{
    NotAWebSocket, WEBSOCKET_PATH, check_extended_connect, upgrade_response,
};

#[cfg(test)]
mod testbed;

/// What moves the packets of a connection.
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

/// Which carriers a connection may use: `--transport`.
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
