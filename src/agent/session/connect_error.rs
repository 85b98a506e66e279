//! The error of an attempt to open a session, with advice.

use std::time::Duration;

use crate::agent::config::ServerAddr;
use crate::carrier;
use crate::proto::{ALPN, Refusal};
use crate::tls::TrustError;

/// A session could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No carrier reached the edge.
    #[error("{}", unreachable(server, tried))]
    Unreachable {
        /// The edge.
        server: ServerAddr,
        /// The errors of the attempts on each carrier.
        tried: carrier::DialError,
    },
    /// The server's certificate is not trusted.
    #[error("the edge {server} is not trusted: {why}; {advice}")]
    Untrusted {
        /// The edge.
        server: ServerAddr,
        /// The certificate problem: what was expected and what was found.
        why: String,
        /// The recommended remedy.
        advice: String,
    },
    /// The server speaks QUIC, but not this protocol.
    #[error(
        "the server at {server} speaks QUIC but is not a qtunnel edge: check the host and the port"
    )]
    NotAnEdge {
        /// The server.
        server: ServerAddr,
    },
    /// The two ends do not speak the same protocol.
    #[error(
        "the edge {server} speaks {theirs}, this agent speaks {}: {}",
        ours(),
        upgrade(theirs)
    )]
    Version {
        /// The edge.
        server: ServerAddr,
        /// The protocol version that the edge reported.
        theirs: String,
    },
    /// The edge refused the session.
    #[error(transparent)]
    Refused(Refusal),
    /// All tunnels together take a longer first message than an edge reads.
    #[error("the agent asks for too much at once ({0}): publish fewer tunnels with one agent")]
    HelloTooLarge(String),
    /// The edge accepted the connection, but did not answer the hello in time.
    #[error("the edge {server} did not answer within {}", humantime::format_duration(*limit))]
    Silent {
        /// The edge.
        server: ServerAddr,
        /// The time that the agent waited.
        limit: Duration,
    },
    /// The connection was lost before the session was established.
    #[error("the connection to the edge {server} broke")]
    Lost {
        /// The edge.
        server: ServerAddr,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The configured trust anchors cannot be read.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

impl ConnectError {
    /// Report whether trying again can never help.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.is_permanent(),
            Self::Trust(_) | Self::HelloTooLarge(_) | Self::Version { .. } => true,
            Self::Untrusted { .. } | Self::NotAnEdge { .. } => true,
            Self::Unreachable { .. } | Self::Silent { .. } | Self::Lost { .. } => false,
        }
    }

    /// Report whether the edge's host refused the connection: it is up, and the edge may be restarting.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self, Self::Unreachable { tried, .. } if tried.is_refused())
    }

    /// Create a [`ConnectError::Lost`].
    pub(crate) fn lost(
        server: &ServerAddr,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Lost {
            server: server.clone(),
            source: source.into(),
        }
    }
}

/// Describe in one line why the edge cannot be reached and what to do about it, the cause first.
fn unreachable(server: &ServerAddr, tried: &carrier::DialError) -> String {
    if let Some((host, err)) = tried.unresolved() {
        return format!("cannot find {host} ({err}): check the name, and this machine's DNS");
    }
    if tried.is_refused() {
        return format!(
            "nothing listens at {server} (connection refused): start the edge there with `qtunnel serve`, or name \
             another one with --server"
        );
    }
    format!(
        "cannot reach the edge {server}: {}. Is `qtunnel serve` running there, and does every firewall let UDP port \
         {} through? Run `qtunnel check` for details",
        tried.summary(),
        server.port
    )
}

/// Return the protocol version of this agent.
fn ours() -> &'static str {
    std::str::from_utf8(ALPN).unwrap_or("qtunnel")
}

/// Name the side to upgrade.
fn upgrade(theirs: &str) -> &'static str {
    let number = |name: &str| {
        name.rsplit('/')
            .next()
            .and_then(|number| number.parse::<u32>().ok())
    };
    match (number(ours()), number(theirs)) {
        (Some(ours), Some(theirs)) if ours < theirs => "upgrade the agent (this machine's qtunnel)",
        (Some(ours), Some(theirs)) if ours > theirs => "upgrade the edge (the server's qtunnel)",
        _ => "upgrade whichever is older",
    }
}
