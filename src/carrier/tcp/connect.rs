//! Connecting to the edge's HTTPS port, step by step: DNS, TCP, TLS and the upgrade.
//!
//! Every step has a time limit and its own error, which names the peer and what to do about it.

use std::{
    error::Error, fmt, future::poll_fn, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper::{client::conn::http1, upgrade::Upgraded as HyperUpgraded};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::carrier::tcp::byte_stream::ByteStream;
use crate::net::path_kind::PathKind;
use crate::net::{happy_eyeballs, tcp_options};
use crate::tls::explain;

/// A TCP connection to the edge, or the WebSocket on it, could not be established.
#[derive(Debug, thiserror::Error)]
pub enum TcpConnectError {
    #[error("cannot resolve {host}; check the name and this machine's DNS")]
    Resolve {
        host: String,
        #[source]
        err: io::Error,
    },
    #[error("cannot connect to {peer} at {addr}; is it running, and is the port open?")]
    Connect {
        peer: Peer,
        addr: SocketAddr,
        #[source]
        err: io::Error,
    },
    #[error("no answer from {peer} within {} s; something on the path drops packets", STEP_TIMEOUT.as_secs())]
    TimedOut { peer: Peer },
    #[error("TLS with {peer} failed")]
    Tls {
        peer: Peer,
        #[source]
        err: io::Error,
    },
    #[error("{peer} did not speak HTTP")]
    Http {
        peer: Peer,
        #[source]
        err: hyper::Error,
    },
    #[error(
        "{peer} wants a user name and a password: put them into its URL (scheme://user:password@host:port)"
    )]
    ProxyAuthentication { peer: Peer },
    #[error("{peer} refused to connect to {target} with status {status}")]
    ProxyRefused {
        peer: Peer,
        target: String,
        status: StatusCode,
    },
    #[error(
        "{peer} did not connect to {target}; if it wants a user name and a password, put them into its URL"
    )]
    Socks {
        peer: Peer,
        target: String,
        #[source]
        err: Box<dyn Error + Send + Sync>,
    },
    #[error("{0} is not the URL of a proxy: use http://, https:// or socks5://")]
    ProxyUrl(String),
    #[error(
        "{peer} answered {status} to the websocket upgrade; it must be an edge, or pass upgrades on to one"
    )]
    NotUpgraded { peer: Peer, status: StatusCode },
    #[error(
        "{peer} accepted the websocket upgrade with a wrong key; is there a cache on the path?"
    )]
    WrongAccept { peer: Peer },
    #[error("{0} is not the URL of an edge: use wss://host or ws://host")]
    Url(Uri),
    #[error("the system's random number generator failed")]
    Randomness,
}

/// The peer of a TCP connection: the edge, or a proxy on the path. Holds `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    Edge(String),
    Proxy(String),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Edge(host) => write!(f, "edge {host}"),
            Self::Proxy(host) => write!(f, "proxy {host}"),
        }
    }
}

/// Resolve a host to a few addresses, IPv4 and IPv6 alternating. There is at least one.
pub(crate) async fn resolve(
    host: &str,
    port: u16,
    limit: Duration,
) -> Result<Vec<SocketAddr>, TcpConnectError> {
    let failed = |err| TcpConnectError::Resolve {
        host: host.into(),
        err,
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let found = timeout(limit, lookup_host((bare, port))).await;
    let found = found
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(failed)?;
    let addresses = happy_eyeballs::alternate(found);
    match addresses.is_empty() {
        true => Err(failed(io::Error::other("it has no address"))),
        false => Ok(addresses),
    }
}

/// Connect to the first address that answers (Happy Eyeballs), and set the options of the socket.
pub(crate) async fn connect(
    peer: &Peer,
    addresses: Vec<SocketAddr>,
) -> Result<TcpStream, TcpConnectError> {
    let (tcp, addr) = match happy_eyeballs::connect(&addresses, STEP_TIMEOUT).await {
        Ok(connected) => connected,
        Err(mut failures) => {
            return Err(match failures.pop() {
                Some((addr, err)) if err.kind() != io::ErrorKind::TimedOut => {
                    TcpConnectError::Connect {
                        peer: peer.clone(),
                        addr,
                        err,
                    }
                }
                _ => TcpConnectError::TimedOut { peer: peer.clone() },
            });
        }
    };
    tcp_options::request_bbr(&tcp, addr);
    let path_kind = match peer {
        Peer::Edge(_) => PathKind::of(addr),
        Peer::Proxy(_) => PathKind::Network,
    };
    tcp_options::limit_send_queue(&tcp, path_kind);
    Ok(tcp)
}

/// Perform the TLS handshake of a client on a connection.
pub(crate) async fn tls_handshake(
    peer: &Peer,
    host: &str,
    io: Box<dyn ByteStream>,
    tls: &Arc<rustls::ClientConfig>,
) -> Result<Box<dyn ByteStream>, TcpConnectError> {
    let failed = |err| TcpConnectError::Tls {
        peer: peer.clone(),
        err,
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name =
        ServerName::try_from(bare.to_owned()).map_err(|err| failed(io::Error::other(err)))?;
    let connecting = TlsConnector::from(tls.clone()).connect(name, io);
    let Ok(connected) = timeout(STEP_TIMEOUT, connecting).await else {
        return Err(TcpConnectError::TimedOut { peer: peer.clone() });
    };
    Ok(Box::new(connected.map_err(|err| failed(explain(err)))?))
}

/// The response to a request that turns the connection into a byte stream.
pub(crate) enum TunnelResponse {
    Upgraded(HeaderMap, Box<dyn ByteStream>),
    Refused(StatusCode),
}

/// Send a request that turns the connection into a byte stream: an upgrade or a CONNECT.
pub(crate) async fn request_tunnel(
    peer: &Peer,
    io: Box<dyn ByteStream>,
    request: Request<Empty<Bytes>>,
) -> Result<TunnelResponse, TcpConnectError> {
    match timeout(STEP_TIMEOUT, exchange(io, request)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(err)) => Err(TcpConnectError::Http {
            peer: peer.clone(),
            err,
        }),
        Err(_) => Err(TcpConnectError::TimedOut { peer: peer.clone() }),
    }
}

async fn exchange(
    io: Box<dyn ByteStream>,
    request: Request<Empty<Bytes>>,
) -> hyper::Result<TunnelResponse> {
    let connect = request.method() == http::Method::CONNECT;
    let mut http = http1::Builder::new();
    http.max_buf_size(MAX_RESPONSE_HEAD);
    let (mut sender, connection) = http.handshake(TokioIo::new(io)).await?;
    let mut connection = pin!(connection.with_upgrades());
    let mut answer = pin!(sender.send_request(request));
    let mut handed_over = false;
    let response = tokio::select! {
        biased;
        response = &mut answer => response?,
        ended = &mut connection => {
            // hyper's connection ends once the byte stream is handed over, possibly before the response is seen.
            ended?;
            handed_over = true;
            answer.await?
        }
    };
    let status = response.status();
    let accepted = match connect {
        true => status.is_success(),
        false => status == StatusCode::SWITCHING_PROTOCOLS,
    };
    if !accepted {
        return Ok(TunnelResponse::Refused(status));
    }
    let headers = response.headers().clone();
    let mut upgrade = pin!(hyper::upgrade::on(response));
    let upgraded: HyperUpgraded = poll_fn(|cx| {
        if !handed_over && connection.as_mut().poll(cx).is_ready() {
            handed_over = true;
        }
        upgrade.as_mut().poll(cx)
    })
    .await?;
    Ok(TunnelResponse::Upgraded(
        headers,
        Box::new(TokioIo::new(upgraded)),
    ))
}

/// The time limit of each step: DNS, TCP and TLS retransmit lost packets after 1, 2 and 4 s.
pub(crate) const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest response head, in bytes: far more than any proxy or edge sends.
const MAX_RESPONSE_HEAD: usize = 16 * 1024;
