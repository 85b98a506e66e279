//! `qtunnel connect`

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use hyper::Uri;
use qtunnel::proto::{AgentId, Refusal, Secret};
use qtunnel::{
    Address, Agent, AgentConfig, AgentError, ConnectError, HostHeader, Name, Pin, Proxy,
    ServerAddr, StateDir, Transport, Trust, TunnelConfig,
};

use tracing::info;

use super::output::Output;
use super::settings::{self, Settings};
use super::{Failure, signal};

#[derive(Args)]
pub struct ConnectArgs {
    /// What to publish: a port (3000), HOST:PORT, http://…, https://…, https+insecure://…, h2c://…,
    /// unix:/path, or a directory
    upstream: Option<String>,
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
    /// Reach the edge through this proxy: http://, https://, socks5:// or off [default: HTTPS_PROXY,
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
    /// Ask for this name: NAME.example.com [default: one that stays the same]
    #[arg(long, value_name = "NAME", env = "QTUNNEL_SUBDOMAIN")]
    subdomain: Option<String>,
    /// Take a new name that nobody can guess
    #[arg(long, conflicts_with = "subdomain")]
    random: bool,
    /// What the upstream sees as Host: preserve, rewrite, or a host
    #[arg(long, value_name = "preserve|rewrite|HOST")]
    host_header: Option<HostHeader>,
    /// Accept only an edge with this key, whoever signed its certificate
    #[arg(long, value_name = "sha256/…", conflicts_with = "ca")]
    pin: Option<Pin>,
    /// Accept only an edge whose certificate this CA has signed (PEM)
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Print one JSON object per line and event
    #[arg(long)]
    json: bool,
    /// How long the upstream may take to begin its answer
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = super::duration)]
    upstream_timeout: Duration,
    /// How long conversations may go on after Ctrl-C or SIGTERM
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = super::duration)]
    grace_period: Duration,
    /// End with code 5 if the edge cannot be reached, instead of trying for ever
    #[arg(long)]
    exit_on_failure: bool,
    /// Keep this agent's identity here
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

pub async fn run(args: ConnectArgs) -> Result<(), Failure> {
    let (mut config, output) = configure(args)?;
    config.observer = output.observer();
    let (server, has_token) = (config.server.clone(), !config.token.reveal().is_empty());
    info!(%server, "connecting");
    let mut shutdown = std::pin::pin!(signal::shutdown()?);
    let ended = tokio::select! {
        agent = Agent::connect(config) => match agent {
            Ok(agent) => agent.serve(shutdown).await,
            Err(err) => Err(err),
        },
        () = &mut shutdown => Ok(()),
    };
    let ended = ended.map_err(|err| failure(err, &server, has_token));
    output.finish(ended.as_ref().err());
    ended
}

fn configure(args: ConnectArgs) -> Result<(AgentConfig, Output), Failure> {
    let settings = Settings::load()?;
    let state = settings::state_dir(args.state_dir)?;
    let state = StateDir::open(state).map_err(Failure::usage)?;
    let id = identity(&state)?;

    let upstream = args.upstream.or(settings.upstream).ok_or_else(|| {
        Failure::usage(
            "what should be published? For example: qtunnel connect 3000 (or a directory)",
        )
    })?;
    let address: Address = upstream
        .parse()
        .map_err(|err| Failure::usage(format!("cannot publish {upstream:?}: {err}")))?;
    let name = match args.subdomain.or(settings.subdomain) {
        _ if args.random => Name::random(),
        Some(name) => name
            .parse()
            .map_err(|err| Failure::usage(format!("the name {name:?} cannot be used: {err}")))?,
        None => Name::derive(&[&id.0, address.to_string().as_bytes()].concat()),
    };
    let host_header = match (args.host_header, settings.host_header) {
        (Some(host_header), _) => host_header,
        (None, Some(text)) => text
            .parse()
            .map_err(|err| misconfigured("host-header", err))?,
        (None, None) => HostHeader::default(),
    };

    // What belongs to a configured server must not be shown to another one.
    let configured = match (&args.server, &settings.server) {
        (Some(flag), Some(file)) => file.parse::<ServerAddr>().is_ok_and(|file| file == *flag),
        (Some(_), None) => false,
        (None, _) => true,
    };
    let server = match (args.server, settings.server) {
        (Some(server), _) => Some(server),
        (None, Some(text)) => Some(text.parse().map_err(|err| misconfigured("server", err))?),
        (None, None) => None,
    };
    let token = match (
        args.token,
        args.token_file,
        settings.token,
        settings.token_file,
    ) {
        (Some(token), ..) => token,
        (None, Some(file), ..) => settings::read_secret(&file)?,
        (None, None, Some(token), _) if configured => token.reveal().to_owned(),
        (None, None, None, Some(file)) if configured => settings::read_secret(&file)?,
        _ => String::new(),
    };
    let pin = match (args.pin, settings.pin) {
        (Some(pin), _) => Some(pin),
        (None, Some(text)) if configured && args.ca.is_none() => {
            Some(text.parse().map_err(|err| misconfigured("pin", err))?)
        }
        _ => None,
    };
    let ca = args
        .ca
        .or(settings.ca.filter(|_| configured && pin.is_none()));
    let trust = match (pin, ca, &server) {
        (Some(pin), ..) => Trust::Pins(vec![pin]),
        (None, Some(ca), _) => Trust::Ca(ca),
        (None, None, Some(_)) => Trust::System,
        // The local edge of the same user has the same state directory, and so the same CA.
        (None, None, None) => Trust::Ca(qtunnel::local_ca(&state).map_err(Failure::usage)?),
    };
    let config = AgentConfig {
        server: server.unwrap_or(ServerAddr {
            host: "localhost".into(),
            port: 8443,
        }),
        trust,
        transport: args.transport,
        websocket: args.websocket_url,
        proxy: match args.proxy.as_deref() {
            None => Proxy::FromEnvironment,
            Some("off") => Proxy::Direct,
            Some(url) => Proxy::Url(url.to_owned()),
        },
        token: Secret::new(token),
        id,
        tunnels: vec![TunnelConfig {
            name,
            upstream: address.clone().into(),
            host_header,
        }],
        grace_period: args.grace_period,
        upstream_timeout: args.upstream_timeout,
        exit_on_failure: args.exit_on_failure,
        observer: qtunnel::Observer::default(),
    };
    Ok((config, Output::start(args.json, address.to_string())))
}

/// Load this agent's identity, or make it.
pub fn identity(state: &StateDir) -> Result<AgentId, Failure> {
    let kept = state
        .read_or_write("agent-id", || AgentId::random().to_hex().into_bytes())
        .map_err(Failure::usage)?;
    AgentId::from_hex(&String::from_utf8_lossy(&kept)).ok_or_else(|| {
        let path = state.path("agent-id");
        Failure::usage(format!(
            "{} is damaged: remove it to have a new one made",
            path.display()
        ))
    })
}

fn misconfigured(key: &str, err: impl std::fmt::Display) -> Failure {
    Failure::usage(format!("{key} in the configuration file: {err}"))
}

/// Choose the exit code, and say what to do where the edge cannot know it.
fn failure(err: AgentError, server: &ServerAddr, has_token: bool) -> Failure {
    let advice = match &err {
        AgentError::Connect(ConnectError::Refused(Refusal::Unauthorized)) if has_token => Some(
            "compare it with the one that the edge uses (`qtunnel login` remembers another)"
                .to_owned(),
        ),
        AgentError::Connect(ConnectError::Refused(Refusal::Unauthorized)) => Some(format!(
            "none was given; run `qtunnel login {server} --token …`, or set QTUNNEL_TOKEN"
        )),
        AgentError::Connect(ConnectError::Refused(Refusal::NameTaken { .. })) => {
            Some("ask for another with --subdomain".to_owned())
        }
        _ => None,
    };
    let code = match &err {
        AgentError::Connect(ConnectError::Refused(Refusal::Unauthorized)) => 3,
        AgentError::Connect(ConnectError::Refused(Refusal::NameTaken { .. }))
        | AgentError::Superseded => 4,
        AgentError::Connect(ConnectError::Refused(
            Refusal::NameInvalid { .. } | Refusal::TooManyTunnels { .. },
        )) => 2,
        AgentError::Connect(ConnectError::Trust(_) | ConnectError::Untrusted { .. })
        | AgentError::Trust(_) => 2,
        AgentError::Connect(
            ConnectError::Unreachable { .. }
            | ConnectError::Silent { .. }
            | ConnectError::Lost { .. },
        ) => 5,
        AgentError::Connect(_) => 1,
    };
    let error = match advice {
        Some(advice) => format!("{err}: {advice}").into(),
        None => err.into(),
    };
    Failure { code, error }
}
