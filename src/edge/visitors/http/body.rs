//! What visitors read: a body from the tunnel, or a page of our own.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use quinn::ReadError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::edge::visitors::conversations::Admission;
use crate::edge::visitors::conversations::Evict;
use crate::stream::{ReceiveError, SharedWindow, TunnelBody, Unread};

/// The body of every response.
pub enum VisitorBody {
    /// The upstream's. Until it ends, the rest of the request's body goes on being sent: responses may
    /// begin before requests end.
    Tunnel {
        /// What the upstream sends.
        answer: TunnelAnswer,
        /// What the visitor still sends.
        _upload: Option<AbortOnDropHandle<()>>,
    },
    /// Our own.
    Page(Full<Bytes>),
    /// None at all.
    Empty,
}

/// A body that something ends with: whatever must last as long as it.
pub struct WithGuard<G> {
    body: VisitorBody,
    _guard: G,
}

impl VisitorBody {
    /// Let something end with the body.
    pub fn with<G>(self, guard: G) -> WithGuard<G> {
        WithGuard {
            body: self,
            _guard: guard,
        }
    }
}

impl<G: Unpin> Body for WithGuard<G> {
    type Data = Unread;
    type Error = ReceiveError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Unread>, ReceiveError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Body for VisitorBody {
    type Data = Unread;
    type Error = ReceiveError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Unread>, ReceiveError>>> {
        match self.get_mut() {
            Self::Tunnel { answer, .. } => answer.poll_frame(cx),
            Self::Page(page) => Pin::new(page)
                .poll_frame(cx)
                .map_ok(|frame| frame.map_data(Unread::from))
                .map_err(|err: Infallible| match err {}),
            Self::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Tunnel { answer, .. } => answer.is_end_stream(),
            Self::Page(page) => page.is_end_stream(),
            Self::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Tunnel { answer, .. } => answer.size_hint(),
            Self::Page(page) => page.size_hint(),
            Self::Empty => SizeHint::with_exact(0),
        }
    }
}

/// An upstream's answer on its way to a visitor. It can be given up from outside, where nobody polls it.
pub struct TunnelAnswer {
    answer: Arc<Answer>,
    /// When it is given up although it has not ended.
    limit: Option<BoxFuture<'static, ()>>,
}

struct Answer {
    /// Until the answer is given up or dropped.
    flowing: Mutex<Option<Flowing>>,
    window: SharedWindow,
}

struct Flowing {
    body: TunnelBody,
    /// Dropped last: the place is free when the stream is.
    _admission: Admission,
}

impl TunnelAnswer {
    /// Begin to pass an answer on.
    pub fn new(body: TunnelBody, window: SharedWindow, admission: Admission) -> Self {
        let answer = Arc::new_cyclic(|answer: &std::sync::Weak<Answer>| {
            admission.watch(answer.clone());
            Answer {
                flowing: Mutex::new(Some(Flowing {
                    body,
                    _admission: admission,
                })),
                window,
            }
        });
        let limit = None;
        Self { answer, limit }
    }

    /// Give it up once this has ended.
    pub fn until(mut self, limit: impl Future<Output = ()> + Send + 'static) -> Self {
        self.limit = Some(Box::pin(limit));
        self
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Unread>, ReceiveError>>> {
        let given_up = Poll::Ready(Some(Err(ReceiveError::Stream(ReadError::ClosedStream))));
        let frame = match &mut *self.answer.lock() {
            Some(flowing) => Pin::new(&mut flowing.body).poll_frame(cx),
            None => return given_up,
        };
        if frame.is_pending()
            && let Some(limit) = &mut self.limit
            && limit.as_mut().poll(cx).is_ready()
        {
            self.limit = None;
            self.answer.evict();
            return given_up;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        let flowing = self.answer.lock();
        flowing
            .as_ref()
            .is_some_and(|flowing| flowing.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let flowing = self.answer.lock();
        flowing
            .as_ref()
            .map_or_else(SizeHint::default, |flowing| flowing.body.size_hint())
    }
}

impl Drop for TunnelAnswer {
    fn drop(&mut self) {
        self.answer.evict();
    }
}

impl Answer {
    fn lock(&self) -> MutexGuard<'_, Option<Flowing>> {
        self.flowing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Evict for Answer {
    fn stalled_since(&self) -> Option<Instant> {
        self.window.stalled_since()
    }

    fn evict(&self) {
        let flowing = self.lock().take();
        drop(flowing);
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").finish_non_exhaustive()
    }
}

/// A conversation that is no longer HTTP, and can be given up from outside.
pub struct UpgradedAnswer {
    window: SharedWindow,
    end: CancellationToken,
}

impl UpgradedAnswer {
    /// Watch over what arrives in this window.
    pub fn new(window: SharedWindow) -> Self {
        Self {
            window,
            end: CancellationToken::new(),
        }
    }

    /// Wait until it is given up.
    pub async fn evicted(&self) {
        self.end.cancelled().await;
    }
}

impl Evict for UpgradedAnswer {
    fn stalled_since(&self) -> Option<Instant> {
        self.window.stalled_since()
    }

    fn evict(&self) {
        self.end.cancel();
    }
}

impl fmt::Debug for UpgradedAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpgradedAnswer").finish_non_exhaustive()
    }
}
