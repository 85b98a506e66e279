//! Processing of HTTP messages that both ends share: hop-by-hop fields, forwarded fields, cookies,
//! upgrades and replayable bodies. Routing is left to the edge and the agent.

pub(crate) mod cookies;
mod event_stream;
pub(crate) mod forwarded;
#[cfg(all(unix, any(test, fuzzing)))]
pub mod fuzzing;
pub(crate) mod hygiene;
mod replay;
mod trusted_proxy;
mod upgrades;
pub(crate) mod x_forwarded;

pub use self::event_stream::is_event_stream;
pub use self::replay::{BufferLimit, Piece, ReplayBody, ReplayBuffer};
pub(crate) use self::upgrades::is_answer_to;
pub use self::upgrades::{UpgradeError, UpgradeName, Upgrades};
