//! The HTTP/2 connections to one upstream, and the streams on them.
//!
//! One connection carries as many concurrent requests as the upstream allows (`SETTINGS_MAX_CONCURRENT_STREAMS`); when
//! all connections are full, another one is opened. Servers also limit the total number of requests per connection,
//! and then close it with GOAWAY: the number learnt from one connection is assumed for the next, which takes no new
//! requests once it has been reached.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, ready};
use std::time::Duration;

use ::http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, warn};

use super::RequestBody;

/// The HTTP/2 connections to one upstream.
#[derive(Default)]
pub struct Http2Connections {
    state: Mutex<State>,
    /// Wakes requests that wait for a stream.
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// The connections that take new requests, the oldest first.
    live: Vec<Connection>,
    /// The number of the next connection.
    next: u64,
    /// A connection is being opened.
    dialling: bool,
    /// Failed attempts to open a connection.
    failures: u64,
    /// The assumed total number of requests that the upstream allows per connection.
    lifetime: Option<u32>,
    /// The number of the connection from which `lifetime` was learnt.
    lifetime_from: Option<u64>,
    /// The time of the last warning that requests wait.
    warned_at: Option<Instant>,
    /// A task is running that closes idle connections.
    sweeping: bool,
}

struct Connection {
    number: u64,
    sender: SendRequest<RequestBody>,
    /// Returns the number of concurrent streams that hyper may open, [`STREAMS_BEFORE_SETTINGS`] until the SETTINGS
    /// of the upstream have arrived, and `None` once the connection has ended.
    allowed: Box<dyn Fn() -> Option<usize> + Send>,
    opened_at: Instant,
    /// Requests in progress.
    streams: usize,
    /// The most concurrent requests: lowered when the upstream refuses a stream.
    stream_limit: usize,
    /// Requests so far.
    used: u32,
    /// Requests that got a response.
    responses: u32,
    idle_since: Instant,
}

/// The result of [`Http2Connections::acquire`].
pub enum Acquired<'a> {
    /// A stream for the request.
    Stream(Stream),
    /// The permission to open a connection.
    Dial(DialPermit<'a>),
}

/// The permission to open a connection. Other requests wait until it is dropped, unless they were waiting when an
/// attempt failed.
pub struct DialPermit<'a>(&'a Arc<Http2Connections>);

impl Http2Connections {
    /// Wait for a stream, or for the permission to open a connection. Cancel safe.
    pub async fn acquire(self: &Arc<Self>) -> Acquired<'_> {
        let failures = self.state().failures;
        loop {
            let changed = self.changed.notified();
            let unknown_limit = {
                let mut state = self.state();
                if let Some(stream) = state.take(self) {
                    return Acquired::Stream(stream);
                }
                let unknown_limit = state.live.iter().any(Connection::awaits_settings);
                // A request that has waited for a failed attempt dials by itself: waiting requests must not fail one
                // after the other.
                let may_dial = !state.dialling && !unknown_limit;
                if state.failures != failures || may_dial && state.live.len() < MAX_CONNECTIONS {
                    state.dialling = true;
                    return Acquired::Dial(DialPermit(self));
                }
                if !state.dialling && !unknown_limit {
                    state.warn_of_waiting();
                }
                unknown_limit
            };
            tokio::select! {
                () = changed => {}
                () = sleep(SETTINGS_POLL_INTERVAL), if unknown_limit => {}
            }
        }
    }

    /// Speak HTTP/2 on a new connection, and return its first stream.
    ///
    /// # Errors
    /// [`hyper::Error`] if the handshake fails.
    pub async fn open<S>(self: &Arc<Self>, io: S) -> hyper::Result<Stream>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_max_send_streams(STREAMS_BEFORE_SETTINGS)
            .max_header_list_size(MAX_HEADER_LIST)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(io))
            .await?;
        let connection = Arc::new(Mutex::new(Some(connection)));
        let shared = connection.clone();
        let allowed = move || {
            let connection = shared.lock().unwrap_or_else(PoisonError::into_inner);
            connection
                .as_ref()
                .map(http2::Connection::current_max_send_streams)
        };
        let stream = self.add(sender, Box::new(allowed));
        // The task ends when the last sender is dropped.
        let (number, connections) = (stream.number, Arc::downgrade(self));
        tokio::spawn(async move {
            let ended = poll_fn(|cx| {
                let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(running) = &mut *connection else {
                    return Poll::Ready(Ok(()));
                };
                let ended = ready!(Pin::new(running).poll(cx));
                *connection = None;
                Poll::Ready(ended)
            });
            if let Err(err) = ended.await {
                debug!(%err, "an upstream connection broke");
            }
            if let Some(connections) = connections.upgrade() {
                connections.retire(number);
            }
        });
        Ok(stream)
    }

    /// Register a connection, and return its first stream.
    fn add(
        self: &Arc<Self>,
        sender: SendRequest<RequestBody>,
        allowed: Box<dyn Fn() -> Option<usize> + Send>,
    ) -> Stream {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.live.push(Connection {
            number,
            sender: sender.clone(),
            allowed,
            opened_at: Instant::now(),
            streams: 1,
            stream_limit: MAX_STREAMS,
            used: 1,
            responses: 0,
            idle_since: Instant::now(),
        });
        if !std::mem::replace(&mut state.sweeping, true) {
            // The task ends when there is no connection, or when the pool is dropped.
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
        Stream {
            connections: self.clone(),
            number,
            position: 1,
            reused: false,
            sender,
        }
    }

    /// Send no new requests on a connection. Those in progress continue.
    fn retire(&self, number: u64) {
        let mut state = self.state();
        let at = state
            .live
            .iter()
            .position(|connection| connection.number == number);
        let retired = at.map(|at| state.live.remove(at));
        drop(state);
        drop(retired);
        self.changed.notify_waiters();
    }

    /// Handle a GOAWAY: learn how many requests the upstream allows per connection, which is one less than the position
    /// of the first request that it did not process.
    fn handle_goaway(&self, number: u64, position: u32) {
        let mut state = self.state();
        let processed = (position - 1).max(1);
        if state.lifetime_from.is_none_or(|last| last < number) {
            state.lifetime = Some(processed);
            state.lifetime_from = Some(number);
        } else if state.lifetime_from == Some(number) {
            state.lifetime = state.lifetime.map(|lifetime| lifetime.min(processed));
        }
        drop(state);
        self.retire(number);
    }

    /// Handle a refused stream (REFUSED_STREAM): lower the limit of concurrent streams. A connection that refuses its
    /// only stream is not used any more.
    fn handle_refusal(&self, number: u64) {
        let mut state = self.state();
        let Some(connection) = state.find(number) else {
            return;
        };
        connection.stream_limit = connection.stream_limit.min(connection.streams - 1);
        let useless = connection.stream_limit == 0;
        drop(state);
        if useless {
            self.retire(number);
        }
    }

    /// Close connections past the idle timeout, and return the time of the next check.
    fn close_idle(&self) -> Option<Instant> {
        let mut state = self.state();
        let (retained, closed) =
            std::mem::take(&mut state.live)
                .into_iter()
                .partition(|connection| {
                    connection.streams > 0 || connection.idle_since.elapsed() < IDLE_TIMEOUT
                });
        state.live = retained;
        let next = state
            .live
            .iter()
            .map(|connection| connection.idle_since + IDLE_TIMEOUT)
            .min();
        state.sweeping = next.is_some();
        drop(state);
        drop::<Vec<_>>(closed);
        next.map(|next| next.max(Instant::now() + MIN_SWEEP_INTERVAL))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Take a stream on the oldest connection with room.
    fn take(&mut self, connections: &Arc<Http2Connections>) -> Option<Stream> {
        // The oldest first, so that connections opened during a burst become idle after it.
        self.live
            .retain(|connection| !connection.sender.is_closed());
        let at = self.live.iter().position(Connection::has_room)?;
        let connection = &mut self.live[at];
        connection.streams += 1;
        connection.used += 1;
        let stream = Stream {
            connections: connections.clone(),
            number: connection.number,
            position: connection.used,
            reused: connection.responses > 0,
            sender: connection.sender.clone(),
        };
        if self
            .lifetime
            .is_some_and(|lifetime| connection.used >= lifetime)
        {
            // The next connection may carry a few more: the last one may have been closed for another reason.
            self.lifetime = Some(connection.used.saturating_add(connection.used / 4 + 1));
            self.live.remove(at);
        }
        Some(stream)
    }

    /// Warn that requests wait, at most once in [`WARN_INTERVAL`].
    fn warn_of_waiting(&mut self) {
        if self
            .warned_at
            .is_none_or(|at| at.elapsed() >= WARN_INTERVAL)
        {
            self.warned_at = Some(Instant::now());
            let connections = self.live.len();
            warn!(
                connections,
                "requests wait: the upstream allows no more concurrent streams on its HTTP/2 connections"
            );
        }
    }
}

impl Connection {
    /// Report whether the connection can take another stream now.
    fn has_room(&self) -> bool {
        self.streams < self.allowed_now()
    }

    /// Return the number of concurrent streams that the connection may have now.
    fn allowed_now(&self) -> usize {
        let allowed = match (self.allowed)() {
            Some(STREAMS_BEFORE_SETTINGS) if self.awaits_settings() => 1,
            // If SETTINGS still arrive with a lower limit, hyper queues the streams beyond it.
            Some(STREAMS_BEFORE_SETTINGS) if self.responses == 0 => ASSUMED_STREAMS,
            Some(allowed) => allowed.max(1),
            None => 0,
        };
        allowed.min(self.stream_limit)
    }

    /// Report whether the SETTINGS of the upstream, with its limit of streams, are still awaited.
    fn awaits_settings(&self) -> bool {
        self.responses == 0
            && self.opened_at.elapsed() < SETTINGS_TIMEOUT
            && (self.allowed)() == Some(STREAMS_BEFORE_SETTINGS)
    }
}

impl DialPermit<'_> {
    /// Report that the attempt failed, so that waiting requests dial by themselves.
    pub fn fail(self) {
        self.0.state().failures += 1;
    }
}

impl Drop for DialPermit<'_> {
    fn drop(&mut self) {
        self.0.state().dialling = false;
        self.0.changed.notify_waiters();
    }
}

/// A stream for one request, occupied until the response has been read to the end.
pub struct Stream {
    connections: Arc<Http2Connections>,
    number: u64,
    /// The position of the request on its connection, from 1.
    position: u32,
    /// The connection has served a request before, so the upstream may be closing it at this moment.
    pub reused: bool,
    sender: SendRequest<RequestBody>,
}

impl Stream {
    /// Send a request, and wait for the head of the response.
    ///
    /// # Errors
    /// [`TrySendError`], which contains the request if nothing of it has been sent.
    pub async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        let response = self.sender.try_send_request(request).await;
        match &response {
            Ok(_) => {
                let mut state = self.connections.state();
                if let Some(connection) = state.find(self.number) {
                    connection.responses += 1;
                }
            }
            Err(err) => match FailureScope::of(err.error()) {
                FailureScope::GoAway => self.connections.handle_goaway(self.number, self.position),
                FailureScope::Refused => self.connections.handle_refusal(self.number),
                FailureScope::Connection => self.connections.retire(self.number),
                FailureScope::Stream => {}
            },
        }
        response
    }
}

impl Stream {
    /// Free the slot for another request after the response has been read.
    pub fn release(self) {}
}

impl State {
    /// Return a connection that still takes requests.
    fn find(&mut self, number: u64) -> Option<&mut Connection> {
        let mut live = self.live.iter_mut();
        live.find(|connection| connection.number == number)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.connections.state();
        if let Some(connection) = state.find(self.number) {
            connection.streams -= 1;
            connection.idle_since = Instant::now();
        }
        drop(state);
        self.connections.changed.notify_waiters();
    }
}

/// The consequence of a failed request for its connection.
enum FailureScope {
    /// The upstream takes no more requests on the connection.
    GoAway,
    /// There were too many concurrent requests.
    Refused,
    /// The connection is broken.
    Connection,
    /// Only the stream failed.
    Stream,
}

impl FailureScope {
    /// Classify the error of a request.
    fn of(err: &hyper::Error) -> Self {
        match h2_error(err) {
            Some(err) if err.is_go_away() && err.is_remote() => Self::GoAway,
            Some(err) if is_refusal(err) => Self::Refused,
            Some(err) if err.is_reset() => Self::Stream,
            _ => Self::Connection,
        }
    }
}

/// Report whether the upstream has certainly not processed the request that failed with this error (RFC 9113 §8.7):
/// GOAWAY excludes its stream, the stream was refused, or the request was never sent.
pub fn is_unprocessed(err: &hyper::Error) -> bool {
    match h2_error(err) {
        Some(err) if err.is_go_away() => err.is_remote(),
        Some(err) => is_refusal(err),
        // The connection was closing when the request was submitted.
        None => err.is_canceled(),
    }
}

/// Report whether the upstream itself reset the stream of the request, which is a deliberate reaction to it.
pub fn is_remote_reset(err: &hyper::Error) -> bool {
    h2_error(err).is_some_and(|err| err.is_reset() && err.is_remote())
}

/// Report whether the upstream refused the stream (REFUSED_STREAM).
fn is_refusal(err: &h2::Error) -> bool {
    err.is_reset() && err.is_remote() && err.reason() == Some(h2::Reason::REFUSED_STREAM)
}

/// Describe an error in the terms of RFC 9113, or return `None` if it is not specific to HTTP/2. Unless `is_agreed`
/// is set, the upstream may not speak HTTP/2 at all.
pub fn describe(err: &hyper::Error, is_agreed: bool) -> Option<String> {
    if err.is_timeout() {
        let limit = humantime::format_duration(PING_TIMEOUT);
        return Some(format!("it did not answer an HTTP/2 PING within {limit}"));
    }
    let source = std::error::Error::source(err);
    let is_broken = source.is_some_and(|err| err.is::<io::Error>());
    // The first bytes of an HTTP/1.1 response, read as a frame header, give an excessive length.
    let is_malformed = h2_error(err)
        .is_some_and(|err| !err.is_remote() && err.reason() == Some(h2::Reason::FRAME_SIZE_ERROR));
    if !is_agreed && (is_malformed || is_broken) {
        let hint = "if it speaks HTTP/1.1, write http://HOST:PORT";
        return Some(format!("it does not respond in HTTP/2: {hint}"));
    }
    let err = h2_error(err)?;
    let reason = err.reason()?;
    let (who, did) = match (err.is_remote(), err.is_go_away()) {
        (true, true) => ("it", "ended the HTTP/2 connection (GOAWAY) with"),
        (true, false) => ("it", "reset the HTTP/2 stream with"),
        (false, true) => ("its HTTP/2 is malformed:", "the connection was ended with"),
        (false, false) => ("its HTTP/2 is malformed:", "the stream was reset with"),
    };
    Some(format!("{who} {did} {reason:?}"))
}

/// Return the error of the h2 crate within an error of hyper.
fn h2_error(err: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(err)?.downcast_ref()
}

/// Close connections past the idle timeout until there is no connection.
async fn sweep(connections: Weak<Http2Connections>) {
    loop {
        let next = connections.upgrade().and_then(|all| all.close_idle());
        match next {
            Some(next) => sleep_until(next).await,
            None => return,
        }
    }
}

/// The most connections to one upstream that take requests. With the usual number of streams on each, that is far more
/// than the conversations of an agent.
const MAX_CONNECTIONS: usize = 64;

/// The most concurrent streams on one connection if the upstream has no limit.
const MAX_STREAMS: usize = 1_024;

/// The stream limit that hyper reports before it has read the upstream's SETTINGS: a number that no upstream sends, so
/// that it is recognised.
const STREAMS_BEFORE_SETTINGS: usize = 101;

/// The assumed stream limit of an upstream that sends no SETTINGS: RFC 9113 §6.5.2 recommends at least 100.
const ASSUMED_STREAMS: usize = 100;

/// Time for which further requests wait for the SETTINGS on a new connection: they are the first frame that an upstream
/// sends.
const SETTINGS_TIMEOUT: Duration = Duration::from_secs(1);

/// The interval of the check for SETTINGS: hyper does not notify.
const SETTINGS_POLL_INTERVAL: Duration = Duration::from_millis(3);

/// The idle timeout of a connection. A dead one is detected by the next request, which waits for a PING.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The shortest interval between two checks for idle connections.
const MIN_SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The shortest interval between two warnings that requests wait.
const WARN_INTERVAL: Duration = Duration::from_secs(30);

/// `SETTINGS_MAX_HEADER_LIST_SIZE`: the longest response head in bytes, with 32 for each field (RFC 9113 §6.5.2), as in
/// browsers.
const MAX_HEADER_LIST: u32 = 256 << 10;

/// The flow-control window of one stream, in bytes.
const STREAM_WINDOW: u32 = 1 << 20;

/// The flow-control window of a connection, in bytes.
const CONNECTION_WINDOW: u32 = 8 << 20;

/// The interval of PINGs, which detect an upstream that has vanished.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// Time that the upstream has to acknowledge a PING.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
