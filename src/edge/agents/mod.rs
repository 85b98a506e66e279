//! Agents' sessions: accepting connections, the control stream, and agents behind WebSockets.

pub(crate) mod control;
pub(crate) mod session;
pub(crate) mod session_limit;
pub(crate) mod unauthenticated;
pub(crate) mod websockets;
