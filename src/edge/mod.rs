//! The public side: agents' sessions, the registry of names, and visitors over HTTP.

mod agents;
mod answer;
mod bind;
mod body;
mod carriers;
mod config;
mod exchange;
mod forward;
mod guard;
mod hold;
mod host;
mod journal;
mod lease;
mod listen;
mod page;
mod registry;
mod rewind;
mod validate;
mod violation;
mod visitors;

pub use bind::{BindError, Edge};
pub use config::{EdgeConfig, EdgeIdentity, EdgeLimits};
