//! One conversation: from a stream of the edge to the upstream and back.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use ::http::uri::{Authority, PathAndQuery, Scheme as UriScheme};
use ::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use quinn::{RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::config::HostHeader;
use super::event::{Event, Observer, RequestLog};
use super::pool::{DialError, Leased, Pool};
use super::response;
use super::upstream::{RequestBody, Service, UpstreamBody};
use crate::http::{Activity, Receiver, SendError, Sender, relay};
use crate::proto::{
    BodyLength, Failure, HttpVersion, RequestHead, Reset, ResponseHead, StreamHead,
};

/// A tunnel that is being served.
pub struct Tunnel {
    /// Where its requests go.
    pub route: Route,
    /// What the upstream sees as `Host`.
    pub host_header: HostHeader,
    /// How long the upstream may take to begin its answer.
    pub timeout: Duration,
    /// Who is told of each conversation.
    pub observer: Observer,
}

/// Where requests go.
pub enum Route {
    Pool(Pool),
    Service(Service),
}

/// Serve one stream, and tell the observer how it went.
pub async fn serve(
    find: impl Fn(u32) -> Option<Arc<Tunnel>>,
    send: SendStream,
    receive: RecvStream,
) {
    let mut receiver = Receiver::new(receive);
    let mut sender = Sender::new(send);
    let head = match timeout(HEAD, receiver.head::<StreamHead>()).await {
        Ok(Ok(StreamHead::Http(head))) => head,
        Ok(Err(err)) => return debug!(err = &err as &dyn StdError, "no head on a stream"),
        Err(_) => return debug!("the edge takes too long for a head"),
    };
    let Some(tunnel) = find(head.tunnel) else {
        receiver.refuse(Reset::Enough);
        let _ = sender
            .head(&ResponseHead::Failed(Failure::NoSuchTunnel))
            .await;
        return sender.finish();
    };
    let started = Instant::now();
    let mut log = RequestLog {
        tunnel: head.tunnel,
        visitor: head.visitor,
        method: head.method.clone(),
        target: head.target.clone(),
        status: None,
        duration: Duration::ZERO,
        received: 0,
        sent: 0,
        problem: None,
    };
    let (upload, download) = (Arc::new(Activity::start()), Activity::start());
    let gone = sender.gone();
    let mut exchange = Exchange {
        tunnel: &tunnel,
        upload: &upload,
        download: &download,
        log: &mut log,
    };
    let ended = tokio::select! {
        ended = exchange.run(head, sender, receiver) => ended,
        () = gone => Err(Broken::Visitor),
    };
    log.received += upload.bytes();
    log.sent += download.bytes();
    log.duration = started.elapsed();
    if let Err(broken) = ended {
        let problem = chain(&broken);
        log.problem = Some(match &tunnel.route {
            Route::Pool(pool) if broken.is_upstreams() => {
                format!("upstream {}: {problem}", pool.target())
            }
            _ => problem,
        });
    }
    tunnel.observer.tell(Event::Request(log));
}

/// A conversation under way.
struct Exchange<'a> {
    tunnel: &'a Tunnel,
    upload: &'a Arc<Activity>,
    download: &'a Activity,
    log: &'a mut RequestLog,
}

impl Exchange<'_> {
    async fn run(
        &mut self,
        head: RequestHead,
        sender: Sender,
        receiver: Receiver,
    ) -> Result<(), Broken> {
        match &self.tunnel.route {
            Route::Service(service) => self.call(service, head, sender, receiver).await,
            Route::Pool(pool) => self.forward(pool, head, sender, receiver).await,
        }
    }

    /// Ask a service in this process.
    async fn call(
        &mut self,
        service: &Service,
        head: RequestHead,
        sender: Sender,
        receiver: Receiver,
    ) -> Result<(), Broken> {
        let method = head.method.clone();
        let body = UpstreamBody::new(receiver.into_body(head.body, self.upload.clone()));
        let request = service_request(head, self.tunnel).map(|()| body);
        let answered = tokio::select! {
            answered = service.call(request) => answered.map_err(Broken::Service),
            () = self.patience() => Err(Broken::Timeout(self.tunnel.timeout)),
        };
        match answered {
            Ok(response) => self.answer(response, &method, sender).await,
            Err(broken) => self.fail(broken, sender).await,
        }
    }

    /// Ask a server.
    async fn forward(
        &mut self,
        pool: &Pool,
        head: RequestHead,
        mut sender: Sender,
        receiver: Receiver,
    ) -> Result<(), Broken> {
        let (method, wants_upgrade) = (head.method.clone(), head.upgrade.is_some());
        let leased = match pool.lease(wants_upgrade).await {
            Ok(leased) => leased,
            Err(err) => {
                return self.fail(Broken::Dial(err), sender).await;
            }
        };
        let (body, mut receiver) = if wants_upgrade {
            (RequestBody::Empty, Some(receiver))
        } else if head.body == BodyLength::Empty {
            (RequestBody::Empty, None)
        } else {
            (
                RequestBody::Tunnel(receiver.into_body(head.body, self.upload.clone())),
                None,
            )
        };
        let (hints, mut hinted) = mpsc::channel(HINTS);
        let request = Outgoing {
            head,
            pool,
            host_header: &self.tunnel.host_header,
            hints,
        };

        let asked = {
            let mut asked = std::pin::pin!(request.send(leased, body));
            let mut patience = std::pin::pin!(self.patience());
            loop {
                tokio::select! {
                    biased;
                    Some(hint) = hinted.recv() => {
                        if let Err(err) = sender.head(&hint).await {
                            break Err(Broken::Tunnel(err));
                        }
                    }
                    asked = &mut asked => break asked,
                    () = &mut patience => break Err(Broken::Timeout(self.tunnel.timeout)),
                }
            }
        };
        let (response, connection) = match asked {
            Ok(asked) => asked,
            Err(broken) => return self.fail(broken, sender).await,
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(receiver) = receiver.take() else {
                return self.fail(Broken::NotAsked, sender).await;
            };
            return self.switch(response, sender, receiver).await;
        }
        if let Some(receiver) = receiver {
            receiver.refuse(Reset::Enough);
        }
        self.answer(response, &method, sender).await?;
        // A connection on which an upgrade was refused is not used again: the two ends may disagree
        // about what the bytes after the head are.
        if let (Some(connection), false) = (connection, wants_upgrade) {
            pool.give_back(connection).await;
        }
        Ok(())
    }

    /// Send a response to the edge, to its end.
    async fn answer<B>(
        &mut self,
        response: Response<B>,
        method: &Method,
        mut sender: Sender,
    ) -> Result<(), Broken>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let (parts, body) = response.into_parts();
        self.log.status = Some(parts.status.as_u16());
        let head = response::head(parts, &body, method);
        match sender.head(&head).await {
            Ok(()) => {}
            Err(SendError::Wire(err)) => {
                return self.fail(Broken::Tunnel(err.into()), sender).await;
            }
            Err(err) => return Err(Broken::Tunnel(err)),
        }
        if matches!(
            head,
            ResponseHead::Final {
                body: BodyLength::Empty,
                ..
            }
        ) {
            sender.finish();
            return Ok(());
        }
        sender
            .body(body, self.download)
            .await
            .map_err(Broken::Tunnel)
    }

    /// Relay raw bytes after the upstream has agreed to another protocol.
    async fn switch(
        &mut self,
        response: Response<Incoming>,
        mut sender: Sender,
        receiver: Receiver,
    ) -> Result<(), Broken> {
        self.log.status = Some(StatusCode::SWITCHING_PROTOCOLS.as_u16());
        let (parts, body) = response.into_parts();
        let upgraded = hyper::upgrade::on(Response::from_parts(parts.clone(), body)).await;
        let upgraded = match upgraded {
            Ok(upgraded) => upgraded,
            Err(err) => return self.fail(Broken::Upstream(err), sender).await,
        };
        sender
            .head(&response::switched(parts))
            .await
            .map_err(Broken::Tunnel)?;
        let relayed = relay(TokioIo::new(upgraded), sender, receiver).await;
        self.log.sent += relayed.sent;
        self.log.received += relayed.received;
        Ok(())
    }

    /// Tell the edge that there is no answer, and why in one word.
    async fn fail(&mut self, broken: Broken, mut sender: Sender) -> Result<(), Broken> {
        let failure = broken.failure();
        self.log.status = failure.map(|failure| failure.status().as_u16());
        if let Some(failure) = failure
            && sender.head(&ResponseHead::Failed(failure)).await.is_ok()
        {
            sender.finish();
        }
        Err(broken)
    }

    /// Wait until the upstream has had its time: it begins to count when the request has arrived as
    /// far as it will, so that a slow upload is not taken for a slow upstream.
    fn patience(&self) -> impl Future<Output = ()> + use<> {
        let (upload, limit) = (self.upload.clone(), self.tunnel.timeout);
        async move {
            loop {
                let deadline = upload.last() + limit;
                if deadline <= Instant::now() {
                    return;
                }
                sleep_until(deadline).await;
            }
        }
    }
}

/// A request on its way to a server.
struct Outgoing<'a> {
    head: RequestHead,
    pool: &'a Pool,
    host_header: &'a HostHeader,
    /// Where 1xx answers go.
    hints: mpsc::Sender<ResponseHead>,
}

type Asked = (
    Response<Incoming>,
    Option<hyper::client::conn::http1::SendRequest<RequestBody>>,
);

impl Outgoing<'_> {
    /// Send the request and wait for the response's head. A connection that the upstream has closed
    /// while it was idle is replaced, as long as the request cannot have been processed or may be
    /// repeated (RFC 9110 §9.2.2).
    async fn send(&self, leased: Leased, body: RequestBody) -> Result<Asked, Broken> {
        let (mut sender, reused) = match leased {
            Leased::Http1 { sender, reused } => (sender, reused),
            Leased::Http2(sender) => return self.send_http2(sender, body).await,
        };
        let repeatable = matches!(body, RequestBody::Empty) && self.head.method.is_idempotent();
        let request = self.http1(body)?;
        let err = match sender.try_send_request(request).await {
            Ok(response) => return Ok((response, Some(sender))),
            Err(err) => err,
        };
        let mut err = err;
        let body = match err.take_message() {
            Some(request) => request.into_body(),
            None if reused && repeatable => RequestBody::Empty,
            None => return Err(Broken::Upstream(err.into_error())),
        };
        match self.pool.dial(self.head.upgrade.is_some()).await {
            Ok(Leased::Http1 { mut sender, .. }) => {
                let response = sender
                    .send_request(self.http1(body)?)
                    .await
                    .map_err(Broken::Upstream)?;
                Ok((response, Some(sender)))
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
            // More hints than anybody waits for are dropped: they are hints.
            let _ = hints.try_send(response::informational(hint.status(), hint.headers()));
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
fn frame(headers: &mut HeaderMap, body: BodyLength) {
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

fn set_host(headers: &mut HeaderMap, host_header: &HostHeader, own: impl FnOnce() -> String) {
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

fn service_request(head: RequestHead, tunnel: &Tunnel) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = head.method;
    *request.uri_mut() = head.target.parse().unwrap_or_default();
    *request.headers_mut() = head.fields.0;
    frame(request.headers_mut(), head.body);
    set_host(request.headers_mut(), &tunnel.host_header, || {
        "localhost".to_owned()
    });
    request
}

/// What HTTP/1.1 wants of a WebSocket's handshake and HTTP/2 does not (RFC 8441 §5).
fn websocket_key() -> HeaderValue {
    let mut nonce = [0; 16];
    aws_lc_rs::rand::fill(&mut nonce).expect("the operating system has random numbers");
    HeaderValue::try_from(STANDARD.encode(nonce)).expect("base64 is visible ASCII")
}

fn chain(err: &dyn StdError) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text = format!("{text}: {err}");
        cause = err.source();
    }
    text
}

/// How long the edge may take for a head, once it has opened a stream.
const HEAD: Duration = Duration::from_secs(10);

/// 1xx answers that may wait for the tunnel.
const HINTS: usize = 8;

/// Why a conversation did not end as it should.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the visitor went away")]
    Visitor,
    #[error("it cannot be reached")]
    Dial(#[source] DialError),
    #[error("it did not begin to answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    #[error("it failed")]
    Upstream(#[source] hyper::Error),
    #[error("the service in this process failed")]
    Service(#[source] Box<dyn StdError + Send + Sync>),
    #[error("it switched protocols without being asked")]
    NotAsked,
    #[error("upgrades over HTTP/2 are not possible")]
    NoUpgrade,
    #[error("the request's target or host cannot be sent on")]
    Target,
    #[error("the response was not delivered")]
    Tunnel(#[source] SendError),
}

impl Broken {
    /// Report whether the upstream's address helps to understand it.
    fn is_upstreams(&self) -> bool {
        match self {
            Self::Dial(_) | Self::Timeout(_) | Self::Upstream(_) => true,
            Self::NotAsked | Self::NoUpgrade | Self::Tunnel(SendError::Body(_)) => true,
            Self::Visitor | Self::Service(_) | Self::Target | Self::Tunnel(_) => false,
        }
    }

    /// What the edge is told, if it still can be told anything.
    fn failure(&self) -> Option<Failure> {
        match self {
            Self::Visitor => None,
            Self::Dial(_) => Some(Failure::UpstreamUnreachable),
            Self::Timeout(_) => Some(Failure::UpstreamTimeout),
            Self::Upstream(_)
            | Self::Service(_)
            | Self::NotAsked
            | Self::NoUpgrade
            | Self::Target => Some(Failure::UpstreamInvalid),
            Self::Tunnel(SendError::Wire(_)) => Some(Failure::UpstreamInvalid),
            Self::Tunnel(_) => None,
        }
    }
}
