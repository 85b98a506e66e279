//! The agent's end: dialling an edge, and keeping one connection alive over whichever carrier works.

pub(crate) mod check;
pub(crate) mod dial;
pub(crate) mod dial_error;
pub(crate) mod driver;
pub(crate) mod factory;
pub(crate) mod link;
pub(crate) mod network_watch;
pub(crate) mod race;
pub(crate) mod rebind;
pub(crate) mod refusal;
pub(crate) mod socket;
pub(crate) mod switch;
pub(crate) mod udp_route;
pub(crate) mod websocket_tasks;
