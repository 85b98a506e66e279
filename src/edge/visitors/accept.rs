//! Visitors' connections: accepting them, TLS, and serving HTTP on them.

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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, debug, debug_span, error, warn};

use super::connection_id::ConnectionId;
use super::context::{Visit, Visitors};
use super::http::error_page::ErrorFormat;
use super::http::guard::Guard;
use super::http::head_limits::MAX_FIELD_LIST;
use super::http::http2::{
    Expired, Http2Connection, Http2Stream, ObservedIo, SentAhead, StreamExecutor,
};
use super::http::idle::IDLE_TIMEOUT;
use super::socket::{ReceivedBytes, VisitorSocket};
use crate::edge::agents::websockets::RawTcp;
use crate::edge::fault::Fault;
use crate::edge::limits::EdgeLimits;
use crate::error_chain::chain;
use crate::proto::Scheme;

/// A listening socket for visitors.
pub struct Listener {
    pub tcp: TcpListener,
    pub tls: Option<TlsAcceptor>,
}

impl Visitors {
    /// Return the label in front of the domain. `host` must be in lower case.
    pub fn name<'a>(&self, host: &'a str) -> Option<&'a str> {
        host.strip_suffix(&self.domain)?.strip_suffix('.')
    }

    /// Accept visitors until draining starts, then wait for those that are connected.
    pub async fn accept(self: Arc<Self>, listener: Listener) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = self.draining.started() => break,
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

    /// Check the connection limit, move the connection to its tunnel's worker, and serve it.
    async fn serve(self: Arc<Self>, tcp: TcpStream, visitor: SocketAddr, tls: Option<TlsAcceptor>) {
        let visitor = SocketAddr::new(visitor.ip().to_canonical(), visitor.port());
        let is_proxy = self
            .trusted_proxies
            .iter()
            .any(|proxies| proxies.contains(&visitor.ip()));
        let _permit = match self
            .connection_limit
            .acquire(visitor.ip(), is_proxy, &self.limits)
        {
            Ok(permit) => permit,
            Err(fault) => {
                self.failure_log.note(None, fault);
                return reject(tcp, tls.is_some(), fault, &self.limits).await;
            }
        };
        if self.workers.is_one() {
            return self.serve_protocol(tcp, visitor, tls).await;
        }
        let first = match tls {
            Some(_) => self.limits.handshake,
            None => self.limits.head,
        };
        let worker = tokio::select! {
            worker = timeout(first, self.worker_for(&tcp, tls.is_some())) => worker,
            () = self.draining.started() => return,
        };
        let Ok(worker) = worker else {
            return debug!("the visitor sent nothing in time");
        };
        let runtime = self.workers.runtime(worker).clone();
        let moved = tcp.into_std().map(|tcp| {
            let served = async move {
                match TcpStream::from_std(tcp) {
                    Ok(tcp) => self.serve_protocol(tcp, visitor, tls).await,
                    Err(err) => debug!(%err, "cannot move the visitor's socket to another thread"),
                }
            };
            AbortOnDropHandle::new(runtime.spawn(served.in_current_span()))
        });
        match moved {
            Ok(conversation) => report(conversation.await),
            Err(err) => debug!(%err, "cannot move the visitor's socket to another thread"),
        }
    }

    /// Do the TLS handshake, if any, and serve HTTP on a visitor's connection.
    async fn serve_protocol(
        self: Arc<Self>,
        tcp: TcpStream,
        visitor: SocketAddr,
        tls: Option<TlsAcceptor>,
    ) {
        let fd = RawTcp::of(&tcp);
        let tcp = VisitorSocket::new(tcp, self.limits.write_stall);
        let info = ConnectionInfo {
            tcp: fd,
            received: tcp.received(),
            visitor,
        };
        let Some(tls) = tls else {
            return self.serve_http1(tcp, info, Scheme::Http).await;
        };
        let accepted = tokio::select! {
            accepted = timeout(self.limits.handshake, tls.accept(tcp)) => accepted,
            () = async { self.draining.stopped().await; sleep(IDLE_TIMEOUT).await } => return,
        };
        let stream = match accepted {
            Ok(Ok(stream)) => stream,
            Ok(Err(err)) => return debug!(%err, "the TLS handshake failed"),
            Err(_) => return debug!("the TLS handshake timed out"),
        };
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            self.serve_http2(stream, info).await;
        } else {
            self.serve_http1(stream, info, Scheme::Https).await;
        }
    }

    /// Serve HTTP/1.1 on a connection.
    async fn serve_http1<S>(self: Arc<Self>, io: S, info: ConnectionInfo, scheme: Scheme)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (io, verdicts) = Guard::new(io, &self.limits);
        let (draining, closing) = (self.draining.clone(), self.closing.clone());
        let shutdown = draining.clone();
        let idle = self.limits.idle + self.limits.head;
        let connection = ConnectionId::next();
        let service = service_fn(move |request| {
            let visit = Visit {
                visitors: self.clone(),
                visitor: info.visitor,
                connection,
                scheme,
                tcp: info.tcp,
                verdicts: Some(verdicts.clone()),
                received: info.received.clone(),
                stream: None,
            };
            let shutdown = shutdown.clone();
            let answering = verdicts.answering();
            let answer = visit.answer(request);
            async move {
                let mut response = answer.await;
                if shutdown.has_started() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(CONNECTION, close);
                }
                Ok::<_, Infallible>(response.map(|body| body.with(answering)))
            }
        });
        let mut connection = std::pin::pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                // The guard limits both idle time and head time, and hyper sees only complete
                // heads: this is a second line of defence.
                .header_read_timeout(idle)
                .max_buf_size(VISITOR_BUFFER)
                .serve_connection(TokioIo::new(io), service)
                .with_upgrades()
        );
        // `FuturesUnordered` polls this only when woken, not on every I/O event of the connection.
        let mut end = FuturesUnordered::from_iter([async {
            tokio::select! {
                () = closing.cancelled() => CloseMode::Now,
                () = async { draining.started().await; sleep(draining.idle_grace()).await } => CloseMode::Graceful,
            }
        }]);
        let ended = tokio::select! {
            biased;
            ended = &mut connection => ended,
            mode = end.next() => {
                let Some(CloseMode::Graceful) = mode else { return };
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

    /// Serve HTTP/2 on a connection.
    async fn serve_http2<S>(self: Arc<Self>, io: S, info: ConnectionInfo)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (draining, closing) = (self.draining.clone(), self.closing.clone());
        let connection = ConnectionId::next();
        let limits = self.limits;
        let sent_ahead = SentAhead::new(self.buffer.clone(), H2_CONNECTION_WINDOW);
        let observed = Http2Connection::new(sent_ahead);
        let io = ObservedIo::new(io, observed.clone());
        let executor = StreamExecutor::new(observed.clone(), &limits);
        let streams = observed.clone();
        let service = service_fn(move |request| {
            let stream = Http2Stream::new(streams.clone());
            let visit = Visit {
                visitors: self.clone(),
                visitor: info.visitor,
                connection,
                scheme: Scheme::Https,
                tcp: info.tcp,
                verdicts: None,
                received: info.received.clone(),
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
        // Polled only when woken, as for HTTP/1.1.
        let mut expired = FuturesUnordered::from_iter([observed.expired(&limits)]);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            Some(expired) = expired.next() => {
                debug!(%expired, "closing the visitor's connection at a time limit");
                if expired == Expired::Preface {
                    return;
                }
                connection.as_mut().graceful_shutdown();
                loop {
                    tokio::select! {
                        ended = &mut connection => break ended,
                        // A request may have been on its way.
                        () = sleep(limits.close_timeout) => if !observed.has_streams() { return },
                        () = closing.cancelled() => return,
                    }
                }
            }
            () = closing.cancelled() => return,
            () = draining.started() => {
                connection.as_mut().graceful_shutdown();
                loop {
                    tokio::select! {
                        ended = &mut connection => break ended,
                        Some(expired) = expired.next() => {
                            return debug!(%expired, "closing the visitor's connection at a time limit");
                        }
                        // A visitor who is gone answers no GOAWAY.
                        () = sleep(limits.close_timeout) => if !observed.has_streams() { return },
                        () = closing.cancelled() => return,
                    }
                }
            }
        };
        if let Err(err) = ended {
            debug!(err = %chain(&err), "the visitor's connection broke");
        }
    }
}

/// A visitor's connection, as far as its requests need to know it.
struct ConnectionInfo {
    tcp: RawTcp,
    received: ReceivedBytes,
    visitor: SocketAddr,
}

/// The way in which a visitor's connection is to end.
enum CloseMode {
    /// At once.
    Now,
    /// After the response under way.
    Graceful,
}

/// Refuse a connection beyond the limit: with a response over plain HTTP, by closing it over TLS,
/// where a handshake would cost too much.
async fn reject(tcp: TcpStream, tls: bool, fault: Fault, limits: &EdgeLimits) {
    debug!(code = fault.code(), "too many connections");
    if tls {
        return;
    }
    let service = service_fn(
        |request: ::http::Request<hyper::body::Incoming>| async move {
            let error_format = ErrorFormat::of(request.method(), request.headers());
            let mut response = error_format.render(fault, None);
            response
                .headers_mut()
                .insert("connection", HeaderValue::from_static("close"));
            Ok::<_, Infallible>(response)
        },
    );
    // Discard what the visitor still sends, which would otherwise reset the connection before it
    // has read the response.
    let (io, _verdicts) = Guard::new(tcp, limits);
    let connection = http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(io), service);
    let _ = timeout(limits.close_timeout, connection).await;
}

/// Log a task that panicked.
fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(err) = ended
        && err.is_panic()
    {
        error!(%err, "a visitor's connection panicked");
    }
}

/// Pause after an error of `accept`. The process is most likely out of descriptors, and retrying at
/// once would only burn CPU time.
async fn pause_after(err: std::io::Error) {
    warn!(%err, "cannot accept a visitor");
    tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await;
}

/// Bytes that hyper buffers for a visitor, besides what the kernel does. By default it takes 400
/// KiB of a response, and with that out of the windows that count what waits for a slow reader.
const VISITOR_BUFFER: usize = 64 << 10;

/// Pause before accepting again after an error.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Concurrent streams of one HTTP/2 connection.
const H2_STREAMS: u32 = 100;

/// Streams that a visitor may make the edge reset (CVE-2023-44487, CVE-2025-8671).
const H2_RESETS: usize = 256;

/// Receive window of an HTTP/2 stream, in bytes.
const H2_STREAM_WINDOW: u32 = 1 << 20;

/// Receive window of an HTTP/2 connection, in bytes.
const H2_CONNECTION_WINDOW: u32 = 4 << 20;

/// Bytes of one stream that hyper may queue. The body's window counts them, except after an upgrade
/// (RFC 8441), where hyper has a copy of its own.
const H2_SEND_BUFFER: usize = 64 << 10;
