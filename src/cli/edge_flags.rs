//! The flags that `connect` and `check` share: the edge, the carrier, the token and the trust.

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
    /// Use this carrier: auto, quic (UDP only) or websocket
    #[arg(
        long,
        value_name = "auto|quic|websocket",
        default_value = "auto",
        env = "QTUNNEL_TRANSPORT"
    )]
    transport: Transport,
    /// Open the WebSocket here, if not at the edge itself: wss://HOST:PORT or ws://HOST:PORT
    #[arg(long, value_name = "URL")]
    websocket_url: Option<Uri>,
    /// Reach the edge through this proxy: http://, https://, socks5:// or off [default: HTTPS_PROXY,
    /// ALL_PROXY and NO_PROXY]
    #[arg(long, value_name = "URL|off")]
    proxy: Option<String>,
    /// The token (better in QTUNNEL_TOKEN or a file: flags are visible to other users)
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
    /// Build an agent's configuration, without tunnels, from the flags and the files.
    ///
    /// # Errors
    /// [`Failure`] if a setting is invalid, or a file cannot be read.
    pub fn configure(self, settings: &Settings, state: &StateDir) -> Result<AgentConfig, Failure> {
        // The token and trust of the configured server must not be used for another one.
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

    /// Return the token from the flags, or that of the configured server.
    fn token(&self, settings: &Settings, configured: bool) -> Result<Secret, Failure> {
        let token = match (
            &self.token,
            &self.token_file,
            &settings.token,
            &settings.token_file,
        ) {
            (Some(token), ..) => settings::trim_secret(token).to_owned(),
            (None, Some(file), ..) => settings::read_secret(file)?,
            (None, None, Some(token), _) if configured => {
                settings::trim_secret(token.reveal()).to_owned()
            }
            (None, None, None, Some(file)) if configured => settings::read_secret(file)?,
            _ => String::new(),
        };
        Ok(Secret::new(token))
    }

    /// Return the trust from the flags, or that of the configured server.
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

/// Create the error of an invalid setting in a configuration file.
pub fn misconfigured(key: &str, err: impl std::fmt::Display) -> Failure {
    Failure::usage(format!("{key} in the configuration file: {err}"))
}
