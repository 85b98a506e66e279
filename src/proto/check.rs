//! Semantic checks of well-formed values. The table of all fields is in `fields.md`.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use ::http::header::{CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING};
use ::http::{HeaderMap, HeaderName, Method, StatusCode, Uri};

use super::{
    AgentMessage, BodyLength, EdgeMessage, FIRST_WINDOW_LIMIT, Hello, INFORMATIONAL, LOST_LIMIT,
    MIN_WINDOW, REASON_LIMIT, REQUEST_FIELDS_LIMIT, RequestHead, ResponseHead, StreamHead,
    TARGET_LIMIT, TunnelGrant, TunnelRequest, UNREAD_LIMIT, UPGRADE_LIMIT, URLS_LIMIT, Welcome,
    WireError,
};

/// A message or head that must be checked after it was decoded.
///
/// The receiving functions require this trait, so that no caller gets an unchecked value from a
/// stream.
pub trait Check {
    /// Check the value on its own. What depends on the receiver's state is left to the receiver.
    ///
    /// # Errors
    /// [`WireError::Invalid`] names the violation.
    fn check(&self) -> Result<(), WireError>;
}

impl Check for AgentMessage {
    fn check(&self) -> Result<(), WireError> {
        match self {
            Self::Hello(hello) => hello.check(),
            Self::Open(_) | Self::Close(_) | Self::Draining { .. } => Ok(()),
            Self::Window(_) | Self::Ping => Ok(()),
        }
    }
}

impl Check for Hello {
    fn check(&self) -> Result<(), WireError> {
        let mut numbers = HashSet::new();
        let mut is_new = |request: &TunnelRequest| numbers.insert(request.tunnel);
        require(
            self.tunnels.iter().all(&mut is_new),
            "two tunnels have the same number",
        )?;
        require(
            self.lost.len() <= LOST_LIMIT,
            "too many lost sessions are reported",
        )?;
        let is_possible = |lost: &super::LostSession| {
            lost.unread.len() <= UNREAD_LIMIT
                && lost.unread.iter().all(|stream| *stream < lost.accepted)
        };
        require(
            self.lost.iter().all(is_possible),
            "a lost session reports impossible unread streams",
        )
    }
}

impl Check for EdgeMessage {
    fn check(&self) -> Result<(), WireError> {
        match self {
            Self::Welcome(welcome) => welcome.check(),
            Self::Opened(grant) => grant.check(),
            Self::Refused(_) | Self::NotOpened { .. } | Self::Notice(_) => Ok(()),
            Self::Draining { .. } | Self::Moving { .. } => Ok(()),
            Self::Window(_) | Self::Ping => Ok(()),
        }
    }
}

impl Check for Welcome {
    fn check(&self) -> Result<(), WireError> {
        self.tunnels.iter().try_for_each(Check::check)
    }
}

impl Check for TunnelGrant {
    fn check(&self) -> Result<(), WireError> {
        require(self.urls.len() <= URLS_LIMIT, "a tunnel has too many URLs")?;
        require(
            self.urls.iter().all(|url| is_url(url)),
            "a tunnel's URL is invalid",
        )
    }
}

impl Check for StreamHead {
    fn check(&self) -> Result<(), WireError> {
        match self {
            Self::Http(head) => head.check(),
        }
    }
}

impl Check for RequestHead {
    fn check(&self) -> Result<(), WireError> {
        let is_asterisk = self.target == "*" && self.method == Method::OPTIONS;
        require(self.method != Method::CONNECT, "the method is CONNECT")?;
        require(
            self.method.as_str().len() <= METHOD_LIMIT,
            "the method is too long",
        )?;
        require(
            is_asterisk || is_origin_form(&self.target),
            "the target is not a path",
        )?;
        require(self.target.len() <= TARGET_LIMIT, "the target is too long")?;
        require(
            self.upgrade.as_deref().is_none_or(is_protocol),
            "the protocol to switch to is invalid",
        )?;
        check_length(self.body)?;
        require(
            WINDOWS.contains(&self.window.into()),
            "the initial window is out of range",
        )?;
        check_request_fields(&self.fields.0, self.body)
    }
}

impl Check for ResponseHead {
    fn check(&self) -> Result<(), WireError> {
        match self {
            Self::Informational { status, .. } => require(
                INFORMATIONAL.contains(&status.as_u16())
                    && *status != StatusCode::SWITCHING_PROTOCOLS,
                "an informational response has another kind of status",
            ),
            Self::Final {
                status,
                reason,
                body,
                ..
            } => {
                require(
                    *status == StatusCode::SWITCHING_PROTOCOLS
                        || !INFORMATIONAL.contains(&status.as_u16()),
                    "a final response has an informational status",
                )?;
                require(
                    !is_bodiless(*status) || *body == BodyLength::Empty,
                    "a response has a body that its status forbids",
                )?;
                require(
                    reason.as_deref().is_none_or(is_reason),
                    "the reason phrase is invalid",
                )?;
                check_length(*body)
            }
            Self::Failed(_) => Ok(()),
        }
    }
}

/// Report whether a response with this status has no body, whatever its fields say (RFC 9110
/// §6.4.1), like those to HEAD.
pub fn is_bodiless(status: StatusCode) -> bool {
    status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Report whether these bytes may be sent as HTTP/1.1's reason phrase (RFC 9112 §4).
pub fn is_reason(reason: &[u8]) -> bool {
    let allowed = |b: &u8| matches!(b, b'\t' | b' '..=b'~' | 0x80..);
    reason.len() <= REASON_LIMIT && reason.iter().all(allowed)
}

fn require(holds: bool, otherwise: &'static str) -> Result<(), WireError> {
    match holds {
        true => Ok(()),
        false => Err(WireError::Invalid(otherwise)),
    }
}

/// Check that the body fits a stream.
fn check_length(body: BodyLength) -> Result<(), WireError> {
    let fits = !matches!(body, BodyLength::Known(length) if length >= BODY_LIMIT);
    require(fits, "the body is longer than a stream can be")
}

fn is_url(url: &str) -> bool {
    let visible = url.bytes().all(|b| b.is_ascii_graphic());
    let parsed = url.parse::<Uri>().ok().filter(|_| visible);
    parsed.is_some_and(|url| {
        matches!(url.scheme_str(), Some("http" | "https"))
            && url.host().is_some_and(|host| !host.is_empty())
    })
}

/// Report whether the target is in origin form: a path and a query (RFC 9112 §3.2.1). A path may
/// begin with two slashes: in front of a server it stays one.
fn is_origin_form(target: &str) -> bool {
    let allowed = |b: u8| !b.is_ascii_control() && b != b' ' && b != b'#';
    target.starts_with('/') && target.bytes().all(allowed)
}

/// Report whether this is one protocol, or several with commas, as in `Upgrade` and `:protocol`
/// (RFC 9110 §7.8).
pub fn is_protocol(protocol: &str) -> bool {
    let allowed = |b: u8| matches!(b, b'!'..=b'~' | b' ');
    (1..=UPGRADE_LIMIT).contains(&protocol.len())
        && protocol.bytes().all(allowed)
        && !protocol.contains(['"', '\\', ';', '(', ')'])
}

/// Check that no hop-by-hop field is left, and exactly one host. The edge ensures it; if it has
/// not, no such field may reach an upstream, which could read another request out of it than the
/// edge did (request smuggling).
fn check_request_fields(fields: &HeaderMap, body: BodyLength) -> Result<(), WireError> {
    require(
        fields.len() <= REQUEST_FIELDS_LIMIT,
        "there are too many fields",
    )?;
    let mut hosts = fields.get_all(HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    require(
        second.is_none() && host.is_some_and(|host| is_host(host.as_bytes())),
        "there is not exactly one host",
    )?;
    let (mut hop, mut framing) = (false, false);
    for name in fields.keys() {
        hop |= FORBIDDEN_FIELDS.contains(name);
        framing |= imitates_framing(name);
    }
    let only_trailers = fields
        .get_all(TE)
        .iter()
        .all(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    require(!hop && only_trailers, "a hop-by-hop field is left")?;
    require(!framing, "a field could be mistaken for a framing field")?;
    let mut lengths = fields.get_all(CONTENT_LENGTH).iter();
    let (length, second) = (lengths.next(), lengths.next());
    let agrees = match (length, body) {
        (None, _) => true,
        (Some(length), BodyLength::Known(known)) => decimal(length.as_bytes()) == Some(known),
        (Some(length), BodyLength::Empty) => decimal(length.as_bytes()).is_some(),
        (Some(_), BodyLength::Unknown) => false,
    };
    require(
        agrees && second.is_none(),
        "the length differs from Content-Length",
    )
}

/// Report whether this is a host with an optional port (RFC 9110 §7.2), and cannot be read as two.
fn is_host(host: &[u8]) -> bool {
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"-._~:[]".contains(b);
    (1..=HOST_LIMIT).contains(&host.len()) && host.iter().all(allowed)
}

/// Report whether a name looks like a framing field: `content_length` is a length to those who pass
/// fields on in variables (CGI, WSGI).
fn imitates_framing(name: &HeaderName) -> bool {
    name.as_str().contains('_') && {
        let hyphened = name.as_str().replace('_', "-");
        hyphened == CONTENT_LENGTH.as_str() || hyphened == TRANSFER_ENCODING.as_str()
    }
}

/// Parse a number of digits and nothing else (RFC 9110 §8.6).
pub fn decimal(value: &[u8]) -> Option<u64> {
    let digits = value.iter().all(u8::is_ascii_digit) && !value.is_empty();
    digits
        .then(|| std::str::from_utf8(value).ok()?.parse().ok())
        .flatten()
}

/// Valid initial windows, in bytes.
const WINDOWS: RangeInclusive<u64> = MIN_WINDOW..=FIRST_WINDOW_LIMIT;

/// Length in bytes that every body stays below: a QUIC stream carries no more (RFC 9000 §4.5), and it fits
/// everybody's signed arithmetic.
pub const BODY_LIMIT: u64 = 1 << 62;

/// Longest method, in bytes. The longest registered one has 17 characters.
pub const METHOD_LIMIT: usize = 256;

/// Longest host, in bytes: a DNS name (255) and a port.
const HOST_LIMIT: usize = 270;

/// Fields for one connection only; `TE: trailers` is allowed.
const FORBIDDEN_FIELDS: [HeaderName; 8] = [
    ::http::header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    ::http::header::PROXY_AUTHENTICATE,
    ::http::header::PROXY_AUTHORIZATION,
    TRANSFER_ENCODING,
    ::http::header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];
