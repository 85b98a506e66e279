//! One conversation: from a stream of the edge to the upstream and back.

pub(crate) mod error;
pub(crate) mod informational;
pub(crate) mod loops;
pub(crate) mod open_ended;
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

use self::error::ForwardError;
use self::informational::InformationalQueue;
use self::loops::Mark;
use self::open_ended::{Kind, OpenEndedGuard};
use self::origins::Origins;
use self::request::{Answered, Held, UpstreamRequest, frame, set_host};
use super::config::HostHeader;
use super::event::{Event, Observer, RequestRecord};
use super::session::seldom::Seldom;
use super::session::unread::UnreadStreams;
use super::upstream::pool::{Leased, Pool};
use super::upstream::{RequestBody, Service, UpstreamBody};
use crate::error_chain::chain;
use crate::http::cookies;
use crate::http::forwarded::add_forwarded_headers;
use crate::http::{Upgrades, is_answer_to};
use crate::proto::{
    BodyLength, Failure, LEAST_WINDOW, RequestHead, Reset, ResponseHead, StreamHead,
};
use crate::stream::{
    Activity, FlowControl, ReceiveWindow, Receiver, Relayed, SendError, SendWindow, Sender,
    TunnelBody, Unread, relay,
};

/// A tunnel that is being served.
pub struct ServedTunnel {
    /// Where its requests go.
    pub route: Route,
    /// What the upstream sees as `Host`.
    pub host_header: HostHeader,
    /// What visitors may switch to.
    pub upgrades: Upgrades,
    /// What requests that have passed here bear.
    pub(crate) mark: Mark,
    /// Cookies of the upstream that were left out.
    pub(crate) wide_cookies: Seldom,
    /// How long the upstream may take to begin its answer.
    pub timeout: Duration,
    /// Who is told of each conversation.
    pub observer: Observer,
}

/// Where requests go.
pub enum Route {
    Pool(Arc<Pool>),
    Service(Service),
}

/// Serve one stream, and tell the observer how it went.
pub async fn serve(
    find: impl Fn(u32) -> Option<Arc<ServedTunnel>>,
    heads: UnreadStreams,
    flow: Arc<FlowControl>,
    counted: OpenEndedGuard,
    (send, receive): (SendStream, RecvStream),
) {
    let Some(mut exchange) = Conversation::begin(find, heads, flow, send, receive).await else {
        return;
    };
    exchange.counted = Some(counted);
    let gone = exchange.gone();
    let ended = tokio::select! {
        ended = exchange.run() => ended,
        () = gone => Err(ForwardError::Visitor),
    };
    exchange.tell(ended);
}

/// A conversation under way.
///
/// What it has is in here from its first byte to its last, and no method takes it by value: each future that
/// did would have room for it, in every conversation's task.
struct Conversation {
    tunnel: Arc<ServedTunnel>,
    head: RequestHead,
    /// Both names of the service, if the upstream does not see the public one.
    origins: Option<Arc<Origins>>,
    /// Until the answer is being sent.
    sender: Option<Sender>,
    /// Until the request's body is being read.
    receiver: Option<Receiver>,
    upload: Arc<Activity>,
    download: Activity,
    started: Instant,
    status: Option<u16>,
    /// What was relayed after an upgrade.
    relayed: Relayed,
    /// Its place among the session's conversations.
    counted: Option<OpenEndedGuard>,
}

impl Conversation {
    /// Read the head, and find the tunnel that it is for.
    async fn begin(
        find: impl Fn(u32) -> Option<Arc<ServedTunnel>>,
        heads: UnreadStreams,
        flow: Arc<FlowControl>,
        send: SendStream,
        receive: RecvStream,
    ) -> Option<Self> {
        let stream = send.id().index();
        let mut receiver = Receiver::new(receive, ReceiveWindow::least(flow.clone(), stream));
        let mut sender = Sender::new(send, SendWindow::new(flow, stream, LEAST_WINDOW));
        let head = timeout(HEAD, receiver.head::<StreamHead>()).await;
        heads.read(stream);
        let mut head = match head {
            Ok(Ok(StreamHead::Http(head))) => head,
            Ok(Err(err)) => {
                debug!(err = &err as &dyn StdError, "no head on a stream");
                if err.is_violation() {
                    receiver.violated(&chain(&err));
                    receiver.refuse(Reset::Protocol);
                    sender.reset(Reset::Protocol);
                }
                return None;
            }
            Err(_) => {
                debug!("the edge takes too long for a head");
                return None;
            }
        };
        let Some(tunnel) = find(head.tunnel) else {
            receiver.refuse(Reset::Enough);
            let _ = sender
                .head(&ResponseHead::Failed(Failure::NoSuchTunnel))
                .await;
            sender.finish();
            return None;
        };
        // The edge has chosen already. Its word is not taken for it.
        let upgrade = head.upgrade.take();
        head.upgrade = upgrade.and_then(|asked| tunnel.upgrades.select(&asked));
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
            counted: None,
        })
    }

    /// Wait until the visitor has gone.
    fn gone(&self) -> impl Future<Output = ()> + Send + use<> {
        let gone = self.sender.as_ref().map(Sender::gone);
        async move {
            match gone {
                Some(gone) => gone.await,
                None => std::future::pending().await,
            }
        }
    }

    /// Tell the observer how it went.
    fn tell(self, ended: Result<(), ForwardError>) {
        let problem = ended.err().map(|broken| {
            let problem = chain(&broken);
            match &self.tunnel.route {
                Route::Pool(pool) if broken.is_upstreams() => {
                    format!("upstream {}: {problem}", pool.target())
                }
                _ => problem,
            }
        });
        self.tunnel.observer.tell(Event::Request(RequestRecord {
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

    async fn run(&mut self) -> Result<(), ForwardError> {
        let tunnel = self.tunnel.clone();
        let ended = match &tunnel.route {
            _ if tunnel.mark.is_on(&self.head.fields.0) => Err(ForwardError::Loop),
            // Boxed, like whatever is rare and large below: every conversation's task would have room
            // for it.
            Route::Service(service) => Box::pin(self.call(service)).await,
            Route::Pool(pool) => self.forward(pool).await,
        };
        match ended {
            Err(broken) if self.sender.is_some() => Box::pin(self.fail(broken)).await,
            ended => ended,
        }
    }

    /// Ask a service in this process.
    async fn call(&mut self, service: &Service) -> Result<(), ForwardError> {
        let body = self.request_body().ok_or(ForwardError::Visitor)?;
        // A service may collect the whole body before it does anything with it.
        let body = UpstreamBody::new(body.map_frame(|frame| frame.map_data(Unread::into_bytes)));
        let request =
            service_request(&mut self.head, &self.tunnel, self.origins.as_deref()).map(|()| body);
        let answered = tokio::select! {
            answered = service.call(request) => answered.map_err(ForwardError::Service)?,
            () = self.patience() => return Err(ForwardError::Timeout(self.tunnel.timeout)),
        };
        self.answer(answered).await
    }

    /// Ask a server.
    async fn forward(&mut self, pool: &Pool) -> Result<(), ForwardError> {
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
        let (response, held) = self.ask(pool, leased, body).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Box::pin(self.switch(response)).await;
        }
        if wants_upgrade && let Some(receiver) = self.receiver.take() {
            receiver.refuse(Reset::Enough);
        }
        self.answer(response).await?;
        match held {
            // A connection on which an upgrade was refused is not used again: the two ends may disagree
            // about what the bytes after the head are.
            Held::Http1(connection) if !wants_upgrade => pool.give_back(connection).await,
            Held::Http1(_) => {}
            Held::Http2(stream) => stream.release(),
        }
        Ok(())
    }

    /// Send the request, and wait for the response while 1xx answers pass.
    async fn ask(
        &mut self,
        pool: &Pool,
        leased: Leased,
        body: RequestBody,
    ) -> Result<Answered, ForwardError> {
        let hints = InformationalQueue::default();
        let request = UpstreamRequest {
            head: &self.head,
            pool,
            host_header: &self.tunnel.host_header,
            origins: self.origins.as_ref(),
            mark: &self.tunnel.mark,
            hints: hints.clone(),
        };
        let mut asked = std::pin::pin!(request.send(leased, body));
        let mut patience = std::pin::pin!(self.patience());
        loop {
            tokio::select! {
                biased;
                hint = hints.next() => {
                    if let Some(sender) = &mut self.sender {
                        match Box::pin(sender.head(&hint)).await {
                            // The answer itself may still be one.
                            Err(SendError::Wire(err)) => debug!(%err, "a 1xx answer is left out"),
                            sent => sent.map_err(ForwardError::Tunnel)?,
                        }
                    }
                }
                asked = &mut asked => return asked,
                () = &mut patience => return Err(ForwardError::Timeout(self.tunnel.timeout)),
            }
        }
    }

    /// The request's body, which can be had once.
    fn request_body(&mut self) -> Option<TunnelBody> {
        let receiver = self.receiver.take()?;
        Some(receiver.into_body(self.head.body, self.upload.clone()))
    }

    /// Send a response to the edge, to its end.
    async fn answer<B>(&mut self, response: Response<B>) -> Result<(), ForwardError>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let body = self.hold_head(response)?;
        let mut sender = self.sender.take().ok_or(ForwardError::Visitor)?;
        let sent = match body {
            Some(body) => sender.body(body, &self.download).await,
            None => sender.end().await,
        };
        sent.map_err(ForwardError::Tunnel)
    }

    /// Take the head off a response, to be sent together with the body that is left, if there is one.
    fn hold_head<B>(&mut self, response: Response<B>) -> Result<Option<B>, ForwardError>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let (mut parts, body) = response.into_parts();
        self.status = Some(parts.status.as_u16());
        self.is(Kind::of(&parts.headers));
        self.translate(&mut parts.headers);
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

    /// Let the fields of an answer speak of the public side, and leave out the cookies that other tunnels of
    /// the edge would get. The edge does that too, but cannot say so where it is read.
    fn translate(&self, fields: &mut HeaderMap) {
        if let Some(origins) = &self.origins {
            origins.response(fields);
        }
        if !fields.contains_key(SET_COOKIE) {
            return;
        }
        let Some(host) = self.head.fields.0.get(HOST).and_then(public_name) else {
            return;
        };
        let wide = cookies::keep_own(fields, &host) as u64;
        if let Some(count) = self.tunnel.wide_cookies.happened(wide) {
            let event = Event::CookiesLeftOut { host, count };
            self.tunnel.observer.tell(event);
        }
    }

    /// Relay raw bytes after the upstream has agreed to another protocol.
    async fn switch(&mut self, response: Response<Incoming>) -> Result<(), ForwardError> {
        let Some(asked) = &self.head.upgrade else {
            return Err(ForwardError::NotAsked);
        };
        let answered = response.headers().get(UPGRADE);
        if !is_answer_to(asked, answered.map(HeaderValue::as_bytes)) {
            return Err(ForwardError::OtherProtocol);
        }
        self.status = Some(StatusCode::SWITCHING_PROTOCOLS.as_u16());
        let (mut parts, body) = response.into_parts();
        self.translate(&mut parts.headers);
        let upgraded = hyper::upgrade::on(Response::from_parts(parts.clone(), body));
        let upgraded = upgraded.await.map_err(ForwardError::Upstream)?;
        let (Some(mut sender), Some(receiver)) = (self.sender.take(), self.receiver.take()) else {
            return Err(ForwardError::Visitor);
        };
        sender
            .head(&response::switched(parts))
            .await
            .map_err(ForwardError::Tunnel)?;
        self.is(Kind::Upgraded);
        self.relayed = relay(TokioIo::new(upgraded), sender, receiver).await;
        Ok(())
    }

    /// Note what the conversation turns out to be.
    fn is(&mut self, kind: Kind) {
        if let Some(counted) = &mut self.counted {
            counted.is(kind);
        }
    }

    /// Tell the edge that there is no answer, and why in one word.
    async fn fail(&mut self, broken: ForwardError) -> Result<(), ForwardError> {
        let failure = broken.failure();
        self.status = failure.map(|failure| failure.status().as_u16());
        if let (Some(failure), Some(mut sender)) = (failure, self.sender.take())
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

/// A host without its port, as cookies know it.
fn public_name(host: &HeaderValue) -> Option<String> {
    let host = host.to_str().ok()?;
    let end = match host.rfind(']') {
        Some(bracket) => bracket + 1,
        None => host.find(':').unwrap_or(host.len()),
    };
    Some(host[..end].trim_end_matches('.').to_ascii_lowercase())
}

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
    // The answer's cookies are measured by it.
    head.fields.0.extend(host.map(|host| (HOST, host)));
    if let Some(origins) = origins {
        origins.request(request.headers_mut());
    }
    frame(request.headers_mut(), head.body);
    set_host(request.headers_mut(), &tunnel.host_header, || {
        "localhost".to_owned()
    });
    request
}

/// How long the edge may take for a head, once it has opened a stream.
const HEAD: Duration = Duration::from_secs(10);
