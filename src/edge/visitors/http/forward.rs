//! Forwarding of one request through its tunnel, and of its response back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderValue, TE, UPGRADE,
};
use ::http::request::Parts;
use ::http::{Method, Response, StatusCode, Version};
use http_body::Body;
use hyper::ext::{Protocol, ReasonPhrase};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tracing::{Instrument, debug};

use super::body::UpgradedConversation;
use super::body::VisitorBody;
use super::error_page::ErrorFormat;
use super::exchange::{AdmittedStream, DeliveryError, Outbound, PendingResponse};
use super::http2::{CountedReads, UpgradedStream};
use super::idle::idle_after_stop;
use super::request_body::RequestBody;
use super::validate::Authority;
use crate::edge::fault::Fault;
use crate::edge::names::tunnel::LiveTunnel;
use crate::edge::visitors::client::Client;
use crate::edge::visitors::context::Visit;
use crate::edge::visitors::conversations::Evict;
use crate::http::cookies;
use crate::http::forwarded;
use crate::http::forwarded::{ReceivedFrom, append_forwarded};
use crate::http::hygiene::{join_cookies, normalize_content_length, strip_hop_by_hop};
use crate::http::{is_answer_to, is_event_stream};
use crate::proto::{BodyLength, RequestHead, ResponseHead, Scheme};
use crate::stream::{Activity, relay};

/// A request whose tunnel is known.
pub struct Forward {
    pub visit: Visit,
    /// The client that the request counts for.
    pub client: Client,
    pub error_format: ErrorFormat,
    pub authority: Authority,
    /// The guard waits to learn whether the request is upgraded (HTTP/1.1).
    pub may_upgrade: bool,
    /// The tunnel's name.
    pub name: String,
}

/// A request with everything that is needed until its response begins. It is boxed: futures that
/// took it as an argument would reserve room for it twice, in every visitor's task.
pub struct PreparedRequest {
    forward: Forward,
    /// Taken when the response begins.
    request: Option<Outbound>,
    on_upgrade: Option<OnUpgrade>,
    version: Version,
}

impl PreparedRequest {
    /// Send the request to the agent and return the response.
    pub async fn run(&mut self) -> Response<VisitorBody> {
        let Some(request) = &mut self.request else {
            return self.forward.fail(Fault::Internal);
        };
        match self.forward.deliver(request).await {
            Ok((pending, head)) => self.respond(pending, head),
            Err(fault) => self.forward.fail(fault),
        }
    }

    /// Make the visitor's response from the head of the agent's.
    fn respond(&mut self, pending: PendingResponse, head: ResponseHead) -> Response<VisitorBody> {
        let requested = self.request.take().and_then(Outbound::stop_buffering);
        let forward = &self.forward;
        let (status, reason, length, fields) = match head {
            ResponseHead::Final {
                status,
                reason,
                body,
                fields,
            } => (status, reason, body, fields.0),
            ResponseHead::Failed(failure) => {
                // An agent of a later version may fail in a way that has no name here.
                let fault = failure
                    .known()
                    .map_or(Fault::UpstreamInvalid, |failure| (*failure).into());
                return forward.fail(fault);
            }
            ResponseHead::Informational { .. } => return forward.fail(Fault::Internal),
        };
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return match self.on_upgrade.take() {
                Some(on_upgrade)
                    if requested.is_some_and(|requested| is_requested(&requested, &fields)) =>
                {
                    forward.switch(pending, on_upgrade, self.version, fields)
                }
                // The visitor did not ask for this protocol: what follows would not be HTTP.
                _ => {
                    pending.receiver.report_violation(
                        &"the upstream switched to a protocol that was not asked for",
                    );
                    forward.fail(Fault::UpstreamInvalid)
                }
            };
        }
        if forward.error_format.is_head() && length != BodyLength::Empty {
            pending
                .receiver
                .report_violation(&"the response to HEAD has a body");
            return forward.fail(Fault::UpstreamInvalid);
        }
        if requested.is_some() && self.version == Version::HTTP_2 && status.is_success() {
            // On an extended CONNECT, success would mean that the protocol has been switched (RFC
            // 8441 §5).
            return forward.fail(Fault::UpstreamInvalid);
        }
        let draining = &forward.visit.visitors.draining;
        let endless = is_event_stream(&fields).then(|| draining.clone());
        let mut response = Response::new(pending.into_body(length, endless));
        *response.status_mut() = status;
        *response.headers_mut() = forward.response_fields(fields, status, length);
        if let Some(reason) = reason.and_then(|reason| ReasonPhrase::try_from(reason).ok()) {
            response.extensions_mut().insert(reason);
        }
        response
    }
}

impl Forward {
    /// Prepare the request for sending.
    pub fn prepare(self, mut parts: Parts, body: RequestBody) -> Box<PreparedRequest> {
        let on_upgrade = parts.extensions.remove::<OnUpgrade>();
        let version = parts.version;
        let expects_continue = parts
            .headers
            .get(EXPECT)
            .is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        let head = self.head(parts, &body);
        Box::new(PreparedRequest {
            on_upgrade,
            version,
            request: Some(Outbound::new(
                head,
                body,
                &self.visit.visitors.buffer,
                expects_continue,
            )),
            forward: self,
        })
    }

    /// Make the head that is sent to the agent.
    fn head(&self, parts: Parts, body: &RequestBody) -> RequestHead {
        let body = match body.size_hint().exact() {
            _ if body.is_end_stream() => BodyLength::Empty,
            Some(length) => BodyLength::Known(length),
            None => BodyLength::Unknown,
        };
        let peer = self.visit.visitor.ip();
        let mut proxies = self.visit.visitors.trusted_proxies.iter();
        let origin = RequestOrigin {
            visitor: self.visit.visitor,
            scheme: self.visit.scheme,
            is_trusted: proxies.any(|net| net.contains(&peer)),
            may_upgrade: self.may_upgrade,
        };
        request_head(parts, body, &self.authority, &origin)
    }

    /// Send the request to the agent and wait for the response head, holding the request while the
    /// agent is away. If a session is lost, a request that its agent has not read is sent again;
    /// one that may have been processed is not.
    async fn deliver(
        &self,
        request: &mut Outbound,
    ) -> Result<(PendingResponse, ResponseHead), Fault> {
        let waiting = &self.visit.visitors.waiting;
        let mut tunnel = waiting
            .serving(&self.name, self.client, || request.size())
            .await?;
        let mut deadline = None;
        loop {
            let err = match self.attempt(&tunnel, request).await {
                Ok(response) => return Ok(response),
                Err(err) => err,
            };
            let (stream, fault) = match err {
                DeliveryError::Fault(fault) => return Err(fault),
                DeliveryError::NotSent => (None, Fault::AgentOffline),
                DeliveryError::Lost { stream } => (Some(stream), Fault::AgentLost),
            };
            if !request.is_replayable() {
                return Err(Fault::AgentLost);
            }
            let deadline = *deadline.get_or_insert_with(|| waiting.deadline());
            let waited =
                waiting.successor(&self.name, self.client, request.size(), deadline, &tunnel);
            let next = waited.await.map_err(|_| fault)?;
            if stream.is_some_and(|stream| !next.never_read(&tunnel, stream)) {
                return Err(Fault::AgentLost);
            }
            debug!(?stream, "resending a request that the agent has not read");
            tunnel = next;
        }
    }

    /// Send the request in one session, and wait for the response head.
    async fn attempt(
        &self,
        tunnel: &LiveTunnel,
        request: &mut Outbound,
    ) -> Result<(PendingResponse, ResponseHead), DeliveryError> {
        let visitors = &*self.visit.visitors;
        let visitor_permit = visitors
            .connection_limit
            .acquire_conversation(self.client, &visitors.limits)
            .map_err(DeliveryError::Fault)?;
        let permit = tunnel.conversations.admit(self.client).await;
        let mut permit = permit.map_err(DeliveryError::Fault)?;
        permit.attach(visitor_permit);
        let (send, receive) = timeout(OPEN_STREAM_TIMEOUT, tunnel.connection.open_bi())
            .await
            .map_err(|_| DeliveryError::Fault(Fault::Busy))?
            .map_err(|_| DeliveryError::NotSent)?;
        let stream = send.id().index();
        let continue_timeout = visitors.limits.continue_timeout;
        let admitted = AdmittedStream {
            permit,
            send,
            receive,
        };
        let mut pending = request.send(tunnel, admitted, continue_timeout).await?;
        let informational = |status, fields| self.send_informational(status, fields);
        match pending.head(informational).await {
            Ok(head) => Ok((pending, head)),
            Err(None) => Err(DeliveryError::Lost { stream }),
            Err(Some(fault)) => Err(DeliveryError::Fault(fault)),
        }
    }

    /// Answer a successful upgrade, and relay raw bytes from then on.
    fn switch(
        &self,
        pending: PendingResponse,
        on_upgrade: OnUpgrade,
        version: Version,
        mut fields: HeaderMap,
    ) -> Response<VisitorBody> {
        let protocol = strip_hop_by_hop(&mut fields).upgrade;
        cookies::remove_parent_domain_cookies(&mut fields, &self.authority.host);
        let PendingResponse {
            receiver,
            sender: Some(sender),
            permit,
            ..
        } = pending
        else {
            return self.fail(Fault::Internal);
        };
        let closing = self.visit.visitors.closing.clone();
        let conversation = Arc::new(UpgradedConversation::new(receiver.window()));
        let watched: Arc<dyn Evict> = conversation.clone();
        permit.watch(Arc::downgrade(&watched));
        let stall_limit = match version {
            Version::HTTP_2 => self.visit.visitors.limits.write_stall,
            // The socket has a limit of its own.
            _ => Duration::MAX,
        };
        let activity = Arc::new(Activity::start());
        let idle = idle_after_stop(self.visit.visitors.draining.clone(), activity.clone());
        let stream = self.visit.stream.clone();
        let relayed = async move {
            let _permit = permit;
            match on_upgrade.await {
                Ok(upgraded) => {
                    let io = CountedReads::new(TokioIo::new(upgraded), stream);
                    let io = UpgradedStream::new(io, stall_limit, activity);
                    tokio::select! {
                        _ = relay(io, sender, receiver) => {}
                        () = conversation.evicted() => {}
                        () = idle => debug!("cutting an idle connection, the edge stops"),
                        () = closing.cancelled() => {}
                    }
                }
                Err(err) => debug!(%err, "the upgrade of the visitor's connection failed"),
            }
        };
        // Draining the edge waits for these tasks, or cuts them.
        self.visit
            .visitors
            .upgrades
            .spawn(relayed.in_current_span());

        let mut response = Response::new(VisitorBody::Empty);
        if version == Version::HTTP_2 {
            // The handshake fields of HTTP/1.1 mean nothing over HTTP/2 (RFC 8441 §5).
            fields.remove("sec-websocket-accept");
        } else {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            fields.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            if let Some(protocol) = protocol {
                fields.insert(UPGRADE, protocol);
            }
        }
        fields.remove(CONTENT_LENGTH);
        *response.headers_mut() = fields;
        response
    }

    /// Return the fields of the response: make those that frame the message agree with the body
    /// that follows, and remove cookies that the tunnel may not set. The agent is not trusted with
    /// either.
    fn response_fields(
        &self,
        mut fields: HeaderMap,
        status: StatusCode,
        length: BodyLength,
    ) -> HeaderMap {
        strip_hop_by_hop(&mut fields);
        cookies::remove_parent_domain_cookies(&mut fields, &self.authority.host);
        let bodiless = self.error_format.is_head() || status == StatusCode::NOT_MODIFIED;
        if length == BodyLength::Empty && !bodiless {
            fields.remove(CONTENT_LENGTH);
        }
        normalize_content_length(&mut fields, length);
        fields
    }

    /// Log a fault, and make its response.
    fn fail(&self, fault: Fault) -> Response<VisitorBody> {
        let failure_log = &self.visit.visitors.failure_log;
        failure_log.note(Some(&self.authority.host), fault);
        self.error_format.render(fault, None)
    }

    /// Pass an informational (1xx) response on over HTTP/1.1. hyper's HTTP/2 server cannot send
    /// any.
    fn send_informational(&self, status: StatusCode, mut fields: HeaderMap) {
        strip_hop_by_hop(&mut fields);
        cookies::remove_parent_domain_cookies(&mut fields, &self.authority.host);
        if let Some(verdicts) = &self.visit.verdicts {
            verdicts.send_informational(status, &fields);
        }
    }
}

/// Where a request comes from, as far as its head depends on it.
pub(crate) struct RequestOrigin {
    pub(crate) visitor: SocketAddr,
    pub(crate) scheme: Scheme,
    /// The peer is a trusted proxy, which tells who the visitor is.
    pub(crate) is_trusted: bool,
    /// The guard waits to learn whether the request is upgraded (HTTP/1.1).
    pub(crate) may_upgrade: bool,
}

/// Make the head that is sent to the agent, of a valid request.
pub(crate) fn request_head(
    parts: Parts,
    mut body: BodyLength,
    authority: &Authority,
    origin: &RequestOrigin,
) -> RequestHead {
    let Parts {
        mut method,
        uri,
        version,
        mut headers,
        extensions,
        ..
    } = parts;
    let hop = strip_hop_by_hop(&mut headers);
    let mut upgrade = hop
        .upgrade
        .filter(|_| origin.may_upgrade)
        .and_then(|protocol| protocol.to_str().ok().map(str::to_owned));
    if let Some(protocol) = extensions.get::<Protocol>() {
        // Extended CONNECT (RFC 8441) is what HTTP/1.1 calls a GET with Upgrade. The "body" is
        // the conversation.
        upgrade = Some(protocol.as_str().to_owned());
        method = Method::GET;
        body = BodyLength::Empty;
    }
    join_cookies(&mut headers);
    if hop.takes_trailers {
        // gRPC servers refuse requests without it.
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    headers.insert(HOST, authority.raw.clone());
    if origin.is_trusted {
        let received = ReceivedFrom {
            peer: origin.visitor.ip(),
            scheme: origin.scheme,
            host: &authority.raw,
        };
        append_forwarded(&mut headers, &received);
    } else {
        forwarded::remove(&mut headers);
    }
    let target = match uri.path_and_query().map(|target| target.as_str()) {
        None | Some("") => "/".to_owned(),
        // In absolute form without a path, the query belongs to the root.
        Some(query) if query.starts_with('?') => format!("/{query}"),
        Some(target) => target.to_owned(),
    };
    RequestHead {
        // Set when the session is known.
        tunnel: 0,
        visitor: origin.visitor,
        scheme: origin.scheme,
        version: version.into(),
        method,
        target,
        upgrade,
        body,
        // Set when the stream is known.
        window: 0,
        fields: crate::proto::Fields(headers),
    }
}

/// Report whether a 101 switches to a protocol that was asked for: the agent is not trusted with
/// it.
fn is_requested(requested: &str, fields: &HeaderMap) -> bool {
    let accepted = fields.get(UPGRADE);
    is_answer_to(requested, accepted.map(HeaderValue::as_bytes))
}

/// Timeout of opening a stream to an agent that serves as many conversations as it may.
const OPEN_STREAM_TIMEOUT: Duration = Duration::from_secs(5);
