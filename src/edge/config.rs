//! What an edge is told.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use ::http::Uri;
use ipnet::IpNet;

use super::limits::EdgeLimits;
use crate::proto::Secret;

/// How to run an edge.
#[derive(Debug, Clone)]
pub struct EdgeConfig {
    /// Tunnels are published directly below this domain.
    pub domain: String,
    /// Where to listen for visitors in clear text.
    pub http: Vec<SocketAddr>,
    /// Where to listen for visitors over TLS.
    pub https: Vec<SocketAddr>,
    /// Where to listen for agents over UDP. Over WebSockets they come to the visitors' addresses.
    pub quic: Option<SocketAddr>,
    /// What to prove the edge's identity with.
    pub identity: EdgeIdentity,
    /// Where to keep what a restarted edge must find again.
    pub state_dir: PathBuf,
    /// The tokens that agents may show; `None` accepts every agent.
    pub tokens: Option<Vec<Secret>>,
    /// Proxies in front of the edge, whose word about the visitor is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Where visitors reach the edge, if a proxy in front makes that another place than where it
    /// listens: `https://example.com`. A tunnel's name goes in front of the host.
    pub public_url: Option<Uri>,
    /// Answer plain HTTP with a redirection to HTTPS.
    pub redirect_https: bool,
    /// How long conversations may go on once the edge is told to stop.
    pub grace_period: Duration,
    /// How long an agent's names stay reserved for it after its session broke.
    pub lease: Duration,
    /// How long requests wait for an agent that is away.
    pub hold: Duration,
    /// Threads that serve: sessions are spread over them, and visitors go where their tunnel's session
    /// is. One is the fastest for one agent.
    pub workers: NonZeroUsize,
    /// What visitors and agents may use up.
    pub limits: EdgeLimits,
}

/// Where the edge's certificate comes from.
#[derive(Debug, Clone)]
pub enum EdgeIdentity {
    /// A certificate issued by a CA that the edge keeps in its state directory.
    LocalCa,
    /// A chain and its key, in PEM files.
    Files {
        /// The chain, the edge's own certificate first.
        chain: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
}

impl Default for EdgeConfig {
    /// A local edge, with nothing but loopback addresses and ports of the system's choice.
    fn default() -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            domain: "localhost".into(),
            http: vec![loopback],
            https: vec![loopback],
            quic: Some(loopback),
            identity: EdgeIdentity::LocalCa,
            state_dir: PathBuf::from("qtunnel-state"),
            tokens: None,
            trusted_proxies: Vec::new(),
            public_url: None,
            redirect_https: false,
            grace_period: Duration::from_secs(30),
            lease: Duration::from_secs(60),
            hold: Duration::from_secs(10),
            workers: NonZeroUsize::MIN,
            limits: EdgeLimits::default(),
        }
    }
}
