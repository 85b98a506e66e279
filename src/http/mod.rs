//! What both ends do to HTTP messages: hop-by-hop fields, the fields about the visitor, cookies,
//! upgrades, and bodies that can be sent a second time. Which request goes where is decided by the
//! edge and the agent.

pub(crate) mod cookies;
pub(crate) mod forwarded;
#[cfg(all(unix, any(test, fuzzing)))]
pub mod fuzzing;
pub(crate) mod hygiene;
mod replay;
mod trusted_proxy;
mod upgrades;

pub use self::replay::{ReplayBody, ReplayBuffer};
pub(crate) use self::upgrades::is_answer_to;
pub use self::upgrades::{UpgradeError, UpgradeName, Upgrades};
