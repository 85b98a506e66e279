//! What both ends need to carry HTTP on a QUIC stream: sending and receiving heads and bodies,
//! relaying raw bytes after an upgrade, and header hygiene. Which request goes where is decided by
//! the edge and the agent.

mod chain;
pub(crate) mod cookies;
mod flow;
pub(crate) mod forwarded;
pub(crate) mod hygiene;
mod quota;
mod receive;
mod relay;
mod rewind;
mod said;
mod send;
mod upgrades;

pub use chain::chain;
pub use flow::{Budget, BufferTotal, FlowControl, ReceiveWindow, SendWindow, SharedWindow, Unread};
pub use quota::Quota;
pub use receive::{Activity, ReceiveError, Receiver, TunnelBody, next_message};
pub use relay::{Relayed, relay};
pub use rewind::{Replay, Rewind};
pub use send::{CONTROL_PRIORITY, SendError, Sender};
pub(crate) use upgrades::is_answer_to;
pub use upgrades::{UpgradeError, UpgradeName, Upgrades};
