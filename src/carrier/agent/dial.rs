//! Dialling an edge: race the carriers, and take the first connection that is established.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{
    Request, Uri,
    header::{HOST, SEC_WEBSOCKET_ACCEPT},
};
use http_body_util::Empty;
use quinn::{
    AsyncUdpSocket, ClientConfig, Connection, Endpoint, EndpointConfig, Runtime, TokioRuntime,
};
use tokio::sync::{mpsc, watch};

use super::dial_error::{AttemptError, DialError};
use super::driver::{CarrierState, Driver, NetworkWatch};
use super::factory::{CarrierFactory, Upgraded};
use super::race::Race;
use super::{network_watch, refusal};
use crate::carrier::congestion::PathMemory;
use crate::carrier::duplicate::duplicator::Duplicator;
use crate::carrier::tcp::connect::{Peer, STEP_TIMEOUT, TcpConnectError, TunnelResponse};
use crate::carrier::tcp::proxy::{Connected, Proxy};
use crate::carrier::tcp::{connect, outer_tls, proxy};
use crate::carrier::transport::LARGEST_PACKET;
use crate::carrier::websocket::PeerInfo;
use crate::carrier::websocket::upgrade::{WEBSOCKET_PATH, upgrade_request};
use crate::carrier::{Carrier, Transport};
use crate::net::path_kind::PathKind;
use crate::net::udp_socket;

/// The configuration of a dial: which edge, and how to connect to it.
#[derive(Clone)]
pub struct DialConfig {
    /// The edge's host name or address, for UDP.
    pub host: String,
    pub port: u16,
    /// The name that the edge's certificate must be valid for.
    pub server_name: String,
    pub transport: Transport,
    /// The TLS configuration of QUIC. The transport settings are set by the dial.
    pub quic: ClientConfig,
    /// The WebSocket's URL, `wss://host:port` or `ws://host:port`: the edge, or a proxy in front of it.
    pub websocket: Uri,
    /// The TLS configuration for `wss://`: see [`outer_tls`](Self::outer_tls).
    pub websocket_tls: Arc<rustls::ClientConfig>,
    pub proxy: Proxy,
    /// The TLS configuration for an `https://` proxy. It must verify certificates: the proxy gets credentials.
    pub proxy_tls: Arc<rustls::ClientConfig>,
    /// Path measurements of earlier connections to the same edge.
    pub memory: PathMemory,
}

impl DialConfig {
    /// Return the TLS configuration for `wss://`: see [`outer_tls`](fn@outer_tls::outer_tls).
    pub fn outer_tls() -> Arc<rustls::ClientConfig> {
        outer_tls::outer_tls()
    }
}

/// A connection that survives changes of the network, as long as its driver runs.
pub struct Dialed {
    pub connection: Connection,
    pub endpoint: Endpoint,
    pub carrier: watch::Receiver<CarrierState>,
    pub driver: Driver,
    pub duplicator: Duplicator,
}

/// Connect to the edge over the first carrier that completes a QUIC handshake.
///
/// # Errors
/// [`DialError`], with the error of every attempt, if no carrier does.
pub async fn dial(config: DialConfig) -> Result<Dialed, DialError> {
    let host = config.host.clone();
    let resolved = match config.transport {
        Transport::Websocket => Ok(Vec::new()),
        Transport::Quic => connect::resolve(&host, config.port, STEP_TIMEOUT).await,
        Transport::Auto => connect::resolve(&host, config.port, UDP_RESOLVE_TIMEOUT).await,
    };
    let mut attempts = Vec::new();
    let edge = resolved.unwrap_or_else(|err| {
        let carrier = Carrier::Udp;
        attempts.push(AttemptError::Tcp { carrier, err });
        Vec::new()
    });
    let race = race_for(&config, edge);
    let established = match race.run(config.transport, &mut attempts).await {
        Some(established) => established,
        None => return Err(DialError { host, attempts }),
    };
    let mut remotes = race.edge.clone();
    remotes.truncate(1);
    remotes.extend(established.websocket_tasks.peer());
    let (changed, changes) = mpsc::channel(MAX_QUEUED_CHANGES);
    let network = NetworkWatch {
        changes,
        watcher: Some(Box::pin(network_watch::watch(remotes, changed))),
    };
    let connection = established.connection.clone();
    let endpoint = established.endpoint.clone();
    let duplicator = Duplicator::for_agent(&connection, &established.switch);
    let (driver, carrier) = race.drive(established, config.transport, network);
    Ok(Dialed {
        duplicator,
        connection,
        endpoint,
        carrier,
        driver,
    })
}

/// Create a race over real sockets, to these UDP addresses and the WebSocket of `config`.
pub(crate) fn race_for(config: &DialConfig, edge: Vec<SocketAddr>) -> Race {
    let mut endpoint = EndpointConfig::default();
    endpoint
        .max_udp_payload_size(LARGEST_PACKET)
        .expect("more than the least that QUIC allows");
    Race {
        quic: config.quic.clone(),
        path_kind: path_kind(&config.host, &edge),
        memory: config.memory.clone(),
        endpoint,
        server_name: config.server_name.clone(),
        edge,
        factory: Arc::new(RealCarriers(config.clone())),
    }
}

/// Determine whether the edge is on this machine: by its addresses, or by its name if no addresses were
/// resolved.
fn path_kind(host: &str, edge: &[SocketAddr]) -> PathKind {
    let local = match edge {
        [] => {
            let address = host.parse::<IpAddr>();
            host == "localhost" || address.is_ok_and(|ip| ip.is_loopback())
        }
        edge => edge.iter().all(|addr| addr.ip().is_loopback()),
    };
    match local {
        true => PathKind::Loopback,
        false => PathKind::Network,
    }
}

/// Creates carriers over real sockets.
struct RealCarriers(DialConfig);

impl CarrierFactory for RealCarriers {
    fn bind(&self) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(udp_socket::bind_any_port()?)
    }

    fn dial(&self) -> BoxFuture<'static, Result<Upgraded, TcpConnectError>> {
        let config = self.0.clone();
        Box::pin(async move { dial_websocket(&config).await })
    }

    fn refused(&self, to: SocketAddr) -> BoxFuture<'static, io::Error> {
        Box::pin(refusal::refused(to))
    }
}

/// The destination of a WebSocket, parsed from its URL.
pub(crate) struct Target<'a> {
    pub(crate) use_tls: bool,
    pub(crate) host: &'a str,
    pub(crate) port: u16,
}

impl<'a> Target<'a> {
    /// Parse a URL. The default ports are 443 and 80.
    ///
    /// # Errors
    /// [`TcpConnectError::Url`] if it has another scheme or no host.
    pub(crate) fn of(url: &'a Uri) -> Result<Self, TcpConnectError> {
        let use_tls = match url.scheme_str() {
            Some("wss" | "https") => true,
            Some("ws" | "http") => false,
            _ => return Err(TcpConnectError::Url(url.clone())),
        };
        Ok(Self {
            use_tls,
            host: url
                .host()
                .ok_or_else(|| TcpConnectError::Url(url.clone()))?,
            port: url.port_u16().unwrap_or(if use_tls { 443 } else { 80 }),
        })
    }
}

/// Connect to the WebSocket's URL, and upgrade the connection.
pub(crate) async fn dial_websocket(config: &DialConfig) -> Result<Upgraded, TcpConnectError> {
    let url = &config.websocket;
    let Target {
        use_tls,
        host,
        port,
    } = Target::of(url)?;
    let peer = Peer::Edge(format!("{host}:{port}"));
    let Connected {
        mut io,
        address,
        congestion,
    } = proxy::connect(&config.proxy, use_tls, host, port, &config.proxy_tls).await?;
    if use_tls {
        io = connect::tls_handshake(&peer, host, io, &config.websocket_tls).await?;
    }
    let (headers, accept) = upgrade_request().map_err(|_| TcpConnectError::Randomness)?;
    let authority = match url.port_u16() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    let mut request = Request::get(WEBSOCKET_PATH)
        .header(HOST, authority)
        .body(Empty::<Bytes>::new())
        .map_err(|_| TcpConnectError::Url(url.clone()))?;
    request.headers_mut().extend(headers);
    match connect::request_tunnel(&peer, io, request).await? {
        TunnelResponse::Upgraded(headers, io)
            if headers.get(SEC_WEBSOCKET_ACCEPT) == Some(&accept) =>
        {
            let path_kind = path_kind(host, &[]);
            Ok(Upgraded {
                io,
                peer: PeerInfo {
                    address,
                    path_kind,
                    congestion,
                },
            })
        }
        TunnelResponse::Upgraded(..) => Err(TcpConnectError::WrongAccept { peer }),
        TunnelResponse::Refused(status) => Err(TcpConnectError::NotUpgraded { peer, status }),
    }
}

/// The time for which DNS may delay the WebSocket. Only UDP needs the result: a proxy resolves names itself.
const UDP_RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Network changes that may be queued. More would say nothing new.
const MAX_QUEUED_CHANGES: usize = 8;
