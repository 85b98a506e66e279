//! `qtunnel serve`: the edge.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use http::Uri;
use ipnet::IpNet;
use qtunnel::proto::Secret;
use qtunnel::{Edge, EdgeConfig, EdgeIdentity, EdgeLimits, StateDir};

#[cfg(unix)]
use super::service;
use super::settings::{self, Settings};
use super::suggested_command::SuggestedCommand;
use super::{Failure, signal};

#[derive(Args)]
pub struct ServeArgs {
    /// Serve tunnels below this domain, publicly [default: localhost, on this machine only]
    #[arg(long, env = "QTUNNEL_DOMAIN")]
    domain: Option<String>,
    /// Listen for visitors in clear text: PORT, HOST:PORT or off [default: 80; local: 8080]
    #[arg(long, value_name = "ADDR", env = "QTUNNEL_HTTP")]
    http: Option<Listen>,
    /// Listen for visitors over TLS: PORT, HOST:PORT or off [default: 443; local: 8443]
    #[arg(long, value_name = "ADDR", env = "QTUNNEL_HTTPS")]
    https: Option<Listen>,
    /// Listen for agents over UDP: PORT, HOST:PORT or off [default: 443; local: 8443]
    #[arg(long, value_name = "ADDR", env = "QTUNNEL_QUIC")]
    quic: Option<Listen>,
    /// The certificate chain (PEM, the edge's own first) [default: one from a local CA]
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The private key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Accept agents with this token (better in QTUNNEL_TOKEN or a file: flags are visible to other users)
    #[arg(
        long,
        env = "QTUNNEL_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    token: Option<String>,
    /// Accept agents with the token in this file
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Keep certificates, keys and the token here
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Trust the X-Forwarded-* and Forwarded fields of proxies in this network
    #[arg(long, value_name = "CIDR", value_parser = network)]
    trusted_proxy: Vec<IpNet>,
    /// The URL of the edge for visitors, if a proxy is in front of it: https://example.com
    #[arg(long, value_name = "URL", value_parser = public_url)]
    public_url: Option<Uri>,
    /// Redirect plain HTTP to HTTPS
    #[arg(long)]
    redirect_https: bool,
    /// Take over from the edge that runs with the same state directory, without downtime: it drains
    #[arg(long)]
    take_over: bool,
    /// Let conversations continue for this long after Ctrl-C or SIGTERM, or after another edge has taken over
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = super::duration)]
    grace_period: Duration,
    /// Reserve an agent's names for this long after its connection was lost
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = super::duration)]
    lease: Duration,
    /// Hold requests for an agent that is away for this long before they get 502
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = super::duration)]
    hold: Duration,
    /// The most concurrent connections from one visitor's address
    #[arg(long, value_name = "N", default_value_t = EdgeLimits::default().connections_per_visitor)]
    connections_per_visitor: usize,
    /// The number of threads that serve agents and their visitors [default: one for every two cores]
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,
    /// The most MiB of bodies buffered for slow readers, of all agents together
    #[arg(long, value_name = "MIB", default_value_t = (EdgeLimits::default().buffer >> 20) as u32)]
    buffer: u32,
    /// The most MiB of bodies buffered for slow readers, of one agent
    #[arg(long, value_name = "MIB", default_value_t = (EdgeLimits::default().session_buffer >> 20) as u32)]
    session_buffer: u32,
}

/// The argument of a listener's flag.
#[derive(Clone, Debug)]
enum Listen {
    /// No listener.
    Off,
    /// A port on the default addresses.
    Port(u16),
    /// A socket address.
    Address(SocketAddr),
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        if let Ok(port) = text.strip_prefix(':').unwrap_or(text).parse() {
            return Ok(Self::Port(port));
        }
        text.parse().map(Self::Address).map_err(|_| {
            "not an address: use a port (8080), an IP address and port (127.0.0.1:8080, [::]:443) or off".into()
        })
    }
}

/// Run an edge until a signal arrives or a successor takes over.
pub async fn run(args: ServeArgs) -> Result<(), Failure> {
    let settings = Settings::load()?;
    let domain = match args.domain.or(settings.domain.clone()) {
        Some(domain) => valid_domain(&domain)?,
        None => "localhost".to_owned(),
    };
    let local = domain == "localhost";
    let state_dir = settings::state_dir(args.state_dir)?;
    let token = match (args.token, args.token_file) {
        (Some(token), _) if token.trim().is_empty() => {
            return Err(Failure::usage("the token is empty"));
        }
        (Some(token), _) => Some(Token {
            secret: Secret::new(settings::trim_secret(&token)),
            origin: TokenOrigin::Given,
        }),
        (None, Some(file)) => Some(Token {
            secret: Secret::new(settings::read_secret(&file)?),
            origin: TokenOrigin::File(file),
        }),
        (None, None) if local => None,
        (None, None) => Some(load_or_create_token(&state_dir)?),
    };
    let identity = match (args.cert, args.key) {
        (Some(chain), Some(key)) => EdgeIdentity::Files { chain, key },
        _ => EdgeIdentity::LocalCa,
    };
    let files = matches!(identity, EdgeIdentity::Files { .. });
    let config = EdgeConfig {
        http: addresses(args.http, local, 80, 8080),
        https: addresses(args.https, local, 443, 8443),
        // One QUIC endpoint, which also receives the packets from WebSockets.
        quic: addresses(args.quic, local, 443, 8443).first().copied(),
        identity,
        state_dir: state_dir.clone(),
        tokens: token.as_ref().map(|token| vec![token.secret.clone()]),
        trusted_proxies: args.trusted_proxy,
        public_url: args.public_url,
        redirect_https: args.redirect_https,
        grace_period: args.grace_period,
        lease: args.lease,
        hold: args.hold,
        workers: args.workers.unwrap_or_else(default_workers),
        limits: EdgeLimits {
            connections_per_visitor: args.connections_per_visitor,
            connections: max_connections(),
            buffer: u64::from(args.buffer) << 20,
            session_buffer: u64::from(args.session_buffer) << 20,
            ..EdgeLimits::default()
        },
        domain,
    };
    if config.http.is_empty() && config.https.is_empty() {
        return Err(Failure::usage(
            "with --http off and --https off no visitor can connect",
        ));
    }
    let domain = config.domain.clone();
    #[cfg(unix)]
    let bound = match args.take_over {
        true => Edge::take_over(config).await,
        false => Edge::bind_on(config, service::sockets()?).await,
    };
    #[cfg(not(unix))]
    let bound = match args.take_over {
        true => {
            return Err(Failure::usage(
                "an edge cannot take over from another one on this system, only on Linux: stop the running \
                 one, then start this one without --take-over",
            ));
        }
        false => Edge::bind(config).await,
    };
    let edge = bound.map_err(|err| match err {
        err @ (qtunnel::BindError::Identity(_) | qtunnel::BindError::State(_)) => {
            Failure::usage(err)
        }
        err => Failure::running(err),
    })?;
    announce(&edge, &domain, token.as_ref(), files, &settings);
    #[cfg(unix)]
    let _upgrades = service::ready()?;
    edge.serve(signal::shutdown()?).await;
    Ok(())
}

/// Print the addresses of the edge, and the command for the agent.
fn announce(
    edge: &Edge,
    domain: &str,
    token: Option<&Token>,
    own_certificate: bool,
    settings: &Settings,
) {
    let list = |addrs: &[SocketAddr]| match addrs {
        [] => "off".to_owned(),
        addrs => addrs
            .iter()
            .map(SocketAddr::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    };
    println!("qtunnel edge for *.{domain}");
    println!("  http   {}", list(edge.http_addrs()));
    println!("  https  {}", list(edge.https_addrs()));
    println!("  quic   {}", list(edge.quic_addrs()));
    let Some(token) = token else {
        let command = SuggestedCommand::local(edge, settings);
        println!("publish something: {}", command.connect());
        return;
    };
    // A certificate from a public CA needs no pin.
    let trusted = own_certificate && edge.is_publicly_trusted();
    let command = SuggestedCommand::remote(edge, domain, trusted);
    // The command is at the end of its line, so that it can be copied and pasted.
    let (shown, remark) = match &token.origin {
        TokenOrigin::Created => (Some(token.secret.reveal()), String::new()),
        TokenOrigin::File(file) => {
            let file = std::path::absolute(file).unwrap_or_else(|_| file.clone());
            let remark = format!("it asks for the token, which is in {}; ", file.display());
            (None, remark)
        }
        TokenOrigin::Given => (None, "it asks for the token that you gave; ".to_owned()),
    };
    println!("{remark}on the laptop: {}", command.login(shown));
}

/// The token of the edge.
struct Token {
    secret: Secret,
    origin: TokenOrigin,
}

/// The origin of the token, which decides whether it is printed.
enum TokenOrigin {
    /// Created by this process: it is printed, this once.
    Created,
    /// Read from a file.
    File(PathBuf),
    /// Given by flag or environment.
    Given,
}

/// Load the token from the state directory, or create it there.
fn load_or_create_token(state_dir: &std::path::Path) -> Result<Token, Failure> {
    let state = StateDir::open(state_dir).map_err(Failure::usage)?;
    let mut is_new = false;
    let stored = state
        .read_or_write(TOKEN_FILE, || {
            is_new = true;
            format!("{}\n", qtunnel::generate_token().reveal()).into_bytes()
        })
        .map_err(Failure::usage)?;
    let text = qtunnel::decode_text(&stored).unwrap_or_default();
    match text.trim() {
        "" => Err(Failure::usage(format!(
            "{} is empty: remove it to have a new token made",
            state.path(TOKEN_FILE).display()
        ))),
        token => Ok(Token {
            secret: Secret::new(token),
            origin: match is_new {
                true => TokenOrigin::Created,
                false => TokenOrigin::File(state.path(TOKEN_FILE)),
            },
        }),
    }
}

/// Return the addresses of a listener.
fn addresses(flag: Option<Listen>, local: bool, public: u16, loopback: u16) -> Vec<SocketAddr> {
    match flag {
        Some(Listen::Off) => Vec::new(),
        Some(Listen::Address(addr)) => vec![addr],
        Some(Listen::Port(port)) => default_addresses(local, port),
        None => default_addresses(local, if local { loopback } else { public }),
    }
}

/// Return the loopback or the unspecified addresses, of both families where the machine has both. (A name below
/// `localhost` may be resolved to either.)
fn default_addresses(local: bool, port: u16) -> Vec<SocketAddr> {
    let ipv6 = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    match (local, ipv6) {
        (true, true) if port != 0 => {
            vec![
                (Ipv4Addr::LOCALHOST, port).into(),
                (Ipv6Addr::LOCALHOST, port).into(),
            ]
        }
        (true, _) => vec![(Ipv4Addr::LOCALHOST, port).into()],
        (false, true) => vec![(Ipv6Addr::UNSPECIFIED, port).into()],
        (false, false) => vec![(Ipv4Addr::UNSPECIFIED, port).into()],
    }
}

/// Parse a network, or a single address.
fn network(text: &str) -> Result<IpNet, String> {
    text.parse()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| "not a network: write 10.0.0.0/8, fd00::/8 or a single address".into())
}

/// Parse the URL for visitors: a scheme and a host, without a path.
fn public_url(text: &str) -> Result<Uri, &'static str> {
    let url = text.parse().ok().filter(|url: &Uri| {
        matches!(url.scheme_str(), Some("https" | "http"))
            && url.host().is_some_and(|host| !host.is_empty())
            && matches!(url.path(), "" | "/")
            && url.query().is_none()
    });
    url.ok_or("not a URL for visitors: write https://example.com or https://example.com:8443")
}

/// Normalize a domain, and check that it is valid (RFC 1123 §2.1), with room for a name within 253 bytes.
fn valid_domain(domain: &str) -> Result<String, Failure> {
    let domain = domain.trim_end_matches('.').to_ascii_lowercase();
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || c == b'-')
    };
    if domain.len() > 189
        || !domain.split('.').all(label)
        || domain.parse::<std::net::IpAddr>().is_ok()
    {
        return Err(Failure::usage(format!(
            "{domain:?} is not a domain: give a name such as tunnel.example.com, whose wildcard record \
             (*.tunnel.example.com) points to this machine"
        )));
    }
    Ok(domain)
}

/// Return one worker for every two cores: the others are for the kernel's part of the work, and for other programs.
fn default_workers() -> NonZeroUsize {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new(cores / 2).unwrap_or(NonZeroUsize::MIN)
}

/// Return four fifths of the limit of file descriptors: the rest is for agents and files.
fn max_connections() -> usize {
    let limit = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1024);
    usize::try_from(limit / 5 * 4)
        .unwrap_or(usize::MAX)
        .min(1 << 20)
}

/// The file name of the created token in the state directory.
const TOKEN_FILE: &str = "token";
