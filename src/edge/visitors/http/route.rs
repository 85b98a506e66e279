//! One request: checked, routed, and answered.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use ::http::header::{CONNECTION, LOCATION};
use ::http::request::Parts;
use ::http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use tracing::{debug, error};

use super::body::VisitorBody;
use super::error_page::{ErrorFormat, Fault};
use super::forward::{Forward, Loaded};
use super::guard::Verdicts;
use super::http2::Stream;
use super::request_body::RequestBody;
use super::validate;
use super::validate::Authority;
use super::violation::Violation;
use crate::carrier::WEBSOCKET_PATH;
use crate::edge::agents::websockets::{RawTcp, agent_address};
use crate::edge::visitors::accept::Visitors;
use crate::edge::visitors::client::Client;
use crate::edge::visitors::client::ConnectionId;
use crate::edge::visitors::socket::Received;
use crate::proto::Scheme;

/// A visitor and the way in that it took.
pub struct Visit {
    pub visitors: Arc<Visitors>,
    pub visitor: SocketAddr,
    pub connection: ConnectionId,
    pub scheme: Scheme,
    /// The connection's socket: valid as long as the connection.
    pub tcp: RawTcp,
    /// What the guard found in the head; HTTP/2 has none.
    pub verdicts: Option<Verdicts>,
    /// What has been received on the connection.
    pub received: Received,
    /// The stream of HTTP/2.
    pub stream: Option<Arc<Stream>>,
}

impl Visit {
    /// Answer a request. A panic on the way is this request's alone.
    ///
    /// Not an async function: that would keep the request beside what becomes of it.
    pub fn answer(self, request: Request<Incoming>) -> impl Future<Output = Response<VisitorBody>> {
        let audience = ErrorFormat::of(request.method(), request.headers());
        let verdicts = self.verdicts.clone();
        let asker = audience.clone();
        let routed = catch_unwind(AssertUnwindSafe(|| self.route(request, asker)));
        async move {
            let answered = match routed {
                Ok(Routed::Forward(mut loaded)) => {
                    let mut answer = pin!(loaded.run());
                    poll_fn(|cx| {
                        match catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(cx))) {
                            Ok(Poll::Ready(response)) => Poll::Ready(Ok(response)),
                            Ok(Poll::Pending) => Poll::Pending,
                            Err(panic) => Poll::Ready(Err(panic)),
                        }
                    })
                    .await
                }
                Ok(Routed::Answer(response)) => Ok(response),
                Err(panic) => Err(panic),
            };
            let answer = answered.unwrap_or_else(|_| {
                // It is said here, and needs no number.
                error!("answering a request panicked");
                audience.tell(Fault::Internal, None)
            });
            if let Some(verdicts) = verdicts {
                verdicts.upgraded(answer.status() == StatusCode::SWITCHING_PROTOCOLS);
            }
            answer
        }
    }

    fn route(self, request: Request<Incoming>, audience: ErrorFormat) -> Routed {
        let (parts, body) = request.into_parts();
        let (limits, received) = (&self.visitors.limits, self.received.clone());
        let stream = self.stream.clone();
        let body = RequestBody::new(body, &parts.headers, limits, received, stream);
        let (authority, may_upgrade) = match self.check(&parts) {
            Ok(checked) => checked,
            Err(violation) => {
                return Routed::Answer(self.refuse(&audience, parts.version, violation));
            }
        };
        if parts.uri.path() == WEBSOCKET_PATH {
            let carriers = &self.visitors.carriers;
            let proxies = &self.visitors.trusted_proxies;
            let agent = agent_address(self.visitor, proxies, &parts.headers);
            let way_in = (self.visitor, self.tcp, self.stream);
            return Routed::Answer(carriers.accept(parts, agent, way_in, may_upgrade));
        }
        if parts.uri.path().starts_with(OWN_PATHS) {
            return Routed::Answer(audience.tell(Fault::NotFound, None));
        }
        if let (Scheme::Http, Some(port)) = (self.scheme, self.visitors.redirect) {
            return Routed::Answer(redirect(&parts, &authority, port));
        }
        let Some(name) = self.visitors.name(&authority.host).map(str::to_owned) else {
            self.visitors.failures.note(None, Fault::NoSuchTunnel);
            return Routed::Answer(audience.tell(Fault::NoSuchTunnel, None));
        };
        let client = Client::of(
            self.visitor.ip(),
            self.connection,
            &self.visitors.trusted_proxies,
            &parts.headers,
        );
        let forward = Forward {
            visit: self,
            client,
            audience,
            authority,
            may_upgrade,
            name,
        };
        Routed::Forward(forward.load(parts, body))
    }

    /// Find the host that the request is for, and whether it may be upgraded.
    fn check(&self, parts: &Parts) -> Result<(Authority, bool), Violation> {
        let facts = self.verdicts.as_ref().map(Verdicts::next).transpose()?;
        Ok((
            validate::check(parts)?,
            facts.is_some_and(|facts| facts.expects_upgrade),
        ))
    }

    fn refuse(
        &self,
        audience: &ErrorFormat,
        version: Version,
        violation: Violation,
    ) -> Response<VisitorBody> {
        debug!(%violation, "request refused");
        let fault = Fault::BadRequest(violation.status());
        self.visitors.failures.note(None, fault);
        let mut response = audience.tell(fault, Some(&format!("{violation}.")));
        if version != Version::HTTP_2 {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// Where a request goes.
enum Routed {
    Forward(Box<Loaded>),
    /// Nowhere: the edge itself answers.
    Answer(Response<VisitorBody>),
}

fn redirect(parts: &Parts, authority: &Authority, port: u16) -> Response<VisitorBody> {
    let target = parts
        .uri
        .path_and_query()
        .map_or("/", |target| target.as_str());
    let port = if port == 443 {
        String::new()
    } else {
        format!(":{port}")
    };
    let mut response = Response::new(VisitorBody::Empty);
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    if let Ok(location) = HeaderValue::try_from(format!("https://{}{port}{target}", authority.host))
    {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// Paths that belong to the edge on every host.
const OWN_PATHS: &str = "/_qtunnel/";
