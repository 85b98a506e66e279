//! Hot restart: sharing one UDP socket, and passing on WebSockets, between two processes of an edge.

#[cfg(unix)]
pub(crate) mod descriptors;
#[cfg(unix)]
pub(crate) mod packet_header;
#[cfg(unix)]
pub(crate) mod passed_websocket;
#[cfg(unix)]
pub(crate) mod predecessor;
#[cfg(unix)]
pub(crate) mod predecessors;
#[cfg(unix)]
pub(crate) mod shared_udp;
#[cfg(unix)]
pub(crate) mod successor;
#[cfg(unix)]
pub(crate) mod websocket_relay;
