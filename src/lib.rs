//! A self-hosted tunnel: it publishes a local service under a public name.
//!
//! ```text
//!  visitor ──HTTP──▶ edge ═══ one QUIC connection, a stream per request ═══▶ agent ──HTTP──▶ upstream
//!                (public host)                                        (beside the service)
//! ```

mod agent;
mod auth;
mod carrier;
mod edge;
mod http;
pub mod proto;
mod state;
mod tls;

pub use agent::{
    Address, AddressError, Agent, AgentConfig, AgentError, ConnectError, Event, HostHeader,
    Observer, RequestLog, ServerAddr, Service, Target, TunnelConfig, Upstream, UpstreamBody,
};
pub use auth::{Name, NameError, generate as generate_token};
pub use edge::{BindError, Edge, EdgeConfig, EdgeIdentity, EdgeLimits};
pub use http::escape;
pub use state::{StateDir, StateError};
pub use tls::{CaError, Pin, PinError, Trust, local_ca};
