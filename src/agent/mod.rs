//! The private side: the session with the edge, and forwarding to upstreams.

mod address;
mod ahead;
mod answer_head;
mod answer_reader;
mod backoff;
mod beneath;
mod broken;
mod check;
mod config;
mod connect;
mod connect_error;
mod connections;
mod control;
mod dial;
mod disk;
mod event;
mod files;
mod former;
mod forward;
mod heads;
mod hints;
mod http2;
mod open_ended;
mod outgoing;
mod pool;
mod resolver;
mod response;
mod session;
mod upstream;

pub use address::{Address, AddressError, Target};
pub use check::{Finding, Report, Verdict, check};
pub use config::{AgentConfig, HostHeader, ServerAddr, TunnelConfig};
pub use connect::{Agent, AgentError};
pub use connect_error::ConnectError;
pub use event::{Event, Observer, RequestLog, Transported};
pub use upstream::{Service, Upstream, UpstreamBody};
