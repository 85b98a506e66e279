//! What both ends need to carry HTTP on a QUIC stream: sending and receiving heads and bodies,
//! relaying raw bytes after an upgrade, and header hygiene. Which request goes where is decided by
//! the edge and the agent.

mod chain;
mod escape;
mod flow;
pub(crate) mod forwarded;
pub(crate) mod hygiene;
mod receive;
mod relay;
mod rewind;
mod send;

pub use chain::chain;
pub use escape::escape;
pub use flow::{Budget, BufferTotal, FlowControl, ReceiveWindow, SendWindow, SharedWindow, Unread};
pub use receive::{Activity, ReceiveError, Receiver, TunnelBody, next_message};
pub use relay::{Relayed, relay};
pub use rewind::{Replay, Rewind};
pub use send::{CONTROL_PRIORITY, SendError, Sender};
