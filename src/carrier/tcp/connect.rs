//! The way to the edge's HTTPS port: TCP, proxies, TLS and the upgrade, hop by hop.
//!
//! Every hop has a limit and its own error, which names the hop and what to do about it.

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

use super::{happy_eyeballs, options};
use crate::carrier::PathKind;
use crate::carrier::agent::websocket_tasks::Io;
use crate::tls::explain;

/// What went wrong on the way to the edge.
#[derive(Debug, thiserror::Error)]
pub enum TcpConnectError {
    #[error("cannot resolve {host}; check the name and this machine's DNS")]
    Resolve {
        host: String,
        #[source]
        err: io::Error,
    },
    #[error("cannot connect to {hop} at {addr}; is it running, and is the port open?")]
    Connect {
        hop: Peer,
        addr: SocketAddr,
        #[source]
        err: io::Error,
    },
    #[error("no answer from {hop} within {} s; something on the way drops packets", HOP.as_secs())]
    TimedOut { hop: Peer },
    #[error("TLS with {hop} failed")]
    Tls {
        hop: Peer,
        #[source]
        err: io::Error,
    },
    #[error("{hop} did not speak HTTP")]
    Http {
        hop: Peer,
        #[source]
        err: hyper::Error,
    },
    #[error(
        "{hop} wants a user name and a password: put them into its URL (scheme://user:password@host:port)"
    )]
    ProxyAuthentication { hop: Peer },
    #[error("{hop} refused to connect to {target} with status {status}")]
    ProxyRefused {
        hop: Peer,
        target: String,
        status: StatusCode,
    },
    #[error(
        "{hop} did not connect to {target}; if it wants a user name and a password, put them into its URL"
    )]
    Socks {
        hop: Peer,
        target: String,
        #[source]
        err: Box<dyn Error + Send + Sync>,
    },
    #[error("{0} is not the URL of a proxy: use http://, https:// or socks5://")]
    ProxyUrl(String),
    #[error(
        "{hop} answered {status} to the websocket upgrade; it must be an edge, or pass upgrades on to one"
    )]
    NotUpgraded { hop: Peer, status: StatusCode },
    #[error("{hop} accepted the websocket upgrade with a wrong key; a cache on the way?")]
    WrongAccept { hop: Peer },
    #[error("{0} is not the URL of an edge: use wss://host or ws://host")]
    Url(Uri),
    #[error("this machine gives no randomness")]
    Randomness,
}

/// Who is at the other end of a hop.
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

/// Resolve a host to a few addresses, families alternating.
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

/// Connect to the first address that answers; later ones join in one after the other.
pub(crate) async fn connect(
    hop: &Peer,
    addresses: Vec<SocketAddr>,
) -> Result<TcpStream, TcpConnectError> {
    let (tcp, addr) = match happy_eyeballs::connect(&addresses, HOP).await {
        Ok(connected) => connected,
        Err(mut failures) => {
            return Err(match failures.pop() {
                Some((addr, err)) if err.kind() != io::ErrorKind::TimedOut => {
                    TcpConnectError::Connect {
                        hop: hop.clone(),
                        addr,
                        err,
                    }
                }
                _ => TcpConnectError::TimedOut { hop: hop.clone() },
            });
        }
    };
    options::ask_for_bbr(&tcp, addr);
    let reach = match hop {
        Peer::Edge(_) => PathKind::of(addr),
        Peer::Proxy(_) => PathKind::Network,
    };
    options::shorten_send_queue(&tcp, reach);
    Ok(tcp)
}

/// Put TLS on a connection.
pub(crate) async fn tls_handshake(
    hop: &Peer,
    host: &str,
    io: Box<dyn Io>,
    tls: &Arc<rustls::ClientConfig>,
) -> Result<Box<dyn Io>, TcpConnectError> {
    let failed = |err| TcpConnectError::Tls {
        hop: hop.clone(),
        err,
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name =
        ServerName::try_from(bare.to_owned()).map_err(|err| failed(io::Error::other(err)))?;
    let connecting = TlsConnector::from(tls.clone()).connect(name, io);
    let Ok(connected) = timeout(HOP, connecting).await else {
        return Err(TcpConnectError::TimedOut { hop: hop.clone() });
    };
    Ok(Box::new(connected.map_err(|err| failed(explain(err)))?))
}

/// What a hop said to a request that asks for the connection itself.
pub(crate) enum Answer {
    Upgraded(HeaderMap, Box<dyn Io>),
    Refused(StatusCode),
}

/// Send a request that turns the connection into a byte stream: an upgrade or a CONNECT.
pub(crate) async fn request_tunnel(
    hop: &Peer,
    io: Box<dyn Io>,
    request: Request<Empty<Bytes>>,
) -> Result<Answer, TcpConnectError> {
    match timeout(HOP, exchange(io, request)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(err)) => Err(TcpConnectError::Http {
            hop: hop.clone(),
            err,
        }),
        Err(_) => Err(TcpConnectError::TimedOut { hop: hop.clone() }),
    }
}

async fn exchange(io: Box<dyn Io>, request: Request<Empty<Bytes>>) -> hyper::Result<Answer> {
    let connect = request.method() == http::Method::CONNECT;
    let mut http = http1::Builder::new();
    http.max_buf_size(HEAD);
    let (mut sender, connection) = http.handshake(TokioIo::new(io)).await?;
    let mut connection = pin!(connection.with_upgrades());
    let mut answer = pin!(sender.send_request(request));
    let mut handed_over = false;
    let response = tokio::select! {
        biased;
        response = &mut answer => response?,
        ended = &mut connection => {
            // It ends by itself once it has been handed over, maybe before we see the answer.
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
        return Ok(Answer::Refused(status));
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
    Ok(Answer::Upgraded(headers, Box::new(TokioIo::new(upgraded))))
}

/// How long a hop may take: DNS, TCP and TLS repeat lost packets after 1, 2 and 4 s.
pub(crate) const HOP: Duration = Duration::from_secs(10);

/// The longest head of an answer: far more than any proxy or edge says.
const HEAD: usize = 16 * 1024;
