//! Why there is no session with the edge, and what to do about it.

use std::time::Duration;

use crate::agent::config::ServerAddr;
use crate::carrier;
use crate::proto::{ALPN, Refusal};
use crate::tls::TrustError;

/// No session came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing answered, on any carrier.
    #[error("{}", unreachable(server, tried))]
    Unreachable {
        /// The edge.
        server: ServerAddr,
        /// What each carrier met with.
        tried: carrier::DialError,
    },
    /// It is not the edge that we are looking for.
    #[error("the edge {server} is not who it should be: {why}; {advice}")]
    Untrusted {
        /// The edge.
        server: ServerAddr,
        /// What was expected and found.
        why: String,
        /// What to do about it.
        advice: String,
    },
    /// Something else answers there.
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
        /// What it speaks.
        theirs: String,
    },
    /// The edge said no.
    #[error(transparent)]
    Refused(Refusal),
    /// All tunnels together take a longer first message than an edge reads.
    #[error("the agent asks for too much at once ({0}): publish fewer tunnels with one agent")]
    HelloTooLarge(String),
    /// The edge accepted the connection and then said nothing.
    #[error("the edge {server} did not answer within {}", humantime::format_duration(*limit))]
    Silent {
        /// The edge.
        server: ServerAddr,
        /// How long we waited.
        limit: Duration,
    },
    /// The connection broke before the session began.
    #[error("the connection to the edge {server} broke")]
    Lost {
        /// The edge.
        server: ServerAddr,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What to trust cannot be read.
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

    /// Report whether the edge's machine is there, and nobody listens: an edge that starts anew, maybe.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self, Self::Unreachable { tried, .. } if tried.is_refused())
    }

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

/// Say why an edge is not reached, and what to do, in one line: the cause first.
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
         {} through? `qtunnel check` tells more",
        tried.summary(),
        server.port
    )
}

fn ours() -> &'static str {
    std::str::from_utf8(ALPN).unwrap_or("qtunnel")
}

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
