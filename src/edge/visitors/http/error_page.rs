//! Responses that the edge makes itself, where there is none of the upstream's to pass on.

use ::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use ::http::{HeaderMap, HeaderValue, Method, Response};
use bytes::Bytes;
use http_body_util::Full;

use super::body::VisitorBody;
use crate::edge::fault::Fault;

/// The format in which a request wants an error reported.
#[derive(Debug, Clone, Default)]
pub struct ErrorFormat {
    format: Format,
    head_only: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Format {
    #[default]
    Text,
    Html,
    Json,
}

impl ErrorFormat {
    /// Choose the format from a request's `Accept` and method.
    pub fn of(method: &Method, headers: &HeaderMap) -> Self {
        let accept = headers
            .get(ACCEPT)
            .and_then(|accept| accept.to_str().ok())
            .unwrap_or("");
        // Browsers name text/html first; programs that want JSON name nothing else.
        let format = accept
            .split(',')
            .find_map(|range| match range.split(';').next().unwrap_or("").trim() {
                "text/html" | "application/xhtml+xml" => Some(Format::Html),
                "application/json" => Some(Format::Json),
                range if range.ends_with("+json") => Some(Format::Json),
                _ => None,
            })
            .unwrap_or_default();
        Self {
            format,
            head_only: method == Method::HEAD,
        }
    }

    /// Report whether the request was a HEAD, whose response has no body.
    pub fn is_head(&self) -> bool {
        self.head_only
    }

    /// Render a fault as a response. `detail` replaces the general explanation.
    pub fn render(&self, fault: Fault, detail: Option<&str>) -> Response<VisitorBody> {
        let (what, next) = explain(fault);
        let what = detail.unwrap_or(what);
        let (kind, text) = match self.format {
            Format::Text => (
                "text/plain; charset=utf-8",
                format!(
                    "{} {}: {what} {next}\n",
                    fault.status().as_u16(),
                    fault.code()
                ),
            ),
            Format::Json => ("application/json", json(fault, what, next)),
            Format::Html => ("text/html; charset=utf-8", html(fault, what, next)),
        };
        let body = if self.head_only {
            Bytes::new()
        } else {
            Bytes::from(text)
        };
        let mut response = Response::new(VisitorBody::Page(Full::new(body)));
        *response.status_mut() = fault.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert("x-qtunnel-error", HeaderValue::from_static(fault.code()));
        if let Some(seconds) = fault.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        response
    }
}

fn json(fault: Fault, what: &str, next: &str) -> String {
    let (error, status) = (fault.code(), fault.status().as_u16());
    let value =
        serde_json::json!({ "error": error, "status": status, "message": what, "next": next });
    format!("{value}\n")
}

fn html(fault: Fault, what: &str, next: &str) -> String {
    let (status, code) = (fault.status(), fault.code());
    let [what, next] = [what, next].map(|text| {
        text.replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
    });
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{status}</title>\
         <style>body{{font:1.1rem/1.6 system-ui,sans-serif;max-width:36rem;margin:15vh auto;\
         padding:0 1.5rem;color-scheme:light dark}}code{{opacity:.7}}</style>\
         <h1>{status}</h1><p>{what}</p><p>{next}</p><p><code>{code}</code></p></html>\n"
    )
}

/// Explain which hop failed and what to do next, without any internal address.
fn explain(fault: Fault) -> (&'static str, &'static str) {
    match fault {
        Fault::NoSuchTunnel => (
            "There is no tunnel of this name.",
            "Check the address. If the tunnel is yours, start it with `qtunnel connect`.",
        ),
        Fault::AgentOffline => (
            "The tunnel's agent is not connected at the moment.",
            "Try again soon. If the tunnel is yours, see whether `qtunnel connect` is running.",
        ),
        Fault::AgentLost => (
            "The connection to the tunnel's agent broke before it answered.",
            "Try again. Whether the request was processed is not known.",
        ),
        Fault::UpstreamUnreachable => (
            "The tunnel works, but nothing answers at the service behind it.",
            "If it is yours, start it, or see the agent's log for the address that it tried.",
        ),
        Fault::UpstreamTimeout => (
            "The tunnel works, but the service behind it did not answer in time.",
            "Try again later. If it is yours, the agent's log has the address, and \
             `--upstream-timeout` the limit.",
        ),
        Fault::UpstreamInvalid => (
            "The tunnel works, but the service behind it broke off, or did not answer in HTTP.",
            "If it is yours, see the agent's log, and whether it was given the right port and scheme.",
        ),
        Fault::UpstreamNotHttp => (
            "The tunnel works, but the service behind it did not answer in HTTP, or in another version of it.",
            "If it is yours, see the agent's log for the first bytes that it sent, and whether the agent was \
             given the right port and scheme.",
        ),
        Fault::UpstreamHeadTooLarge => (
            "The tunnel works, but the service behind it answered with more header fields than can be read.",
            "If it is yours, see the agent's log; a head may have 256 KiB, as in browsers.",
        ),
        Fault::UpstreamHeadInvalid => (
            "The tunnel works, but the header of the service's answer is malformed.",
            "If it is yours, see the agent's log for the field that is wrong.",
        ),
        Fault::UpgradeNotAllowed => (
            "The tunnel does not switch to the protocol that was asked for.",
            "If it is yours, `--allow-upgrade` allows more than `websocket`.",
        ),
        Fault::LoopDetected => (
            "The tunnel leads to itself: this request has come through it before.",
            "If it is yours, give `qtunnel connect` the address of a service, and not one of the edge.",
        ),
        Fault::BadRequest(_) => (
            "The edge refused this request because it is not valid HTTP or too large.",
            "Check the program that sent it.",
        ),
        Fault::BodyTooSlow => (
            "The edge gave this request up because its body did not come, or came too slowly.",
            "Try again; if it happens again, check the connection of the program that sent it.",
        ),
        Fault::Busy => (
            "The tunnel, or the edge, has as many conversations as it may.",
            "Try again in a moment.",
        ),
        Fault::TooManyConnections => (
            "There are too many connections from your address.",
            "Close some, or try again in a moment.",
        ),
        Fault::TooManyConversations => (
            "There are too many requests under way from your address, and others wait.",
            "Let some end, or try again in a moment.",
        ),
        Fault::NotFound => ("The edge has no such page.", "Check the address."),
        Fault::Internal => (
            "The edge failed at this request. This is a bug of qtunnel.",
            "Try again; if it happens again, please report it.",
        ),
    }
}
