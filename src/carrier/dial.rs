//! The agent's way to a connection: race the carriers, take the first that brings one.
//!
//! Each attempt is a QUIC handshake of its own, because a server answers a handshake to where it
//! began. After it the connection may use either carrier.

use std::{
    error::Error, fmt, io, net::SocketAddr, ops::RangeInclusive, pin::pin, sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use http::{
    Request, Uri,
    header::{HOST, SEC_WEBSOCKET_ACCEPT},
};
use http_body_util::Empty;
use quinn::{
    AsyncUdpSocket, ClientConfig, ConnectError, Connection, ConnectionError, Endpoint,
    EndpointConfig, Runtime, TokioRuntime,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{sleep, timeout},
};

use super::{
    Carrier, Transport,
    agent_socket::AgentSocket,
    bind,
    hop::{self, Answer, HOP, Hop, HopError, STAGGER},
    lines::{Lines, Upgraded},
    network,
    path::{CarrierState, Driver, Established, Watch, Ways},
    proxy::{self, Proxy},
    switch::{EDGE, Switch, UdpRoute},
    upgrade::{WEBSOCKET_PATH, upgrade_request},
};

/// UDP's advantage in the race: a handshake on a 100 ms path with a round trip to spare. Where UDP
/// is blocked it is the price of every start.
const HEAD_START: Duration = Duration::from_millis(250);

/// How long UDP may keep a WebSocket waiting for DNS, which a proxy does for itself.
const RESOLVE: Duration = Duration::from_secs(2);

/// How long a QUIC handshake may take: it repeats lost packets after 1, 2 and 4 s.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long an edge that was asked may stay silent before it is asked anew: QUIC's own repetitions
/// come at intervals that double, and an edge that is just starting is found sooner so (RFC 6298
/// §2.1 gives the same time).
const ROUND: Duration = Duration::from_secs(1);

/// As many as there is time for.
const ROUNDS: u32 = (HANDSHAKE.as_secs() / ROUND.as_secs()) as u32;

/// Changes of the network that wait to be looked at; more say nothing new.
const CHANGES: usize = 8;

/// What to dial and how.
#[derive(Clone)]
pub struct DialConfig {
    /// The edge's host name or address, for UDP.
    pub host: String,
    pub port: u16,
    /// The name that the edge's certificate must be for.
    pub server_name: String,
    pub transport: Transport,
    pub quic: ClientConfig,
    pub endpoint: EndpointConfig,
    /// `wss://host:port` or `ws://host:port`, the edge or whatever stands in front of it.
    pub websocket: Uri,
    /// For the TLS of `wss://`: see [`outer_tls`](fn@super::outer_tls).
    pub websocket_tls: Arc<rustls::ClientConfig>,
    pub proxy: Proxy,
    /// For the TLS with an `https://` proxy, which is shown our credentials.
    pub proxy_tls: Arc<rustls::ClientConfig>,
}

/// A connection that will outlive its network, as long as the driver runs.
pub struct Dialed {
    pub connection: Connection,
    pub endpoint: Endpoint,
    pub carrier: watch::Receiver<CarrierState>,
    pub driver: Driver,
}

/// No carrier brought a connection.
#[derive(Debug)]
pub struct DialError {
    pub host: String,
    /// What each attempt came to.
    pub attempts: Vec<AttemptError>,
}

/// Why one attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    #[error("udp to {to}: no answer within {} s; is UDP port {} open at the edge and on the way?", HANDSHAKE.as_secs(), to.port())]
    NoAnswer { to: SocketAddr },
    #[error("{carrier}: {hop}")]
    Hop {
        carrier: Carrier,
        #[source]
        hop: HopError,
    },
    #[error("{carrier}: no QUIC connection with the edge")]
    Quic {
        carrier: Carrier,
        #[source]
        err: ConnectionError,
    },
    #[error("websocket: no QUIC answer from the edge within {} s", HANDSHAKE.as_secs())]
    NoQuic,
    #[error("websocket: {0}")]
    Ended(String),
    #[error("{0} is not a server name")]
    ServerName(String),
    #[error("cannot connect with this configuration")]
    Configuration(#[source] ConnectError),
    #[error("cannot open a UDP socket")]
    Socket(#[source] io::Error),
}

/// Reach the edge over the first carrier that brings a QUIC connection.
pub async fn dial(config: DialConfig) -> Result<Dialed, DialError> {
    let host = config.host.clone();
    let resolved = match config.transport {
        Transport::Websocket => Ok(Vec::new()),
        Transport::Quic => hop::resolve(&host, config.port, HOP).await,
        Transport::Auto => hop::resolve(&host, config.port, RESOLVE).await,
    };
    let mut attempts = Vec::new();
    let edge = resolved.unwrap_or_else(|hop| {
        let carrier = Carrier::Udp;
        attempts.push(AttemptError::Hop { carrier, hop });
        Vec::new()
    });
    let race = Race::new(&config, edge);
    let established = match race.run(config.transport, &mut attempts).await {
        Some(established) => established,
        None => return Err(DialError { host, attempts }),
    };
    let mut hops = race.edge.clone();
    hops.truncate(1);
    hops.extend(established.lines.peer());
    let (changed, changes) = mpsc::channel(CHANGES);
    let network = Watch {
        changes,
        watcher: Some(Box::pin(network::watch(hops, changed))),
    };
    let connection = established.connection.clone();
    let endpoint = established.endpoint.clone();
    let (driver, carrier) = race.drive(established, config.transport, network);
    Ok(Dialed {
        connection,
        endpoint,
        carrier,
        driver,
    })
}

/// The carriers of the real world.
struct RealWays(DialConfig);

impl Ways for RealWays {
    fn bind(&self) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(bind::any_port()?)
    }

    fn dial(&self) -> BoxFuture<'static, Result<Upgraded, HopError>> {
        let config = self.0.clone();
        Box::pin(async move { dial_websocket(&config).await })
    }
}

async fn dial_websocket(config: &DialConfig) -> Result<Upgraded, HopError> {
    let url = &config.websocket;
    let secure = match url.scheme_str() {
        Some("wss" | "https") => true,
        Some("ws" | "http") => false,
        _ => return Err(HopError::Url(url.clone())),
    };
    let host = url.host().ok_or_else(|| HopError::Url(url.clone()))?;
    let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let hop = Hop::Edge(format!("{host}:{port}"));
    let (io, peer) = proxy::connect(&config.proxy, secure, host, port, &config.proxy_tls).await?;
    let io = match secure {
        true => hop::secure(&hop, host, io, &config.websocket_tls).await?,
        false => io,
    };
    let (headers, accept) = upgrade_request().map_err(|_| HopError::Randomness)?;
    let authority = match url.port_u16() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    let mut request = Request::get(WEBSOCKET_PATH)
        .header(HOST, authority)
        .body(Empty::<Bytes>::new())
        .map_err(|_| HopError::Url(url.clone()))?;
    request.headers_mut().extend(headers);
    match hop::take_over(&hop, io, request).await? {
        Answer::Upgraded(headers, io) if headers.get(SEC_WEBSOCKET_ACCEPT) == Some(&accept) => {
            Ok(Upgraded { io, peer })
        }
        Answer::Upgraded(..) => Err(HopError::WrongAccept { hop }),
        Answer::Refused(status) => Err(HopError::NotUpgraded { hop, status }),
    }
}

/// Handshakes over all carriers.
pub(super) struct Race {
    pub(super) quic: ClientConfig,
    pub(super) endpoint: EndpointConfig,
    pub(super) server_name: String,
    /// The edge's UDP addresses.
    pub(super) edge: Vec<SocketAddr>,
    pub(super) ways: Arc<dyn Ways>,
}

impl Race {
    /// Race in the real world, to these UDP addresses and the WebSocket of `config`.
    pub(super) fn new(config: &DialConfig, edge: Vec<SocketAddr>) -> Self {
        Self {
            quic: config.quic.clone(),
            endpoint: config.endpoint.clone(),
            server_name: config.server_name.clone(),
            edge,
            ways: Arc::new(RealWays(config.clone())),
        }
    }

    /// Run the race; the losers' failures are added to `failed`.
    pub(super) async fn run(
        &self,
        transport: Transport,
        failed: &mut Vec<AttemptError>,
    ) -> Option<Established> {
        let udp_failed = Notify::new();
        let udp = async {
            let outcome = match transport {
                Transport::Websocket => Err(Vec::new()),
                Transport::Auto | Transport::Quic => self.over_udp().await,
            };
            if outcome.is_err() {
                udp_failed.notify_one();
            }
            outcome
        };
        let websocket = async {
            if transport == Transport::Quic {
                return Err(Vec::new());
            }
            tokio::select! {
                () = sleep(HEAD_START) => {}
                () = udp_failed.notified() => {}
            }
            self.over_websocket(transport)
                .await
                .map_err(|err| vec![err])
        };
        let (mut udp, mut websocket) = (pin!(udp), pin!(websocket));
        let second = tokio::select! {
            biased;
            outcome = &mut udp => match outcome {
                Ok(established) => return Some(established),
                Err(err) => { failed.extend(err); websocket.await }
            },
            outcome = &mut websocket => match outcome {
                Ok(established) => return Some(established),
                Err(err) => { failed.extend(err); udp.await }
            },
        };
        second.map_err(|err| failed.extend(err)).ok()
    }

    /// Watch over the winner.
    pub(super) fn drive(
        &self,
        established: Established,
        transport: Transport,
        network: Watch,
    ) -> (Driver, watch::Receiver<CarrierState>) {
        // Without an address for UDP there is one carrier, whatever was asked for.
        let transport = match self.edge.is_empty() {
            true => Transport::Websocket,
            false => transport,
        };
        let reason = format!("reached over {}", established.switch.current());
        Driver::new(established, transport, self.ways.clone(), network, &reason)
    }

    async fn over_udp(&self) -> Result<Established, Vec<AttemptError>> {
        let mut attempts = FuturesUnordered::new();
        for (i, to) in self.edge.iter().enumerate() {
            for round in 0..ROUNDS {
                attempts.push(async move {
                    sleep(ROUND * round + STAGGER * i as u32).await;
                    let left = HANDSHAKE.saturating_sub(ROUND * round);
                    self.over_udp_to(*to, left).await
                });
            }
        }
        let mut failed = Vec::new();
        while let Some(outcome) = attempts.next().await {
            match outcome {
                Ok(established) => return Ok(established),
                // Every round of an address that does not answer ends alike.
                Err(AttemptError::NoAnswer { to }) if has_failed(&failed, to) => {}
                Err(err @ AttemptError::NoAnswer { .. }) => failed.push(err),
                // Somebody is there and says no: asking again would not help.
                Err(err) => {
                    failed.push(err);
                    if self.edge.len() == 1 {
                        break;
                    }
                }
            }
        }
        Err(failed)
    }

    async fn over_udp_to(
        &self,
        to: SocketAddr,
        limit: Duration,
    ) -> Result<Established, AttemptError> {
        let mut edge = self.edge.clone();
        edge.retain(|addr| *addr != to);
        edge.insert(0, to);
        let route = self.udp_route(edge)?;
        let switch = Arc::new(Switch::new(Carrier::Udp, Some(route), None));
        let (face, endpoint, handshake) = self.shake_hands(&switch)?;
        let connection = timeout(limit, handshake)
            .await
            .map_err(|_| AttemptError::NoAnswer { to })?
            .map_err(|err| match err {
                ConnectionError::TimedOut => AttemptError::NoAnswer { to },
                err => AttemptError::Quic {
                    carrier: Carrier::Udp,
                    err,
                },
            })?;
        Ok(Established {
            connection,
            endpoint,
            switch,
            face,
            lines: Lines::default(),
        })
    }

    async fn over_websocket(&self, transport: Transport) -> Result<Established, AttemptError> {
        let carrier = Carrier::WebSocket;
        let upgraded = self
            .ways
            .dial()
            .await
            .map_err(|hop| AttemptError::Hop { carrier, hop })?;
        let route = match transport {
            Transport::Auto if !self.edge.is_empty() => self.udp_route(self.edge.clone()).ok(),
            _ => None,
        };
        let switch = Arc::new(Switch::new(carrier, route, None));
        let mut lines = Lines::default();
        let line = lines.carry(upgraded, switch.arrivals());
        switch.set_websocket(Some(line));
        let (face, endpoint, handshake) = self.shake_hands(&switch)?;
        let connection = tokio::select! {
            outcome = timeout(HANDSHAKE, handshake) => outcome
                .map_err(|_| AttemptError::NoQuic)?
                .map_err(|err| AttemptError::Quic { carrier, err })?,
            ended = lines.ended() => return Err(AttemptError::Ended(ended.to_string())),
        };
        Ok(Established {
            connection,
            endpoint,
            switch,
            face,
            lines,
        })
    }

    fn udp_route(&self, edge: Vec<SocketAddr>) -> Result<UdpRoute, AttemptError> {
        Ok(UdpRoute {
            socket: self.ways.bind().map_err(AttemptError::Socket)?,
            previous: None,
            edge,
        })
    }

    fn shake_hands(
        &self,
        switch: &Arc<Switch>,
    ) -> Result<(Arc<AgentSocket>, Endpoint, quinn::Connecting), AttemptError> {
        let face = AgentSocket::new(switch.clone());
        let endpoint = Endpoint::new_with_abstract_socket(
            self.endpoint.clone(),
            None,
            face.clone(),
            Arc::new(TokioRuntime),
        )
        .map_err(AttemptError::Socket)?;
        let connecting = endpoint
            .connect_with(self.quic.clone(), EDGE, &self.server_name)
            .map_err(|err| match err {
                ConnectError::InvalidServerName(name) => AttemptError::ServerName(name),
                err => AttemptError::Configuration(err),
            })?;
        Ok((face, endpoint, connecting))
    }
}

fn has_failed(failed: &[AttemptError], addr: SocketAddr) -> bool {
    failed
        .iter()
        .any(|err| matches!(err, AttemptError::NoAnswer { to } if *to == addr))
}

impl DialError {
    /// Report whether the edge was reached but its certificate was not accepted.
    pub fn is_untrusted(&self) -> bool {
        self.attempts.iter().any(|attempt| match attempt {
            AttemptError::Quic {
                err: ConnectionError::TransportError(err),
                ..
            } => CERTIFICATE_ALERTS.contains(&u64::from(err.code)),
            _ => false,
        })
    }
}

/// QUIC's codes for what TLS says about a certificate, from `bad_certificate` to `decrypt_error` (a
/// wrong signature): 0x100 and the alert (RFC 9001 §4.8, RFC 8446 §6).
const CERTIFICATE_ALERTS: RangeInclusive<u64> = 0x12a..=0x133;

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "edge {} not reached", self.host)?;
        for attempt in &self.attempts {
            write!(f, "; {attempt}")?;
            let mut cause = attempt.source();
            // A hop's own text is part of its attempt's.
            if matches!(attempt, AttemptError::Hop { .. }) {
                cause = cause.and_then(Error::source);
            }
            while let Some(err) = cause {
                write!(f, ": {err}")?;
                cause = err.source();
            }
        }
        Ok(())
    }
}

impl Error for DialError {}
