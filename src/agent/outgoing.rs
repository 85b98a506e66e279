//! A request as the upstream gets it: one framing field, the right host, and a connection that is
//! sound.

use ::http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use ::http::uri::{Authority, PathAndQuery, Scheme as UriScheme};
use ::http::{HeaderMap, HeaderValue, Request, Response, Uri};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Incoming;

use super::broken::Broken;
use super::config::HostHeader;
use super::hints::Hints;
use super::pool::{Http1, Leased, Pool};
use super::response;
use super::upstream::RequestBody;
use crate::proto::{BodyLength, HttpVersion, RequestHead};

/// A request on its way to a server.
pub(super) struct Outgoing<'a> {
    pub(super) head: &'a RequestHead,
    pub(super) pool: &'a Pool,
    pub(super) host_header: &'a HostHeader,
    /// Where 1xx answers go.
    pub(super) hints: Hints,
}

/// An answer, and the connection if it is one that is given back.
pub(super) type Asked = (Response<Incoming>, Option<Http1>);

impl Outgoing<'_> {
    /// Send the request and wait for the response's head. A connection that the upstream has closed
    /// while it was idle is replaced, as long as the request cannot have been processed or may be
    /// repeated (RFC 9110 §9.2.2).
    pub(super) async fn send(&self, leased: Leased, body: RequestBody) -> Result<Asked, Broken> {
        let (mut connection, reused) = match leased {
            Leased::Http1 { connection, reused } => (connection, reused),
            // Boxed: it is large, and who speaks HTTP/2 has more to do anyway.
            Leased::Http2(sender) => return Box::pin(self.send_http2(sender, body)).await,
        };
        let repeatable = matches!(body, RequestBody::Empty) && self.head.method.is_idempotent();
        let request = self.http1(body)?;
        let mut err = match connection.ask(request).await {
            Ok(response) => return Ok((response, Some(connection))),
            Err(err) => err,
        };
        let body = match err.take_message() {
            Some(request) => request.into_body(),
            None if reused && repeatable => RequestBody::Empty,
            None => return Err(Broken::Upstream(err.into_error())),
        };
        // Rare, and large: every request's future would have room for it.
        Box::pin(self.send_anew(body)).await
    }

    async fn send_anew(&self, body: RequestBody) -> Result<Asked, Broken> {
        match self.pool.dial(self.head.upgrade.is_some()).await {
            Ok(Leased::Http1 { mut connection, .. }) => {
                let response = connection.ask(self.http1(body)?).await;
                let response = response.map_err(|err| Broken::Upstream(err.into_error()))?;
                Ok((response, Some(connection)))
            }
            Ok(Leased::Http2(sender)) => self.send_http2(sender, body).await,
            Err(err) => Err(Broken::Dial(err)),
        }
    }

    async fn send_http2(
        &self,
        mut sender: hyper::client::conn::http2::SendRequest<RequestBody>,
        body: RequestBody,
    ) -> Result<Asked, Broken> {
        if self.head.upgrade.is_some() {
            return Err(Broken::NoUpgrade);
        }
        let mut request = self.request(body);
        request.headers_mut().remove(HOST);
        *request.uri_mut() = self.absolute()?;
        let response = sender
            .send_request(request)
            .await
            .map_err(Broken::Upstream)?;
        Ok((response, None))
    }

    fn http1(&self, body: RequestBody) -> Result<Request<RequestBody>, Broken> {
        let mut request = self.request(body);
        *request.uri_mut() = self.head.target.parse().map_err(|_| Broken::Target)?;
        if self.head.body == BodyLength::Unknown {
            // hyper would add it by itself, but not to a GET.
            let chunked = HeaderValue::from_static("chunked");
            request.headers_mut().insert(TRANSFER_ENCODING, chunked);
        }
        if let Some(protocol) = &self.head.upgrade {
            let headers = request.headers_mut();
            let value = HeaderValue::from_str(protocol).map_err(|_| Broken::Target)?;
            headers.insert(UPGRADE, value);
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            if self.head.version == HttpVersion::Http2 {
                headers.insert("sec-websocket-key", websocket_key());
            }
        }
        let hints = self.hints.clone();
        hyper::ext::on_informational(&mut request, move |hint| {
            hints.push(response::informational(hint.status(), hint.headers()));
        });
        Ok(request)
    }

    fn request(&self, body: RequestBody) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.head.method.clone();
        *request.headers_mut() = self.head.fields.0.clone();
        let headers = request.headers_mut();
        frame(headers, self.head.body);
        set_host(headers, self.host_header, || self.pool.target().authority());
        request
    }

    fn absolute(&self) -> Result<Uri, Broken> {
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
        parts.scheme = Some(UriScheme::HTTP);
        parts.authority = Some(authority.map_err(|_| Broken::Target)?);
        let target =
            PathAndQuery::try_from(self.head.target.as_str()).map_err(|_| Broken::Target)?;
        parts.path_and_query = Some(target);
        Uri::from_parts(parts).map_err(|_| Broken::Target)
    }
}

/// Leave a length only where there is one: what else frames a message depends on the upstream's
/// version of HTTP.
pub(super) fn frame(headers: &mut HeaderMap, body: BodyLength) {
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

pub(super) fn set_host(
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
