//! A visitor's request body, as the edge reads it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::http::HeaderMap;
use ::http::header::CONTENT_TYPE;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::http2::Http2Stream;
use super::paced_body::{BodyError, PacedBody};
use crate::edge::limits::EdgeLimits;
use crate::edge::visitors::socket::ReceivedBytes;

/// A request's body. Over HTTP/2, its stream gets it back when it is not read any further.
pub struct RequestBody {
    body: Option<PacedBody<Incoming>>,
    /// The HTTP/2 stream; `None` over HTTP/1.
    stream: Option<Arc<Http2Stream>>,
}

impl RequestBody {
    /// Read a body with the limits on its rate.
    pub fn new(
        body: Incoming,
        fields: &HeaderMap,
        limits: &EdgeLimits,
        received: ReceivedBytes,
        stream: Option<Arc<Http2Stream>>,
    ) -> Self {
        let pauses = stream.as_ref().map(|stream| stream.read_pauses());
        let mut body = PacedBody::new(body, limits, received, pauses);
        if may_pause(fields) {
            body.unlimit();
        }
        if let Some(stream) = &stream {
            stream.mark_body_in_use();
        }
        Self {
            body: Some(body),
            stream,
        }
    }

    /// Lift the limit on the rate: the response has begun, and the two bodies may be a
    /// conversation.
    pub fn unlimit(&mut self) {
        if let Some(body) = &mut self.body {
            body.unlimit();
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError<hyper::Error>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if let (Some(Ok(frame)), Some(stream)) = (&frame, &self.stream) {
            stream.read(frame.data_ref().map_or(0, Bytes::len));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let (Some(stream), Some(body)) = (&self.stream, self.body.take()) {
            stream.return_body(body.into_inner());
        }
    }
}

/// Report whether the visitor may stay silent for hours in the middle of its request's body. A
/// streaming gRPC call has no other form, and its server need not respond before it has something
/// to say.
fn may_pause(fields: &HeaderMap) -> bool {
    let kind = fields.get(CONTENT_TYPE).map(|kind| kind.as_bytes());
    kind.is_some_and(|kind| {
        kind.get(..GRPC.len())
            .is_some_and(|kind| kind.eq_ignore_ascii_case(GRPC))
    })
}

/// Prefix of gRPC's media types.
const GRPC: &[u8] = b"application/grpc";
