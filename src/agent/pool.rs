//! Connections to one upstream server: dialled, kept while they are sound, and reused.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tracing::debug;

use super::address::Target;
use super::ahead::{Crowd, InUse, Sparing};
use super::upstream::RequestBody;
use crate::inline::Inline;
use crate::tls::{TrustError, upstream_config};

/// The connections to one upstream.
pub struct Pool {
    target: Target,
    /// For `https`: with HTTP/2 offered, and without it (for upgrades).
    tls: Option<(TlsConnector, TlsConnector)>,
    idle: Mutex<Vec<Idle>>,
    /// One connection carries all requests of an upstream that speaks HTTP/2.
    http2: tokio::sync::Mutex<Option<http2::SendRequest<RequestBody>>>,
    /// Which address of `localhost` answered last.
    winner: Mutex<Option<IpAddr>>,
    crowd: Crowd,
}

struct Idle {
    connection: Http1,
    since: Instant,
}

/// A connection for one request.
pub enum Leased {
    /// HTTP/1.1: nobody else's until it is given back.
    Http1 {
        connection: Http1,
        /// Whether it has served before, and may have been closed in this moment.
        reused: bool,
    },
    /// HTTP/2: shared.
    Http2(http2::SendRequest<RequestBody>),
}

/// An HTTP/1.1 connection.
pub struct Http1 {
    sender: http1::SendRequest<RequestBody>,
    /// What moves its bytes.
    task: Inline,
    /// While it is leased.
    in_use: Option<InUse>,
}

impl Pool {
    /// Prepare connections to an upstream, as some of an agent's. None is made yet.
    ///
    /// # Errors
    /// If it needs TLS and this machine has no certificate store.
    pub fn new(target: Target, crowd: Crowd) -> Result<Self, TrustError> {
        let tls = match &target {
            Target::Https { verify, .. } => {
                let connector = |alpn: &[&[u8]]| {
                    upstream_config(*verify, alpn)
                        .map(|config| TlsConnector::from(Arc::new(config)))
                };
                Some((
                    connector(&[b"h2", b"http/1.1"])?,
                    connector(&[b"http/1.1"])?,
                ))
            }
            _ => None,
        };
        Ok(Self {
            target,
            tls,
            idle: Mutex::default(),
            http2: tokio::sync::Mutex::default(),
            winner: Mutex::default(),
            crowd,
        })
    }

    /// Return the upstream's address.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Get a connection: an idle one if there is one, else a new one.
    ///
    /// # Errors
    /// [`DialError`] if the upstream cannot be reached.
    pub async fn lease(&self, upgrade: bool) -> Result<Leased, DialError> {
        if matches!(self.target, Target::H2c { .. }) {
            return Box::pin(self.shared(upgrade)).await;
        }
        if !upgrade {
            if let Some(connection) = self.take_idle() {
                return Ok(Leased::Http1 {
                    connection,
                    reused: true,
                });
            }
            if self.tls.is_some() {
                return Box::pin(self.shared(upgrade)).await;
            }
        }
        self.dial(upgrade).await
    }

    /// Get a connection that has not served before.
    ///
    /// # Errors
    /// [`DialError`] if the upstream cannot be reached.
    pub async fn dial(&self, upgrade: bool) -> Result<Leased, DialError> {
        // Boxed: it is large, and most conversations find a connection that is there.
        match timeout(CONNECT, Box::pin(self.handshake(upgrade))).await {
            Ok(leased) => leased,
            Err(_) => Err(DialError::Connect(io::ErrorKind::TimedOut.into())),
        }
    }

    /// Give a connection back once its response has been read to the end. It is kept only if
    /// nothing is left of the exchange.
    pub async fn give_back(&self, mut connection: Http1) {
        if matches!(timeout(SETTLE, connection.sender.ready()).await, Ok(Ok(()))) {
            connection.in_use = None;
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < MOST_IDLE {
                idle.push(Idle {
                    connection,
                    since: Instant::now(),
                });
            }
        }
    }

    /// Check that somebody listens.
    ///
    /// # Errors
    /// [`DialError`] if nobody does.
    pub async fn probe(&self) -> Result<(), DialError> {
        let reached = match &self.target {
            Target::Unix(path) => timeout(CONNECT, unix(path)).await.map(|io| io.map(drop)),
            Target::Http { host, port }
            | Target::Https { host, port, .. }
            | Target::H2c { host, port } => timeout(CONNECT, self.tcp(host, *port))
                .await
                .map(|io| io.map(drop)),
        };
        reached
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(DialError::Connect)
    }

    fn take_idle(&self) -> Option<Http1> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // The one used last is the least likely to have been closed at the other end.
        while let Some(Idle {
            mut connection,
            since,
        }) = idle.pop()
        {
            if connection.sender.is_ready() && since.elapsed() < IDLE {
                connection.in_use = Some(self.crowd.join());
                return Some(connection);
            }
        }
        None
    }

    /// Use the one HTTP/2 connection, or make it. An upstream that does not speak HTTP/2 after all
    /// gives an HTTP/1.1 connection.
    async fn shared(&self, upgrade: bool) -> Result<Leased, DialError> {
        let mut shared = self.http2.lock().await;
        if let Some(sender) = shared.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(Leased::Http2(sender.clone()));
        }
        let leased = self.dial(upgrade).await?;
        if let Leased::Http2(sender) = &leased {
            *shared = Some(sender.clone());
        }
        Ok(leased)
    }

    async fn handshake(&self, upgrade: bool) -> Result<Leased, DialError> {
        match &self.target {
            Target::Http { host, port } => self.http1(self.tcp(host, *port).await?).await,
            Target::H2c { host, port } => http2(self.tcp(host, *port).await?).await,
            Target::Unix(path) => self.http1(unix(path).await?).await,
            Target::Https { host, port, .. } => {
                let name = ServerName::try_from(host.clone()).map_err(|_| DialError::Name)?;
                let Some((both, only_http1)) = &self.tls else {
                    return Err(DialError::Name);
                };
                let tls = if upgrade { only_http1 } else { both };
                let stream = tls
                    .connect(name, self.tcp(host, *port).await?)
                    .await
                    .map_err(DialError::Tls)?;
                match stream.get_ref().1.alpn_protocol() {
                    Some(b"h2") => http2(stream).await,
                    _ => self.http1(stream).await,
                }
            }
        }
    }

    async fn http1<S>(&self, io: S) -> Result<Leased, DialError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let io = Sparing::new(io, self.crowd.clone());
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(UPSTREAM_BUFFER)
            .handshake(TokioIo::new(io))
            .await?;
        // It ends when its sender is dropped, which the pool or a conversation owns.
        let (inline, task) = Inline::new(Box::pin(async move {
            if let Err(err) = connection.with_upgrades().await {
                debug!(%err, "an upstream connection broke");
            }
        }));
        tokio::spawn(task);
        Ok(Leased::Http1 {
            connection: Http1 {
                sender,
                task: inline,
                in_use: Some(self.crowd.join()),
            },
            reused: false,
        })
    }

    async fn tcp(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for ip in self.addresses(host, port).await? {
            match TcpStream::connect(SocketAddr::new(ip, port)).await {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    *self.winner.lock().unwrap_or_else(PoisonError::into_inner) = Some(ip);
                    return Ok(stream);
                }
                Err(err) => last = err,
            }
        }
        Err(last)
    }

    /// List a host's addresses, the one that answered last in front.
    async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<IpAddr>> {
        let mut addresses: Vec<IpAddr> = if host == "localhost" {
            // Development servers listen on one or the other, and resolvers disagree.
            vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
        } else if let Ok(ip) = host.parse() {
            vec![ip]
        } else {
            lookup_host((host, port))
                .await?
                .map(|addr| addr.ip())
                .collect()
        };
        let winner = *self.winner.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.sort_by_key(|ip| Some(*ip) != winner);
        Ok(addresses)
    }
}

impl Http1 {
    /// Send a request, and wait for the head of its answer.
    ///
    /// # Errors
    /// As of hyper: with the request, if nothing of it has been sent.
    pub async fn ask(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        let answer = self.sender.try_send_request(request);
        // The upstream shall not wait for it until all that has arrived together has been read.
        self.task.run();
        answer.await
    }
}

async fn http2<S>(io: S) -> Result<Leased, DialError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .keep_alive_interval(H2_PING)
        .handshake(TokioIo::new(io))
        .await?;
    // It ends when the last of its senders is dropped.
    tokio::spawn(async move {
        if let Err(err) = connection.await {
            debug!(%err, "an upstream connection broke");
        }
    });
    Ok(Leased::Http2(sender))
}

#[cfg(unix)]
async fn unix(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(path).await
}

#[cfg(not(unix))]
async fn unix(_path: &Path) -> io::Result<TcpStream> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "upstreams behind Unix sockets are not supported on this system: give its port",
    ))
}

/// How long an upstream may take to accept a connection, TLS included.
const CONNECT: Duration = Duration::from_secs(5);

/// How long an upstream may take to end an exchange whose response has been read.
const SETTLE: Duration = Duration::from_secs(1);

/// Shorter than what common servers allow (Node.js closes after 5 s), so that few requests meet a
/// connection that is just being closed.
const IDLE: Duration = Duration::from_secs(4);

/// Idle connections that are kept: as many as conversations are usual at once.
const MOST_IDLE: usize = 256;

/// What is read at once, and waits here while a visitor is slow: hyper's own 400 KiB for each of 500 would be
/// 200 MB. As much as the longest head that fits into the tunnel.
const UPSTREAM_BUFFER: usize = 32 << 10;

/// What the upstream may send ahead on one stream.
const H2_STREAM_WINDOW: u32 = 1 << 20;

/// What the upstream may send ahead in all.
const H2_CONNECTION_WINDOW: u32 = 8 << 20;

/// An upstream that has vanished is found by pings.
const H2_PING: Duration = Duration::from_secs(20);

/// An upstream cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No connection.
    #[error("cannot connect")]
    Connect(#[from] io::Error),
    /// No TLS.
    #[error("no TLS (an upstream without a trusted certificate is written https+insecure://…)")]
    Tls(#[source] io::Error),
    /// The host cannot stand in a certificate.
    #[error("the host is not a name that TLS knows")]
    Name,
    /// No HTTP.
    #[error("no HTTP")]
    Http(#[from] hyper::Error),
}
