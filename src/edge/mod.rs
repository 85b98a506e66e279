//! The public side: agents' sessions, the registry of names, and visitors over HTTP.

mod agents;
mod answer;
mod bind;
mod body;
mod carriers;
mod client;
mod config;
mod control;
mod conversations;
mod crowd;
mod draining;
mod exchange;
mod failures;
mod fair_share;
mod forward;
mod guard;
#[cfg(unix)]
mod handover;
mod hold;
mod host;
mod http2;
mod journal;
mod keys;
mod lazy_deadline;
mod lease;
mod limits;
mod listen;
mod listening;
mod paced_body;
mod page;
mod registry;
mod request_body;
mod sessions;
mod sockets;
mod steering;
mod unauthenticated;
mod urls;
mod validate;
mod violation;
mod visitor_socket;
mod visitors;
mod workers;

pub use bind::{BindError, Edge};
pub use config::{EdgeConfig, EdgeIdentity};
#[cfg(unix)]
pub use handover::HandoverError;
pub use limits::EdgeLimits;
pub use sockets::Sockets;
