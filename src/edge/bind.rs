//! The edge's two phases: bind, then serve.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::Endpoint;
use quinn::crypto::rustls::QuicServerConfig;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::agents::Agents;
use super::carriers::Carriers;
use super::config::{EdgeConfig, EdgeIdentity};
use super::hold::Hold;
use super::journal::Journal;
use super::listen::{self, ListenError};
use super::registry::Registry;
use super::visitors::{Crowd, Listener, Visitors};
use crate::auth::Tokens;
use crate::carrier::{self, EdgeKeys, EdgeSocket, Reach};
use crate::proto::{ALPN, ALPN_ANY, Close};
use crate::state::{StateDir, StateError};
use crate::tls::{CaError, Identity, IdentityError, LocalCa, Pin};

/// An edge that is bound and ready to serve.
pub struct Edge {
    config: EdgeConfig,
    listeners: Vec<Listener>,
    endpoint: Endpoint,
    socket: EdgeSocket,
    /// QUIC's settings for agents on this machine.
    nearby: Arc<quinn::ServerConfig>,
    identity: Identity,
    tokens: Tokens,
    registry: Registry,
    addrs: Addrs,
}

/// Where an edge listens.
#[derive(Debug, Clone, Default)]
struct Addrs {
    http: Vec<SocketAddr>,
    https: Vec<SocketAddr>,
    quic: Option<SocketAddr>,
}

impl Edge {
    /// Do all that can fail: load or make certificates, bind addresses.
    ///
    /// # Errors
    /// [`BindError`] names the file or address.
    pub async fn bind(config: EdgeConfig) -> Result<Self, BindError> {
        let state = StateDir::open(&config.state_dir)?;
        let identity = match &config.identity {
            EdgeIdentity::LocalCa => LocalCa::open(&state)?.issue(&config.domain)?,
            EdgeIdentity::Files { chain, key } => Identity::load(chain, key)?,
        };
        let mut tokens = if config.tokens.is_none() {
            Tokens::open()
        } else {
            Tokens::default()
        };
        config
            .tokens
            .iter()
            .flatten()
            .for_each(|token| tokens.add(token));

        let (journal, kept) = Journal::open(state.clone())?;
        let registry = Registry::new(config.lease, journal, kept);
        let mut addrs = Addrs::default();
        let listeners = listen_for_visitors(&config, &identity, &mut addrs)?;
        let (endpoint, socket, nearby) =
            listen_for_agents(&config, &identity, keys(&state)?, &mut addrs)?;
        Ok(Self {
            config,
            listeners,
            endpoint,
            socket,
            nearby,
            identity,
            tokens,
            registry,
            addrs,
        })
    }

    /// Return where visitors connect in clear text.
    pub fn http_addrs(&self) -> &[SocketAddr] {
        &self.addrs.http
    }

    /// Return where visitors connect over TLS.
    pub fn https_addrs(&self) -> &[SocketAddr] {
        &self.addrs.https
    }

    /// Return where agents connect over UDP.
    pub fn quic_addrs(&self) -> &[SocketAddr] {
        self.addrs.quic.as_slice()
    }

    /// Return the pin by which agents may recognise this edge.
    pub fn pin(&self) -> Pin {
        self.identity.pin()
    }

    /// Report whether agents most likely recognise this edge without a pin: whether this machine's
    /// own certificate authorities vouch for it.
    pub fn is_publicly_trusted(&self) -> bool {
        self.identity.is_publicly_trusted(&self.config.domain)
    }

    /// Serve agents and visitors until `shutdown`, then drain for as long as the grace period.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let registry = self.registry;
        // Cancelled when draining begins, and when it must end.
        let (draining, closing) = (CancellationToken::new(), CancellationToken::new());
        let upgrades = TaskTracker::new();
        let carriers = Carriers {
            socket: self.socket.clone(),
            pumps: TaskTracker::new(),
            end: CancellationToken::new(),
        };
        let agents = Arc::new(Agents {
            registry: registry.clone(),
            socket: self.socket,
            nearby: self.nearby,
            tokens: self.tokens,
            limits: self.config.limits,
            urls: Urls::new(&self.config, &self.addrs),
            draining: draining.clone(),
            grace_period: self.config.grace_period,
        });
        let visitors = Arc::new(Visitors {
            hold: Hold::new(registry.clone(), self.config.hold, &self.config.limits),
            domain: self.config.domain.to_ascii_lowercase(),
            limits: self.config.limits,
            crowd: Crowd::default(),
            trusted_proxies: self.config.trusted_proxies,
            redirect: self
                .config
                .redirect_https
                .then(|| self.addrs.https.first().map_or(443, SocketAddr::port)),
            carriers: carriers.clone(),
            upgrades: upgrades.clone(),
            draining: draining.clone(),
            closing: closing.clone(),
        });

        let mut sessions = JoinSet::new();
        sessions.spawn(agents.clone().accept(self.endpoint.clone()));
        let written = CancellationToken::new();
        let mut keeper = JoinSet::new();
        keeper.spawn(registry.keep(written.clone()));
        let mut listeners = JoinSet::new();
        for listener in self.listeners {
            listeners.spawn(visitors.clone().accept(listener));
        }
        shutdown.await;

        // The order: no new visitors; agents hear of it; conversations under way end, or are cut
        // when the grace period is over; then the agents' connections are closed.
        info!(grace = ?self.config.grace_period, "draining");
        draining.cancel();
        upgrades.close();
        let drained = async {
            while listeners.join_next().await.is_some() {}
            upgrades.wait().await;
        };
        if tokio::time::timeout(self.config.grace_period, drained)
            .await
            .is_err()
        {
            warn!("the grace period is over, cutting what is left");
        }
        closing.cancel();
        listeners.shutdown().await;
        self.endpoint.close(Close::Done.code(), b"the edge stops");
        // So that the agents hear of it; one that does not answer is not waited for.
        let _ = tokio::time::timeout(FAREWELL, self.endpoint.wait_idle()).await;
        carriers.end.cancel();
        carriers.pumps.close();
        carriers.pumps.wait().await;
        sessions.shutdown().await;
        written.cancel();
        while keeper.join_next().await.is_some() {}
        debug!("closed");
    }
}

fn listen_for_visitors(
    config: &EdgeConfig,
    identity: &Identity,
    addrs: &mut Addrs,
) -> Result<Vec<Listener>, BindError> {
    let mut listeners = Vec::new();
    for addr in &config.http {
        let (tcp, addr) = bound(*addr)?;
        addrs.http.push(addr);
        listeners.push(Listener { tcp, tls: None });
    }
    let tls = TlsAcceptor::from(Arc::new(identity.visitor_config()));
    for addr in &config.https {
        let (tcp, addr) = bound(*addr)?;
        addrs.https.push(addr);
        listeners.push(Listener {
            tcp,
            tls: Some(tls.clone()),
        });
    }
    Ok(listeners)
}

fn listen_for_agents(
    config: &EdgeConfig,
    identity: &Identity,
    keys: EdgeKeys,
    addrs: &mut Addrs,
) -> Result<(Endpoint, EdgeSocket, Arc<quinn::ServerConfig>), BindError> {
    let tls = identity.agent_config(&[ALPN, ALPN_ANY]);
    let tls = QuicServerConfig::try_from(tls).expect("the configuration speaks TLS 1.3");
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls));
    let mut nearby = server.clone();
    server.transport_config(carrier::edge_transport(Reach::Network));
    nearby.transport_config(carrier::edge_transport(Reach::Loopback));
    let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
    let refused = |err| ListenError::new("UDP", config.quic.unwrap_or(unspecified), err);
    let (endpoint, socket) =
        carrier::edge_endpoint(config.quic, server, keys, config.limits.websockets)
            .map_err(refused)?;
    if config.quic.is_some() {
        addrs.quic = Some(endpoint.local_addr().map_err(refused)?);
    }
    Ok((endpoint, socket, Arc::new(nearby)))
}

fn bound(addr: SocketAddr) -> Result<(TcpListener, SocketAddr), ListenError> {
    let tcp = listen::tcp(addr)?;
    let addr = tcp
        .local_addr()
        .map_err(|err| ListenError::new("TCP", addr, err))?;
    Ok((tcp, addr))
}

fn keys(state: &StateDir) -> Result<EdgeKeys, StateError> {
    let fresh = || {
        let mut random = vec![0; EdgeKeys::LENGTH];
        aws_lc_rs::rand::fill(&mut random).expect("the operating system has random numbers");
        random
    };
    let found = state.read_or_write(KEYS_FILE, fresh)?;
    if let Ok(bytes) = <&[u8; EdgeKeys::LENGTH]>::try_from(found.as_slice()) {
        return Ok(EdgeKeys::from_bytes(bytes));
    }
    warn!(
        "the file {KEYS_FILE} is damaged; agents of an earlier edge will need longer to come back"
    );
    let fresh = fresh();
    state.write(KEYS_FILE, &fresh)?;
    let bytes = fresh.as_slice().try_into().expect("made with that length");
    Ok(EdgeKeys::from_bytes(bytes))
}

/// How tunnels' public addresses are written.
#[derive(Debug, Clone)]
pub struct Urls {
    domain: String,
    schemes: Vec<(&'static str, u16, u16)>,
}

impl Urls {
    fn new(config: &EdgeConfig, addrs: &Addrs) -> Self {
        if let Some(url) = &config.public_url {
            let (scheme, usual) = match url.scheme_str() {
                Some("http") => ("http", 80),
                _ => ("https", 443),
            };
            return Self {
                domain: url.host().unwrap_or(&config.domain).to_owned(),
                schemes: vec![(scheme, url.port_u16().unwrap_or(usual), usual)],
            };
        }
        let domain = config.domain.as_str();
        let http = addrs.http.first().map(|addr| ("http", addr.port(), 80));
        let https = addrs.https.first().map(|addr| ("https", addr.port(), 443));
        // On the local edge plain HTTP comes first: no browser trusts the local CA by itself.
        let order = if domain == "localhost" {
            [http, https]
        } else {
            [https, http]
        };
        Self {
            domain: domain.to_owned(),
            schemes: order.into_iter().flatten().collect(),
        }
    }

    /// Return where visitors reach a name, best first.
    pub fn of(&self, name: &str) -> Vec<String> {
        let url = |(scheme, port, usual): &(&str, u16, u16)| match port == usual {
            true => format!("{scheme}://{name}.{}", self.domain),
            false => format!("{scheme}://{name}.{}:{port}", self.domain),
        };
        self.schemes.iter().map(url).collect()
    }
}

/// Keys by which agents learn at once that the edge was restarted.
const KEYS_FILE: &str = "quic.keys";

/// How long to wait for agents to acknowledge that the edge stops.
const FAREWELL: Duration = Duration::from_secs(1);

/// The edge cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The state directory does not work.
    #[error(transparent)]
    State(#[from] StateError),
    /// The local CA does not work.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The certificate or its key cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// An address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
}
