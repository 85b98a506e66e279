//! The edge's end: one UDP socket and any number of WebSockets behind one QUIC endpoint.

pub(crate) mod endpoint;
pub(crate) mod link;
pub(crate) mod socket;
