//! Response bodies: one that comes through the tunnel, or a page of the edge's own.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use quinn::ReadError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::edge::visitors::conversations::ConversationPermit;
use crate::edge::visitors::conversations::Evict;
use crate::stream::{ReceiveError, SharedWindow, TunnelBody, Unread};

/// The body of every response to a visitor.
pub enum VisitorBody {
    /// The upstream's body. Until it ends, the rest of the request's body is sent: responses may
    /// begin before requests end.
    Tunnel {
        /// The upstream's response body.
        response: TunnelResponse,
        /// The task that sends the rest of the request's body.
        _upload: Option<AbortOnDropHandle<()>>,
    },
    /// A page of the edge.
    Page(Full<Bytes>),
    /// No body.
    Empty,
}

/// A body together with a guard that must live as long as it.
pub struct WithGuard<G> {
    body: VisitorBody,
    _guard: G,
}

impl VisitorBody {
    /// Attach a guard, which is dropped with the body.
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
            Self::Tunnel { response, .. } => response.poll_frame(cx),
            Self::Page(page) => Pin::new(page)
                .poll_frame(cx)
                .map_ok(|frame| frame.map_data(Unread::from))
                .map_err(|err: Infallible| match err {}),
            Self::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Tunnel { response, .. } => response.is_end_stream(),
            Self::Page(page) => page.is_end_stream(),
            Self::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Tunnel { response, .. } => response.size_hint(),
            Self::Page(page) => page.size_hint(),
            Self::Empty => SizeHint::with_exact(0),
        }
    }
}

/// An upstream's response body on its way to a visitor. It can be evicted from outside, where
/// nobody polls it.
pub struct TunnelResponse {
    state: Arc<ResponseState>,
    /// Ends the response although the upstream has not.
    cutoff: Option<BoxFuture<'static, ()>>,
}

struct ResponseState {
    /// `None` once the response has been evicted or dropped.
    active: Mutex<Option<ActiveResponse>>,
    window: SharedWindow,
}

struct ActiveResponse {
    body: TunnelBody,
    /// Dropped after the body: the conversation's place is free when the stream is.
    _permit: ConversationPermit,
}

impl TunnelResponse {
    /// Start to pass a response on.
    pub fn new(body: TunnelBody, window: SharedWindow, permit: ConversationPermit) -> Self {
        let state = Arc::new_cyclic(|state: &std::sync::Weak<ResponseState>| {
            permit.watch(state.clone());
            ResponseState {
                active: Mutex::new(Some(ActiveResponse {
                    body,
                    _permit: permit,
                })),
                window,
            }
        });
        Self {
            state,
            cutoff: None,
        }
    }

    /// Cut the response off once this resolves while it has nothing to pass on.
    pub fn until(mut self, cutoff: impl Future<Output = ()> + Send + 'static) -> Self {
        self.cutoff = Some(Box::pin(cutoff));
        self
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Unread>, ReceiveError>>> {
        let cut_off = Poll::Ready(Some(Err(ReceiveError::Stream(ReadError::ClosedStream))));
        let frame = match &mut *self.state.lock() {
            Some(active) => Pin::new(&mut active.body).poll_frame(cx),
            None => return cut_off,
        };
        if frame.is_pending()
            && let Some(cutoff) = &mut self.cutoff
            && cutoff.as_mut().poll(cx).is_ready()
        {
            self.cutoff = None;
            self.state.evict();
            return cut_off;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        let active = self.state.lock();
        active
            .as_ref()
            .is_some_and(|active| active.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let active = self.state.lock();
        active
            .as_ref()
            .map_or_else(SizeHint::default, |active| active.body.size_hint())
    }
}

impl Drop for TunnelResponse {
    fn drop(&mut self) {
        self.state.evict();
    }
}

impl ResponseState {
    fn lock(&self) -> MutexGuard<'_, Option<ActiveResponse>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Evict for ResponseState {
    fn stalled_since(&self) -> Option<Instant> {
        self.window.stalled_since()
    }

    fn evict(&self) {
        let active = self.lock().take();
        drop(active);
    }
}

impl fmt::Debug for ResponseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseState").finish_non_exhaustive()
    }
}

/// An upgraded conversation, which can be evicted from outside.
pub struct UpgradedConversation {
    window: SharedWindow,
    end: CancellationToken,
}

impl UpgradedConversation {
    /// Create a conversation whose data arrives in this window.
    pub fn new(window: SharedWindow) -> Self {
        Self {
            window,
            end: CancellationToken::new(),
        }
    }

    /// Wait until the conversation is evicted.
    pub async fn evicted(&self) {
        self.end.cancelled().await;
    }
}

impl Evict for UpgradedConversation {
    fn stalled_since(&self) -> Option<Instant> {
        self.window.stalled_since()
    }

    fn evict(&self) {
        self.end.cancel();
    }
}

impl fmt::Debug for UpgradedConversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpgradedConversation")
            .finish_non_exhaustive()
    }
}
