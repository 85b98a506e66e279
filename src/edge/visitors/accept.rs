//! Visitors' connections: accepting them, TLS, and handing requests to be answered.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::CONNECTION;
use ::http::{HeaderValue, StatusCode};
use futures_util::{StreamExt, stream::FuturesUnordered};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::{Instrument, debug, debug_span, error, warn};

use super::client::ConnectionId;
use super::connection_limit::Crowd;
use super::http::error_page::{ErrorFormat, Fault};
use super::http::failure_log::Failures;
use super::http::guard::Guard;
use super::http::http2::{Connection, Expired, ObservedIo, SentAhead, Stream, StreamExecutor};
use super::http::route::Visit;
use super::http::validate::MAX_FIELD_LIST;
use super::socket::{Received, VisitorSocket};
use crate::edge::agents::websockets::{Carriers, RawTcp};
use crate::edge::limits::EdgeLimits;
use crate::edge::names::waiting::Hold;
use crate::edge::shutdown::Draining;
use crate::edge::workers::Workers;
use crate::error_chain::chain;
use crate::proto::Scheme;
use crate::stream::BufferTotal;

/// What all visitors' connections share.
pub struct Visitors {
    /// Where the tunnels are found, also those whose agents are away.
    pub hold: Hold,
    /// In lower case.
    pub domain: String,
    pub limits: EdgeLimits,
    /// What may wait for its readers, of all visitors and agents together.
    pub buffer: Arc<BufferTotal>,
    pub crowd: Crowd,
    /// What the operator is told.
    pub failures: Failures,
    pub workers: Workers,
    /// Whose word about the visitor is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Where agents' WebSockets go.
    pub carriers: Carriers,
    /// The port of HTTPS, if plain HTTP is answered with a redirection.
    pub redirect: Option<u16>,
    /// Conversations that have outlived their HTTP connection.
    pub upgrades: TaskTracker,
    /// No new conversations any more.
    pub draining: Draining,
    /// What is left is cut.
    pub closing: CancellationToken,
}

/// Where visitors come in.
pub struct Listener {
    pub tcp: TcpListener,
    pub tls: Option<TlsAcceptor>,
}

impl Visitors {
    /// Take the label in front of the domain; the host is in lower case.
    pub fn name<'a>(&self, host: &'a str) -> Option<&'a str> {
        host.strip_suffix(&self.domain)?.strip_suffix('.')
    }

    /// Accept visitors until draining begins, then wait for those that are here.
    pub async fn accept(self: Arc<Self>, listener: Listener) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = self.draining.begun() => break,
                Some(ended) = connections.join_next() => report(ended),
                accepted = listener.tcp.accept() => match accepted {
                    Ok((tcp, visitor)) => {
                        let span = debug_span!("visitor", %visitor);
                        let serve = self.clone().serve(tcp, visitor, listener.tls.clone());
                        connections.spawn(serve.instrument(span));
                    }
                    Err(err) => pause_after(err).await,
                },
            }
        }
        drop(listener);
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    }

    async fn serve(self: Arc<Self>, tcp: TcpStream, visitor: SocketAddr, tls: Option<TlsAcceptor>) {
        let visitor = SocketAddr::new(visitor.ip().to_canonical(), visitor.port());
        let brings_others = self
            .trusted_proxies
            .iter()
            .any(|proxies| proxies.contains(&visitor.ip()));
        let _place = match self.crowd.enter(visitor.ip(), brings_others, &self.limits) {
            Ok(place) => place,
            Err(fault) => {
                self.failures.note(None, fault);
                return turn_away(tcp, tls.is_some(), fault, &self.limits).await;
            }
        };
        if self.workers.is_one() {
            return self.converse(tcp, visitor, tls).await;
        }
        let first = match tls {
            Some(_) => self.limits.handshake,
            None => self.limits.head,
        };
        let worker = tokio::select! {
            worker = timeout(first, self.worker_for(&tcp, tls.is_some())) => worker,
            () = self.draining.begun() => return,
        };
        let Ok(worker) = worker else {
            return debug!("the visitor says nothing");
        };
        let runtime = self.workers.runtime(worker).clone();
        let moved = tcp.into_std().map(|tcp| {
            let converse = async move {
                match TcpStream::from_std(tcp) {
                    Ok(tcp) => self.converse(tcp, visitor, tls).await,
                    Err(err) => debug!(%err, "the visitor's socket did not change threads"),
                }
            };
            AbortOnDropHandle::new(runtime.spawn(converse.in_current_span()))
        });
        match moved {
            Ok(conversation) => report(conversation.await),
            Err(err) => debug!(%err, "the visitor's socket did not change threads"),
        }
    }

    async fn converse(
        self: Arc<Self>,
        tcp: TcpStream,
        visitor: SocketAddr,
        tls: Option<TlsAcceptor>,
    ) {
        let fd = RawTcp::of(&tcp);
        let tcp = VisitorSocket::new(tcp, self.limits.write_stall);
        let way = WayIn {
            tcp: fd,
            received: tcp.received(),
            visitor,
        };
        let Some(tls) = tls else {
            return self.http1(tcp, way, Scheme::Http).await;
        };
        let stream = match timeout(self.limits.handshake, tls.accept(tcp)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(err)) => return debug!(%err, "no TLS handshake"),
            Err(_) => return debug!("the TLS handshake took too long"),
        };
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            self.http2(stream, way).await;
        } else {
            self.http1(stream, way, Scheme::Https).await;
        }
    }

    async fn http1<S>(self: Arc<Self>, io: S, way: WayIn, scheme: Scheme)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (io, verdicts) = Guard::new(io, &self.limits);
        let (draining, closing) = (self.draining.clone(), self.closing.clone());
        let departing = draining.clone();
        let idle = self.limits.idle + self.limits.head;
        let connection = ConnectionId::next();
        let service = service_fn(move |request| {
            let visit = Visit {
                visitors: self.clone(),
                visitor: way.visitor,
                connection,
                scheme,
                tcp: way.tcp,
                verdicts: Some(verdicts.clone()),
                received: way.received.clone(),
                stream: None,
            };
            let departing = departing.clone();
            let answering = verdicts.answering();
            let answer = visit.answer(request);
            async move {
                let mut response = answer.await;
                if departing.has_begun() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(CONNECTION, close);
                }
                Ok::<_, Infallible>(response.map(|body| body.with(answering)))
            }
        });
        let mut connection = std::pin::pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                // The guard limits both, and hyper sees heads only when they are whole: a second line.
                .header_read_timeout(idle)
                .max_buf_size(VISITOR_BUFFER)
                .serve_connection(TokioIo::new(io), service)
                .with_upgrades()
        );
        // In a set, it is asked when it has something to say, and not each time that bytes come or go.
        let mut end = FuturesUnordered::from_iter([async {
            tokio::select! {
                () = closing.cancelled() => End::Now,
                () = async { draining.begun().await; sleep(draining.idle_grace()).await } => End::Soon,
            }
        }]);
        let ended = tokio::select! {
            biased;
            ended = &mut connection => ended,
            how = end.next() => {
                let Some(End::Soon) = how else { return };
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = &mut connection => ended,
                    () = closing.cancelled() => return,
                }
            }
        };
        if let Err(err) = ended {
            debug!(err = %chain(&err), "the visitor's connection broke");
        }
    }

    async fn http2<S>(self: Arc<Self>, io: S, way: WayIn)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (draining, closing) = (self.draining.clone(), self.closing.clone());
        let connection = ConnectionId::next();
        let limits = self.limits;
        let observed = Connection::new(SentAhead::new(self.buffer.clone(), H2_CONNECTION_WINDOW));
        let io = ObservedIo::new(io, observed.clone());
        let executor = StreamExecutor::new(observed.clone(), &limits);
        let streams = observed.clone();
        let service = service_fn(move |request| {
            let stream = Stream::new(streams.clone());
            let visit = Visit {
                visitors: self.clone(),
                visitor: way.visitor,
                connection,
                scheme: Scheme::Https,
                tcp: way.tcp,
                verdicts: None,
                received: way.received.clone(),
                stream: Some(stream.clone()),
            };
            stream.answer(visit.answer(request))
        });
        let mut connection = std::pin::pin!(
            http2::Builder::new(executor)
                .max_concurrent_streams(H2_STREAMS)
                .max_header_list_size(MAX_FIELD_LIST)
                .max_local_error_reset_streams(H2_RESETS)
                .initial_stream_window_size(H2_STREAM_WINDOW)
                .initial_connection_window_size(H2_CONNECTION_WINDOW)
                .max_send_buf_size(H2_SEND_BUFFER)
                .enable_connect_protocol()
                .serve_connection(TokioIo::new(io), service)
        );
        // In a set, like that of HTTP/1.1.
        let mut expired = FuturesUnordered::from_iter([observed.expired(&limits)]);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            Some(expired) = expired.next() => {
                debug!(%expired, "a time limit of the visitor's connection");
                if expired == Expired::Preface {
                    return;
                }
                connection.as_mut().graceful_shutdown();
                loop {
                    tokio::select! {
                        ended = &mut connection => break ended,
                        // A request may just have been on its way.
                        () = sleep(limits.farewell) => if !observed.has_streams() { return },
                        () = closing.cancelled() => return,
                    }
                }
            }
            () = closing.cancelled() => return,
            () = draining.begun() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = &mut connection => ended,
                    Some(expired) = expired.next() => {
                        return debug!(%expired, "a time limit of the visitor's connection");
                    }
                    () = closing.cancelled() => return,
                }
            }
        };
        if let Err(err) = ended {
            debug!(err = %chain(&err), "the visitor's connection broke");
        }
    }
}

/// The connection on which a visitor comes.
struct WayIn {
    tcp: RawTcp,
    received: Received,
    visitor: SocketAddr,
}

/// How a visitor's connection is to end.
enum End {
    /// Whatever is under way.
    Now,
    /// With the answer that is under way.
    Soon,
}

/// Refuse a connection that is one too many, in words where that costs no handshake.
async fn turn_away(tcp: TcpStream, tls: bool, fault: Fault, limits: &EdgeLimits) {
    debug!(code = fault.code(), "too many connections");
    if tls {
        return;
    }
    let service = service_fn(
        |request: ::http::Request<hyper::body::Incoming>| async move {
            let audience = ErrorFormat::of(request.method(), request.headers());
            let mut response = audience.tell(fault, None);
            response
                .headers_mut()
                .insert("connection", HeaderValue::from_static("close"));
            Ok::<_, Infallible>(response)
        },
    );
    // What it still sends must not destroy the answer.
    let (io, _verdicts) = Guard::new(tcp, limits);
    let connection = http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(io), service);
    let _ = timeout(limits.farewell, connection).await;
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(err) = ended
        && err.is_panic()
    {
        error!(%err, "a visitor's connection panicked");
    }
}

/// Out of descriptors, most likely: trying again at once would only burn time.
async fn pause_after(err: std::io::Error) {
    warn!(%err, "cannot accept a visitor");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// Bytes that hyper keeps for a visitor, besides what the kernel does. By default it takes 400 KiB of an
/// answer off our hands, and out of the windows that count what waits for a slow reader.
const VISITOR_BUFFER: usize = 64 << 10;

/// How long to wait before accepting again after an error.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Streams of one HTTP/2 connection.
const H2_STREAMS: u32 = 100;

/// Streams that a visitor may make us reset (CVE-2023-44487, CVE-2025-8671).
const H2_RESETS: usize = 256;

/// What a visitor may send ahead on one stream.
const H2_STREAM_WINDOW: u32 = 1 << 20;

/// What a visitor may send ahead on one connection.
const H2_CONNECTION_WINDOW: u32 = 4 << 20;

/// What hyper may queue of one stream. The body's window counts it, except after an upgrade (RFC 8441), where hyper
/// has a copy of its own.
const H2_SEND_BUFFER: usize = 64 << 10;
