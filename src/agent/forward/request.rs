//! A request as it is sent to the upstream: with one framing field, the configured host, and retries on another
//! connection where that is safe.

use std::sync::Arc;

use ::http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use ::http::uri::{Authority, PathAndQuery, Scheme as UriScheme};
use ::http::{HeaderMap, HeaderValue, Request, Response, Uri};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Incoming;
use tracing::debug;

use super::cdn_loop::CdnId;
use super::error::ForwardError;
use super::informational::InformationalQueue;
use super::origins::Origins;
use super::response as response_head;
use crate::agent::config::HostHeader;
use crate::agent::upstream::RequestBody;
use crate::agent::upstream::http2;
use crate::agent::upstream::http2::Stream;
use crate::agent::upstream::pool::{Http1, Leased, Pool, RequestError};
use crate::http::ReplayBuffer;
use crate::proto::{BodyLength, HttpVersion, RequestHead};
use crate::stream::TunnelBody;

/// A request to a server.
pub(crate) struct UpstreamRequest<'a> {
    pub(crate) head: &'a RequestHead,
    pub(crate) pool: &'a Pool,
    pub(crate) host_header: &'a HostHeader,
    pub(crate) origins: Option<&'a Arc<Origins>>,
    pub(crate) cdn_id: &'a CdnId,
    /// The queue for 1xx responses.
    pub(crate) informational: InformationalQueue,
}

/// A response, and the connection on which it arrives.
pub(crate) type UpstreamResponse = (Response<Incoming>, ResponseConnection);

/// The connection of a response, occupied until the response has been read.
pub(crate) enum ResponseConnection {
    /// A connection, which is then returned to the pool.
    Http1(Http1),
    /// A stream, which then frees a slot for another request.
    Http2(Stream),
}

impl UpstreamRequest<'_> {
    /// Send the request and wait for the head of the response. If the upstream has closed an idle connection, the
    /// request is sent again on another one, as long as it cannot have been processed or is idempotent
    /// (RFC 9110 §9.2.2).
    pub(crate) async fn send(
        &self,
        leased: Leased,
        body: RequestBody,
    ) -> Result<UpstreamResponse, ForwardError> {
        let (mut connection, reused) = match leased {
            Leased::Http1 { connection, reused } => (connection, reused),
            // Boxed because it is large; for HTTP/2 an allocation is a small part of the work.
            Leased::Http2(stream) => return Box::pin(self.send_http2(stream, body)).await,
        };
        let repeatable = matches!(body, RequestBody::Empty) && self.head.method.is_idempotent();
        let request = self.http1(body)?;
        let mut err = match self.pool.send(&mut connection, reused, request).await {
            Ok(response) => return Ok((response, ResponseConnection::Http1(connection))),
            Err(RequestError::Head(err)) => return Err(ForwardError::Head(err)),
            Err(RequestError::Http(err)) => err,
        };
        let body = match err.take_message() {
            Some(request) => request.into_body(),
            None if reused && repeatable => RequestBody::Empty,
            None => return Err(ForwardError::Upstream(err.into_error())),
        };
        // Boxed because it is large and rare: the future of every request would reserve space for it.
        Box::pin(self.send_on_new_connection(body)).await
    }

    /// Send the request on a new connection, after an idle one was found closed.
    async fn send_on_new_connection(
        &self,
        body: RequestBody,
    ) -> Result<UpstreamResponse, ForwardError> {
        match self.pool.dial(self.head.upgrade.is_some()).await {
            Ok(Leased::Http1 { mut connection, .. }) => {
                let response = self
                    .pool
                    .send(&mut connection, false, self.http1(body)?)
                    .await;
                match response {
                    Ok(response) => Ok((response, ResponseConnection::Http1(connection))),
                    Err(RequestError::Head(err)) => Err(ForwardError::Head(err)),
                    Err(RequestError::Http(err)) => Err(ForwardError::Upstream(err.into_error())),
                }
            }
            Ok(Leased::Http2(stream)) => self.send_http2(stream, body).await,
            Err(err) => Err(ForwardError::Dial(err)),
        }
    }

    /// Send the request on a stream, and retry on others as long as the upstream has not processed it (RFC 9113
    /// §8.7), whatever its method, and its whole body can be replayed.
    async fn send_http2(
        &self,
        mut stream: Stream,
        body: RequestBody,
    ) -> Result<UpstreamResponse, ForwardError> {
        if self.head.upgrade.is_some() {
            return Err(ForwardError::NoUpgrade);
        }
        let mut retry = RetryBody::new(body);
        let mut attempts = 1;
        loop {
            let failed = match stream.send(self.http2(retry.body())?).await {
                Ok(response) => {
                    retry.stop_buffering();
                    return Ok((response, ResponseConnection::Http2(stream)));
                }
                Err(failed) => failed,
            };
            let unsent = failed.message().is_some();
            let err = failed.into_error();
            let repeatable = stream.reused
                && retry.is_empty()
                && self.head.method.is_idempotent()
                && !http2::is_remote_reset(&err);
            let may_repeat = unsent || http2::is_unprocessed(&err) || repeatable && attempts == 1;
            if !may_repeat || !retry.is_complete() || attempts == MAX_ATTEMPTS {
                let is_agreed = self.pool.is_secure() || stream.reused;
                return Err(ForwardError::from_http2(err, is_agreed));
            }
            debug!(%err, attempts, "resending a request that the upstream has not processed");
            attempts += 1;
            // A held stream occupies a slot of the connection.
            drop(stream);
            stream = match self.pool.lease(false).await.map_err(ForwardError::Dial)? {
                Leased::Http2(stream) => stream,
                Leased::Http1 {
                    mut connection,
                    reused,
                } => {
                    let request = self.http1(retry.body())?;
                    return match self.pool.send(&mut connection, reused, request).await {
                        Ok(response) => {
                            retry.stop_buffering();
                            Ok((response, ResponseConnection::Http1(connection)))
                        }
                        Err(RequestError::Head(err)) => Err(ForwardError::Head(err)),
                        Err(RequestError::Http(err)) => {
                            Err(ForwardError::Upstream(err.into_error()))
                        }
                    };
                }
            };
        }
    }

    /// Build the request for HTTP/2 (RFC 9113 §8.3.1).
    fn http2(&self, body: RequestBody) -> Result<Request<RequestBody>, ForwardError> {
        let mut request = self.request(body);
        request.headers_mut().remove(HOST);
        *request.uri_mut() = self.absolute_uri()?;
        Ok(request)
    }

    /// Build the request for HTTP/1.1, with the fields of an upgrade if there is one.
    fn http1(&self, body: RequestBody) -> Result<Request<RequestBody>, ForwardError> {
        let mut request = self.request(body);
        *request.uri_mut() = self.head.target.parse().map_err(|_| ForwardError::Target)?;
        if self.head.body == BodyLength::Unknown {
            // hyper adds the field by itself, but not to a GET.
            let chunked = HeaderValue::from_static("chunked");
            request.headers_mut().insert(TRANSFER_ENCODING, chunked);
        }
        if let Some(protocol) = &self.head.upgrade {
            let headers = request.headers_mut();
            let value = HeaderValue::from_str(protocol).map_err(|_| ForwardError::Target)?;
            headers.insert(UPGRADE, value);
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            if self.head.version == HttpVersion::Http2 {
                headers.insert("sec-websocket-key", websocket_key());
            }
        }
        let (informational, origins) = (self.informational.clone(), self.origins.cloned());
        hyper::ext::on_informational(&mut request, move |response| {
            let mut fields = response.headers().clone();
            if let Some(origins) = &origins {
                origins.rewrite_response(&mut fields);
            }
            informational.push(response_head::informational(response.status(), fields));
        });
        Ok(request)
    }

    /// Build the part of the request that all versions of HTTP share.
    fn request(&self, body: RequestBody) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.head.method.clone();
        *request.headers_mut() = self.head.fields.0.clone();
        let headers = request.headers_mut();
        set_framing(headers, self.head.body);
        if let Some(origins) = self.origins {
            origins.rewrite_request(headers);
        }
        self.cdn_id.append_to(headers);
        set_host(headers, self.host_header, || self.pool.target().authority());
        request
    }

    /// Return the absolute URI of the request, from which hyper fills `:scheme`, `:authority` and `:path`.
    fn absolute_uri(&self) -> Result<Uri, ForwardError> {
        let host = match self.host_header {
            HostHeader::Preserve => self.head.fields.0.get(HOST).map(HeaderValue::as_bytes),
            HostHeader::Value(host) => Some(host.as_bytes()),
            HostHeader::Rewrite => None,
        };
        let authority = match host {
            Some(host) => Authority::try_from(host),
            None => Authority::try_from(self.pool.target().authority()),
        };
        let mut parts = ::http::uri::Parts::default();
        // The scheme of the upstream; the visitor's is in `X-Forwarded-Proto`.
        parts.scheme = Some(match self.pool.is_secure() {
            true => UriScheme::HTTPS,
            false => UriScheme::HTTP,
        });
        parts.authority = Some(authority.map_err(|_| ForwardError::Target)?);
        let target =
            PathAndQuery::try_from(self.head.target.as_str()).map_err(|_| ForwardError::Target)?;
        parts.path_and_query = Some(target);
        Uri::from_parts(parts).map_err(|_| ForwardError::Target)
    }
}

/// A request body that can be sent again, where that is possible.
enum RetryBody {
    Empty,
    /// A body that is buffered while it is sent.
    Buffered(ReplayBuffer<TunnelBody>),
    /// A body that can be sent once; `None` after that.
    Once(Option<RequestBody>),
}

impl RetryBody {
    fn new(body: RequestBody) -> Self {
        match body {
            RequestBody::Empty => Self::Empty,
            RequestBody::Tunnel(body) => Self::Buffered(ReplayBuffer::new(*body)),
            body @ RequestBody::Replay(_) => Self::Once(Some(body)),
        }
    }

    /// Return the body for the next attempt.
    fn body(&mut self) -> RequestBody {
        match self {
            Self::Empty => RequestBody::Empty,
            Self::Buffered(body) => RequestBody::Replay(body.read()),
            Self::Once(body) => body.take().unwrap_or(RequestBody::Empty),
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    /// Report whether the whole body can be sent again.
    fn is_complete(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Buffered(body) => body.buffered().is_some(),
            Self::Once(body) => body.is_some(),
        }
    }

    /// Stop buffering: there is a response, so that no retry will follow.
    fn stop_buffering(&self) {
        if let Self::Buffered(body) = self {
            body.stop_buffering();
        }
    }
}

/// The most attempts to send a request that the upstream does not process. A server that closes each connection after
/// ten requests refuses a request that arrives together with a hundred others several times.
const MAX_ATTEMPTS: u32 = 32;

/// Set `Content-Length` if the length is known, and remove it if not. Any other framing depends on the upstream's
/// version of HTTP, and is added there.
pub(crate) fn set_framing(headers: &mut HeaderMap, body: BodyLength) {
    match body {
        BodyLength::Known(length) => {
            headers.insert(CONTENT_LENGTH, length.into());
        }
        BodyLength::Unknown => {
            headers.remove(CONTENT_LENGTH);
        }
        // `Content-Length: 0`, as of a POST, stays.
        BodyLength::Empty => {
            if headers.contains_key(CONTENT_LENGTH) {
                headers.insert(CONTENT_LENGTH, 0.into());
            }
        }
    }
}

/// Set `Host` as configured. `own` returns the authority of the upstream itself.
pub(crate) fn set_host(
    headers: &mut HeaderMap,
    host_header: &HostHeader,
    own: impl FnOnce() -> String,
) {
    let value = match host_header {
        HostHeader::Preserve => return,
        HostHeader::Value(host) => Some(host.clone()),
        // A target's authority was checked when it was parsed.
        HostHeader::Rewrite => HeaderValue::try_from(own()).ok(),
    };
    if let Some(value) = value {
        headers.insert(HOST, value);
    }
}

/// Generate a `Sec-WebSocket-Key`, which the handshake has in HTTP/1.1 and not in HTTP/2 (RFC 8441 §5).
fn websocket_key() -> HeaderValue {
    let mut nonce = [0; 16];
    aws_lc_rs::rand::fill(&mut nonce).expect("the operating system has random numbers");
    HeaderValue::try_from(STANDARD.encode(nonce)).expect("base64 is visible ASCII")
}
