//! A request as the upstream gets it: one framing field, the right host, and a connection that is
//! sound.

use std::sync::Arc;

use ::http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use ::http::uri::{Authority, PathAndQuery, Scheme as UriScheme};
use ::http::{HeaderMap, HeaderValue, Request, Response, Uri};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Incoming;
use tracing::debug;

use super::error::ForwardError;
use super::informational::InformationalQueue;
use super::loops::Mark;
use super::origins::Origins;
use super::response;
use crate::agent::config::HostHeader;
use crate::agent::upstream::RequestBody;
use crate::agent::upstream::http2;
use crate::agent::upstream::http2::Stream;
use crate::agent::upstream::pool::{AskError, Http1, Leased, Pool};
use crate::http::ReplayBuffer;
use crate::proto::{BodyLength, HttpVersion, RequestHead};
use crate::stream::TunnelBody;

/// A request on its way to a server.
pub(crate) struct UpstreamRequest<'a> {
    pub(crate) head: &'a RequestHead,
    pub(crate) pool: &'a Pool,
    pub(crate) host_header: &'a HostHeader,
    pub(crate) origins: Option<&'a Arc<Origins>>,
    pub(crate) mark: &'a Mark,
    /// Where 1xx answers go.
    pub(crate) hints: InformationalQueue,
}

/// An answer, and what it comes on.
pub(crate) type Answered = (Response<Incoming>, Held);

/// What an answer comes on, until it has been read.
pub(crate) enum Held {
    /// A connection, which is given back then.
    Http1(Http1),
    /// A stream, which is free for another request then.
    Http2(Stream),
}

impl UpstreamRequest<'_> {
    /// Send the request and wait for the response's head. A connection that the upstream has closed
    /// while it was idle is replaced, as long as the request cannot have been processed or may be
    /// repeated (RFC 9110 §9.2.2).
    pub(crate) async fn send(
        &self,
        leased: Leased,
        body: RequestBody,
    ) -> Result<Answered, ForwardError> {
        let (mut connection, reused) = match leased {
            Leased::Http1 { connection, reused } => (connection, reused),
            // Boxed: it is large, and who speaks HTTP/2 has more to do anyway.
            Leased::Http2(stream) => return Box::pin(self.send_http2(stream, body)).await,
        };
        let repeatable = matches!(body, RequestBody::Empty) && self.head.method.is_idempotent();
        let request = self.http1(body)?;
        let mut err = match self.pool.ask(&mut connection, reused, request).await {
            Ok(response) => return Ok((response, Held::Http1(connection))),
            Err(AskError::Head(err)) => return Err(ForwardError::Head(err)),
            Err(AskError::Http(err)) => err,
        };
        let body = match err.take_message() {
            Some(request) => request.into_body(),
            None if reused && repeatable => RequestBody::Empty,
            None => return Err(ForwardError::Upstream(err.into_error())),
        };
        // Rare, and large: every request's future would have room for it.
        Box::pin(self.send_anew(body)).await
    }

    async fn send_anew(&self, body: RequestBody) -> Result<Answered, ForwardError> {
        match self.pool.dial(self.head.upgrade.is_some()).await {
            Ok(Leased::Http1 { mut connection, .. }) => {
                let response = self
                    .pool
                    .ask(&mut connection, false, self.http1(body)?)
                    .await;
                match response {
                    Ok(response) => Ok((response, Held::Http1(connection))),
                    Err(AskError::Head(err)) => Err(ForwardError::Head(err)),
                    Err(AskError::Http(err)) => Err(ForwardError::Upstream(err.into_error())),
                }
            }
            Ok(Leased::Http2(stream)) => self.send_http2(stream, body).await,
            Err(err) => Err(ForwardError::Dial(err)),
        }
    }

    /// Send the request on a stream, and again on others as long as the upstream has not processed it (RFC 9113
    /// §8.7), whatever its method is, and all of its body is still here.
    async fn send_http2(
        &self,
        mut stream: Stream,
        body: RequestBody,
    ) -> Result<Answered, ForwardError> {
        if self.head.upgrade.is_some() {
            return Err(ForwardError::NoUpgrade);
        }
        let mut again = Again::new(body);
        let mut attempts = 1;
        loop {
            let failed = match stream.ask(self.http2(again.body())?).await {
                Ok(response) => {
                    again.settle();
                    return Ok((response, Held::Http2(stream)));
                }
                Err(failed) => failed,
            };
            let unsent = failed.message().is_some();
            let err = failed.into_error();
            let repeatable = stream.reused
                && again.is_empty()
                && self.head.method.is_idempotent()
                && !http2::is_answer(&err);
            let may_repeat = unsent || http2::is_unprocessed(&err) || repeatable && attempts == 1;
            if !may_repeat || !again.is_whole() || attempts == ATTEMPTS {
                let is_agreed = self.pool.is_secure() || stream.reused;
                return Err(ForwardError::of_http2(err, is_agreed));
            }
            debug!(%err, attempts, "sending a request again, which the upstream has not processed");
            attempts += 1;
            // The other stream is not free while this one is held.
            drop(stream);
            stream = match self.pool.lease(false).await.map_err(ForwardError::Dial)? {
                Leased::Http2(stream) => stream,
                Leased::Http1 {
                    mut connection,
                    reused,
                } => {
                    let request = self.http1(again.body())?;
                    return match self.pool.ask(&mut connection, reused, request).await {
                        Ok(response) => {
                            again.settle();
                            Ok((response, Held::Http1(connection)))
                        }
                        Err(AskError::Head(err)) => Err(ForwardError::Head(err)),
                        Err(AskError::Http(err)) => Err(ForwardError::Upstream(err.into_error())),
                    };
                }
            };
        }
    }

    fn http2(&self, body: RequestBody) -> Result<Request<RequestBody>, ForwardError> {
        let mut request = self.request(body);
        request.headers_mut().remove(HOST);
        *request.uri_mut() = self.absolute()?;
        Ok(request)
    }

    fn http1(&self, body: RequestBody) -> Result<Request<RequestBody>, ForwardError> {
        let mut request = self.request(body);
        *request.uri_mut() = self.head.target.parse().map_err(|_| ForwardError::Target)?;
        if self.head.body == BodyLength::Unknown {
            // hyper would add it by itself, but not to a GET.
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
        let (hints, origins) = (self.hints.clone(), self.origins.cloned());
        hyper::ext::on_informational(&mut request, move |hint| {
            let mut fields = hint.headers().clone();
            if let Some(origins) = &origins {
                origins.response(&mut fields);
            }
            hints.push(response::informational(hint.status(), fields));
        });
        Ok(request)
    }

    fn request(&self, body: RequestBody) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.head.method.clone();
        *request.headers_mut() = self.head.fields.0.clone();
        let headers = request.headers_mut();
        frame(headers, self.head.body);
        if let Some(origins) = self.origins {
            origins.request(headers);
        }
        self.mark.put_on(headers);
        set_host(headers, self.host_header, || self.pool.target().authority());
        request
    }

    fn absolute(&self) -> Result<Uri, ForwardError> {
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
        // The upstream's own: the visitor's is in `X-Forwarded-Proto`.
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

/// A body that may be sent again.
enum Again {
    Empty,
    Kept(ReplayBuffer<TunnelBody>),
    /// Somebody else keeps it, or nobody.
    Once(Option<RequestBody>),
}

impl Again {
    fn new(body: RequestBody) -> Self {
        match body {
            RequestBody::Empty => Self::Empty,
            RequestBody::Tunnel(body) => Self::Kept(ReplayBuffer::new(*body)),
            body @ RequestBody::Replay(_) => Self::Once(Some(body)),
        }
    }

    fn body(&mut self) -> RequestBody {
        match self {
            Self::Empty => RequestBody::Empty,
            Self::Kept(body) => RequestBody::Replay(body.read()),
            Self::Once(body) => body.take().unwrap_or(RequestBody::Empty),
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    /// Report whether all of it can be sent again.
    fn is_whole(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Kept(body) => body.kept().is_some(),
            Self::Once(body) => body.is_some(),
        }
    }

    /// Keep nothing more: there is an answer.
    fn settle(&self) {
        if let Self::Kept(body) = self {
            body.settle();
        }
    }
}

/// How often a request is sent to an upstream that does not process it. A server that ends each connection after ten
/// requests refuses one that came with a hundred others several times.
const ATTEMPTS: u32 = 32;

/// Leave a length only where there is one: what else frames a message depends on the upstream's
/// version of HTTP.
pub(crate) fn frame(headers: &mut HeaderMap, body: BodyLength) {
    match body {
        BodyLength::Known(length) => {
            headers.insert(CONTENT_LENGTH, length.into());
        }
        BodyLength::Unknown => {
            headers.remove(CONTENT_LENGTH);
        }
        // `Content-Length: 0` of a POST stays.
        BodyLength::Empty => {
            if headers.contains_key(CONTENT_LENGTH) {
                headers.insert(CONTENT_LENGTH, 0.into());
            }
        }
    }
}

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

/// What HTTP/1.1 wants of a WebSocket's handshake and HTTP/2 does not (RFC 8441 §5).
fn websocket_key() -> HeaderValue {
    let mut nonce = [0; 16];
    aws_lc_rs::rand::fill(&mut nonce).expect("the operating system has random numbers");
    HeaderValue::try_from(STANDARD.encode(nonce)).expect("base64 is visible ASCII")
}
