//! Connections to one upstream server: dialled, kept while they are sound, and reused.

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
use super::connections::{Connections, IDLE_ALONE, IDLE_TLS, Keep, Open};
use super::http2::{Http2Connections, Stream, Turn};
use super::read_limit::{ActiveConnection, CappedReads, Crowd};
use super::resolver::Resolver;
use super::response_head::{HeadError, Oddity};
use super::response_reader::{AnswerLink, AnswerReader};
use crate::carrier::connect_to_first;
use crate::inline::Inline;
use crate::tls::{TrustError, explain, upstream_config};

/// The connections to one upstream.
pub struct Pool {
    target: Target,
    /// For `https`: with HTTP/2 offered, and without it (for upgrades).
    tls: Option<(TlsConnector, TlsConnector)>,
    resolver: Option<Resolver>,
    http1: Arc<Connections<Http1>>,
    http2: Arc<Http2Connections>,
    /// What an upstream with TLS has chosen last.
    chose_http1: AtomicBool,
    crowd: Crowd,
    /// Fields of answers that somebody has been told of.
    told: Mutex<BTreeSet<String>>,
}

/// A connection for one request.
pub enum Leased {
    /// HTTP/1.1: nobody else's until it is given back.
    Http1 {
        connection: Http1,
        /// Whether it has served before, and may have been closed in this moment.
        reused: bool,
    },
    /// HTTP/2: a stream on one that others have streams on too.
    Http2(Stream),
}

/// An HTTP/1.1 connection.
pub struct Http1 {
    sender: http1::SendRequest<RequestBody>,
    /// What moves its bytes.
    task: Inline,
    /// What its answers are read by.
    answers: AnswerLink,
    /// While it is leased.
    in_use: Option<ActiveConnection>,
    open: Open<Http1>,
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
        let resolver = match &target {
            Target::Unix(_) => None,
            Target::Http { host, port }
            | Target::Https { host, port, .. }
            | Target::H2c { host, port } => Some(Resolver::new(host, *port)),
        };
        let alone = if tls.is_some() { IDLE_TLS } else { IDLE_ALONE };
        Ok(Self {
            target,
            tls,
            resolver,
            http1: Connections::new(alone),
            http2: Arc::default(),
            chose_http1: AtomicBool::new(false),
            crowd,
            told: Mutex::default(),
        })
    }

    /// Return the upstream's address.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Report whether requests travel over TLS.
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Get a connection: an idle one if there is one, else a new one, or one that becomes idle before that is there.
    ///
    /// # Errors
    /// [`DialError`] if the upstream cannot be reached.
    pub async fn lease(&self, upgrade: bool) -> Result<Leased, DialError> {
        if upgrade {
            return self.dial(upgrade).await;
        }
        let reused = |mut connection: Http1| {
            connection.in_use = Some(self.crowd.join());
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

    /// Get a connection that has not served before.
    ///
    /// # Errors
    /// [`DialError`] if the upstream cannot be reached.
    pub async fn dial(&self, upgrade: bool) -> Result<Leased, DialError> {
        // Boxed: it is large, and most conversations find a connection that is there.
        match timeout(CONNECT, Box::pin(self.handshake(upgrade))).await {
            Ok(leased) => leased,
            Err(_) => Err(DialError::Slow),
        }
    }

    /// Give a connection back once its response has been read to the end. It is kept only if
    /// nothing is left of the exchange.
    pub async fn give_back(&self, mut connection: Http1) {
        if matches!(timeout(SETTLE, connection.sender.ready()).await, Ok(Ok(()))) {
            connection.in_use = None;
            self.http1.keep(connection);
        }
    }

    /// Send a request on a connection, and wait for the head of its answer.
    ///
    /// # Errors
    /// As of hyper: with the request, if nothing of it has been sent.
    pub async fn ask(
        &self,
        connection: &mut Http1,
        reused: bool,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, AskError> {
        connection.answers.expect();
        let answer = connection.sender.try_send_request(request);
        // The upstream shall not wait for it until all that has arrived together has been read.
        connection.task.run();
        let answer = match reused {
            true => answer.await,
            // Boxed: most requests have a connection that has served before.
            false => Box::pin(self.http1.first_answer(&connection.open, answer)).await,
        };
        let found = connection.answers.take();
        self.tell_of(found.oddities);
        match (answer, found.error) {
            (Ok(mut response), _) => {
                if let Some(fields) = found.fields {
                    *response.headers_mut() = fields;
                }
                Ok(response)
            }
            (Err(_), Some(err)) => Err(AskError::Head(err)),
            (Err(err), None) => Err(AskError::Http(Box::new(err))),
        }
    }

    /// Tell once of each field that is not passed on as it was sent.
    fn tell_of(&self, oddities: Vec<Oddity>) {
        for Oddity { name, what } in oddities {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.len() < MOST_TOLD && told.insert(name.clone()) {
                warn!(upstream = %self.target, "in an answer, \"{name}\" {what}");
            }
        }
    }

    fn may_be_http2(&self) -> bool {
        match &self.target {
            Target::H2c { .. } => true,
            Target::Https { .. } => !self.chose_http1.load(Ordering::Relaxed),
            Target::Http { .. } | Target::Unix(_) => false,
        }
    }

    /// Use an HTTP/2 connection, or make one. An upstream that does not speak HTTP/2 after all gives an HTTP/1.1
    /// connection.
    async fn stream(&self) -> Result<Leased, DialError> {
        let dialling = match timeout(STREAM, self.http2.turn()).await {
            Ok(Turn::Stream(stream)) => return Ok(Leased::Http2(stream)),
            Ok(Turn::Dial(dialling)) => dialling,
            Err(_) => return Err(DialError::Full),
        };
        let leased = self.dial(false).await;
        if !matches!(leased, Ok(Leased::Http2(_))) {
            dialling.fail();
        }
        leased
    }

    /// Check that somebody listens.
    ///
    /// # Errors
    /// [`DialError`] if nobody does.
    pub async fn probe(&self) -> Result<(), DialError> {
        let reached = match &self.target {
            Target::Unix(path) => timeout(CONNECT, unix(path)).await.map(|io| io.map(drop)),
            _ => {
                return timeout(CONNECT, self.tcp())
                    .await
                    .unwrap_or(Err(DialError::Slow))
                    .map(drop);
            }
        };
        reached
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(DialError::Connect)
    }

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

    async fn http1<S>(&self, io: S) -> Result<Leased, DialError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let answers = AnswerLink::new();
        let io = AnswerReader::new(CappedReads::new(io, self.crowd.clone()), answers.clone());
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
                answers,
                in_use: Some(self.crowd.join()),
                open: self.http1.opened(),
            },
            reused: false,
        })
    }

    async fn http2<S>(&self, io: S) -> Result<Leased, DialError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Ok(Leased::Http2(self.http2.open(io).await?))
    }

    async fn tcp(&self) -> Result<TcpStream, DialError> {
        let Some(resolver) = &self.resolver else {
            return Err(DialError::Name);
        };
        let addresses = resolver.addresses().await.map_err(DialError::Resolve)?;
        let (stream, addr) = connect_to_first(&addresses, CONNECT)
            .await
            .map_err(DialError::refused)?;
        resolver.answered(addr);
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Keep for Http1 {
    fn is_sound(&self) -> bool {
        self.sender.is_ready()
    }
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

/// How long a request waits for a stream while the upstream allows no more of them.
const STREAM: Duration = Duration::from_secs(30);

/// How long an upstream may take to end an exchange whose response has been read.
const SETTLE: Duration = Duration::from_secs(1);

/// What is read at once, and waits here while a visitor is slow: hyper's own 400 KiB for each of 500 would be
/// 200 MB. As much as the longest head that fits into the tunnel.
const UPSTREAM_BUFFER: usize = 32 << 10;

/// Names of fields that one is told of, for each upstream.
const MOST_TOLD: usize = 16;

/// A request has no answer.
pub enum AskError {
    /// It is not understood.
    Head(HeadError),
    /// As hyper says it.
    Http(Box<TrySendError<Request<RequestBody>>>),
}

/// An upstream cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No connection.
    #[error("cannot connect")]
    Connect(#[from] io::Error),
    /// No address.
    #[error("cannot resolve its host")]
    Resolve(#[source] io::Error),
    /// No connection in time.
    #[error("no connection within {} s: something drops packets, or it accepts none", CONNECT.as_secs())]
    Slow,
    /// No TLS.
    #[error("no TLS (an upstream without a trusted certificate is written https+insecure://…)")]
    Tls(#[source] io::Error),
    /// Something else than TLS.
    #[error("it does not answer in TLS: if it speaks plain HTTP, write http://HOST:PORT")]
    NotTls(#[source] io::Error),
    /// No stream in time.
    #[error("no HTTP/2 stream within {} s: it allows no more requests at once", STREAM.as_secs())]
    Full,
    /// The host cannot stand in a certificate.
    #[error("the host is not a name that TLS knows")]
    Name,
    /// No HTTP.
    #[error("no HTTP")]
    Http(#[from] hyper::Error),
}

impl DialError {
    fn tls(err: io::Error) -> Self {
        let cause = err.get_ref().and_then(|err| err.downcast_ref());
        match cause {
            Some(rustls::Error::InvalidMessage(_)) => Self::NotTls(err),
            _ => Self::Tls(explain(err)),
        }
    }

    /// No address of the upstream has answered: it is named which, where it is not known anyway.
    fn refused(mut failures: Vec<(SocketAddr, io::Error)>) -> Self {
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
