//! Configuration of an agent.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use ::http::{HeaderValue, Uri};

use super::event::Observer;
use super::upstream::Upstream;
use crate::auth::Name;
use crate::carrier::{Proxy, Transport};
use crate::http::Upgrades;
use crate::proto::{AgentId, Secret};
use crate::tls::Trust;

/// Configuration of an agent.
#[derive(Clone)]
pub struct AgentConfig {
    /// The address of the edge.
    pub server: ServerAddr,
    /// The means by which the edge is authenticated.
    pub trust: Trust,
    /// The carriers that may be used.
    pub transport: Transport,
    /// The URL of the WebSocket: `wss://host:port`, or `ws://` where a reverse proxy in front of the edge
    /// terminates TLS and the network up to it is trusted; by default the edge itself.
    pub websocket: Option<Uri>,
    /// The forward proxy through which the edge is reached over TCP.
    pub proxy: Proxy,
    /// The token that authenticates this agent to the edge.
    pub token: Secret,
    /// The identity of this agent, the same across restarts.
    pub id: AgentId,
    /// Claim the names at the start even if another agent with the same token holds them. Without this they
    /// stay with that agent while it is connected or its lease lasts.
    pub take_over_names: bool,
    /// The tunnels to publish.
    pub tunnels: Vec<TunnelConfig>,
    /// Time that conversations have to end after `shutdown` resolves.
    pub grace_period: Duration,
    /// Time that an upstream has to start its response once it has received the whole request.
    pub upstream_timeout: Duration,
    /// Give up at the first failure instead of retrying indefinitely.
    pub exit_on_failure: bool,
    /// The receiver of events.
    pub observer: Observer,
}

impl Default for AgentConfig {
    /// Create the configuration of a new agent of the local edge, without tunnels.
    fn default() -> Self {
        Self {
            server: ServerAddr {
                host: "localhost".into(),
                port: 8443,
            },
            trust: Trust::default(),
            token: Secret::default(),
            id: AgentId::random(),
            take_over_names: false,
            tunnels: Vec::new(),
            grace_period: Duration::from_secs(30),
            upstream_timeout: Duration::from_secs(60),
            transport: Transport::default(),
            websocket: None,
            proxy: Proxy::default(),
            exit_on_failure: false,
            observer: Observer::default(),
        }
    }
}

/// Configuration of one tunnel.
#[derive(Clone)]
pub struct TunnelConfig {
    /// The name to request.
    pub name: Name,
    /// The destination of its requests.
    pub upstream: Upstream,
    /// The `Host` field that the upstream receives.
    pub host_header: HostHeader,
    /// The protocols that visitors may upgrade to.
    pub upgrades: Upgrades,
}

/// The `Host` field that an upstream receives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum HostHeader {
    /// The value that the visitor sent: the public name.
    #[default]
    Preserve,
    /// The upstream's own address, which development servers expect.
    Rewrite,
    /// A fixed value.
    Value(HeaderValue),
}

impl FromStr for HostHeader {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "preserve" => Ok(Self::Preserve),
            "rewrite" => Ok(Self::Rewrite),
            "" => Err("it is empty: use preserve, rewrite or a host".into()),
            host if host.contains(['/', ' ', '@']) => Err(format!(
                "{host:?} is not a host (use preserve, rewrite or a host such as app.local:3000)"
            )),
            host => HeaderValue::from_str(host)
                .map(Self::Value)
                .map_err(|_| format!("{host:?} is not a valid header value")),
        }
    }
}

/// An edge's host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAddr {
    /// A host name or address, without brackets.
    pub host: String,
    /// The port for QUIC and for DEFAULT_PORT.
    pub port: u16,
}

impl FromStr for ServerAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text
            .strip_prefix("https://")
            .unwrap_or(text)
            .trim_end_matches('/');
        let authority: ::http::uri::Authority = rest
            .parse()
            .map_err(|_| format!("{text:?} is not a HOST or HOST:PORT"))?;
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        if host.is_empty() || rest.contains(['/', '@', '?']) {
            return Err(format!("{text:?} is not a HOST or HOST:PORT"));
        }
        // `Authority` ignores a port that is out of range.
        let port = match rest.rsplit_once(':') {
            Some((_, port)) if !port.ends_with(']') => port
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| format!("{text:?} has no valid port (1 to 65535)"))?,
            _ => DEFAULT_PORT,
        };
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl ServerAddr {
    /// Return the default URL of the WebSocket: the edge itself, over TLS.
    pub(crate) fn websocket(&self) -> Result<Uri, ::http::uri::InvalidUri> {
        let host = &self.host;
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.clone()
        };
        format!("wss://{host}:{}", self.port).parse()
    }
}

impl fmt::Display for ServerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = &self.host;
        if host.contains(':') {
            write!(f, "[{host}]")?
        } else {
            f.write_str(host)?
        }
        if self.port == DEFAULT_PORT {
            Ok(())
        } else {
            write!(f, ":{}", self.port)
        }
    }
}

/// The port of an edge where none is given.
const DEFAULT_PORT: u16 = 443;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_host_with_or_without_a_port() {
        let parse = |text: &str| text.parse::<ServerAddr>().map(|server| server.to_string());
        assert_eq!(parse("example.com").unwrap(), "example.com");
        assert_eq!(parse("example.com:8443").unwrap(), "example.com:8443");
        assert_eq!(parse("[2001:db8::1]:8443").unwrap(), "[2001:db8::1]:8443");
        assert_eq!(parse("https://example.com/").unwrap(), "example.com");
        for wrong in [
            "",
            "a b",
            "example.com:0",
            "example.com:99999",
            "u@h",
            "h/path",
            "host:",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
