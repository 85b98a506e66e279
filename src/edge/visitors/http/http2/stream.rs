//! One stream of an HTTP/2 connection, from its request to what is left after the response.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::http::Response;
use bytes::Bytes;
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
use crate::edge::visitors::lazy_deadline::LazyDeadline;
use crate::stream::{ReceiveError, Unread as Piece};

/// State shared by the two ends of a stream's task: the response body, which hyper polls, and the
/// executor, which polls hyper.
#[derive(Debug, Default)]
pub struct Http2Stream {
    /// Pieces of the response that hyper has asked for.
    pieces_requested: AtomicU64,
    /// hyper has a piece that it has not sent yet.
    is_sending: AtomicBool,
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
        Ok(response.map(|body| Http2ResponseBody {
            body,
            tail: None,
            stream: self,
        }))
    }

    fn request_body(&self) -> MutexGuard<'_, RequestBodyState> {
        self.request_body
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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
    tail: Option<Piece>,
    stream: Arc<Http2Stream>,
}

impl Body for Http2ResponseBody {
    type Data = Piece;
    type Error = ReceiveError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, ReceiveError>>> {
        let this = self.get_mut();
        this.stream.pieces_requested.fetch_add(1, Ordering::Relaxed);
        this.stream.is_sending.store(false, Ordering::Relaxed);
        let mut frame = match this.tail.take() {
            Some(tail) => Some(Ok(Frame::data(tail))),
            None => ready!(Pin::new(&mut this.body).poll_frame(cx)),
        };
        this.stream.is_sending.store(true, Ordering::Relaxed);
        // hyper hands the last piece over whole as soon as the window accepts a byte of it, and
        // then nothing shows any more whether it is read.
        if let Some(Ok(data)) = &mut frame
            && let Some(data) = data.data_mut()
            && data.len() > UNWATCHED_TAIL
            && this.body.is_end_stream()
        {
            this.tail = Some(data.split_off(data.len() - 1));
        }
        Poll::Ready(frame)
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
            blocked: Blocked::default(),
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
        blocked: Blocked,
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
                ready!(this.executor.poll_stall(stream, this.blocked, cx));
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

/// A piece of a response that hyper cannot send.
#[derive(Default)]
struct Blocked {
    /// Number of the piece.
    piece: u64,
    /// Bytes sent on all streams of the connection when the deadline was set.
    sent: u64,
    deadline: LazyDeadline,
}

impl StreamExecutor {
    /// Wait until nothing of a stream has been sent for too long, although there is something to
    /// send and only the visitor's window prevents it.
    fn poll_stall(
        &self,
        stream: &Http2Stream,
        blocked: &mut Blocked,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if !stream.is_sending.load(Ordering::Relaxed) {
            blocked.deadline.clear();
            return Poll::Pending;
        }
        let limit = self.write_stall;
        let piece = stream.pieces_requested.load(Ordering::Relaxed);
        if !blocked.deadline.is_set() || blocked.piece != piece {
            blocked.piece = piece;
            blocked.sent = self.connection.progress().0;
            blocked.deadline.set(Instant::now() + limit);
        }
        loop {
            ready!(blocked.deadline.poll(cx));
            let (sent, is_window_used_up) = self.connection.progress();
            // A slow visitor with many streams reads them in turn.
            let waits_for_others =
                self.connection.is_write_blocked() || (is_window_used_up && sent != blocked.sent);
            if !waits_for_others {
                return Poll::Ready(());
            }
            blocked.sent = sent;
            blocked.deadline.set(Instant::now() + limit);
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

/// Bytes at the end of a response whose delivery is not watched: few enough to be kept for a
/// visitor that never reads.
const UNWATCHED_TAIL: usize = 1 << 10;

/// Interval at which a slow visitor is checked again. The socket's write timeout ends the wait.
const RECHECK_INTERVAL: Duration = Duration::from_millis(500);
