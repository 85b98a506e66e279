//! What an agent is told.

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

/// How to run an agent.
#[derive(Clone)]
pub struct AgentConfig {
    /// The edge.
    pub server: ServerAddr,
    /// How to recognise it.
    pub trust: Trust,
    /// What the packets may travel on.
    pub transport: Transport,
    /// Where the WebSocket is: `wss://host:port`, or `ws://` where a proxy in front terminates TLS
    /// and the way to it is trusted; by default the edge itself.
    pub websocket: Option<Uri>,
    /// What stands between this agent and the edge.
    pub proxy: Proxy,
    /// What to show it.
    pub token: Secret,
    /// Who this agent is, across restarts.
    pub id: AgentId,
    /// Have the names at the start even if another agent with the same token holds them; otherwise they
    /// are its own for as long as it is connected or may come back.
    pub take_over_names: bool,
    /// What to publish.
    pub tunnels: Vec<TunnelConfig>,
    /// How long conversations may go on once the agent is told to stop.
    pub grace_period: Duration,
    /// How long an upstream may take to begin its answer once it has the whole request.
    pub upstream_timeout: Duration,
    /// Give up at the first failure instead of trying for ever.
    pub exit_on_failure: bool,
    /// Who is told what happens.
    pub observer: Observer,
}

impl Default for AgentConfig {
    /// A new agent of the local edge, with nothing to publish yet.
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

/// One tunnel.
#[derive(Clone)]
pub struct TunnelConfig {
    /// The name to ask for.
    pub name: Name,
    /// Where requests go.
    pub upstream: Upstream,
    /// What the upstream sees as `Host`.
    pub host_header: HostHeader,
    /// What visitors may switch to.
    pub upgrades: Upgrades,
}

/// What the upstream sees as `Host`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum HostHeader {
    /// What the visitor sent: the public name.
    #[default]
    Preserve,
    /// The upstream's own address, as development servers want it.
    Rewrite,
    /// Something else.
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
                .map_err(|_| format!("{host:?} cannot stand in a header")),
        }
    }
}

/// An edge's host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAddr {
    /// A host name or address, without brackets.
    pub host: String,
    /// The port of QUIC and HTTPS.
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
        // `Authority` passes over a port that is out of range.
        let port = match rest.rsplit_once(':') {
            Some((_, port)) if !port.ends_with(']') => port
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| format!("{text:?} has no valid port (1 to 65535)"))?,
            _ => HTTPS,
        };
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl ServerAddr {
    /// Return where the edge accepts WebSockets, over TLS.
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
        if self.port == HTTPS {
            Ok(())
        } else {
            write!(f, ":{}", self.port)
        }
    }
}

/// Where edges listen unless they are told otherwise.
const HTTPS: u16 = 443;

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
