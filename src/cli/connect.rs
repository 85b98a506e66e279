//! `qtunnel connect`: the agent.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use qtunnel::proto::{AgentId, Refusal};
use qtunnel::{
    Address, Agent, AgentConfig, AgentError, ConnectError, HostHeader, Name, ServerAddr, StateDir,
    TunnelConfig, UpgradeName, Upgrades, chain, escape,
};

use tracing::info;

use super::edge_flags::{EdgeFlags, misconfigured};
use super::output::Output;
use super::settings::{self, Settings};
use super::{Failure, signal};

#[derive(Args)]
pub struct ConnectArgs {
    /// Publish this: a port (3000), HOST:PORT, http://…, https://…, https+insecure://…, h2c://…,
    /// unix:/path, or a directory
    upstream: Option<String>,
    #[command(flatten)]
    edge: EdgeFlags,
    /// Ask for this name: NAME.example.com [default: one that stays the same]
    #[arg(long, value_name = "NAME", env = "QTUNNEL_SUBDOMAIN")]
    subdomain: Option<String>,
    /// Use a new name that nobody can guess
    #[arg(long, conflicts_with = "subdomain")]
    random: bool,
    /// Claim the name even if another agent with the same token holds it, and disconnect that agent
    #[arg(long, env = "QTUNNEL_TAKE_OVER_NAME")]
    take_over_name: bool,
    /// Send the upstream this Host: preserve, rewrite, or a host
    #[arg(long, value_name = "preserve|rewrite|HOST")]
    host_header: Option<HostHeader>,
    /// Let visitors upgrade to this protocol, besides websocket (never h2c); may be repeated
    #[arg(long, value_name = "NAME")]
    allow_upgrade: Vec<UpgradeName>,
    /// Print one JSON object per line, for each event
    #[arg(long)]
    json: bool,
    /// Wait this long for the start of the upstream's response
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = super::duration)]
    upstream_timeout: Duration,
    /// Let conversations continue for this long after Ctrl-C or SIGTERM
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = super::duration)]
    grace_period: Duration,
    /// Exit with code 5 if the edge cannot be reached, instead of retrying indefinitely
    #[arg(long)]
    exit_on_failure: bool,
    /// Keep this agent's identity here
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// Run an agent until a signal arrives or it fails permanently.
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

/// Build the configuration from flags, files and the state directory.
fn configure(args: ConnectArgs) -> Result<(AgentConfig, Output), Failure> {
    let settings = Settings::load()?;
    let state = settings::state_dir(args.state_dir)?;
    let state = StateDir::open(state).map_err(Failure::usage)?;
    let id = identity(&state)?;

    let edge = args.edge.configure(&settings, &state)?;
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

    let mut upgrades = Upgrades::default();
    for name in &args.allow_upgrade {
        upgrades.allow(name.as_str()).map_err(Failure::usage)?;
    }
    // A flag replaces the setting of the file.
    let configured = settings.allow_upgrade.iter().flatten();
    for name in configured.filter(|_| args.allow_upgrade.is_empty()) {
        upgrades
            .allow(name)
            .map_err(|err| misconfigured("allow-upgrade", format!("{name:?}: {err}")))?;
    }

    let config = AgentConfig {
        id,
        take_over_names: args.take_over_name,
        tunnels: vec![TunnelConfig {
            name,
            upstream: address.clone().into(),
            host_header,
            upgrades,
        }],
        grace_period: args.grace_period,
        upstream_timeout: args.upstream_timeout,
        exit_on_failure: args.exit_on_failure,
        ..edge
    };
    Ok((config, Output::start(args.json, address.to_string())))
}

/// Load this agent's identity, or create it.
///
/// # Errors
/// [`Failure`] if the file cannot be read or written, or is damaged.
pub fn identity(state: &StateDir) -> Result<AgentId, Failure> {
    let stored = state
        .read_or_write("agent-id", || AgentId::random().to_hex().into_bytes())
        .map_err(Failure::usage)?;
    AgentId::from_hex(&String::from_utf8_lossy(&stored)).ok_or_else(|| {
        let path = state.path("agent-id");
        Failure::usage(format!(
            "{} is damaged: remove it to have a new one made",
            path.display()
        ))
    })
}

/// Convert an error of the agent: with the exit code, and with advice that the edge cannot give.
pub fn failure(err: AgentError, server: &ServerAddr, has_token: bool) -> Failure {
    let advice = match &err {
        AgentError::Connect(ConnectError::Refused(Refusal::Unauthorized)) if has_token => Some(
            "compare it with the one that the edge uses (`qtunnel login` remembers another)"
                .to_owned(),
        ),
        AgentError::Connect(ConnectError::Refused(Refusal::Unauthorized)) => Some(format!(
            "none was given; run `qtunnel login {server} --token …`, or set QTUNNEL_TOKEN"
        )),
        AgentError::Connect(ConnectError::Refused(Refusal::NameTaken {
            may_take_over, ..
        })) => Some(match may_take_over {
            true => {
                "ask for another with --subdomain, or take it over with --take-over-name".into()
            }
            false => "ask for another with --subdomain".into(),
        }),
        _ => None,
    };
    let code = match &err {
        AgentError::Connect(err) => code(err),
        AgentError::Superseded | AgentError::TakenOver { .. } => 4,
        AgentError::Trust(_) => 2,
    };
    // Escaped, on one line: it may contain text from an edge, a proxy or a certificate.
    let text = chain(&err);
    let text = escape(&text);
    let error = match advice {
        Some(advice) => format!("{text}: {advice}").into(),
        None => text.into(),
    };
    Failure { code, error }
}

/// Return the exit code for a session that could not be opened.
pub fn code(err: &ConnectError) -> u8 {
    match err {
        ConnectError::Refused(Refusal::Unauthorized) => 3,
        ConnectError::Refused(Refusal::NameTaken { .. }) => 4,
        ConnectError::Refused(Refusal::NameInvalid { .. } | Refusal::TooManyTunnels { .. }) => 2,
        ConnectError::Trust(_) | ConnectError::Untrusted { .. } => 2,
        ConnectError::Unreachable { .. }
        | ConnectError::Silent { .. }
        | ConnectError::Lost { .. } => 5,
        _ => 1,
    }
}
