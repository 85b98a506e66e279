//! The agent's way to a connection: race the carriers, take the first that brings one.

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
use super::driver::{CarrierFactory, CarrierState, Driver, Watch};
use super::race::Race;
use super::websocket_tasks::Upgraded;
use super::{network_watch, refusal};
use crate::carrier::congestion::PathMemory;
use crate::carrier::duplicate::duplicator::Duplicator;
use crate::carrier::duplicate::transmitter::Transmitter;
use crate::carrier::tcp::connect::{Answer, HOP, Peer, TcpConnectError};
use crate::carrier::tcp::proxy::{Connected, Proxy};
use crate::carrier::tcp::{connect, proxy};
use crate::carrier::transport::{LARGEST_PACKET, PathKind};
use crate::carrier::websocket::PeerInfo;
use crate::carrier::websocket::upgrade::{WEBSOCKET_PATH, upgrade_request};
use crate::carrier::{Carrier, Transport, udp_socket};

/// What to dial and how.
#[derive(Clone)]
pub struct DialConfig {
    /// The edge's host name or address, for UDP.
    pub host: String,
    pub port: u16,
    /// The name that the edge's certificate must be for.
    pub server_name: String,
    pub transport: Transport,
    /// TLS; the transport's settings are made here.
    pub quic: ClientConfig,
    /// `wss://host:port` or `ws://host:port`, the edge or whatever stands in front of it.
    pub websocket: Uri,
    /// For the TLS of `wss://`: see [`outer_tls`](fn@crate::carrier::tcp::outer_tls).
    pub websocket_tls: Arc<rustls::ClientConfig>,
    pub proxy: Proxy,
    /// For the TLS with an `https://` proxy, which is shown our credentials.
    pub proxy_tls: Arc<rustls::ClientConfig>,
    /// What earlier connections to the same edge have found out about the way.
    pub memory: PathMemory,
}

/// A connection that will outlive its network, as long as the driver runs.
pub struct Dialed {
    pub connection: Connection,
    pub endpoint: Endpoint,
    pub carrier: watch::Receiver<CarrierState>,
    pub driver: Driver,
    pub transmitter: Transmitter,
    pub duplicator: Duplicator,
}

/// PathKind the edge over the first carrier that brings a QUIC connection.
pub async fn dial(config: DialConfig) -> Result<Dialed, DialError> {
    let host = config.host.clone();
    let resolved = match config.transport {
        Transport::Websocket => Ok(Vec::new()),
        Transport::Quic => connect::resolve(&host, config.port, HOP).await,
        Transport::Auto => connect::resolve(&host, config.port, RESOLVE).await,
    };
    let mut attempts = Vec::new();
    let edge = resolved.unwrap_or_else(|hop| {
        let carrier = Carrier::Udp;
        attempts.push(AttemptError::Peer { carrier, hop });
        Vec::new()
    });
    let race = race_for(&config, edge);
    let mut established = match race.run(config.transport, &mut attempts).await {
        Some(established) => established,
        None => return Err(DialError { host, attempts }),
    };
    let mut hops = race.edge.clone();
    hops.truncate(1);
    hops.extend(established.lines.peer());
    let (changed, changes) = mpsc::channel(CHANGES);
    let network = Watch {
        changes,
        watcher: Some(Box::pin(network_watch::watch(hops, changed))),
    };
    let connection = established.connection.clone();
    let endpoint = established.endpoint.clone();
    let transmitter = std::mem::take(&mut established.transmitter);
    let duplicator = Duplicator::of_agent(&connection, &established.switch);
    let (driver, carrier) = race.drive(established, config.transport, network);
    Ok(Dialed {
        transmitter,
        duplicator,
        connection,
        endpoint,
        carrier,
        driver,
    })
}

/// Race in the real world, to these UDP addresses and the WebSocket of `config`.
pub(crate) fn race_for(config: &DialConfig, edge: Vec<SocketAddr>) -> Race {
    let mut endpoint = EndpointConfig::default();
    endpoint
        .max_udp_payload_size(LARGEST_PACKET)
        .expect("more than the least that QUIC allows");
    Race {
        quic: config.quic.clone(),
        reach: reach(&config.host, &edge),
        memory: config.memory.clone(),
        endpoint,
        server_name: config.server_name.clone(),
        edge,
        ways: Arc::new(RealCarriers(config.clone())),
    }
}

/// Tell whether the edge is on this machine: by its addresses, or by its name where they are not asked
/// for.
fn reach(host: &str, edge: &[SocketAddr]) -> PathKind {
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

/// The carriers of the real world.
struct RealCarriers(DialConfig);

impl CarrierFactory for RealCarriers {
    fn bind(&self) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(udp_socket::any_port()?)
    }

    fn dial(&self) -> BoxFuture<'static, Result<Upgraded, TcpConnectError>> {
        let config = self.0.clone();
        Box::pin(async move { dial_websocket(&config).await })
    }

    fn refused(&self, to: SocketAddr) -> BoxFuture<'static, io::Error> {
        Box::pin(refusal::refused(to))
    }
}

/// Where a WebSocket is dialled.
pub(crate) struct Target<'a> {
    pub(crate) tls_handshake: bool,
    pub(crate) host: &'a str,
    pub(crate) port: u16,
}

impl<'a> Target<'a> {
    pub(crate) fn of(url: &'a Uri) -> Result<Self, TcpConnectError> {
        let tls_handshake = match url.scheme_str() {
            Some("wss" | "https") => true,
            Some("ws" | "http") => false,
            _ => return Err(TcpConnectError::Url(url.clone())),
        };
        Ok(Self {
            tls_handshake,
            host: url
                .host()
                .ok_or_else(|| TcpConnectError::Url(url.clone()))?,
            port: url
                .port_u16()
                .unwrap_or(if tls_handshake { 443 } else { 80 }),
        })
    }
}

pub(crate) async fn dial_websocket(config: &DialConfig) -> Result<Upgraded, TcpConnectError> {
    let url = &config.websocket;
    let Target {
        tls_handshake,
        host,
        port,
    } = Target::of(url)?;
    let hop = Peer::Edge(format!("{host}:{port}"));
    let Connected {
        mut io,
        peer,
        congestion,
    } = proxy::connect(&config.proxy, tls_handshake, host, port, &config.proxy_tls).await?;
    if tls_handshake {
        io = connect::tls_handshake(&hop, host, io, &config.websocket_tls).await?;
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
    match connect::request_tunnel(&hop, io, request).await? {
        Answer::Upgraded(headers, io) if headers.get(SEC_WEBSOCKET_ACCEPT) == Some(&accept) => {
            let reach = reach(host, &[]);
            Ok(Upgraded {
                io,
                peer: PeerInfo {
                    peer,
                    reach,
                    congestion,
                },
            })
        }
        Answer::Upgraded(..) => Err(TcpConnectError::WrongAccept { hop }),
        Answer::Refused(status) => Err(TcpConnectError::NotUpgraded { hop, status }),
    }
}

/// How long UDP may keep a WebSocket waiting for DNS, which a proxy does for itself.
const RESOLVE: Duration = Duration::from_secs(2);

/// Changes of the network that wait to be looked at; more say nothing new.
const CHANGES: usize = 8;
