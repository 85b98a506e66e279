//! One conversation: from a stream of the edge to the upstream and back.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use ::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use quinn::{RecvStream, SendStream};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::broken::Broken;
use super::config::HostHeader;
use super::event::{Event, Observer, RequestLog};
use super::heads::Heads;
use super::hints::Hints;
use super::outgoing::{Outgoing, frame, set_host};
use super::pool::Pool;
use super::response;
use super::upstream::{RequestBody, Service, UpstreamBody};
use crate::http::{
    Activity, FlowControl, ReceiveWindow, Receiver, SendError, SendWindow, Sender, chain, relay,
};
use crate::proto::{
    BodyLength, Failure, LEAST_WINDOW, RequestHead, Reset, ResponseHead, StreamHead,
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
    heads: Heads,
    flow: Arc<FlowControl>,
    send: SendStream,
    receive: RecvStream,
) {
    let stream = send.id().index();
    let mut receiver = Receiver::new(receive, ReceiveWindow::least(flow.clone(), stream));
    let mut sender = Sender::new(send, SendWindow::new(flow, stream, LEAST_WINDOW));
    let head = timeout(HEAD, receiver.head::<StreamHead>()).await;
    heads.read(stream);
    let head = match head {
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
    receiver.open(head.window.into());
    sender.open(head.window.into());
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
            // Boxed, like whatever is rare and large below: every conversation's task would have room
            // for it.
            Route::Service(service) => Box::pin(self.call(service, head, sender, receiver)).await,
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
                RequestBody::Tunnel(Box::new(receiver.into_body(head.body, self.upload.clone()))),
                None,
            )
        };
        let hints = Hints::default();
        let request = Outgoing {
            head,
            pool,
            host_header: &self.tunnel.host_header,
            hints: hints.clone(),
        };

        let asked = {
            let mut asked = std::pin::pin!(request.send(leased, body));
            let mut patience = std::pin::pin!(self.patience());
            loop {
                tokio::select! {
                    biased;
                    hint = hints.next() => {
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
            return Box::pin(self.switch(response, sender, receiver)).await;
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
        let empty = matches!(
            head,
            ResponseHead::Final {
                body: BodyLength::Empty,
                ..
            }
        );
        let sent = match empty {
            true => sender.head(&head).await,
            false => sender.head_with_body(&head),
        };
        match sent {
            Ok(()) if empty => {
                sender.finish();
                Ok(())
            }
            Ok(()) => {
                let sent = sender.body(body, self.download).await;
                sent.map_err(Broken::Tunnel)
            }
            Err(SendError::Wire(err)) => self.fail(Broken::Tunnel(err.into()), sender).await,
            Err(err) => Err(Broken::Tunnel(err)),
        }
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

/// How long the edge may take for a head, once it has opened a stream.
const HEAD: Duration = Duration::from_secs(10);
