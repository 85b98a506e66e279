//! One request on its way through the tunnel, and its response on the way back.

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

use super::body::UpgradedAnswer;
use super::body::VisitorBody;
use super::error_page::{ErrorFormat, Fault};
use super::exchange::{DeliveryError, Outbound, PendingResponse, Place};
use super::http2::UpgradedStream;
use super::request_body::RequestBody;
use super::route::Visit;
use super::validate::Authority;
use crate::edge::names::registry::LiveTunnel;
use crate::edge::visitors::client::Client;
use crate::edge::visitors::conversations::Evict;
use crate::http::cookies;
use crate::http::forwarded;
use crate::http::forwarded::{Arrival, append_forwarded};
use crate::http::hygiene::{join_cookies, keep_one_length, strip_hop_by_hop};
use crate::http::is_answer_to;
use crate::proto::{BodyLength, RequestHead, ResponseHead, Scheme};
use crate::stream::relay;

/// A request that has found its tunnel.
pub struct Forward {
    pub visit: Visit,
    /// For whom it counts.
    pub client: Client,
    pub audience: ErrorFormat,
    pub authority: Authority,
    /// Whether the guard waits to be told what follows the head (HTTP/1.1).
    pub may_upgrade: bool,
    /// The tunnel's.
    pub name: String,
}

/// A request with all that is needed until its response begins. In a place of its own: futures that had it as
/// an argument would have room for it twice, in every visitor's task.
pub struct Loaded {
    forward: Forward,
    /// Until the response begins.
    request: Option<Outbound>,
    on_upgrade: Option<OnUpgrade>,
    version: Version,
}

impl Loaded {
    /// Carry the request to the agent and return what comes back.
    pub async fn run(&mut self) -> Response<VisitorBody> {
        let Some(request) = &mut self.request else {
            return self.forward.fail(Fault::Internal);
        };
        match self.forward.deliver(request).await {
            Ok((exchange, head)) => self.respond(exchange, head),
            Err(fault) => self.forward.fail(fault),
        }
    }

    fn respond(&mut self, exchange: PendingResponse, head: ResponseHead) -> Response<VisitorBody> {
        let asked = self.request.take().and_then(Outbound::settle);
        let forward = &self.forward;
        let (status, reason, length, fields) = match head {
            ResponseHead::Final {
                status,
                reason,
                body,
                fields,
            } => (status, reason, body, fields.0),
            ResponseHead::Failed(failure) => return forward.fail(failure.into()),
            ResponseHead::Informational { .. } => return forward.fail(Fault::Internal),
        };
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return match self.on_upgrade.take() {
                Some(on_upgrade) if asked.is_some_and(|asked| agrees(&asked, &fields)) => {
                    forward.switch(exchange, on_upgrade, self.version, fields)
                }
                // Nobody asked for it, or for something else: what follows would not be HTTP.
                _ => {
                    exchange
                        .receiver
                        .violated(&"a protocol is switched that nobody asked to switch");
                    forward.fail(Fault::UpstreamInvalid)
                }
            };
        }
        if forward.audience.is_head() && length != BodyLength::Empty {
            exchange.receiver.violated(&"an answer to HEAD has a body");
            return forward.fail(Fault::UpstreamInvalid);
        }
        if asked.is_some() && self.version == Version::HTTP_2 && status.is_success() {
            // There it would say that the protocol has been switched (RFC 8441 §5).
            return forward.fail(Fault::UpstreamInvalid);
        }
        let mut response = Response::new(exchange.into_body(length));
        *response.status_mut() = status;
        *response.headers_mut() = forward.response_fields(fields, status, length);
        if let Some(reason) = reason.and_then(|reason| ReasonPhrase::try_from(reason).ok()) {
            response.extensions_mut().insert(reason);
        }
        response
    }
}

impl Forward {
    /// Take the request up.
    pub fn load(self, mut parts: Parts, body: RequestBody) -> Box<Loaded> {
        let on_upgrade = parts.extensions.remove::<OnUpgrade>();
        let version = parts.version;
        let expects = parts
            .headers
            .get(EXPECT)
            .is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        let head = self.head(parts, &body);
        Box::new(Loaded {
            on_upgrade,
            version,
            request: Some(Outbound::new(head, body, expects)),
            forward: self,
        })
    }

    /// Make the head that the agent gets.
    fn head(&self, parts: Parts, body: &RequestBody) -> RequestHead {
        let body = match body.size_hint().exact() {
            _ if body.is_end_stream() => BodyLength::Empty,
            Some(length) => BodyLength::Known(length),
            None => BodyLength::Unknown,
        };
        let peer = self.visit.visitor.ip();
        let mut proxies = self.visit.visitors.trusted_proxies.iter();
        let origin = Origin {
            visitor: self.visit.visitor,
            scheme: self.visit.scheme,
            is_trusted: proxies.any(|net| net.contains(&peer)),
            may_upgrade: self.may_upgrade,
        };
        request_head(parts, body, &self.authority, &origin)
    }

    /// Send the request to the agent and wait for its answer, holding it while the agent is away.
    /// What broke before the agent read it is sent again; what may have been processed is not.
    async fn deliver(
        &self,
        request: &mut Outbound,
    ) -> Result<(PendingResponse, ResponseHead), Fault> {
        let hold = &self.visit.visitors.hold;
        let mut tunnel = hold
            .serving(&self.name, self.client, || request.size())
            .await?;
        let mut deadline = None;
        loop {
            let broken = match self.attempt(&tunnel, request).await {
                Ok(answered) => return Ok(answered),
                Err(broken) => broken,
            };
            let (stream, fault) = match broken {
                DeliveryError::Fault(fault) => return Err(fault),
                DeliveryError::NotSent => (None, Fault::AgentOffline),
                DeliveryError::Lost { stream } => (Some(stream), Fault::AgentLost),
            };
            if !request.is_whole() {
                return Err(Fault::AgentLost);
            }
            let deadline = *deadline.get_or_insert_with(|| hold.deadline());
            let waited = hold.successor(&self.name, self.client, request.size(), deadline, &tunnel);
            let next = waited.await.map_err(|_| fault)?;
            if stream.is_some_and(|stream| !next.never_read(&tunnel, stream)) {
                return Err(Fault::AgentLost);
            }
            debug!(
                ?stream,
                "sending a request again, which the agent has not read"
            );
            tunnel = next;
        }
    }

    /// Send the request in one session.
    async fn attempt(
        &self,
        tunnel: &LiveTunnel,
        request: &mut Outbound,
    ) -> Result<(PendingResponse, ResponseHead), DeliveryError> {
        let admission = tunnel.conversations.admit(self.client).await;
        let admission = admission.map_err(DeliveryError::Fault)?;
        let (send, receive) = timeout(OPEN_STREAM, tunnel.connection.open_bi())
            .await
            .map_err(|_| DeliveryError::Fault(Fault::Busy))?
            .map_err(|_| DeliveryError::NotSent)?;
        let stream = send.id().index();
        let patience = self.visit.visitors.limits.expectation;
        let place = Place {
            admission,
            send,
            receive,
        };
        let mut exchange = request.send(tunnel, place, patience).await?;
        match exchange.head(self).await {
            Ok(head) => Ok((exchange, head)),
            Err(None) => Err(DeliveryError::Lost { stream }),
            Err(Some(fault)) => Err(DeliveryError::Fault(fault)),
        }
    }

    /// Answer a successful upgrade, and relay raw bytes from then on.
    fn switch(
        &self,
        exchange: PendingResponse,
        on_upgrade: OnUpgrade,
        version: Version,
        mut fields: HeaderMap,
    ) -> Response<VisitorBody> {
        let protocol = strip_hop_by_hop(&mut fields).upgrade;
        cookies::keep_own(&mut fields, &self.authority.host);
        let PendingResponse {
            receiver,
            sender: Some(sender),
            admission,
            ..
        } = exchange
        else {
            return self.fail(Fault::Internal);
        };
        let closing = self.visit.visitors.closing.clone();
        let upgraded_answer = Arc::new(UpgradedAnswer::new(receiver.window()));
        let watched: Arc<dyn Evict> = upgraded_answer.clone();
        admission.watch(Arc::downgrade(&watched));
        let stall_limit = match version {
            Version::HTTP_2 => self.visit.visitors.limits.write_stall,
            // The socket has one of its own.
            _ => Duration::MAX,
        };
        let relayed = async move {
            let _admission = admission;
            match on_upgrade.await {
                Ok(upgraded) => {
                    let io = UpgradedStream::new(TokioIo::new(upgraded), stall_limit);
                    tokio::select! {
                        _ = relay(io, sender, receiver) => {}
                        () = upgraded_answer.evicted() => {}
                        () = closing.cancelled() => {}
                    }
                }
                Err(err) => debug!(%err, "the visitor's connection was not upgraded"),
            }
        };
        // Whoever drains the edge waits for these (or cuts them).
        self.visit
            .visitors
            .upgrades
            .spawn(relayed.in_current_span());

        let mut response = Response::new(VisitorBody::Empty);
        if version == Version::HTTP_2 {
            // The handshake fields of HTTP/1.1 mean nothing here (RFC 8441 §5).
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

    /// Make the fields that frame the message agree with the body that follows, and leave out the cookies
    /// that are not the tunnel's to set: the agent's word is not taken for it.
    fn response_fields(
        &self,
        mut fields: HeaderMap,
        status: StatusCode,
        length: BodyLength,
    ) -> HeaderMap {
        strip_hop_by_hop(&mut fields);
        cookies::keep_own(&mut fields, &self.authority.host);
        let bodiless = self.audience.is_head() || status == StatusCode::NOT_MODIFIED;
        if length == BodyLength::Empty && !bodiless {
            fields.remove(CONTENT_LENGTH);
        }
        keep_one_length(&mut fields, length);
        fields
    }

    fn fail(&self, fault: Fault) -> Response<VisitorBody> {
        let failures = &self.visit.visitors.failures;
        failures.note(Some(&self.authority.host), fault);
        self.audience.tell(fault, None)
    }

    /// Pass a 1xx answer on, where the libraries allow it: hyper's HTTP/2 server has no way.
    pub fn hint(&self, status: StatusCode, mut fields: HeaderMap) {
        strip_hop_by_hop(&mut fields);
        cookies::keep_own(&mut fields, &self.authority.host);
        if let Some(verdicts) = &self.visit.verdicts {
            verdicts.inform(status, &fields);
        }
    }
}

/// Where a request comes from, and what follows from that.
pub(crate) struct Origin {
    pub(crate) visitor: SocketAddr,
    pub(crate) scheme: Scheme,
    /// It is a proxy, whose word is taken for who the visitor is.
    pub(crate) is_trusted: bool,
    /// The guard waits to be told what follows the head (HTTP/1.1).
    pub(crate) may_upgrade: bool,
}

/// Make the head that the agent gets of a request that was found to be valid.
pub(crate) fn request_head(
    parts: Parts,
    mut body: BodyLength,
    authority: &Authority,
    origin: &Origin,
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
        // RFC 8441: what HTTP/1.1 calls a GET with Upgrade. The "body" is the conversation.
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
        let arrival = Arrival {
            peer: origin.visitor.ip(),
            scheme: origin.scheme,
            host: &authority.raw,
        };
        append_forwarded(&mut headers, &arrival);
    } else {
        forwarded::remove(&mut headers);
    }
    let target = match uri.path_and_query().map(|target| target.as_str()) {
        None | Some("") => "/".to_owned(),
        // Absolute form without a path: the query belongs to the root.
        Some(query) if query.starts_with('?') => format!("/{query}"),
        Some(target) => target.to_owned(),
    };
    RequestHead {
        // That of the session which will get it.
        tunnel: 0,
        visitor: origin.visitor,
        scheme: origin.scheme,
        version: version.into(),
        method,
        target,
        upgrade,
        body,
        // That of the stream which will carry it.
        window: 0,
        fields: crate::proto::Fields(headers),
    }
}

/// Report whether a 101 switches to what was asked for: the agent's word is not taken for it.
fn agrees(asked: &str, fields: &HeaderMap) -> bool {
    let answered = fields.get(UPGRADE);
    is_answer_to(asked, answered.map(HeaderValue::as_bytes))
}

/// How long to wait for a stream while the agent serves as many conversations as it may.
const OPEN_STREAM: Duration = Duration::from_secs(5);
