//! The connection pool of one upstream server.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tracing::{debug, warn};

use super::RequestBody;
use super::address::Target;
use super::connections::{
    Connections, OpenConnection, Reusable, SINGLE_THREADED_IDLE_TIMEOUT, TLS_IDLE_TIMEOUT,
};
use super::http2::{Acquired, Http2Connections, Stream};
use super::read_limit::{ActiveConnection, ActiveConnections, CappedReads};
use super::resolver::Resolver;
use super::response_head::{Anomaly, HeadError};
use super::response_reader::{ResponseLink, ResponseReader};
use crate::net::happy_eyeballs;
use crate::tls::{TrustError, explain, upstream_config};

/// The connection pool of one upstream.
pub struct Pool {
    target: Target,
    /// TLS connectors for `https`: one that offers HTTP/2, and one that does not (for upgrades).
    tls: Option<(TlsConnector, TlsConnector)>,
    resolver: Option<Resolver>,
    http1: Arc<Connections<Http1>>,
    http2: Arc<Http2Connections>,
    /// The upstream chose HTTP/1.1 in the last TLS handshake.
    chose_http1: AtomicBool,
    active: ActiveConnections,
    /// Names of response fields for which a warning was logged.
    warned: Mutex<BTreeSet<String>>,
}

/// A connection for one request.
pub enum Leased {
    /// An HTTP/1.1 connection, exclusive until it is released.
    Http1 {
        connection: Http1,
        /// It has served a request before, so the upstream may be closing it at this moment.
        reused: bool,
    },
    /// A stream on a shared HTTP/2 connection.
    Http2(Stream),
}

/// An HTTP/1.1 connection.
pub struct Http1 {
    sender: http1::SendRequest<RequestBody>,
    /// The shared state of the response reader.
    link: ResponseLink,
    /// The entry among the active connections while this one is leased.
    in_use: Option<ActiveConnection>,
    open: OpenConnection<Http1>,
}

impl Pool {
    /// Create an empty pool. `active` counts the connections of all pools of the agent.
    ///
    /// # Errors
    /// [`TrustError`] if the upstream needs TLS and this machine has no certificate store.
    pub fn new(target: Target, active: ActiveConnections) -> Result<Self, TrustError> {
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
        let resolver = match &target {
            Target::Unix(_) => None,
            Target::Http { host, port }
            | Target::Https { host, port, .. }
            | Target::H2c { host, port } => Some(Resolver::new(host, *port)),
        };
        let single_timeout = match tls.is_some() {
            true => TLS_IDLE_TIMEOUT,
            false => SINGLE_THREADED_IDLE_TIMEOUT,
        };
        Ok(Self {
            target,
            tls,
            resolver,
            http1: Connections::new(single_timeout),
            http2: Arc::default(),
            chose_http1: AtomicBool::new(false),
            active,
            warned: Mutex::default(),
        })
    }

    /// Return the upstream's address.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Report whether the upstream is reached over TLS.
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Lease a connection: an idle one if there is one, else a new one or one that becomes idle in the meantime,
    /// whichever is first. An upgrade always gets a new connection.
    ///
    /// # Errors
    /// [`DialError`] if the upstream cannot be reached.
    pub async fn lease(&self, upgrade: bool) -> Result<Leased, DialError> {
        if upgrade {
            return self.dial(upgrade).await;
        }
        let reused = |mut connection: Http1| {
            connection.in_use = Some(self.active.enter());
            Ok(Leased::Http1 {
                connection,
                reused: true,
            })
        };
        if let Some(connection) = self.http1.take() {
            return reused(connection);
        }
        if self.may_be_http2() {
            return Box::pin(self.stream()).await;
        }
        tokio::select! {
            biased;
            connection = self.http1.next() => reused(connection),
            dialled = self.dial(upgrade) => dialled,
        }
    }

    /// Open a new connection.
    ///
    /// # Errors
    /// [`DialError`] if the upstream cannot be reached.
    pub async fn dial(&self, upgrade: bool) -> Result<Leased, DialError> {
        // Boxed because it is large, and most conversations reuse a connection.
        match timeout(CONNECT_TIMEOUT, Box::pin(self.handshake(upgrade))).await {
            Ok(leased) => leased,
            Err(_) => Err(DialError::Slow),
        }
    }

    /// Return a connection whose response has been read to the end. It is reused only if the upstream finishes the
    /// exchange within [`FINISH_TIMEOUT`].
    pub async fn release(&self, mut connection: Http1) {
        if matches!(
            timeout(FINISH_TIMEOUT, connection.sender.ready()).await,
            Ok(Ok(()))
        ) {
            connection.in_use = None;
            self.http1.store(connection);
        }
    }

    /// Send a request on a connection, and wait for the head of the response.
    ///
    /// # Errors
    /// [`RequestError`], which contains the request if nothing of it has been sent.
    pub async fn send(
        &self,
        connection: &mut Http1,
        reused: bool,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, RequestError> {
        connection.link.expect_response();
        let response = connection.sender.try_send_request(request);
        let response = match reused {
            true => response.await,
            // Boxed because most requests reuse a connection.
            false => Box::pin(self.http1.first_response(&connection.open, response)).await,
        };
        let parsed = connection.link.take();
        self.warn_of(parsed.anomalies);
        match (response, parsed.error) {
            (Ok(mut response), _) => {
                if let Some(fields) = parsed.fields {
                    *response.headers_mut() = fields;
                }
                Ok(response)
            }
            (Err(_), Some(err)) => Err(RequestError::Head(err)),
            (Err(err), None) => Err(RequestError::Http(Box::new(err))),
        }
    }

    /// Log a warning once for each field name that was dropped or changed.
    fn warn_of(&self, anomalies: Vec<Anomaly>) {
        for Anomaly { name, problem } in anomalies {
            let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
            if warned.len() < MAX_WARNED_FIELDS && warned.insert(name.clone()) {
                warn!(upstream = %self.target, "in a response, \"{name}\" {problem}");
            }
        }
    }

    /// Report whether the upstream may speak HTTP/2.
    fn may_be_http2(&self) -> bool {
        match &self.target {
            Target::H2c { .. } => true,
            Target::Https { .. } => !self.chose_http1.load(Ordering::Relaxed),
            Target::Http { .. } | Target::Unix(_) => false,
        }
    }

    /// Acquire a stream on an HTTP/2 connection, or open a connection. If the upstream chooses HTTP/1.1, the result
    /// is an HTTP/1.1 connection.
    async fn stream(&self) -> Result<Leased, DialError> {
        let permit = match timeout(STREAM_TIMEOUT, self.http2.acquire()).await {
            Ok(Acquired::Stream(stream)) => return Ok(Leased::Http2(stream)),
            Ok(Acquired::Dial(permit)) => permit,
            Err(_) => return Err(DialError::Full),
        };
        let leased = self.dial(false).await;
        if !matches!(leased, Ok(Leased::Http2(_))) {
            permit.fail();
        }
        leased
    }

    /// Check that the upstream accepts connections.
    ///
    /// # Errors
    /// [`DialError`] if it does not.
    pub async fn probe(&self) -> Result<(), DialError> {
        let reached = match &self.target {
            Target::Unix(path) => timeout(CONNECT_TIMEOUT, unix(path))
                .await
                .map(|io| io.map(drop)),
            _ => {
                return timeout(CONNECT_TIMEOUT, self.tcp())
                    .await
                    .unwrap_or(Err(DialError::Slow))
                    .map(drop);
            }
        };
        reached
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(DialError::Connect)
    }

    /// Connect, and negotiate TLS and the version of HTTP.
    async fn handshake(&self, upgrade: bool) -> Result<Leased, DialError> {
        match &self.target {
            Target::Http { .. } => self.http1(self.tcp().await?).await,
            Target::H2c { .. } => self.http2(self.tcp().await?).await,
            Target::Unix(path) => self.http1(unix(path).await?).await,
            Target::Https { host, .. } => {
                let name = ServerName::try_from(host.clone()).map_err(|_| DialError::Name)?;
                let Some((both, only_http1)) = &self.tls else {
                    return Err(DialError::Name);
                };
                let tls = if upgrade { only_http1 } else { both };
                let stream = tls
                    .connect(name, self.tcp().await?)
                    .await
                    .map_err(DialError::tls)?;
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                if !upgrade {
                    self.chose_http1.store(!is_http2, Ordering::Relaxed);
                }
                match is_http2 {
                    true => self.http2(stream).await,
                    false => self.http1(stream).await,
                }
            }
        }
    }

    /// Speak HTTP/1.1 on a connection.
    async fn http1<S>(&self, io: S) -> Result<Leased, DialError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let link = ResponseLink::new();
        let io = ResponseReader::new(CappedReads::new(io, self.active.clone()), link.clone());
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(UPSTREAM_BUFFER)
            .handshake(TokioIo::new(io))
            .await?;
        // The task ends when its sender is dropped, which the pool or a conversation owns.
        tokio::spawn(async move {
            if let Err(err) = connection.with_upgrades().await {
                debug!(%err, "an upstream connection broke");
            }
        });
        Ok(Leased::Http1 {
            connection: Http1 {
                sender,
                link,
                in_use: Some(self.active.enter()),
                open: self.http1.opened(),
            },
            reused: false,
        })
    }

    /// Speak HTTP/2 on a connection.
    async fn http2<S>(&self, io: S) -> Result<Leased, DialError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Ok(Leased::Http2(self.http2.open(io).await?))
    }

    /// Connect over TCP (Happy Eyeballs).
    async fn tcp(&self) -> Result<TcpStream, DialError> {
        let Some(resolver) = &self.resolver else {
            return Err(DialError::Name);
        };
        let addresses = resolver.addresses().await.map_err(DialError::Resolve)?;
        let (stream, addr) = happy_eyeballs::connect(&addresses, CONNECT_TIMEOUT)
            .await
            .map_err(DialError::from_failures)?;
        resolver.connected(addr);
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Reusable for Http1 {
    fn is_reusable(&self) -> bool {
        self.sender.is_ready()
    }
}

/// Connect to a Unix domain socket.
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

/// Time that an upstream has to accept a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for which a request waits for a stream while the upstream allows no more.
const STREAM_TIMEOUT: Duration = Duration::from_secs(30);

/// Time that an upstream has to finish an exchange after its response has been read.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

/// The read buffer of a connection, which stays full while its visitor is slow: with hyper's default of 400 KiB, 500
/// slow visitors would occupy 200 MB. It has room for the longest head that fits into the tunnel.
const UPSTREAM_BUFFER: usize = 32 << 10;

/// The most field names per upstream for which a warning is logged.
const MAX_WARNED_FIELDS: usize = 16;

/// A request got no usable response.
pub enum RequestError {
    /// The head of the response is invalid.
    Head(HeadError),
    /// The connection failed. The error contains the request if nothing of it has been sent.
    Http(Box<TrySendError<Request<RequestBody>>>),
}

/// No connection to an upstream.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The connection was refused, or failed.
    #[error("cannot connect")]
    Connect(#[from] io::Error),
    /// The host cannot be resolved.
    #[error("cannot resolve its host")]
    Resolve(#[source] io::Error),
    /// No connection within [`CONNECT_TIMEOUT`].
    #[error("no connection within {} s: something drops packets, or it accepts none", CONNECT_TIMEOUT.as_secs())]
    Slow,
    /// The TLS handshake failed.
    #[error(
        "the TLS handshake failed (for an upstream without a trusted certificate, write https+insecure://…)"
    )]
    Tls(#[source] io::Error),
    /// The upstream does not speak TLS.
    #[error("it does not respond in TLS: if it speaks plain HTTP, write http://HOST:PORT")]
    NotTls(#[source] io::Error),
    /// No HTTP/2 stream within [`STREAM_TIMEOUT`].
    #[error("no HTTP/2 stream within {} s: it allows no more requests at once", STREAM_TIMEOUT.as_secs())]
    Full,
    /// The host is not a valid TLS server name.
    #[error("the host is not a valid server name for TLS")]
    Name,
    /// The HTTP handshake failed.
    #[error("the HTTP handshake failed")]
    Http(#[from] hyper::Error),
}

impl DialError {
    /// Classify an error of the TLS handshake.
    fn tls(err: io::Error) -> Self {
        let cause = err.get_ref().and_then(|err| err.downcast_ref());
        match cause {
            Some(rustls::Error::InvalidMessage(_)) => Self::NotTls(err),
            _ => Self::Tls(explain(err)),
        }
    }

    /// Combine the failures of all addresses. The addresses are named if there is more than one.
    fn from_failures(mut failures: Vec<(SocketAddr, io::Error)>) -> Self {
        if failures.len() < 2 {
            let err = failures.pop().map(|(_, err)| err);
            return Self::Connect(err.unwrap_or_else(|| io::ErrorKind::NotFound.into()));
        }
        let kind = failures[0].1.kind();
        let texts = failures.iter().map(|(addr, err)| format!("{addr}: {err}"));
        let texts: Vec<_> = texts.collect();
        Self::Connect(io::Error::new(kind, texts.join(", ")))
    }
}
