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
