//! The private side: the session with the edge, and forwarding to upstreams.

mod check;
mod config;
mod connect;
mod event;
mod forward;
#[cfg(all(unix, any(test, fuzzing)))]
pub mod fuzzing;
mod session;
mod upstream;

pub use self::check::{Finding, Report, Verdict, check};
pub use self::config::{AgentConfig, HostHeader, ServerAddr, TunnelConfig};
pub use self::connect::{Agent, AgentError};
pub use self::event::{Event, LinkStats, Observer, RequestRecord};
pub use self::session::connect_error::ConnectError;
pub use self::upstream::address::{Address, AddressError, Target};
pub use self::upstream::{Service, Upstream, UpstreamBody};
