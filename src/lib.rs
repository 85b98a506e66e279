//! A self-hosted tunnel: it publishes a local service under a public name.
//!
//! ```text
//!  visitor ──HTTP──▶ edge ═══ one QUIC connection, a stream per request ═══▶ agent ──HTTP──▶ upstream
//!                (public host)                                        (beside the service)
//! ```
//!
//! # Vocabulary
//! | term | meaning |
//! | --- | --- |
//! | **edge** | the public process, `qtunnel serve`: [`Edge`] |
//! | **agent** | the process beside the local service, `qtunnel connect`: [`Agent`] |
//! | **visitor** | whoever reaches a public address from outside |
//! | **upstream** | the local service that an agent forwards to: [`Upstream`] |
//! | **tunnel** | one public address and its upstream; an agent can hold many: [`TunnelConfig`] |
//! | **name** | the tunnel's label, `blog` in `blog.example.com`: [`Name`] |
//! | **session** | one authenticated QUIC connection between an agent and the edge |
//! | **control stream** | the session's first bidirectional stream |
//! | **stream** | one QUIC stream: one visitor's conversation |
//! | **carrier** | what moves the QUIC packets, UDP or a WebSocket: [`Carrier`] |
//! | **successor** | a newer process of an edge, which takes over from the older one: [`Edge::take_over`] |
//! | **token** | what authenticates an agent: [`generate_token`] |
//!
//! # Use
//! Edge and agent have two phases each: what can fail is done first and leaves facts behind
//! (addresses, URLs), and then they serve until a future of yours resolves, and drain.
//!
//! Here are both in one process, with a service of the same process as the upstream; usually the
//! two run on different machines, and one of them is the `qtunnel` program.
//!
//! ```
//! use qtunnel::*;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let state = tempfile::tempdir()?;
//! // The default is a local edge for *.localhost, on ports of the system's choice.
//! let edge = Edge::bind(EdgeConfig {
//!     state_dir: state.path().into(),
//!     ..EdgeConfig::default()
//! })
//! .await?;
//! let (http, quic, pin) = (edge.http_addrs()[0], edge.quic_addrs()[0], edge.pin());
//! tokio::spawn(edge.serve(std::future::pending()));
//!
//! let hello = Service::new(|_request| async {
//!     Ok(http::Response::new(UpstreamBody::full("hello from inside\n")))
//! });
//! let agent = Agent::connect(AgentConfig {
//!     server: quic.to_string().parse()?,
//!     trust: Trust::Pins(vec![pin]),
//!     tunnels: vec![TunnelConfig {
//!         name: "blog".parse()?,
//!         upstream: Upstream::Service(hello),
//!         host_header: HostHeader::Preserve,
//!         upgrades: Upgrades::default(),
//!     }],
//!     ..AgentConfig::default()
//! })
//! .await?;
//! assert_eq!(
//!     agent.tunnels()[0].urls[0],
//!     format!("http://blog.localhost:{}", http.port())
//! );
//! tokio::spawn(agent.serve(std::future::pending()));
//!
//! // A visitor, in as few words as HTTP allows.
//! # use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! let mut visitor = tokio::net::TcpStream::connect(http).await?;
//! let request = b"GET / HTTP/1.1\r\nHost: blog.localhost\r\nConnection: close\r\n\r\n";
//! visitor.write_all(request).await?;
//! let mut answer = String::new();
//! visitor.read_to_string(&mut answer).await?;
//! assert!(answer.ends_with("hello from inside\n"));
//! # Ok(())
//! # }
//! ```
//!
//! # Modules
//! Only [`proto`] is public: its documentation is the specification of the wire. The others, in the
//! order in which they import each other:
//!
//! | module | responsible for |
//! | --- | --- |
//! | `edge` | the public side: sessions, the registry of names, visitors over HTTP |
//! | `agent` | the private side: session and reconnection, forwarding to upstreams |
//! | `http` | what both ends do to HTTP messages: hop-by-hop fields, forwarded fields, cookies, upgrades |
//! | `stream` | one conversation on a QUIC stream: heads, bodies, raw bytes, flow control |
//! | `auth` | tokens and names: who may connect, and what they may claim |
//! | `carrier` | how packets travel: sockets, transport settings, congestion control |
//! | `runtime` | what a process of ours runs on |
//! | `state` | files that outlive the process |
//! | `error_chain` | errors with their causes, on one line |
//! | `text_file` | text files that people write |
//! | `tls` | rustls configurations, certificates on disk, pins, the local CA |
//! | [`proto`] | the wire: messages, heads and frames; no sockets, no tasks |
//!
//! `edge` and `agent` never import each other. The command line is in the program, not here.

mod agent;
mod allocator;
mod auth;
mod carrier;
mod edge;
mod error_chain;
#[cfg(all(unix, any(test, fuzzing)))]
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod inline;
pub mod proto;
mod runtime;
mod state;
mod stream;
mod text_file;
mod tls;

pub use agent::{
    Address, AddressError, Agent, AgentConfig, AgentError, ConnectError, Event, Finding,
    HostHeader, LinkStats, Observer, Report, RequestRecord, ServerAddr, Service, Target,
    TunnelConfig, Upstream, UpstreamBody, Verdict, check,
};
pub use allocator::Allocator;
pub use auth::{Name, NameError, generate as generate_token};
pub use carrier::{Carrier, Proxy, Transport};
#[cfg(unix)]
pub use edge::HandoverError;
pub use edge::{BindError, Edge, EdgeConfig, EdgeIdentity, EdgeLimits, Sockets};
pub use error_chain::chain;
pub use http::{UpgradeError, UpgradeName, Upgrades};
pub use proto::escape;
pub use runtime::runtime;
pub use state::{StateDir, StateError};
pub use text_file::{decode as decode_text, read_text};
pub use tls::{CaError, Pin, PinError, Trust, local_ca};
