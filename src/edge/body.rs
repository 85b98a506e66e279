//! What visitors read: a body from the tunnel, or a page of our own.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use tokio_util::task::AbortOnDropHandle;

use crate::http::{ReceiveError, TunnelBody, Unread};

/// The body of every response.
pub enum VisitorBody {
    /// The upstream's. Until it ends, the rest of the request's body goes on being sent: responses may
    /// begin before requests end.
    Tunnel {
        /// What the upstream sends.
        body: Box<TunnelBody>,
        /// What the visitor still sends.
        _upload: Option<AbortOnDropHandle<()>>,
    },
    /// Our own.
    Page(Full<Bytes>),
    /// None at all.
    Empty,
}

impl Body for VisitorBody {
    type Data = Unread;
    type Error = ReceiveError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Unread>, ReceiveError>>> {
        match self.get_mut() {
            Self::Tunnel { body, .. } => Pin::new(&mut **body).poll_frame(cx),
            Self::Page(page) => Pin::new(page)
                .poll_frame(cx)
                .map_ok(|frame| frame.map_data(Unread::from))
                .map_err(|err: Infallible| match err {}),
            Self::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Tunnel { body, .. } => body.is_end_stream(),
            Self::Page(page) => page.is_end_stream(),
            Self::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Tunnel { body, .. } => body.size_hint(),
            Self::Page(page) => page.size_hint(),
            Self::Empty => SizeHint::with_exact(0),
        }
    }
}
