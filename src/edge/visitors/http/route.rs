//! One request: checked, routed, and answered.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use ::http::header::{CONNECTION, LOCATION};
use ::http::request::Parts;
use ::http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use tracing::{debug, error};

use super::body::VisitorBody;
use super::error_page::ErrorFormat;
use super::forward::{Forward, PreparedRequest};
use super::guard::Verdicts;
use super::request_body::RequestBody;
use super::validate;
use super::validate::Authority;
use super::violation::Violation;
use crate::carrier::WEBSOCKET_PATH;
use crate::edge::agents::websockets::agent_address;
use crate::edge::fault::Fault;
use crate::edge::visitors::client::Client;
use crate::edge::visitors::context::Visit;
use crate::proto::Scheme;

impl Visit {
    /// Answer a request. A panic on the way ends this request alone.
    ///
    /// This is not an async function, whose future would keep the request beside what becomes of
    /// it.
    pub fn answer(self, request: Request<Incoming>) -> impl Future<Output = Response<VisitorBody>> {
        let error_format = ErrorFormat::of(request.method(), request.headers());
        let verdicts = self.verdicts.clone();
        let format = error_format.clone();
        let routed = catch_unwind(AssertUnwindSafe(|| self.route(request, format)));
        async move {
            let result = match routed {
                Ok(Routed::Forward(mut prepared)) => {
                    let mut response = pin!(prepared.run());
                    poll_fn(|cx| {
                        match catch_unwind(AssertUnwindSafe(|| response.as_mut().poll(cx))) {
                            Ok(Poll::Ready(response)) => Poll::Ready(Ok(response)),
                            Ok(Poll::Pending) => Poll::Pending,
                            Err(panic) => Poll::Ready(Err(panic)),
                        }
                    })
                    .await
                }
                Ok(Routed::Respond(response)) => Ok(response),
                Err(panic) => Err(panic),
            };
            let response = result.unwrap_or_else(|_| {
                // Logged here, and so not counted among the failures.
                error!("answering a request panicked");
                error_format.render(Fault::Internal, None)
            });
            if let Some(verdicts) = verdicts {
                verdicts.upgraded(response.status() == StatusCode::SWITCHING_PROTOCOLS);
            }
            response
        }
    }

    /// Decide what answers a request: its tunnel, or the edge itself.
    fn route(self, request: Request<Incoming>, error_format: ErrorFormat) -> Routed {
        let (parts, body) = request.into_parts();
        let (limits, received) = (&self.visitors.limits, self.received.clone());
        let stream = self.stream.clone();
        let body = RequestBody::new(body, &parts.headers, limits, received, stream);
        let (authority, may_upgrade) = match self.check(&parts) {
            Ok(checked) => checked,
            Err(violation) => {
                return Routed::Respond(self.refuse(&error_format, parts.version, violation));
            }
        };
        if parts.uri.path() == WEBSOCKET_PATH {
            let websockets = &self.visitors.websockets;
            let proxies = &self.visitors.trusted_proxies;
            let agent = agent_address(self.visitor, proxies, &parts.headers);
            let connection = (self.visitor, self.tcp, self.stream);
            return Routed::Respond(websockets.accept(parts, agent, connection, may_upgrade));
        }
        if parts.uri.path().starts_with(OWN_PATHS) {
            return Routed::Respond(error_format.render(Fault::NotFound, None));
        }
        if let (Scheme::Http, Some(port)) = (self.scheme, self.visitors.redirect) {
            return Routed::Respond(redirect(&parts, &authority, port));
        }
        let Some(name) = self.visitors.name(&authority.host).map(str::to_owned) else {
            self.visitors.failure_log.note(None, Fault::NoSuchTunnel);
            return Routed::Respond(error_format.render(Fault::NoSuchTunnel, None));
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
            error_format,
            authority,
            may_upgrade,
            name,
        };
        Routed::Forward(forward.prepare(parts, body))
    }

    /// Check the request; return the host that it is for, and whether it may be upgraded.
    fn check(&self, parts: &Parts) -> Result<(Authority, bool), Violation> {
        let facts = self.verdicts.as_ref().map(Verdicts::next).transpose()?;
        Ok((
            validate::check(parts)?,
            facts.is_some_and(|facts| facts.expects_upgrade),
        ))
    }

    /// Make the response to a request that breaks a rule.
    fn refuse(
        &self,
        error_format: &ErrorFormat,
        version: Version,
        violation: Violation,
    ) -> Response<VisitorBody> {
        debug!(%violation, "request refused");
        let fault = Fault::BadRequest(violation.status());
        self.visitors.failure_log.note(None, fault);
        let mut response = error_format.render(fault, Some(&format!("{violation}.")));
        if version != Version::HTTP_2 {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// Route of a request.
enum Routed {
    Forward(Box<PreparedRequest>),
    /// The edge answers by itself.
    Respond(Response<VisitorBody>),
}

/// Make the redirect of a plain HTTP request to HTTPS.
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

/// Prefix of the paths that belong to the edge on every host.
const OWN_PATHS: &str = "/_qtunnel/";
