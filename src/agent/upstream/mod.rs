//! The destinations of tunnels: a server on a socket, or a service in this process.

pub(crate) mod address;
pub(crate) mod connections;
pub(crate) mod directory;
pub(crate) mod http2;
pub(crate) mod pool;
pub(crate) mod read_limit;
pub(crate) mod resolver;
pub(crate) mod response_head;
pub(crate) mod response_reader;

use std::convert::Infallible;
use std::error::Error as StdError;
use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ::http::{Request, Response};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;

use self::address::{Address, Target};
use crate::http::ReplayBody;
use crate::stream::{ReceiveError, TunnelBody, Unread};

/// The destination of a tunnel's requests.
#[derive(Debug, Clone)]
pub enum Upstream {
    /// A server.
    Target(Target),
    /// A service in this process, without a local port.
    Service(Service),
}

impl From<Address> for Upstream {
    fn from(address: Address) -> Self {
        match address {
            Address::Target(target) => Self::Target(target),
            Address::Directory(path) => Self::Service(directory::service(&path)),
        }
    }
}

/// An HTTP service in this process.
#[derive(Clone)]
pub struct Service(Arc<dyn Fn(Request<UpstreamBody>) -> ResponseFuture + Send + Sync>);

type ResponseFuture =
    Pin<Box<dyn Future<Output = Result<Response<UpstreamBody>, BoxError>> + Send>>;
type BoxError = Box<dyn StdError + Send + Sync>;

impl Service {
    /// Create a service from a function.
    pub fn new<F, Fut>(handler: F) -> Self
    where
        F: Fn(Request<UpstreamBody>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Response<UpstreamBody>, BoxError>> + Send + 'static,
    {
        Self(Arc::new(move |request| Box::pin(handler(request))))
    }

    /// Create a service from a `tower` service, such as an axum router.
    pub fn tower<S, B>(service: S) -> Self
    where
        S: tower_service::Service<Request<UpstreamBody>, Response = Response<B>>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self::new(move |request| {
            let service = service.clone();
            async move {
                let response = tower::ServiceExt::oneshot(service, request)
                    .await
                    .map_err(Into::into)?;
                Ok(response.map(UpstreamBody::new))
            }
        })
    }

    /// Call the service.
    ///
    /// # Errors
    /// The error of the service; a panic is caught and returned as an error.
    pub(crate) async fn call(
        &self,
        request: Request<UpstreamBody>,
    ) -> Result<Response<UpstreamBody>, BoxError> {
        let mut response = catch_unwind(AssertUnwindSafe(|| (self.0)(request)))
            .map_err(|_| BoxError::from(PANICKED))?;
        poll_fn(
            |cx| match catch_unwind(AssertUnwindSafe(|| response.as_mut().poll(cx))) {
                Ok(polled) => polled,
                Err(_) => Poll::Ready(Err(PANICKED.into())),
            },
        )
        .await
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Service")
    }
}

/// The error text for a panic. The panic hook has already written the details to stderr.
const PANICKED: &str = "it panicked";

/// The body of a request to, or a response from, a service in this process.
pub struct UpstreamBody(UnsyncBoxBody<Bytes, BoxError>);

impl UpstreamBody {
    /// Wrap any body.
    pub fn new<B>(body: B) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self(body.map_err(Into::into).boxed_unsync())
    }

    /// Create a body from bytes in memory.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let full = http_body_util::Full::new(bytes.into());
        Self(
            full.map_err(|never: Infallible| match never {})
                .boxed_unsync(),
        )
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// The body of a request to a server.
pub enum RequestBody {
    /// A body from the tunnel.
    Tunnel(Box<TunnelBody>),
    /// A body from the tunnel that is buffered for a retry.
    Replay(ReplayBody<TunnelBody>),
    /// No body.
    Empty,
}

impl Body for RequestBody {
    type Data = Unread;
    type Error = ReceiveError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Unread>, ReceiveError>>> {
        match self.get_mut() {
            Self::Tunnel(body) => Pin::new(body).poll_frame(cx),
            Self::Replay(body) => Pin::new(body).poll_frame(cx),
            Self::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Tunnel(body) => body.is_end_stream(),
            Self::Replay(body) => body.is_end_stream(),
            Self::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Tunnel(body) => body.size_hint(),
            Self::Replay(body) => body.size_hint(),
            Self::Empty => SizeHint::with_exact(0),
        }
    }
}
