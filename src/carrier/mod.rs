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

mod agent_socket;
mod bind;
mod congestion;
mod delivered;
#[cfg(unix)]
pub mod descriptors;
mod dial;
mod dial_error;
mod edge_socket;
mod evidence;
mod examine;
mod frames;
mod gate;
mod happy_eyeballs;
mod hop;
mod inbox;
mod judge;
mod kept;
#[cfg(unix)]
mod label;
mod lines;
mod network;
mod outer_tls;
mod pace;
#[cfg(unix)]
mod passed;
mod path;
#[cfg(unix)]
mod predecessor;
#[cfg(unix)]
mod predecessors;
mod probe;
mod progress;
mod prompt;
mod proxy;
mod queue;
mod race;
mod rebinding;
mod recent;
mod recent_of;
mod refusal;
mod repeater;
mod segments;
#[cfg(unix)]
mod shared_udp;
#[cfg(unix)]
mod sorting;
mod subnet;
#[cfg(unix)]
mod successor;
mod switch;
mod tcp;
mod transmitter;
mod transport;
mod udp;
mod udp_route;
mod upgrade;
mod websocket;

pub use congestion::{CongestionControl, InControl, PathMemory, Paths};
pub use delivered::all_delivered;
pub use dial::{DialConfig, Dialed, dial};
pub use dial_error::{AttemptError, DialError};
pub use edge_socket::EdgeSocket;
pub use examine::{SMALLEST_FULL_PACKET, UDP_ANSWER, ask_over_udp};
pub use happy_eyeballs::{alternate as alternate_families, connect as connect_to_first};
pub use outer_tls::outer_tls;
#[cfg(unix)]
pub use passed::{PassedWebSocket, PassedWebSockets};
pub use path::{CarrierState, Driver};
#[cfg(unix)]
pub use predecessor::Predecessor;
#[cfg(unix)]
pub use predecessors::Predecessors;
pub use proxy::Proxy;
pub use repeater::Repeater;
#[cfg(unix)]
pub use shared_udp::SharedUdp;
pub use subnet::subnet;
#[cfg(unix)]
pub use successor::Successor;
pub use tcp::{
    ask_for_bbr, congestion_control, shorten_send_queue, shorten_visitors_queues, unacknowledged,
};
pub use transmitter::Transmitter;
pub use transport::{
    AGENT_STREAMS, ETHERNET_PACKET, Reach, SESSION_BUFFER, alpn, edge_transport, session_window,
};
pub use udp::{EdgeKeys, bind_edge_udp, edge_endpoint, edge_udp};
pub use upgrade::{NotAWebSocket, WEBSOCKET_PATH, check_extended_connect, upgrade_response};
pub use websocket::FarEnd;

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
