//! One stream of an HTTP/2 connection, from its request to what is left when it has been answered.

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

use super::connection::{ActiveStream, Connection};
use crate::edge::limits::EdgeLimits;
use crate::edge::visitors::http::body::VisitorBody;
use crate::edge::visitors::lazy_deadline::LazyDeadline;
use crate::stream::{ReceiveError, Unread as Unsent};

/// What the two ends of a stream's task know of each other: hyper, which has the response, and the
/// executor, which has hyper.
#[derive(Debug)]
pub struct Stream {
    connection: Arc<Connection>,
    progress: Arc<Progress>,
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
    /// Begin with a request of a connection.
    pub fn new(connection: Arc<Connection>) -> Arc<Self> {
        Arc::new(Self {
            connection,
            progress: Arc::default(),
            unread: Mutex::default(),
            returned: Notify::new(),
        })
    }

    /// Note that bytes of the request's body have been read.
    pub fn read(&self, bytes: usize) {
        self.connection.read(bytes);
    }

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
        // hyper asks for the first piece when the window takes a byte, as it does for every other.
        self.progress.taken();
        Ok(response.map(|body| Answer {
            body,
            last: None,
            stream: self,
        }))
    }

    fn unread(&self) -> MutexGuard<'_, Unread> {
        lock(&self.unread)
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

/// Since when the visitor has taken nothing of an answer, unless there is nothing to take.
///
/// h2 has it with the pieces, and holds a lock while it drops them: it must own nothing that is h2's.
#[derive(Debug, Default)]
struct Progress(Mutex<Option<Instant>>);

impl Progress {
    /// Note that the visitor has taken something, and is to take more.
    fn taken(&self) {
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
    /// Where the service names its stream to the executor. Between the two is hyper's future.
    static SLOT: Arc<OnceLock<Arc<Stream>>>;
}

/// An answer on its way to hyper, which asks for a piece only when the one before has been sent.
pub struct Answer {
    body: VisitorBody,
    /// The end of the last piece.
    last: Option<Unsent>,
    stream: Arc<Stream>,
}

/// A piece of an answer. h2 takes as much of it as the visitor's window allows.
pub struct Piece {
    bytes: Unsent,
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
        self.progress.taken();
    }
}

impl Body for Answer {
    type Data = Piece;
    type Error = ReceiveError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, ReceiveError>>> {
        let this = self.get_mut();
        this.stream.progress.set(None);
        let mut frame = match this.last.take() {
            Some(last) => Some(Ok(Frame::data(last))),
            None => ready!(Pin::new(&mut this.body).poll_frame(cx)),
        };
        this.stream.progress.taken();
        // hyper gives the last piece away whole as soon as the window takes a byte of it, and then
        // nobody knows any more whether it is read.
        if let Some(Ok(data)) = &mut frame
            && let Some(data) = data.data_mut()
            && data.len() > LAST
            && this.body.is_end_stream()
        {
            this.last = Some(data.split_off(data.len() - 1));
        }
        let piece = |bytes| Piece {
            bytes,
            progress: this.stream.progress.clone(),
        };
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(piece))))
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
            stall: Stall::default(),
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

/// When an answer of which the visitor takes nothing is given up.
#[derive(Default)]
struct Stall {
    /// Until when other streams were served in its place.
    excused: Option<Instant>,
    deadline: LazyDeadline,
}

impl StreamExecutor {
    /// Wait until nothing of a stream has been taken for too long, although there is something to take
    /// and nothing but the visitor's window stands against it.
    fn poll_stall(&self, stream: &Stream, stall: &mut Stall, cx: &mut Context<'_>) -> Poll<()> {
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
            // A slow visitor with many streams serves them in turn.
            match self.connection.busy_until() {
                Some(busy) if busy > since => stall.excused = Some(busy),
                _ => return Poll::Ready(()),
            }
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
                    stream.read(bytes);
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds one panics half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What of an answer nobody watches any more: little enough for a visitor that never reads to keep it.
const LAST: usize = 1 << 10;

/// How long to wait for a slow visitor before looking again. The socket's limit ends it.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
