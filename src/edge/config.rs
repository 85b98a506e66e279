//! Configuration of an edge.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use ::http::Uri;
use ipnet::IpNet;

use super::limits::EdgeLimits;
use crate::proto::Secret;

/// Configuration of an edge.
#[derive(Debug, Clone)]
pub struct EdgeConfig {
    /// Domain directly below which tunnels are published.
    pub domain: String,
    /// Addresses to listen on for visitors over plain HTTP.
    pub http: Vec<SocketAddr>,
    /// Addresses to listen on for visitors over HTTPS.
    pub https: Vec<SocketAddr>,
    /// UDP address to listen on for agents; `None` switches UDP off. Agents on WebSockets connect
    /// to the visitors' addresses.
    pub quic: Option<SocketAddr>,
    /// The certificate that the edge presents.
    pub identity: EdgeIdentity,
    /// Directory for state that a restarted edge needs: certificates, keys, name reservations.
    pub state_dir: PathBuf,
    /// Tokens that agents may present; `None` accepts every agent.
    pub tokens: Option<Vec<Secret>>,
    /// Proxies in front of the edge whose `X-Forwarded-For` and `Forwarded` fields are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// URL at which visitors reach the edge, if a proxy in front makes it differ from the listening
    /// addresses: `https://example.com`. A tunnel's name goes in front of the host.
    pub public_url: Option<Uri>,
    /// Redirect plain HTTP to HTTPS.
    pub redirect_https: bool,
    /// Time for conversations under way to finish once the edge is asked to stop; then they are
    /// cut.
    pub grace_period: Duration,
    /// Time that an agent's names stay reserved for it after its session was lost.
    pub lease: Duration,
    /// Longest time that a request waits for an agent that is away.
    pub hold: Duration,
    /// Threads that serve: sessions are spread over them, and a visitor is moved to the thread of
    /// its tunnel's session. One is the fastest for a single agent.
    pub workers: NonZeroUsize,
    /// Resource and time limits for visitors and agents.
    pub limits: EdgeLimits,
}

/// Source of the edge's certificate.
#[derive(Debug, Clone)]
pub enum EdgeIdentity {
    /// A certificate issued by a CA that the edge keeps in its state directory.
    LocalCa,
    /// A certificate chain and its key, in PEM files.
    Files {
        /// The chain, leaf certificate first.
        chain: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
}

impl Default for EdgeConfig {
    /// Return a local edge: loopback addresses only, on ports of the system's choice.
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
