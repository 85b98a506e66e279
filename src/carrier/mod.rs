//! How packets travel: sockets, transport settings and congestion control. Above this module there
//! is a `quinn::Connection`, and nothing asks how its packets get there except to show it.

mod congestion;
mod transport;
mod udp;

pub use transport::{AGENT_STREAMS, SESSION_WINDOW, agent_transport, edge_transport};
pub use udp::{DialError, EdgeKeys, dial, edge_endpoint};
