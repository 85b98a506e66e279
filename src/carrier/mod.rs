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
//!
//! Sessions use [`AgentLink`] and [`EdgeLink`]: a connection together with what the layers below it need
//! to know of its session, such as the ends of messages and who controls congestion.

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
mod link;
mod receive_queue;
mod selection;
mod tcp;
mod transport;
mod websocket;
mod writable;

pub use self::agent::dial::DialConfig;
pub use self::agent::dial_error::DialError;
pub use self::agent::driver::CarrierState;
pub use self::agent::link::AgentLink;
pub use self::congestion::PathMemory;
pub use self::edge::endpoint::{EdgeEndpoint, EdgeKeys};
pub use self::edge::link::EdgeLink;
pub use self::tcp::proxy::Proxy;
pub use self::websocket::PeerInfo;
pub use self::websocket::upgrade::{WEBSOCKET_PATH, answer_upgrade};

#[cfg(test)]
mod testbed;

/// A way to move the packets of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// UDP datagrams.
    Udp,
    /// Messages of a WebSocket.
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
