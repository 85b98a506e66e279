//! One stream of an HTTP/2 connection, from its request to what is left after the response.

use std::convert::Infallible;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::http::Response;
use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::rt::Executor;
use pin_project_lite::pin_project;
use tokio::sync::Notify;
use tokio::task::futures::TaskLocalFuture;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::debug;

use super::connection::{ActiveStream, Http2Connection};
use crate::edge::limits::EdgeLimits;
use crate::edge::visitors::http::body::VisitorBody;
use crate::edge::visitors::http::read_pauses::ReadPauses;
use crate::edge::visitors::lazy_deadline::LazyDeadline;
use crate::stream::{ReceiveError, Unread};

/// State shared by the two ends of a stream's task: the response body, which hyper polls, and the
/// executor, which polls hyper.
#[derive(Debug)]
pub struct Http2Stream {
    connection: Arc<Http2Connection>,
    progress: Arc<Progress>,
    request_body: Mutex<RequestBodyState>,
    returned: Notify,
}

/// State of the request's body.
#[derive(Debug, Default)]
enum RequestBodyState {
    /// Nobody has it.
    #[default]
    Absent,
    /// Somebody may be reading it.
    InUse,
    /// Its reader has returned it, perhaps before the end.
    Returned(Incoming),
}

impl Http2Stream {
    /// Create the state of a stream of this connection.
    pub fn new(connection: Arc<Http2Connection>) -> Arc<Self> {
        Arc::new(Self {
            connection,
            progress: Arc::default(),
            request_body: Mutex::default(),
            returned: Notify::new(),
        })
    }

    /// Return the clock of the times at which the visitor may not send.
    pub fn read_pauses(&self) -> ReadPauses {
        self.connection.read_pauses()
    }

    /// Record that bytes of the request's body have been read.
    pub fn read(&self, bytes: usize) {
        self.connection.read(bytes);
    }

    /// Record that somebody reads the request's body, who will [`return_body`](Self::return_body).
    pub fn mark_body_in_use(&self) {
        *self.request_body() = RequestBodyState::InUse;
    }

    /// Take back a request's body that is not read any further.
    ///
    /// If it were dropped before the response has been written, the stream would be reset in the
    /// same packet as the response, which curl (7.88) then does not see, and which Node.js takes
    /// for a failure.
    pub fn return_body(&self, body: Incoming) {
        *self.request_body() = RequestBodyState::Returned(body);
        self.returned.notify_one();
    }

    /// Answer the request of this stream.
    pub async fn answer(
        self: Arc<Self>,
        response: impl Future<Output = Response<VisitorBody>>,
    ) -> Result<Response<Http2ResponseBody>, Infallible> {
        // This runs in a task of our executor: hyper has no others for requests.
        let _ = SLOT.try_with(|slot| slot.set(self.clone()));
        let response = response.await;
        // hyper asks for the first piece once the window accepts a byte, as for every other.
        self.progress.record();
        Ok(response.map(|body| Http2ResponseBody {
            body,
            tail: None,
            stream: self,
        }))
    }

    fn request_body(&self) -> MutexGuard<'_, RequestBodyState> {
        lock(&self.request_body)
    }

    /// Report whether the request's body may not have been read to its end.
    fn has_unread(&self) -> bool {
        match &*self.request_body() {
            RequestBodyState::Absent => false,
            RequestBodyState::InUse => true,
            RequestBodyState::Returned(body) => !body.is_end_stream(),
        }
    }

    /// Take the request's body, unless somebody has it.
    fn take_request_body(&self) -> Option<RequestBodyState> {
        let mut state = self.request_body();
        match *state {
            RequestBodyState::InUse => None,
            _ => Some(std::mem::take(&mut *state)),
        }
    }

    /// Wait until nobody has the request's body any more, and return it.
    async fn returned_body(&self) -> Option<Incoming> {
        loop {
            let returned = self.returned.notified();
            if let Some(state) = self.take_request_body() {
                return match state {
                    RequestBodyState::Returned(body) => Some(body),
                    RequestBodyState::Absent | RequestBodyState::InUse => None,
                };
            }
            returned.await;
        }
    }
}

/// Time since which the visitor has taken nothing of a response; `None` if there is nothing to take.
///
/// Each piece has a reference to it, and h2 holds a lock while it drops pieces: it must own nothing
/// that belongs to h2.
#[derive(Debug, Default)]
struct Progress(Mutex<Option<Instant>>);

impl Progress {
    /// Record that the visitor has taken something, and that there is more to take.
    fn record(&self) {
        self.set(Some(Instant::now()));
    }

    fn set(&self, since: Option<Instant>) {
        *lock(&self.0) = since;
    }

    fn untaken_since(&self) -> Option<Instant> {
        *lock(&self.0)
    }
}

tokio::task_local! {
    /// Slot in which the service leaves its stream for the executor. Between the two is hyper's
    /// future.
    static SLOT: Arc<OnceLock<Arc<Http2Stream>>>;
}

/// A response body on its way to hyper, which asks for a piece only when the previous one has been
/// sent.
pub struct Http2ResponseBody {
    body: VisitorBody,
    /// The last byte of the last piece, held back.
    tail: Option<Unread>,
    stream: Arc<Http2Stream>,
}

/// Piece of a response, of which h2 takes as much as the visitor's window accepts.
pub struct Piece {
    bytes: Unread,
    progress: Arc<Progress>,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.bytes.chunks_vectored(slices)
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.progress.record();
    }
}

impl Body for Http2ResponseBody {
    type Data = Piece;
    type Error = ReceiveError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, ReceiveError>>> {
        let this = self.get_mut();
        this.stream.progress.set(None);
        let mut frame = match this.tail.take() {
            Some(tail) => Some(Ok(Frame::data(tail))),
            None => ready!(Pin::new(&mut this.body).poll_frame(cx)),
        };
        this.stream.progress.record();
        // hyper hands the last piece over whole as soon as the window accepts a byte of it, and
        // then nothing shows any more whether it is read.
        if let Some(Ok(data)) = &mut frame
            && let Some(data) = data.data_mut()
            && data.len() > UNWATCHED_TAIL
            && this.body.is_end_stream()
        {
            this.tail = Some(data.split_off(data.len() - 1));
        }
        let piece = |bytes| Piece {
            bytes,
            progress: this.stream.progress.clone(),
        };
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.tail.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Executor of the tasks of one connection's streams.
#[derive(Clone)]
pub struct StreamExecutor {
    connection: Arc<Http2Connection>,
    write_stall: Duration,
    discard: Duration,
    discard_bytes: u64,
}

impl StreamExecutor {
    /// Create the executor of a connection.
    pub fn new(connection: Arc<Http2Connection>, limits: &EdgeLimits) -> Self {
        Self {
            connection,
            write_stall: limits.write_stall,
            discard: limits.discard,
            discard_bytes: limits.discard_bytes,
        }
    }
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        let slot = Arc::default();
        // The task ends with its stream, which ends with the connection at the latest.
        tokio::spawn(StreamTask {
            serving: Some(SLOT.scope(Arc::clone(&slot), future)),
            slot,
            active: self.connection.start_stream(),
            stall: Stall::default(),
            discarding: None,
            executor: self.clone(),
        });
    }
}

pin_project! {
    /// Task of one stream: it serves the stream through hyper, resets it if the visitor stops
    /// reading the response, and otherwise discards what is left of its request.
    struct StreamTask<F> {
        // hyper's future, until the response has been handed over.
        #[pin]
        serving: Option<TaskLocalFuture<Arc<OnceLock<Arc<Http2Stream>>>, F>>,
        slot: Arc<OnceLock<Arc<Http2Stream>>>,
        active: ActiveStream,
        stall: Stall,
        discarding: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
        executor: StreamExecutor,
    }
}

impl<F: Future<Output = ()>> Future for StreamTask<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if let Some(serving) = this.serving.as_mut().as_pin_mut() {
            if serving.poll(cx).is_pending() {
                let Some(stream) = this.slot.get() else {
                    return Poll::Pending;
                };
                ready!(this.executor.poll_stall(stream, this.stall, cx));
                debug!("resetting a stream whose response the visitor does not read");
                this.active.stalled();
                return Poll::Ready(());
            }
            this.serving.set(None);
            let (stream, executor) = (this.slot.get().cloned(), this.executor.clone());
            match stream.filter(|stream| stream.has_unread()) {
                Some(stream) => *this.discarding = Some(Box::pin(executor.discard(stream))),
                None => return Poll::Ready(()),
            }
        }
        match this.discarding {
            Some(discarding) => discarding.as_mut().poll(cx),
            None => Poll::Ready(()),
        }
    }
}

/// State of the watch over a response of which the visitor takes nothing.
#[derive(Default)]
struct Stall {
    /// Last time at which the stream had to wait for others of its connection.
    excused: Option<Instant>,
    deadline: LazyDeadline,
}

impl StreamExecutor {
    /// Wait until nothing of a stream has been taken for too long, although there is something to
    /// take and only the visitor's window prevents it.
    fn poll_stall(
        &self,
        stream: &Http2Stream,
        stall: &mut Stall,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            let Some(untaken_since) = stream.progress.untaken_since() else {
                stall.deadline.clear();
                return Poll::Pending;
            };
            let since = stall
                .excused
                .map_or(untaken_since, |excused| excused.max(untaken_since));
            stall.deadline.set(since + self.write_stall);
            ready!(stall.deadline.poll(cx));
            // A slow visitor with many streams reads them in turn.
            match self.connection.busy_until() {
                Some(busy) if busy > since => stall.excused = Some(busy),
                _ => return Poll::Ready(()),
            }
        }
    }

    /// Discard what still arrives of a request whose response has been sent. If it has not ended
    /// after some time, the stream is reset.
    async fn discard(self, stream: Arc<Http2Stream>) {
        let deadline = Instant::now() + self.discard;
        let Ok(Some(mut body)) = timeout_at(deadline, stream.returned_body()).await else {
            return;
        };
        let mut left = self.discard_bytes;
        while left > 0 && !body.is_end_stream() {
            match timeout_at(deadline, body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    let bytes = frame.data_ref().map_or(0, Bytes::len);
                    stream.read(bytes);
                    left = left.saturating_sub(bytes as u64);
                }
                // The body has ended, or the visitor has reset the stream.
                Ok(_) => return,
                Err(_) => break,
            }
        }
        if body.is_end_stream() {
            return;
        }
        sleep_until(deadline).await;
        // A visitor that reads slowly has not received the response yet.
        while self.connection.is_write_blocked() {
            sleep(RECHECK_INTERVAL).await;
        }
        // Dropping the body resets the stream with NO_ERROR (RFC 9113 §8.1).
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics half-way through a change while it holds the lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes at the end of a response whose delivery is not watched: few enough to be kept for a
/// visitor that never reads.
const UNWATCHED_TAIL: usize = 1 << 10;

/// Interval at which a slow visitor is checked again. The socket's write timeout ends the wait.
const RECHECK_INTERVAL: Duration = Duration::from_millis(500);
