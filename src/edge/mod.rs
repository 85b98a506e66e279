//! The public side: agents' sessions, the registry of names, and visitors over HTTP.

mod agents;
mod config;
mod fault;
#[cfg(all(unix, any(test, fuzzing)))]
pub mod fuzzing;
#[cfg(unix)]
mod handover;
mod limits;
mod listen;
mod names;
mod server;
mod shutdown;
mod visitors;
mod workers;

pub use self::config::{EdgeConfig, EdgeIdentity};
#[cfg(unix)]
pub use self::handover::HandoverError;
pub use self::limits::EdgeLimits;
pub use self::listen::sockets::Sockets;
pub use self::server::{BindError, Edge};
