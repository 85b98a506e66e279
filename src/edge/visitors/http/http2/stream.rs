//! One stream of an HTTP/2 connection, from its request to what is left when it has been answered.

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

use super::connection::{ActiveStream, Connection};
use crate::edge::limits::EdgeLimits;
use crate::edge::visitors::http::body::VisitorBody;
use crate::edge::visitors::lazy_deadline::LazyDeadline;
use crate::stream::{ReceiveError, Unread as Piece};

/// What the two ends of a stream's task know of each other: hyper, which has the response, and the
/// executor, which has hyper.
#[derive(Debug, Default)]
pub struct Stream {
    /// Pieces of the answer that hyper has asked for.
    asked: AtomicU64,
    /// Whether hyper has a piece that it has not sent.
    is_sending: AtomicBool,
    unread: Mutex<Unread>,
    returned: Notify,
}

/// Where the request's body is.
#[derive(Debug, Default)]
enum Unread {
    /// Nobody has it.
    #[default]
    Nowhere,
    /// Somebody may read it.
    Lent,
    /// Whoever had it reads no more.
    Returned(Incoming),
}

impl Stream {
    /// Note that somebody has the request's body, who will [`give_back`](Self::give_back) it.
    pub fn lend(&self) {
        *self.unread() = Unread::Lent;
    }

    /// Take back a request's body that is not read any further.
    ///
    /// Dropped before the answer has been written, it would have the stream reset in the same packet as
    /// the answer, which curl (7.88) then does not see, and Node.js takes for a failure.
    pub fn give_back(&self, body: Incoming) {
        *self.unread() = Unread::Returned(body);
        self.returned.notify_one();
    }

    /// Answer the request of this stream.
    pub async fn answer(
        self: Arc<Self>,
        response: impl Future<Output = Response<VisitorBody>>,
    ) -> Result<Response<Answer>, Infallible> {
        // A task of ours: hyper has no others for requests.
        let _ = SLOT.try_with(|slot| slot.set(self.clone()));
        let response = response.await;
        Ok(response.map(|body| Answer {
            body,
            last: None,
            stream: self,
        }))
    }

    fn unread(&self) -> MutexGuard<'_, Unread> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Report whether the request's body may not have been read to its end.
    fn has_unread(&self) -> bool {
        match &*self.unread() {
            Unread::Nowhere => false,
            Unread::Lent => true,
            Unread::Returned(body) => !body.is_end_stream(),
        }
    }

    /// Take the request's body, unless somebody has it.
    fn take_unread(&self) -> Option<Unread> {
        let mut unread = self.unread();
        match *unread {
            Unread::Lent => None,
            _ => Some(std::mem::take(&mut *unread)),
        }
    }

    /// Wait until nobody has the request's body any more, and return it.
    async fn unread_body(&self) -> Option<Incoming> {
        loop {
            let returned = self.returned.notified();
            if let Some(unread) = self.take_unread() {
                return match unread {
                    Unread::Returned(body) => Some(body),
                    Unread::Nowhere | Unread::Lent => None,
                };
            }
            returned.await;
        }
    }
}

tokio::task_local! {
    /// Where the service names its stream to the executor. Between the two is hyper's future.
    static SLOT: Arc<OnceLock<Arc<Stream>>>;
}

/// An answer on its way to hyper, which asks for a piece only when the one before has been sent.
pub struct Answer {
    body: VisitorBody,
    /// The end of the last piece.
    last: Option<Piece>,
    stream: Arc<Stream>,
}

impl Body for Answer {
    type Data = Piece;
    type Error = ReceiveError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, ReceiveError>>> {
        let this = self.get_mut();
        this.stream.asked.fetch_add(1, Ordering::Relaxed);
        this.stream.is_sending.store(false, Ordering::Relaxed);
        let mut frame = match this.last.take() {
            Some(last) => Some(Ok(Frame::data(last))),
            None => ready!(Pin::new(&mut this.body).poll_frame(cx)),
        };
        this.stream.is_sending.store(true, Ordering::Relaxed);
        // hyper gives the last piece away whole as soon as the window takes a byte of it, and then
        // nobody knows any more whether it is read.
        if let Some(Ok(data)) = &mut frame
            && let Some(data) = data.data_mut()
            && data.len() > LAST
            && this.body.is_end_stream()
        {
            this.last = Some(data.split_off(data.len() - 1));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.last.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Runs the tasks of one connection's streams.
#[derive(Clone)]
pub struct StreamExecutor {
    connection: Arc<Connection>,
    write_stall: Duration,
    discard: Duration,
    discard_bytes: u64,
}

impl StreamExecutor {
    /// Run the tasks of a connection.
    pub fn new(connection: Arc<Connection>, limits: &EdgeLimits) -> Self {
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
        // It ends with its stream, which ends with the connection at the latest.
        tokio::spawn(StreamTask {
            serving: Some(SLOT.scope(Arc::clone(&slot), future)),
            slot,
            active: self.connection.begin_stream(),
            blocked: Blocked::default(),
            discarding: None,
            executor: self.clone(),
        });
    }
}

pin_project! {
    /// Serves one stream through hyper, resets it if nothing of its answer is read, and otherwise discards
    /// what is left of its request.
    struct StreamTask<F> {
        // hyper's future, until the answer has been given away.
        #[pin]
        serving: Option<TaskLocalFuture<Arc<OnceLock<Arc<Stream>>>, F>>,
        slot: Arc<OnceLock<Arc<Stream>>>,
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
                debug!("the visitor reads nothing of a stream, which is reset");
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

/// A piece of an answer that hyper cannot send.
#[derive(Default)]
struct Blocked {
    /// Which piece it is.
    piece: u64,
    /// What had been sent on all streams of the connection when the deadline was set.
    sent: u64,
    deadline: LazyDeadline,
}

impl StreamExecutor {
    /// Wait until nothing of a stream has been sent for too long, although there is something to send
    /// and nothing but the visitor's window stands against it.
    fn poll_stall(&self, stream: &Stream, blocked: &mut Blocked, cx: &mut Context<'_>) -> Poll<()> {
        if !stream.is_sending.load(Ordering::Relaxed) {
            blocked.deadline.clear();
            return Poll::Pending;
        }
        let limit = self.write_stall;
        let piece = stream.asked.load(Ordering::Relaxed);
        if !blocked.deadline.is_set() || blocked.piece != piece {
            blocked.piece = piece;
            blocked.sent = self.connection.progress().0;
            blocked.deadline.set(Instant::now() + limit);
        }
        loop {
            ready!(blocked.deadline.poll(cx));
            let (sent, is_window_used_up) = self.connection.progress();
            // A slow visitor with many streams serves them in turn.
            let waits_for_others =
                self.connection.is_write_blocked() || (is_window_used_up && sent != blocked.sent);
            if !waits_for_others {
                return Poll::Ready(());
            }
            blocked.sent = sent;
            blocked.deadline.set(Instant::now() + limit);
        }
    }

    /// Discard what still comes of a request whose answer has been given away. What has not ended after
    /// some time is reset.
    async fn discard(self, stream: Arc<Stream>) {
        let deadline = Instant::now() + self.discard;
        let Ok(Some(mut body)) = timeout_at(deadline, stream.unread_body()).await else {
            return;
        };
        let mut left = self.discard_bytes;
        while left > 0 && !body.is_end_stream() {
            match timeout_at(deadline, body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    let bytes = frame.data_ref().map_or(0, Bytes::len);
                    left = left.saturating_sub(bytes as u64);
                }
                // It has ended, or the visitor has reset the stream.
                Ok(_) => return,
                Err(_) => break,
            }
        }
        if body.is_end_stream() {
            return;
        }
        sleep_until(deadline).await;
        // A visitor that reads slowly has not got the answer yet.
        while self.connection.is_write_blocked() {
            sleep(LOOK_AGAIN).await;
        }
        // As the body is dropped the stream is reset, with NO_ERROR (RFC 9113 §8.1).
    }
}

/// What of an answer nobody watches any more: little enough for a visitor that never reads to keep it.
const LAST: usize = 1 << 10;

/// How long to wait for a slow visitor before looking again. The socket's limit ends it.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
