//! A self-hosted tunnel: it publishes a local service under a public name.
//!
//! ```text
//!  visitor ──HTTP──▶ edge ═══ one QUIC connection, a stream per request ═══▶ agent ──HTTP──▶ upstream
//!                (public host)                                        (beside the service)
//! ```
//!
//! # Glossary
//! *client* and *server* mean only the two ends of a QUIC, TLS or HTTP connection; *endpoint* is only a
//! `quinn::Endpoint`. Terms marked † name what is designed and not built yet.
//!
//! | term | meaning |
//! | --- | --- |
//! | **edge** | the public process, `qtunnel serve`: [`Edge`] |
//! | **agent** | the process beside the local service, `qtunnel http 3000` (= `connect`): [`Agent`] |
//! | **visitor** | whoever reaches a public address from outside |
//! | **upstream** | the local service that an agent forwards to: [`Upstream`] |
//! | **tunnel** | one public address → one upstream; an agent can hold many: [`TunnelConfig`] |
//! | **address** | what visitors use: a host such as `blog.example.com`; a TCP or UDP port†, a TLS server name†, a private name† |
//! | **kind** | the kind of a tunnel: `http`; `tcp`†, `udp`†, `tls`†, `private`† |
//! | **name** | the label `blog` in `blog.example.com`: [`Name`] |
//! | **session** | one authenticated QUIC connection between an agent and the edge |
//! | **control stream** | the session's first bidirectional stream |
//! | **stream** | one QUIC stream = one visitor conversation |
//! | **flow** | one UDP conversation: a visitor's address and port on one tunnel† |
//! | **carrier** | what moves the QUIC packets, `udp` or `websocket`: [`Carrier`] |
//! | **lease** | an agent's hold on its addresses, which outlives a session by a grace period |
//! | **registry** | the edge's live table: address → lease → tunnel |
//! | **store** | where records live that outlive the process: embedded SQLite, or etcd for many edges† |
//! | **directory** | every edge's copy of the store in memory, from which requests are answered† |
//! | **account** | a person or team with tokens, addresses and limits† |
//! | **token** | what authenticates an agent: a secret ([`generate_token`]), or a signed JWT† |
//! | **principal** | the authenticated party of a session: account, token, what it may claim† |
//!
//! ## Terms of the implementation
//! | term | meaning |
//! | --- | --- |
//! | **run, epoch** | one run of an agent's process, and the number of a session within it ([`proto::Hello`]) |
//! | **superseded, taken over** | a session that lost its names to a newer one of the same agent, or to another agent |
//! | **hop-by-hop** | of header fields: for one connection only (RFC 9110 §7.6.1) |
//! | **window, budget** | flow control of one body, and the memory that all windows of a session share |
//! | **tail probe** | a PING after the end of a message, so that its loss is detected (compare RFC 8985) |
//! | **duplicate** | a short message sent twice on a path that loses packets |
//! | **probe, suspicion, hold-down** | of carrier selection: a packet that every QUIC server answers; doubt that UDP works; the shortest time on a WebSocket |
//! | **`min_rtt`, jitter, competing queue** | of congestion control: the round trip without a queue, its variation, and the queueing delay that others cause |
//! | **path memory** | what earlier connections have measured of a path (Careful Resume) |
//! | **handover** | hot restart: a newer process of an edge, the *successor*, takes over the sockets of the older one, its *predecessor*: [`Edge::take_over`] |
//! | **worker** | one thread of an edge, with a runtime of its own |
//! | **guard** | the strict HTTP/1 parser in front of hyper |
//!
//! # Use
//! Edge and agent have two phases each: [`Edge::bind`] and [`Agent::connect`] do everything that can
//! fail and return facts (addresses, URLs); `serve` then runs until a future of yours resolves, and
//! drains.
//!
//! Here both run in one process, with a service of the same process as the upstream; usually the two
//! run on different machines, and one of them is the `qtunnel` program.
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
//! // A visitor with a minimal HTTP request.
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
//! | `stream` | one conversation on a QUIC stream: heads, bodies, raw bytes, flow control |
//! | `http` | what both ends do to HTTP messages: hop-by-hop fields, forwarded fields, cookies, upgrades, replays |
//! | `auth` | tokens and names: who may connect, and what they may claim |
//! | `carrier` | how packets travel: UDP and WebSockets, transport settings, congestion control |
//! | `net` | sockets and addresses: Happy Eyeballs, TCP options, UDP sockets |
//! | `runtime` | the single-threaded runtime of the program and of each worker |
//! | `allocator` | the program's memory allocator |
//! | `error_chain` | errors with their causes, on one line |
//! | `tls` | rustls configurations, certificates on disk, pins, the local CA |
//! | `state` | files that outlive the process |
//! | `text_file` | text files that people write |
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
mod net;
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
