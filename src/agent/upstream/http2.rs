//! The HTTP/2 connections to one upstream, and the streams on them.
//!
//! One connection carries as many requests at once as the upstream allows (`SETTINGS_MAX_CONCURRENT_STREAMS`); when
//! all are full another is opened. Servers also limit how many requests a connection carries in all, and end it by
//! GOAWAY then: what they allowed the last connection, the next one gets before another is opened.

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

/// The connections.
#[derive(Default)]
pub struct Http2Connections {
    state: Mutex<State>,
    /// Wakes who waits for a stream.
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// Those that take new requests, the oldest first.
    live: Vec<Connection>,
    /// The next one's number.
    next: u64,
    /// Somebody opens another.
    dialling: bool,
    /// Attempts to open one that have failed.
    failed: u64,
    /// Requests that a connection gets in all, as far as is known, and of which connection that was learnt.
    lifetime: Option<u32>,
    learnt_of: Option<u64>,
    /// When somebody was last told that requests wait.
    told: Option<Instant>,
    watched: bool,
}

struct Connection {
    number: u64,
    sender: SendRequest<RequestBody>,
    /// What the upstream allows at once: the most that is until its SETTINGS are here.
    allowed: Box<dyn Fn() -> Option<usize> + Send>,
    since: Instant,
    /// Requests under way.
    streams: usize,
    /// The most of them, where the upstream has refused more.
    most: usize,
    /// Requests in all.
    used: u32,
    /// Requests that were answered.
    answered: u32,
    idle_since: Instant,
}

/// What to do about a stream.
pub enum Turn<'a> {
    /// It is there.
    Stream(Stream),
    /// Open a connection.
    Dial(Dialling<'a>),
}

/// The duty to open a connection, which nobody else does meanwhile.
pub struct Dialling<'a>(&'a Arc<Http2Connections>);

impl Http2Connections {
    /// Wait for a stream, or for one's turn to open a connection.
    pub async fn turn(self: &Arc<Self>) -> Turn<'_> {
        let failed = self.state().failed;
        loop {
            let changed = self.changed.notified();
            let unknown = {
                let mut state = self.state();
                if let Some(stream) = state.take(self) {
                    return Turn::Stream(stream);
                }
                let unknown = state.live.iter().any(Connection::is_unknown);
                // Whoever has waited for an attempt in vain makes its own: they must not fail one after the other.
                let alone = !state.dialling && !unknown;
                if state.failed != failed || alone && state.live.len() < MOST_CONNECTIONS {
                    state.dialling = true;
                    return Turn::Dial(Dialling(self));
                }
                if !state.dialling && !unknown {
                    state.tell_of_waiting();
                }
                unknown
            };
            tokio::select! {
                () = changed => {}
                () = sleep(SETTINGS_POLL), if unknown => {}
            }
        }
    }

    /// Speak HTTP/2 on a new connection, and use it for a first request.
    ///
    /// # Errors
    /// As of hyper.
    pub async fn open<S>(self: &Arc<Self>, io: S) -> hyper::Result<Stream>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_max_send_streams(UNTIL_SETTINGS)
            .max_header_list_size(HEAD)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .handshake(TokioIo::new(io))
            .await?;
        let connection = Arc::new(Mutex::new(Some(connection)));
        let asked = connection.clone();
        let allowed = move || {
            let connection = asked.lock().unwrap_or_else(PoisonError::into_inner);
            connection
                .as_ref()
                .map(http2::Connection::current_max_send_streams)
        };
        let stream = self.add(sender, Box::new(allowed));
        // It ends when the last of its senders is dropped.
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
            since: Instant::now(),
            streams: 1,
            most: MOST_STREAMS,
            used: 1,
            answered: 0,
            idle_since: Instant::now(),
        });
        if !std::mem::replace(&mut state.watched, true) {
            // It ends when there is no connection, or with the upstream's pool.
            tokio::spawn(watch(Arc::downgrade(self)));
        }
        Stream {
            connections: self.clone(),
            number,
            place: 1,
            reused: false,
            sender,
        }
    }

    /// Use a connection for no new request. Those under way go on.
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

    /// Learn from the end of a connection how many requests the upstream gives to one: fewer than that which it has
    /// not processed any more.
    fn gone_away(&self, number: u64, place: u32) {
        let mut state = self.state();
        let given = (place - 1).max(1);
        if state.learnt_of.is_none_or(|last| last < number) {
            state.lifetime = Some(given);
            state.learnt_of = Some(number);
        } else if state.learnt_of == Some(number) {
            state.lifetime = state.lifetime.map(|lifetime| lifetime.min(given));
        }
        drop(state);
        self.retire(number);
    }

    /// Learn from a refused stream how many at once are too many. A connection that refuses the only one is not used
    /// any more.
    fn refused(&self, number: u64) {
        let mut state = self.state();
        let Some(connection) = state.find(number) else {
            return;
        };
        connection.most = connection.most.min(connection.streams - 1);
        let useless = connection.most == 0;
        drop(state);
        if useless {
            self.retire(number);
        }
    }

    /// Close connections that have had nothing to do for long, and return when to look again.
    fn close_idle(&self) -> Option<Instant> {
        let mut state = self.state();
        let (kept, closed) = std::mem::take(&mut state.live)
            .into_iter()
            .partition(|connection| {
                connection.streams > 0 || connection.idle_since.elapsed() < IDLE
            });
        state.live = kept;
        let next = state
            .live
            .iter()
            .map(|connection| connection.idle_since + IDLE)
            .min();
        state.watched = next.is_some();
        drop(state);
        drop::<Vec<_>>(closed);
        next.map(|next| next.max(Instant::now() + LOOK_AGAIN))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, connections: &Arc<Http2Connections>) -> Option<Stream> {
        // The oldest first, so that what was opened for a rush becomes idle after it.
        self.live
            .retain(|connection| !connection.sender.is_closed());
        let at = self.live.iter().position(Connection::has_room)?;
        let connection = &mut self.live[at];
        connection.streams += 1;
        connection.used += 1;
        let stream = Stream {
            connections: connections.clone(),
            number: connection.number,
            place: connection.used,
            reused: connection.answered > 0,
            sender: connection.sender.clone(),
        };
        if self
            .lifetime
            .is_some_and(|lifetime| connection.used >= lifetime)
        {
            // The next one is tried with a few more: it may have been for another reason.
            self.lifetime = Some(connection.used.saturating_add(connection.used / 4 + 1));
            self.live.remove(at);
        }
        Some(stream)
    }

    fn tell_of_waiting(&mut self) {
        if self.told.is_none_or(|told| told.elapsed() >= TELL) {
            self.told = Some(Instant::now());
            let connections = self.live.len();
            warn!(
                connections,
                "requests wait: the upstream allows no more at once on its HTTP/2 connections"
            );
        }
    }
}

impl Connection {
    fn has_room(&self) -> bool {
        self.streams < self.allowed_now()
    }

    fn allowed_now(&self) -> usize {
        let allowed = match (self.allowed)() {
            // hyper holds back what is too much, should they come after all.
            Some(UNTIL_SETTINGS) if self.is_unknown() => 1,
            Some(UNTIL_SETTINGS) if self.answered == 0 => USUAL,
            Some(allowed) => allowed.max(1),
            None => 0,
        };
        allowed.min(self.most)
    }

    /// Report whether the upstream's SETTINGS, which say how many streams it allows, have still to come.
    fn is_unknown(&self) -> bool {
        self.answered == 0
            && self.since.elapsed() < SETTINGS
            && (self.allowed)() == Some(UNTIL_SETTINGS)
    }
}

impl Dialling<'_> {
    /// Let nobody else wait for this: there is no connection.
    pub fn fail(self) {
        self.0.state().failed += 1;
    }
}

impl Drop for Dialling<'_> {
    fn drop(&mut self) {
        self.0.state().dialling = false;
        self.0.changed.notify_waiters();
    }
}

/// A stream for one request, until its answer has been read to the end.
pub struct Stream {
    connections: Arc<Http2Connections>,
    number: u64,
    /// Its place among the requests of its connection.
    place: u32,
    /// Whether its connection has served before, and may have been closed in this moment.
    pub reused: bool,
    sender: SendRequest<RequestBody>,
}

impl Stream {
    /// Send a request, and wait for the head of its answer.
    ///
    /// # Errors
    /// As of hyper: with the request, if nothing of it has been sent.
    pub async fn ask(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        let answer = self.sender.try_send_request(request).await;
        match &answer {
            Ok(_) => {
                let mut state = self.connections.state();
                if let Some(connection) = state.find(self.number) {
                    connection.answered += 1;
                }
            }
            Err(err) => match Ended::of(err.error()) {
                Ended::GoneAway => self.connections.gone_away(self.number, self.place),
                Ended::Refused => self.connections.refused(self.number),
                Ended::ForwardError => self.connections.retire(self.number),
                Ended::No => {}
            },
        }
        answer
    }
}

impl Stream {
    /// Let another request have it: the answer has been read.
    pub fn release(self) {}
}

impl State {
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

/// Whether a connection has ended with a request's failure.
enum Ended {
    /// The upstream takes no more requests on it.
    GoneAway,
    /// There are too many at once.
    Refused,
    /// It broke.
    ForwardError,
    No,
}

impl Ended {
    fn of(err: &hyper::Error) -> Self {
        match h2_error(err) {
            Some(err) if err.is_go_away() && err.is_remote() => Self::GoneAway,
            Some(err) if is_refusal(err) => Self::Refused,
            Some(err) if err.is_reset() => Self::No,
            _ => Self::ForwardError,
        }
    }
}

/// Report whether the upstream has certainly not processed a request that failed so (RFC 9113 §8.7): it is on a
/// stream that GOAWAY excludes, it was refused, or it was never sent.
pub fn is_unprocessed(err: &hyper::Error) -> bool {
    match h2_error(err) {
        Some(err) if err.is_go_away() => err.is_remote(),
        Some(err) => is_refusal(err),
        // The connection took no more requests when this one came.
        None => err.is_canceled(),
    }
}

/// Report whether the upstream itself has reset the stream of a request: an answer of a kind.
pub fn is_answer(err: &hyper::Error) -> bool {
    h2_error(err).is_some_and(|err| err.is_reset() && err.is_remote())
}

fn is_refusal(err: &h2::Error) -> bool {
    err.is_reset() && err.is_remote() && err.reason() == Some(h2::Reason::REFUSED_STREAM)
}

/// Name what an upstream has said or not said, in the words of RFC 9113. It may not speak HTTP/2 at all if nothing
/// has agreed on it.
pub fn describe(err: &hyper::Error, is_agreed: bool) -> Option<String> {
    if err.is_timeout() {
        let limit = humantime::format_duration(PONG);
        return Some(format!("it did not answer an HTTP/2 PING within {limit}"));
    }
    let source = std::error::Error::source(err);
    let is_broken = source.is_some_and(|err| err.is::<io::Error>());
    // The length of a frame that begins "HTTP".
    let is_malformed = h2_error(err)
        .is_some_and(|err| !err.is_remote() && err.reason() == Some(h2::Reason::FRAME_SIZE_ERROR));
    if !is_agreed && (is_malformed || is_broken) {
        let hint = "if it speaks HTTP/1.1, write http://HOST:PORT";
        return Some(format!("it does not answer in HTTP/2: {hint}"));
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

fn h2_error(err: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(err)?.downcast_ref()
}

/// Close connections that have had nothing to do for long.
async fn watch(connections: Weak<Http2Connections>) {
    loop {
        let next = connections.upgrade().and_then(|all| all.close_idle());
        match next {
            Some(next) => sleep_until(next).await,
            None => return,
        }
    }
}

/// Connections to one upstream that take requests at once. With as many streams on each as servers usually allow,
/// that is far more than an agent has conversations.
const MOST_CONNECTIONS: usize = 64;

/// Streams that one connection has at once, if the upstream has no limit.
const MOST_STREAMS: usize = 1_024;

/// What hyper takes for allowed before it has read the upstream's SETTINGS: a number that no upstream says.
const UNTIL_SETTINGS: usize = 101;

/// Streams that are likely to be allowed (RFC 9113 §6.5.2), where SETTINGS do not come.
const USUAL: usize = 100;

/// How long SETTINGS are waited for by more requests than one: they are the first that an upstream sends.
const SETTINGS: Duration = Duration::from_secs(1);

/// How often somebody looks whether they are here: nothing tells.
const SETTINGS_POLL: Duration = Duration::from_millis(3);

/// How long a connection is kept that has nothing to do. A dead one is found by a request, which waits for a PING.
const IDLE: Duration = Duration::from_secs(30);

/// How often idle connections are looked for, at most.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How often somebody is told that requests wait.
const TELL: Duration = Duration::from_secs(30);

/// The longest head of an answer (RFC 9113 §6.5.2 counts 32 bytes for each field): what browsers read.
const HEAD: u32 = 256 << 10;

/// What the upstream may send ahead on one stream.
const STREAM_WINDOW: u32 = 1 << 20;

/// What the upstream may send ahead in all.
const CONNECTION_WINDOW: u32 = 8 << 20;

/// An upstream that has vanished is found by pings.
const PING: Duration = Duration::from_secs(20);

/// How long a ping may go unanswered.
const PONG: Duration = Duration::from_secs(20);
