//! Which edge, over what, and what to show it: the flags that `connect` and `check` have in common.

use std::path::PathBuf;

use clap::Args;
use hyper::Uri;
use qtunnel::proto::Secret;
use qtunnel::{AgentConfig, Pin, Proxy, ServerAddr, StateDir, Transport, Trust};

use super::Failure;
use super::settings::{self, Settings};

#[derive(Args)]
pub struct EdgeFlags {
    /// The edge [default: the one of `qtunnel login`, else the local one]
    #[arg(long, value_name = "HOST[:PORT]", env = "QTUNNEL_SERVER")]
    server: Option<ServerAddr>,
    /// What to travel on: auto, quic (UDP alone) or websocket
    #[arg(
        long,
        value_name = "auto|quic|websocket",
        default_value = "auto",
        env = "QTUNNEL_TRANSPORT"
    )]
    transport: Transport,
    /// Where the WebSocket is, if not at the edge itself: wss://HOST:PORT or ws://HOST:PORT
    #[arg(long, value_name = "URL")]
    websocket_url: Option<Uri>,
    /// PathKind the edge through this proxy: http://, https://, socks5:// or off [default: HTTPS_PROXY,
    /// ALL_PROXY and NO_PROXY]
    #[arg(long, value_name = "URL|off")]
    proxy: Option<String>,
    /// The token (better in QTUNNEL_TOKEN or a file: others see flags)
    #[arg(
        long,
        env = "QTUNNEL_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    token: Option<String>,
    /// A file with the token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Accept only an edge with this key, whoever signed its certificate
    #[arg(long, value_name = "sha256/…", conflicts_with = "ca")]
    pin: Option<Pin>,
    /// Accept only an edge whose certificate this CA has signed (PEM)
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl EdgeFlags {
    /// Make an agent's configuration, with nothing to publish yet, from the flags and the files.
    pub fn configure(self, settings: &Settings, state: &StateDir) -> Result<AgentConfig, Failure> {
        // What belongs to a configured server must not be shown to another one.
        let configured = match (&self.server, &settings.server) {
            (Some(flag), Some(file)) => file.parse::<ServerAddr>().is_ok_and(|file| file == *flag),
            (Some(_), None) => false,
            (None, _) => true,
        };
        let token = self.token(settings, configured)?;
        let named = match (&self.server, &settings.server) {
            (Some(server), _) => Some(server.clone()),
            (None, Some(text)) => Some(text.parse().map_err(|err| misconfigured("server", err))?),
            (None, None) => None,
        };
        let trust = self.trust(settings, configured, named.is_some(), state)?;
        let default = AgentConfig::default();
        Ok(AgentConfig {
            server: named.unwrap_or(default.server),
            trust,
            transport: self.transport,
            websocket: self.websocket_url,
            proxy: match self.proxy.as_deref() {
                None => Proxy::FromEnvironment,
                Some("off") => Proxy::Direct,
                Some(url) => Proxy::Url(url.to_owned()),
            },
            token,
            ..AgentConfig::default()
        })
    }

    fn token(&self, settings: &Settings, configured: bool) -> Result<Secret, Failure> {
        let token = match (
            &self.token,
            &self.token_file,
            &settings.token,
            &settings.token_file,
        ) {
            (Some(token), ..) => settings::tidy(token).to_owned(),
            (None, Some(file), ..) => settings::read_secret(file)?,
            (None, None, Some(token), _) if configured => settings::tidy(token.reveal()).to_owned(),
            (None, None, None, Some(file)) if configured => settings::read_secret(file)?,
            _ => String::new(),
        };
        Ok(Secret::new(token))
    }

    fn trust(
        &self,
        settings: &Settings,
        configured: bool,
        named: bool,
        state: &StateDir,
    ) -> Result<Trust, Failure> {
        let pin = match (&self.pin, &settings.pin) {
            (Some(pin), _) => Some(*pin),
            (None, Some(text)) if configured && self.ca.is_none() => {
                Some(text.parse().map_err(|err| misconfigured("pin", err))?)
            }
            _ => None,
        };
        if let Some(pin) = pin {
            return Ok(Trust::Pins(vec![pin]));
        }
        let file = settings.ca.as_ref().filter(|_| configured);
        match self.ca.as_ref().or(file) {
            Some(ca) => Ok(Trust::Ca(ca.clone())),
            None if named => Ok(Trust::System),
            // The local edge of the same user has the same state directory, and so the same CA.
            None => Ok(Trust::Ca(qtunnel::local_ca(state).map_err(Failure::usage)?)),
        }
    }
}

/// Tell which line of a configuration file is wrong.
pub fn misconfigured(key: &str, err: impl std::fmt::Display) -> Failure {
    Failure::usage(format!("{key} in the configuration file: {err}"))
}
