//! Forwarding of one conversation from a stream of the edge to the upstream, and back.

pub(crate) mod cdn_loop;
pub(crate) mod conversations;
pub(crate) mod error;
pub(crate) mod informational;
pub(crate) mod origins;
pub(crate) mod request;
pub(crate) mod response;

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{HOST, HeaderMap, SET_COOKIE, UPGRADE};
use ::http::{HeaderValue, Request, Response, StatusCode};
use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use quinn::{RecvStream, SendStream};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use self::cdn_loop::CdnId;
use self::conversations::{ConversationGuard, ConversationKind};
use self::error::ForwardError;
use self::informational::InformationalQueue;
use self::origins::Origins;
use self::request::{ResponseConnection, UpstreamRequest, UpstreamResponse, set_framing, set_host};
use super::config::HostHeader;
use super::event::{Event, Observer, RequestRecord};
use super::session::log_throttle::LogThrottle;
use super::session::unread::UnreadStreams;
use super::upstream::pool::{Leased, Pool};
use super::upstream::{RequestBody, Service, UpstreamBody};
use crate::error_chain::chain;
use crate::http::cookies;
use crate::http::forwarded::add_forwarded_headers;
use crate::http::{Upgrades, is_answer_to};
use crate::proto::{
    BodyLength, Failure, MIN_WINDOW, RequestHead, Reset, ResponseHead, StreamHead, WireError,
};
use crate::stream::{
    Activity, FlowControl, ReceiveError, ReceiveWindow, Receiver, Relayed, SendError, SendWindow,
    Sender, TunnelBody, Unread, relay,
};

/// A tunnel that the agent serves.
pub struct ServedTunnel {
    /// The destination of its requests.
    pub route: Route,
    /// The `Host` field that the upstream receives.
    pub host_header: HostHeader,
    /// The protocols that visitors may upgrade to.
    pub upgrades: Upgrades,
    /// The identifier in `CDN-Loop` of requests that passed through this tunnel.
    pub(crate) cdn_id: CdnId,
    /// The limiter of notices about cookies that were removed from responses.
    pub(crate) removed_cookies: LogThrottle,
    /// Time that the upstream has to start its response.
    pub timeout: Duration,
    /// The receiver of an event for each conversation.
    pub observer: Observer,
}

/// The destination of requests.
pub enum Route {
    /// A server, through a pool of connections.
    Pool(Arc<Pool>),
    /// A service in this process.
    Service(Service),
}

/// Serve one stream to its end, and emit an event with the outcome.
pub async fn serve(
    find: impl Fn(u32) -> Option<Arc<ServedTunnel>>,
    unread: UnreadStreams,
    flow: Arc<FlowControl>,
    guard: ConversationGuard,
    (send, receive): (SendStream, RecvStream),
) {
    let Some(mut conversation) = Conversation::start(find, unread, flow, send, receive).await
    else {
        return;
    };
    conversation.guard = Some(guard);
    let gone = conversation.visitor_gone();
    let ended = tokio::select! {
        ended = conversation.run() => ended,
        () = gone => Err(ForwardError::Visitor),
    };
    conversation.emit(ended);
}

/// A conversation in progress.
///
/// Its state stays in here from the first byte to the last, and no async method takes it by value: each such future
/// would reserve space for another copy, in the task of every conversation.
struct Conversation {
    tunnel: Arc<ServedTunnel>,
    head: RequestHead,
    /// Both origins of the service, if the upstream does not receive the public name.
    origins: Option<Arc<Origins>>,
    /// The sending half, taken when the response body is sent.
    sender: Option<Sender>,
    /// The receiving half, taken when the request body is read.
    receiver: Option<Receiver>,
    upload: Arc<Activity>,
    download: Activity,
    started: Instant,
    status: Option<u16>,
    /// Bytes relayed after an upgrade.
    relayed: Relayed,
    /// Its entry in the counts of the session.
    guard: Option<ConversationGuard>,
}

impl Conversation {
    /// Read the head, and find the tunnel that it names. Return `None` if there is nothing to serve.
    async fn start(
        find: impl Fn(u32) -> Option<Arc<ServedTunnel>>,
        unread: UnreadStreams,
        flow: Arc<FlowControl>,
        send: SendStream,
        receive: RecvStream,
    ) -> Option<Self> {
        let stream = send.id().index();
        let mut receiver = Receiver::new(receive, ReceiveWindow::smallest(flow.clone(), stream));
        let mut sender = Sender::new(send, SendWindow::new(flow, stream, MIN_WINDOW));
        let head = timeout(HEAD_TIMEOUT, receiver.head::<StreamHead>()).await;
        unread.read(stream);
        let mut head = match head {
            Ok(Ok(StreamHead::Http(head))) => head,
            Ok(Err(ReceiveError::Wire(WireError::Unknown))) => {
                debug!(
                    "the edge is newer and sent a kind of conversation that this agent does not know"
                );
                receiver.stop(Reset::Unsupported);
                sender.reset(Reset::Unsupported);
                return None;
            }
            Ok(Err(err)) => {
                debug!(err = &err as &dyn StdError, "a stream has no valid head");
                if err.is_violation() {
                    receiver.report_violation(&chain(&err));
                    receiver.stop(Reset::Protocol);
                    sender.reset(Reset::Protocol);
                }
                return None;
            }
            Err(_) => {
                debug!("the edge sent no head in time");
                return None;
            }
        };
        let Some(tunnel) = find(head.tunnel) else {
            receiver.stop(Reset::Enough);
            let _ = sender
                .head(&ResponseHead::Failed(Failure::NoSuchTunnel.into()))
                .await;
            sender.finish();
            return None;
        };
        // The edge has checked this already, but the agent does not rely on it.
        let upgrade = head.upgrade.take();
        head.upgrade = upgrade.and_then(|requested| tunnel.upgrades.select(&requested));
        add_forwarded_headers(&mut head.fields.0, head.visitor.ip(), head.scheme);
        let target = match &tunnel.route {
            Route::Pool(pool) => Some(pool.target()),
            Route::Service(_) => None,
        };
        let origins = Origins::of(&head, &tunnel.host_header, target).map(Arc::new);
        receiver.open(head.window.into());
        sender.open(head.window.into());
        Some(Self {
            tunnel,
            head,
            origins,
            sender: Some(sender),
            receiver: Some(receiver),
            upload: Arc::new(Activity::start()),
            download: Activity::start(),
            started: Instant::now(),
            status: None,
            relayed: Relayed::default(),
            guard: None,
        })
    }

    /// Wait until the edge stops reading the stream, because the visitor has gone.
    fn visitor_gone(&self) -> impl Future<Output = ()> + Send + use<> {
        let gone = self.sender.as_ref().map(Sender::gone);
        async move {
            match gone {
                Some(gone) => gone.await,
                None => std::future::pending().await,
            }
        }
    }

    /// Emit the event of a finished conversation.
    fn emit(self, ended: Result<(), ForwardError>) {
        let problem = ended.err().map(|err| {
            let problem = chain(&err);
            match &self.tunnel.route {
                Route::Pool(pool) if err.is_upstream_fault() => {
                    format!("upstream {}: {problem}", pool.target())
                }
                _ => problem,
            }
        });
        self.tunnel.observer.emit(Event::Request(RequestRecord {
            tunnel: self.head.tunnel,
            visitor: self.head.visitor,
            method: self.head.method,
            target: self.head.target,
            status: self.status,
            duration: self.started.elapsed(),
            received: self.upload.bytes() + self.relayed.received,
            sent: self.download.bytes() + self.relayed.sent,
            problem,
        }));
    }

    /// Forward the request, and send the response or the failure.
    async fn run(&mut self) -> Result<(), ForwardError> {
        let tunnel = self.tunnel.clone();
        let ended = match &tunnel.route {
            _ if tunnel.cdn_id.is_in(&self.head.fields.0) => Err(ForwardError::Loop),
            // Boxed, like everything rare and large below: the task of every conversation would reserve
            // space for it.
            Route::Service(service) => Box::pin(self.call_service(service)).await,
            Route::Pool(pool) => self.forward_to_server(pool).await,
        };
        match ended {
            Err(err) if self.sender.is_some() => Box::pin(self.send_failure(err)).await,
            ended => ended,
        }
    }

    /// Forward the request to a service in this process.
    async fn call_service(&mut self, service: &Service) -> Result<(), ForwardError> {
        let body = self.request_body().ok_or(ForwardError::Visitor)?;
        // Counted as read on arrival: a service may collect the whole body before it processes it.
        let body = UpstreamBody::new(body.map_frame(|frame| frame.map_data(Unread::into_bytes)));
        let request =
            service_request(&mut self.head, &self.tunnel, self.origins.as_deref()).map(|()| body);
        let response = tokio::select! {
            response = service.call(request) => response.map_err(ForwardError::Service)?,
            () = self.response_timeout() => return Err(ForwardError::Timeout(self.tunnel.timeout)),
        };
        self.send_response(response).await
    }

    /// Forward the request to a server.
    async fn forward_to_server(&mut self, pool: &Pool) -> Result<(), ForwardError> {
        let wants_upgrade = self.head.upgrade.is_some();
        let leased = pool
            .lease(wants_upgrade)
            .await
            .map_err(ForwardError::Dial)?;
        let body = match wants_upgrade || self.head.body == BodyLength::Empty {
            true => RequestBody::Empty,
            false => {
                RequestBody::Tunnel(Box::new(self.request_body().ok_or(ForwardError::Visitor)?))
            }
        };
        let (response, connection) = self.request(pool, leased, body).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Box::pin(self.switch(response)).await;
        }
        if wants_upgrade && let Some(receiver) = self.receiver.take() {
            receiver.stop(Reset::Enough);
        }
        self.send_response(response).await?;
        match connection {
            // A connection on which an upgrade was refused is not reused: the two ends may disagree about
            // the meaning of the bytes after the head.
            ResponseConnection::Http1(connection) if !wants_upgrade => {
                pool.release(connection).await;
            }
            ResponseConnection::Http1(_) => {}
            ResponseConnection::Http2(stream) => stream.release(),
        }
        Ok(())
    }

    /// Send the request, and wait for the final response. Informational (1xx) responses are forwarded meanwhile.
    async fn request(
        &mut self,
        pool: &Pool,
        leased: Leased,
        body: RequestBody,
    ) -> Result<UpstreamResponse, ForwardError> {
        let informational = InformationalQueue::default();
        let request = UpstreamRequest {
            head: &self.head,
            pool,
            host_header: &self.tunnel.host_header,
            origins: self.origins.as_ref(),
            cdn_id: &self.tunnel.cdn_id,
            informational: informational.clone(),
        };
        let mut sent = std::pin::pin!(request.send(leased, body));
        let mut timed_out = std::pin::pin!(self.response_timeout());
        loop {
            tokio::select! {
                biased;
                head = informational.next() => {
                    if let Some(sender) = &mut self.sender {
                        match Box::pin(sender.head(&head)).await {
                            // The final response may still be valid.
                            Err(SendError::Wire(err)) => debug!(%err, "a 1xx response is left out"),
                            sent => sent.map_err(ForwardError::Tunnel)?,
                        }
                    }
                }
                response = &mut sent => return response,
                () = &mut timed_out => return Err(ForwardError::Timeout(self.tunnel.timeout)),
            }
        }
    }

    /// Take the body of the request. Return `None` if it was taken before.
    fn request_body(&mut self) -> Option<TunnelBody> {
        let receiver = self.receiver.take()?;
        Some(receiver.into_body(self.head.body, self.upload.clone()))
    }

    /// Send a response to the edge, including its body.
    async fn send_response<B>(&mut self, response: Response<B>) -> Result<(), ForwardError>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let body = self.queue_head(response)?;
        let mut sender = self.sender.take().ok_or(ForwardError::Visitor)?;
        let sent = match body {
            Some(body) => sender.body(body, &self.download).await,
            None => sender.end().await,
        };
        sent.map_err(ForwardError::Tunnel)
    }

    /// Queue the head of a response, to be sent together with the start of the body. Return the body if there is
    /// one.
    fn queue_head<B>(&mut self, response: Response<B>) -> Result<Option<B>, ForwardError>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let (mut parts, body) = response.into_parts();
        self.status = Some(parts.status.as_u16());
        self.set_kind(ConversationKind::of(&parts.headers));
        self.rewrite_fields(&mut parts.headers);
        let head = response::head(parts, &body, &self.head.method);
        let sender = self.sender.as_mut().ok_or(ForwardError::Visitor)?;
        sender.head_with_body(&head).map_err(ForwardError::Tunnel)?;
        let empty = matches!(
            head,
            ResponseHead::Final {
                body: BodyLength::Empty,
                ..
            }
        );
        Ok((!empty).then_some(body))
    }

    /// Rewrite the fields of a response to the public origin, and remove cookies that browsers would send to other
    /// tunnels of the edge, too. The edge removes them as well, but only the agent can notify its user.
    fn rewrite_fields(&self, fields: &mut HeaderMap) {
        if let Some(origins) = &self.origins {
            origins.rewrite_response(fields);
        }
        if !fields.contains_key(SET_COOKIE) {
            return;
        }
        let Some(host) = self.head.fields.0.get(HOST).and_then(public_name) else {
            return;
        };
        let removed = cookies::remove_parent_domain_cookies(fields, &host) as u64;
        if let Some(count) = self.tunnel.removed_cookies.record(removed) {
            let event = Event::CookiesLeftOut { host, count };
            self.tunnel.observer.emit(event);
        }
    }

    /// Relay raw bytes after the upstream has switched protocols (101).
    async fn switch(&mut self, response: Response<Incoming>) -> Result<(), ForwardError> {
        let Some(requested) = &self.head.upgrade else {
            return Err(ForwardError::UnrequestedSwitch);
        };
        let selected = response.headers().get(UPGRADE);
        if !is_answer_to(requested, selected.map(HeaderValue::as_bytes)) {
            return Err(ForwardError::WrongProtocol);
        }
        self.status = Some(StatusCode::SWITCHING_PROTOCOLS.as_u16());
        let (mut parts, body) = response.into_parts();
        self.rewrite_fields(&mut parts.headers);
        let upgraded = hyper::upgrade::on(Response::from_parts(parts.clone(), body));
        let upgraded = upgraded.await.map_err(ForwardError::Upstream)?;
        let (Some(mut sender), Some(receiver)) = (self.sender.take(), self.receiver.take()) else {
            return Err(ForwardError::Visitor);
        };
        sender
            .head(&response::switched(parts))
            .await
            .map_err(ForwardError::Tunnel)?;
        self.set_kind(ConversationKind::Upgraded);
        self.relayed = relay(TokioIo::new(upgraded), sender, receiver).await;
        Ok(())
    }

    /// Record the kind of the conversation once it is known.
    fn set_kind(&mut self, kind: ConversationKind) {
        if let Some(guard) = &mut self.guard {
            guard.set_kind(kind);
        }
    }

    /// Send the edge a failure in place of a response, and return the error.
    async fn send_failure(&mut self, err: ForwardError) -> Result<(), ForwardError> {
        let failure = err.failure();
        self.status = failure.map(|failure| failure.status().as_u16());
        if let (Some(failure), Some(mut sender)) = (failure, self.sender.take())
            && sender
                .head(&ResponseHead::Failed(failure.into()))
                .await
                .is_ok()
        {
            sender.finish();
        }
        Err(err)
    }

    /// Wait for the response timeout. It restarts with every piece of the request body, so that a slow upload is
    /// not mistaken for a slow upstream.
    fn response_timeout(&self) -> impl Future<Output = ()> + use<> {
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

/// Return the host of a `Host` field without its port, as cookies use it.
fn public_name(host: &HeaderValue) -> Option<String> {
    let host = host.to_str().ok()?;
    let end = match host.rfind(']') {
        Some(bracket) => bracket + 1,
        None => host.find(':').unwrap_or(host.len()),
    };
    Some(host[..end].trim_end_matches('.').to_ascii_lowercase())
}

/// Build the request for a service in this process, out of the fields of the head.
fn service_request(
    head: &mut RequestHead,
    tunnel: &ServedTunnel,
    origins: Option<&Origins>,
) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.target.parse().unwrap_or_default();
    let host = head.fields.0.get(HOST).cloned();
    *request.headers_mut() = std::mem::take(&mut head.fields.0);
    // `rewrite_fields` needs it for the cookies of the response.
    head.fields.0.extend(host.map(|host| (HOST, host)));
    if let Some(origins) = origins {
        origins.rewrite_request(request.headers_mut());
    }
    set_framing(request.headers_mut(), head.body);
    set_host(request.headers_mut(), &tunnel.host_header, || {
        "localhost".to_owned()
    });
    request
}

/// Time that the edge has to send a head after it has opened a stream.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
